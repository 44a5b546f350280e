//! [`Gpu`]: an open device, shared by everything that lives on it.

use std::borrow::Cow;
use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};

use super::{
    adapter::{AdapterSummary, Caps, DeviceType, OpenOptions, Selection, SubgroupSizes},
    errors::Errors,
    instance,
    known::{self, Identity},
    memory,
    pace::Pace,
    pipeline::{MAX_BINDINGS, Pipelines},
    pool::Staging,
    probe,
};
use crate::{
    Error, Result, Variant,
    selftest::Switch,
    tuning::{PRESETS_FLAG, Table},
};

/// Parameters of one submission, all dispatches together, in bytes.
pub(crate) const UNIFORM_BYTES: u64 = 64 << 10;

/// Workgroup memory that kernels with cooperative matrices may take, twice WebGPU's default limit.
const COOPERATIVE_BYTES: u32 = 32 << 10;

/// Matrices are cut into slices of at most this many bytes, WebGPU's default limit, also where the device allows more:
/// one path to test.
const SLICE_BYTES: u64 = 128 << 20;

/// An open device. Clones share it.
#[derive(Clone)]
pub struct Gpu {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    /// What the device was opened of, and how.
    #[cfg(not(target_arch = "wasm32"))]
    opened: (wgpu::Adapter, OpenOptions),
    pub summary: AdapterSummary,
    pub limits: wgpu::Limits,
    pub staging: Mutex<Staging>,
    /// Held while parameters are written and the commands that read them are submitted.
    pub submitting: Mutex<()>,
    /// Submissions so far.
    pub submissions: AtomicU64,
    /// What futures wait for.
    #[cfg(not(target_arch = "wasm32"))]
    pub waiting: Arc<super::wait::Waiting>,
    pub pipelines: Mutex<Pipelines>,
    /// Names the device for what its driver keeps of pipelines, where it gives that.
    pub pipeline_key: Option<String>,
    pub pace: Mutex<Pace>,
    /// Ids of buffers that are gone, whose bind groups must go too.
    pub dead: Mutex<Vec<u64>>,
    /// Kernels that are wrong on this device.
    pub switched_off: Mutex<Vec<Switch>>,
    /// How kernels that have a choice do their work.
    pub tuning: Mutex<Table>,
    /// Bytes in buffers.
    pub in_use: AtomicU64,
    /// Bytes in buffers that there may be.
    pub most_bytes: AtomicU64,
    /// Bytes written since the last submission.
    pub staged: AtomicU64,
    next_id: AtomicU64,
    /// Those that concern all recorders, or that the device tells of nobody in particular.
    errors: Errors,
}

#[cfg(not(target_arch = "wasm32"))]
impl Drop for Shared {
    fn drop(&mut self) {
        self.waiting.close();
    }
}

