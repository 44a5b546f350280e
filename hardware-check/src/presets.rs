//! Chooses kernel variants for a device by the cost model, and writes them as rules to
//! `webgpu-kernels/src/tuning/presets.json`.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use infer_core::planned_work;
use serde_json::{Map, Value, json};
use webgpu_kernels::{
    KvDtype, TUNABLES,
    tuning::{Choice, Problem, Tunable},
};

use crate::{
    cost::{Model, POSITION, format, shape},
    devices::Device,
};

/// Models whose tuning problems are priced, and the (rows, position) of their steps: one token, a few rows as with
/// speculative tokens, and prompts.
const MODELS: [&str; 2] = ["llama-3.2-1b", "llama-3.2-3b"];
const ROWS: [(usize, usize); 5] = [(1, POSITION), (4, POSITION), (32, 0), (64, 0), (512, 0)];
/// A choice replaces the default if its cost is below this share of the default's, as in autotuning.
const WORTH: f64 = 0.97;
/// A choice counts as optimal up to this multiple of the lowest cost.
const AS_GOOD: f64 = 1.01;
/// Its workgroups wait for one another. The cost model does not cover that.
const NOT_MODELED: &str = "gemv_chain";

/// A tuning problem with the cost of each candidate, the default first.
struct Priced {
    problem: Problem,
    costs: Vec<(Choice, f64)>,
}

impl Priced {
    fn cost(&self, choice: &Choice) -> Option<f64> {
        self.costs.iter().find(|(other, _)| other == choice).map(|(_, cost)| *cost)
    }

    fn least(&self) -> f64 {
        self.costs.iter().map(|(_, cost)| *cost).fold(f64::INFINITY, f64::min)
    }

    fn is_as_good(&self, choice: &Choice) -> bool {
        self.cost(choice).is_some_and(|cost| cost <= AS_GOOD * self.least())
    }

    fn wants_rule(&self) -> bool {
        self.costs.first().is_some_and(|(_, own)| self.least() <= WORTH * own)
    }

    fn is_in(&self, ranges: &[(u32, u32)]) -> bool {
        ranges.iter().zip(self.problem.extents).all(|((least, most), extent)| (*least..=*most).contains(&extent))
    }
}

/// Computes the preset rules of a device.
pub fn rules(model: &mut Model<'_>) -> Result<Vec<Value>> {
    let mut by_kernel: BTreeMap<&str, Vec<Priced>> = BTreeMap::new();
    for name in MODELS {
        for (rows, position) in ROWS {
            let work = planned_work(&shape(name), format(), model.gpu, KvDtype::F16, position, rows)?;
            for (problem, _) in work.problems.into_iter().filter(|(problem, _)| problem.tunable.name != NOT_MODELED) {
                let known = by_kernel.entry(problem.tunable.name).or_default();
                if known.iter().any(|priced| priced.problem == problem) {
                    continue;
                }
                let candidates = problem.candidates(model.gpu.caps());
                let own = candidates.first().copied();
                let priced = |choice: Choice| model.cost(&problem, choice).map(|cost| (choice, cost));
                let costs: Vec<_> = candidates.into_iter().filter_map(priced).collect();
                // Skip the problem if the default has no cost: there is nothing to compare with.
                if costs.first().map(|(choice, _)| *choice) == own {
                    known.push(Priced { problem, costs });
                }
            }
        }
    }
    Ok(TUNABLES
        .iter()
        .flat_map(|tunable| rules_of(tunable, by_kernel.get(tunable.name).map_or(&[], Vec::as_slice)))
        .collect())
}

/// Rules of a kernel. Each rule gives one choice to as many problems as possible, unless the rule's ranges would also
/// contain a problem that gets slower by the choice.
fn rules_of(tunable: &Tunable, priced: &[Priced]) -> Vec<Value> {
    let mut open: Vec<&Priced> = priced.iter().filter(|priced| priced.wants_rule()).collect();
    let mut rules = Vec::new();
    while let Some(first) = open.first().copied() {
        let reach = |choice: &Choice| open.iter().filter(|of| of.is_as_good(choice)).count();
        let choices = first.costs.iter().filter(|(choice, _)| first.is_as_good(choice));
        let (choice, _) = choices
            .min_by(|(a, cost), (b, other)| reach(b).cmp(&reach(a)).then(cost.total_cmp(other)))
            .expect("the choice with the lowest cost counts as optimal");
        let choice = *choice;
        let (mut covered, rest): (Vec<&Priced>, Vec<&Priced>) = open.into_iter().partition(|of| of.is_as_good(&choice));
        let harms = |covered: &[&Priced]| {
            let ranges = ranges(covered);
            priced.iter().any(|of| of.is_in(&ranges) && of.cost(&choice).is_some() && !of.is_as_good(&choice))
        };
        open = rest;
        if harms(&covered) {
            open.splice(0..0, covered.drain(1..));
        }
        rules.push(rule(tunable, &ranges(&covered), choice));
    }
    rules
}

