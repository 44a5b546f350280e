//! [`Progress`]: progress of a conversion. Binaries draw bars.

/// Receives the progress of a conversion, and may stop it. `()` ignores it.
pub trait Progress {
    /// The work begins. It reads `total` bytes of weights.
    fn start(&mut self, total: u64) {
        let _ = total;
    }
    /// Another `bytes` are done; they belong to `param`.
    fn advance(&mut self, bytes: u64, param: &str) {
        let _ = (bytes, param);
    }
    /// Called between tensors. True ends the work with [`Error::Cancelled`](crate::Error::Cancelled); the next conversion resumes it.
    fn is_cancelled(&self) -> bool {
        false
    }
}

impl Progress for () {}
