//! Tunes the kernels of a model to a GPU when it is first loaded there, by measuring the candidates. The result is stored, so
//! that each device, driver and kernel version is tuned once. `webgpu_kernels::tuning` measures.
//!
//! Kernel variants sum in different orders, so results differ in their last digits. A choice that cannot be stored is
//! therefore not used: with stored choices, or with the presets of the program, the same seed gives the same text in every run.

use std::time::Duration;

use serde_json::{Map, Value, json};
use webgpu_kernels::{
    Gpu,
    gpu::DeviceType,
    selftest,
    tuning::{Choice, Measured, Problem, tune},
};

use super::cache::{DeviceCache, read_json};
use crate::{Progress, Result};

/// When to tune kernels to a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tuning {
    /// Never. Use the presets of the program.
    Presets,
    /// Use stored choices, and measure the problems without one. Never measures on a software device.
    #[default]
    FirstUse,
    /// Measure every problem now, on any device, and replace the stored choices.
    Again,
}

/// The choice for one kernel and shape, with its speed.
#[derive(Debug, Clone)]
pub struct Tuned {
    /// Kernel, format and shape.
    pub problem: String,
    /// The default rule's choice.
    pub own: String,
    /// The choice in use.
    pub chosen: String,
    /// Microseconds per run of the default rule's choice, if it was measured.
    pub own_us: Option<f64>,
    /// Microseconds per run of the choice in use, if it was measured.
    pub us: Option<f64>,
    /// Every candidate with its microseconds and, if its result was wrong, the reason. Empty for a stored choice.
    pub candidates: Vec<(String, Option<f64>, Option<String>)>,
}

/// Number of devices (with driver and kernel version) in the file. When it is full, it is emptied.
const MAX_DEVICES: usize = 16;
const FILE: &str = "tuning.json";
/// Version of the file's format. A file of another version is replaced: its devices are tuned again.
const FILE_VERSION: u64 = 2;

/// The state of tuning for one model on one device.
pub(crate) struct TuningState {
    /// Content of the file.
    devices: Map<String, Value>,
    /// Key of this device in `devices`.
    key: String,
    /// Problems with a stored choice.
    tuned: Vec<Tuned>,
    /// Problems without one.
    left: Vec<Problem>,
}

impl TuningState {
    /// Applies the stored choices for `problems` to `gpu`.
    pub fn load(gpu: &Gpu, problems: &[Problem], tuning: Tuning, cache: Option<&dyn DeviceCache>) -> TuningState {
        let key = format!("{:016x}", selftest::device_key(gpu));
        let mut state = TuningState { devices: Map::new(), key, tuned: Vec::new(), left: Vec::new() };
        let Some(cache) = cache.filter(|_| tuning != Tuning::Presets) else { return state };
        state.devices = read_devices(cache);
        let of_device = state.devices.get(&state.key).unwrap_or(&Value::Null);
        for problem in problems.iter().filter(|problem| problem.candidates(gpu.caps()).len() > 1) {
            let entry = &of_device[problem.to_string()];
            match stored_choice(gpu, problem, entry).filter(|_| tuning != Tuning::Again) {
                Some(choice) if gpu.choose(*problem, choice) => {
                    let us = |field: &str| entry[field].as_f64();
                    state.tuned.push(tuned(gpu, problem, us("own_us"), us("us"), Vec::new()));
                }
                _ => state.left.push(*problem),
            }
        }
        state
    }

    /// True if any stored choice differs from the default rule's.
    pub fn differs_from_defaults(&self) -> bool {
        self.tuned.iter().any(|of| of.chosen != of.own)
    }
}

