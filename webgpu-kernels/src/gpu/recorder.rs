//! [`Recorder`]: collects dispatches and submits them in one compute pass.
//!
//! Kernels' `record` functions call [`Recorder::dispatch`]. The parameters of all dispatches of a submission are in one uniform buffer of
//! the recorder. It is written once, with the submission. Only an awaited [`Readback`] waits.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, atomic::Ordering},
};

use web_time::Instant;

use super::{
    buffer::{Buffer, Word, with_room},
    device::{Gpu, Shared, UNIFORM_BYTES},
    errors::Errors,
    lock::lock,
    pass_timer::PassTimer,
    pipeline_cache::MAX_BINDINGS,
    pool::Pool,
    profile::{Around, Dispatched, Profile},
    readback::Readback,
    trace::{Traced, TracedBinding, TracedUpload},
};
use crate::{
    Error, Kernel, Result, Variant,
    kernel::{Params, product},
};

/// Most workgroups in one dimension: WebGPU's default limit.
const MAX_GROUPS: u32 = 65_535;

/// Most dispatches of a submission. The device starts while the host goes on recording, and a submission stays short enough for a driver's
/// watchdog. A decoded token has fewer: if it were cut, the device would wait for the second half.
const MAX_DISPATCHES: usize = 256;

/// With at least this many rows, kernels compute each row by the same operations in the same order. Kernels for fewer rows may round
/// differently.
pub const FEWEST_ROWS: usize = 16;

/// A buffer of a dispatch.
pub struct Binding<'a> {
    id: u64,
    offset: u64,
    /// Bytes of the elements that the kernel uses.
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

