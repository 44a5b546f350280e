//! [`Progress`]: how far a conversion has come. Bars are drawn by the binaries.

/// Hears how far a conversion has come, and may stop it. `()` listens to nothing.
pub trait Progress {
    /// The work begins: so many bytes of weights are to be read.
    fn start(&mut self, total: u64) {
        let _ = total;
    }
    /// So many bytes more have been dealt with; `param` is the parameter they belong to.
    fn advance(&mut self, bytes: u64, param: &str) {
        let _ = (bytes, param);
    }
    /// Asked between tensors: true ends the work with [`Error::Cancelled`](crate::Error::Cancelled), and nothing is kept.
    fn is_cancelled(&self) -> bool {
        false
    }
}

impl Progress for () {}
