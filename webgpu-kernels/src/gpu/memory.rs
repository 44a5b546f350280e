//! Total and free memory of a device, from Vulkan's heaps. Through `wgpu`, browsers, Metal and DirectX 12 report nothing.

#![cfg_attr(
    any(target_arch = "wasm32", target_vendor = "apple"),
    allow(dead_code, reason = "only Vulkan reports heaps")
)]

use super::adapter::DeviceType;

/// One of a device's heaps, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heap {
    size: u64,
    /// True for the device's own memory, false for the processor's.
    is_own: bool,
    /// Bytes that this program may still allocate, if the driver reports them: budget minus usage of VK_EXT_memory_budget.
    free: Option<u64>,
}

/// The processor's memory, in bytes, if the system reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct SystemMemory {
    total: Option<u64>,
    available: Option<u64>,
}

/// Bytes that a device of this kind may use in total.
fn total_of(kind: DeviceType, heaps: &[Heap], system: SystemMemory) -> Option<u64> {
    let all = sum_of(kind, heaps, |heap| Some(heap.size))?;
    Some(bounded(kind, heaps, all, system.total.map(|total| total / 4 * 3)))
}

/// Free bytes, if the driver reports them.
fn free_of(kind: DeviceType, heaps: &[Heap], system: SystemMemory) -> Option<u64> {
    let all = sum_of(kind, heaps, |heap| heap.free)?;
    Some(bounded(kind, heaps, all, system.available))
}

/// Adds up heaps. An integrated GPU uses all of them. Another GPU uses the largest of its own heaps; the other ones are windows for the
/// processor.
fn sum_of(kind: DeviceType, heaps: &[Heap], bytes: impl Fn(&Heap) -> Option<u64>) -> Option<u64> {
    if kind == DeviceType::Integrated {
        return heaps
            .iter()
            .map(bytes)
            .try_fold(0, |sum: u64, bytes| Some(sum.saturating_add(bytes?)))
            .filter(|_| !heaps.is_empty());
    }
    bytes(heaps.iter().filter(|heap| heap.is_own).max_by_key(|heap| heap.size)?)
}

/// Bounds memory that is the processor's by the processor's. If an integrated GPU has a small heap of its own beside a larger shared one,
/// the processor does not count the small one.
fn bounded(kind: DeviceType, heaps: &[Heap], bytes: u64, of_processor: Option<u64>) -> u64 {
    let size = |is_own: bool| heaps.iter().filter(|heap| heap.is_own == is_own).map(|heap| heap.size).sum::<u64>();
    let carved_out = if size(true) < size(false) { size(true) } else { 0 };
    match (kind, of_processor) {
        (DeviceType::Integrated, Some(most)) => bytes.min(most.saturating_add(carved_out)),
        (DeviceType::Cpu, Some(most)) => bytes.min(most),
        _ => bytes,
    }
}

#[cfg(not(any(target_arch = "wasm32", target_vendor = "apple")))]
mod vulkan {
    use ash::{ext::memory_budget, vk};

    use super::{DeviceType, Heap};

    /// The heaps of a Vulkan adapter, with free memory only if `with_free`: the query crashes RADV's null device, which compiles for absent
    /// GPUs.
    pub fn heaps(adapter: &wgpu::Adapter, with_free: bool) -> Option<Vec<Heap>> {
        // SAFETY: the adapter is only queried, neither kept nor destroyed.
        let vulkan = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
        let (shared, device) = (vulkan.shared_instance(), vulkan.raw_physical_device());
        let instance = shared.raw_instance();
        // SAFETY: the physical device is this instance's, here and below.
        let properties = unsafe { instance.get_physical_device_properties(device) };
        // SAFETY: as above.
        let extensions = unsafe { instance.enumerate_device_extension_properties(device) }.unwrap_or_default();
        let has_budget =
            with_free && extensions.iter().any(|of| of.extension_name_as_c_str() == Ok(memory_budget::NAME));
        // The query with a chained struct needs Vulkan 1.1 in the loader and in the driver.
        let is_chained = shared.instance_api_version().min(properties.api_version) >= vk::API_VERSION_1_1;
        let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
        let memory = if has_budget && is_chained {
            let mut chained = vk::PhysicalDeviceMemoryProperties2::default().push_next(&mut budget);
            // SAFETY: as above. The driver has the extension of the chained struct.
            unsafe { instance.get_physical_device_memory_properties2(device, &mut chained) };
            chained.memory_properties
        } else {
            // SAFETY: as above.
            unsafe { instance.get_physical_device_memory_properties(device) }
        };
        let free = |i: usize| budget.heap_budget[i].saturating_sub(budget.heap_usage[i]);
        let heap = |(i, heap): (usize, &vk::MemoryHeap)| Heap {
            size: heap.size,
            is_own: heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL),
            // A reported budget is never zero.
            free: (budget.heap_budget[i] > 0).then(|| free(i)),
        };
        Some(memory.memory_heaps_as_slice().iter().enumerate().map(heap).collect())
    }

    pub fn kind(adapter: &wgpu::Adapter) -> DeviceType {
        super::super::adapter::device_type(adapter.get_info().device_type)
    }
}

#[cfg(not(any(target_arch = "wasm32", target_vendor = "apple")))]
pub(super) fn total(adapter: &wgpu::Adapter) -> Option<u64> {
    total_of(vulkan::kind(adapter), &vulkan::heaps(adapter, false)?, system_memory())
}

