//! [`Bars`]: progress on stderr. Draws bars on a terminal only; messages appear anywhere.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

use crate::Stop;

/// Template of a bar that counts bytes.
pub const BYTES: &str = "{bar:30} {bytes}/{total_bytes} {eta:>4}  {wide_msg}";
/// Template of a bar that counts items.
pub const ITEMS: &str = "{bar:30} {pos}/{len} {eta:>4}  {wide_msg}";
/// Template of a bar that shows a share of the work.
pub const PERCENT: &str = "{bar:30} {percent:>3} % {eta:>4}  {wide_msg}";
/// Template of a download of unknown size.
const UNKNOWN_SIZE: &str = "{spinner} {bytes}  {wide_msg}";

/// Draws one bar at a time, and lines above it.
pub struct Bars {
    bar: Option<ProgressBar>,
    stop: Stop,
    is_quiet: bool,
    is_terminal: bool,
}

impl Bars {
    /// Bars for work that `stop` cancels.
    pub fn new(stop: Stop) -> Bars {
        Bars { bar: None, stop, is_quiet: false, is_terminal: io::stderr().is_terminal() }
    }

    /// Bars that print nothing if `is_quiet`, for work that Ctrl-C does not cancel.
    pub fn quiet_if(is_quiet: bool) -> Bars {
        let mut bars = Bars::new(Stop::default());
        bars.is_quiet = is_quiet;
        bars
    }

    /// True if the user sees bars.
    pub fn is_shown(&self) -> bool {
        self.is_terminal && !self.is_quiet
    }

    /// True if the user asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.stop.is_set()
    }

    /// Prints a line above the bar.
    pub fn say(&self, text: &str) {
        match &self.bar {
            _ if self.is_quiet => {}
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Removes the bar.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Replaces the bar. `total` is in the unit of `template`; `None` if unknown.
    pub fn begin(&mut self, template: &str, message: &str, total: Option<u64>) {
        self.clear();
        if self.is_shown() {
            let style = ProgressStyle::with_template(template).expect("the template is well-formed");
            let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            self.bar = Some(bar.with_style(style).with_message(message.to_string()));
        }
    }

    /// Moves the bar to `done` of `total` items; begins it if there is none.
    pub fn count(&mut self, what: &str, done: u64, total: u64) {
        self.ensure(ITEMS, what, total);
        self.move_to(done);
    }

    /// Begins a bar if there is none.
    pub fn ensure(&mut self, template: &str, message: &str, total: u64) {
        if self.bar.is_none() {
            self.begin(template, message, Some(total));
        }
    }

    /// Moves the bar.
    pub fn move_to(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    /// Advances the bar.
    pub fn advance(&self, by: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(by);
        }
    }

    /// Replaces the message of the bar.
    pub fn set_message(&self, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(message.to_string());
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Downloads.
impl model_hub::Progress for Bars {
    fn message(&mut self, text: &str) {
        self.say(text);
    }

    fn start(&mut self, file: &str, done: u64, total: Option<u64>) {
        self.begin(if total.is_some() { BYTES } else { UNKNOWN_SIZE }, file, total);
        self.move_to(done);
        if !self.is_shown() {
            self.say(&format!("downloading {file}"));
        }
    }

    fn update(&mut self, done: u64) {
        self.move_to(done);
    }

    fn finish(&mut self) {
        self.clear();
    }

    fn is_cancelled(&self) -> bool {
        self.stop.is_set()
    }
}
