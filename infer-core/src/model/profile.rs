//! [`StepProfile`]: the time of a decoded token on a GPU, kernel by kernel.

use web_time::Instant;
use webgpu_kernels::gpu::{Around, Timed};

use super::session::Session;
use crate::{
    Result,
    ops::{Choose, gpu::GpuOps},
};

/// The time of a decoded token on a GPU, kernel by kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct StepProfile {
    /// Number of tokens in the cache before the measured ones.
    pub depth: usize,
    /// Seconds per token in which this thread recorded and submitted work.
    pub host_seconds: f64,
    /// Seconds per token in which the device worked, from the first to the last dispatch of each submission. `None` if the device
    /// has no timestamps.
    pub gpu_seconds: Option<f64>,
    /// The kernels by falling time, measured with all dispatches of a kernel in a row. Empty without timestamps.
    pub kernels: Vec<KernelTime>,
}

/// The time of one kernel per token.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    /// Its name.
    pub kernel: &'static str,
    /// The extents of its problem.
    pub shape: String,
    /// The variant.
    pub variant: String,
    /// Dispatches per token.
    pub count: f64,
    /// Bytes that it must read or write, per token.
    pub bytes: f64,
    /// Seconds on the device, per token.
    pub seconds: f64,
}

/// Number of tokens to average over.
const TOKENS: usize = 8;

impl Session<GpuOps> {
    /// Profiles the next token. The cache keeps its content.
    pub async fn profile(&mut self) -> Result<StepProfile> {
        let depth = self.cache().len();
        // Warm up: the first run compiles kernels and fills the buffer pool.
        self.run_steps(2).await?;
        let host_seconds = self.run_steps(TOKENS).await? / TOKENS as f64;
        let mut profile = StepProfile { depth, host_seconds, gpu_seconds: None, kernels: Vec::new() };
        if self.ops_mut().recorder().begin_profile(Around::Submissions) {
            self.run_steps(TOKENS).await?;
            let timed = self.ops_mut().recorder().end_profile().await?;
            profile.gpu_seconds = Some(busy(&timed) / TOKENS as f64);
            self.ops_mut().recorder().begin_profile(Around::Kernels);
            self.run_steps(TOKENS).await?;
            profile.kernels = by_kernel(&self.ops_mut().recorder().end_profile().await?);
        }
        Ok(profile)
    }

    /// Runs `count` tokens, each after the device finished the last one, and drops them. Returns the seconds of recording.
    async fn run_steps(&mut self, count: usize) -> Result<f64> {
        let depth = self.cache().len();
        let mut seconds = 0.0;
        for _ in 0..count {
            let start = Instant::now();
            let chosen = self.run_token(0)?;
            seconds += start.elapsed().as_secs_f64();
            self.ops_mut().tokens(chosen).await?;
        }
        self.cache_mut().truncate(depth);
        Ok(seconds)
    }
}

/// The sum of the submissions' times in seconds.
fn busy(timed: &[Timed]) -> f64 {
    timed.iter().map(Timed::seconds).sum()
}

/// The time of each kernel per token, by falling time.
fn by_kernel(timed: &[Timed]) -> Vec<KernelTime> {
    let mut kernels: Vec<KernelTime> = Vec::new();
    for timed in timed {
        let Some(dispatched) = &timed.dispatched else { continue };
        let (name, variant) = (dispatched.kernel.name, dispatched.variant.to_string());
        let is_same = |k: &KernelTime| k.kernel == name && k.shape == dispatched.shape && k.variant == variant;
        let at = kernels.iter().position(is_same).unwrap_or_else(|| {
            let shape = dispatched.shape.clone();
            kernels.push(KernelTime { kernel: name, shape, variant, count: 0.0, bytes: 0.0, seconds: 0.0 });
            kernels.len() - 1
        });
        let count = dispatched.count as f64 / TOKENS as f64;
        kernels[at].count += count;
        kernels[at].bytes += count * dispatched.bytes as f64;
        kernels[at].seconds += count * timed.seconds();
    }
    kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    kernels
}
