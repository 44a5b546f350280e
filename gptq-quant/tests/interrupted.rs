//! Interrupted runs: the same command continues and produces the bytes of an uninterrupted run.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread::ThreadId,
    time::{Duration, Instant},
};

use calib_data::TokenWindows;
use gptq_quant::{
    CheckpointWriter, Error, Grid, MatrixReport, Options, Progress, Quantized, Run, Settings, Store, check_weights,
    quantize_layers, run::sum_of_windows, store::Writing,
};
use infer_core::{block_on, ops::candle::CandleOps};
use model_format::Param;

use common::{tiny, tiny_folder};

/// All files below a folder.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        files.insert(path.file_name().unwrap().into(), std::fs::read(&path).unwrap());
    }
    // Reports contain times.
    files.retain(|path: &PathBuf, _| !path.to_string_lossy().starts_with("quantize_report"));
    files
}

/// The files that differ or are in only one of them.
fn differing(a: &BTreeMap<PathBuf, Vec<u8>>, b: &BTreeMap<PathBuf, Vec<u8>>) -> String {
    let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let names = names.into_iter().filter(|name| a.get(*name) != b.get(*name));
    names
        .map(|name| format!("{} {:?} {:?}\n", name.display(), a.get(name).map(Vec::len), b.get(name).map(Vec::len)))
        .collect()
}

/// Stops a run at a share of its work.
struct StopAt {
    share: f64,
    reached: f64,
    solved: Vec<String>,
}

impl StopAt {
    fn new(share: f64) -> StopAt {
        StopAt { share, reached: 0.0, solved: Vec::new() }
    }
}

impl Progress for StopAt {
    fn wrote(&mut self, _done: usize, _total: usize) {}

    fn advanced(&mut self, _layer: usize, _module: &str, fraction: f64, _left: Option<Duration>) {
        self.reached = fraction;
    }

    fn quantized(&mut self, report: &MatrixReport) {
        self.solved.push(report.module.clone());
    }

    fn is_cancelled(&self) -> bool {
        self.reached >= self.share
    }
}

fn settings() -> Settings {
    let options = Options::new(Grid { bits: 4, group_size: Some(32), sym: true });
    let matrix = Options { gptaq_alpha: 1.0, refine: 1, ..options };
    Settings { quantize_ends: true, ..Settings::new(matrix) }
}

/// Quantizes the tiny model until `progress` stops it.
fn quantize(out: &Path, settings: &Settings, progress: &mut StopAt) -> Result<(), Error> {
    let checkpoint = tiny("llama");
    let windows: Vec<Vec<u32>> = (0..24).map(|i| (0..24).map(|j| (i * 131 + j * 17 + i * j) % 512).collect()).collect();
    let windows = TokenWindows::from_windows(&windows);
    let mut writer = CheckpointWriter::create(&checkpoint, out, settings)?;
    let text = serde_json::json!({ "content": sum_of_windows(&windows) });
    writer.resume(&Run::new(&check_weights(&checkpoint)?, text, "the CPU", settings), false)?;
    block_on(quantize_layers(CandleOps::default(), &checkpoint, &windows, settings, progress, &mut writer))?;
    writer.finish()
}

#[test]
fn stopping_at_every_fiftieth_solves_no_matrix_twice() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, pieces) = (folder.path().join("whole"), folder.path().join("pieces"));
    let mut undisturbed = StopAt::new(2.0);
    quantize(&whole, &settings(), &mut undisturbed).unwrap();
    let expected = contents(&whole);
    assert_eq!(undisturbed.solved.len(), 9);

    let (mut solved, mut stops) = (Vec::new(), 0);
    for part in 1..=51 {
        let mut progress = StopAt::new(if part == 51 { 2.0 } else { f64::from(part) / 50.0 });
        match quantize(&pieces, &settings(), &mut progress) {
            Ok(()) => {
                assert!(stops > 20 && progress.solved.len() < 9, "{stops} stops");
                solved.extend(progress.solved);
                break;
            }
            Err(Error::Cancelled) => stops += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(!pieces.join("config.json").exists());
        solved.extend(progress.solved);
    }
    // No matrix is solved twice.
    assert_eq!(solved, undisturbed.solved);
    assert_eq!(differing(&contents(&pieces), &expected), "");

    for part in (1..50).step_by(7) {
        let once = folder.path().join(format!("once{part}"));
        let stopped = quantize(&once, &settings(), &mut StopAt::new(f64::from(part) / 50.0));
        // Nothing can be stopped after the last matrix.
        assert!(matches!(stopped, Err(Error::Cancelled)) || part > 40, "{part}");
        quantize(&once, &settings(), &mut StopAt::new(2.0)).unwrap();
        assert_eq!(differing(&contents(&once), &expected), "", "{part}");
    }
}