/// Measures the problems without a stored choice, within `budget`. Returns the stored and the new choices. If the new ones
/// cannot be stored, it reverts them and returns an empty list.
pub(crate) async fn ensure(
    gpu: &Gpu,
    state: TuningState,
    tuning: Tuning,
    budget: Duration,
    cache: Option<&dyn DeviceCache>,
    progress: &mut dyn Progress,
) -> Result<Vec<Tuned>> {
    let TuningState { mut devices, key, tuned: mut all, left } = state;
    let is_software = gpu.summary().device_type == DeviceType::Cpu;
    let Some(cache) = cache.filter(|_| tuning == Tuning::Again || !is_software) else { return Ok(all) };
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
    if devices.len() >= MAX_DEVICES && !devices.contains_key(&key) {
        devices.clear();
    }
    devices.insert(key, Value::Object(of_device));
    let file = json!({ "version": FILE_VERSION, "devices": devices });
    if !cache.write(FILE, format!("{file:#}").as_bytes()) {
        for (problem, choice) in left.iter().zip(before) {
            gpu.choose(*problem, choice);
        }
        return Ok(Vec::new());
    }
    Ok(all)
}

/// Devices of the file, by key. Empty if the file has another version.
fn read_devices(cache: &dyn DeviceCache) -> Map<String, Value> {
    let mut file = read_json(cache, FILE);
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

/// All candidates, as the file stores them. A stored choice is valid only if it was measured among the same ones.
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

/// The choice in an entry of the file. `None` if it is no candidate, or if the candidates have changed.
fn stored_choice(gpu: &Gpu, problem: &Problem, entry: &Value) -> Option<Choice> {
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
    use crate::{CacheFolder, device::test_gpu::gpu_for_test};

    /// Counts the progress reports of tuning.
    #[derive(Default)]
    struct Reports(usize);

    impl Progress for Reports {
        fn loaded(&mut self, _: u64, _: u64) {}

        fn tuned(&mut self, _: u64, _: u64) {
            self.0 += 1;
        }
    }

    #[test]
    fn choices_are_stored_and_reused_and_invalid_ones_ignored() {
        let options = OpenOptions { software_kernels: false, cooperative_matrix: false, ..OpenOptions::default() };
        let open = || gpu_for_test(options);
        let (Some(gpu), Some(next)) = (open(), open()) else { return };
        let tunable = TUNABLES.iter().find(|tunable| tunable.name == "attention_decode").unwrap();
        let problem = Problem { tunable, format: None, extents: [2, 1, 32, 0, 0] };
        let folder = tempfile::tempdir().unwrap();
        let cache = &*CacheFolder::at(folder.path());
        let run = |gpu: &Gpu, tuning, reports: &mut Reports| {
            let budget = Duration::from_secs(20);
            let state = TuningState::load(gpu, &[problem], tuning, Some(cache));
            crate::block_on(ensure(gpu, state, tuning, budget, Some(cache), reports)).unwrap()
        };
        let mut reports = Reports::default();
        assert!(run(&gpu, Tuning::Presets, &mut reports).is_empty() && reports.0 == 0);
        let measured = run(&gpu, Tuning::Again, &mut reports);
        assert!(measured.len() == 1 && reports.0 > 0, "{measured:?}");
        // The second time, nothing is measured.
        reports.0 = 0;
        assert!(run(&gpu, Tuning::FirstUse, &mut reports).len() == 1 && reports.0 == 0);
        // Pretend that another candidate was the fastest: the next load uses it.
        let choices = problem.candidates(gpu.caps());
        let file = Value::Object(read_json(cache, FILE));
        let edit = |field: &str, value: Value| {
            let mut file = file.clone();
            let device = file["devices"].as_object_mut().unwrap().values_mut().next().unwrap();
            device[&problem.to_string()][field] = value;
            file
        };
        cache.write(FILE, edit("choice", choices[2].fields()).to_string().as_bytes());
        assert_eq!(run(&next, Tuning::FirstUse, &mut reports)[0].chosen, choices[2].to_string());
        assert_eq!(reports.0, 0);
        assert_eq!(next.choice(problem), choices[2]);
        // Ignored: a choice that is no candidate, one measured among other candidates, and files of other versions.
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
            cache.write(FILE, file.to_string().as_bytes());
            let state = TuningState::load(&next, &[problem], Tuning::FirstUse, Some(cache));
            assert!(state.tuned.is_empty() && state.left == [problem], "{file}");
        }
        // Without a cache, nothing is measured.
        let state = TuningState::load(&next, &[problem], Tuning::Again, None);
        let none = crate::block_on(ensure(&next, state, Tuning::Again, Duration::from_secs(9), None, &mut ()));
        assert!(none.unwrap().is_empty());
    }
}
