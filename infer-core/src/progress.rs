//! [`Progress`]: how far loading has come. The terminal's bar and the page's meter implement it.

use crate::Need;

/// How far loading has come.
pub trait Progress {
    /// What the model will take of its device's memory, before anything is loaded.
    fn planned(&mut self, need: &Need) {
        let _ = need;
    }
    /// `done` of `total` has reached the device. The unit is bytes for MLC folders and parameters for checkpoints.
    fn loaded(&mut self, done: u64, total: u64);
    /// `done` of `total` kinds of work are tuned to the device; only where there is something to tune.
    fn tuned(&mut self, done: u64, total: u64) {
        let _ = (done, total);
    }
}

/// Says nothing.
impl Progress for () {
    fn loaded(&mut self, _done: u64, _total: u64) {}
}
