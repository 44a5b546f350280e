//! Pools of temporaries: a dropped temporary serves the next request of its size.
//!
//! Each recorder has its own [`Pool`]. A temporary may be dropped before the commands that use it are submitted. Later commands of the same
//! recorder run after these; commands of another recorder might not. The pool returns the buffer with the lowest id. So recording the same
//! operations again, as every decode step does, gets the same buffers and reuses all bind groups.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
};

use super::{device::Shared, lock::lock};

/// Free buffers of a recorder, by size and then by id.
pub(crate) struct Pool {
    free: HashMap<u64, BTreeMap<u64, Free>>,
    /// Counts the recorder's submissions.
    submission: u64,
    shared: Arc<Shared>,
}

struct Free {
    buffer: wgpu::Buffer,
    /// The host may write it only after this submission.
    last_used: u64,
}

impl Pool {
    pub fn new(shared: Arc<Shared>) -> Pool {
        Pool { free: HashMap::new(), submission: 0, shared }
    }

    /// A free buffer of `size` bytes. `for_host`: the host will write it before the commands that are being recorded run, so none of
    /// these commands may use it.
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

    /// Notes a submission.
    pub fn submitted(&mut self) {
        self.submission += 1;
    }

    /// Drops all free buffers. The device frees them when it is done with them. Returns false if there were none.
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

/// The size of the pooled buffer for `bytes`. Sizes are a quarter of a power of two apart, so that prompts of all lengths share few
/// sizes.
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
