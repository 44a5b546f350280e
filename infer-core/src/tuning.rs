//! How a model's kernels do their work on a GPU is chosen when it is first loaded there, by measuring; what came out is kept,
//! so that it is done once for a device, a driver and a version of the kernels. `webgpu_kernels::tuning` does the work.
//!
//! Choices may add in another order, and results differ in their last digits by that. So what cannot be kept is not used: with
//! what is kept the same seed gives the same text, and without one the presets hold, which are part of the program.

use std::time::Duration;

use serde_json::{Map, Value, json};
use webgpu_kernels::{
    Gpu,
    gpu::DeviceType,
    selftest,
    tuning::{Choice, Measured, Problem, tune},
};

use crate::{
    Progress, Result,
    kept::{Kept, read_json},
};

/// When kernels are tuned to a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tuning {
    /// Never: what comes with the program holds.
    Presets,
    /// When there is something to do that was not done before on this device; software devices never. What was found out is
    /// taken up.
    #[default]
    FirstUse,
    /// Now, in place of what was found out before, on any device.
    Again,
}

/// What is chosen for a kernel and a shape, and how fast that is.
#[derive(Debug, Clone)]
pub struct Tuned {
    /// Kernel, format and shape.
    pub problem: String,
    /// The kernel's own rule.
    pub own: String,
    /// What is taken.
    pub chosen: String,
    /// Microseconds of a run by the kernel's own rule, where that was measured.
    pub own_us: Option<f64>,
    /// Microseconds of a run as it is done now.
    pub us: Option<f64>,
    /// Every candidate with its microseconds and, where it was wrong, how; where they were measured now.
    pub candidates: Vec<(String, Option<f64>, Option<String>)>,
}

/// Most devices, with driver and version of the kernels, that something is kept of.
const MOST_KEPT: usize = 16;
const FILE: &str = "tuning.json";
/// Version of the file's format. A file of another version is replaced: its devices are tuned again.
const FILE_VERSION: u64 = 2;

/// What is known of a model's problems on a device.
pub(crate) struct Known {
    devices: Map<String, Value>,
    key: String,
    /// What was found out before.
    tuned: Vec<Tuned>,
    /// What was not.
    left: Vec<Problem>,
}

impl Known {
    /// Takes up what was found out about `problems`.
    pub fn take_up(gpu: &Gpu, problems: &[Problem], tuning: Tuning, kept: Option<&dyn Kept>) -> Known {
        let key = format!("{:016x}", selftest::device_key(gpu));
        let mut known = Known { devices: Map::new(), key, tuned: Vec::new(), left: Vec::new() };
        let Some(kept) = kept.filter(|_| tuning != Tuning::Presets) else { return known };
        known.devices = read_devices(kept);
        let of_device = known.devices.get(&known.key).unwrap_or(&Value::Null);
        for problem in problems.iter().filter(|problem| problem.candidates(gpu.caps()).len() > 1) {
            let entry = &of_device[problem.to_string()];
            match recalled(gpu, problem, entry).filter(|_| tuning != Tuning::Again) {
                Some(choice) if gpu.choose(*problem, choice) => {
                    let us = |field: &str| entry[field].as_f64();
                    known.tuned.push(tuned(gpu, problem, us("own_us"), us("us"), Vec::new()));
                }
                _ => known.left.push(*problem),
            }
        }
        known
    }

    /// Whether something is done otherwise than it would be without.
    pub fn changes_something(&self) -> bool {
        self.tuned.iter().any(|of| of.chosen != of.own)
    }
}

/// Finds out what is not known, in no more than `budget`. Returns what is known then.
pub(crate) async fn ensure(
    gpu: &Gpu,
    known: Known,
    tuning: Tuning,
    budget: Duration,
    kept: Option<&dyn Kept>,
    progress: &mut dyn Progress,
) -> Result<Vec<Tuned>> {
    let Known { mut devices, key, tuned: mut all, left } = known;
    let is_software = gpu.summary().device_type == DeviceType::Cpu;
    let Some(kept) = kept.filter(|_| tuning == Tuning::Again || !is_software) else { return Ok(all) };
    if left.is_empty() {
        return Ok(all);
    }
    let mut of_device = devices.get(&key).and_then(Value::as_object).cloned().unwrap_or_default();
    let before: Vec<Choice> = left.iter().map(|problem| gpu.choice(*problem)).collect();
    let measured = tune(gpu, &left, budget, &mut |done, all| progress.tuned(done as u64, all as u64)).await?;
    for of in &measured {
        of_device.insert(of.problem.to_string(), entry(gpu, of));
        all.push(tuned_now(gpu, of));
    }
    if devices.len() >= MOST_KEPT && !devices.contains_key(&key) {
        devices.clear();
    }
    devices.insert(key, Value::Object(of_device));
    let file = json!({ "version": FILE_VERSION, "devices": devices });
    if !kept.write(FILE, format!("{file:#}").as_bytes()) {
        for (problem, choice) in left.iter().zip(before) {
            gpu.choose(*problem, choice);
        }
        return Ok(Vec::new());
    }
    Ok(all)
}

/// Devices of the file, by key. Empty if the file has another version.
fn read_devices(kept: &dyn Kept) -> Map<String, Value> {
    let mut file = read_json(kept, FILE);
    let devices = file.remove("devices").filter(|_| file.get("version") == Some(&json!(FILE_VERSION)));
    match devices {
        Some(Value::Object(devices)) => devices,
        _ => Map::new(),
    }
}

fn tuned(
    gpu: &Gpu,
    problem: &Problem,
    own_us: Option<f64>,
    us: Option<f64>,
    candidates: Vec<(String, Option<f64>, Option<String>)>,
) -> Tuned {
    let own = problem.candidates(gpu.caps()).first().map(Choice::to_string).unwrap_or_default();
    Tuned { problem: problem.to_string(), own, chosen: gpu.choice(*problem).to_string(), own_us, us, candidates }
}

