//! [`Loading`]: the bars of a model that is loaded.

use command_line::{Bars, bars};
use infer_core::Need;

/// Shows the memory that a model needs, tuning, and loading.
pub struct Loading<'a>(pub &'a mut Bars);

impl chat_cli::Progress for Loading<'_> {
    fn message(&mut self, text: &str) {
        self.0.say(text);
    }
}

impl infer_core::Progress for Loading<'_> {
    fn planned(&mut self, need: &Need) {
        if self.0.is_shown() {
            self.0.say(&format!("memory: {need}"));
        }
    }

    fn tuned(&mut self, done: u64, total: u64) {
        if done == 0 {
            self.0.clear();
            self.0.say("autotuning kernels for this GPU, once, for some seconds (--no-tune skips it)");
        }
        match done < total {
            true => self.0.count("tuning kernels", done, total),
            false => self.0.clear(),
        }
    }

    fn loaded(&mut self, done: u64, total: u64) {
        if done < total {
            self.0.ensure(bars::PERCENT, "loading", total);
        }
        self.0.move_to(done);
        if done >= total {
            self.0.clear();
        }
    }
}
