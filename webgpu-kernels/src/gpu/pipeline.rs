//! Caches of pipelines, by kernel and variant, and of bind groups, by layout and buffers.
//!
//! [`Gpu::prepare`] compiles pipelines ahead on the caller's threads. [`Gpu::pipeline_data`] is the driver's pipeline cache, which the next
//! process can load.

use std::{collections::HashMap, num::NonZeroU64, sync::Arc};

#[cfg(not(target_arch = "wasm32"))]
use super::errors::ready;
#[cfg(target_arch = "wasm32")]
use super::pipeline_cache::Gather;
use super::{
    device::{Gpu, Shared},
    lock::lock,
    pipeline_cache::{BindGroupKey, Layout, MAX_BINDINGS, Pipeline, Place, Spawn},
};
use crate::{Kernel, Variant, kernel::Access};

impl Shared {
    /// The pipeline of a kernel's variant. It is compiled at its first use. A rejected one has the reason.
    pub fn pipeline(&self, kernel: &'static Kernel, variant: &Variant) -> Arc<Pipeline> {
        let place = self.place(kernel, variant);
        place.get_or_init(|| Arc::new(self.create_pipeline(kernel, variant))).clone()
    }

    fn place(&self, kernel: &'static Kernel, variant: &Variant) -> Place {
        let mut pipelines = lock(&self.pipelines);
        let variants = pipelines.pipelines.entry(kernel.name).or_default();
        match variants.get(variant) {
            Some(place) => place.clone(),
            None => variants.entry(variant.clone()).or_default().clone(),
        }
    }

    /// Compiles a pipeline. On any thread, a rejection is kept until the pipeline is used.
    fn create_pipeline(&self, kernel: &'static Kernel, variant: &Variant) -> Pipeline {
        let (layout, kept) = {
            let mut pipelines = lock(&self.pipelines);
            let made = || Arc::new(self.create_layout(kernel));
            (pipelines.layouts.entry(kernel.name).or_insert_with(made).clone(), pipelines.kept.clone())
        };
        let is_browser = cfg!(target_arch = "wasm32");
        let source = if is_browser { kernel.browser_source(variant) } else { kernel.source(variant) };
        let description =
            wgpu::ShaderModuleDescriptor { label: Some(kernel.name), source: wgpu::ShaderSource::Wgsl(source.into()) };
        // A bound counter in every loop keeps drivers from unrolling. Attention takes 1.5 times as long with it. A software driver would
        // unroll for seconds.
        let force_loop_bounding = self.summary.caps.is_software;
        // A bound on an index of workgroup memory hides its alignment from the driver, which makes loads of matrices slower.
        let bounds_checks = !variant.has_flag("COOPERATIVE");
        let checks =
            wgpu::ShaderRuntimeChecks { force_loop_bounding, bounds_checks, ..wgpu::ShaderRuntimeChecks::checked() };
        #[cfg(not(target_arch = "wasm32"))]
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        // SAFETY: the kernels' text is part of this program. Each of their loops counts up to a bound or halves down to zero. Kernels with
        // cooperative matrices index workgroup memory below its size, and drivers check buffers. All other checks stay.
        let module = unsafe { self.device.create_shader_module_trusted(description, checks) };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&layout.pipeline),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Every kernel writes workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: kept.as_ref(),
        });
        #[cfg(not(target_arch = "wasm32"))]
        let refused = ready(scope.pop()).flatten().map(|error| error.to_string());
        // A browser reports errors later, and the next read returns them.
        #[cfg(target_arch = "wasm32")]
        let refused = None;
        Pipeline { layout, pipeline, refused }
    }

    fn create_layout(&self, kernel: &Kernel) -> Layout {
        let entry = |binding: usize, ty, has_dynamic_offset, min_binding_size| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size },
            count: None,
        };
        let params_size = kernel.params.size as u64;
        let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform, true, NonZeroU64::new(params_size))];
        for (i, access) in kernel.bindings.iter().enumerate() {
            let ty = wgpu::BufferBindingType::Storage { read_only: *access == Access::Read };
            entries.push(entry(i + 1, ty, false, None));
        }
        let bind_group = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(kernel.name), entries: &entries });
        let pipeline = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.name),
            bind_group_layouts: &[Some(&bind_group)],
            immediate_size: 0,
        });
        Layout { id: self.next_id(), bind_group, pipeline, params_size }
    }

    /// The bind group of a recorder's parameters and `buffers`: id, first byte and memory of each. A buffer is bound to its end.
    pub fn bind_group(
        &self,
        layout: &Layout,
        uniforms: (u64, &wgpu::Buffer),
        buffers: &[(u64, u64, &wgpu::Buffer)],
    ) -> wgpu::BindGroup {
        let mut key = BindGroupKey { layout: layout.id, uniforms: uniforms.0, buffers: [(0, 0); MAX_BINDINGS] };
        for (slot, (id, offset, _)) in key.buffers.iter_mut().zip(buffers) {
            *slot = (*id, *offset);
        }
        let mut pipelines = lock(&self.pipelines);
        if let Some(found) = pipelines.bind_groups.get(&key) {
            return found.clone();
        }
        let params = wgpu::BufferBinding { buffer: uniforms.1, offset: 0, size: NonZeroU64::new(layout.params_size) };
        let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(params) }];
        for (i, (_, offset, buffer)) in buffers.iter().enumerate() {
            let binding = wgpu::BufferBinding { buffer, offset: *offset, size: None };
            entries
                .push(wgpu::BindGroupEntry { binding: i as u32 + 1, resource: wgpu::BindingResource::Buffer(binding) });
        }
        let made = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &layout.bind_group,
            entries: &entries,
        });
        pipelines.bind_groups.insert(key, made.clone());
        made
    }

    /// Frees bind groups of freed buffers: they would keep the memory.
    pub fn forget_dead(&self) {
        let dead = std::mem::take(&mut *lock(&self.dead));
        if !dead.is_empty() {
            let dead: std::collections::HashSet<u64> = dead.into_iter().collect();
            let is_dead = |key: &BindGroupKey| {
                dead.contains(&key.uniforms) || key.buffers.iter().any(|(id, _)| dead.contains(id))
            };
            lock(&self.pipelines).bind_groups.retain(|key, _| !is_dead(key));
        }
    }

    /// Number of cached bind groups.
    pub fn bind_group_count(&self) -> usize {
        lock(&self.pipelines).bind_groups.len()
    }
}