/// A lock that a panic elsewhere does not close: the data is only ever replaced whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Gpu {
    /// Every device there is: discrete GPUs first, then integrated ones, software last.
    pub async fn adapters() -> Vec<AdapterSummary> {
        enumerate().await.into_iter().map(|(_, summary)| summary).collect()
    }

    /// Opens a device.
    ///
    /// Errors: no adapter, none that matches, or one that does not open.
    pub async fn open(selection: &Selection, options: OpenOptions) -> Result<Gpu> {
        let mut adapters = enumerate().await;
        if adapters.is_empty() {
            return Err(Error::NoAdapter);
        }
        let names: Vec<String> = adapters.iter().map(|(_, summary)| summary.name.clone()).collect();
        let index = selection.choose(names.len()).ok_or_else(|| Error::NoSuchAdapter {
            selection: selection.to_string(),
            found: names.iter().enumerate().map(|(index, name)| format!("{index} {name}")).collect(),
        })?;
        let (adapter, summary) = adapters.swap_remove(index);
        Gpu::open_adapter(&adapter, summary, options).await
    }

    pub(super) async fn open_adapter(
        adapter: &wgpu::Adapter,
        mut summary: AdapterSummary,
        options: OpenOptions,
    ) -> Result<Gpu> {
        let mut features = wgpu::Features::empty();
        summary.caps.f16 &= options.f16;
        if summary.caps.f16 {
            features |= wgpu::Features::SHADER_F16;
        }
        if !options.subgroups {
            summary.caps.subgroups = None;
        }
        if options.narrow {
            summary.caps.subgroups = summary.caps.subgroups.map(SubgroupSizes::halved);
            summary.caps.usual_lanes = None;
            summary.caps.registers = Some(known::INTEL_REGISTERS);
        }
        // To a browser, wgpu has no word for them: who opens the device there asks the browser itself.
        if summary.caps.subgroups.is_some() && !cfg!(target_arch = "wasm32") {
            features |= wgpu::Features::SUBGROUP;
        }
        summary.caps.is_software &= options.software_kernels;
        summary.caps.cooperative_matrix &= options.cooperative_matrix && summary.caps.f16 && !options.default_limits;
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if summary.caps.cooperative_matrix {
            features |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            // SAFETY: wgpu asks callers to know that this feature's validation has gaps. Only kernels of this crate, which are
            // tested on such devices, use it.
            experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        summary.caps.timestamps &= options.timestamps;
        if summary.caps.timestamps {
            features |= wgpu::Features::TIMESTAMP_QUERY;
        }
        let keeps_pipelines = adapter.features().contains(wgpu::Features::PIPELINE_CACHE);
        let pipeline_key = wgpu::util::pipeline_cache_key(&adapter.get_info()).filter(|_| keeps_pipelines);
        if pipeline_key.is_some() {
            features |= wgpu::Features::PIPELINE_CACHE;
        }
        let mut limits = required_limits(&adapter.limits(), options.default_limits);
        if summary.caps.cooperative_matrix {
            limits.max_compute_workgroup_storage_size = COOPERATIVE_BYTES;
        }
        summary.caps.max_bindings = limits.max_storage_buffers_per_shader_stage;
        summary.caps.forward_progress &= !options.default_limits;
        summary.caps.max_binding = limits.max_storage_buffer_binding_size;
        summary.caps.max_buffer = limits.max_buffer_size;

        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("model"),
                required_features: features,
                required_limits: limits.clone(),
                experimental_features,
                memory_hints: wgpu::MemoryHints::MemoryUsage,
                ..Default::default()
            })
            .await
            .map_err(|e| Error::OpenDevice { adapter: summary.name.clone(), reason: e.to_string() })?;

        // What a recorder causes is told to it natively; in a browser, where errors come late, to who reads next.
        let errors = Errors::default();
        let first = errors.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| first.fail(told_by_device(error))));
        let first = errors.clone();
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                // What led to the loss was reported first and says more.
                first.fail(Error::DeviceLost { reason: message });
            }
        });

        let (tuning, pace) = (Mutex::new(Table::new(&summary)), Mutex::new(Pace::new(summary.device_type)));
        let gpu = Gpu {
            shared: Arc::new(Shared {
                device,
                queue,
                #[cfg(not(target_arch = "wasm32"))]
                opened: (adapter.clone(), options),
                summary,
                limits,
                staging: Mutex::default(),
                submitting: Mutex::default(),
                submissions: AtomicU64::new(0),
                #[cfg(not(target_arch = "wasm32"))]
                waiting: Arc::default(),
                pipelines: Mutex::default(),
                pipeline_key,
                pace,
                dead: Mutex::default(),
                switched_off: Mutex::default(),
                tuning,
                in_use: AtomicU64::new(0),
                most_bytes: AtomicU64::new(u64::MAX),
                staged: AtomicU64::new(0),
                next_id: AtomicU64::new(1),
                errors,
            }),
        };
        Ok(gpu.with_usual_lanes().await)
    }

    /// With subgroups of one size, where that is [`Caps::usual_lanes`] and the device confirms it.
    async fn with_usual_lanes(mut self) -> Gpu {
        let caps = *self.caps();
        let (Some(lanes), true) = (caps.usual_lanes, caps.confirmed() != caps) else { return self };
        match probe::has_lanes(&self, lanes).await {
            Ok(true) => {
                let shared = Arc::get_mut(&mut self.shared).expect("nobody else has the device yet");
                shared.summary.caps = caps.confirmed();
                shared.tuning = Mutex::new(Table::new(&shared.summary));
            }
            Ok(false) => {}
            // A device that is lost says so at the next read; one that refuses the probe does without.
            Err(_) => self.shared.forgive(),
        }
        self
    }

    /// Another device of the same adapter, opened like this one, with what was switched off and chosen here.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) async fn another(&self) -> Result<Gpu> {
        let (adapter, options) = &self.shared.opened;
        let gpu = Gpu::open_adapter(adapter, summary(adapter), *options).await?;
        *lock(&gpu.shared.switched_off) = self.switched_off();
        *gpu.tuning() = self.tuning().clone();
        Ok(gpu)
    }

    /// The device and its driver.
    pub fn summary(&self) -> &AdapterSummary {
        &self.shared.summary
    }

    /// What the device can do, less what [`OpenOptions`] left out.
    pub fn caps(&self) -> &Caps {
        &self.shared.summary.caps
    }

    /// Bytes of the device's memory that are free now, where its driver tells.
    pub fn free_memory(&self) -> Option<u64> {
        #[cfg(not(target_arch = "wasm32"))]
        return memory::free(&self.shared.opened.0);
        #[cfg(target_arch = "wasm32")]
        None
    }

    /// Bytes of device memory that this program holds.
    pub fn bytes_in_use(&self) -> u64 {
        self.shared.in_use.load(Ordering::Relaxed)
    }

    /// Largest piece of a matrix that is bound at once, in bytes.
    pub(crate) fn slice_bytes(&self) -> u64 {
        self.caps().max_binding.min(self.caps().max_buffer).min(SLICE_BYTES)
    }

    /// Multiplications and additions that one submission should have at most, by the speed measured so far. It varies with
    /// the load: let it decide only where commands are cut, never which kernel computes something.
    pub(crate) fn work_at_once(&self) -> u64 {
        lock(&self.shared.pace).work_at_once()
    }

    /// Multiplications and additions that one operation over a part of a text should have at most, by the device's class. The
    /// same in every run.
    pub fn work_of_part(&self) -> u64 {
        lock(&self.shared.pace).work_of_part()
    }

    /// Bounds both, in place of the measured speed and the class. For tests, and callers who know their device.
    pub fn limit_work(&self, limit: Option<u64>) {
        lock(&self.shared.pace).limit(limit);
    }

    /// Counts a caller's own measurement of the device's speed: so many multiplications and additions took so long.
    pub fn note_speed(&self, work: u64, time: web_time::Duration) {
        lock(&self.shared.pace).measured(work, time);
    }

    /// Uses a kernel no more, or not with one of its flags: what does the same in another way takes its place.
    pub fn switch_off(&self, switch: Switch) {
        if switch.flag.as_deref() == Some(PRESETS_FLAG) {
            self.forget_choices();
        }
        lock(&self.shared.switched_off).push(switch);
    }

    /// What is chosen for kernels that have a choice.
    pub(crate) fn tuning(&self) -> MutexGuard<'_, Table> {
        lock(&self.shared.tuning)
    }

    /// What was switched off.
    pub fn switched_off(&self) -> Vec<Switch> {
        lock(&self.shared.switched_off).clone()
    }

    /// Whether none of a kernel is used.
    pub fn is_off(&self, kernel: &str) -> bool {
        lock(&self.shared.switched_off).iter().any(|switch| switch.kernel == kernel && switch.flag.is_none())
    }

    /// What is used of a kernel's variant.
    pub(crate) fn allowed<'a>(&self, kernel: &str, variant: &'a Variant) -> Cow<'a, Variant> {
        let mut allowed = Cow::Borrowed(variant);
        for switch in lock(&self.shared.switched_off).iter().filter(|switch| switch.kernel == kernel) {
            if let Some(flag) = switch.flag.as_ref().filter(|flag| *flag != PRESETS_FLAG) {
                allowed = Cow::Owned(allowed.without(flag));
            }
        }
        allowed
    }

    /// Bounds the device memory that this program takes; what goes beyond is out of memory.
    pub fn limit_memory(&self, bytes: Option<u64>) {
        self.shared.most_bytes.store(bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Gives the device up, whoever still holds it: to them it is lost.
    pub fn destroy(&self) {
        self.shared.fail(Error::DeviceLost { reason: "it was given up".into() });
        self.shared.device.destroy();
    }

    /// The first error of the device that no call has returned, such as its loss. Errors that a recorder caused are told to
    /// those who read by it.
    pub fn error(&self) -> Option<Error> {
        self.shared.errors.first()
    }
}

impl Shared {
    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The error for a call of a recorder to return: its own, or the device's. A lost device explains all others.
    pub fn told_error(&self, of_recorder: &Errors) -> Option<Error> {
        match self.errors.first() {
            Some(lost @ Error::DeviceLost { .. }) => Some(lost),
            _ => of_recorder.told().or_else(|| self.errors.told()),
        }
    }

    /// Keeps the first error of the device.
    pub fn fail(&self, error: Error) {
        self.errors.fail(error);
    }

    /// Forgets a call that the device refused.
    pub fn forgive(&self) {
        self.errors.forgive();
    }

    /// Starts copies that were asked for and frees the memory of those that are done, so that loading a model does not
    /// hold it twice. Never waits.
    pub fn start_copies(&self) {
        self.staged.store(0, Ordering::Relaxed);
        self.queue.submit([]);
        // An error is a lost device, which its callback keeps.
        let _ = self.device.poll(wgpu::PollType::Poll);
    }
}

/// An error that the device tells of.
pub(crate) fn told_by_device(error: wgpu::Error) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory { bytes: 0, in_use: 0 },
        other => Error::Refused { reason: other.to_string() },
    }
}

