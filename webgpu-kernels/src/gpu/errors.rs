//! [`Errors`]: an error waits for the next read of the recorder that caused it. Those of the device, such as its loss, concern
//! all of its recorders.

use std::sync::{Arc, Mutex};

use super::device::lock;
use crate::Error;

/// The first error of a recorder or of a device that no call has returned. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Errors(Arc<Mutex<Option<Error>>>);

impl Errors {
    /// Keeps the first error, for the next read.
    pub fn fail(&self, error: Error) {
        lock(&self.0).get_or_insert(error);
    }

    /// The error, which stays.
    pub fn first(&self) -> Option<Error> {
        lock(&self.0).clone()
    }

    /// The error for a call to return. An allocation that failed is told once: something smaller may fit then.
    pub fn told(&self) -> Option<Error> {
        let mut error = lock(&self.0);
        match *error {
            Some(Error::OutOfMemory { .. } | Error::BufferTooLarge { .. }) => error.take(),
            _ => error.clone(),
        }
    }

    /// Forgets a refused call, where that says something about a kernel and not about the program.
    pub fn forgive(&self) {
        let mut error = lock(&self.0);
        if matches!(*error, Some(Error::Refused { .. })) {
            *error = None;
        }
    }
}
