//! [`Errors`]: keeps an error until the next read of the recorder that caused it. Errors of the device, for example its loss, concern all
//! recorders.

use std::sync::{Arc, Mutex};

use super::lock::lock;
use crate::Error;

/// The first error of a recorder or of a device that no call has returned yet. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Errors(Arc<Mutex<Option<Error>>>);

impl Errors {
    /// Keeps an error for the next read, unless there is an earlier one.
    pub fn fail(&self, error: Error) {
        lock(&self.0).get_or_insert(error);
    }

    /// The error. It stays.
    pub fn first(&self) -> Option<Error> {
        lock(&self.0).clone()
    }

    /// The error for a call to return. A failed allocation is returned only once: a smaller one may succeed later.
    pub fn told(&self) -> Option<Error> {
        let mut error = lock(&self.0);
        match *error {
            Some(Error::OutOfMemory { .. } | Error::BufferTooLarge { .. }) => error.take(),
            _ => error.clone(),
        }
    }

    /// Forgets a rejected call. Call it if the cause is a kernel under test.
    pub fn forgive(&self) {
        let mut error = lock(&self.0);
        if matches!(*error, Some(Error::Refused { .. })) {
            *error = None;
        }
    }
}

/// Converts an error of wgpu.
pub(super) fn told_by_device(error: wgpu::Error) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory { bytes: 0, in_use: 0 },
        other => Error::Refused { reason: other.to_string() },
    }
}

/// The output of a future that is ready at its first poll.
#[cfg(not(target_arch = "wasm32"))]
pub(super) fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}
