//! The bars: on stderr, and only where it is a terminal.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};
use infer_core::Need;

/// Shows downloads and loading.
pub struct Bars {
    is_shown: bool,
    quiet: bool,
    bar: Option<ProgressBar>,
}

impl Bars {
    /// Bars on a terminal; elsewhere messages only; nothing at all if `quiet`.
    pub fn new(quiet: bool) -> Bars {
        Bars { is_shown: !quiet && io::stderr().is_terminal(), quiet, bar: None }
    }

    /// A line of its own.
    pub fn say(&self, text: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Prints what the engine wants the user to know, if anything.
    pub fn warn(&self, notice: Option<String>) {
        if let Some(notice) = notice {
            self.say(&format!("warning: {notice}"));
        }
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// So many of something are done.
    pub fn count(&mut self, what: &str, done: u64, total: u64) {
        if self.bar.is_none() {
            self.begin("{msg} {bar:30} {pos}/{len}, {eta} left", what, done, Some(total));
        }
        self.move_to(done);
    }

    fn begin(&mut self, template: &str, what: &str, done: u64, total: Option<u64>) {
        self.clear();
        if self.is_shown {
            let style = ProgressStyle::with_template(template).expect("a template of ours");
            let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            self.bar = Some(bar.with_style(style).with_message(what.to_string()).with_position(done));
        }
    }

    fn move_to(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.clear();
    }
}

impl model_hub::Progress for Bars {
    fn message(&mut self, text: &str) {
        self.say(text);
    }

    fn start(&mut self, file: &str, done: u64, total: Option<u64>) {
        let template = match total {
            Some(_) => "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{msg} {spinner} {bytes} {bytes_per_sec}",
        };
        self.begin(template, file, done, total);
        if !self.is_shown {
            self.say(&format!("downloading {file}"));
        }
    }

    fn update(&mut self, done: u64) {
        self.move_to(done);
    }

    fn finish(&mut self) {
        self.clear();
    }
}

impl infer_core::Progress for Bars {
    fn planned(&mut self, need: &Need) {
        if self.is_shown {
            self.say(&format!("memory: {need}"));
        }
    }

    fn tuned(&mut self, done: u64, total: u64) {
        if done == 0 {
            self.clear();
            self.say("finding out what is fastest on this GPU: once, some seconds (--no-tune does without)");
        }
        match done < total {
            true => self.count("tuning kernels", done, total),
            false => self.clear(),
        }
    }

    fn loaded(&mut self, done: u64, total: u64) {
        if self.bar.is_none() && done < total {
            self.begin("{msg} [{bar:30}] {percent}% {eta}", "loading", done, Some(total));
        }
        self.move_to(done);
        if done >= total {
            self.clear();
        }
    }
}
