//! [`block_on`]: how native programs wait. On wasm it does not exist, so a blocking read cannot be written by mistake.

use std::{
    cell::RefCell,
    future::Future,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
};

thread_local! {
    /// What the future that was polled last on this thread waits for.
    static EXPECTED: RefCell<Option<(wgpu::Device, Option<wgpu::SubmissionIndex>)>> = const { RefCell::new(None) };
}

/// Notes that the future being polled waits for a submission.
pub(super) fn expect(device: &wgpu::Device, submission: Option<wgpu::SubmissionIndex>) {
    EXPECTED.set(Some((device.clone(), submission)));
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future to its end on this thread, waiting for the device where the future does. For binaries, tests and
/// benches; futures that wait for something else must wake.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        match EXPECTED.take() {
            Some((device, submission_index)) => {
                let done = device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
                if done.is_err() {
                    // The device is lost; its callback has said so, or the mapping's soon will.
                    std::thread::yield_now();
                }
            }
            None => std::thread::park(),
        }
    }
}
