//! Temporaries that are used again: a dropped one goes back and serves the next request of its size.
//!
//! The choice is deterministic, lowest id first, so that recording the same operations again, as every decode step
//! does, meets the same buffers and finds every bind group made.

use std::collections::{BTreeMap, HashMap};

/// Buffers that nobody holds, by size and then by id.
#[derive(Default)]
pub(crate) struct Pool {
    free: HashMap<u64, BTreeMap<u64, Free>>,
    staging: HashMap<u64, Vec<wgpu::Buffer>>,
    /// Counts submissions.
    pub submission: u64,
}

struct Free {
    buffer: wgpu::Buffer,
    /// A host write must wait for later submissions than this one.
    last_used: u64,
}

impl Pool {
    /// A free buffer of `size` bytes. `for_host`: it will be written by the host ahead of the commands that are being
    /// recorded, so none of those may use it.
    pub fn take(&mut self, size: u64, for_host: bool) -> Option<(u64, wgpu::Buffer)> {
        let submission = self.submission;
        let free = self.free.get_mut(&size)?;
        let id = *free.iter().find(|(_, free)| !for_host || free.last_used < submission)?.0;
        free.remove(&id).map(|free| (id, free.buffer))
    }

    pub fn give_back(&mut self, id: u64, size: u64, buffer: wgpu::Buffer) {
        let last_used = self.submission;
        self.free.entry(size).or_default().insert(id, Free { buffer, last_used });
    }

    /// Lets go of every free buffer; returns their ids and sizes.
    pub fn empty(&mut self) -> Vec<(u64, u64)> {
        let free = std::mem::take(&mut self.free);
        free.into_iter().flat_map(|(size, buffers)| buffers.into_keys().map(move |id| (id, size))).collect()
    }

    pub fn take_staging(&mut self, size: u64) -> Option<wgpu::Buffer> {
        self.staging.get_mut(&size)?.pop()
    }

    pub fn give_back_staging(&mut self, size: u64, buffer: wgpu::Buffer) {
        self.staging.entry(size).or_default().push(buffer);
    }
}

/// The size of pooled buffer that serves `bytes`: a quarter of a power of two apart, so that prompts of any length
/// share few sizes.
pub(crate) fn size_class(bytes: u64) -> u64 {
    if bytes <= 256 {
        return 256;
    }
    let step = (bytes - 1).next_power_of_two() / 8;
    bytes.next_multiple_of(step.max(256))
}

#[cfg(test)]
mod tests {
    use super::size_class;

    #[test]
    fn size_classes_waste_at_most_a_quarter() {
        let mut bytes = 1;
        while bytes < 1 << 30 {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(256) && size_class(class) == class, "{bytes} -> {class}");
            assert!(bytes <= 1024 || class <= bytes + bytes / 4, "{bytes} -> {class}");
            bytes += bytes / 7 + 1;
        }
    }
}
