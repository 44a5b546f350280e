//! [`Timed`]: device times of a recorder's dispatches, by kernel or by submission.
//!
//! [`Recorder::begin_profile`](super::Recorder::begin_profile) starts a profile. It puts timestamps around compute passes. A pass itself costs some microseconds, as much as
//! a small kernel. So all dispatches of a kernel are one pass: those of all layers, back to back. Each has its own weights, and an output
//! that the next one also writes, so that the device finishes one before it starts the next, as in the real order. In this order the
//! results have no meaning.

use super::{buffer::Buffer, device::Gpu};
use crate::{Kernel, Result, Variant};

/// Dispatches between a pair of timestamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Around {
    /// All dispatches of a submission with one kernel, variant and shape. The order is wrong, so the results have no meaning.
    Kernels,
    /// Each submission in one pass, as without a profile.
    Submissions,
}

/// Dispatches of one kind.
#[derive(Clone)]
pub struct Dispatched {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// The variant.
    pub variant: Variant,
    /// Extents, by the names of the kernel's parameters.
    pub shape: String,
    /// Bytes that one dispatch reads or writes at least once.
    pub bytes: u64,
    /// Number of recorded dispatches.
    pub count: usize,
}

/// Fewest dispatches of a pass: with fewer, the pass itself would dominate. Fewer dispatches are repeated.
const FEWEST: usize = 24;

/// A measured time.
#[derive(Clone)]
pub struct Timed {
    /// The dispatches. `None` for a submission.
    pub dispatched: Option<Dispatched>,
    /// Number of runs between the two timestamps.
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
    /// Recorded dispatches that are not submitted yet.
    pub recorded: Vec<Dispatched>,
    /// Passes and timestamps of each submission.
    pub submitted: Vec<(Vec<Pass>, Buffer<u32>)>,
}

/// A pass between two timestamps.
pub(crate) struct Pass {
    /// `None`: all recorded dispatches, in order.
    pub dispatched: Option<Dispatched>,
    /// Indexes of the recorded dispatches.
    pub dispatches: Vec<usize>,
    /// Number of repetitions.
    pub rounds: usize,
}

/// Extents that distinguish uses of a kernel.
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

/// Timestamps of a submission.
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

    /// Makes timestamps for the recorded dispatches.
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

/// A pass for each kind of dispatches, in the order of their first dispatches. Kernels that [run once](Kernel::runs_once) keep their recorded
/// order: if another kind of them comes between, a new pass begins.
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
