//! A table of facts about devices that their drivers do not report: [`add_facts`].

use super::adapter::{Caps, SubgroupSizes};

/// Properties that identify a device.
pub(super) struct Identity<'a> {
    pub backend: wgpu::Backend,
    /// PCI vendor id.
    pub vendor: u32,
    /// Name of the driver.
    pub driver: &'a str,
    /// Name of the device.
    pub name: &'a str,
}

/// A fact about all devices that match every given property.
struct Known {
    backend: Option<wgpu::Backend>,
    vendor: Option<u32>,
    driver: Option<&'static str>,
    /// The device's name contains one of these. Empty: any name.
    names: &'static [&'static str],
    /// The device's name contains none of these.
    except: &'static [&'static str],
    fact: Fact,
}

#[derive(Clone, Copy)]
enum Fact {
    /// Lanes of every subgroup.
    Lanes(u32),
    /// [`Caps::usual_lanes`].
    UsualLanes(u32),
    /// [`Caps::registers`].
    Registers(u32),
    /// [`Caps::packed_dot`] is false.
    NoPackedDot,
    /// [`Caps::chains`] is false.
    NoChains,
    /// [`Caps::narrow_chains`] is false.
    NoNarrowChains,
    /// [`Caps::wide_teams`] is false.
    NoWideTeams,
}

const ANY: Known =
    Known { backend: None, vendor: None, driver: None, names: &[], except: &[], fact: Fact::Registers(0) };
const INTEL: u32 = 0x8086;
/// 128 registers of eight lanes, in subgroups of eight.
pub(super) const INTEL_REGISTERS: u32 = 128;
/// RADV's names of AMD's RDNA1.
const RDNA1: &[&str] = &["NAVI10", "NAVI12", "NAVI14"];
/// RADV's names of AMD's RDNA2.
const RDNA2: &[&str] = &["NAVI21", "NAVI22", "NAVI23", "NAVI24", "REMBRANDT", "VANGOGH", "RAPHAEL_MENDOCINO"];
/// RADV's names of AMD's GCN5.
const VEGA: &[&str] = &["VEGA10", "VEGA12", "VEGA20", "RAVEN", "RENOIR"];

/// Found by compiling every kernel variant for these devices with Mesa 25.0 and DXC 1.8.
const KNOWN: &[Known] = &[
    // Metal and browsers report 4 to 64 for every device.
    Known { names: &["Apple"], fact: Fact::Lanes(32), ..ANY },
    // RADV reports 32 to 64, and uses 64 for every workgroup of more than 32 lanes. On RDNA1, kernels for 64 lanes crash its compiler.
    Known { driver: Some("radv"), except: RDNA1, fact: Fact::UsualLanes(64), ..ANY },
    Known { driver: Some("radv"), names: RDNA1, fact: Fact::NoChains, ..ANY },
    Known { driver: Some("radv"), names: VEGA, fact: Fact::NoNarrowChains, ..ANY },
    // The compiler crashes: seen on NAVI23.
    Known { driver: Some("radv"), names: RDNA2, fact: Fact::NoWideTeams, ..ANY },
    Known { driver: Some("radv"), names: RDNA1, fact: Fact::NoWideTeams, ..ANY },
    // RDNA has 256. Mesa 26.1 does not use all of them.
    Known { driver: Some("radv"), fact: Fact::Registers(255), ..ANY },
    Known { vendor: Some(INTEL), fact: Fact::Registers(INTEL_REGISTERS), ..ANY },
    // naga 30 writes `dot4add_i8packed(a, b, 0)`. DXC takes the zero for a 64-bit integer.
    Known { backend: Some(wgpu::Backend::Dx12), fact: Fact::NoPackedDot, ..ANY },
];

impl Known {
    fn is_of(&self, device: &Identity<'_>) -> bool {
        let has = |part: &&str| device.name.to_lowercase().contains(&part.to_lowercase());
        self.backend.is_none_or(|backend| backend == device.backend)
            && self.vendor.is_none_or(|vendor| vendor == device.vendor)
            && self.driver.is_none_or(|driver| driver == device.driver)
            && (self.names.is_empty() || self.names.iter().any(has))
            && !self.except.iter().any(has)
    }
}

