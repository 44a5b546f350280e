//! [`Progress`]: reports of loading. The progress bars of the terminal and of the web page implement it.

use crate::memory::Need;

/// Receives reports of loading.
pub trait Progress {
    /// The planned use of device memory. Called once, before the upload starts.
    fn planned(&mut self, need: &Need) {
        let _ = need;
    }
    /// `done` of `total` was uploaded. The unit is bytes for MLC folders, and parameters for checkpoints.
    fn loaded(&mut self, done: u64, total: u64);
    /// `done` of `total` problems were tuned. Not called if nothing is tuned.
    fn tuned(&mut self, done: u64, total: u64) {
        let _ = (done, total);
    }
}

/// Ignores all reports.
impl Progress for () {
    fn loaded(&mut self, _done: u64, _total: u64) {}
}