/// A checkpoint being written, with a log: `+NAME` when a matrix is prepared, `=NAME` when it is in the journal.
struct Watched<'a> {
    writer: CheckpointWriter<'a>,
    log: Vec<String>,
    /// Threads that packed matrices.
    threads: Arc<Mutex<HashSet<ThreadId>>>,
}

impl Store for Watched<'_> {
    fn prepare(&mut self, param: &Param, quantized: &Arc<Quantized>) -> Result<Option<Writing>, Error> {
        self.log.push(format!("+{}", param.name));
        let write = self.writer.prepare(param, quantized)?.expect("a file to write");
        let threads = Arc::clone(&self.threads);
        Ok(Some(Box::new(move || {
            threads.lock().unwrap().insert(std::thread::current().id());
            write()
        })))
    }

    fn add(&mut self, param: &Param, quantized: &Quantized, report: &MatrixReport) -> Result<(), Error> {
        self.writer.add(param, quantized, report)?;
        self.log.push(format!("={}", param.name));
        Ok(())
    }
}

/// Another thread packs and writes matrices, but the journal has each before the next is prepared.
#[test]
fn one_matrix_at_most_is_not_in_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = tiny("llama");
    let windows = TokenWindows::from_windows(&[(0..24).map(|i| i * 17 % 512).collect()]);
    let writer = CheckpointWriter::create(&checkpoint, folder.path(), &settings()).unwrap();
    let mut store = Watched { writer, log: Vec::new(), threads: Arc::default() };
    let ops = CandleOps::default();
    block_on(quantize_layers(ops, &checkpoint, &windows, &settings(), &mut (), &mut store)).unwrap();
    assert_eq!(store.log.len(), 2 * 9);
    for pair in store.log.chunks(2) {
        assert_eq!(pair[0].replacen('+', "=", 1), pair[1], "{:?}", store.log);
    }
    let threads = store.threads.lock().unwrap();
    assert!(!threads.is_empty() && !threads.contains(&std::thread::current().id()));
    store.writer.finish().unwrap();
}

#[test]
fn other_settings_do_not_continue_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    quantize(&out, &settings(), &mut StopAt::new(0.6)).unwrap_err();
    let other = Settings { matrix: Options { damp_percent: 0.02, ..settings().matrix }, ..settings() };
    let error = quantize(&out, &other, &mut StopAt::new(2.0)).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::OtherRun { .. }), "{message}");
    assert!(message.contains("`settings.matrix.damp_percent` was 0.01; now it is 0.02"), "{message}");
    // The refused command loses nothing.
    let mut progress = StopAt::new(2.0);
    quantize(&out, &settings(), &mut progress).unwrap();
    assert!(progress.solved.len() < 9);
}

/// A folder with the tiny model, a tokenizer of its size and a text.
fn model(folder: &Path) {
    tiny_folder(folder);
    std::fs::write(folder.join("text.txt"), "A text that is about nothing in particular, line by line. ".repeat(99))
        .unwrap();
}

/// A text file and text that the model writes.
const MIXED: &[&str] = &["--calib", "text.txt", "--calib", "self"];

fn command(folder: &Path, out: &str, more: &[&str]) -> Command {
    command_on(MIXED, folder, out, more)
}

