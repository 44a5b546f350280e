//! [`Progress`]: progress of loading a model and measuring it.

/// Progress of loading a model and measuring it.
pub trait Progress: infer_core::Progress {
    /// A line for the user.
    fn message(&mut self, text: &str);
}

/// Shows nothing.
impl Progress for () {
    fn message(&mut self, _text: &str) {}
}
