//! [`DEVICES`]: the absent GPUs to compile for, with their driver properties and the cost model's parameters.

use anyhow::{Result, bail};
use infer_core::block_on;
use webgpu_kernels::{
    Gpu,
    gpu::{AdapterSummary, Caps, DeviceType, OpenOptions, SubgroupSizes},
};

/// An absent GPU.
pub struct Device {
    /// Name on the command line and in tables.
    pub name: &'static str,
    /// Name reported by its driver. Presets match this name.
    pub product: &'static str,
    /// Chip that Mesa's RADV compiles for, as a value of `RADV_FORCE_FAMILY`.
    pub family: &'static str,
    /// Capabilities, for a device whose own driver is not RADV. RADV then compiles with its subgroup size for another
    /// vendor's chip. This checks that a driver accepts the SPIR-V; the register counts mean nothing.
    pub caps: Option<Caps>,
    /// Kernels that the device must use for the shape of Llama-3.2-3B.
    pub expected: &'static [&'static str],
    /// Parameters of the cost model. `None`: the device is not modeled.
    pub speed: Option<Speed>,
}

/// Parameters of the cost model. It assumes RDNA: a compute unit has two SIMDs, and each issues one instruction of 32
/// lanes per cycle.
#[derive(Debug, Clone, Copy)]
pub struct Speed {
    pub compute_units: f64,
    /// Cycles per second.
    pub clock: f64,
    /// Memory bandwidth in practice, in bytes per second.
    pub bandwidth: f64,
    /// True if a subgroup of 64 lanes can issue two operations of 32 lanes at once (RDNA3).
    pub dual_issue: bool,
    /// Lower limits for the predicted tokens per second: decoding, and a prompt of 512 tokens.
    pub least: (f64, f64),
    /// The presets apply to devices whose name contains any of these.
    pub names: &'static [&'static str],
}

/// Decoder kernels of a device with a single subgroup size.
const WITH_FIXED_SUBGROUPS: &[&str] = &["gemv_scaled", "gemv_rope", "gemv_add", "attention_teams", "attention_tile"];
const WITH_MATRIX_UNITS: &[&str] =
    &["gemv_scaled", "gemv_rope", "gemv_add", "attention_teams", "attention_tile", "gemm_cooperative"];

/// All devices to check.
pub const DEVICES: &[Device] = &[
    Device {
        name: "780m",
        product: "AMD Radeon 780M Graphics (RADV PHOENIX)",
        family: "phoenix",
        caps: None,
        expected: WITH_MATRIX_UNITS,
        // DDR5-5600 on two channels: 89.6 GB/s.
        speed: Some(Speed {
            compute_units: 12.0,
            clock: 2.7e9,
            bandwidth: 90e9,
            dual_issue: true,
            least: (42.0, 1400.0),
            names: &["780M"],
        }),
    },
    Device {
        name: "rx-6600",
        product: "AMD Radeon RX 6600 (RADV NAVI23)",
        family: "navi23",
        caps: None,
        expected: WITH_FIXED_SUBGROUPS,
        // AMD's game clock; 128 bits of GDDR6 at 14 Gb/s, nine tenths of it.
        speed: Some(Speed {
            compute_units: 28.0,
            clock: 2.044e9,
            bandwidth: 202e9,
            dual_issue: false,
            least: (0.0, 0.0),
            names: &["RX 6600", "RX 6650", "RX 6700", "RX 6750", "RX 6800", "RX 6900", "RX 6950", "RADV NAVI2"],
        }),
    },
    Device {
        name: "renoir",
        product: "AMD Radeon Graphics (RADV RENOIR)",
        family: "renoir",
        caps: None,
        expected: WITH_FIXED_SUBGROUPS,
        speed: None,
    },
    Device {
        name: "vega10",
        product: "AMD Radeon RX Vega (RADV VEGA10)",
        family: "vega10",
        caps: None,
        expected: WITH_FIXED_SUBGROUPS,
        speed: None,
    },
    Device {
        name: "rtx-3060",
        product: "NVIDIA GeForce RTX 3060",
        family: "phoenix",
        caps: Some(Caps {
            f16: true,
            cooperative_matrix: true,
            subgroups: Some(SubgroupSizes { min: 32, max: 32 }),
            max_bindings: 1 << 20,
            forward_progress: true,
            timestamps: true,
            max_binding: (2 << 30) - 1,
            max_buffer: 4 << 30,
            ..Caps::WEBGPU_DEFAULTS
        }),
        expected: WITH_MATRIX_UNITS,
        speed: None,
    },
];

impl Device {
    pub fn by_name(name: &str) -> Result<&'static Device> {
        let found = DEVICES.iter().find(|device| device.name == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = DEVICES.iter().map(|device| device.name).collect();
            anyhow::anyhow!("unknown device `{name}`; known are: {}", names.join(", "))
        })
    }

    /// A planning device with this device's properties. RADV's null device must be the Vulkan device of this process.
    pub fn gpu(&self) -> Result<Gpu> {
        Ok(block_on(Gpu::in_role(self.summary()?, OpenOptions::default()))?)
    }

    /// The adapter summary of this device. If RADV is its driver, from the driver's own properties.
    fn summary(&self) -> Result<AdapterSummary> {
        let adapters = block_on(Gpu::adapters());
        let Some(mut summary) = adapters.into_iter().find(|it| it.device_type != DeviceType::Cpu) else {
            bail!("RADV has no null device: it needs a Mesa before 26.1 and a chip in `RADV_FORCE_FAMILY`");
        };
        summary.name = self.product.into();
        match self.caps {
            Some(caps) => (summary.driver, summary.caps) = (String::new(), caps),
            // The null device cannot run the subgroup probe. webgpu-kernels/src/gpu/known.rs says that real devices
            // pass it.
            None => summary.caps = summary.caps.confirmed(),
        }
        Ok(summary)
    }
}

/// Capabilities under Direct3D 12 that lead to different kernels: NVIDIA, AMD (64, and 32 to 64 lanes), Intel, and a
/// device without subgroups.
pub fn direct3d_caps() -> Vec<Caps> {
    let intel = Caps { registers: Some(128), ..direct3d(8, 32) };
    vec![direct3d(32, 32), direct3d(64, 64), direct3d(32, 64), intel, Caps { subgroups: None, ..direct3d(1, 1) }]
}

fn direct3d(min: u32, max: u32) -> Caps {
    Caps {
        f16: true,
        packed_dot: false,
        subgroups: Some(SubgroupSizes { min, max }),
        max_bindings: 1 << 20,
        ..Caps::WEBGPU_DEFAULTS
    }
}

/// The same under Metal: Apple's GPUs, Macs with another vendor's GPU, and a device without subgroups.
pub fn metal_caps() -> Vec<Caps> {
    let with = |min, max| Caps { packed_dot: true, ..direct3d(min, max) };
    vec![with(32, 32), with(4, 64), Caps { subgroups: None, ..with(1, 1) }]
}
