//! [`Staging`]: files that appear in a folder all at once, and may be finished by a later process.

use std::{
    fs::{self, File, TryLockError},
    io::{
        ErrorKind::{AlreadyExists, NotFound},
        Write,
    },
    path::{Path, PathBuf},
};

pub use difference::difference;
pub use journal::{Finished, sum_of_file};

use serde_json::Value;

use crate::{Error, Result, files::is_at, tensor_cache::ShardSum};
use journal::Journal;

mod difference;
mod journal;

const SUFFIX: &str = ".tmp";
/// Held by the process that writes to a folder.
const LOCK: &str = "lock";
/// How often a lock is tried for whose file another process has just removed.
const ATTEMPTS: u32 = 100;

/// Who writes to a folder, and what.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// The program; temporary files bear its name.
    pub program: &'static str,
    /// Files that make a folder look whole. They are renamed last, in this order, and older ones are removed before
    /// anything else is.
    pub markers: &'static [&'static str],
}

/// A folder with files being written under temporary names. Dropped before [`Staging::commit`], it leaves nothing behind,
/// unless it is to be [kept](Staging::keep) for the next process.
pub struct Staging {
    layout: Layout,
    folder: PathBuf,
    /// The outermost folder that had to be made.
    made: Option<PathBuf>,
    files: Vec<String>,
    /// What is finished, where that is to outlive the process.
    journal: Option<Journal>,
    lock: Option<File>,
    keep: bool,
}