/// Collects dispatches and submits them. A device may have any number of recorders, also on several threads. Each has its own parameters,
/// temporaries and errors.
pub struct Recorder {
    gpu: Gpu,
    /// Created by the first dispatch.
    uniforms: Option<Uniforms>,
    pool: Arc<Mutex<Pool>>,
    errors: Errors,
    dispatches: Vec<Dispatch>,
    params: Vec<u8>,
    offsets: HashMap<Vec<u8>, u32>,
    max_dispatches: usize,
    /// Multiplications and additions of the recorded dispatches.
    work: u64,
    /// Dispatches of a tracing recorder, which runs nothing.
    trace: Option<Vec<Traced>>,
    /// Uploads of a tracing recorder.
    uploads: Vec<TracedUpload>,
    /// Stands for every temporary of a planning recorder.
    hollow: Option<Buffer<u32>>,
    /// Times submissions.
    pub(crate) profile: Option<Profile>,
    /// Bytes of the next dispatch, if they differ from those of its buffers.
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
            uploads: Vec::new(),
            hollow: None,
            profile: None,
            bytes: None,
            forgotten: 0,
        }
    }

    /// A recorder that collects dispatches and runs nothing.
    pub fn tracing(gpu: &Gpu) -> Recorder {
        Recorder { trace: Some(Vec::new()), ..Recorder::new(gpu) }
    }

    /// A tracing recorder for plans: its temporaries have no memory.
    pub fn planning(gpu: &Gpu) -> Recorder {
        Recorder { hollow: Some(gpu.stand_in()), ..Recorder::tracing(gpu) }
    }

    /// A buffer without memory, if this is a planning recorder.
    pub fn hollow<T: Word>(&self, len: usize) -> Option<Buffer<T>> {
        self.hollow.as_ref().map(|buffer| buffer.claiming(len))
    }

    /// Takes the dispatches that a tracing recorder collected.
    pub fn take_trace(&mut self) -> Vec<Traced> {
        self.trace.replace(Vec::new()).unwrap_or_default()
    }

    /// Takes the uploads of a tracing recorder. A later temporary may use the memory of an upload that was dropped.
    pub fn take_uploads(&mut self) -> Vec<TracedUpload> {
        std::mem::take(&mut self.uploads)
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// A temporary of `len` elements with any content. After its last clone is dropped, later dispatches may reuse it.
    ///
    /// If it is too large or memory is exhausted, the next read returns the error, and a small buffer stands in.
    pub fn temporary<T: Word>(&mut self, len: usize) -> Buffer<T> {
        match self.hollow(len) {
            Some(hollow) => hollow,
            None => self.gpu.temporary(&self.pool, len, false).unwrap_or_else(|error| self.stand_in(error)),
        }
    }

    /// A temporary that holds `values` for the dispatches that are recorded from now on. Errors as with [`Recorder::temporary`].
    pub fn upload<T: Word>(&mut self, values: &[T]) -> Buffer<T> {
        if let Some(hollow) = self.hollow(values.len()) {
            return hollow;
        }
        match self.gpu.temporary(&self.pool, values.len(), true) {
            Ok(buffer) => {
                self.gpu.write(&buffer, values);
                if self.trace.is_some() {
                    let mut words: Vec<u32> = bytemuck::cast_slice(values).to_vec();
                    words.resize(buffer.raw.buffer.size() as usize / 4, 0);
                    self.uploads.push(TracedUpload { id: buffer.id(), words });
                }
                buffer
            }
            Err(error) => self.stand_in(error),
        }
    }

    /// Allocates permanent memory by `make`. If memory is exhausted, it frees unused temporaries and tries again.
    pub fn with_room<T>(&self, make: impl Fn(&Gpu) -> Result<T>) -> Result<T> {
        with_room(&self.pool, || make(&self.gpu))
    }

    fn stand_in<T: Word>(&mut self, error: Error) -> Buffer<T> {
        self.errors.fail(error);
        self.gpu.stand_in()
    }

    /// Announces the multiplications and additions of a large next dispatch: the product of `factors`. If they would keep the device busy
    /// for too long together with the recorded dispatches, these are submitted first.
    pub fn expect_work(&mut self, factors: &[usize]) {
        let work = product(factors);
        let is_too_much = self.work.saturating_add(work) > self.gpu.work_at_once();
        if is_too_much && !self.dispatches.is_empty() && self.most_dispatches() == MAX_DISPATCHES {
            self.submit();
        }
        self.work += work;
    }

    /// Divides `rows` of `work` multiplications and additions each into ranges, so that no dispatch keeps the device busy for too long.
    /// Ranges begin at multiples of `step` and have at least [`FEWEST_ROWS`] rows, unless there are fewer. So dividing does not change
    /// results.
    pub(crate) fn row_ranges(&self, rows: usize, work: u64, step: usize) -> Vec<Range<usize>> {
        let most = usize::try_from(self.gpu.work_at_once() / work.max(1)).unwrap_or(usize::MAX);
        // After an error nothing is computed, and buffers may be small substitutes.
        if rows <= most || self.trace.is_some() || self.most_dispatches() != MAX_DISPATCHES || self.has_failed() {
            return std::iter::once(0..rows).collect();
        }
        let part = (most / step * step).max(FEWEST_ROWS.next_multiple_of(step));
        let mut ranges = Vec::with_capacity(rows / part);
        let mut begin = 0;
        while begin < rows {
            // The last range includes a rest that is too small for its own range.
            let end = if rows - begin < part + FEWEST_ROWS { rows } else { begin + part };
            ranges.push(begin..end);
            begin = end;
        }
        ranges
    }

    /// Announces the bytes that the next dispatch reads or writes, if it does not use its whole buffers.
    pub fn expect_bytes(&mut self, bytes: u64) {
        self.bytes = Some(bytes);
    }

    /// Records `groups` workgroups of a kernel. More than 65,535 wrap into the second dimension. Its last row may have too many workgroups,
    /// where kernels return early.
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

    /// True if the next read will return an error.
    fn has_failed(&self) -> bool {
        self.errors.first().is_some() || self.gpu.error().is_some()
    }

    /// Most dispatches of a submission. A profile by kernel times all of them together.
    fn most_dispatches(&self) -> usize {
        let is_by_kernel = self.profile.as_ref().is_some_and(|profile| profile.around == Around::Kernels);
        if is_by_kernel { usize::MAX } else { self.max_dispatches }
    }

    /// The offset of parameters in the uniform buffer. Equal ones, for example of every layer's norm, share it.
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

    /// Submits the recorded dispatches.
    pub fn submit(&mut self) {
        self.submit_with(|_| {}, None);
    }

    /// Submits the recorded dispatches and measures their time on the device.
    pub fn submit_timed(&mut self, timer: &PassTimer) {
        self.submit_with(|encoder| timer.resolve(encoder), Some(timer));
    }

    /// Removes the bound on the dispatches of a submission, to measure one pass.
    pub fn without_early_submission(mut self) -> Recorder {
        self.max_dispatches = usize::MAX;
        self
    }

    /// Submits. Returns the submission and the number of submissions to the device so far.
    fn submit_with(
        &mut self,
        after: impl FnOnce(&mut wgpu::CommandEncoder),
        timer: Option<&PassTimer>,
    ) -> (wgpu::SubmissionIndex, u64) {
        let shared = &self.gpu.shared;
        // Attribute errors to this recorder. Scopes belong to this thread.
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
            if let Some(error) = super::errors::ready(scope.pop()).flatten() {
                self.errors.fail(super::errors::told_by_device(error));
            }
        }
        self.params.clear();
        self.offsets.clear();
        lock(&shared.pace).submitted(std::mem::take(&mut self.work), Instant::now());
        lock(&self.pool).submitted();
        shared.forget_dead();
        (index, count)
    }

    /// How often an error made this recorder forget its dispatches.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Forgets the recorded dispatches.
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

    /// [`Recorder::read`], with an error if one of `flags`, a word each, is not zero: see [`crate::gemv_chain::Links::expired`].
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

    /// Number of bind groups on the device. It stays the same from one decode step to the next.
    pub fn bind_group_count(&self) -> usize {
        self.gpu.shared.bind_group_count()
    }
}
