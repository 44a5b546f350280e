//! [`Staging`]: files that appear in a folder all at once.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use model_format::Error as FormatError;
use tempfile::{Builder, TempPath};

use crate::Result;

const PREFIX: &str = ".weight-convert-";
const SUFFIX: &str = ".tmp";

/// Files that make a folder look whole. They are renamed last, in this order, and those of an earlier conversion are
/// removed before anything else is.
const MARKERS: [&str; 4] = ["tensor-cache-b16.json", "ndarray-cache.json", "tensor-cache.json", "mlc-chat-config.json"];

/// A folder with files being written under temporary names. Dropped before [`Staging::commit`], it leaves nothing behind.
pub(crate) struct Staging {
    folder: PathBuf,
    /// The outermost folder that had to be made.
    made: Option<PathBuf>,
    files: Vec<(String, TempPath)>,
}

impl Staging {
    /// Makes `folder` where it is not there, and clears away what a killed process has left in it.
    pub(crate) fn new(folder: &Path) -> Result<Staging> {
        let io = |action, source| FormatError::Io { action, path: folder.into(), source };
        let made = folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.exists()).last();
        fs::create_dir_all(folder).map_err(|e| io("create", e))?;
        for entry in fs::read_dir(folder).map_err(|e| io("list", e))? {
            let entry = entry.map_err(|e| io("list", e))?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)) {
                fs::remove_file(entry.path()).map_err(|e| io("clear", e))?;
            }
        }
        Ok(Staging { folder: folder.into(), made: made.map(Path::to_path_buf), files: Vec::new() })
    }

    /// Begins a file that will be called `name`.
    pub(crate) fn create(&mut self, name: &str) -> Result<StagedFile> {
        let path = self.folder.join(name);
        let mut builder = Builder::new();
        builder.prefix(PREFIX).suffix(SUFFIX);
        // Readable by others as far as the umask lets them: folders like this are served.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(&self.folder).map_err(|e| io("create", &path, e))?;
        let (file, temporary) = file.into_parts();
        self.files.push((name.to_owned(), temporary));
        Ok(StagedFile { file, path })
    }

    /// A whole small file.
    pub(crate) fn write(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let mut file = self.create(name)?;
        file.write(content)?;
        file.finish()
    }

    /// Gives all files their names, the markers last. Shards of an earlier conversion that are not replaced are removed
    /// when this one has shards.
    pub(crate) fn commit(mut self) -> Result<()> {
        let mut files = std::mem::take(&mut self.files);
        files.sort_by_key(|(name, _)| MARKERS.iter().position(|marker| marker == name).map_or(0, |i| i + 1));
        // From here on the folder is no longer what it was.
        self.made = None;
        let replaces_weights = files.iter().any(|(name, _)| is_shard(name));
        for marker in MARKERS {
            if files.iter().any(|(name, _)| name == marker) || (replaces_weights && marker != MARKERS[3]) {
                remove(&self.folder.join(marker))?;
            }
        }
        if replaces_weights {
            let entries = fs::read_dir(&self.folder).map_err(|e| io("list", &self.folder, e))?;
            for entry in entries {
                let entry = entry.map_err(|e| io("list", &self.folder, e))?;
                if entry.file_name().to_str().is_some_and(is_shard) {
                    remove(&entry.path())?;
                }
            }
        }
        for (name, temporary) in files {
            let path = self.folder.join(name);
            temporary.persist(&path).map_err(|e| io("write", &path, e.error))?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.files.clear();
        if let Some(made) = &self.made {
            // Only what is empty goes; there is nobody to tell about the rest.
            let mut folder = self.folder.as_path();
            while fs::remove_dir(folder).is_ok() && folder != made {
                let Some(parent) = folder.parent() else { break };
                folder = parent;
            }
        }
    }
}

/// A file under its temporary name.
pub(crate) struct StagedFile {
    file: File,
    /// What it will be called, for messages.
    path: PathBuf,
}

impl StagedFile {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| io("write", &self.path, e).into())
    }

    /// The content is complete and on the disk.
    pub(crate) fn finish(self) -> Result<()> {
        self.file.sync_all().map_err(|e| io("write", &self.path, e).into())
    }
}

fn is_shard(name: &str) -> bool {
    name.starts_with("params_shard_") && name.ends_with(".bin")
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io("replace", path, e).into()),
        _ => Ok(()),
    }
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> FormatError {
    FormatError::Io { action, path: path.into(), source }
}
