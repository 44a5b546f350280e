//! Progress in the terminal: a bar for what is running, a line for each layer that is done. Without a terminal, the lines
//! alone.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use gptq_quant::{MatrixReport, Settings, gptq::Method, quantized_params};
use indicatif::{ProgressBar, ProgressStyle};
use model_format::DecoderConfig;

use super::Stop;

/// Steps of a bar that shows a share of the work.
const STEPS: u64 = 10_000;

/// Between two lines about long work, where there is no bar.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// One bar at a time.
pub struct Bars {
    bar: ProgressBar,
    stop: Stop,
    /// Whether a bar can be seen.
    terminal: bool,
    /// When the current stage began, and when it last said something.
    stage: Option<(Stage, Instant, Instant)>,
    /// How many matrices of each layer are quantized.
    matrices: Vec<usize>,
    damp_percent: f64,
    /// Of the layer that is being quantized.
    layer: usize,
    errors: Vec<String>,
    /// Tokens of calibration text that were there when it was first told how many are.
    written_before: usize,
    /// Remaining time, `None` while unknown.
    left: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Writing,
    Quantizing,
    Measuring,
    Converting,
}

impl Bars {
    pub fn new(stop: Stop) -> Bars {
        Bars {
            bar: ProgressBar::hidden(),
            stop,
            terminal: std::io::stderr().is_terminal(),
            stage: None,
            matrices: Vec::new(),
            damp_percent: 0.0,
            layer: 0,
            errors: Vec::new(),
            written_before: 0,
            left: None,
        }
    }

    /// Says what is to come: how many matrices of each layer are quantized, and the damping that they should do with.
    /// Prints what the user may not expect of it.
    pub fn expect(&mut self, config: &DecoderConfig, settings: &Settings) -> gptq_quant::Result<()> {
        self.matrices = vec![0; config.num_hidden_layers];
        let mut ragged = None;
        for (param, options) in quantized_params(config, settings)? {
            if let Some(layer) = param.role.layer() {
                self.matrices[layer] += 1;
            }
            let cols = param.shape[1];
            let group_len = options.grid.group_len(cols);
            if !cols.is_multiple_of(group_len) {
                ragged.get_or_insert((param.name, cols, group_len));
            }
        }
        self.damp_percent = settings.matrix.damp_percent;
        if let Some((name, cols, group_len)) = ragged {
            self.line(&format!(
                "note: `{name}` has {cols} inputs, which are no multiple of its groups of {group_len}: the last group is \
                 shorter, and vLLM refuses that"
            ));
        }
        Ok(())
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        self.bar.finish_and_clear();
        self.stage = None;
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    fn begin(&mut self, total: Option<u64>, template: &str, message: String) {
        self.clear();
        let style = ProgressStyle::with_template(template).expect("the template is well-formed");
        self.bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::new_spinner(),
        }
        .with_style(style)
        .with_message(message);
    }

    /// Begins a stage, unless it has begun.
    fn enter(&mut self, stage: Stage, total: u64, template: &str) {
        if self.stage.is_none_or(|(current, ..)| current != stage) {
            self.begin(Some(total), template, String::new());
            self.stage = Some((stage, Instant::now(), Instant::now()));
        }
    }

    /// Whether nothing was said for long, and no bar says it.
    fn is_line_due(&self) -> bool {
        !self.terminal && self.stage.is_some_and(|(_, _, said)| said.elapsed() > LINE_EVERY)
    }

    /// Notes that something was just said.
    fn said(&mut self) {
        if let Some((_, _, said)) = &mut self.stage {
            *said = Instant::now();
        }
    }

    /// Prints the line of a layer.
    fn layer_done(&mut self) {
        let elapsed = self.stage.map_or(Duration::ZERO, |(_, begun, _)| begun.elapsed());
        let (elapsed, left) = (roughly(elapsed), time_left(self.left));
        let (layer, layers) = (self.layer + 1, self.matrices.len());
        let errors = std::mem::take(&mut self.errors).join(", ");
        self.said();
        self.line(&format!("layer {layer:>3} of {layers}: error {errors}; {elapsed} gone, {left}"));
    }
}

/// The remaining time in words.
fn time_left(left: Option<Duration>) -> String {
    left.map_or("time left not measured yet".into(), |left| format!("{} left", roughly(left)))
}

