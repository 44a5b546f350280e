//! Interrupted commits, concurrent writers, and folders with foreign files.

use super::*;

const LAYOUT: Layout = Layout { program: "test", markers: &["tensor-cache.json"] };

fn is_old(name: &str) -> bool {
    name.starts_with("params_shard_") || name == "tensor-cache.json"
}

fn resumed(folder: &Path) -> (Staging, Vec<Finished>) {
    let mut staging = Staging::new(folder, LAYOUT).unwrap();
    let finished = staging.resume("work").unwrap();
    (staging, finished)
}

const SHARDS: [&str; 3] = ["params_shard_0.bin", "params_shard_1.bin", "params_shard_2.bin"];

/// Simulates the end of a process: closes the lock, removes no files.
fn interrupt(mut staging: Staging) {
    staging.lock = None;
    std::mem::forget(staging);
}

/// Stages three shards and an index in a folder that contains an older model.
fn staged(folder: &Path) -> Staging {
    for name in ["params_shard_0.bin", "params_shard_7.bin", "tensor-cache.json"] {
        fs::write(folder.join(name), "old").unwrap();
    }
    let (mut staging, finished) = resumed(folder);
    assert!(finished.is_empty());
    for name in SHARDS {
        let mut file = staging.create(name).unwrap();
        file.write(name.as_bytes()).unwrap();
        let finished = file.finish().unwrap();
        staging.record_finished(&finished).unwrap();
    }
    staging.write("tensor-cache.json", b"new").unwrap();
    staging
}

/// A commit is a sequence of removals and renames. If it is interrupted between any two, the next commit finishes
/// it.
#[test]
fn an_interrupted_commit_is_resumed() {
    for renamed in 0..=SHARDS.len() {
        let folder = tempfile::tempdir().unwrap();
        let staging = staged(folder.path());
        fs::remove_file(folder.path().join("tensor-cache.json")).unwrap();
        for name in ["params_shard_0.bin", "params_shard_7.bin"] {
            fs::remove_file(folder.path().join(name)).unwrap();
        }
        for name in &SHARDS[..renamed] {
            fs::rename(staging.temporary(name), folder.path().join(name)).unwrap();
        }
        interrupt(staging);

        let (mut staging, finished) = resumed(folder.path());
        assert_eq!(finished.len(), 3, "{renamed}");
        staging.write("tensor-cache.json", b"new").unwrap();
        staging.commit(is_old, |_| false).unwrap();
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, [&SHARDS[..], &["tensor-cache.json"]].concat(), "{renamed}");
        for name in SHARDS {
            assert_eq!(fs::read(folder.path().join(name)).unwrap(), name.as_bytes());
        }
    }
}

/// Threads behave like processes here, because each opens the lock file separately.
#[test]
fn only_one_writer_at_a_time() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    let folder = tempfile::tempdir().unwrap();
    // A folder that must be created, and an existing one.
    for path in [folder.path().join("new"), folder.path().to_path_buf()] {
        let (writers, turns) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        match Staging::new(&path, LAYOUT) {
                            Ok(staging) => {
                                assert_eq!(writers.fetch_add(1, Ordering::SeqCst), 0, "two writers");
                                turns.fetch_add(1, Ordering::SeqCst);
                                std::thread::yield_now();
                                writers.fetch_sub(1, Ordering::SeqCst);
                                drop(staging);
                            }
                            Err(Error::InUse { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
        });
        assert!(turns.into_inner() > 8);
        assert!(!path.join(".test-lock.tmp").exists());
    }
}

/// Checks which names `check_folder` rejects in a folder with these files. Known names are shards and the index.
fn check_rejected(files: &[&str], replaceable: bool, expected: Option<(&[&str], bool)>) {
    let folder = tempfile::tempdir().unwrap();
    for name in files {
        match name.strip_suffix('/') {
            Some(name) => fs::create_dir(folder.path().join(name)).unwrap(),
            None => fs::write(folder.path().join(name), "x").unwrap(),
        }
    }
    let staging = Staging::new(folder.path(), LAYOUT).unwrap();
    let found = match staging.check_folder(is_old, |name| replaceable && is_old(name)) {
        Ok(()) => None,
        Err(Error::ForeignFiles { names, replaceable, .. }) => Some((names, replaceable)),
        Err(error) => panic!("{error}"),
    };
    let expected = expected.map(|(names, all)| (names.iter().map(|name| (*name).to_owned()).collect(), all));
    assert_eq!(found, expected, "{files:?} {replaceable}");
    drop(staging);
    for name in files {
        assert!(folder.path().join(name.trim_end_matches('/')).exists(), "{name} must not be removed");
    }
}

#[test]
fn foreign_files_are_rejected_by_name() {
    check_rejected(&[], false, None);
    check_rejected(&[".test-params_shard_0.bin.tmp"], false, None);
    check_rejected(&["params_shard_0.bin", "tensor-cache.json"], true, None);
    let shards: &[&str] = &["params_shard_0.bin", "tensor-cache.json"];
    check_rejected(shards, false, Some((shards, true)));
    check_rejected(&["params_shard_0.bin", "thesis.tex"], true, Some((&["thesis.tex"], false)));
    check_rejected(&["params_shard_0.bin", "thesis.tex"], false, Some((&["params_shard_0.bin", "thesis.tex"], false)));
    // A folder is never a result, whatever its name. Temporary files of another program are foreign.
    check_rejected(&["params_shard_0.bin/"], true, Some((&["params_shard_0.bin"], false)));
    check_rejected(&[".other-lock.tmp"], true, Some((&[".other-lock.tmp"], false)));
    // With a journal, known names are from a run interrupted while renaming.
    check_rejected(&[".test-journal.tmp", "params_shard_0.bin"], false, None);
    check_rejected(&[".test-journal.tmp", "thesis.tex"], false, Some((&["thesis.tex"], false)));
}

/// Resuming does not take shards from an older model that is still complete.
#[test]
fn a_complete_model_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let staging = staged(folder.path());
    for name in SHARDS {
        fs::rename(staging.temporary(name), folder.path().join(name)).unwrap();
    }
    interrupt(staging);
    let (staging, finished) = resumed(folder.path());
    assert!(finished.is_empty());
    drop(staging);
    assert_eq!(fs::read(folder.path().join("tensor-cache.json")).unwrap(), b"old");
    assert_eq!(fs::read(folder.path().join(SHARDS[1])).unwrap(), SHARDS[1].as_bytes());
}
