//! [`Store`]: receives the results of a long run piece by piece, and returns results of an interrupted run.

use std::sync::Arc;

use model_format::Param;

use crate::{
    error::Result,
    report::matrix::MatrixReport,
    solve::{head_inputs::HeadInputs, quantized::Quantized},
};

/// Work for another thread.
pub type Writing = Box<dyn FnOnce() -> Result<()> + Send>;

/// Receives results. [`CheckpointWriter`](crate::CheckpointWriter) keeps them on disk. A closure takes matrices and stores nothing.
pub trait Store {
    /// The dequantized values `[rows, cols]` of a stored matrix; `None` if it is not stored.
    fn values(&mut self, param: &Param) -> Result<Option<Vec<f32>>> {
        let _ = param;
        Ok(None)
    }

    /// True if a matrix is stored.
    fn has(&self, param: &Param) -> bool {
        let _ = param;
        false
    }

    /// Work that another thread may do before [`Store::add`]: packing a matrix and writing it to disk. `None` if `add` does
    /// everything.
    fn prepare(&mut self, param: &Param, quantized: &Arc<Quantized>) -> Result<Option<Writing>> {
        let _ = (param, quantized);
        Ok(None)
    }

    /// Stores a matrix.
    fn add(&mut self, param: &Param, quantized: &Quantized, report: &MatrixReport) -> Result<()>;

    /// The stored windows of calibration text that the model wrote, in order.
    fn text(&mut self) -> Result<Vec<Vec<u32>>> {
        Ok(Vec::new())
    }

    /// The stored sums of the head's inputs on these windows.
    fn head_inputs(&mut self) -> Result<Vec<HeadInputs>> {
        Ok(Vec::new())
    }

    /// Stores more windows, and the sums of the head's inputs on them if they were computed.
    fn add_text(&mut self, windows: &[Vec<u32>], head: Option<&HeadInputs>) -> Result<()> {
        let _ = (windows, head);
        Ok(())
    }
}

impl<F: FnMut(&Param, &Quantized) -> Result<()>> Store for F {
    fn add(&mut self, param: &Param, quantized: &Quantized, _report: &MatrixReport) -> Result<()> {
        self(param, quantized)
    }
}
