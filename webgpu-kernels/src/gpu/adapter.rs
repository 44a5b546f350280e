//! Devices, their selection and their capabilities: [`AdapterSummary`], [`Selection`], [`Caps`].

use std::fmt;

/// A device that can be opened. `chat-cli devices` lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterSummary {
    /// Name from the driver.
    pub name: String,
    /// `vulkan`, `metal`, `dx12` or `webgpu`.
    pub backend: String,
    /// Kind of device.
    pub device_type: DeviceType,
    /// Driver and version, if known.
    pub driver: String,
    /// Bytes of memory that the device may use, free or not: its own, plus the processor's if it shares that. `None` if the driver does not
    /// report it. See [`crate::Gpu::free_memory`] for free memory.
    pub memory: Option<u64>,
    /// Capabilities.
    pub caps: Caps,
}

/// Kinds of devices, in order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceType {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the processor's memory.
    Integrated,
    /// A GPU behind a virtual machine.
    Virtual,
    /// Unknown.
    Other,
    /// The processor: a software driver.
    Cpu,
}

impl fmt::Display for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeviceType::Discrete => "discrete GPU",
            DeviceType::Integrated => "integrated GPU",
            DeviceType::Virtual => "virtual GPU",
            DeviceType::Other => "unknown device",
            DeviceType::Cpu => "software",
        })
    }
}

/// Capabilities of a device that kernels' variants depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// True for a software device: its loads are expensive and its registers cheap.
    pub is_software: bool,
    /// True if shaders may compute in f16. No kernel needs it to store f16, which it packs in pairs.
    pub f16: bool,
    /// True if subgroups may multiply 16 x 16 matrices in f16 with sums in f32.
    pub cooperative_matrix: bool,
    /// Sizes of subgroups, if shaders may use them.
    pub subgroups: Option<SubgroupSizes>,
    /// Usual size of subgroups, if the driver reports a range but is known to use one size in workgroups that are large enough.
    /// [`crate::Gpu::open`] probes the device. If it confirms the size, `subgroups` has only this size.
    pub usual_lanes: Option<u32>,
    /// True if `dot4I8Packed` compiles.
    pub packed_dot: bool,
    /// 32-bit registers of a lane, if compilers have been seen to spill beyond them.
    pub registers: Option<u32>,
    /// True if the driver compiles `gemv_chain`.
    pub chains: bool,
    /// True if lanes have enough registers for chains in workgroups of at most 128 lanes.
    pub narrow_chains: bool,
    /// True if the driver compiles attention of four heads and eight keys at a time.
    pub wide_teams: bool,
    /// Most storage buffers of a kernel.
    pub max_bindings: u32,
    /// True if a workgroup may wait for others that have started: they go on while it polls, and its loads see their stores. WebGPU
    /// guarantees neither. `device.rs` lists the vendors. Add a vendor after `chat-cli selftest --full` passed and `chat-cli bench` was
    /// faster on its devices: see `benches/README.md`.
    pub forward_progress: bool,
    /// True if the device has timestamps.
    pub timestamps: bool,
    /// Largest binding, in bytes.
    pub max_binding: u64,
    /// Largest buffer, in bytes.
    pub max_buffer: u64,
}

impl Caps {
    /// Capabilities of every WebGPU device.
    pub const WEBGPU_DEFAULTS: Caps = Caps {
        is_software: false,
        f16: false,
        cooperative_matrix: false,
        subgroups: None,
        usual_lanes: None,
        packed_dot: true,
        registers: None,
        chains: true,
        narrow_chains: true,
        wide_teams: true,
        max_bindings: 8,
        forward_progress: false,
        timestamps: false,
        max_binding: 128 << 20,
        max_buffer: 256 << 20,
    };

    /// The capabilities after the device has confirmed [`Caps::usual_lanes`], for planning without the device.
    pub fn confirmed(self) -> Caps {
        let one = |lanes| SubgroupSizes { min: lanes, max: lanes };
        Caps { subgroups: self.subgroups.map(|sizes| self.usual_lanes.map_or(sizes, one)), ..self }
    }
}

