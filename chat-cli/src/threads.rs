//! Threads that compile kernels while the first one loads: the engine owns none.

use std::{
    sync::Mutex,
    thread::{self, JoinHandle},
};

static STARTED: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());

/// Runs a job on a thread of its own.
pub fn spawn(job: Box<dyn FnOnce() + Send>) {
    // Where there is no thread to be had, the job is not done, and who wants its result does it.
    let Ok(handle) = thread::Builder::new().name("compile".into()).spawn(job) else { return };
    let mut started = STARTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    started.retain(|handle| !handle.is_finished());
    started.push(handle);
}

/// How many there should be at a time.
pub fn count() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Waits for those that are at work: a driver must not be left in the middle of something when the process ends.
pub fn finish() {
    let started = std::mem::take(&mut *STARTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    for handle in started {
        // A job that panicked has said so.
        let _ = handle.join();
    }
}
