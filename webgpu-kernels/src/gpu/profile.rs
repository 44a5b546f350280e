//! [`Timed`]: what a recorder's dispatches take on the device, kernel by kernel or submission by submission.
//!
//! [`Recorder::begin_profile`] switches it on. A compute pass between two timestamps then has what is timed together. A pass
//! costs some microseconds of its own, as much as a small kernel takes, so the dispatches of a kernel are one pass: those of
//! all layers, back to back, each with weights of its own and an output that the next one writes too, so that the device
//! finishes one before it starts the next, as in the real order. What is computed in that order has no meaning.

use super::{buffer::Buffer, device::Gpu, recorder::Recorder};
use crate::{Kernel, Result, Variant};

/// What a timestamp pair is put around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Around {
    /// All dispatches of a submission that are of one kernel, variant and shape: in the wrong order, so that nothing
    /// that is computed has a meaning.
    Kernels,
    /// Each submission, in one pass, as without a profile.
    Submissions,
}

/// A dispatch, or some of one kind.
#[derive(Clone)]
pub struct Dispatched {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// The variant.
    pub variant: Variant,
    /// Its extents, as the kernel's parameters name them.
    pub shape: String,
    /// Bytes that each reads or writes at least once.
    pub bytes: u64,
    /// How many were recorded.
    pub count: usize,
}

/// Fewest dispatches of a pass: with fewer the pass itself would count. Those that there are are run again then.
const FEWEST: usize = 24;

/// What was timed.
#[derive(Clone)]
pub struct Timed {
    /// The dispatch; `None` for a submission.
    pub dispatched: Option<Dispatched>,
    /// How often that was run between the two.
    pub runs: usize,
    /// Seconds on the device's clock.
    pub begin: f64,
    /// Seconds on the device's clock.
    pub end: f64,
}

impl Timed {
    /// Seconds of one run.
    pub fn seconds(&self) -> f64 {
        (self.end - self.begin) / self.runs as f64
    }
}

/// The timing of a recorder.
pub(crate) struct Profile {
    pub around: Around,
    /// Of the dispatches that are recorded and not submitted.
    pub recorded: Vec<Dispatched>,
    /// What each pair of timestamps is around, and the timestamps, of each submission.
    submitted: Vec<(Vec<Pass>, Buffer<u32>)>,
}

/// A pass that is timed.
pub(crate) struct Pass {
    /// `None`: all that was recorded, in order.
    dispatched: Option<Dispatched>,
    /// Which of the recorded ones.
    pub dispatches: Vec<usize>,
    /// How often.
    pub rounds: usize,
}

/// The extents that tell one use of a kernel from another.
const EXTENTS: [&str; 6] = ["m", "rows", "cols", "heads", "capacity", "splits"];

impl Dispatched {
    pub(crate) fn new(kernel: &'static Kernel, variant: &Variant, params: &[u8], bytes: u64) -> Dispatched {
        let extent = |name: &&str| {
            let (_, offset) = kernel.params.fields.iter().find(|(field, _)| field == name)?;
            let word = params.get(*offset..offset + 4)?;
            Some(format!("{name} {}", u32::from_le_bytes([word[0], word[1], word[2], word[3]])))
        };
        let shape = EXTENTS.iter().filter_map(extent).collect::<Vec<_>>().join(", ");
        Dispatched { kernel, variant: variant.clone(), shape, bytes, count: 1 }
    }
}

/// The timestamps of a submission on their way.
pub(crate) struct Stamps {
    pub queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    ticks: Buffer<u32>,
    pub passes: Vec<Pass>,
}

impl Stamps {
    pub fn writes(&self, pair: usize) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(2 * pair as u32),
            end_of_pass_write_index: Some(2 * pair as u32 + 1),
        }
    }

    pub fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        let count = 2 * self.passes.len() as u32;
        encoder.resolve_query_set(&self.queries, 0..count, &self.resolved, 0);
        let (target, offset) = (&self.ticks.raw.buffer, self.ticks.offset());
        encoder.copy_buffer_to_buffer(&self.resolved, 0, target, offset, 8 * u64::from(count));
    }
}

impl Profile {
    pub fn new(around: Around) -> Profile {
        Profile { around, recorded: Vec::new(), submitted: Vec::new() }
    }

