//! [`Progress`]: how a run reports to its caller.

use std::time::Duration;

use crate::report::matrix::MatrixReport;

/// Receives the progress of a run. The terminal's bar implements it; `()` ignores everything.
pub trait Progress {
    /// The model has written `done` of `total` tokens of calibration text.
    fn wrote(&mut self, done: usize, total: usize);
    /// Reports the peak memory of quantizing before it begins, in bytes: host memory without the model's files, and device
    /// memory, 0 if the device is the host.
    fn planned_memory(&mut self, host: u64, device: u64) {
        let _ = (host, device);
    }
    /// `fraction` of the quantizing is done, from 0 to 1. `left` is the remaining time, `None` until the first layer was measured.
    /// `layer` and `module` name the current work.
    fn advanced(&mut self, layer: usize, module: &str, fraction: f64, left: Option<Duration>);
    /// A matrix is quantized and stored.
    fn quantized(&mut self, report: &MatrixReport);
    /// `fraction` of [`evaluate`](crate::evaluate()) is done.
    fn evaluated(&mut self, fraction: f64) {
        let _ = fraction;
    }
    /// True to stop the run with [`Error::Cancelled`](crate::Error::Cancelled).
    fn is_cancelled(&self) -> bool {
        false
    }
}

impl Progress for () {
    fn wrote(&mut self, _done: usize, _total: usize) {}
    fn advanced(&mut self, _layer: usize, _module: &str, _fraction: f64, _left: Option<Duration>) {}
    fn quantized(&mut self, _report: &MatrixReport) {}
}
