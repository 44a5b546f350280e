//! Which devices there are and what they can do: [`AdapterSummary`], [`Selection`], [`Caps`].

use std::fmt;

/// A device that can be opened, as `chat-cli devices` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterSummary {
    /// The name its driver gives it.
    pub name: String,
    /// `vulkan`, `metal`, `dx12` or `webgpu`.
    pub backend: String,
    /// What kind of device it is.
    pub device_type: DeviceType,
    /// Driver and version, as far as known.
    pub driver: String,
    /// Bytes of memory that it has of its own, or its part of the processor's, where the driver tells.
    pub memory: Option<u64>,
    /// What it can do.
    pub caps: Caps,
}

/// Kinds of devices, the preferred first.
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
    /// The processor, in the role of a GPU.
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

/// What a device can do, as far as a kernel's choice of variant depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Whether the lanes are a processor's, where loads are dear and registers cheap.
    pub is_software: bool,
    /// Whether shaders may compute in f16. No kernel needs it: f16 is stored in pairs.
    pub f16: bool,
    /// Whether subgroups may multiply matrices of 16 x 16 in f16, with sums in f32.
    pub cooperative_matrix: bool,
    /// Sizes of subgroups, if shaders may use them.
    pub subgroups: Option<SubgroupSizes>,
    /// Storage buffers of a kernel.
    pub max_bindings: u32,
    /// Whether a workgroup may wait for those with smaller numbers: they begin in the order of their numbers, which WebGPU does
    /// not promise.
    pub in_order: bool,
    /// Whether the device measures time.
    pub timestamps: bool,
    /// Largest buffer that a kernel sees, in bytes.
    pub max_binding: u64,
    /// Largest buffer, in bytes.
    pub max_buffer: u64,
}

impl Caps {
    /// What every WebGPU device has.
    pub const WEBGPU_DEFAULTS: Caps = Caps {
        is_software: false,
        f16: false,
        cooperative_matrix: false,
        subgroups: None,
        max_bindings: 8,
        in_order: false,
        timestamps: false,
        max_binding: 128 << 20,
        max_buffer: 256 << 20,
    };
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
    /// The size of every subgroup, where they are of one size.
    pub fn fixed(self) -> Option<u32> {
        (self.min == self.max).then_some(self.min)
    }
}

/// Which device to open.
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
    /// The position of the selected adapter among so many.
    pub(crate) fn choose(&self, count: usize) -> Option<usize> {
        let index = match self {
            Selection::Auto => 0,
            Selection::Index(index) => *index,
        };
        (index < count).then_some(index)
    }
}

/// How to open a device. The default takes all it has; tests take less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOptions {
    /// Use f16 arithmetic where the device has it.
    pub f16: bool,
    /// Use matrix units where the device has such, for products in f16: those of prefilling.
    pub cooperative_matrix: bool,
    /// Use subgroups where the device has them. In a browser the caller must see to it that `requestDevice` asks for them.
    pub subgroups: bool,
    /// Measure time where the device can.
    pub timestamps: bool,
    /// Ask for no more than WebGPU's default limits.
    pub default_limits: bool,
    /// On a software device, use the kernels made for such.
    pub software_kernels: bool,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            f16: true,
            cooperative_matrix: true,
            subgroups: true,
            timestamps: true,
            default_limits: false,
            software_kernels: true,
        }
    }
}

impl OpenOptions {
    /// The least that a WebGPU implementation offers.
    pub const WEBGPU_DEFAULTS: OpenOptions = OpenOptions {
        f16: false,
        cooperative_matrix: false,
        subgroups: false,
        timestamps: false,
        default_limits: true,
        software_kernels: true,
    };

    /// The kinds of devices that tests open any device as, each with its name.
    pub const PROFILES: [(&str, OpenOptions); 4] = {
        let everything = OpenOptions {
            f16: true,
            cooperative_matrix: true,
            subgroups: true,
            timestamps: true,
            default_limits: false,
            software_kernels: true,
        };
        [
            ("everything", everything),
            ("no software device", OpenOptions { software_kernels: false, cooperative_matrix: false, ..everything }),
            ("f16 without subgroups", OpenOptions { subgroups: false, ..everything }),
            ("WebGPU's defaults", OpenOptions::WEBGPU_DEFAULTS),
        ]
    };
}
