//! [`Progress`]: what a download tells its caller. Bars are drawn by the binaries.

/// Hears how a model is being fetched, and may stop it. Files come one after another.
///
/// `()` listens to nothing: `open(source, &hub, &mut ())`.
pub trait Progress {
    /// Something the user should know, such as where a model comes from or what is waited for. One line.
    fn message(&mut self, text: &str) {
        let _ = text;
    }
    /// A file's transfer begins. `done` of its `total` bytes are there already (`None`: the size is not known).
    fn start(&mut self, file: &str, done: u64, total: Option<u64>) {
        let _ = (file, done, total);
    }
    /// So many bytes of the current file are there now, of all its bytes. Falls when a transfer must begin anew.
    fn update(&mut self, done: u64) {
        let _ = done;
    }
    /// The current file is complete and checked.
    fn finish(&mut self) {}
    /// Asked between pieces: true ends the transfer with [`Error::Cancelled`](crate::Error::Cancelled). What has arrived
    /// is kept, and the next attempt goes on from there.
    fn is_cancelled(&self) -> bool {
        false
    }
}

impl Progress for () {}
