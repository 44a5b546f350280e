//! The forward pass, recorded as kernels.

use model_format::decoder_config::Activation;
use webgpu_kernels::{
    KvPool, Matrix, Rows,
    add::Add,
    attention::Attention,
    glu::Glu,
    gpu::FEWEST_ROWS,
    norm_heads::NormHeads,
    rms_norm::{AddRmsNorm, RmsNorm},
    rope::Rope,
    select_rows::SelectRows,
    soft_cap::SoftCap,
};

use super::{GpuOps, GpuTensor};
use crate::ops::{AttentionShape, Forward, LayerEnd, LayerStart, RowSpan, begin_layer, finish_layer};

impl Forward for GpuOps {
    fn rows_at_once(&self, work: u64) -> usize {
        // In a browser `usize` has 32 bits. A value beyond that is no limit.
        usize::try_from(self.gpu.work_of_part() / work.max(1)).unwrap_or(usize::MAX)
    }

    fn fewest_rows(&self) -> usize {
        FEWEST_ROWS
    }

    fn embedding(&mut self, table: &Matrix, tokens: &[u32], scale: f32) -> GpuTensor {
        let beyond = tokens.iter().find(|&&token| token as usize >= table.rows);
        assert!(beyond.is_none(), "embedding: token {beyond:?} of {}", table.rows);
        let ids = self.recorder.upload(tokens);
        let y = self.temporary(tokens.len(), table.cols);
        table.embedding(&mut self.recorder, &ids, tokens.len(), scale, &y.values);
        y
    }

    fn rms_norm(&mut self, x: &GpuTensor, weight: &GpuTensor, eps: f32) -> GpuTensor {
        assert_eq!(x.cols, weight.values.len(), "rms_norm: one weight per column");
        let y = self.temporary(x.rows, x.cols);
        let norm = RmsNorm { rows: x.rows, cols: x.cols, eps };
        norm.record(&mut self.recorder, x.values(), &weight.values, &y.values);
        y
    }

    fn linear(&mut self, x: &GpuTensor, matrix: &Matrix) -> GpuTensor {
        assert_eq!(x.cols, matrix.cols, "linear: inputs");
        let y = self.temporary(x.rows, matrix.rows);
        match &x.factor {
            Some(factor) => matrix.linear_normed(&mut self.recorder, &x.values, factor, &y.values),
            None => matrix.linear(&mut self.recorder, &x.values, x.rows, &y.values),
        }
        y
    }

    fn place_rows(&mut self, spans: &[RowSpan<'_>]) -> Rows {
        Rows::upload(&mut self.recorder, spans)
    }

    fn attention(
        &mut self,
        qkv: &GpuTensor,
        rope: &GpuTensor,
        shape: AttentionShape,
        kv: &mut KvPool,
        rows: &Rows,
    ) -> GpuTensor {
        let AttentionShape { heads, kv_heads, head_dim, rotary_dim, .. } = shape;
        assert_eq!(qkv.cols, (heads + 2 * kv_heads) * head_dim, "attention: columns of q | k | v");
        assert_eq!(rows.count(), qkv.rows, "attention: rows of the batch");
        assert_eq!((kv.kv_heads, kv.head_dim), (kv_heads, head_dim), "attention: the pool's shape");
        let q = self.temporary(qkv.rows, heads * head_dim);
        let y = self.temporary(qkv.rows, heads * head_dim);
        Rope { heads, rotary_dim }.record(&mut self.recorder, qkv.values(), &rope.values, &q.values, kv, rows);
        Attention { shape }.record(&mut self.recorder, &q.values, kv, rows, &y.values);
        y
    }

    fn linear_attention(
        &mut self,
        x: &GpuTensor,
        matrix: &Matrix,
        rope: &GpuTensor,
        shape: AttentionShape,
        kv: &mut KvPool,
        rows: &Rows,
    ) -> GpuTensor {
        let AttentionShape { heads, head_dim, rotary_dim, .. } = shape;
        if let Some(factor) = &x.factor
            && matrix.turns(&self.gpu, head_dim, rotary_dim, kv.dtype)
        {
            let (q, y) = (self.temporary(1, heads * head_dim), self.temporary(1, heads * head_dim));
            matrix.linear_normed_turned(&mut self.recorder, &x.values, factor, &rope.values, rows, &q.values, kv);
            Attention { shape }.record(&mut self.recorder, &q.values, kv, rows, &y.values);
            return y;
        }
        let qkv = self.linear(x, matrix);
        self.attention(&qkv, rope, shape, kv, rows)
    }

    fn norm_heads(&mut self, qkv: &mut GpuTensor, query: &GpuTensor, key: &GpuTensor, shape: AttentionShape, eps: f32) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        assert_eq!(qkv.cols, (heads + 2 * kv_heads) * head_dim, "norm_heads: columns of q | k | v");
        assert_eq!((query.cols, key.cols), (head_dim, head_dim), "norm_heads: one weight per element");
        let norm = NormHeads { rows: qkv.rows, heads, kv_heads, head_dim, eps };
        norm.record(&mut self.recorder, qkv.values(), query.values(), key.values());
    }

