//! [`RunProgress`]: a bar for the current stage and a line for each finished layer. Without a terminal, only lines.

use std::time::{Duration, Instant};

use command_line::{Bars, Stop, bars};
use gptq_quant::{MatrixReport, Settings, gptq::Method, quantized_params};
use model_format::DecoderConfig;

/// Steps of a bar that shows a share of the work.
const STEPS: u64 = 10_000;

/// Template of the quantization's bar. The message has the remaining time.
const QUANTIZING: &str = "{bar:30} {percent:>3} % {wide_msg}";

/// Interval of lines during long work without a bar.
const LINE_INTERVAL: Duration = Duration::from_secs(15);

/// Progress of a run.
pub struct RunProgress {
    bars: Bars,
    current: Option<Current>,
    /// Matrices to quantize, by layer.
    matrices: Vec<usize>,
    damp_percent: f64,
    /// The layer that is being quantized.
    layer: usize,
    /// Name and error of each finished matrix of that layer.
    errors: Vec<String>,
    /// Tokens of calibration text that an earlier run wrote.
    written_before: usize,
    /// Remaining time; `None` while unknown.
    left: Option<Duration>,
}

/// The stage that is running.
#[derive(Clone, Copy)]
struct Current {
    stage: Stage,
    begun: Instant,
    last_line: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Writing,
    Quantizing,
    Measuring,
    Converting,
}

impl RunProgress {
    pub fn new(stop: Stop) -> RunProgress {
        RunProgress {
            bars: Bars::new(stop),
            current: None,
            matrices: Vec::new(),
            damp_percent: 0.0,
            layer: 0,
            errors: Vec::new(),
            written_before: 0,
            left: None,
        }
    }

    /// For downloads.
    pub fn bars(&mut self) -> &mut Bars {
        &mut self.bars
    }

    /// Notes the matrices of each layer and the requested damping. Prints a note if vLLM will refuse the result.
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
            self.say(&format!(
                "note: `{name}` has {cols} inputs, not a multiple of its group size {group_len}: the last group is shorter, \
                 and vLLM refuses that"
            ));
        }
        Ok(())
    }

    /// Removes the bar and ends the stage.
    pub fn clear(&mut self) {
        self.bars.clear();
        self.current = None;
    }

    /// Prints a line above the bar.
    pub fn say(&self, text: &str) {
        self.bars.say(text);
    }

    /// Begins a stage unless it is running.
    fn enter(&mut self, stage: Stage, total: u64, template: &str, message: &str) {
        if !self.is_in(stage) {
            self.bars.begin(template, message, Some(total));
            self.current = Some(Current { stage, begun: Instant::now(), last_line: Instant::now() });
        }
    }

    fn is_in(&self, stage: Stage) -> bool {
        self.current.is_some_and(|current| current.stage == stage)
    }

    /// Time since the stage began.
    fn elapsed(&self) -> Duration {
        self.current.map_or(Duration::ZERO, |current| current.begun.elapsed())
    }

    /// True if no bar is shown and the last line is old.
    fn is_line_due(&self) -> bool {
        !self.bars.is_shown() && self.current.is_some_and(|current| current.last_line.elapsed() > LINE_INTERVAL)
    }

    /// Prints a line of the stage.
    fn stage_line(&mut self, text: &str) {
        if let Some(current) = &mut self.current {
            current.last_line = Instant::now();
        }
        self.say(text);
    }

    /// Prints the errors of the finished layer.
    fn layer_done(&mut self) {
        let (elapsed, left) = (rounded(self.elapsed()), time_left(self.left));
        let (layer, layers) = (self.layer + 1, self.matrices.len());
        let errors = std::mem::take(&mut self.errors).join(", ");
        self.stage_line(&format!("layer {layer:>3} of {layers}: error {errors}; {elapsed} elapsed, {left}"));
    }
}

/// The remaining time in words.
fn time_left(left: Option<Duration>) -> String {
    left.map_or("time left not measured yet".into(), |left| format!("{} left", rounded(left)))
}

