//! `presets.json`: choices for devices that are known, for who does not tune.

use std::sync::LazyLock;

use serde_json::Value;

use super::{Choice, Problem, Tunable};
use crate::gpu::AdapterSummary;

static FILE: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("presets.json")).expect("a file of ours"));

/// What to choose for some problems of a kernel.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    name: &'static str,
    /// Extent by its place, with least and most.
    extents: Vec<(usize, u32, u32)>,
    /// Number by its place. Those that are not named may be any.
    numbers: Vec<(usize, u32)>,
}

/// The rules for a device, the first that fits a problem to be taken.
pub(super) fn rules_of(summary: &AdapterSummary) -> Vec<Rule> {
    let name = summary.name.to_lowercase();
    let is_meant = |device: &&Value| {
        let mut names = list(&device["names"]).iter().filter_map(Value::as_str);
        names.any(|part| name.contains(&part.to_lowercase()))
    };
    let devices = list(&FILE["devices"]).iter().find(is_meant);
    devices.into_iter().flat_map(|device| list(&device["rules"])).map(Rule::read).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

impl Rule {
    /// Panics where the file, which is part of this crate, is wrong: a test reads all of it.
    fn read(value: &Value) -> Rule {
        let tunable = Tunable::by_name(value["kernel"].as_str().expect("a rule names its kernel"));
        let place = |names: &[&str], name: &str| {
            let place = names.iter().position(|other| *other == name);
            place.unwrap_or_else(|| panic!("presets.json: `{}` has no `{name}`", tunable.name))
        };
        let number = |value: &Value| u32::try_from(value.as_u64().expect("a whole number")).expect("32 bits");
        let fields = |key: &str| value[key].as_object().into_iter().flatten();
        let extents = fields("where").map(|(name, range)| {
            let [least, most] = list(range) else { panic!("presets.json: `{name}` is a least and a most") };
            (place(tunable.extents, name), number(least), number(most))
        });
        let numbers = fields("choice").map(|(name, value)| (place(tunable.numbers, name), number(value)));
        Rule { name: tunable.name, extents: extents.collect(), numbers: numbers.collect() }
    }

    /// Whether this is what the rule says of the problem.
    pub fn names(&self, problem: &Problem, choice: &Choice) -> bool {
        let fits = |(place, least, most): &(usize, u32, u32)| (*least..=*most).contains(&problem.extents[*place]);
        let agrees = |(place, value): &(usize, u32)| choice.0[*place] == *value;
        self.name == problem.name && self.extents.iter().all(fits) && self.numbers.iter().all(agrees)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Caps, DeviceType};

    fn rules(name: &str) -> Vec<Rule> {
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
    fn every_rule_is_read_and_every_device_says_where_its_rules_come_from() {
        for device in list(&FILE["devices"]) {
            assert!(
                device["from"]
                    .as_str()
                    .is_some_and(|from| ["measured", "modelled", "derived"].iter().any(|word| from.starts_with(word)))
            );
            for name in list(&device["names"]) {
                assert_eq!(rules(name.as_str().unwrap()).len(), list(&device["rules"]).len(), "{name}");
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
}