async fn enumerate() -> Vec<(wgpu::Adapter, AdapterSummary)> {
    let adapters = instance::adapters().await;
    let mut list: Vec<_> = adapters.into_iter().map(|adapter| (summary(&adapter), adapter)).collect();
    // Stable: drivers of one kind stay in their order, which is the system's preference.
    list.sort_by_key(|(summary, _)| summary.device_type);
    list.into_iter().map(|(summary, adapter)| (adapter, summary)).collect()
}

pub(super) fn device_type(of: wgpu::DeviceType) -> DeviceType {
    match of {
        wgpu::DeviceType::DiscreteGpu => DeviceType::Discrete,
        wgpu::DeviceType::IntegratedGpu => DeviceType::Integrated,
        wgpu::DeviceType::VirtualGpu => DeviceType::Virtual,
        wgpu::DeviceType::Cpu => DeviceType::Cpu,
        wgpu::DeviceType::Other => DeviceType::Other,
    }
}

fn summary(adapter: &wgpu::Adapter) -> AdapterSummary {
    let info = adapter.get_info();
    let features = adapter.features();
    let limits = adapter.limits();
    let forward_progress = has_forward_progress(&info);
    let subgroups = (features.contains(wgpu::Features::SUBGROUP) || cfg!(target_arch = "wasm32"))
        .then_some(SubgroupSizes { min: info.subgroup_min_size.max(1), max: info.subgroup_max_size });
    let mut caps = Caps {
        is_software: info.device_type == wgpu::DeviceType::Cpu,
        f16: features.contains(wgpu::Features::SHADER_F16),
        cooperative_matrix: has_cooperative_matrix(adapter),
        subgroups,
        forward_progress,
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
        max_bindings: limits.max_storage_buffers_per_shader_stage,
        max_binding: limits.max_storage_buffer_binding_size,
        max_buffer: limits.max_buffer_size,
        ..Caps::WEBGPU_DEFAULTS
    };
    let identity = Identity { backend: info.backend, vendor: info.vendor, driver: &info.driver, name: &info.name };
    known::add_facts(&identity, &mut caps);
    AdapterSummary {
        name: info.name,
        backend: info.backend.to_string(),
        device_type: device_type(info.device_type),
        memory: memory::total(adapter),
        driver: [info.driver, info.driver_info].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(" "),
        caps,
    }
}

