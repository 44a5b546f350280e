//! [`Recorder`]: dispatches, collected and submitted in one compute pass.
//!
//! Kernels' `record` functions call [`Recorder::dispatch`]. Parameters of all dispatches of a submission lie in one
//! uniform buffer of the recorder, written once, with the submission. Nothing waits until a [`Readback`] is awaited.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, atomic::Ordering},
};

use web_time::Instant;

use super::{
    buffer::{Buffer, Word, with_room},
    device::{Gpu, Shared, UNIFORM_BYTES, lock},
    errors::Errors,
    pipeline::MAX_BINDINGS,
    pool::Pool,
    profile::{Around, Dispatched, Profile},
    readback::Readback,
    timing::PassTimer,
    trace::{Traced, TracedBinding},
};
use crate::{
    Error, Kernel, Result, Variant,
    kernel::{Params, product},
};

/// Most workgroups in one dimension: WebGPU's default limit.
const MAX_GROUPS: u32 = 65_535;

/// Submit at the latest after this many dispatches: the device starts while the host goes on recording, and no
/// submission takes so long that a driver's watchdog resets the device. A decoded token has fewer: a device that is done
/// with half of one would wait for the other.
const MAX_DISPATCHES: usize = 256;

/// Rows from which on kernels compute a row by the same operations in the same order, however many there are. Those for
/// fewer rows round differently.
pub const FEWEST_ROWS: usize = 16;

/// A buffer in a kernel's list of bindings.
pub struct Binding<'a> {
    id: u64,
    offset: u64,
    /// Bytes that a kernel is meant to see.
    bytes: u64,
    buffer: &'a wgpu::Buffer,
}

impl<'a, T: Word> From<&'a Buffer<T>> for Binding<'a> {
    fn from(buffer: &'a Buffer<T>) -> Binding<'a> {
        Binding {
            id: buffer.raw.id,
            offset: buffer.offset(),
            bytes: 4 * buffer.len() as u64,
            buffer: &buffer.raw.buffer,
        }
    }
}

/// Collects dispatches and submits them. Any number of recorders of one device may be at work, also on several threads: each
/// has parameters, temporaries and errors of its own.
pub struct Recorder {
    gpu: Gpu,
    /// Made for the first dispatch.
    uniforms: Option<Uniforms>,
    pool: Arc<Mutex<Pool>>,
    errors: Errors,
    dispatches: Vec<Dispatch>,
    params: Vec<u8>,
    offsets: HashMap<Vec<u8>, u32>,
    max_dispatches: usize,
    /// Multiplications and additions of what is recorded.
    work: u64,
    /// Dispatches that are told of and not run.
    trace: Option<Vec<Traced>>,
    /// What stands for every temporary where nothing is run.
    hollow: Option<Buffer<u32>>,
    /// Times of what is submitted.
    pub(crate) profile: Option<Profile>,
    /// Bytes of the next dispatch, where they are not those of its buffers.
    bytes: Option<u64>,
    forgotten: u64,
}

/// The buffer of a recorder's parameters.
struct Uniforms {
    id: u64,
    buffer: wgpu::Buffer,
    shared: Arc<Shared>,
}

impl Uniforms {
    fn new(shared: &Arc<Shared>) -> Result<Uniforms> {
        use wgpu::BufferUsages as Usage;
        let buffer = shared.create_buffer(UNIFORM_BYTES, Usage::UNIFORM | Usage::COPY_DST)?;
        Ok(Uniforms { id: shared.next_id(), buffer, shared: shared.clone() })
    }
}

impl Drop for Uniforms {
    fn drop(&mut self) {
        lock(&self.shared.dead).push(self.id);
    }
}

struct Dispatch {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    params: u32,
    groups: (u32, u32),
}

impl Recorder {
    /// An empty recorder.
    pub fn new(gpu: &Gpu) -> Recorder {
        Recorder {
            gpu: gpu.clone(),
            uniforms: None,
            pool: Arc::new(Mutex::new(Pool::new(gpu.shared.clone()))),
            errors: Errors::default(),
            dispatches: Vec::new(),
            params: Vec::new(),
            offsets: HashMap::new(),
            max_dispatches: MAX_DISPATCHES,
            work: 0,
            trace: None,
            hollow: None,
            profile: None,
            bytes: None,
            forgotten: 0,
        }
    }

