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
    /// Bytes of memory that it may use, free or not: of its own, and the processor's where it shares that. `None` where the
    /// driver does not tell. [`crate::Gpu::free_memory`] tells what is free.
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
    /// Lanes that the driver is known to give every subgroup of a workgroup that has as many, though it reports a range.
    /// [`crate::Gpu::open`] asks the device: where it is so, `subgroups` has this one size.
    pub usual_lanes: Option<u32>,
    /// Whether `dot4I8Packed` compiles.
    pub packed_dot: bool,
    /// Values of 32 bits that a lane has registers for, where compilers have been seen to store the rest in memory.
    pub registers: Option<u32>,
    /// Whether the driver compiles `gemv_chain`.
    pub chains: bool,
    /// Whether lanes have registers for chains in workgroups of no more than 128 lanes.
    pub narrow_chains: bool,
    /// Whether the driver compiles attention of four heads and eight keys at a time.
    pub wide_teams: bool,
    /// Storage buffers of a kernel.
    pub max_bindings: u32,
    /// Whether a workgroup may wait for others that have started: they go on while it polls, and see what others store. WebGPU
    /// promises neither. Known of the vendors in `device.rs`; a vendor is added after `chat-cli selftest --full` passed and
    /// `chat-cli bench` was faster on its devices, see `benches/README.md`.
    pub forward_progress: bool,
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

    /// What the device can do once it has confirmed [`Caps::usual_lanes`], for planning without it.
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
    /// As if subgroups might be half as small, for tests: kernels must be right wherever subgroups are larger than they need.
    pub(super) fn halved(self) -> SubgroupSizes {
        SubgroupSizes { min: (self.min / 2).max(1), ..self }
    }

    /// The size of every subgroup, where they are of one size. Kernels that exchange values do with the smallest size.
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
    /// For tests: take the device for one like Intel's, whose subgroups may have half as many lanes as they have, and whose
    /// lanes have few registers.
    pub narrow: bool,
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
            narrow: false,
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
        narrow: false,
        timestamps: false,
        default_limits: true,
        software_kernels: true,
    };

    /// The kinds of devices that tests open any device as, each with its name.
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
