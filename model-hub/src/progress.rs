//! [`Progress`]: reports a download to the caller. The binaries draw the progress bars.

/// Receives the progress of downloads and can cancel them. Files are transferred one after another.
///
/// `()` ignores all events: `open(source, &hub, &mut ())`.
pub trait Progress {
    /// A message for the user, for example about the model's origin or a wait. One line.
    fn message(&mut self, text: &str) {
        let _ = text;
    }
    /// A file's transfer starts. `done` of its `total` bytes are present from an earlier attempt (`None`: unknown
    /// size).
    fn start(&mut self, file: &str, done: u64, total: Option<u64>) {
        let _ = (file, done, total);
    }
    /// `done` bytes of the current file are present, including earlier attempts. Decreases if the transfer restarts.
    fn update(&mut self, done: u64) {
        let _ = done;
    }
    /// The current file is complete and verified.
    fn finish(&mut self) {}
    /// Polled between chunks. True ends the transfer with [`Error::Cancelled`](crate::Error::Cancelled). Received bytes
    /// are kept; the next attempt resumes.
    fn is_cancelled(&self) -> bool {
        false
    }
}

impl Progress for () {}