fn command_on(calib: &[&str], folder: &Path, out: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gptq-quant"));
    let mlc = format!("{out}-mlc");
    command.current_dir(folder).args(["model", "-o", out, "--grid", "q4f16_1", "--device", "cpu", "--to-mlc", &mlc]);
    command.args(["--conv-template", "chatml", "--samples", "12"]).args(calib);
    command.args(["--seq-len", "32"]).args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(folder: &Path, out: &str, more: &[&str]) -> Output {
    command(folder, out, more).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn killed_at_fifty_points_the_run_ends_in_the_same_bytes() {
    check_killed(MIXED, 50);
}

/// The head's inputs are then summed while the text is written, partly by a killed process.
#[test]
fn killed_on_text_of_the_model_the_run_ends_in_the_same_bytes() {
    check_killed(&["--calib", "self"], 20);
}

fn check_killed(calib: &[&str], times: usize) {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path());
    let begun = Instant::now();
    let output = command_on(calib, folder.path(), "whole", &[]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let whole = begun.elapsed();
    let expected = [contents(&folder.path().join("whole")), contents(&folder.path().join("whole-mlc"))];

    let mut state = 7u64;
    let mut killed = 0;
    while killed < times {
        // Kill the program repeatedly until one run ends.
        loop {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let wait = whole.mul_f64((state >> 40) as f64 / (1u64 << 24) as f64 * 1.1) + Duration::from_millis(1);
            let mut child = command_on(calib, folder.path(), "out", &[]).spawn().unwrap();
            std::thread::sleep(wait);
            let ended = child.try_wait().unwrap();
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            match ended {
                None => killed += 1,
                Some(status) => {
                    assert!(status.success(), "{}", stderr(&output));
                    break;
                }
            }
        }
        for (name, expected) in ["out", "out-mlc"].iter().zip(&expected) {
            let path = folder.path().join(name);
            assert_eq!(differing(&contents(&path), expected), "", "{name} after {killed} interruptions");
            std::fs::remove_dir_all(path).unwrap();
        }
    }
}

#[test]
fn finished_output_is_not_made_again() {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path());
    assert!(run(folder.path(), "out", &[]).status.success());
    let modified = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().modified().unwrap();
    let before = modified("out/model.safetensors");
    let again = run(folder.path(), "out", &[]);
    assert!(again.status.success(), "{}", stderr(&again));
    assert!(String::from_utf8_lossy(&again.stdout).contains("is what this command makes"), "{again:?}");
    assert_eq!(modified("out/model.safetensors"), before);
    assert!(run(folder.path(), "out", &["--restart"]).status.success());
    assert_ne!(modified("out/model.safetensors"), before);
}

/// Kills a run after its first finished matrices.
fn leave_interrupted(folder: &Path, out: &str) {
    let journal = folder.join(out).join(".gptq-quant-journal.tmp");
    let mut child = command(folder, out, &[]).spawn().unwrap();
    while std::fs::read_to_string(&journal).map_or(0, |text| text.lines().count()) < 3 {
        assert!(child.try_wait().unwrap().is_none(), "the run must be killed half-way");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn another_model_text_or_option_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path());
    leave_interrupted(folder.path(), "out");

    let check = |more: &[&str], words: &[&str]| {
        let output = run(folder.path(), "out", more);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        for word in words.iter().chain(&["interrupted run", "--restart"]) {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
    };
    check(&["--damp-percent", "0.02"], &["`settings.matrix.damp_percent`", "0.02"]);
    check(&["--seed", "1"], &["`text.sources.0.content`"]);
    let text = folder.path().join("text.txt");
    let old = std::fs::read(&text).unwrap();
    std::fs::write(&text, "Another text that is about nothing, line by line. ".repeat(99)).unwrap();
    check(&[], &["`text.sources.0.content`"]);
    std::fs::write(&text, old).unwrap();
    let weights = folder.path().join("model/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    check(&[], &["`model`"]);

    let output = run(folder.path(), "out", &["--restart"]);
    assert!(output.status.success(), "{}", stderr(&output));
}

/// A journal and a finished folder of a program with another algorithm.
#[test]
fn another_algorithm_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path());
    leave_interrupted(folder.path(), "out");
    let journal = folder.path().join("out/.gptq-quant-journal.tmp");
    let text = std::fs::read_to_string(&journal).unwrap();
    let steps = ["text", "forward", "hessian", "solve", "refine", "report", "files"];
    for step in steps {
        let number = format!("\"{step}\":");
        let at = text.find(&number).unwrap() + number.len();
        assert!(at < text.find('\n').unwrap(), "the fingerprint comes first: {text}");
        std::fs::write(&journal, format!("{}9{}", &text[..at], &text[at..])).unwrap();
        let output = run(folder.path(), "out", &[]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        for word in [&format!("interrupted run in which `steps.{step}` was 9")[..], "--restart"] {
            assert!(stderr(&output).contains(word), "`{word}` is not in: {}", stderr(&output));
        }
        assert!(std::fs::read_to_string(&journal).unwrap().lines().count() >= 3, "finished matrices stay");
    }
    std::fs::write(&journal, &text).unwrap();
    let output = run(folder.path(), "out", &[]);
    assert!(output.status.success(), "{}", stderr(&output));

    // The finished folder names its steps. Another step changes the checksum of the run (tested in `run.rs`).
    let config = folder.path().join("out/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let meta = &mut value["quantization_config"]["meta"];
    meta["steps"]["solve"] = 0.into();
    meta["run"] = "of an older program".into();
    std::fs::write(&config, value.to_string()).unwrap();
    let output = run(folder.path(), "out", &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("anew: `steps.solve` was 0"), "{}", stderr(&output));
    let made: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    assert_eq!(made, serde_json::from_str::<serde_json::Value>(&text).unwrap());
}
