//! The adapters of this machine, of every backend that `wgpu` has for it.

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

/// A browser shows one adapter, and a laptop's is the saving one unless it is asked otherwise.
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

/// Vulkan without the extensions for windows: with Wayland's, Mesa looks for a display when the instance is made, and writes to
/// stderr where there is none.
#[cfg(not(any(target_arch = "wasm32", target_vendor = "apple")))]
fn vulkan() -> Option<wgpu::Instance> {
    use wgpu::hal;
    // What every device extension for windows asks for; it belongs to no window system.
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
    // SAFETY: nothing is added that the driver may lack. What is left out is asked for by functions that make a surface alone, and
    // those look for it first; no surface is ever made here.
    let instance = unsafe { hal::vulkan::Instance::init_with_callback(&description, Some(Box::new(without_windows))) };
    // SAFETY: the instance was just made, and belongs to nobody else.
    instance.ok().map(|instance| unsafe { wgpu::Instance::from_hal::<hal::api::Vulkan>(instance) })
}
