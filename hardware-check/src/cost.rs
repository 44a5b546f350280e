//! [`Forecast`]: predicts the time of a model's work on a device from the compiled kernels.
//!
//! No kernel is executed. The model ignores LDS bank conflicts, latencies that are not hidden, and falling clocks.

use std::collections::HashMap;

use anyhow::Result;
use infer_core::planned_work;
use model_format::{DecoderConfig, QuantFormat};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use webgpu_kernels::{
    Gpu, Kernel, KvDtype, Variant,
    gpu::{Recorder, Traced},
    tuning::{Choice, Problem},
};

use crate::{
    assembly::Program,
    compiler::{Compiled, Compiler, label},
    devices::Speed,
    trips::trips,
};

/// Seconds between two dependent dispatches: RADV's barrier and the restart of the front end.
pub const GAP: f64 = 5e-6;
/// Number of tokens before the decoded token.
pub const POSITION: usize = 1024;
/// Number of tokens of the prompt.
pub const PROMPT: usize = 512;
/// SIMDs of a compute unit.
const SIMDS: f64 = 2.0;
/// Lower limit for the multiply-adds counted in the assembly, as a share of those the recorder expects. Below it, the
/// trip counts are wrong. The share is below 1 because compilers split some multiply-adds, and because half of
/// attention's are masked by causality.
const LEAST_PRODUCTS: f64 = 0.45;

/// The prediction for one dispatch, or for several equal ones.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    pub kernel: String,
    pub variant: String,
    /// Number of equal dispatches. The other fields describe one of them.
    pub count: usize,
    pub workgroups: u64,
    pub registers: f64,
    pub spills: f64,
    /// Subgroups that a SIMD holds at once.
    pub occupancy: f64,
    /// Bytes read and written.
    pub bytes: u64,
    /// Time of the memory transfers, in seconds.
    pub memory: f64,
    /// Time of the SIMDs, in seconds.
    pub cycles: f64,
    /// The busiest unit of a SIMD.
    pub unit: String,
}

impl Line {
    /// Time of one dispatch, in seconds.
    pub fn seconds(&self) -> f64 {
        self.memory.max(self.cycles)
    }
}

/// The prediction for a forward pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Forecast {
    /// Tokens in the pass.
    pub rows: usize,
    /// Tokens before them.
    pub position: usize,
    pub lines: Vec<Line>,
    pub dispatches: usize,
    /// Total time, including the gaps between dispatches.
    pub seconds: f64,
}

impl Forecast {
    pub fn tokens_per_second(&self) -> f64 {
        self.rows as f64 / self.seconds
    }
}

/// The cost model of a device.
pub struct Model<'a> {
    pub gpu: &'a Gpu,
    pub speed: Speed,
    pub compiler: &'a Compiler,
    /// Receives the label of a variant before its compilation. An error forbids the compilation.
    pub announce: &'a dyn Fn(&str) -> Result<(), String>,
    /// Cache of compiled variants and of rejections.
    pub compiled: HashMap<(&'static str, Variant), Result<Compiled, String>>,
}

/// The shape of a published model.
pub fn shape(name: &str) -> DecoderConfig {
    let shapes: Value = serde_json::from_str(include_str!("../../chat-cli/shapes.json")).expect("shapes.json is valid");
    DecoderConfig::from_hf(&shapes[name].to_string()).expect("a shape is a valid configuration")
}

/// The format of the modeled weights.
pub fn format() -> &'static QuantFormat {
    QuantFormat::by_name("q4f16_1").expect("q4f16_1 is a known format")
}

