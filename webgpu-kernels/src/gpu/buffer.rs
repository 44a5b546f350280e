//! [`Buffer`]: typed memory on the device.

use std::{
    marker::PhantomData,
    sync::{Arc, Mutex, atomic::Ordering},
};

use super::{
    device::{Gpu, Shared},
    lock::lock,
    pool::{Pool, size_class},
};
use crate::{Error, Result};

/// Element types of buffers: four bytes.
pub trait Word: bytemuck::Pod {}
impl Word for f32 {}
impl Word for u32 {}

/// Alignment of slices, in elements: 256 bytes, WebGPU's alignment of bindings.
pub(crate) const SLICE_ALIGN: usize = 64;

/// Memory on the device, `len` elements of `T`. Clones share it. Dropping the last one frees it, or returns a temporary to its pool.
pub struct Buffer<T> {
    pub(crate) raw: Arc<RawBuffer>,
    /// First element that a kernel sees.
    start: usize,
    len: usize,
    element: PhantomData<T>,
}

pub(crate) struct RawBuffer {
    pub id: u64,
    pub buffer: wgpu::Buffer,
    /// The pool of a temporary.
    pool: Option<Arc<Mutex<Pool>>>,
    shared: Arc<Shared>,
}

impl Drop for RawBuffer {
    fn drop(&mut self) {
        let size = self.buffer.size();
        if let Some(pool) = &self.pool {
            lock(pool).give_back(self.id, size, self.buffer.clone());
        } else {
            self.shared.in_use.fetch_sub(size, Ordering::Relaxed);
            lock(&self.shared.dead).push(self.id);
        }
    }
}

impl<T> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Buffer { raw: self.raw.clone(), start: self.start, len: self.len, element: PhantomData }
    }
}

impl<T: Word> Buffer<T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Identifies the memory on its device.
    pub fn id(&self) -> u64 {
        self.raw.id
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same memory with elements of another type.
    pub fn cast<U: Word>(&self) -> Buffer<U> {
        Buffer { raw: self.raw.clone(), start: self.start, len: self.len, element: PhantomData }
    }

    /// `len` elements from `start`, which must be a multiple of 64.
    pub fn slice(&self, start: usize, len: usize) -> Buffer<T> {
        assert!(start.is_multiple_of(SLICE_ALIGN), "slice: start must be a multiple of {SLICE_ALIGN}, got {start}");
        assert!(start + len <= self.len, "slice: {start} + {len} is beyond {}", self.len);
        Buffer { raw: self.raw.clone(), start: self.start + start, len, element: PhantomData }
    }

    /// One element, for copies. A binding may not begin there.
    pub(crate) fn element(&self, at: usize) -> Buffer<T> {
        assert!(at < self.len, "element: {at} is beyond {}", self.len);
        Buffer { raw: self.raw.clone(), start: self.start + at, len: 1, element: PhantomData }
    }

    /// The same memory with another length, for plans that never run.
    pub(crate) fn claiming<U: Word>(&self, len: usize) -> Buffer<U> {
        Buffer { raw: self.raw.clone(), start: 0, len, element: PhantomData }
    }

    /// First byte that a kernel sees.
    pub(crate) fn offset(&self) -> u64 {
        4 * self.start as u64
    }
}

impl Gpu {
    /// `len` elements, all zero.
    ///
    /// Errors: larger than the device allows, or out of memory.
    pub fn zeroed<T: Word>(&self, len: usize) -> Result<Buffer<T>> {
        let bytes = byte_size(len).max(16);
        let buffer = self.allocate(bytes)?;
        Ok(self.wrap(buffer, len, None, None))
    }

    /// A copy of `values`. Copies run in the background. Does not wait.
    ///
    /// Errors: larger than the device allows, or out of memory.
    pub fn upload<T: Word>(&self, values: &[T]) -> Result<Buffer<T>> {
        let buffer = self.zeroed(values.len())?;
        self.write(&buffer, values);
        Ok(buffer)
    }

    /// Writes from the start of `buffer` on, after all submitted commands and before the commands that are being recorded.
    pub(crate) fn write<T: Word>(&self, buffer: &Buffer<T>, values: &[T]) {
        self.write_at(buffer, 0, values);
    }

    /// [`Gpu::write`] from element `start` on.
    pub(crate) fn write_at<T: Word>(&self, buffer: &Buffer<T>, start: usize, values: &[T]) {
        self.write_bytes_at(buffer, start, bytemuck::cast_slice(values));
    }

