//! [`PipelineCache`]: a driver's compiled pipelines, stored between runs so that the next load compiles less.

use std::hash::{DefaultHasher, Hasher};

use webgpu_kernels::Gpu;

use super::cache::DeviceCache;

/// Size limit of the pipelines stored for one device. Larger data is neither loaded nor stored.
const MAX_BYTES: usize = 64 << 20;
/// Bytes of the checksum at the start of the file.
const CHECKSUM_BYTES: usize = 8;

/// The stored pipelines of one device.
pub(crate) struct PipelineCache {
    file: String,
    /// Checksum of the stored data.
    checksum: u64,
}

impl PipelineCache {
    /// Gives the stored pipelines to the driver. Call it before the device creates its first pipeline. `None` if the device
    /// does not support stored pipelines.
    pub fn load(gpu: &Gpu, cache: &dyn DeviceCache) -> Option<PipelineCache> {
        let file = format!("{}.bin", gpu.pipeline_key()?);
        let content = cache.read(&file).unwrap_or_default();
        let is_intact = |(sum, data): &(&[u8; CHECKSUM_BYTES], &[u8])| {
            data.len() <= MAX_BYTES && u64::from_le_bytes(**sum) == checksum(data)
        };
        let stored = content.split_first_chunk().filter(is_intact).map(|(_, data)| data);
        gpu.keep_pipelines(stored);
        Some(PipelineCache { file, checksum: checksum(stored.unwrap_or_default()) })
    }

    /// Stores the device's pipelines if they changed.
    pub fn save(&mut self, gpu: &Gpu, cache: &dyn DeviceCache) {
        let Some(data) = gpu.pipeline_data() else { return };
        let sum = checksum(&data);
        if sum == self.checksum || data.len() > MAX_BYTES {
            return;
        }
        self.checksum = sum;
        cache.write(&self.file, &[&sum.to_le_bytes(), &data[..]].concat());
    }
}

fn checksum(data: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(data);
    hasher.finish()
}
