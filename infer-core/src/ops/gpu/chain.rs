//! Kernel chains: the end of a layer and the beginning of the next one in one dispatch. See `webgpu_kernels::gemv_chain`.

use model_format::decoder_config::Activation;
use webgpu_kernels::gemv_chain::{self, AttentionStages, ChainChoice, ChainShape, GemvChain, GemvStart, Heads, Links};

use super::{GpuOps, GpuTensor};
use crate::ops::{AttentionShape, LayerEnd, LayerStart};

impl GpuOps {
    /// Records [`Forward::finish_layer`](crate::ops::Forward::finish_layer) as a chain. `None` if the device has no chain for it,
    /// or for more than one row.
    pub(super) fn chained(
        &mut self,
        x: &GpuTensor,
        y: &GpuTensor,
        end: &LayerEnd<'_, GpuOps>,
        next: Option<&LayerStart<'_, GpuOps>>,
    ) -> Option<GpuTensor> {
        let LayerEnd { out, out_norm, gate_up, activation, down, next_norm, eps } = end;
        let is_whole = [out, gate_up, down].iter().all(|matrix| matrix.fuses(&self.gpu));
        let attends = next.is_none_or(|next| self.attends_in_chain(next));
        if x.rows > 1 || *activation != Activation::Silu || !is_whole || !attends {
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
        let shape = chain.shape(next.map(|next| (&next.qkv.slices[0], heads_of(next))))?;
        let (choice, mut links) = self.chain_of(&shape)?;
        let (x, y) = (x.values(), y.values());
        let tensor = match next {
            None => {
                let (values, factor) = chain.record(&mut self.recorder, choice, y, x, &mut links);
                GpuTensor { rows: 1, cols: down.rows, values, factor: Some(factor) }
            }
            Some(next) => {
                let attended = self.temporary(1, next.shape.heads * next.shape.head_dim);
                let next = attended_of(next, &attended);
                chain.record_attended(&mut self.recorder, choice, y, x, &mut links, &next);
                attended
            }
        };
        self.chains.recorded();
        self.links = Some(links);
        Some(tensor)
    }

    /// Records [`Forward::begin_layer`](crate::ops::Forward::begin_layer) as a chain. `None` as in [`GpuOps::chained`].
    pub(super) fn chained_start(
        &mut self,
        x: &GpuTensor,
        norm: &GpuTensor,
        eps: f32,
        layer: &LayerStart<'_, GpuOps>,
    ) -> Option<GpuTensor> {
        if x.rows > 1 || !layer.qkv.fuses(&self.gpu) || !self.attends_in_chain(layer) {
            return None;
        }
        let shape = GemvStart::shape(&layer.qkv.slices[0], heads_of(layer))?;
        let (choice, mut links) = self.chain_of(&shape)?;
        let attended = self.temporary(1, layer.shape.heads * layer.shape.head_dim);
        let start = GemvStart { x: x.values(), norm: &norm.values, eps };
        start.record(&mut self.recorder, choice, &mut links, &attended_of(layer, &attended));
        self.chains.recorded();
        self.links = Some(links);
        Some(attended)
    }

    /// True if a chain supports the projection and the attention of this layer.
    fn attends_in_chain(&self, LayerStart { qkv, shape, kv, .. }: &LayerStart<'_, GpuOps>) -> bool {
        let AttentionShape { head_dim, rotary_dim, soft_cap, .. } = *shape;
        soft_cap.is_none() && qkv.turns(&self.gpu, head_dim, rotary_dim, kv.dtype)
    }

    /// The chain for a shape, and its links. The caller puts the links back into `self.links`.
    fn chain_of(&mut self, shape: &ChainShape) -> Option<(ChainChoice, Links)> {
        let is_on = !gemv_chain::is_off(&self.gpu);
        let given = self.chain.filter(|choice| is_on && choice.is_supported(self.gpu.caps(), shape));
        let choice = given.or_else(|| shape.choice(&self.gpu))?;
        let links = match self.links.take() {
            Some(links) if links.are_ready(&self.recorder, shape) => links,
            old => {
                old.iter().for_each(|old| self.chains.replaced(old));
                let links = Links::new(&self.recorder, shape).ok()?;
                match self.most_polls {
                    Some(most_polls) => links.with_most_polls(most_polls),
                    None => links,
                }
            }
        };
        Some((choice, links))
    }
}

fn heads_of(layer: &LayerStart<'_, GpuOps>) -> Heads {
    let AttentionShape { heads, kv_heads, head_dim, .. } = layer.shape;
    Heads { heads, kv_heads, head_dim }
}

/// The attention of a layer as part of a chain, with output `y`.
fn attended_of<'a>(layer: &'a LayerStart<'_, GpuOps>, y: &'a GpuTensor) -> AttentionStages<'a> {
    let LayerStart { qkv, rope, shape, kv, rows } = layer;
    AttentionStages { qkv: &qkv.slices[0], rope: &rope.values, shape: *shape, rows, cache: kv, y: &y.values }
}
