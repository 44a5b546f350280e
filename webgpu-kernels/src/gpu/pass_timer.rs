//! [`PassTimer`]: timestamps around one pass.

use super::{buffer::Buffer, device::Gpu};
use crate::Result;

/// Two timestamps around a pass.
pub struct PassTimer {
    pub(super) queries: wgpu::QuerySet,
    pub(super) resolved: wgpu::Buffer,
    pub(super) ticks: Buffer<u32>,
    pub(super) nanoseconds_per_tick: f64,
}

impl PassTimer {
    /// `None` if the device has no timestamps.
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
}
