//! Threads that compile kernels while the first thread loads a model. The engine itself starts none.

use std::{
    sync::Mutex,
    thread::{self, JoinHandle},
};

static STARTED: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());

/// Runs a job on its own thread.
pub fn spawn(job: Box<dyn FnOnce() + Send>) {
    // If no thread can be started, the job is dropped; the first lookup of its pipeline compiles it.
    let Ok(handle) = thread::Builder::new().name("compile".into()).spawn(job) else { return };
    let mut started = STARTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    started.retain(|handle| !handle.is_finished());
    started.push(handle);
}

/// Threads that run at a time: one per processor.
pub fn count() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Waits for running jobs. Drivers crash if the process ends while they compile.
pub fn finish() {
    let started = std::mem::take(&mut *STARTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    for handle in started {
        // A panic in a job has already printed its message.
        let _ = handle.join();
    }
}