/// A duration, rounded to the precision of an estimate.
fn rounded(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..600 => format!("{} min {} s", seconds / 60, seconds % 60 / 10 * 10),
        600..3600 => format!("{} min", (seconds + 30) / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Bytes in GiB.
pub fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

impl gptq_quant::Progress for RunProgress {
    fn wrote(&mut self, done: usize, total: usize) {
        if !self.is_in(Stage::Writing) {
            self.written_before = done;
        }
        let template = "{bar:30} {pos}/{len} tokens {eta:>4}  {wide_msg}";
        self.enter(Stage::Writing, total as u64, template, "writing calibration text");
        self.bars.move_to(done as u64);
        if self.is_line_due() || (!self.bars.is_shown() && done == total) {
            // The rate counts this run's tokens only.
            let (new, left) = (done.saturating_sub(self.written_before), total - done);
            let left = rounded(self.elapsed().mul_f64(left as f64 / new.max(1) as f64));
            self.stage_line(&format!("wrote {done} of {total} tokens of calibration text, {left} left"));
        }
    }

    fn advanced(&mut self, layer: usize, module: &str, fraction: f64, left: Option<Duration>) {
        self.enter(Stage::Quantizing, STEPS, QUANTIZING, "");
        self.left = left;
        let (layer, layers, left) = (layer + 1, self.matrices.len(), time_left(left));
        if self.is_line_due() {
            self.stage_line(&format!("{:.0} %: layer {layer} of {layers}, {module}, {left}", fraction * 100.0));
        }
        self.bars.move_to((fraction * STEPS as f64) as u64);
        let last = self.errors.last().map_or(String::new(), |error| format!(", {error}"));
        self.bars.set_message(&format!("layer {layer} of {layers}, {module}{last}, {left}"));
    }

    fn planned_memory(&mut self, host: u64, device: u64) {
        let device = match device {
            0 => String::new(),
            bytes => format!(" and {:.1} GiB of device memory", gib(bytes)),
        };
        self.say(&format!("quantizing needs about {:.1} GiB of memory{device}", gib(host)));
    }

    fn quantized(&mut self, report: &MatrixReport) {
        let Some(layer) = report.layer else {
            self.say(&format!("`{}`: error {:.3} %", report.module, report.relative_error * 100.0));
            return;
        };
        // An earlier run did the rest of the previous layer.
        if layer != self.layer && !self.errors.is_empty() {
            self.layer_done();
        }
        self.layer = layer;
        let name = report.module.rsplit('.').next().unwrap_or(&report.module);
        self.errors.push(format!("{name} {:.3} %", report.relative_error * 100.0));
        match report.method {
            Method::RoundToNearest => self.say(&format!(
                "warning: `{}` is rounded to nearest: its Hessian is not positive definite",
                report.module
            )),
            Method::Gptq { damp_percent } if damp_percent > self.damp_percent => {
                self.say(&format!("note: `{}` needed a damping of {damp_percent}", report.module));
            }
            Method::Gptq { .. } => {}
        }
        if self.errors.len() == self.matrices[layer] {
            self.layer_done();
        }
    }

    fn evaluated(&mut self, fraction: f64) {
        self.enter(Stage::Measuring, STEPS, bars::PERCENT, "measuring");
        self.bars.move_to((fraction * STEPS as f64) as u64);
        if self.is_line_due() {
            self.stage_line(&format!("{:.0} %: measuring", fraction * 100.0));
        }
    }

    fn is_cancelled(&self) -> bool {
        self.bars.is_cancelled()
    }
}

impl weight_convert::Progress for RunProgress {
    fn start(&mut self, total: u64) {
        self.enter(Stage::Converting, total, bars::BYTES, "");
    }

    fn advance(&mut self, bytes: u64, param: &str) {
        self.bars.set_message(param);
        self.bars.advance(bytes);
    }

    fn is_cancelled(&self) -> bool {
        self.bars.is_cancelled()
    }
}