impl Gpu {
    /// Gives [`Gpu::prepare`] threads of the caller for compilation, in addition to the thread that needs the pipelines.
    pub fn compile_on(&self, spawn: Spawn, threads: usize) {
        lock(&self.shared.pipelines).helpers = Some((spawn, threads));
    }

    /// The caller's threads and their number.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn helpers(&self) -> Option<(Spawn, usize)> {
        lock(&self.shared.pipelines).helpers
    }

    /// The variants of `wanted` that are not compiled yet, without duplicates and without switched-off flags.
    fn not_made(
        &self,
        wanted: impl IntoIterator<Item = (&'static Kernel, Variant)>,
    ) -> Vec<(&'static Kernel, Variant)> {
        let mut left: Vec<(&'static Kernel, Variant)> = Vec::new();
        for (kernel, variant) in wanted {
            let variant = self.allowed(kernel.name, &variant).into_owned();
            let is_new = self.shared.place(kernel, &variant).get().is_none();
            if is_new && !left.iter().any(|(other, of)| other.name == kernel.name && *of == variant) {
                left.push((kernel, variant));
            }
        }
        left
    }

    /// Starts to compile pipelines ahead, if there are threads. Does not wait.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn prepare(&self, wanted: impl IntoIterator<Item = (&'static Kernel, Variant)>) {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let Some((spawn, threads)) = lock(&self.shared.pipelines).helpers else { return };
        let left = self.not_made(wanted);
        let (left, next) = (Arc::new(left), Arc::new(AtomicUsize::new(0)));
        for _ in 0..threads.min(left.len()) {
            // Do not keep the device alive for pipelines that are no longer needed.
            let (shared, left, next) = (Arc::downgrade(&self.shared), left.clone(), next.clone());
            spawn(Box::new(move || {
                while let Some((kernel, variant)) = left.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let Some(shared) = shared.upgrade() else { return };
                    shared.place(kernel, variant).get_or_init(|| Arc::new(shared.create_pipeline(kernel, variant)));
                }
            }));
        }
    }

    /// Compiles pipelines now, unless they are cached. A rejected one is an error at its use.
    pub fn compile(&self, wanted: &[(&'static Kernel, Variant)]) {
        for (kernel, variant) in wanted {
            self.shared.pipeline(kernel, &self.allowed(kernel.name, variant));
        }
    }

    /// Lets the browser compile the pipelines of [`Gpu::prepare`] at the same time, which wgpu cannot do.
    #[cfg(target_arch = "wasm32")]
    pub fn gather_with(&self, gather: Gather) {
        lock(&self.shared.pipelines).gather = Some(gather);
    }

    /// Starts to compile pipelines ahead. Does not wait.
    #[cfg(target_arch = "wasm32")]
    pub fn prepare(&self, wanted: impl IntoIterator<Item = (&'static Kernel, Variant)>) {
        let Some(gather) = lock(&self.shared.pipelines).gather.clone() else { return };
        let left = self.not_made(wanted);
        let coming = gather(&mut || {
            for (kernel, variant) in &left {
                // The result is not usable yet. Later lookups hit the browser's cache.
                self.shared.create_pipeline(kernel, variant);
            }
        });
        lock(&self.shared.pipelines).coming.push(coming);
    }

    /// Waits until the browser has compiled the pipelines of [`Gpu::prepare`]. With threads, the first use of a pipeline waits instead.
    pub async fn prepared(&self) {
        #[cfg(target_arch = "wasm32")]
        {
            let coming = std::mem::take(&mut lock(&self.shared.pipelines).coming);
            for made in coming {
                made.await;
            }
        }
    }

    /// The key under which to store [`Gpu::pipeline_data`], if the driver has a pipeline cache.
    pub fn pipeline_key(&self) -> Option<&str> {
        self.shared.pipeline_key.as_deref()
    }

    /// Loads the [`Gpu::pipeline_data`] of an earlier process. Call it before the first pipeline. Data of another device or driver is
    /// ignored. The caller must not pass damaged data.
    pub fn keep_pipelines(&self, data: Option<&[u8]>) {
        if self.pipeline_key().is_none() {
            return;
        }
        let description = wgpu::PipelineCacheDescriptor { label: None, data, fallback: true };
        // SAFETY: the data comes from a driver for a device of this key: callers store it under that key with a checksum.
        let kept = unsafe { self.shared.device.create_pipeline_cache(&description) };
        lock(&self.shared.pipelines).kept = Some(kept);
    }

    /// The driver's cache of the pipelines compiled since [`Gpu::keep_pipelines`].
    pub fn pipeline_data(&self) -> Option<Vec<u8>> {
        let kept = lock(&self.shared.pipelines).kept.clone();
        kept.and_then(|kept| kept.get_data())
    }

    /// Number of compiled pipelines.
    pub fn pipeline_count(&self) -> usize {
        let pipelines = lock(&self.shared.pipelines);
        pipelines.pipelines.values().flat_map(HashMap::values).filter(|place| place.get().is_some()).count()
    }
}