/// Adds the facts about a device to the capabilities that its driver reports.
pub(super) fn add_facts(device: &Identity<'_>, caps: &mut Caps) {
    for known in KNOWN.iter().filter(|known| known.is_of(device)) {
        match known.fact {
            Fact::Lanes(lanes) => caps.subgroups = caps.subgroups.map(|_| SubgroupSizes { min: lanes, max: lanes }),
            Fact::UsualLanes(lanes) => {
                let is_possible = |sizes: SubgroupSizes| (sizes.min..=sizes.max).contains(&lanes);
                caps.usual_lanes = caps.subgroups.is_some_and(is_possible).then_some(lanes);
            }
            Fact::Registers(count) => caps.registers = Some(count),
            Fact::NoPackedDot => caps.packed_dot = false,
            Fact::NoChains => caps.chains = false,
            Fact::NoNarrowChains => caps.narrow_chains = false,
            Fact::NoWideTeams => caps.wide_teams = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(backend: wgpu::Backend, vendor: u32, driver: &str, name: &str, (min, max): (u32, u32)) -> Caps {
        let mut caps = Caps { subgroups: Some(SubgroupSizes { min, max }), ..Caps::WEBGPU_DEFAULTS };
        add_facts(&Identity { backend, vendor, driver, name }, &mut caps);
        caps
    }

    #[test]
    fn devices_are_recognized_by_driver_and_name() {
        use wgpu::Backend::{Dx12, Metal, Vulkan};
        let (amd, nvidia) = (0x1002, 0x10de);
        let range = |min, max| Some(SubgroupSizes { min, max });
        let phoenix = caps(Vulkan, amd, "radv", "AMD Radeon 780M Graphics (RADV PHOENIX)", (32, 64));
        assert_eq!((phoenix.subgroups, phoenix.usual_lanes), (range(32, 64), Some(64)));
        assert!(phoenix.chains && phoenix.narrow_chains && phoenix.packed_dot);
        assert_eq!(phoenix.registers, Some(255));
        assert_eq!(phoenix.confirmed().subgroups, range(64, 64));
        // The proprietary driver uses other sizes.
        assert_eq!(caps(Vulkan, amd, "AMD proprietary driver", "AMD Radeon 780M", (32, 64)).usual_lanes, None);
        let rdna1 = caps(Vulkan, amd, "radv", "AMD Radeon RX 5700 XT (RADV NAVI10)", (32, 64));
        assert_eq!((rdna1.usual_lanes, rdna1.chains), (None, false));
        assert!(phoenix.wide_teams && !rdna1.wide_teams);
        assert_eq!(rdna1.confirmed().subgroups, range(32, 64));
        let renoir = caps(Vulkan, amd, "radv", "AMD Radeon Graphics (RADV RENOIR)", (64, 64));
        assert!(renoir.chains && !renoir.narrow_chains);
        assert_eq!(caps(Metal, 0, "", "Apple M2", (4, 64)).subgroups, range(32, 32));
        assert_eq!(caps(Metal, amd, "", "AMD Radeon Pro 5500M", (4, 64)).subgroups, range(4, 64));
        let intel = caps(Vulkan, 0x8086, "Intel open-source Mesa driver", "Intel(R) Iris(R) Xe Graphics", (8, 32));
        assert_eq!((intel.registers, intel.usual_lanes), (Some(128), None));
        assert!(!caps(Dx12, nvidia, "", "NVIDIA GeForce RTX 3060", (32, 32)).packed_dot);
        assert!(caps(Vulkan, nvidia, "NVIDIA", "NVIDIA GeForce RTX 3060", (32, 32)).packed_dot);
    }

    #[test]
    fn without_subgroups_there_are_no_sizes() {
        let mut caps = Caps::WEBGPU_DEFAULTS;
        let device = Identity { backend: wgpu::Backend::Metal, vendor: 0, driver: "", name: "Apple M2" };
        add_facts(&device, &mut caps);
        assert_eq!(caps, Caps::WEBGPU_DEFAULTS);
        add_facts(&Identity { backend: wgpu::Backend::Vulkan, driver: "radv", ..device }, &mut caps);
        assert_eq!(caps.usual_lanes, None);
    }
}
