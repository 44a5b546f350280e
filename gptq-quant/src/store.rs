//! [`Store`]: where results of a long run go, piece by piece, and where a run that goes on finds those of the one before.

use std::sync::Arc;

use model_format::Param;

use crate::{HeadInputs, MatrixReport, Quantized, Result};

/// Work that another thread may do.
pub type Writing = Box<dyn FnOnce() -> Result<()> + Send>;

/// Where results go. [`CheckpointWriter`](crate::CheckpointWriter) is one that outlives the process; a closure takes
/// matrices and has none.
pub trait Store {
    /// The values `[rows, cols]` of a matrix that is done.
    fn values(&mut self, param: &Param) -> Result<Option<Vec<f32>>> {
        let _ = param;
        Ok(None)
    }

    /// Whether a matrix is done.
    fn has(&self, param: &Param) -> bool {
        let _ = param;
        false
    }

    /// What can be done for a matrix beside other work before [`Store::add`] takes it: packing it, and bringing it to the disk.
    /// What is not done so is done then.
    fn prepare(&mut self, param: &Param, quantized: &Arc<Quantized>) -> Result<Option<Writing>> {
        let _ = (param, quantized);
        Ok(None)
    }

    /// Takes a matrix.
    fn add(&mut self, param: &Param, quantized: &Quantized, report: &MatrixReport) -> Result<()>;

    /// The windows of calibration text that the model has written, in their order.
    fn text(&mut self) -> Result<Vec<Vec<u32>>> {
        Ok(Vec::new())
    }

    /// What went into the head while they were written, if that was seen.
    fn head_inputs(&mut self) -> Result<Vec<HeadInputs>> {
        Ok(Vec::new())
    }

    /// Takes more of them.
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