    fn glu(&mut self, gate_up: &GpuTensor, activation: Activation) -> GpuTensor {
        let (rows, inner) = (gate_up.rows, gate_up.cols / 2);
        let y = self.temporary(rows, inner);
        Glu { rows, inner, activation }.record(&mut self.recorder, gate_up.values(), &y.values);
        y
    }

    fn add_assign(&mut self, x: &mut GpuTensor, y: &GpuTensor) {
        assert_eq!((x.rows, x.cols), (y.rows, y.cols), "add_assign: shapes");
        Add { rows: 1, cols: x.rows * x.cols }.record(&mut self.recorder, x.values(), y.values());
    }

    fn add_bias(&mut self, x: &mut GpuTensor, bias: &GpuTensor) {
        assert_eq!((bias.rows, bias.cols), (1, x.cols), "add_bias: one value per column");
        Add { rows: x.rows, cols: x.cols }.record(&mut self.recorder, x.values(), bias.values());
    }

    fn soft_cap(&mut self, x: &mut GpuTensor, cap: f32) {
        SoftCap { len: x.rows * x.cols, cap }.record(&mut self.recorder, x.values());
    }

    fn select_rows(&mut self, x: &GpuTensor, rows: &[usize]) -> GpuTensor {
        assert!(rows.iter().all(|&row| row < x.rows), "select_rows: {rows:?} of {}", x.rows);
        let ids: Vec<u32> = rows.iter().map(|&row| u32::try_from(row).expect("a row number fits u32")).collect();
        let ids = self.recorder.upload(&ids);
        let y = self.temporary(rows.len(), x.cols);
        let select = SelectRows { count: rows.len(), cols: x.cols };
        select.record(&mut self.recorder, x.values(), &ids, &y.values);
        y
    }

    fn add_rms_norm(&mut self, x: &mut GpuTensor, y: &GpuTensor, weight: &GpuTensor, eps: f32) -> GpuTensor {
        assert_eq!((x.rows, x.cols), (y.rows, y.cols), "add_rms_norm: shapes");
        assert_eq!(x.cols, weight.values.len(), "add_rms_norm: one weight per column");
        let normed = self.temporary(x.rows, x.cols);
        let norm = AddRmsNorm { rows: x.rows, cols: x.cols, eps };
        norm.record(&mut self.recorder, x.values(), y.values(), &weight.values, &normed.values);
        normed
    }

    fn linear_add_rms_norm(
        &mut self,
        x: &mut GpuTensor,
        y: &GpuTensor,
        matrix: &Matrix,
        weight: &GpuTensor,
        eps: f32,
    ) -> GpuTensor {
        if x.rows > 1 || !matrix.fuses(&self.gpu) {
            let y = self.linear(y, matrix);
            return self.add_rms_norm(x, &y, weight, eps);
        }
        assert_eq!((y.rows, y.cols), (1, matrix.cols), "linear_add_rms_norm: inputs");
        assert_eq!((x.cols, weight.values.len()), (matrix.rows, matrix.rows), "linear_add_rms_norm: outputs");
        let mut normed = self.temporary(1, x.cols);
        let (y, x) = (y.values(), x.values());
        let factor = matrix.linear_add(&mut self.recorder, y, &weight.values, x, &normed.values, eps);
        normed.factor = Some(factor);
        normed
    }

    fn linear_glu(&mut self, x: &GpuTensor, gate_up: &Matrix, activation: Activation) -> GpuTensor {
        match &x.factor {
            Some(factor) if activation == Activation::Silu && gate_up.fuses(&self.gpu) => {
                assert_eq!(x.cols, gate_up.cols, "linear_glu: inputs");
                let y = self.temporary(1, gate_up.rows / 2);
                gate_up.linear_normed_swiglu(&mut self.recorder, &x.values, factor, &y.values);
                y
            }
            _ => {
                let gate_up = self.linear(x, gate_up);
                self.glu(&gate_up, activation)
            }
        }
    }

    fn begin_layer(&mut self, x: &GpuTensor, norm: &GpuTensor, eps: f32, layer: LayerStart<'_, GpuOps>) -> GpuTensor {
        match self.chained_start(x, norm, eps, &layer) {
            Some(tensor) => tensor,
            None => begin_layer(self, x, norm, eps, layer),
        }
    }

    fn finish_layer(
        &mut self,
        x: &mut GpuTensor,
        y: &GpuTensor,
        end: LayerEnd<'_, GpuOps>,
        next: Option<LayerStart<'_, GpuOps>>,
    ) -> GpuTensor {
        match self.chained(x, y, &end, next.as_ref()) {
            Some(tensor) => tensor,
            None => finish_layer(self, x, y, end, next),
        }
    }
}
