//! [`Staging`]: writes the files of a folder under temporary names and renames them together. A later process can
//! resume an interrupted run.

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
/// Name of the lock file. The process that writes to a folder holds the lock.
const LOCK: &str = "lock";
/// Attempts to lock, if another process keeps removing the lock file.
const ATTEMPTS: u32 = 100;

/// The program's names for its files in an output folder.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Name of the program, a part of the temporary names.
    pub program: &'static str,
    /// Files that mark a folder as complete. [`Staging::commit`] renames them last, in this order, and removes old ones
    /// first.
    pub markers: &'static [&'static str],
}

/// An output folder with files under temporary names. Dropping it before [`Staging::commit`] removes these files,
/// unless they are [kept](Staging::keep) for the next process.
pub struct Staging {
    layout: Layout,
    folder: PathBuf,
    /// The outermost folder that was created.
    created: Option<PathBuf>,
    files: Vec<String>,
    /// The list of finished files, if the run can be resumed.
    journal: Option<Journal>,
    lock: Option<File>,
    keep: bool,
}

impl Staging {
    /// Creates `folder` if it is missing, and locks it.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] if another process has locked the folder, [`Error::Io`].
    pub fn new(folder: &Path, layout: Layout) -> Result<Staging> {
        let created = folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.exists()).last();
        let created = created.map(Path::to_path_buf);
        let mut staging = Staging {
            layout,
            folder: folder.into(),
            created,
            files: Vec::new(),
            journal: None,
            lock: None,
            keep: false,
        };
        let path = staging.temporary(LOCK);
        for attempt in 1.. {
            let lock = match fs::create_dir_all(folder).and_then(|()| File::create(&path)) {
                Ok(lock) => lock,
                // Another process has just removed a folder that it had created.
                Err(e) if matches!(e.kind(), NotFound | AlreadyExists) && attempt < ATTEMPTS && !folder.is_file() => {
                    continue;
                }
                Err(e) => return Err(io("create", if folder.is_dir() { &path } else { folder }, e)),
            };
            // Any other error means a file system without locks. Continue without protection.
            if let Err(TryLockError::WouldBlock) = lock.try_lock() {
                // The other process removes the folder.
                staging.created = None;
                return Err(Error::InUse { folder: folder.display().to_string() });
            }
            // At its end a process removes its lock file and then unlocks it. If we opened the file before that, we
            // hold the lock of a removed file, and a third process could lock a new file. Check, and retry.
            if is_at(&lock, &path) || attempt == ATTEMPTS {
                staging.lock = Some(lock);
                break;
            }
        }
        Ok(staging)
    }

    /// Checks that the folder contains only temporary files of this program and files that are `replaceable` by name:
    /// files of an earlier run, or files that the user allowed to overwrite. `known` is true for names that the program
    /// writes. These are also accepted if a journal exists, because then a process was interrupted while renaming its
    /// files.
    ///
    /// # Errors
    ///
    /// [`Error::ForeignFiles`], [`Error::Io`].
    pub fn check_folder(&self, known: impl Fn(&str) -> bool, replaceable: impl Fn(&str) -> bool) -> Result<()> {
        let was_interrupted = self.left().is_some();
        let mut names = Vec::new();
        let mut all_known = true;
        for entry in fs::read_dir(&self.folder).map_err(|e| io("list", &self.folder, e))? {
            let entry = entry.map_err(|e| io("list", &self.folder, e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            let is_known = is_file && known(&name);
            let is_ours = self.is_temporary(&name) || replaceable(&name) || (was_interrupted && is_known);
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

    /// The fingerprint of an interrupted run in this folder, if one can be resumed.
    pub fn left(&self) -> Option<String> {
        Journal::fingerprint(&self.temporary(Journal::NAME))
    }

    /// Resumes an interrupted run with the same fingerprint, a single line of text. Removes all other temporary files,
    /// in particular those of a run with another fingerprint. Returns the finished files.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn resume(&mut self, fingerprint: &str) -> Result<Vec<Finished>> {
        let path = self.temporary(Journal::NAME);
        let mut finished = Journal::read(&path, fingerprint);
        finished.retain(|file| self.is_intact(file));
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

    /// True if a finished file is unchanged. A file with its final name, from a process interrupted while renaming,
    /// gets its temporary name again.
    fn is_intact(&self, file: &Finished) -> bool {
        let (temporary, path) = (self.temporary(&file.name), self.folder.join(&file.name));
        let is_complete = self.layout.markers.iter().any(|marker| self.folder.join(marker).exists());
        if !temporary.exists() && !is_complete && file.matches(&path) {
            return fs::rename(&path, &temporary).is_ok();
        }
        file.matches(&temporary)
    }

    fn temporary_name(&self, name: &str) -> String {
        format!(".{}-{name}{SUFFIX}", self.layout.program)
    }

    /// Temporary path of a file.
    pub fn temporary(&self, name: &str) -> PathBuf {
        self.folder.join(self.temporary_name(name))
    }

    /// Creates a file with the final name `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn create(&mut self, name: &str) -> Result<StagedFile> {
        let path = self.folder.join(name);
        let file = File::create(self.temporary(name)).map_err(|e| io("create", &path, e))?;
        self.files.push(name.to_owned());
        Ok(StagedFile { file, path, nbytes: 0, sum: ShardSum::default() })
    }

    /// Writes a complete small file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn write(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let mut file = self.create(name)?;
        file.write(content)?;
        file.finish().map(drop)
    }

    /// Adds a file that the caller writes at [`Staging::temporary`].
    pub fn adopt(&mut self, name: &str) {
        self.files.push(name.to_owned());
    }

    /// Records a finished file in the journal, if the run can be resumed.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn finished(&mut self, file: &Finished) -> Result<()> {
        match &mut self.journal {
            Some(journal) => journal.add(file).map_err(|e| io("write", &self.folder, e)),
            None => Ok(()),
        }
    }

    /// Keeps the finished files for the next process when this is dropped, if the journal lists any.
    pub fn keep(&mut self) {
        self.keep = self.journal.as_ref().is_some_and(|journal| journal.len() > 0);
    }

    /// Removes files of the folder that are `old` by name, then renames the staged files to their final names, the
    /// markers last. Removes staged files that are only `intermediate`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]. The finished files are then kept, and a later process can resume.
    pub fn commit(mut self, old: impl Fn(&str) -> bool, intermediate: impl Fn(&str) -> bool) -> Result<()> {
        let markers = self.layout.markers;
        let (parts, mut files): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.files).into_iter().partition(|name| intermediate(name));
        files.sort_by_key(|name| markers.iter().position(|marker| marker == name).map_or(0, |i| i + 1));
        // From here on the folder changes. Keep the finished files if an error occurs.
        self.created = None;
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
        // Ignore failures: a destructor cannot report them, and the names mark the files as temporary.
        let clear = |name: &str| {
            let _ = fs::remove_file(self.temporary(name));
        };
        if !self.keep {
            self.files.iter().for_each(|name| clear(name));
            // Without `resume`, the journal belongs to an earlier run.
            if self.journal.is_some() {
                clear(Journal::NAME);
            }
        }
        // Remove the lock file before unlocking it: after that, it may belong to another process.
        if self.lock.is_some() {
            clear(LOCK);
        }
        self.lock = None;
        if let Some(created) = self.created.as_ref().filter(|_| !self.keep) {
            // `remove_dir` removes empty folders only.
            let mut folder = self.folder.as_path();
            while fs::remove_dir(folder).is_ok() && folder != created {
                let Some(parent) = folder.parent() else { break };
                folder = parent;
            }
        }
    }
}

/// An open file under its temporary name.
pub struct StagedFile {
    file: File,
    /// Final path.
    path: PathBuf,
    nbytes: u64,
    sum: ShardSum,
}

impl StagedFile {
    /// Appends bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.nbytes += bytes.len() as u64;
        self.sum.update(bytes);
        self.file.write_all(bytes).map_err(|e| io("write", &self.path, e))
    }

    /// Number of bytes written.
    pub fn nbytes(&self) -> u64 {
        self.nbytes
    }

    /// Syncs the complete file. Pass the result to [`Staging::finished`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn finish(self) -> Result<Finished> {
        self.file.sync_all().map_err(|e| io("write", &self.path, e))?;
        let name = self.path.file_name().expect("the path ends in a name").to_string_lossy().into_owned();
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
            staging.finished(&finished).unwrap();
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
        check_rejected(
            &["params_shard_0.bin", "thesis.tex"],
            false,
            Some((&["params_shard_0.bin", "thesis.tex"], false)),
        );
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
}