fn tuned_now(gpu: &Gpu, measured: &Measured) -> Tuned {
    let problem = &measured.problem;
    let wrong = |choice: &Choice| measured.wrong.iter().find(|(other, _)| other == choice).map(|(_, why)| why.clone());
    let candidate =
        |(choice, seconds): &(Choice, Option<f64>)| (choice.to_string(), microseconds(*seconds), wrong(choice));
    let us = |place: usize| microseconds(measured.candidates[place].1);
    tuned(gpu, problem, us(0), us(measured.chosen), measured.candidates.iter().map(candidate).collect())
}

fn microseconds(seconds: Option<f64>) -> Option<f64> {
    seconds.map(|seconds| (1e8 * seconds).round() / 100.0)
}

/// All candidates, as the file stores them. A result measured among other candidates does not count.
fn all_fields(gpu: &Gpu, problem: &Problem) -> Vec<Value> {
    problem.candidates(gpu.caps()).iter().map(Choice::fields).collect()
}

fn entry(gpu: &Gpu, measured: &Measured) -> Value {
    let (choice, seconds) = measured.candidates[measured.chosen];
    json!({
        "choice": choice.fields(),
        "us": microseconds(seconds),
        "own_us": microseconds(measured.candidates[0].1),
        "among": all_fields(gpu, &measured.problem),
    })
}

/// The choice that an entry of the file names, if it is one.
fn recalled(gpu: &Gpu, problem: &Problem, entry: &Value) -> Option<Choice> {
    let all = all_fields(gpu, problem);
    let place = all.iter().position(|fields| *fields == entry["choice"])?;
    if *entry["among"].as_array()? != all {
        return None;
    }
    problem.candidates(gpu.caps()).get(place).copied()
}

#[cfg(all(test, feature = "native"))]
mod tests {
    use webgpu_kernels::{TUNABLES, gpu::OpenOptions};

    use super::*;
    use crate::device::gpu_for_test;

    /// Counts how often it was told of something that was tuned.
    #[derive(Default)]
    struct Told(usize);

    impl Progress for Told {
        fn loaded(&mut self, _: u64, _: u64) {}

        fn tuned(&mut self, _: u64, _: u64) {
            self.0 += 1;
        }
    }

    #[test]
    fn choices_are_kept_and_taken_up_and_none_that_is_not_ours() {
        let options = OpenOptions { software_kernels: false, cooperative_matrix: false, ..OpenOptions::default() };
        let open = || gpu_for_test(options);
        let (Some(gpu), Some(next)) = (open(), open()) else { return };
        let tunable = TUNABLES.iter().find(|tunable| tunable.name == "attention_decode").unwrap();
        let problem = Problem { tunable, format: None, extents: [2, 1, 32, 0, 0] };
        let folder = tempfile::tempdir().unwrap();
        let kept = &*crate::KeptFolder::at(folder.path());
        let run = |gpu: &Gpu, tuning, told: &mut Told| {
            let budget = Duration::from_secs(20);
            let known = Known::take_up(gpu, &[problem], tuning, Some(kept));
            crate::block_on(ensure(gpu, known, tuning, budget, Some(kept), told)).unwrap()
        };
        let mut told = Told::default();
        assert!(run(&gpu, Tuning::Presets, &mut told).is_empty() && told.0 == 0);
        let measured = run(&gpu, Tuning::Again, &mut told);
        assert!(measured.len() == 1 && told.0 > 0, "{measured:?}");
        // The second time there is nothing to do.
        told.0 = 0;
        assert!(run(&gpu, Tuning::FirstUse, &mut told).len() == 1 && told.0 == 0);
        // As if another candidate had been the fastest: the next start takes it.
        let choices = problem.candidates(gpu.caps());
        let file = Value::Object(read_json(kept, FILE));
        let edit = |field: &str, value: Value| {
            let mut file = file.clone();
            let device = file["devices"].as_object_mut().unwrap().values_mut().next().unwrap();
            device[&problem.to_string()][field] = value;
            file
        };
        kept.write(FILE, edit("choice", choices[2].fields()).to_string().as_bytes());
        assert_eq!(run(&next, Tuning::FirstUse, &mut told)[0].chosen, choices[2].to_string());
        assert_eq!(told.0, 0);
        assert_eq!(next.choice(problem), choices[2]);
        // A choice that is no candidate, one measured among other candidates, and files of other versions are ignored.
        let unknown = json!({ "groups": 7, "teams": null });
        let old = json!({ "0123456789abcdef": { problem.to_string(): { "choice": [256, 0, 0, 0] } } });
        let mut newer = file.clone();
        newer["version"] = json!(FILE_VERSION + 1);
        let files = [
            edit("choice", unknown.clone()),
            edit("among", json!([unknown])),
            edit("choice", json!("groups 64, no teams")),
            edit("choice", json!([64, 0, 0, 0])),
            edit("choice", Value::Null),
            file["devices"].clone(),
            newer,
            old,
        ];
        for file in files {
            kept.write(FILE, file.to_string().as_bytes());
            let known = Known::take_up(&next, &[problem], Tuning::FirstUse, Some(kept));
            assert!(known.tuned.is_empty() && known.left == [problem], "{file}");
        }
        // Without a folder to keep it in, nothing is measured.
        let known = Known::take_up(&next, &[problem], Tuning::Again, None);
        let none = crate::block_on(ensure(&next, known, Tuning::Again, Duration::from_secs(9), None, &mut ()));
        assert!(none.unwrap().is_empty());
    }
}
