//! [`SafetensorsWriter`]: writes a safetensors file one tensor at a time, in any order.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use safetensors::tensor::{Dtype as StoredDtype, Metadata, TensorInfo as Header};

use crate::{Dtype, Error, HostTensor, Result};

/// Writes a safetensors file under a temporary name. [`SafetensorsWriter::finish`] renames it. Dropping the writer
/// before that removes the file.
///
/// The layout is that of the safetensors library: tensors in descending order of alignment, then by name.
pub struct SafetensorsWriter {
    path: PathBuf,
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
    /// Number type, shape and file offset of each tensor that is not written yet.
    missing: HashMap<String, (Dtype, Vec<usize>, u64)>,
    /// Bytes appended to the current tensor so far.
    appended: usize,
    /// True if the file has its final name.
    finished: bool,
}

impl SafetensorsWriter {
    /// Creates the file and writes its header. `tensors` has the name, number type and shape of every tensor.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    ///
    /// # Panics
    ///
    /// If a name occurs twice.
    pub fn create(path: &Path, tensors: &[(String, Dtype, Vec<usize>)]) -> Result<SafetensorsWriter> {
        let name = path.file_name().expect("a path to a file").to_string_lossy();
        SafetensorsWriter::begin(path, path.with_file_name(format!(".{name}.{}.tmp", std::process::id())), tensors)
    }

    /// As [`SafetensorsWriter::create`], for a path that is already temporary. The writer writes to it directly.
    pub fn create_staged(path: &Path, tensors: &[(String, Dtype, Vec<usize>)]) -> Result<SafetensorsWriter> {
        SafetensorsWriter::begin(path, path.into(), tensors)
    }

    fn begin(path: &Path, temporary: PathBuf, tensors: &[(String, Dtype, Vec<usize>)]) -> Result<SafetensorsWriter> {
        let mut sorted: Vec<_> = tensors.iter().collect();
        sorted.sort_by(|(a, at, _), (b, bt, _)| stored(*bt).cmp(&stored(*at)).then_with(|| a.cmp(b)));
        let mut end = 0;
        let mut headers = Vec::with_capacity(sorted.len());
        for (name, dtype, shape) in &sorted {
            let first = end;
            end += shape.iter().product::<usize>() * dtype.size();
            let header = Header { dtype: stored(*dtype), shape: shape.clone(), data_offsets: (first, end) };
            headers.push((name.clone(), header));
        }
        // transformers rejects files without this entry.
        let marks = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let metadata = Metadata::new(Some(marks), headers.clone()).expect("offsets and sizes were just computed");
        let mut json = serde_json::to_vec(&metadata).expect("a header serializes");
        json.resize(json.len().next_multiple_of(8), b' ');

        let data_start = 8 + json.len() as u64;
        let missing: HashMap<_, _> = sorted
            .iter()
            .zip(&headers)
            .map(|((name, dtype, shape), (_, header))| {
                (name.clone(), (*dtype, shape.clone(), data_start + header.data_offsets.0 as u64))
            })
            .collect();
        assert_eq!(missing.len(), tensors.len(), "SafetensorsWriter: a name occurs twice");

        let io = |action, source| Error::Io { action, path: path.into(), source };
        let file = File::create(&temporary).map_err(|e| io("create", e))?;
        let mut writer = SafetensorsWriter {
            path: path.into(),
            temporary,
            file: Some(BufWriter::with_capacity(1 << 20, file)),
            missing,
            appended: 0,
            finished: false,
        };
        writer.write_at(0, &(json.len() as u64).to_le_bytes())?;
        writer.write_at(8, &json)?;
        Ok(writer)
    }

    /// Writes a tensor.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    ///
    /// # Panics
    ///
    /// If the tensor was not announced, differs from its announcement, or was written before.
    pub fn write(&mut self, name: &str, tensor: &HostTensor<'_>) -> Result<()> {
        let (dtype, shape, offset) =
            self.missing.remove(name).unwrap_or_else(|| panic!("SafetensorsWriter: `{name}` is not expected"));
        assert_eq!((tensor.dtype, &tensor.shape), (dtype, &shape), "SafetensorsWriter: `{name}` is not as announced");
        assert_eq!(
            tensor.bytes.len(),
            shape.iter().product::<usize>() * dtype.size(),
            "SafetensorsWriter: bytes of `{name}`"
        );
        self.write_at(offset, &tensor.bytes)
    }

    /// Appends bytes to a tensor. Complete the tensor before writing another one.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    ///
    /// # Panics
    ///
    /// If the tensor was not announced, or exceeds its announced size.
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let (dtype, shape, offset) =
            self.missing.get(name).unwrap_or_else(|| panic!("SafetensorsWriter: `{name}` is not expected"));
        let (size, offset) = (shape.iter().product::<usize>() * dtype.size(), *offset + self.appended as u64);
        self.appended += bytes.len();
        assert!(self.appended <= size, "SafetensorsWriter: bytes of `{name}`");
        if self.appended == size {
            self.missing.remove(name);
            self.appended = 0;
        }
        self.write_at(offset, bytes)
    }

    /// Syncs the complete file and renames it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    ///
    /// # Panics
    ///
    /// If a tensor is missing.
    pub fn finish(mut self) -> Result<()> {
        assert!(self.missing.is_empty(), "SafetensorsWriter: not written: {:?}", self.missing.keys());
        let io = |source| Error::Io { action: "write", path: self.path.clone(), source };
        let file = self.file.take().expect("open until finished");
        // Close the file before renaming it: Windows requires this.
        file.into_inner().map_err(|e| io(e.into_error()))?.sync_all().map_err(io)?;
        fs::rename(&self.temporary, &self.path).map_err(io)?;
        self.finished = true;
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = self.file.as_mut().expect("open until finished");
        let written = match file.stream_position() {
            Ok(position) if position == offset => file.write_all(bytes),
            _ => file.seek(SeekFrom::Start(offset)).and_then(|_| file.write_all(bytes)),
        };
        written.map_err(|source| Error::Io { action: "write", path: self.path.clone(), source })
    }
}

impl Drop for SafetensorsWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Ignore a failure: a destructor cannot report it, and the name marks the file as temporary.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a safetensors file with these tensors. The file appears complete or not at all.
///
/// # Errors
///
/// [`Error::Io`].
pub fn write_safetensors<'a>(path: &Path, tensors: impl IntoIterator<Item = (String, HostTensor<'a>)>) -> Result<()> {
    let tensors: Vec<_> = tensors.into_iter().collect();
    let announced: Vec<_> = tensors.iter().map(|(name, t)| (name.clone(), t.dtype, t.shape.clone())).collect();
    let mut writer = SafetensorsWriter::create(path, &announced)?;
    for (name, tensor) in &tensors {
        writer.write(name, tensor)?;
    }
    writer.finish()
}

/// The library's equivalent of a number type.
fn stored(dtype: Dtype) -> StoredDtype {
    match dtype {
        Dtype::F32 => StoredDtype::F32,
        Dtype::F16 => StoredDtype::F16,
        Dtype::BF16 => StoredDtype::BF16,
        Dtype::I32 => StoredDtype::I32,
        Dtype::U32 => StoredDtype::U32,
        Dtype::I64 => StoredDtype::I64,
    }
}
