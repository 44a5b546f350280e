//! [`StepProfile`]: where the time of a decoded token goes on a GPU, kernel by kernel. For measurements.

use web_time::Instant;
use webgpu_kernels::gpu::{Around, Timed};

use crate::{
    Result,
    model::Session,
    ops::{Choose, gpu::GpuOps},
};

/// Where the time of a decoded token goes on a GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct StepProfile {
    /// Tokens in the cache before the first of those that were run.
    pub depth: usize,
    /// Seconds in which this thread recorded and submitted a token's work.
    pub host_seconds: f64,
    /// Seconds in which the device was at work on a token, from the first dispatch of each submission to its last. `None`: the device has no timestamps.
    pub gpu_seconds: Option<f64>,
    /// Each kernel, with its times when its dispatches of a token follow each other, the longest first. Empty where there
    /// are no timestamps.
    pub kernels: Vec<KernelTime>,
}

/// What one kernel takes of a token.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    /// Its name.
    pub kernel: &'static str,
    /// The extents of what it is run on.
    pub shape: String,
    /// The variant.
    pub variant: String,
    /// How often it is run for a token.
    pub count: f64,
    /// Bytes that it reads or writes at least once, all its runs for a token together.
    pub bytes: f64,
    /// Seconds on the device, all its runs for a token together.
    pub seconds: f64,
}

/// Tokens over which is averaged.
const TOKENS: usize = 8;

impl Session<GpuOps> {
    /// Where the time of the next token goes. What the cache holds stays.
    pub async fn profile(&mut self) -> Result<StepProfile> {
        let depth = self.cache().len();
        // The first run compiles and fills the pool.
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

    /// Runs so many tokens, each when the device is done with the one before, and forgets them. Returns the seconds of
    /// recording.
    async fn run_steps(&mut self, count: usize) -> Result<f64> {
        let depth = self.cache().len();
        let mut seconds = 0.0;
        for _ in 0..count {
            let start = Instant::now();
            let chosen = self.run_token(0)?;
            seconds += start.elapsed().as_secs_f64();
            self.ops_mut().token(chosen).await?;
        }
        self.cache_mut().truncate(depth);
        Ok(seconds)
    }
}

/// Seconds in which the device was at work on one of the submissions.
fn busy(timed: &[Timed]) -> f64 {
    timed.iter().map(Timed::seconds).sum()
}

/// The times of each kernel for a token, the longest first.
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