/// A time in as many words as it is known to.
fn roughly(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..600 => format!("{} min {} s", seconds / 60, seconds % 60 / 10 * 10),
        600..3600 => format!("{} min", (seconds + 30) / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

impl gptq_quant::Progress for Bars {
    fn wrote(&mut self, done: usize, total: usize) {
        if self.stage.is_none_or(|(stage, ..)| stage != Stage::Writing) {
            self.written_before = done;
        }
        self.enter(Stage::Writing, total as u64, "{bar:30} {pos}/{len} tokens {eta:>4}  writing calibration text");
        self.bar.set_position(done as u64);
        if self.is_line_due() || (!self.terminal && done == total) {
            let elapsed = self.stage.map_or(Duration::ZERO, |(_, begun, _)| begun.elapsed());
            // What a run before has written was there at once.
            let (new, left) = (done.saturating_sub(self.written_before), total - done);
            let left = roughly(elapsed.mul_f64(left as f64 / new.max(1) as f64));
            self.said();
            eprintln!("wrote {done} of {total} tokens of calibration text, {left} left");
        }
    }

    fn advanced(&mut self, layer: usize, module: &str, fraction: f64, left: Option<Duration>) {
        self.enter(Stage::Quantizing, STEPS, "{bar:30} {percent:>3} % {wide_msg}");
        self.left = left;
        if self.is_line_due() {
            self.said();
            let (percent, layers, left) = (fraction * 100.0, self.matrices.len(), time_left(left));
            eprintln!("{percent:.0} %: layer {} of {layers}, {module}, {left}", layer + 1);
        }
        self.bar.set_position((fraction * STEPS as f64) as u64);
        let left = time_left(left);
        let last = self.errors.last().map_or(String::new(), |error| format!(", {error}"));
        let layers = self.matrices.len();
        self.bar.set_message(format!("layer {} of {layers}, {module}{last}, {left}", layer + 1));
    }

    fn planned_memory(&mut self, host: u64, device: u64) {
        let device = match device {
            0 => String::new(),
            bytes => format!(" and {:.1} GiB of device memory", super::gib(bytes)),
        };
        self.line(&format!("quantizing needs about {:.1} GiB of memory{device}", super::gib(host)));
    }

    fn quantized(&mut self, report: &MatrixReport) {
        let Some(layer) = report.layer else {
            self.line(&format!("`{}`: error {:.3} %", report.module, report.relative_error * 100.0));
            return;
        };
        // A layer of which something was not seen: it was done before.
        if layer != self.layer && !self.errors.is_empty() {
            self.layer_done();
        }
        self.layer = layer;
        let name = report.module.rsplit('.').next().unwrap_or(&report.module);
        self.errors.push(format!("{name} {:.3} %", report.relative_error * 100.0));
        match report.method {
            Method::RoundToNearest => self.line(&format!(
                "warning: `{}` is rounded to nearest: its Hessian is not positive definite",
                report.module
            )),
            Method::Gptq { damp_percent } if damp_percent > self.damp_percent => {
                self.line(&format!("note: `{}` needed a damping of {damp_percent}", report.module));
            }
            Method::Gptq { .. } => {}
        }
        if self.errors.len() == self.matrices[layer] {
            self.layer_done();
        }
    }

    fn evaluated(&mut self, fraction: f64) {
        self.enter(Stage::Measuring, STEPS, "{bar:30} {percent:>3} % {eta:>4}  measuring");
        self.bar.set_position((fraction * STEPS as f64) as u64);
        if self.is_line_due() {
            self.said();
            eprintln!("{:.0} %: measuring", fraction * 100.0);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.stop.is_set()
    }
}

impl weight_convert::Progress for Bars {
    fn start(&mut self, total: u64) {
        self.enter(Stage::Converting, total, "{bar:30} {bytes}/{total_bytes} {eta:>4}  {wide_msg}");
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
        self.line(text);
    }

    fn start(&mut self, file: &str, done: u64, total: Option<u64>) {
        let template = match total {
            Some(_) => "{bar:30} {bytes}/{total_bytes} {eta:>4}  {wide_msg}",
            None => "{spinner} {bytes}  {wide_msg}",
        };
        self.begin(total, template, file.to_owned());
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