    /// A recorder that runs nothing and tells what it was asked to run.
    pub fn tracing(gpu: &Gpu) -> Recorder {
        Recorder { trace: Some(Vec::new()), ..Recorder::new(gpu) }
    }

    /// The same, for planning: its temporaries have no memory.
    pub fn planning(gpu: &Gpu) -> Recorder {
        Recorder { hollow: Some(gpu.stand_in()), ..Recorder::tracing(gpu) }
    }

    /// A buffer without memory, of a recorder that plans.
    pub fn hollow<T: Word>(&self, len: usize) -> Option<Buffer<T>> {
        self.hollow.as_ref().map(|buffer| buffer.claiming(len))
    }

    /// What it was asked to run so far.
    pub fn take_trace(&mut self) -> Vec<Traced> {
        self.trace.replace(Vec::new()).unwrap_or_default()
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// A temporary of `len` elements with any content. When its last clone is dropped it may be used again by what is
    /// recorded after that.
    ///
    /// Out of memory, or too large: the error waits for the next read, and a small buffer stands in.
    pub fn temporary<T: Word>(&mut self, len: usize) -> Buffer<T> {
        match self.hollow(len) {
            Some(hollow) => hollow,
            None => self.gpu.temporary(&self.pool, len, false).unwrap_or_else(|error| self.stand_in(error)),
        }
    }

    /// A temporary that holds `values` when what is recorded from now on runs. Errors as with [`Recorder::temporary`].
    pub fn upload<T: Word>(&mut self, values: &[T]) -> Buffer<T> {
        if let Some(hollow) = self.hollow(values.len()) {
            return hollow;
        }
        match self.gpu.temporary(&self.pool, values.len(), true) {
            Ok(buffer) => {
                self.gpu.write(&buffer, values);
                buffer
            }
            Err(error) => self.stand_in(error),
        }
    }

    /// Makes something that takes memory for good. Where there is none, the temporaries that nobody holds make room for it.
    pub fn with_room<T>(&self, make: impl Fn(&Gpu) -> Result<T>) -> Result<T> {
        with_room(&self.pool, || make(&self.gpu))
    }

    fn stand_in<T: Word>(&mut self, error: Error) -> Buffer<T> {
        self.errors.fail(error);
        self.gpu.stand_in()
    }

    /// Says how many multiplications and additions the next dispatch has, where they are many: what was recorded before it
    /// is submitted if both together would keep the device busy for too long. As many as the product of `factors`.
    pub fn expect_work(&mut self, factors: &[usize]) {
        let work = product(factors);
        let is_too_much = self.work.saturating_add(work) > self.gpu.work_at_once();
        if is_too_much && !self.dispatches.is_empty() && self.most_dispatches() == MAX_DISPATCHES {
            self.submit();
        }
        self.work += work;
    }

    /// Divides `rows` of `work` multiplications and additions each, so that no dispatch keeps the device busy for too long.
    /// Each range has at least [`FEWEST_ROWS`] rows where there are as many, and begins at a multiple of `step`.
    ///
    /// The kernels for so many rows compute each one alike, however many there are.
    pub(crate) fn row_ranges(&self, rows: usize, work: u64, step: usize) -> Vec<Range<usize>> {
        let most = usize::try_from(self.gpu.work_at_once() / work.max(1)).unwrap_or(usize::MAX);
        // After an error nothing is computed, and small buffers stand in.
        if rows <= most || self.trace.is_some() || self.most_dispatches() != MAX_DISPATCHES || self.has_failed() {
            return std::iter::once(0..rows).collect();
        }
        let part = (most / step * step).max(FEWEST_ROWS.next_multiple_of(step));
        let mut ranges = Vec::with_capacity(rows / part);
        let mut begin = 0;
        while begin < rows {
            // Too few for a range of their own go with those before.
            let end = if rows - begin < part + FEWEST_ROWS { rows } else { begin + part };
            ranges.push(begin..end);
            begin = end;
        }
        ranges
    }

    /// Says how many bytes the next dispatch reads or writes, where it does not go through the whole of its buffers.
    pub fn expect_bytes(&mut self, bytes: u64) {
        self.bytes = Some(bytes);
    }

    /// Records `groups` workgroups of a kernel. More than 65,535 wrap into the second dimension; the last row may hold
    /// more than were asked for, and kernels return early there.
    pub fn dispatch<P: Params>(
        &mut self,
        kernel: &'static Kernel,
        variant: &Variant,
        params: &P,
        buffers: &[Binding<'_>],
        groups: usize,
    ) {
        assert_eq!(buffers.len(), kernel.bindings.len(), "{}: number of buffers", kernel.name);
        assert_eq!(size_of::<P>(), kernel.params.size, "{}: size of the parameters", kernel.name);
        let bytes = self.bytes.take();
        if groups == 0 || self.has_failed() {
            return;
        }
        let groups = u32::try_from(groups).unwrap_or_else(|_| panic!("{}: {groups} workgroups", kernel.name));
        let rows = groups.div_ceil(MAX_GROUPS);
        let groups = (groups.div_ceil(rows), rows);
        if let Some(trace) = &mut self.trace {
            let binding = |binding: &Binding<'_>| TracedBinding {
                id: binding.id,
                offset: binding.offset,
                size: binding.buffer.size(),
            };
            let (params, bindings) = (bytemuck::bytes_of(params).to_vec(), buffers.iter().map(binding).collect());
            let bytes = bytes.unwrap_or_else(|| buffers.iter().map(|binding| binding.bytes).sum());
            let work = std::mem::take(&mut self.work);
            trace.push(Traced { kernel, variant: variant.clone(), params, bindings, groups, bytes, work });
            return;
        }
        let step = self.gpu.shared.limits.min_uniform_buffer_offset_alignment as usize;
        if self.dispatches.len() >= self.most_dispatches()
            || self.params.len().next_multiple_of(step) + kernel.params.size > UNIFORM_BYTES as usize
        {
            self.submit();
        }

        let shared = &self.gpu.shared;
        let pipeline = shared.pipeline(kernel, &self.gpu.allowed(kernel.name, variant));
        if let Some(reason) = &pipeline.refused {
            return self.errors.fail(Error::Refused { reason: reason.clone() });
        }
        let uniforms = match &mut self.uniforms {
            Some(uniforms) => uniforms,
            none => match Uniforms::new(shared) {
                Ok(uniforms) => none.insert(uniforms),
                Err(error) => return self.errors.fail(error),
            },
        };
        let mut bound: [(u64, u64, &wgpu::Buffer); MAX_BINDINGS] = [(0, 0, &uniforms.buffer); MAX_BINDINGS];
        for (slot, binding) in bound.iter_mut().zip(buffers) {
            *slot = (binding.id, binding.offset, binding.buffer);
        }
        let bind_group = shared.bind_group(&pipeline.layout, (uniforms.id, &uniforms.buffer), &bound[..buffers.len()]);
        if let Some(profile) = &mut self.profile {
            let bytes = bytes.unwrap_or_else(|| buffers.iter().map(|binding| binding.bytes).sum());
            profile.recorded.push(Dispatched::new(kernel, variant, bytemuck::bytes_of(params), bytes));
        }
        let params = self.place_params(bytemuck::bytes_of(params), step);
        self.dispatches.push(Dispatch { pipeline: pipeline.pipeline.clone(), bind_group, params, groups });
    }

    /// Whether an error waits for the next read.
    fn has_failed(&self) -> bool {
        self.errors.first().is_some() || self.gpu.error().is_some()
    }

    /// How many dispatches a submission has at most. Kernel by kernel they are timed together.
    fn most_dispatches(&self) -> usize {
        let is_by_kernel = self.profile.as_ref().is_some_and(|profile| profile.around == Around::Kernels);
        if is_by_kernel { usize::MAX } else { self.max_dispatches }
    }

    /// Where these parameters lie in the uniform buffer. Equal ones, as of every layer's norm, lie there once.
    fn place_params(&mut self, bytes: &[u8], step: usize) -> u32 {
        if let Some(&offset) = self.offsets.get(bytes) {
            return offset;
        }
        let offset = self.params.len().next_multiple_of(step);
        self.params.resize(offset, 0);
        self.params.extend_from_slice(bytes);
        self.offsets.insert(bytes.to_vec(), offset as u32);
        offset as u32
    }

    /// Hands what was recorded to the device.
    pub fn submit(&mut self) {
        self.submit_with(|_| {}, None);
    }

    /// Hands what was recorded to the device, and measures the time it takes there.
    pub fn submit_timed(&mut self, timer: &PassTimer) {
        self.submit_with(|encoder| timer.resolve(encoder), Some(timer));
    }

    /// Lets a submission hold any number of dispatches, for measurements of one pass.
    pub fn without_early_submission(mut self) -> Recorder {
        self.max_dispatches = usize::MAX;
        self
    }

    /// The submission, and how many there have been to the device.
    fn submit_with(
        &mut self,
        after: impl FnOnce(&mut wgpu::CommandEncoder),
        timer: Option<&PassTimer>,
    ) -> (wgpu::SubmissionIndex, u64) {
        let shared = &self.gpu.shared;
        // What this causes is this recorder's. Scopes are of this thread.
        #[cfg(not(target_arch = "wasm32"))]
        let scopes = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation]
            .map(|filter| shared.device.push_error_scope(filter));
        let mut encoder = shared.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None });
        let stamps = match &mut self.profile {
            Some(profile) if !self.dispatches.is_empty() => {
                profile.stamps(&self.gpu).map_err(|error| self.errors.fail(error)).ok()
            }
            _ => None,
        };
        let encode = |pass: &mut wgpu::ComputePass<'_>, dispatch: &Dispatch| {
            pass.set_pipeline(&dispatch.pipeline);
            pass.set_bind_group(0, &dispatch.bind_group, &[dispatch.params]);
            pass.dispatch_workgroups(dispatch.groups.0, dispatch.groups.1, 1);
        };
        if let Some(stamps) = &stamps {
            for (pair, timed) in stamps.passes.iter().enumerate() {
                let timestamp_writes = Some(stamps.writes(pair));
                let mut pass =
                    encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
                for _ in 0..timed.rounds {
                    timed.dispatches.iter().for_each(|&i| encode(&mut pass, &self.dispatches[i]));
                }
            }
        } else if !self.dispatches.is_empty() || timer.is_some() {
            let timestamp_writes = timer.map(PassTimer::writes);
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
            self.dispatches.iter().for_each(|dispatch| encode(&mut pass, dispatch));
        }
        self.dispatches.clear();
        if let (Some(profile), Some(stamps)) = (&mut self.profile, stamps) {
            stamps.resolve(&mut encoder);
            profile.submitted(stamps);
        }
        after(&mut encoder);
        let commands = encoder.finish();
        let (index, count) = {
            let _submitting = lock(&shared.submitting);
            if let Some(uniforms) = self.uniforms.as_ref().filter(|_| !self.params.is_empty()) {
                self.params.resize(self.params.len().next_multiple_of(4), 0);
                shared.queue.write_buffer(&uniforms.buffer, 0, &self.params);
            }
            (shared.queue.submit([commands]), shared.submissions.fetch_add(1, Ordering::Relaxed) + 1)
        };
        #[cfg(not(target_arch = "wasm32"))]
        for scope in scopes.into_iter().rev() {
            if let Some(error) = super::pipeline::ready(scope.pop()).flatten() {
                self.errors.fail(super::device::told_by_device(error));
            }
        }
        self.params.clear();
        self.offsets.clear();
        lock(&shared.pace).submitted(std::mem::take(&mut self.work), Instant::now());
        lock(&self.pool).submitted();
        shared.forget_dead();
        (index, count)
    }

    /// How often something went wrong, so that what was recorded was forgotten.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Forgets what was recorded.
    fn forget(&mut self) {
        self.forgotten += 1;
        if let Some(profile) = &mut self.profile {
            profile.recorded.clear();
        }
        self.dispatches.clear();
        self.params.clear();
        self.offsets.clear();
        self.work = 0;
    }

    /// Submits, and copies `buffer` to the host. Await the result for its values.
    pub fn read<T: Word>(&mut self, buffer: &Buffer<T>) -> Result<Readback<T>> {
        self.read_unless(buffer, &[])
    }

    /// The same, unless one of `flags`, a word each, is not zero: see [`crate::gemv_chain::Links::expired`].
    pub fn read_unless<T: Word>(&mut self, buffer: &Buffer<T>, flags: &[Buffer<u32>]) -> Result<Readback<T>> {
        if let Some(error) = self.gpu.shared.told_error(&self.errors) {
            self.forget();
            return Err(error);
        }
        let mut readback = Readback::new(&self.gpu, &self.errors, buffer.len(), flags.len())?;
        let (index, count) = self.submit_with(|encoder| readback.copy_from(encoder, buffer, flags), None);
        readback.begin(index, count);
        Ok(readback)
    }

    /// Bind groups that exist on the device. It stays the same from one decode step to the next.
    pub fn bind_group_count(&self) -> usize {
        self.gpu.shared.bind_group_count()
    }
}