/// Smallest and largest number of lanes in a subgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubgroupSizes {
    /// Smallest.
    pub min: u32,
    /// Largest.
    pub max: u32,
}

impl SubgroupSizes {
    /// Half the smallest size, for tests: kernels must be correct if subgroups are larger than their smallest size.
    pub(super) fn halved(self) -> SubgroupSizes {
        SubgroupSizes { min: (self.min / 2).max(1), ..self }
    }

    /// The size of every subgroup, if all have one size. Kernels that only exchange values use the smallest size instead.
    pub fn fixed(self) -> Option<u32> {
        (self.min == self.max).then_some(self.min)
    }
}

/// The device to open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Selection {
    /// The first of [`crate::Gpu::adapters`]: real GPUs before software ones.
    #[default]
    Auto,
    /// By position in [`crate::Gpu::adapters`].
    Index(usize),
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selection::Auto => f.write_str("auto"),
            Selection::Index(index) => write!(f, "{index}"),
        }
    }
}

impl Selection {
    /// The position of the selected adapter among `count` adapters.
    pub(crate) fn choose(&self, count: usize) -> Option<usize> {
        let index = match self {
            Selection::Auto => 0,
            Selection::Index(index) => *index,
        };
        (index < count).then_some(index)
    }
}

/// Options of opening a device. The default uses all its capabilities. Tests use fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOptions {
    /// Use f16 arithmetic if the device has it.
    pub f16: bool,
    /// Use matrix units if the device has them, for the f16 products of prefill.
    pub cooperative_matrix: bool,
    /// Use subgroups if the device has them. In a browser the caller must request them in `requestDevice`.
    pub subgroups: bool,
    /// For tests: treat the device like an Intel GPU. Its subgroups may have half as many lanes, and its lanes have few registers.
    pub narrow: bool,
    /// Use timestamps if the device has them.
    pub timestamps: bool,
    /// Request only WebGPU's default limits.
    pub default_limits: bool,
    /// On a software device, use the kernels for software devices.
    pub software_kernels: bool,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            f16: true,
            cooperative_matrix: true,
            subgroups: true,
            narrow: false,
            timestamps: true,
            default_limits: false,
            software_kernels: true,
        }
    }
}

impl OpenOptions {
    /// The minimum of every WebGPU implementation.
    pub const WEBGPU_DEFAULTS: OpenOptions = OpenOptions {
        f16: false,
        cooperative_matrix: false,
        subgroups: false,
        narrow: false,
        timestamps: false,
        default_limits: true,
        software_kernels: true,
    };

    /// Options of tests, with names: each makes a device behave like another kind of device.
    pub const PROFILES: [(&str, OpenOptions); 5] = {
        let everything = OpenOptions {
            f16: true,
            cooperative_matrix: true,
            subgroups: true,
            narrow: false,
            timestamps: true,
            default_limits: false,
            software_kernels: true,
        };
        let no_software = OpenOptions { software_kernels: false, cooperative_matrix: false, ..everything };
        [
            ("everything", everything),
            ("no software device", no_software),
            ("f16 without subgroups", OpenOptions { subgroups: false, ..everything }),
            ("WebGPU's defaults", OpenOptions::WEBGPU_DEFAULTS),
            ("subgroups of several sizes, and few registers", OpenOptions { narrow: true, ..no_software }),
        ]
    };
}

/// Converts a device type of wgpu.
pub(super) fn device_type(of: wgpu::DeviceType) -> DeviceType {
    match of {
        wgpu::DeviceType::DiscreteGpu => DeviceType::Discrete,
        wgpu::DeviceType::IntegratedGpu => DeviceType::Integrated,
        wgpu::DeviceType::VirtualGpu => DeviceType::Virtual,
        wgpu::DeviceType::Cpu => DeviceType::Cpu,
        wgpu::DeviceType::Other => DeviceType::Other,
    }
}
