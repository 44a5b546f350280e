//! [`ModelFiles`]: access to a model's files, in a folder or on the network.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    ops::{Deref, Range},
    path::{Path, PathBuf},
};

use memmap2::{Mmap, MmapOptions};

use crate::{Error, Result};

/// The files of one model by name. Reading is asynchronous because browsers require it.
#[expect(async_fn_in_trait, reason = "the engine owns no thread, so no Send bound is wanted")]
pub trait ModelFiles {
    /// Size of a file in bytes. `name` is a plain file name without a path, for example `params_shard_0.bin`.
    ///
    /// # Errors
    ///
    /// [`Error::MissingFile`], or another error if the size is unavailable.
    async fn size(&self, name: &str) -> Result<u64>;
    /// Reads all bytes in `range` of a file.
    ///
    /// # Errors
    ///
    /// An error of reading, or [`Error::FileSize`] if the file ends before `range.end`.
    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>>;
    /// Name of the folder or server, for messages.
    fn location(&self) -> String;

    /// As [`ModelFiles::read_range`]. An implementation may return a memory map instead of a copy.
    async fn view_range(&self, name: &str, range: Range<u64>) -> Result<FileBytes> {
        Ok(FileBytes::Read(self.read_range(name, range).await?))
    }
    /// Reads a whole file.
    async fn read(&self, name: &str) -> Result<Vec<u8>> {
        let size = self.size(name).await?;
        self.read_range(name, 0..size).await
    }
    /// True if the file exists.
    async fn exists(&self, name: &str) -> bool {
        self.size(name).await.is_ok()
    }
}

/// True if `path` still refers to the open `file`.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let (opened, named) = (file.metadata().map(id), std::fs::metadata(path).map(id));
        opened.is_ok_and(|opened| named.is_ok_and(|named| opened == named))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

/// Bytes of a file.
pub enum FileBytes {
    /// Read into memory.
    Read(Vec<u8>),
    /// Memory-mapped, without a copy.
    Mapped(Mmap),
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            FileBytes::Read(bytes) => bytes,
            FileBytes::Mapped(map) => map,
        }
    }
}

/// The model files in a folder.
#[derive(Debug, Clone)]
pub struct DirFiles {
    folder: PathBuf,
}

impl DirFiles {
    /// The files of `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> DirFiles {
        DirFiles { folder: folder.into() }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl ModelFiles for DirFiles {
    async fn size(&self, name: &str) -> Result<u64> {
        check_file_name(&self.location(), name)?;
        let path = self.folder.join(name);
        match path.metadata() {
            Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Io { action: "read", path, source })
            }
            _ => Err(Error::MissingFile { file: name.into(), folder: self.location() }),
        }
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>> {
        check_file_name(&self.location(), name)?;
        let path = self.folder.join(name);
        let len = range.end.saturating_sub(range.start);
        let read = |path: &Path| {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(range.start))?;
            // The range may come from an untrusted index: allocate by the file's actual size only.
            let mut bytes = Vec::new();
            file.take(len).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read(&path).map_err(|source: std::io::Error| Error::Io { action: "read", path, source })?;
        match bytes.len() as u64 == len {
            true => Ok(bytes),
            false => Err(Error::FileSize {
                file: name.into(),
                found: range.start.saturating_add(bytes.len() as u64),
                expected: range.end,
            }),
        }
    }

    async fn view_range(&self, name: &str, range: Range<u64>) -> Result<FileBytes> {
        check_file_name(&self.location(), name)?;
        let len = range.end.saturating_sub(range.start);
        let map = || {
            let file = File::open(self.folder.join(name)).ok()?;
            // A map may extend beyond the end of its file. Reading there is a bus error.
            if file.metadata().ok()?.len() < range.end || len == 0 {
                return None;
            }
            let mut options = MmapOptions::new();
            options.offset(range.start).len(usize::try_from(len).ok()?).populate();
            // SAFETY: the map is read-only, and nothing here writes to a model's files. If another process truncates
            // the file while it is mapped, this process gets a bus error. All programs that map weights have this
            // limitation.
            unsafe { options.map(&file) }.ok()
        };
        match map() {
            Some(map) => Ok(FileBytes::Mapped(map)),
            // Fall back to reading, which reports the error.
            None => Ok(FileBytes::Read(self.read_range(name, range).await?)),
        }
    }

    fn location(&self) -> String {
        self.folder.display().to_string()
    }
}

/// Checks that a file name from an index is plain: ASCII letters, digits, `.`, `_` and `-`, with no leading dot. Such a
/// name cannot leave the model's folder. `index` is the index file, for the error.
///
/// # Errors
///
/// [`Error::Malformed`].
pub fn check_file_name(index: &str, name: &str) -> Result<()> {
    let plain = !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && !name.starts_with('.');
    if plain {
        return Ok(());
    }
    Err(Error::Malformed { file: index.into(), reason: format!("{name:?} is not a plain file name") })
}
