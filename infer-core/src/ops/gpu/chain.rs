//! Ends of layers in one dispatch, where a device does so: see `webgpu_kernels::gemv_chain`.

use model_format::decoder_config::Activation;
use webgpu_kernels::{
    attention::Attention,
    gemv_chain::{GemvChain, Links, Turned},
};

use super::{GpuOps, GpuTensor};
use crate::ops::{AttentionShape, LayerEnd, NextLayer};

impl GpuOps {
    /// The chain of a layer's end, where it is one row's and this device chains.
    pub(super) fn chained(
        &mut self,
        x: &GpuTensor,
        y: &GpuTensor,
        end: &LayerEnd<'_, GpuOps>,
        next: Option<&mut NextLayer<'_, '_, GpuOps>>,
    ) -> Option<GpuTensor> {
        let LayerEnd { out, out_norm, gate_up, activation, down, next_norm, eps } = end;
        let is_whole = [out, gate_up, down].iter().all(|matrix| matrix.fuses(&self.gpu));
        if x.rows > 1 || *activation != Activation::Silu || !is_whole {
            return None;
        }
        let chain = GemvChain {
            out: &out.slices[0],
            out_norm: &out_norm.values,
            gate_up: &gate_up.slices[0],
            down: &down.slices[0],
            down_norm: &next_norm.values,
            eps: *eps,
        };
        let next = match next {
            Some(next) => {
                let AttentionShape { head_dim, rotary_dim, .. } = next.shape;
                let [span] = &*next.spans else { return None };
                if !next.qkv.turns(&self.gpu, head_dim, rotary_dim, span.kv.dtype) {
                    return None;
                }
                Some(next)
            }
            None => None,
        };
        let qkv = next.as_ref().map(|next| &next.qkv.slices[0]);
        let shape = chain.shape(qkv)?;
        let given = self.chain.filter(|choice| choice.suits(self.gpu.caps(), &shape));
        let choice = given.or_else(|| chain.choice(&self.gpu, &shape))?;
        if !self.links.as_ref().is_some_and(|links| links.suit(&self.recorder, &shape)) {
            self.links = Some(Links::new(&self.recorder, &shape).ok()?);
        }
        let (x, y) = (x.settled(), y.settled());
        let Some(NextLayer { qkv, rope, shape, spans: [span] }) = next else {
            let links = self.links.as_mut().expect("made above");
            let (values, factor) = chain.record(&mut self.recorder, choice, y, x, links);
            return Some(GpuTensor { rows: 1, cols: down.rows, values, factor: Some(factor) });
        };
        let AttentionShape { heads, head_dim, scale, soft_cap, window, .. } = *shape;
        let (q, attended) = (self.temporary(1, heads * head_dim), self.temporary(1, heads * head_dim));
        let (position, cache) = (span.past_len, &*span.kv);
        let turned = Turned { qkv: &qkv.slices[0], rope: &rope.values, heads, position, q: &q.values, cache };
        let links = self.links.as_mut().expect("made above");
        chain.record_turned(&mut self.recorder, choice, y, x, links, &turned);
        let attention = Attention { first_row: 0, rows: 1, heads, past_len: position, scale, soft_cap, window };
        attention.record(&mut self.recorder, &q.values, cache, &attended.values);
        Some(attended)
    }
}
