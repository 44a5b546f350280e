//! The same call resumes a conversion that its caller or the system ended, and produces the same bytes.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use common::{format, names, open, read, testdata};
use weight_convert::{Error, Progress, WeightOptions, WeightsReport, convert_weight};

const CHECKPOINT: &str = "mlc/untied-f16-sharded/hf";

/// Small shards, so that there are several.
fn options() -> WeightOptions {
    WeightOptions { shard_size: 24 << 10, ..WeightOptions::default() }
}

fn convert(out: &Path, progress: &mut dyn Progress) -> Result<WeightsReport, Error> {
    convert_weight(&open(CHECKPOINT), format("q4f16_1"), &options(), out, progress)
}

/// Ends the work at the given number of progress calls.
struct EndAt {
    remaining: usize,
    /// Ends the process like the system does: without dropping or flushing anything.
    aborts: bool,
}

impl EndAt {
    fn count(&mut self) {
        self.remaining = self.remaining.saturating_sub(1);
        if self.remaining == 0 && self.aborts {
            std::process::abort();
        }
    }
}

impl Progress for EndAt {
    fn advance(&mut self, _bytes: u64, _param: &str) {
        self.count();
    }

    fn is_cancelled(&self) -> bool {
        self.remaining == 0
    }
}

fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    names(folder).into_iter().map(|name| (name.clone(), read(folder.join(name)))).collect()
}

/// The files of an undisturbed conversion, and its number of progress calls.
fn undisturbed() -> (BTreeMap<String, Vec<u8>>, usize) {
    let out = tempfile::tempdir().unwrap();
    let mut progress = EndAt { remaining: usize::MAX, aborts: false };
    let report = convert(out.path(), &mut progress).unwrap();
    assert!(report.shards > 10, "{report:?}");
    (contents(out.path()), usize::MAX - progress.remaining)
}

fn check_finished(out: &Path, expected: &BTreeMap<String, Vec<u8>>, point: usize) -> WeightsReport {
    let report = convert(out, &mut ()).unwrap();
    assert!(contents(out) == *expected, "ended at {point}");
    report
}

#[test]
fn a_cancelled_conversion_resumes() {
    let (expected, points) = undisturbed();
    let mut resumed = 0;
    for point in 1..=points {
        let out = tempfile::tempdir().unwrap();
        let error = convert(out.path(), &mut EndAt { remaining: point, aborts: false }).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
        // No index or configuration: a reader finds no model.
        assert!(names(out.path()).iter().all(|name| name.starts_with(".weight-convert-")), "{:?}", names(out.path()));
        resumed += check_finished(out.path(), &expected, point).resumed;
    }
    assert!(resumed > points, "shards are kept: {resumed}");
}

const CHILD: &str = "WEIGHT_CONVERT_TEST_END_AT";
const CHILD_OUT: &str = "WEIGHT_CONVERT_TEST_OUT";

/// Not a test itself: the next test runs it in a process that ends early.
#[test]
fn child() {
    if let (Ok(point), Ok(out)) = (std::env::var(CHILD), std::env::var(CHILD_OUT)) {
        let _ = convert(&PathBuf::from(out), &mut EndAt { remaining: point.parse().unwrap(), aborts: true });
    }
}

/// Fifty processes end at fifty points, ten of them twice in the same folder.
#[test]
fn a_killed_conversion_resumes() {
    let (expected, points) = undisturbed();
    let kill = |out: &Path, point: usize| {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--test-threads", "1"])
            .envs([(CHILD, point.to_string()), (CHILD_OUT, out.display().to_string())])
            .output()
            .unwrap()
            .status;
        assert!(!status.success(), "the process ends at {point}");
    };
    let mut resumed = 0;
    for kills in 0..40 {
        let out = tempfile::tempdir().unwrap();
        let point = 1 + kills * points / 40;
        kill(out.path(), point);
        if kills % 4 == 0 {
            kill(out.path(), (point + points / 8).min(points));
        }
        resumed += check_finished(out.path(), &expected, point).resumed;
    }
    assert!(resumed > 40, "shards are kept: {resumed}");
}

