//! Device time: [`PassTimer`] for one pass, and the bandwidth of a copy, to compare kernels with.

use super::{buffer::Buffer, device::Gpu, pass_timer::PassTimer, recorder::Recorder};
use crate::{Result, copy::Copy};

impl PassTimer {
    /// Seconds that the last submitted pass took.
    pub async fn seconds(&self, recorder: &mut Recorder) -> Result<f64> {
        let ticks = recorder.read(&self.ticks)?.await?;
        let tick = |i: usize| u64::from(ticks[i]) | u64::from(ticks[i + 1]) << 32;
        Ok(tick(2).saturating_sub(tick(0)) as f64 * self.nanoseconds_per_tick * 1e-9)
    }
}

impl Gpu {
    /// Bytes per second of a large copy on the device, counting read and written bytes. It is the larger result of the copy command and of
    /// a kernel.
    pub async fn copy_bandwidth(&self) -> Result<f64> {
        const MOST_PASSES: f64 = 16.0;
        /// Bound of a submission's time.
        const SECONDS: f64 = 0.1;
        let limit = self.caps().max_binding.min(self.caps().max_buffer).min(256 << 20);
        let len = limit as usize / 4;
        let (source, target): (Buffer<u32>, Buffer<u32>) = (self.zeroed(len)?, self.zeroed(len)?);
        let mut recorder = Recorder::new(self);
        let (mut best, mut passes) = (f64::INFINITY, 1);
        // The first round of both ways includes the memory's first touch or the pipeline's compilation. It also tells how many passes to
        // submit.
        for round in 0..6 {
            if round == 3 {
                passes = 1;
            }
            recorder.read(&self.zeroed::<u32>(1)?)?.await?;
            let start = web_time::Instant::now();
            if round < 3 {
                let description = wgpu::CommandEncoderDescriptor { label: None };
                let mut encoder = self.shared.device.create_command_encoder(&description);
                for _ in 0..passes {
                    encoder.copy_buffer_to_buffer(&source.raw.buffer, 0, &target.raw.buffer, 0, 4 * len as u64);
                }
                self.shared.queue.submit([encoder.finish()]);
            } else {
                for _ in 0..passes {
                    Copy { len }.record(&mut recorder, &source, &target);
                }
            }
            recorder.read(&self.zeroed::<u32>(1)?)?.await?;
            let seconds = start.elapsed().as_secs_f64() / f64::from(passes);
            best = best.min(seconds);
            passes = (SECONDS / seconds).clamp(1.0, MOST_PASSES) as u32;
        }
        Ok(8.0 * len as f64 / best)
    }
}
