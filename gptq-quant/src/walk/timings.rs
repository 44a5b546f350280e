//! [`Timings`]: the time that a run took, by kind of work.

use std::time::Duration;

use serde::Serialize;

/// The time that a run took, by kind of work. Excludes an interrupted run that it continued.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Running the model.
    pub forward: Duration,
    /// Summing Hessians.
    pub hessian: Duration,
    /// Factoring Hessians.
    pub factoring: Duration,
    /// Finding codes and scales.
    pub quantization: Duration,
    /// Waiting for matrix reports and the journal. Most of that work overlaps with the other kinds.
    pub report: Duration,
}

impl Timings {
    /// The sum.
    pub fn total(&self) -> Duration {
        self.forward + self.hessian + self.factoring + self.quantization + self.report
    }
}
