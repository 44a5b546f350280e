//! [`Staging`]: buffers of reads, for reuse.

use std::collections::HashMap;

/// Staging buffers of reads, by size. A buffer returns after its values were read, so any recorder may take it.
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
