//! Device time: [`PassTimer`] for one pass, how long submissions take, and the bandwidth of a copy to hold results against.

use super::{
    buffer::Buffer,
    device::{Gpu, lock},
    recorder::Recorder,
};
use crate::{Result, copy::Copy};

/// Two timestamps around a pass.
pub struct PassTimer {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    ticks: Buffer<u32>,
    nanoseconds_per_tick: f64,
}

impl PassTimer {
    /// `None` where the device has no timestamps.
    pub fn new(gpu: &Gpu) -> Result<Option<PassTimer>> {
        if !gpu.caps().timestamps {
            return Ok(None);
        }
        let device = &gpu.shared.device;
        let queries = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count: 2,
        });
        use wgpu::BufferUsages as Usage;
        let resolved = gpu.shared.create_buffer(256, Usage::QUERY_RESOLVE | Usage::COPY_SRC)?;
        let nanoseconds_per_tick = f64::from(gpu.shared.queue.get_timestamp_period());
        Ok(Some(PassTimer { queries, resolved, ticks: gpu.zeroed(4)?, nanoseconds_per_tick }))
    }

    pub(crate) fn writes(&self) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        }
    }

    pub(crate) fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.resolve_query_set(&self.queries, 0..2, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.ticks.raw.buffer, self.ticks.offset(), 16);
    }

    /// Seconds between the beginning and the end of the pass that was submitted last.
    pub async fn seconds(&self, recorder: &mut Recorder) -> Result<f64> {
        let ticks = recorder.read(&self.ticks)?.await?;
        let tick = |i: usize| u64::from(ticks[i]) | u64::from(ticks[i + 1]) << 32;
        Ok(tick(2).saturating_sub(tick(0)) as f64 * self.nanoseconds_per_tick * 1e-9)
    }
}

/// Most submissions that are timed: a set of queries has no room for more.
const MOST_TIMED: u32 = 2048;

/// Timestamps around the passes of submissions.
pub(crate) struct SubmissionTimer {
    queries: wgpu::QuerySet,
    timed: u32,
}

impl SubmissionTimer {
    /// Where the next submission's are written, as long as there is room.
    pub fn next(&mut self) -> Option<(wgpu::QuerySet, u32)> {
        let slot = 2 * self.timed;
        (self.timed < MOST_TIMED).then(|| {
            self.timed += 1;
            (self.queries.clone(), slot)
        })
    }
}

/// The writes of the submission that has the two queries from `slot` on.
pub(crate) fn writes_at((queries, slot): &(wgpu::QuerySet, u32)) -> wgpu::ComputePassTimestampWrites<'_> {
    wgpu::ComputePassTimestampWrites {
        query_set: queries,
        beginning_of_pass_write_index: Some(*slot),
        end_of_pass_write_index: Some(slot + 1),
    }
}

impl Gpu {
    /// Measures from now on how long each submission keeps the device busy, the first 2048 of them. Does nothing where the
    /// device has no timestamps.
    pub fn time_submissions(&self) {
        let description =
            wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count: 2 * MOST_TIMED };
        let timer = self
            .caps()
            .timestamps
            .then(|| SubmissionTimer { queries: self.shared.device.create_query_set(&description), timed: 0 });
        *lock(&self.shared.submission_timer) = timer;
    }

    /// Seconds of each submission since [`Gpu::time_submissions`]; nothing is measured after that.
    ///
    /// Errors: the device's.
    pub async fn submission_seconds(&self) -> Result<Vec<f64>> {
        let Some(timer) = lock(&self.shared.submission_timer).take().filter(|timer| timer.timed > 0) else {
            return Ok(Vec::new());
        };
        let words = 4 * timer.timed as usize;
        use wgpu::BufferUsages as Usage;
        let resolved = self.shared.create_buffer(4 * words as u64, Usage::QUERY_RESOLVE | Usage::COPY_SRC)?;
        let ticks: Buffer<u32> = self.zeroed(words)?;
        let mut encoder = self.shared.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None });
        encoder.resolve_query_set(&timer.queries, 0..2 * timer.timed, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &ticks.raw.buffer, ticks.offset(), 4 * words as u64);
        self.shared.queue.submit([encoder.finish()]);
        let ticks = Recorder::new(self).read(&ticks)?.await?;
        let second = f64::from(self.shared.queue.get_timestamp_period()) * 1e-9;
        let tick = |pair: &[u32]| u64::from(pair[0]) | u64::from(pair[1]) << 32;
        let seconds = |pass: &[u32]| tick(&pass[2..]).saturating_sub(tick(pass)) as f64 * second;
        Ok(ticks.chunks_exact(4).map(seconds).collect())
    }

    /// Bytes per second of a large copy on the device, read and written bytes together: what its memory can do, by the
    /// copy command or by a kernel, whichever is faster.
    pub async fn copy_bandwidth(&self) -> Result<f64> {
        const PASSES: u32 = 16;
        let limit = self.caps().max_binding.min(self.caps().max_buffer).min(256 << 20);
        let len = limit as usize / 4;
        let (source, target): (Buffer<u32>, Buffer<u32>) = (self.zeroed(len)?, self.zeroed(len)?);
        let mut recorder = Recorder::new(self);
        let mut best = f64::INFINITY;
        // The first round of each pays for the memory's first touch, or for the pipeline.
        for round in 0..6 {
            recorder.read(&self.zeroed::<u32>(1)?)?.await?;
            let start = web_time::Instant::now();
            if round < 3 {
                let description = wgpu::CommandEncoderDescriptor { label: None };
                let mut encoder = self.shared.device.create_command_encoder(&description);
                for _ in 0..PASSES {
                    encoder.copy_buffer_to_buffer(&source.raw.buffer, 0, &target.raw.buffer, 0, 4 * len as u64);
                }
                self.shared.queue.submit([encoder.finish()]);
            } else {
                for _ in 0..PASSES {
                    Copy { len }.record(&mut recorder, &source, &target);
                }
            }
            recorder.read(&self.zeroed::<u32>(1)?)?.await?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(f64::from(PASSES) * 8.0 * len as f64 / best)
    }
}