/// Whether workgroups that have started are known to go on while others poll, [`Caps::forward_progress`]: all desktop GPUs give it,
/// but only what was measured is listed.
fn has_forward_progress(info: &wgpu::AdapterInfo) -> bool {
    const AMD: u32 = 0x1002;
    const NVIDIA: u32 = 0x10de;
    info.backend == wgpu::Backend::Vulkan && [AMD, NVIDIA].contains(&info.vendor)
}

/// Whether there are products of 16 x 16 x 16 in f16 with sums in f32, and the workgroup memory that goes with them.
fn has_cooperative_matrix(adapter: &wgpu::Adapter) -> bool {
    use wgpu::CooperativeScalarType as Scalar;
    let is_known = |p: &wgpu::CooperativeMatrixProperties| {
        (p.m_size, p.n_size, p.k_size, p.ab_type, p.cr_type) == (16, 16, 16, Scalar::F16, Scalar::F32)
    };
    adapter.features().contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX)
        && adapter.limits().max_compute_workgroup_storage_size >= COOPERATIVE_BYTES
        && adapter.cooperative_matrix_properties().iter().any(is_known)
}

/// WebGPU's defaults, with the adapter's real buffer sizes and uniform alignment, and as many storage buffers as any kernel
/// takes, unless those are unwanted. No kernel needs more than the defaults in anything else.
fn required_limits(adapter: &wgpu::Limits, default_limits: bool) -> wgpu::Limits {
    let defaults = wgpu::Limits::default();
    if default_limits {
        return defaults;
    }
    wgpu::Limits {
        max_buffer_size: adapter.max_buffer_size,
        max_storage_buffer_binding_size: adapter.max_storage_buffer_binding_size,
        min_uniform_buffer_offset_alignment: adapter.min_uniform_buffer_offset_alignment,
        max_storage_buffers_per_shader_stage: adapter.max_storage_buffers_per_shader_stage.min(MAX_BINDINGS as u32),
        ..defaults
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::gpu::{block_on, for_test};

    /// Opens the first device as if its driver reported subgroups from half of their size on, of which it is known to take so many.
    fn open_with_usual_lanes(gpu: &Gpu, lanes: u32) -> Gpu {
        let (adapter, options) = &gpu.shared.opened;
        let mut summary = summary(adapter);
        summary.caps.subgroups = summary.caps.subgroups.map(SubgroupSizes::halved);
        summary.caps.usual_lanes = Some(lanes);
        block_on(Gpu::open_adapter(adapter, summary, *options)).unwrap()
    }

    #[test]
    fn the_usual_size_of_subgroups_counts_where_the_device_confirms_it() {
        let Some(gpu) = for_test(OpenOptions::default()) else { return };
        let Some(lanes) = gpu.caps().subgroups.and_then(SubgroupSizes::fixed) else { return };
        let reported = SubgroupSizes { min: lanes, max: lanes }.halved();
        let confirmed = open_with_usual_lanes(&gpu, lanes);
        assert_eq!(confirmed.caps().subgroups, gpu.caps().subgroups);
        // What it is not is not believed.
        for wrong in [lanes / 2, 2 * lanes] {
            assert_eq!(open_with_usual_lanes(&gpu, wrong).caps().subgroups, Some(reported), "{wrong}");
        }
    }
}