fn ended_at(point: usize) -> tempfile::TempDir {
    let out = tempfile::tempdir().unwrap();
    convert(out.path(), &mut EndAt { remaining: point, aborts: false }).unwrap_err();
    assert!(names(out.path()).contains(&".weight-convert-journal.tmp".to_owned()), "{:?}", names(out.path()));
    out
}

#[test]
fn shards_damaged_in_between_are_converted_again() {
    let (expected, points) = undisturbed();
    let out = ended_at(points);
    let shard = names(out.path()).into_iter().find(|name| name.contains("params_shard_0.bin")).unwrap();
    let path = out.path().join(shard);
    let mut bytes = read(&path);
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let report = check_finished(out.path(), &expected, points);
    assert!(report.resumed > 5 && report.resumed < report.shards, "{report:?}");

    // The last line of the journal is incomplete on disk.
    let out = ended_at(points);
    let journal = out.path().join(".weight-convert-journal.tmp");
    let text = String::from_utf8(read(&journal)).unwrap();
    fs::write(&journal, &text[..text.len() - 20]).unwrap();
    check_finished(out.path(), &expected, points);
}

#[test]
fn a_different_conversion_does_not_resume_it() {
    let (_, points) = undisturbed();
    let fresh = tempfile::tempdir().unwrap();
    let other = |out: &Path| convert_weight(&open(CHECKPOINT), format("q4f16_0"), &options(), out, &mut ()).unwrap();
    other(fresh.path());
    let out = ended_at(points);
    assert_eq!(other(out.path()).resumed, 0);
    assert!(contents(out.path()) == contents(fresh.path()));

    // The same conversion of a changed source.
    let source = tempfile::tempdir().unwrap();
    for name in names(&testdata(CHECKPOINT)) {
        fs::copy(testdata(CHECKPOINT).join(&name), source.path().join(&name)).unwrap();
    }
    let convert = |out: &Path, progress: &mut dyn Progress| {
        let checkpoint = model_format::SafetensorsCheckpoint::open(source.path()).unwrap();
        convert_weight(&checkpoint, format("q4f16_1"), &options(), out, progress)
    };
    let out = tempfile::tempdir().unwrap();
    convert(out.path(), &mut EndAt { remaining: points, aborts: false }).unwrap_err();
    let weights = source.path().join("model-00002-of-00004.safetensors");
    let mut bytes = read(&weights);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    assert_eq!(convert(out.path(), &mut ()).unwrap().resumed, 0);
}

#[test]
fn shards_of_another_algorithm_are_converted_again_and_the_step_is_named() {
    let (expected, points) = undisturbed();
    for step in ["encode", "from_gptq", "shards"] {
        let out = ended_at(points);
        let journal = out.path().join(".weight-convert-journal.tmp");
        let text = String::from_utf8(read(&journal)).unwrap();
        // As an older version of the program leaves it.
        let number = format!("\"{step}\":");
        let at = text.find(&number).unwrap() + number.len();
        assert!(at < text.find('\n').unwrap(), "the fingerprint comes first: {text}");
        fs::write(&journal, format!("{}9{}", &text[..at], &text[at..])).unwrap();
        let report = check_finished(out.path(), &expected, points);
        assert_eq!(report.resumed, 0, "{step}");
        let why = report.begun_anew.unwrap();
        assert!(why.contains(&format!("`steps.{step}` was 9")), "{why}");
    }
    let out = ended_at(points);
    let report = check_finished(out.path(), &expected, points);
    assert_eq!((report.resumed > 0, report.begun_anew), (true, None));
}

/// Starts a second conversion into the same folder during the first.
struct Second<'a>(&'a Path, Vec<Error>);

impl Progress for Second<'_> {
    fn advance(&mut self, _bytes: u64, _param: &str) {
        self.1.extend(convert(self.0, &mut ()).err());
    }
}

#[test]
fn two_conversions_do_not_share_a_folder() {
    let (expected, points) = undisturbed();
    let out = tempfile::tempdir().unwrap();
    let mut progress = Second(out.path(), Vec::new());
    convert(out.path(), &mut progress).unwrap();
    assert_eq!(progress.1.len(), points);
    assert!(
        progress.1.iter().all(|error| matches!(error, Error::Format(model_format::Error::InUse { .. }))),
        "{:?}",
        progress.1
    );
    assert!(contents(out.path()) == expected);
}
