//! Ctrl-C: [`Stop`] asks long work to end; [`on_ctrl_c`] serves programs with other rules.

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Exit code of a program that Ctrl-C ended.
pub const INTERRUPTED: u8 = 130;

/// True after the first Ctrl-C. Clones share the state.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens for Ctrl-C: the first sets the result, the second ends the process with [`INTERRUPTED`].
    pub fn on_ctrl_c() -> Stop {
        let stop = Stop::default();
        let flag = stop.clone();
        // Without a handler, Ctrl-C ends the process at once. Unfinished outputs have temporary names, so the next run removes them.
        let _ = on_ctrl_c(move || !flag.0.swap(true, Ordering::Relaxed));
        stop
    }

    /// True if the user asked to stop.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Calls `handle` at each Ctrl-C and SIGTERM. If it returns false, ends the process with [`INTERRUPTED`].
pub fn on_ctrl_c(mut handle: impl FnMut() -> bool + Send + 'static) -> anyhow::Result<()> {
    ctrlc::set_handler(move || {
        if !handle() {
            process::exit(INTERRUPTED.into());
        }
    })?;
    Ok(())
}