    /// [`Gpu::write_at`] with the bytes of a little-endian file. They must be whole elements.
    pub(crate) fn write_bytes_at<T: Word>(&self, buffer: &Buffer<T>, start: usize, bytes: &[u8]) {
        assert!(start + bytes.len() / 4 <= buffer.len, "write: {start} + {} bytes in {}", bytes.len(), buffer.len);
        let first_byte = buffer.offset() + 4 * start as u64;
        const CHUNK: usize = 16 << 20;
        for (i, chunk) in bytes.chunks(CHUNK).enumerate() {
            self.shared.queue.write_buffer(&buffer.raw.buffer, first_byte + (i * CHUNK) as u64, chunk);
            let staged = self.shared.staged.fetch_add(chunk.len() as u64, Ordering::Relaxed) + chunk.len() as u64;
            if staged >= 2 * CHUNK as u64 {
                self.shared.start_copies();
            }
        }
    }

    /// A temporary of `len` elements with any content, from a recorder's pool. `for_host`: the caller will write it with [`Gpu::write`].
    pub(crate) fn temporary<T: Word>(&self, pool: &Arc<Mutex<Pool>>, len: usize, for_host: bool) -> Result<Buffer<T>> {
        let bytes = byte_size(len);
        let limit = self.caps().max_binding.min(self.caps().max_buffer);
        // Rounding up must not exceed the limit.
        let size = if size_class(bytes) <= limit { size_class(bytes) } else { bytes };
        let found = lock(pool).take(size, for_host);
        Ok(match found {
            Some((id, buffer)) => self.wrap(buffer, len, Some(pool), Some(id)),
            None => self.wrap(with_room(pool, || self.allocate(size))?, len, Some(pool), None),
        })
    }

    /// A small substitute for a buffer whose allocation failed. Nothing is computed with it.
    pub(crate) fn stand_in<T: Word>(&self) -> Buffer<T> {
        use wgpu::BufferUsages as Usage;
        let usage = Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC;
        let description = wgpu::BufferDescriptor { label: None, size: 256, usage, mapped_at_creation: false };
        self.shared.in_use.fetch_add(256, Ordering::Relaxed);
        self.wrap(self.shared.device.create_buffer(&description), 64, None, None)
    }

    fn wrap<T: Word>(
        &self,
        buffer: wgpu::Buffer,
        len: usize,
        pool: Option<&Arc<Mutex<Pool>>>,
        id: Option<u64>,
    ) -> Buffer<T> {
        let id = id.unwrap_or_else(|| self.shared.next_id());
        let raw = RawBuffer { id, buffer, pool: pool.cloned(), shared: self.shared.clone() };
        Buffer { raw: Arc::new(raw), start: 0, len, element: PhantomData }
    }

    fn allocate(&self, bytes: u64) -> Result<wgpu::Buffer> {
        let limit = self.caps().max_binding.min(self.caps().max_buffer);
        if bytes > limit {
            return Err(Error::BufferTooLarge { bytes, limit });
        }
        self.shared.create_storage(bytes)
    }
}

impl Shared {
    fn create_storage(&self, bytes: u64) -> Result<wgpu::Buffer> {
        let in_use = self.in_use.load(Ordering::Relaxed);
        if in_use.saturating_add(bytes) > self.most_bytes.load(Ordering::Relaxed) {
            return Err(Error::OutOfMemory { bytes, in_use });
        }
        use wgpu::BufferUsages as Usage;
        let buffer = self.create_buffer(bytes, Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC)?;
        self.in_use.fetch_add(bytes, Ordering::Relaxed);
        Ok(buffer)
    }

    /// Creates a buffer. Native devices return an error at once. A browser reports it later, and the next read returns it.
    pub fn create_buffer(&self, size: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        #[cfg(not(target_arch = "wasm32"))]
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer =
            self.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
        #[cfg(not(target_arch = "wasm32"))]
        if super::errors::ready(scope.pop()).flatten().is_some() {
            return Err(Error::OutOfMemory { bytes: size, in_use: self.in_use.load(Ordering::Relaxed) });
        }
        Ok(buffer)
    }
}

/// Calls `make`. If it runs out of memory, frees the unused temporaries of a recorder and calls it again. Other recorders keep theirs: they
/// must not be affected.
pub(super) fn with_room<T>(pool: &Mutex<Pool>, make: impl Fn() -> Result<T>) -> Result<T> {
    match make() {
        Err(Error::OutOfMemory { .. }) if lock(pool).empty() => make(),
        made => made,
    }
}

fn byte_size(len: usize) -> u64 {
    (len as u64).saturating_mul(4)
}
