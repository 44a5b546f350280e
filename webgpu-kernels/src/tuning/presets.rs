//! `presets.json`: choices for known devices, used where autotuning has not run.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Choice, Problem};
use crate::gpu::AdapterSummary;

static FILE: LazyLock<Presets> =
    LazyLock::new(|| serde_json::from_str(include_str!("presets.json")).expect("presets.json is valid"));

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Presets {
    #[serde(rename = "about")]
    _about: String,
    devices: Vec<Device>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    /// Parts of adapter names, in any case.
    names: Vec<String>,
    /// Source of the rules: measured, modeled or derived.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the file's readers"))]
    from: String,
    rules: Vec<Rule>,
}

/// A choice for some problems of a kernel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    kernel: String,
    /// Least and most of each extent. An extent without a range may have any value.
    #[serde(default, rename = "where")]
    ranges: BTreeMap<String, (u32, u32)>,
    /// Fields of the choice. A field that is not named may have any value.
    choice: Map<String, Value>,
}

/// The rules for a device. For each problem, the first match applies.
pub(super) fn rules_of(summary: &AdapterSummary) -> &'static [Rule] {
    let name = summary.name.to_lowercase();
    let is_listed = |device: &&Device| device.names.iter().any(|part| name.contains(&part.to_lowercase()));
    FILE.devices.iter().find(is_listed).map_or(&[], |device| &device.rules)
}

impl Rule {
    /// True if the rule covers the problem and names this choice.
    pub fn names(&self, problem: &Problem, choice: &Choice) -> bool {
        self.covers(problem) && agrees(&self.choice, &choice.fields())
    }

    fn covers(&self, problem: &Problem) -> bool {
        let is_in_range = |(name, (least, most)): (&String, &(u32, u32))| {
            problem.extent(name).is_some_and(|extent| (*least..=*most).contains(&extent))
        };
        self.kernel == problem.tunable.name && self.ranges.iter().all(is_in_range)
    }
}

/// True if `fields` has every named value.
fn agrees(named: &Map<String, Value>, fields: &Value) -> bool {
    named.iter().all(|(name, value)| match (value, &fields[name]) {
        (Value::Object(named), fields) => agrees(named, fields),
        (value, field) => value == field,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        TUNABLES,
        cases::four_bits,
        gpu::{Caps, DeviceType, SubgroupSizes},
    };

    fn rules(name: &str) -> &'static [Rule] {
        rules_of(&AdapterSummary {
            name: name.into(),
            backend: "vulkan".into(),
            device_type: DeviceType::Discrete,
            driver: String::new(),
            memory: None,
            caps: Caps::WEBGPU_DEFAULTS,
        })
    }

    #[test]
    fn every_device_names_its_source_and_known_adapters_have_rules() {
        for device in &FILE.devices {
            assert!(["measured", "modeled", "derived"].iter().any(|word| device.from.starts_with(word)));
            for name in &device.names {
                assert_eq!(rules(name).len(), device.rules.len(), "{name}");
            }
        }
        let known = [
            "NVIDIA H100 80GB HBM3",
            "NVIDIA GeForce RTX 3060 Laptop GPU",
            "AMD Radeon 780M Graphics (RADV GFX1103_R1)",
        ];
        assert!(known.iter().all(|name| !rules(name).is_empty()));
        assert!(rules("llvmpipe (LLVM 15.0.6, 256 bits)").is_empty());
    }

    /// A misspelt kernel, extent or field would never match.
    #[test]
    fn every_rule_names_a_candidate() {
        let caps = Caps {
            subgroups: Some(SubgroupSizes { min: 32, max: 32 }),
            packed_dot: true,
            forward_progress: true,
            chains: true,
            narrow_chains: true,
            wide_teams: true,
            max_bindings: 32,
            ..Caps::WEBGPU_DEFAULTS
        };
        // Llama 3.2 3B, for the extents that a rule leaves open.
        let usual = |extent: &str| match extent {
            "heads" => 24,
            "kv_heads" => 8,
            "head_dim" => 128,
            "inner" => 8192,
            "batch" => 1,
            "swiglu" => 0,
            _ => 3072,
        };
        for rule in FILE.devices.iter().flat_map(|device| &device.rules) {
            let tunable = *TUNABLES.iter().find(|tunable| tunable.name == rule.kernel).expect("a kernel");
            let mut problem = Problem { tunable, format: Some(four_bits()), extents: [0; 5] };
            for (extent, name) in problem.extents.iter_mut().zip(tunable.extents) {
                *extent = rule.ranges.get(*name).map_or(usual(name), |(least, _)| *least);
            }
            let candidates = problem.candidates(&caps);
            assert!(candidates.iter().any(|choice| rule.names(&problem, choice)), "{rule:?}: {problem}");
        }
    }
}
