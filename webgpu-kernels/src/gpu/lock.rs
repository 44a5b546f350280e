//! [`lock`]: locks a mutex.

use std::sync::{Mutex, MutexGuard};

/// Locks a mutex, also after a panic of another thread: every change of the data is complete.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
