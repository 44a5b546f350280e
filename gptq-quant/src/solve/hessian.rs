//! [`Hessian`]: X^T X of a matrix's inputs over the calibration tokens, and the drift of these inputs from the float model's.
//!
//! `host_sums.rs` adds it up on the CPU, `calibrate/gpu.rs` on a GPU. `gptq.rs` reads it.

use faer::Mat;
use serde::Serialize;
use webgpu_kernels::gram::TokenWeights;

/// The weight of each calibration token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TokenWeight {
    /// Divide every token's input by its root mean square, so that all tokens have the same weight. In models with an attention
    /// sink, one token's activations are a hundred times larger than all others. Unscaled, its direction would dominate the
    /// Hessian.
    pub equal_norm: bool,
    /// Extra weight of the first token of a window, as a share of all tokens of the window. Most attention heads without a target
    /// attend to this token, and it is one token in thousands.
    pub first_token: f64,
}

impl TokenWeight {
    /// No scaling: the plain squared error.
    pub const PLAIN: TokenWeight = TokenWeight { equal_norm: false, first_token: 0.0 };

    /// The kernels' parameters for windows of `seq_len` tokens.
    pub fn in_windows(self, seq_len: usize) -> TokenWeights {
        let first = 1.0 + self.first_token * seq_len as f64;
        TokenWeights { equal_norm: self.equal_norm, window: seq_len, first: first as f32 }
    }
}

impl Default for TokenWeight {
    fn default() -> TokenWeight {
        TokenWeight { equal_norm: true, first_token: 0.0 }
    }
}

/// Sums over the calibration tokens that a matrix is quantized with.
pub struct Hessian {
    /// `2 / tokens * X^T X` `[cols, cols]`, both triangles. All zero without tokens.
    pub products: Mat<f64>,
    /// `2 / tokens * (X_float - X)^T X` `[cols, cols]`, with X the quantized model's inputs. `None` without float inputs, or if a
    /// device holds it.
    pub drift: Option<Mat<f64>>,
    /// R: `2 / tokens * (S_float - S)^T X` `[rows, cols]`, with S the residual stream that the matrix's outputs are added to. `None`
    /// if it was not summed, or if a device holds it.
    pub stream_drift: Option<Mat<f64>>,
}

impl Hessian {
    /// The Hessian of no tokens.
    pub fn empty(cols: usize) -> Hessian {
        Hessian { products: Mat::zeros(cols, cols), drift: None, stream_drift: None }
    }
}