impl Model<'_> {
    /// Predicts a decoded token and a prompt of Llama-3.2-3B. The error names a kernel that the model does not cover.
    pub fn forecasts(&mut self) -> Result<Vec<Forecast>, String> {
        [(1, POSITION), (PROMPT, 0)]
            .map(|(rows, position)| self.forecast("llama-3.2-3b", rows, position))
            .into_iter()
            .collect()
    }

    fn forecast(&mut self, name: &str, rows: usize, position: usize) -> Result<Forecast, String> {
        let work = planned_work(&shape(name), format(), self.gpu, KvDtype::F16, position, rows)
            .map_err(|error| error.to_string())?;
        let mut lines: Vec<Line> = Vec::new();
        for traced in &work.dispatches {
            let line = self.line(traced)?;
            let is_like = |other: &&mut Line| {
                (&other.kernel, &other.variant) == (&line.kernel, &line.variant)
                    && (other.workgroups, other.bytes) == (line.workgroups, line.bytes)
            };
            match lines.iter_mut().find(is_like) {
                Some(other) => other.count += 1,
                None => lines.push(line),
            }
        }
        let busy: f64 = lines.iter().map(|line| line.count as f64 * line.seconds()).sum();
        let dispatches = work.dispatches.len();
        Ok(Forecast { rows, position, lines, dispatches, seconds: busy + GAP * dispatches as f64 })
    }

    fn compiled(&mut self, kernel: &'static Kernel, variant: &Variant) -> Result<&Compiled, String> {
        let label = label(kernel, variant);
        let made = || {
            (self.announce)(&label)?;
            self.compiler.compile(kernel, variant)
        };
        let compiled = self.compiled.entry((kernel.name, variant.clone())).or_insert_with(made);
        compiled.as_ref().map_err(|reason| format!("{label}: {reason}"))
    }

    fn line(&mut self, traced: &Traced) -> Result<Line, String> {
        let Speed { compute_units, clock, bandwidth, dual_issue, .. } = self.speed;
        let (kernel, variant) = (traced.kernel, &traced.variant);
        let compiled = self.compiled(kernel, variant)?;
        let program = Program::parse(&compiled.assembly, compiled.lanes, dual_issue);
        let work = program.work(&trips(traced, program.loops.len(), compiled.lanes)?);
        let workgroups = u64::from(traced.groups.0) * u64::from(traced.groups.1);
        let subgroups = workgroups as f64 * f64::from(compiled.workgroup.div_ceil(compiled.lanes.max(1)));
        let (counted, expected) = (work.products * subgroups, traced.work as f64 / 2.0);
        if counted < LEAST_PRODUCTS * expected {
            return Err(format!(
                "the cost model counts {counted:.3e} multiply-adds in {} {variant}, expected {expected:.3e}: its trip counts \
                 are wrong",
                kernel.name
            ));
        }
        let (cycles, unit) = work.busiest();
        Ok(Line {
            kernel: kernel.name.into(),
            variant: variant.to_string(),
            count: 1,
            workgroups,
            registers: compiled.statistic("VGPRs"),
            spills: compiled.spills(),
            occupancy: compiled.statistic("Subgroups per SIMD"),
            bytes: traced.bytes,
            memory: traced.bytes as f64 / bandwidth,
            // The time of one subgroup is a lower bound.
            cycles: cycles * (subgroups / (SIMDS * compute_units)).max(1.0) / clock,
            unit: unit.into(),
        })
    }

    /// The cost of a choice in seconds: the larger of memory time and SIMD time, plus a tenth of the smaller. The tenth
    /// accounts for imperfect overlap; saved cycles also save power, which keeps the clock up. `None` if a kernel of
    /// the choice spills, is rejected by the compiler, or is not covered by the model.
    pub fn cost(&mut self, problem: &Problem, choice: Choice) -> Option<f64> {
        let trial = problem.trial(self.gpu.caps(), choice);
        let mut recorder = Recorder::planning(self.gpu);
        let buffers: Vec<_> = trial.lens.iter().map(|&len| recorder.hollow::<u32>(len)).collect::<Option<_>>()?;
        (trial.case.record)(&mut recorder, &buffers);
        let cost = |traced: &Traced| {
            let line = self.line(traced).ok().filter(|line| line.spills == 0.0)?;
            Some(line.seconds() + 0.1 * line.memory.min(line.cycles) + GAP)
        };
        recorder.take_trace().iter().map(cost).sum()
    }
}
