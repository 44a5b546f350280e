//! Pipelines by kernel and variant, bind groups by layout and buffers: each made once.

use std::{collections::HashMap, num::NonZeroU64, sync::Arc};

use super::device::{Gpu, Shared, lock};
use crate::{Kernel, Variant, kernel::Access};

/// Most storage buffers of a kernel: WebGPU's default limit.
pub(crate) const MAX_BINDINGS: usize = 8;

#[derive(Default)]
pub(crate) struct Pipelines {
    layouts: HashMap<&'static str, Arc<Layout>>,
    pipelines: HashMap<&'static str, HashMap<Variant, Arc<Pipeline>>>,
    bind_groups: HashMap<BindGroupKey, wgpu::BindGroup>,
}

/// What all variants of a kernel share.
pub(crate) struct Layout {
    id: u64,
    bind_group: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
    params_size: u64,
}

pub(crate) struct Pipeline {
    pub layout: Arc<Layout>,
    pub pipeline: wgpu::ComputePipeline,
}

/// Layout, then id and offset of each buffer.
#[derive(PartialEq, Eq, Hash)]
struct BindGroupKey {
    layout: u64,
    buffers: [(u64, u64); MAX_BINDINGS],
}

impl Gpu {
    /// Compiles a kernel in a variant ahead of its first use. Several threads may do so at a time.
    pub fn compile(&self, kernel: &'static Kernel, variant: &Variant) {
        self.shared.pipeline(kernel, &self.allowed(kernel.name, variant));
    }
}

impl Shared {
    /// The pipeline of a kernel in a variant, compiled at its first use.
    pub fn pipeline(&self, kernel: &'static Kernel, variant: &Variant) -> Arc<Pipeline> {
        let layout = {
            let mut pipelines = lock(&self.pipelines);
            if let Some(found) = pipelines.pipelines.get(kernel.name).and_then(|variants| variants.get(variant)) {
                return found.clone();
            }
            pipelines.layouts.entry(kernel.name).or_insert_with(|| Arc::new(self.create_layout(kernel))).clone()
        };
        // Nothing is locked meanwhile: several threads may compile, each a variant of its own.
        let is_browser = cfg!(target_arch = "wasm32");
        let source = if is_browser { kernel.browser_source(variant) } else { kernel.source(variant) };
        let description =
            wgpu::ShaderModuleDescriptor { label: Some(kernel.name), source: wgpu::ShaderSource::Wgsl(source.into()) };
        // The counter that ends any loop keeps drivers from unrolling it: attention takes half as long again. A software
        // driver would unroll for seconds.
        let force_loop_bounding = self.summary.caps.is_software;
        let checks = wgpu::ShaderRuntimeChecks { force_loop_bounding, ..wgpu::ShaderRuntimeChecks::checked() };
        // SAFETY: every loop of our kernels, whose text is part of this program, counts up to a bound or halves down to
        // zero. All other checks stay.
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
            cache: None,
        });
        let made = Arc::new(Pipeline { layout, pipeline });
        let mut pipelines = lock(&self.pipelines);
        let variants = pipelines.pipelines.entry(kernel.name).or_default();
        variants.entry(variant.clone()).or_insert(made).clone()
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

    /// The bind group of these buffers, each given as id, first byte and memory. A buffer is bound to its end.
    pub fn bind_group(&self, layout: &Layout, buffers: &[(u64, u64, &wgpu::Buffer)]) -> wgpu::BindGroup {
        let mut key = BindGroupKey { layout: layout.id, buffers: [(0, 0); MAX_BINDINGS] };
        for (slot, (id, offset, _)) in key.buffers.iter_mut().zip(buffers) {
            *slot = (*id, *offset);
        }
        let mut pipelines = lock(&self.pipelines);
        if let Some(found) = pipelines.bind_groups.get(&key) {
            return found.clone();
        }
        let params =
            wgpu::BufferBinding { buffer: &self.uniforms, offset: 0, size: NonZeroU64::new(layout.params_size) };
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

    /// Lets go of bind groups whose buffers are gone: they would keep the memory.
    pub fn forget_dead(&self) {
        let dead = std::mem::take(&mut *lock(&self.dead));
        if !dead.is_empty() {
            let dead: std::collections::HashSet<u64> = dead.into_iter().collect();
            lock(&self.pipelines).bind_groups.retain(|key, _| !key.buffers.iter().any(|(id, _)| dead.contains(id)));
        }
    }

    /// Bind groups made so far and still kept.
    pub fn bind_group_count(&self) -> usize {
        lock(&self.pipelines).bind_groups.len()
    }
}