impl Staging {
    /// Makes `folder` where it is not there.
    pub fn new(folder: &Path, layout: Layout) -> Result<Staging> {
        let made = folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.exists()).last();
        let made = made.map(Path::to_path_buf);
        let mut staging =
            Staging { layout, folder: folder.into(), made, files: Vec::new(), journal: None, lock: None, keep: false };
        let path = staging.temporary(LOCK);
        for attempt in 1.. {
            let lock = match fs::create_dir_all(folder).and_then(|()| File::create(&path)) {
                Ok(lock) => lock,
                // Another process has just removed the folder that it had made.
                Err(e) if matches!(e.kind(), NotFound | AlreadyExists) && attempt < ATTEMPTS && !folder.is_file() => {
                    continue;
                }
                Err(e) => return Err(io("create", if folder.is_dir() { &path } else { folder }, e)),
            };
            // Another error is that of a file system without locks, where nothing is known of others.
            if let Err(TryLockError::WouldBlock) = lock.try_lock() {
                // It is the other's to remove.
                staging.made = None;
                return Err(Error::InUse { folder: folder.display().to_string() });
            }
            // A process that ends removes its lock file before it unlocks it. Who opened the file before that has locked a
            // file without a name, beside which a third process could lock a new one.
            if is_at(&lock, &path) || attempt == ATTEMPTS {
                staging.lock = Some(lock);
                break;
            }
        }
        Ok(staging)
    }

    /// Refuses a folder that holds anything but temporary files of this program and files that are `replaceable`: those that a run
    /// of this program wrote, or that the user gave up. Files that are `known` by name are replaceable where a process was ended
    /// while it renamed its files: the journal is still there.
    pub fn check_folder(&self, known: impl Fn(&str) -> bool, replaceable: impl Fn(&str) -> bool) -> Result<()> {
        let was_ended = self.left().is_some();
        let mut names = Vec::new();
        let mut all_known = true;
        for entry in fs::read_dir(&self.folder).map_err(|e| io("list", &self.folder, e))? {
            let entry = entry.map_err(|e| io("list", &self.folder, e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            let is_known = is_file && known(&name);
            let is_ours = self.is_temporary(&name) || replaceable(&name) || (was_ended && is_known);
            if !(is_file && is_ours) {
                all_known &= is_known;
                names.push(name);
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        names.sort();
        Err(Error::ForeignFiles { folder: self.folder.display().to_string(), names, replaceable: all_known })
    }

    fn is_temporary(&self, name: &str) -> bool {
        let prefix = self.temporary_name("").replace(SUFFIX, "");
        name.starts_with(&prefix) && name.ends_with(SUFFIX)
    }

    /// The fingerprint of what a process that was ended has left, if anything.
    pub fn left(&self) -> Option<String> {
        Journal::fingerprint(&self.temporary(Journal::NAME))
    }

    /// Goes on with what a process that was ended has left, if it did the same work: `fingerprint`, one line, tells. What
    /// another work has left is cleared away. The files that are finished.
    pub fn resume(&mut self, fingerprint: &str) -> Result<Vec<Finished>> {
        let path = self.temporary(Journal::NAME);
        let mut finished = Journal::read(&path, fingerprint);
        finished.retain(|file| self.is_there(file));
        let kept: Vec<String> = finished.iter().map(|file| self.temporary_name(&file.name)).collect();
        for entry in fs::read_dir(&self.folder).map_err(|e| io("list", &self.folder, e))? {
            let entry = entry.map_err(|e| io("list", &self.folder, e))?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| self.is_temporary(name)) else { continue };
            if !kept.iter().any(|kept| kept == name) && name != self.temporary_name(LOCK) {
                fs::remove_file(entry.path()).map_err(|e| io("clear", &entry.path(), e))?;
            }
        }
        self.files = finished.iter().map(|file| file.name.clone()).collect();
        self.journal = Some(Journal::begin(&path, fingerprint, &finished).map_err(|e| io("write", &path, e))?);
        Ok(finished)
    }

    /// Whether a finished file is still what it was. One that has its name already, because the process was ended while
    /// files were being renamed, gets its temporary name again.
    fn is_there(&self, file: &Finished) -> bool {
        let (temporary, path) = (self.temporary(&file.name), self.folder.join(&file.name));
        let whole = self.layout.markers.iter().any(|marker| self.folder.join(marker).exists());
        if !temporary.exists() && !whole && file.is(&path) {
            return fs::rename(&path, &temporary).is_ok();
        }
        file.is(&temporary)
    }

    fn temporary_name(&self, name: &str) -> String {
        format!(".{}-{name}{SUFFIX}", self.layout.program)
    }

    /// Where a file lies until it gets its name.
    pub fn temporary(&self, name: &str) -> PathBuf {
        self.folder.join(self.temporary_name(name))
    }

    /// Begins a file that will be called `name`.
    pub fn create(&mut self, name: &str) -> Result<StagedFile> {
        let path = self.folder.join(name);
        let file = File::create(self.temporary(name)).map_err(|e| io("create", &path, e))?;
        self.files.push(name.to_owned());
        Ok(StagedFile { file, path, nbytes: 0, sum: ShardSum::default() })
    }

    /// A whole small file.
    pub fn write(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let mut file = self.create(name)?;
        file.write(content)?;
        file.finish().map(drop)
    }

    /// Takes up a file that somebody else writes at [`Staging::temporary`].
    pub fn adopt(&mut self, name: &str) {
        self.files.push(name.to_owned());
    }

    /// Notes that a file is complete and on the disk, for whoever goes on after this process.
    pub fn finished(&mut self, file: &Finished) -> Result<()> {
        match &mut self.journal {
            Some(journal) => journal.add(file).map_err(|e| io("write", &self.folder, e)),
            None => Ok(()),
        }
    }

    /// Leaves what is finished to the next process.
    pub fn keep(&mut self) {
        self.keep = self.journal.as_ref().is_some_and(|journal| journal.len() > 0);
    }

    /// Gives files their names, the markers last, after removing files of the folder that are `old`. Those that were
    /// `only_until_now` are removed instead.
    pub fn commit(mut self, old: impl Fn(&str) -> bool, only_until_now: impl Fn(&str) -> bool) -> Result<()> {
        let markers = self.layout.markers;
        let (parts, mut files): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.files).into_iter().partition(|name| only_until_now(name));
        files.sort_by_key(|name| markers.iter().position(|marker| marker == name).map_or(0, |i| i + 1));
        // From here on the folder is no longer what it was, and what is finished stays.
        self.made = None;
        self.keep = true;
        for marker in markers.iter().filter(|marker| old(marker)) {
            remove(&self.folder.join(marker))?;
        }
        for entry in fs::read_dir(&self.folder).map_err(|e| io("list", &self.folder, e))? {
            let entry = entry.map_err(|e| io("list", &self.folder, e))?;
            if entry.file_name().to_str().is_some_and(&old) {
                remove(&entry.path())?;
            }
        }
        for name in files {
            let path = self.folder.join(&name);
            fs::rename(self.temporary(&name), &path).map_err(|e| io("write", &path, e))?;
        }
        self.keep = false;
        self.files = parts;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // There is nobody to tell where something cannot be removed; its name says what it is.
        let clear = |name: &str| {
            let _ = fs::remove_file(self.temporary(name));
        };
        if !self.keep {
            self.files.iter().for_each(|name| clear(name));
            // What was not taken up is another's.
            if self.journal.is_some() {
                clear(Journal::NAME);
            }
        }
        // Removed while it is locked: once it is unlocked it may be another's.
        if self.lock.is_some() {
            clear(LOCK);
        }
        self.lock = None;
        if let Some(made) = self.made.as_ref().filter(|_| !self.keep) {
            // Only what is empty goes.
            let mut folder = self.folder.as_path();
            while fs::remove_dir(folder).is_ok() && folder != made {
                let Some(parent) = folder.parent() else { break };
                folder = parent;
            }
        }
    }
}

/// A file under its temporary name.
pub struct StagedFile {
    file: File,
    /// What it will be called.
    path: PathBuf,
    nbytes: u64,
    sum: ShardSum,
}

impl StagedFile {
    /// Adds to it.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.nbytes += bytes.len() as u64;
        self.sum.update(bytes);
        self.file.write_all(bytes).map_err(|e| io("write", &self.path, e))
    }

    /// Bytes so far.
    pub fn nbytes(&self) -> u64 {
        self.nbytes
    }

    /// The content is complete and on the disk: what [`Staging::finished`] takes.
    pub fn finish(self) -> Result<Finished> {
        self.file.sync_all().map_err(|e| io("write", &self.path, e))?;
        let name = self.path.file_name().expect("a name was given").to_string_lossy().into_owned();
        Ok(Finished { name, nbytes: self.nbytes, md5sum: self.sum.finish(), note: Value::Null })
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != NotFound => Err(io("replace", path, e)),
        _ => Ok(()),
    }
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io { action, path: path.into(), source }
}

