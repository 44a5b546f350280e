//! Waiting in native programs: [`block_on`] runs a future on its thread, and [`Driver`] lets any other executor run it. Neither exists on
//! wasm, so a blocking read cannot be written by mistake: there the browser's event loop completes reads.
//!
//! A GPU does not signal that it is done. The program must poll ([`Gpu::poll`]) or block in the driver's code. `block_on` blocks the thread
//! that wants the result. A `Driver` blocks a thread that the program gives it, and wakes the futures of another executor, for example
//! tokio's.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    sync::{Arc, Weak},
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
};

use super::{
    device::{Gpu, Shared},
    lock::lock,
    waiting::Waiting,
};

thread_local! {
    /// Calls of [`block_on`] on this thread.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// Device and submission that the last polled future in [`block_on`] waits for.
    static EXPECTED: RefCell<Option<(Weak<Shared>, Option<wgpu::SubmissionIndex>)>> = const { RefCell::new(None) };
}

/// Notes that the polled future waits for a submission.
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

/// Waits until the device has finished a submission, or all so far. Returns false if the device is lost.
fn wait_for(shared: &Shared, submission_index: Option<wgpu::SubmissionIndex>) -> bool {
    shared.device.poll(wgpu::PollType::Wait { submission_index, timeout: None }).is_ok()
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Counts a call of [`block_on`]. Drop ends it, also after a panic of the future.
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

/// Runs a future to its end on this thread, and waits for the device when the future does. For binaries, tests and benches. A future that
/// waits for anything else must wake its waker.
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
                    // The device is lost. Its callback has reported it, or the mapping's callback soon will.
                    std::thread::yield_now();
                }
            }
            None => std::thread::park(),
        }
    }
}

/// Waits for a device on behalf of another executor. It does not keep the device open.
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
    /// Waits for the submissions that futures of the device need, and wakes these futures, until the last [`Gpu`] of the device is dropped.
    /// Give it its own thread. One is enough for any number of sessions.
    pub fn run(self) {
        lock(&self.waiting.state).drivers += 1;
        // Futures that waited before the driver ran are not noted.
        if let Some(shared) = self.shared.upgrade() {
            wait_for(&shared, None);
        }
        while let Some((submission, waker)) = self.waiting.next() {
            let is_lost = self.shared.upgrade().is_none_or(|shared| !wait_for(&shared, submission));
            // If the device is not lost, the mapping's callback has woken the future.
            if is_lost {
                waker.wake();
            }
        }
        lock(&self.waiting.state).drivers -= 1;
    }
}

impl Gpu {
    /// A driver, which lets executors other than [`block_on`] run futures of this device. Run it on its own thread.
    pub fn driver(&self) -> Driver {
        Driver { shared: Arc::downgrade(&self.shared), waiting: self.shared.waiting.clone() }
    }

    /// Checks for finished submissions, and wakes the futures that wait for them. Does not wait. For programs with their own loop instead
    /// of a [`Driver`]: call it before polling the futures.
    pub fn poll(&self) {
        // An error means a lost device. Its callback keeps it.
        let _ = self.shared.device.poll(wgpu::PollType::Poll);
    }
}
