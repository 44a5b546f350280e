//! Lists adapters and opens devices: [`Gpu::adapters`], [`Gpu::open`].

use std::sync::{Arc, Mutex, atomic::AtomicU64};

#[cfg(not(target_arch = "wasm32"))]
use super::lock::lock;
use super::{
    adapter::{AdapterSummary, Caps, OpenOptions, Selection, SubgroupSizes, device_type},
    device::{Gpu, Shared},
    errors::{Errors, told_by_device},
    instance,
    known::{self, Identity},
    memory,
    pace::Pace,
    pipeline_cache::MAX_BINDINGS,
    probe,
};
use crate::{Error, Result, tuning::Table};

/// Most workgroup memory of kernels with cooperative matrices: three times WebGPU's default limit.
pub(crate) const COOPERATIVE_BYTES: u32 = 48 << 10;

impl Gpu {
    /// All devices: discrete GPUs first, then integrated ones, software last.
    pub async fn adapters() -> Vec<AdapterSummary> {
        enumerate().await.into_iter().map(|(_, summary)| summary).collect()
    }

    /// Opens a device.
    ///
    /// Errors: there is no adapter, none matches, or it does not open.
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
        // wgpu cannot request subgroups from a browser. There the caller requests them.
        if summary.caps.subgroups.is_some() && !cfg!(target_arch = "wasm32") {
            features |= wgpu::Features::SUBGROUP;
        }
        summary.caps.is_software &= options.software_kernels;
        summary.caps.cooperative_matrix &= options.cooperative_matrix && summary.caps.f16 && !options.default_limits;
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if summary.caps.cooperative_matrix {
            features |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            // SAFETY: callers of wgpu must accept that this feature's validation has gaps. Only kernels of this crate use it, and
            // they are tested on such devices.
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

        // Natively, scopes attribute errors to recorders. A browser reports errors late, so the next read returns them.
        let errors = Errors::default();
        let first = errors.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| first.fail(told_by_device(error))));
        let first = errors.clone();
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                // An earlier error that led to the loss tells more.
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

    /// Sets the only size of subgroups to [`Caps::usual_lanes`], if a probe of the device confirms it.
    async fn with_usual_lanes(mut self) -> Gpu {
        let caps = *self.caps();
        let (Some(lanes), true) = (caps.usual_lanes, caps.confirmed() != caps) else { return self };
        match probe::has_lanes(&self, lanes).await {
            Ok(true) => {
                let shared = Arc::get_mut(&mut self.shared).expect("the device is not shared yet");
                shared.summary.caps = caps.confirmed();
                shared.tuning = Mutex::new(Table::new(&shared.summary));
            }
            Ok(false) => {}
            // The next read reports a lost device. If the device rejects the probe, the size stays unknown.
            Err(_) => self.shared.forgive(),
        }
        self
    }

    /// Opens another device of the same adapter with the same options, switches and choices.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) async fn another(&self) -> Result<Gpu> {
        let (adapter, options) = &self.shared.opened;
        let gpu = Gpu::open_adapter(adapter, summary(adapter), *options).await?;
        *lock(&gpu.shared.switched_off) = self.switched_off();
        *gpu.tuning() = self.tuning().clone();
        Ok(gpu)
    }
}

async fn enumerate() -> Vec<(wgpu::Adapter, AdapterSummary)> {
    let adapters = instance::adapters().await;
    let mut list: Vec<_> = adapters.into_iter().map(|adapter| (summary(&adapter), adapter)).collect();
    // A stable sort keeps the system's order of devices of one kind.
    list.sort_by_key(|(summary, _)| summary.device_type);
    list.into_iter().map(|(summary, adapter)| (adapter, summary)).collect()
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

/// True if workgroups that have started go on while others poll: [`Caps::forward_progress`]. All desktop GPUs do, but only measured vendors
/// are listed.
fn has_forward_progress(info: &wgpu::AdapterInfo) -> bool {
    const AMD: u32 = 0x1002;
    const NVIDIA: u32 = 0x10de;
    info.backend == wgpu::Backend::Vulkan && [AMD, NVIDIA].contains(&info.vendor)
}

/// True if the adapter has products of 16 x 16 x 16 in f16 with sums in f32, and enough workgroup memory for them.
fn has_cooperative_matrix(adapter: &wgpu::Adapter) -> bool {
    use wgpu::CooperativeScalarType as Scalar;
    let is_known = |p: &wgpu::CooperativeMatrixProperties| {
        (p.m_size, p.n_size, p.k_size, p.ab_type, p.cr_type) == (16, 16, 16, Scalar::F16, Scalar::F32)
    };
    adapter.features().contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX)
        && adapter.limits().max_compute_workgroup_storage_size >= COOPERATIVE_BYTES
        && adapter.cooperative_matrix_properties().iter().any(is_known)
}

/// WebGPU's default limits. Without `default_limits`, with the adapter's buffer sizes, uniform alignment, and storage buffers up to
/// [`MAX_BINDINGS`]. Kernels need only defaults otherwise.
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

    /// Opens the first device as if its driver reported a range of subgroup sizes, with `lanes` as the usual size.
    fn open_with_usual_lanes(gpu: &Gpu, lanes: u32) -> Gpu {
        let (adapter, options) = &gpu.shared.opened;
        let mut summary = summary(adapter);
        summary.caps.subgroups = summary.caps.subgroups.map(SubgroupSizes::halved);
        summary.caps.usual_lanes = Some(lanes);
        block_on(Gpu::open_adapter(adapter, summary, *options)).unwrap()
    }

    #[test]
    fn the_usual_size_of_subgroups_needs_confirmation_by_the_device() {
        let Some(gpu) = for_test(OpenOptions::default()) else { return };
        let Some(lanes) = gpu.caps().subgroups.and_then(SubgroupSizes::fixed) else { return };
        let reported = SubgroupSizes { min: lanes, max: lanes }.halved();
        let confirmed = open_with_usual_lanes(&gpu, lanes);
        assert_eq!(confirmed.caps().subgroups, gpu.caps().subgroups);
        // The device does not confirm a wrong size.
        for wrong in [lanes / 2, 2 * lanes] {
            assert_eq!(open_with_usual_lanes(&gpu, wrong).caps().subgroups, Some(reported), "{wrong}");
        }
    }
}