    /// Timestamps for what is recorded.
    pub fn stamps(&mut self, gpu: &Gpu) -> Result<Stamps> {
        let recorded = std::mem::take(&mut self.recorded);
        let passes = match self.around {
            Around::Kernels => by_kind(recorded),
            Around::Submissions => {
                vec![Pass { dispatched: None, dispatches: (0..recorded.len()).collect(), rounds: 1 }]
            }
        };
        let count = 2 * passes.len() as u32;
        let description = wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count };
        use wgpu::BufferUsages as Usage;
        let usage = Usage::QUERY_RESOLVE | Usage::COPY_SRC;
        Ok(Stamps {
            queries: gpu.shared.device.create_query_set(&description),
            resolved: gpu.shared.create_buffer(8 * u64::from(count), usage)?,
            ticks: gpu.zeroed(2 * count as usize)?,
            passes,
        })
    }

    pub fn submitted(&mut self, stamps: Stamps) {
        self.submitted.push((stamps.passes, stamps.ticks));
    }
}

/// A pass for all dispatches of a kind, in the order in which the kinds came first. Dispatches that run once keep the order in which
/// they were recorded: one of another kind between them begins another pass.
fn by_kind(recorded: Vec<Dispatched>) -> Vec<Pass> {
    let mut passes: Vec<(Dispatched, Vec<usize>)> = Vec::new();
    for (i, dispatched) in recorded.into_iter().enumerate() {
        let is_same = |(other, _): &(Dispatched, Vec<usize>)| {
            (other.kernel.name, &other.variant, &other.shape)
                == (dispatched.kernel.name, &dispatched.variant, &dispatched.shape)
        };
        let found = if dispatched.kernel.runs_once {
            let last = passes.iter().rposition(|(other, _)| other.kernel.runs_once);
            last.filter(|&last| is_same(&passes[last]))
        } else {
            passes.iter().position(is_same)
        };
        match found {
            Some(at) => passes[at].1.push(i),
            None => passes.push((dispatched, vec![i])),
        }
    }
    let pass = |(dispatched, dispatches): (Dispatched, Vec<usize>)| {
        let count = dispatches.len();
        let rounds = if dispatched.kernel.runs_once { 1 } else { FEWEST.div_ceil(count) };
        Pass { dispatched: Some(Dispatched { count, ..dispatched }), rounds, dispatches }
    };
    passes.into_iter().map(pass).collect()
}

impl Recorder {
    /// Times what is recorded from now on; whether the device can. What was recorded before is submitted.
    pub fn begin_profile(&mut self, around: Around) -> bool {
        self.submit();
        let can = self.gpu().caps().timestamps;
        self.profile = can.then(|| Profile::new(around));
        can
    }

    /// Ends it: what was timed, in the order in which it was recorded. Waits until the device has done it.
    pub async fn end_profile(&mut self) -> Result<Vec<Timed>> {
        self.submit();
        let Some(profile) = self.profile.take() else { return Ok(Vec::new()) };
        let second = f64::from(self.gpu().shared.queue.get_timestamp_period()) * 1e-9;
        let mut timed = Vec::new();
        for (passes, ticks) in profile.submitted {
            let ticks = self.read(&ticks)?.await?;
            let time = |pair: &[u32]| (u64::from(pair[0]) | u64::from(pair[1]) << 32) as f64 * second;
            for (Pass { dispatched, dispatches, rounds }, ticks) in passes.into_iter().zip(ticks.chunks_exact(4)) {
                let runs = if dispatched.is_some() { dispatches.len() * rounds } else { 1 };
                timed.push(Timed { dispatched, runs, begin: time(&ticks[..2]), end: time(&ticks[2..]) });
            }
        }
        Ok(timed)
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::{
        copy::Copy,
        gpu::{OpenOptions, block_on, for_test},
    };

    #[test]
    fn what_is_timed_is_what_was_recorded() {
        let Some(gpu) = for_test(OpenOptions::default()) else { return };
        let (len, mut recorder) = (1 << 16, Recorder::new(&gpu));
        let values: Vec<u32> = (0..len as u32).collect();
        let source = gpu.upload(&values).unwrap();
        for (around, expected) in [(Around::Kernels, 1), (Around::Submissions, 2)] {
            let target = gpu.zeroed::<u32>(len).unwrap();
            if !recorder.begin_profile(around) {
                return eprintln!("skipped: no timestamps");
            }
            (0..300).for_each(|_| Copy { len }.record(&mut recorder, &source, &target));
            let timed = block_on(recorder.end_profile()).unwrap();
            assert_eq!(timed.len(), expected, "{around:?}");
            assert!(timed.iter().all(|timed| timed.begin <= timed.end));
            assert!(timed.is_sorted_by(|a, b| a.begin <= b.begin));
            for dispatched in timed.iter().filter_map(|timed| timed.dispatched.as_ref()) {
                assert_eq!((dispatched.kernel.name, dispatched.bytes), ("copy", 8 * len as u64));
                assert_eq!((dispatched.count, timed[0].runs), (300, 300));
            }
            assert_eq!(block_on(recorder.read(&target).unwrap()).unwrap(), values);
        }
        // It is over.
        assert!(block_on(recorder.end_profile()).unwrap().is_empty());
    }
}
