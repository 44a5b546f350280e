//! [`Errors`]: keeps an error until the next read of the recorder that caused it. Errors of the device, for example its loss, concern all
//! recorders.

use std::sync::{Arc, Mutex};

use super::device::lock;
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
