//! The adapters of this machine, of all its `wgpu` backends.

/// Every adapter.
#[cfg(not(target_arch = "wasm32"))]
pub(super) async fn adapters() -> Vec<wgpu::Adapter> {
    let mut adapters = Vec::new();
    #[cfg(not(target_vendor = "apple"))]
    if let Some(vulkan) = vulkan() {
        adapters.extend(vulkan.enumerate_adapters(wgpu::Backends::VULKAN).await);
    }
    if cfg!(any(windows, target_vendor = "apple")) {
        let backends = wgpu::Backends::PRIMARY.difference(wgpu::Backends::VULKAN);
        let description = wgpu::InstanceDescriptor { backends, ..description() };
        adapters.extend(wgpu::Instance::new(description).enumerate_adapters(backends).await);
    }
    adapters
}

/// A browser shows one adapter. On a laptop that is the power-saving one by default.
#[cfg(target_arch = "wasm32")]
pub(super) async fn adapters() -> Vec<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor { backends: wgpu::Backends::PRIMARY, ..description() });
    let power_preference = wgpu::PowerPreference::HighPerformance;
    let wanted = wgpu::RequestAdapterOptions { power_preference, ..Default::default() };
    instance.request_adapter(&wanted).await.into_iter().collect()
}

fn description() -> wgpu::InstanceDescriptor {
    wgpu::InstanceDescriptor::new_without_display_handle()
}

/// Vulkan without the extensions of window systems. With Wayland's, Mesa looks for a display when the instance is created, and prints to
/// stderr if it finds none.
#[cfg(not(any(target_arch = "wasm32", target_vendor = "apple")))]
fn vulkan() -> Option<wgpu::Instance> {
    use wgpu::hal;
    // The device extensions of windows require it. It belongs to no window system.
    const KEPT: &[u8] = b"VK_KHR_surface";
    let wgpu::InstanceDescriptor { flags, memory_budget_thresholds, backend_options, .. } = description();
    let description = hal::InstanceDescriptor {
        name: "wgpu",
        flags,
        memory_budget_thresholds,
        backend_options,
        telemetry: None,
        display: None,
    };
    let without_windows = |arguments: hal::vulkan::CreateInstanceCallbackArgs<'_, '_, '_>| {
        let is_of_windows = |name: &[u8]| name != KEPT && (name.ends_with(b"_surface") || name.ends_with(b"_display"));
        arguments.extensions.retain(|name| !is_of_windows(name.to_bytes()));
    };
    // SAFETY: no extension is added that the driver may lack. Only functions that create a surface need the removed extensions, and they
    // check for them first. No surface is created here.
    let instance = unsafe { hal::vulkan::Instance::init_with_callback(&description, Some(Box::new(without_windows))) };
    // SAFETY: the instance is new and has no other owner.
    instance.ok().map(|instance| unsafe { wgpu::Instance::from_hal::<hal::api::Vulkan>(instance) })
}
