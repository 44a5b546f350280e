//! [`Options`]: how to quantize a matrix.

use model_format::QuantFormat;
use serde::Serialize;

use super::grid::{Grid, ScaleSearch};

/// How to quantize a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Options {
    /// The values that a weight may take.
    pub grid: Grid,
    /// How to choose each group's scale.
    pub scale_search: ScaleSearch,
    /// Allow negative scales on a symmetric grid. The side with one more code can then hold the largest weight. Ignored by
    /// [`ScaleSearch::Range`] and [`ScaleSearch::Mse`].
    pub signed_scales: bool,
    /// Round scales to f16, as checkpoints store them, before error feedback, which then compensates this rounding too. If
    /// false, round them at the end.
    pub scales_first: bool,
    /// Quantize columns in order of falling Hessian diagonal: the most used inputs first, while most other columns can still
    /// compensate their errors.
    pub act_order: bool,
    /// Choose scales before error feedback, in groups of the original column order. With act-order, `g_idx` then stays
    /// sequential (`g_idx[k] = k / group_size`), and kernels need no gather.
    pub static_groups: bool,
    /// Damping of the Hessian, as a share of the mean diagonal entry of inputs that are not always zero.
    pub damp_percent: f64,
    /// Columns per block of the lazy update. Affects speed and rounding errors only.
    pub block_size: usize,
    /// Share of the residual-stream error to cancel by shifting `o_proj` and `down_proj` by `stream_alpha * R H^-1`; 0 for none.
    /// R is [`Hessian::stream_drift`](crate::Hessian::stream_drift).
    pub stream_alpha: f64,
    /// Share of the input error of earlier layers that remaining columns compensate (GPTAQ, Li and others, 2025): 0 for GPTQ,
    /// which targets the float weights on the quantized model's inputs; 1 for the float model's outputs.
    pub gptaq_alpha: f64,
    /// Sweeps of coordinate descent over scales and codes after GPTQ (`refine.rs`).
    pub refine: usize,
    /// Require every value, not only every scale, to be exact in f16. Set for tables that checkpoints store as f16 numbers.
    pub values_in_f16: bool,
}

impl Options {
    /// The recommended options for this grid.
    pub fn new(grid: Grid) -> Options {
        Options {
            grid,
            scale_search: ScaleSearch::default(),
            signed_scales: true,
            scales_first: true,
            act_order: true,
            static_groups: true,
            damp_percent: 0.01,
            block_size: 128,
            stream_alpha: 0.0,
            gptaq_alpha: 0.0,
            refine: 0,
            values_in_f16: false,
        }
    }

    /// True if every matrix quantized with these options converts into `format` without loss.
    pub fn converts_to(&self, format: &QuantFormat) -> bool {
        let Some(group) = format.group() else { return false };
        let Options { grid, act_order, static_groups, .. } = *self;
        let whole_groups = grid.group_size.is_none_or(|size| size.is_multiple_of(group.group_size));
        let in_order = static_groups || !act_order || grid.group_size.is_none();
        grid.sym && grid.bits <= group.bits as u32 && whole_groups && in_order
    }
}