#[cfg(test)]
mod tests {
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

    /// A process that is ended: what it holds is closed, nothing is cleared.
    fn end(mut staging: Staging) {
        staging.lock = None;
        std::mem::forget(staging);
    }

    /// Stages three shards and an index over a folder that holds an older model.
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
            staging.finished(&finished).unwrap();
        }
        staging.write("tensor-cache.json", b"new").unwrap();
        staging
    }

    /// A commit is a row of removals and renamings; wherever it ends, the next one finishes it.
    #[test]
    fn a_commit_that_was_ended_is_taken_up_again() {
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
            end(staging);

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

    /// Threads that open, lock and remove the same lock file are like processes: each opens it by itself.
    #[test]
    fn there_is_never_more_than_one_writer() {
        use std::sync::atomic::{AtomicUsize, Ordering};

        let folder = tempfile::tempdir().unwrap();
        // A folder that is made, and one that is there.
        for path in [folder.path().join("made"), folder.path().to_path_buf()] {
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

    /// Names of `found`, in a folder of these files, that are refused; `known` are shards and the index.
    fn check_refused(files: &[&str], replaceable: bool, expected: Option<(&[&str], bool)>) {
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
            assert!(folder.path().join(name.trim_end_matches('/')).exists(), "{name} is left alone");
        }
    }

    #[test]
    fn what_others_have_written_is_refused_by_name() {
        check_refused(&[], false, None);
        check_refused(&[".test-params_shard_0.bin.tmp"], false, None);
        check_refused(&["params_shard_0.bin", "tensor-cache.json"], true, None);
        let shards: &[&str] = &["params_shard_0.bin", "tensor-cache.json"];
        check_refused(shards, false, Some((shards, true)));
        check_refused(&["params_shard_0.bin", "thesis.tex"], true, Some((&["thesis.tex"], false)));
        check_refused(
            &["params_shard_0.bin", "thesis.tex"],
            false,
            Some((&["params_shard_0.bin", "thesis.tex"], false)),
        );
        // A folder is never a result, whatever it is called; another program's temporary file is another's.
        check_refused(&["params_shard_0.bin/"], true, Some((&["params_shard_0.bin"], false)));
        check_refused(&[".other-lock.tmp"], true, Some((&[".other-lock.tmp"], false)));
        // The journal tells of files that have their names already.
        check_refused(&[".test-journal.tmp", "params_shard_0.bin"], false, None);
        check_refused(&[".test-journal.tmp", "thesis.tex"], false, Some((&["thesis.tex"], false)));
    }

    /// An older model that is still whole is not taken apart for its shards.
    #[test]
    fn a_whole_model_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let staging = staged(folder.path());
        for name in SHARDS {
            fs::rename(staging.temporary(name), folder.path().join(name)).unwrap();
        }
        end(staging);
        let (staging, finished) = resumed(folder.path());
        assert!(finished.is_empty());
        drop(staging);
        assert_eq!(fs::read(folder.path().join("tensor-cache.json")).unwrap(), b"old");
        assert_eq!(fs::read(folder.path().join(SHARDS[1])).unwrap(), SHARDS[1].as_bytes());
    }
}
