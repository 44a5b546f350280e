//! [`Waiting`]: the submissions that futures wait for. `wait.rs` fills the queue and empties it.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex},
    task::Waker,
};

use super::lock::lock;

/// Submissions that futures outside [`block_on`](super::block_on) wait for. [`Driver`](super::Driver)s take them.
#[derive(Default)]
pub(crate) struct Waiting {
    pub state: Mutex<State>,
    pub changed: Condvar,
}

#[derive(Default)]
pub(crate) struct State {
    pub drivers: usize,
    pub wanted: VecDeque<(Option<wgpu::SubmissionIndex>, Waker)>,
    is_closed: bool,
}

impl Waiting {
    /// Ends all drivers: the device is gone.
    pub fn close(&self) {
        lock(&self.state).is_closed = true;
        self.changed.notify_all();
    }

    /// Waits for the next submission to wait for. `None`: the device is gone.
    pub fn next(&self) -> Option<(Option<wgpu::SubmissionIndex>, Waker)> {
        let mut state = lock(&self.state);
        loop {
            if let Some(wanted) = state.wanted.pop_front() {
                return Some(wanted);
            }
            if state.is_closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}
