//! Turns panics of third-party parsers into errors.
//!
//! Some parsers trust parts of a file and panic on invalid ones. [`caught`] returns the panic's message as an error.
//! The process's panic hook runs before that and would print the message with a backtrace. A library must not replace
//! the hook, so programs call [`silence_caught`] at start.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
};

thread_local! {
    static RUNNING: Cell<usize> = const { Cell::new(0) };
}

/// Runs `parse`. If it panics, returns the panic's message. Discard all data that `parse` was changing after a panic.
pub fn caught<T>(parse: impl FnOnce() -> T) -> Result<T, String> {
    RUNNING.set(RUNNING.get() + 1);
    let result = panic::catch_unwind(AssertUnwindSafe(parse));
    RUNNING.set(RUNNING.get() - 1);
    result.map_err(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        message.unwrap_or("the parser panicked").to_string()
    })
}

/// True if this thread is inside [`caught`].
pub fn is_caught() -> bool {
    RUNNING.get() > 0
}

/// Installs a process-wide panic hook that is silent inside [`caught`] and calls the previous hook in all other cases.
/// Programs call it once at start.
pub fn silence_caught() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !is_caught() {
            before(info);
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_caught_panic_is_an_error_and_silent() {
        static HEARD: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let before = panic::take_hook();
        panic::set_hook(Box::new(|info| {
            HEARD.lock().unwrap().extend(info.payload_as_str().map(str::to_string));
        }));
        silence_caught();
        let nested = caught(|| caught(|| panic!("inner {}", 1)).unwrap_err());
        let outer = caught(|| -> usize { panic!("outer") });
        let ours = panic::catch_unwind(|| panic!("ours"));
        let elsewhere = std::thread::spawn(|| panic!("another thread")).join();
        panic::set_hook(before);
        assert_eq!((nested, outer), (Ok("inner 1".to_string()), Err("outer".to_string())));
        assert!(ours.is_err() && elsewhere.is_err() && !is_caught());
        let heard = HEARD.lock().unwrap();
        let is_heard = |message: &str| heard.iter().any(|heard| heard == message);
        assert_eq!(["inner 1", "outer", "ours", "another thread"].map(is_heard), [false, false, true, true]);
    }
}
