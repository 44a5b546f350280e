//! Temporaries that are used again: a dropped one goes back and serves the next request of its size.
//!
//! Each recorder has a [`Pool`] of its own. A temporary may be dropped while the commands that use it are recorded and not
//! submitted; commands of the same recorder come after these, commands of another one might not. The choice is deterministic,
//! lowest id first, so that recording the same operations again, as every decode step does, meets the same buffers and finds
//! every bind group made.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
};

use super::device::{Shared, lock};

/// Buffers of a recorder that nobody holds, by size and then by id.
pub(crate) struct Pool {
    free: HashMap<u64, BTreeMap<u64, Free>>,
    /// Counts the recorder's submissions.
    submission: u64,
    shared: Arc<Shared>,
}

struct Free {
    buffer: wgpu::Buffer,
    /// A host write must wait for later submissions than this one.
    last_used: u64,
}

impl Pool {
    pub fn new(shared: Arc<Shared>) -> Pool {
        Pool { free: HashMap::new(), submission: 0, shared }
    }

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

    /// What was recorded is on its way to the device.
    pub fn submitted(&mut self) {
        self.submission += 1;
    }

    /// Lets go of every free buffer, when the device is done with them; whether there were any.
    pub fn empty(&mut self) -> bool {
        let mut were_any = false;
        for (size, buffers) in std::mem::take(&mut self.free) {
            were_any |= !buffers.is_empty();
            self.shared.in_use.fetch_sub(size * buffers.len() as u64, Ordering::Relaxed);
            lock(&self.shared.dead).extend(buffers.into_keys());
        }
        if were_any {
            self.shared.forget_dead();
        }
        were_any
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.empty();
    }
}

/// Buffers that results are read through, by size. One comes back after its values were read, so any recorder may have it.
#[derive(Default)]
pub(crate) struct Staging(HashMap<u64, Vec<wgpu::Buffer>>);

impl Staging {
    pub fn take(&mut self, size: u64) -> Option<wgpu::Buffer> {
        self.0.get_mut(&size)?.pop()
    }

    pub fn give_back(&mut self, size: u64, buffer: wgpu::Buffer) {
        self.0.entry(size).or_default().push(buffer);
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
