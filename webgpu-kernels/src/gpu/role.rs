//! [`Gpu::in_role`]: stands in for a device that may be absent.

use super::{
    adapter::{AdapterSummary, OpenOptions},
    device::Gpu,
};
use crate::{Error, Result};

impl Gpu {
    /// Opens a device with the name and the capabilities of `role`. It runs nothing. Use it to list the kernels, variants and presets of a
    /// device. Its buffers lie in the processor's memory.
    ///
    /// Errors: [`Error::OpenDevice`] if no device can be opened with the capabilities of the role.
    pub async fn in_role(role: AdapterSummary, options: OpenOptions) -> Result<Gpu> {
        let limits = wgpu::Limits {
            max_storage_buffers_per_shader_stage: role.caps.max_bindings,
            max_storage_buffer_binding_size: role.caps.max_binding,
            max_buffer_size: role.caps.max_buffer,
            max_compute_workgroup_storage_size: 64 << 10,
            ..wgpu::Limits::default()
        };
        let noop = wgpu::NoopBackendOptions { enable: true, limits: Some(limits), ..Default::default() };
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: wgpu::Backends::NOOP,
            backend_options: wgpu::BackendOptions { noop, ..Default::default() },
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await;
        let refused =
            |e: wgpu::RequestAdapterError| Error::OpenDevice { adapter: role.name.clone(), reason: e.to_string() };
        Gpu::open_adapter(&adapter.map_err(refused)?, role, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Caps, DeviceType, Recorder, SubgroupSizes, block_on};

    #[test]
    fn a_role_keeps_its_name_and_capabilities() {
        let caps = Caps {
            f16: true,
            cooperative_matrix: true,
            subgroups: Some(SubgroupSizes { min: 64, max: 64 }),
            max_bindings: 16,
            max_binding: 1 << 30,
            max_buffer: 2 << 30,
            ..Caps::WEBGPU_DEFAULTS
        };
        let role = AdapterSummary {
            name: "AMD Radeon 780M".into(),
            backend: "vulkan".into(),
            device_type: DeviceType::Integrated,
            driver: "radv".into(),
            memory: None,
            caps,
        };
        let gpu = block_on(Gpu::in_role(role.clone(), OpenOptions::default())).unwrap();
        assert_eq!(*gpu.summary(), role);
        let mut recorder = Recorder::planning(&gpu);
        let buffer = recorder.temporary::<f32>(1 << 40);
        assert_eq!((buffer.len(), recorder.take_trace().len()), (1 << 40, 0));
    }
}
