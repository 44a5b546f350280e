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
/// unless they are [kept](Staging::keep_finished) for the next process.
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
        let was_interrupted = self.interrupted_fingerprint().is_some();
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
    pub fn interrupted_fingerprint(&self) -> Option<String> {
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
    pub fn add_external(&mut self, name: &str) {
        self.files.push(name.to_owned());
    }

    /// Records a finished file in the journal, if the run can be resumed.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn record_finished(&mut self, file: &Finished) -> Result<()> {
        match &mut self.journal {
            Some(journal) => journal.add(file).map_err(|e| io("write", &self.folder, e)),
            None => Ok(()),
        }
    }

    /// Keeps the finished files for the next process when this is dropped, if the journal lists any.
    pub fn keep_finished(&mut self) {
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

    /// Syncs the complete file. Pass the result to [`Staging::record_finished`].
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
mod tests;