fn ranges(covered: &[&Priced]) -> Vec<(u32, u32)> {
    let extents = |at: usize| covered.iter().map(move |of| of.problem.extents[at]);
    let range = |at| (extents(at).min().unwrap_or(0), extents(at).max().unwrap_or(u32::MAX));
    (0..covered.first().map_or(0, |of| of.problem.extents.len())).map(range).collect()
}

fn rule(tunable: &Tunable, ranges: &[(u32, u32)], choice: Choice) -> Value {
    let extents =
        tunable.extents.iter().zip(ranges).map(|(name, (least, most))| (name.to_string(), json!([least, most])));
    json!({
        "kernel": tunable.name,
        "where": extents.collect::<Map<_, _>>(),
        "choice": choice.fields(),
    })
}

/// Writes the rules to the presets file. They replace earlier rules of the same devices.
pub fn write(file: &Path, commit: &str, found: Vec<(&Device, Vec<Value>)>) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let mut presets: Value = serde_json::from_str(&text).with_context(|| format!("`{}`", file.display()))?;
    let devices = presets["devices"].as_array_mut().context("presets have a list of devices")?;
    for (device, rules) in found {
        let Some(speed) = device.speed else { continue };
        let from = format!(
            "modeled: predicted at {commit} by `cargo xtask hardware --presets` from RADV's assembly for `{}` ({} compute units \
             at {} GHz, {} GB/s), not measured",
            device.family,
            speed.compute_units,
            speed.clock / 1e9,
            speed.bandwidth / 1e9
        );
        let entry = json!({ "names": speed.names, "from": from, "rules": rules });
        match devices.iter_mut().find(|other| other["names"] == entry["names"]) {
            Some(other) => *other = entry,
            None => devices.push(entry),
        }
    }
    let partial = file.with_extension("partial");
    fs::write(&partial, laid_out(&presets)).with_context(|| format!("cannot write `{}`", partial.display()))?;
    fs::rename(&partial, file).with_context(|| format!("cannot write `{}`", file.display()))
}

/// The text of the presets file, with one rule per line.
fn laid_out(presets: &Value) -> String {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let device = |device: &Value| {
        let rules: Vec<String> =
            list(&device["rules"]).iter().map(|rule| format!("        {}", spaced(rule))).collect();
        let (names, from) = (spaced(&device["names"]), &device["from"]);
        format!(
            "    {{\n      \"names\": {names},\n      \"from\": {from},\n      \"rules\": [\n{}\n      ]\n    }}",
            rules.join(",\n")
        )
    };
    let devices: Vec<String> = list(&presets["devices"]).iter().map(device).collect();
    format!("{{\n  \"about\": {},\n  \"devices\": [\n{}\n  ]\n}}\n", presets["about"], devices.join(",\n"))
}

/// JSON on one line, with spaces.
fn spaced(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|(name, value)| format!("\"{name}\": {}", spaced(value))).collect();
            format!("{{ {} }}", fields.join(", "))
        }
        Value::Array(all) => format!("[{}]", all.iter().map(spaced).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use webgpu_kernels::tuning::AttentionTileChoice;

    use super::*;

    /// Parsing and formatting the file again does not change a byte.
    #[test]
    fn formatting_the_presets_file_changes_nothing() {
        let text = include_str!("../../webgpu-kernels/src/tuning/presets.json");
        assert_eq!(laid_out(&serde_json::from_str(text).unwrap()), text);
    }

    fn tunable() -> &'static Tunable {
        TUNABLES.iter().find(|tunable| tunable.name == "attention_tile").unwrap()
    }

    fn priced(rows: u32, costs: [f64; 3]) -> Priced {
        let problem = Problem { tunable: tunable(), format: None, extents: [rows, 0, 0, 0, 0] };
        let choice = |slots| Choice::from(AttentionTileChoice { slots });
        let costs = costs.into_iter().zip(0..).map(|(cost, slots)| (choice(slots), cost)).collect();
        Priced { problem, costs }
    }

    #[test]
    fn a_rule_covers_the_problems_that_its_choice_suits() {
        let tunable = tunable();
        let check = |priced: &[Priced], expected: &[(u32, u32, u32)]| {
            let found: Vec<_> = rules_of(tunable, priced)
                .iter()
                .map(|rule| {
                    let number = |value: &Value| value.as_u64().unwrap() as u32;
                    let range = &rule["where"][tunable.extents[0]];
                    (number(&range[0]), number(&range[1]), number(&rule["choice"]["slots"]))
                })
                .collect();
            assert_eq!(found, expected);
        };
        // The default is near enough to the best.
        check(&[priced(16, [1.0, 0.98, 2.0])], &[]);
        // One choice for both.
        check(&[priced(16, [1.0, 0.5, 2.0]), priced(64, [1.0, 0.5, 0.5])], &[(16, 64, 1)]);
        // The problem between the two would get slower, so the rule splits.
        check(
            &[priced(16, [1.0, 0.5, 2.0]), priced(32, [1.0, 3.0, 1.0]), priced(64, [1.0, 0.5, 2.0])],
            &[(16, 16, 1), (64, 64, 1)],
        );
    }
}
