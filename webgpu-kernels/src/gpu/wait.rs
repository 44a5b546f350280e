//! How native programs wait: [`block_on`], which runs a future on its thread, and [`Driver`], which lets any other executor
//! run it. On wasm neither exists, so a blocking read cannot be written by mistake: the browser's event loop does the work.
//!
//! A GPU tells nobody that it is done: someone has to ask, by [`Gpu::poll`], or to wait in the driver's code. `block_on`
//! waits in the thread that wants the result. A `Driver` waits in a thread that the program gives, and wakes the futures of
//! tokio's or anyone's executor.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    sync::{Arc, Condvar, Mutex, Weak},
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
};

use super::device::{Gpu, Shared, lock};

thread_local! {
    /// Calls of [`block_on`] on this thread.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// What the future that was polled last in [`block_on`] waits for.
    static EXPECTED: RefCell<Option<(Weak<Shared>, Option<wgpu::SubmissionIndex>)>> = const { RefCell::new(None) };
}

/// What futures wait for outside [`block_on`], for [`Driver`]s.
#[derive(Default)]
pub(crate) struct Waiting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    drivers: usize,
    wanted: VecDeque<(Option<wgpu::SubmissionIndex>, Waker)>,
    is_closed: bool,
}

impl Waiting {
    /// The device is gone: drivers end.
    pub fn close(&self) {
        lock(&self.state).is_closed = true;
        self.changed.notify_all();
    }

    /// The next submission to wait for; `None`: there are no more.
    fn next(&self) -> Option<(Option<wgpu::SubmissionIndex>, Waker)> {
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

/// Notes that the future being polled waits for a submission.
pub(super) fn expect(shared: &Arc<Shared>, submission: Option<wgpu::SubmissionIndex>, waker: &Waker) {
    if DEPTH.get() > 0 {
        EXPECTED.set(Some((Arc::downgrade(shared), submission)));
        return;
    }
    let mut state = lock(&shared.waiting.state);
    if state.drivers > 0 {
        state.wanted.push_back((submission, waker.clone()));
        shared.waiting.changed.notify_one();
    }
}

/// Waits until the device has done a submission, or all so far; false: it is lost.
fn wait_for(shared: &Shared, submission_index: Option<wgpu::SubmissionIndex>) -> bool {
    shared.device.poll(wgpu::PollType::Wait { submission_index, timeout: None }).is_ok()
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Counts a call of [`block_on`], also where the future panics.
struct Inside;

impl Inside {
    fn new() -> Inside {
        DEPTH.set(DEPTH.get() + 1);
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// Runs a future to its end on this thread, waiting for the device where the future does. For binaries, tests and
/// benches; futures that wait for something else must wake.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let _inside = Inside::new();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        match EXPECTED.take() {
            Some((shared, submission)) => {
                if shared.upgrade().is_some_and(|shared| !wait_for(&shared, submission)) {
                    // The device is lost; its callback has said so, or the mapping's soon will.
                    std::thread::yield_now();
                }
            }
            None => std::thread::park(),
        }
    }
}

/// Waits for a device in the place of an executor that does not know it. It does not keep the device open.
///
/// ```no_run
/// # use webgpu_kernels::{gpu::{self, Gpu}};
/// # fn example(gpu: &Gpu) {
/// let driver = gpu.driver();
/// let thread = std::thread::spawn(move || driver.run());
/// // Futures of this device now run under any executor, on any thread. The thread ends with the last clone of `gpu`.
/// # }
/// ```
pub struct Driver {
    shared: Weak<Shared>,
    waiting: Arc<Waiting>,
}

impl Driver {
    /// Waits for what futures of the device wait for, and wakes them, until the last [`Gpu`] of the device is gone. Give it
    /// a thread of its own: one is enough for any number of sessions.
    pub fn run(self) {
        lock(&self.waiting.state).drivers += 1;
        // What was waited for before is noted nowhere.
        if let Some(shared) = self.shared.upgrade() {
            wait_for(&shared, None);
        }
        while let Some((submission, waker)) = self.waiting.next() {
            let is_lost = self.shared.upgrade().is_none_or(|shared| !wait_for(&shared, submission));
            // Otherwise the mapping's callback has woken it.
            if is_lost {
                waker.wake();
            }
        }
        lock(&self.waiting.state).drivers -= 1;
    }
}

impl Gpu {
    /// What lets executors other than [`block_on`] run futures of this device, on a thread that the program gives it.
    pub fn driver(&self) -> Driver {
        Driver { shared: Arc::downgrade(&self.shared), waiting: self.shared.waiting.clone() }
    }

    /// Asks the device whether it is done with something, and wakes the futures that wait for that. Does not wait. For
    /// programs with a loop of their own, in the place of a [`Driver`]: call it before the futures are polled.
    pub fn poll(&self) {
        // An error is a lost device, which its callback keeps.
        let _ = self.shared.device.poll(wgpu::PollType::Poll);
    }
}