#[cfg(not(any(target_arch = "wasm32", target_vendor = "apple")))]
pub(super) fn free(adapter: &wgpu::Adapter) -> Option<u64> {
    free_of(vulkan::kind(adapter), &vulkan::heaps(adapter, true)?, system_memory())
}

#[cfg(any(target_arch = "wasm32", target_vendor = "apple"))]
pub(super) fn total(_: &wgpu::Adapter) -> Option<u64> {
    None
}

#[cfg(all(target_vendor = "apple", not(target_arch = "wasm32")))]
pub(super) fn free(_: &wgpu::Adapter) -> Option<u64> {
    None
}

/// The processor's memory, as Linux reports it.
#[cfg(not(any(target_arch = "wasm32", target_vendor = "apple")))]
fn system_memory() -> SystemMemory {
    let text = if cfg!(target_os = "linux") { std::fs::read_to_string("/proc/meminfo") } else { Ok(String::new()) };
    text.map(|text| read_meminfo(&text)).unwrap_or_default()
}

/// Parses `/proc/meminfo`: a name and a number of KiB in each line.
fn read_meminfo(text: &str) -> SystemMemory {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
    };
    SystemMemory { total: bytes("MemTotal"), available: bytes("MemAvailable") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn system(total: u64, available: u64) -> SystemMemory {
        SystemMemory { total: Some(total), available: Some(available) }
    }

    #[test]
    fn a_discrete_gpu_uses_its_largest_own_heap() {
        // 40 % are in use. The processor's memory and the window into the device's memory do not count.
        let heaps = [
            Heap { size: 8 * GIB, is_own: true, free: Some(8 * GIB / 10 * 6) },
            Heap { size: 32 * GIB, is_own: false, free: Some(30 * GIB) },
            Heap { size: 256 * MIB, is_own: true, free: Some(200 * MIB) },
        ];
        let of =
            |f: fn(DeviceType, &[Heap], SystemMemory) -> Option<u64>, system| f(DeviceType::Discrete, &heaps, system);
        assert_eq!(of(total_of, system(4 * GIB, GIB)), Some(8 * GIB));
        assert_eq!(of(free_of, system(4 * GIB, GIB)), Some(8 * GIB / 10 * 6));
        // Without the extension, free memory is unknown.
        let silent = heaps.map(|heap| Heap { free: None, ..heap });
        assert_eq!(total_of(DeviceType::Discrete, &silent, SystemMemory::default()), Some(8 * GIB));
        assert_eq!(free_of(DeviceType::Discrete, &silent, SystemMemory::default()), None);
    }

    #[test]
    fn an_integrated_gpu_shares_the_processors_memory() {
        let heaps = [
            Heap { size: 512 * MIB, is_own: true, free: Some(400 * MIB) },
            Heap { size: 12 * GIB, is_own: false, free: Some(11 * GIB) },
        ];
        let kind = DeviceType::Integrated;
        assert_eq!(total_of(kind, &heaps, SystemMemory::default()), Some(12 * GIB + 512 * MIB));
        assert_eq!(total_of(kind, &heaps, system(24 * GIB, 20 * GIB)), Some(12 * GIB + 512 * MIB));
        assert_eq!(total_of(kind, &heaps, system(12 * GIB, 20 * GIB)), Some(9 * GIB + 512 * MIB));
        assert_eq!(free_of(kind, &heaps, system(24 * GIB, 20 * GIB)), Some(11 * GIB + 400 * MIB));
        // Programs that do not use the GPU also take shared memory.
        assert_eq!(free_of(kind, &heaps, system(24 * GIB, 3 * GIB)), Some(3 * GIB + 512 * MIB));
        // Intel's driver reports one heap, as the device's own.
        let one = [Heap { size: 12 * GIB, is_own: true, free: Some(10 * GIB) }];
        assert_eq!(free_of(kind, &one, system(16 * GIB, 3 * GIB)), Some(3 * GIB));
        assert_eq!(total_of(kind, &one, system(16 * GIB, 3 * GIB)), Some(12 * GIB));
    }

    #[test]
    fn a_software_device_uses_the_processors_memory() {
        let heaps = [Heap { size: 8 * GIB, is_own: true, free: None }];
        assert_eq!(total_of(DeviceType::Cpu, &heaps, system(8 * GIB, 2 * GIB)), Some(6 * GIB));
        assert_eq!(free_of(DeviceType::Cpu, &heaps, system(8 * GIB, 2 * GIB)), None);
        let told = [Heap { free: Some(7 * GIB), ..heaps[0] }];
        assert_eq!(free_of(DeviceType::Cpu, &told, system(8 * GIB, 2 * GIB)), Some(2 * GIB));
        assert_eq!(total_of(DeviceType::Cpu, &[], SystemMemory::default()), None);
        assert_eq!(total_of(DeviceType::Integrated, &[], SystemMemory::default()), None);
    }

    #[test]
    fn meminfo_is_parsed() {
        let text = "MemTotal:       16308940 kB\nMemFree:          222 kB\nMemAvailable:   12000000 kB\n";
        assert_eq!(read_meminfo(text), system(16_308_940 << 10, 12_000_000 << 10));
        assert_eq!(read_meminfo("MemTotal: many\n"), SystemMemory::default());
    }
}
