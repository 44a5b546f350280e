//! Progress bars, for downloads and for conversions. They hide themselves where stderr is not a terminal.

use indicatif::{ProgressBar, ProgressStyle};

use super::Stop;

/// One bar at a time.
pub struct Bars {
    bar: ProgressBar,
    stop: Stop,
}

impl Bars {
    pub fn new(stop: Stop) -> Bars {
        Bars { bar: ProgressBar::hidden(), stop }
    }

    /// Takes the bar away, so that a report can be printed.
    pub fn clear(&mut self) {
        self.bar.finish_and_clear();
    }

    fn begin(&mut self, total: Option<u64>, message: String) {
        self.clear();
        let template = match total {
            Some(_) => "{bar:30} {bytes}/{total_bytes} {eta:>4}  {wide_msg}",
            None => "{spinner} {bytes}  {wide_msg}",
        };
        let style = ProgressStyle::with_template(template).expect("the template is well-formed");
        self.bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::new_spinner(),
        }
        .with_style(style)
        .with_message(message);
    }
}

impl weight_convert::Progress for Bars {
    fn start(&mut self, total: u64) {
        self.begin(Some(total), String::new());
    }

    fn advance(&mut self, bytes: u64, param: &str) {
        self.bar.set_message(param.to_owned());
        self.bar.inc(bytes);
    }

    fn is_cancelled(&self) -> bool {
        self.stop.is_set()
    }
}

impl model_hub::Progress for Bars {
    fn message(&mut self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    fn start(&mut self, file: &str, done: u64, total: Option<u64>) {
        self.begin(total, file.to_owned());
        self.bar.set_position(done);
    }

    fn update(&mut self, done: u64) {
        self.bar.set_position(done);
    }

    fn finish(&mut self) {
        self.clear();
    }

    fn is_cancelled(&self) -> bool {
        self.stop.is_set()
    }
}
