//! [`SafetensorsCheckpoint`]: a Hugging Face folder with memory-mapped safetensors files.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::{self, File},
    ops::Range,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use safetensors::tensor::{Dtype as StoredDtype, TensorInfo as Header};
use serde_json::{Map, Value};

use super::{Checkpoint, TensorInfo, missing_param};
use crate::{Dtype, Error, HostTensor, Result, files::check_file_name};

/// Maximum header length of the safetensors format, in bytes.
const MAX_HEADER: usize = 100_000_000;

/// Names of a model's companion files, which accompany the weights.
pub const COMPANIONS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// A folder with `config.json` and either `model.safetensors`, or shards and `model.safetensors.index.json`. The
/// weights are memory-mapped.
#[derive(Debug)]
pub struct SafetensorsCheckpoint {
    folder: PathBuf,
    config_json: String,
    maps: Vec<Mmap>,
    tensors: Vec<TensorInfo>,
    places: HashMap<String, Place>,
    /// File and dtype of tensors with unsupported number types. They are an error only when read.
    other_dtypes: HashMap<String, (String, String)>,
}

/// Location of a tensor.
#[derive(Debug)]
struct Place {
    /// Index in `tensors`.
    info: usize,
    /// Index in `maps`.
    map: usize,
    /// Byte range in the file.
    range: Range<usize>,
}

impl SafetensorsCheckpoint {
    /// Opens a folder: reads the configuration, maps the files and checks their headers.
    ///
    /// Old GPTQ checkpoints have a separate `quantize_config.json`. Its content becomes `quantization_config` in
    /// [`Checkpoint::config_json`].
    ///
    /// # Errors
    ///
    /// [`Error::MissingFile`], [`Error::Io`], [`Error::Malformed`] for an invalid header or index, [`Error::FileSize`]
    /// for a truncated file, [`Error::MissingParam`] for a tensor of the index that its file does not have.
    pub fn open(folder: &Path) -> Result<SafetensorsCheckpoint> {
        let config_json = with_quantize_config(folder, read_text(folder, "config.json")?)?;
        let mut checkpoint = SafetensorsCheckpoint {
            folder: folder.into(),
            config_json,
            maps: Vec::new(),
            tensors: Vec::new(),
            places: HashMap::new(),
            other_dtypes: HashMap::new(),
        };
        const INDEX: &str = "model.safetensors.index.json";
        if folder.join(INDEX).is_file() {
            let path = folder.join(INDEX).display().to_string();
            for (file, names) in indexed_files(&path, &read_text(folder, INDEX)?)? {
                checkpoint.add_file(&file, Some(&names))?;
            }
        } else {
            checkpoint.add_file(&single_file(folder)?, None)?;
        }
        Ok(checkpoint)
    }

    /// Maps a file and adds its tensors: those in `names` in this order, or all in the order of their offsets.
    fn add_file(&mut self, file: &str, names: Option<&[String]>) -> Result<()> {
        let path = self.folder.join(file);
        let io = |action, source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => {
                Error::MissingFile { file: file.into(), folder: self.folder.display().to_string() }
            }
            _ => Error::Io { action, path: path.clone(), source },
        };
        let opened = File::open(&path).map_err(|e| io("open", e))?;
        // SAFETY: the map is read-only, and nothing here writes to a checkpoint. If another process truncates the file
        // while it is mapped, this process gets a bus error. All programs that map weights have this limitation.
        let map = unsafe { Mmap::map(&opened) }.map_err(|e| io("map", e))?;
        let path = path.display().to_string();
        let mut headers = read_headers(&path, &map)?;
        if let Some(names) = names {
            let mut by_name: HashMap<_, _> = headers.into_iter().collect();
            headers = Vec::with_capacity(names.len());
            for name in names {
                let Some(header) = by_name.remove(name) else {
                    return Err(Error::MissingParam { name: name.clone(), file: path, nearest: None });
                };
                headers.push((name.clone(), header));
            }
        }
        for (name, (header, range)) in headers {
            match dtype(header.dtype) {
                Some(dtype) => {
                    self.places.insert(name.clone(), Place { info: self.tensors.len(), map: self.maps.len(), range });
                    self.tensors.push(TensorInfo { name, dtype, shape: header.shape, file: file.into() });
                }
                None => {
                    self.other_dtypes.insert(name, (path.clone(), header.dtype.to_string()));
                }
            }
        }
        self.maps.push(map);
        Ok(())
    }
}

impl Checkpoint for SafetensorsCheckpoint {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn tensor(&self, name: &str) -> Result<HostTensor<'_>> {
        if let Some(place) = self.places.get(name) {
            let info = &self.tensors[place.info];
            let bytes = Cow::Borrowed(&self.maps[place.map][place.range.clone()]);
            return Ok(HostTensor { dtype: info.dtype, shape: info.shape.clone(), bytes });
        }
        if let Some((file, found)) = self.other_dtypes.get(name) {
            return Err(Error::ParamDtype {
                name: name.into(),
                file: file.clone(),
                found: found.clone(),
                expected: "bf16, f16 or f32".into(),
            });
        }
        Err(missing_param(self, name))
    }

    #[cfg(unix)]
    fn release(&self, name: &str) {
        let Some(place) = self.places.get(name) else { return };
        let (map, range) = (&self.maps[place.map], &place.range);
        // SAFETY: the map is read-only and backed by a file, so dropped pages are read again on access.
        let advised = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        // Ignore a failure: the memory then stays in use for longer.
        let _ = advised;
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.places.get(name).map(|place| &self.tensors[place.info])
    }

    fn location(&self) -> String {
        self.folder.display().to_string()
    }

    fn config_json(&self) -> &str {
        &self.config_json
    }

    fn companion_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        companion_files(&self.folder)
    }
}

/// Name and content of the existing [`COMPANIONS`] in a Hugging Face folder.
///
/// # Errors
///
/// [`Error::Io`] if a file exists and cannot be read.
pub fn companion_files(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for &name in COMPANIONS {
        let path = folder.join(name);
        match fs::read(&path) {
            Ok(content) => files.push((name.to_owned(), content)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Io { action: "read", path, source }),
        }
    }
    Ok(files)
}

/// Reads a text file of `folder`.
fn read_text(folder: &Path, name: &str) -> Result<String> {
    let path = folder.join(name);
    fs::read_to_string(&path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::MissingFile { file: name.into(), folder: folder.display().to_string() },
        std::io::ErrorKind::InvalidData => {
            Error::Malformed { file: path.display().to_string(), reason: "not UTF-8 text".into() }
        }
        _ => Error::Io { action: "read", path, source },
    })
}

/// config.json with the content of quantize_config.json added, if config.json has no `quantization_config` of its own.
fn with_quantize_config(folder: &Path, config_json: String) -> Result<String> {
    const FILE: &str = "quantize_config.json";
    if !folder.join(FILE).is_file() {
        return Ok(config_json);
    }
    let Ok(Value::Object(mut config)) = serde_json::from_str(&config_json) else { return Ok(config_json) };
    if config.get("quantization_config").is_some_and(Value::is_object) {
        return Ok(config_json);
    }
    let path = folder.join(FILE).display().to_string();
    let mut quantize = crate::config_json::ConfigJson::parse(&path, &read_text(folder, FILE)?)?.value;
    let fields = quantize.as_object_mut().expect("a ConfigJson is an object");
    // Early AutoGPTQ versions supported one method and did not write its name.
    fields.entry("quant_method").or_insert_with(|| "gptq".into());
    config.insert("quantization_config".into(), quantize);
    Ok(Value::Object(config).to_string())
}

/// The single safetensors file of a folder without an index.
fn single_file(folder: &Path) -> Result<String> {
    const USUAL: &str = "model.safetensors";
    let missing = || Error::MissingFile { file: USUAL.into(), folder: folder.display().to_string() };
    if folder.join(USUAL).is_file() {
        return Ok(USUAL.into());
    }
    // Old GPTQ checkpoints have names like `gptq_model-4bit-128g.safetensors`.
    let entries = fs::read_dir(folder).map_err(|source| Error::Io { action: "list", path: folder.into(), source })?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| Error::Io { action: "list", path: folder.into(), source })?;
        if let Some(name) = entry.file_name().to_str().filter(|name| name.ends_with(".safetensors")) {
            found.push(name.to_owned());
        }
    }
    match <[String; 1]>::try_from(found) {
        Ok([name]) => Ok(name),
        Err(_) => Err(missing()),
    }
}

/// The files in a `model.safetensors.index.json` with their tensors, both in the order of the index. `file` is the
/// index's path, for errors.
///
/// # Errors
///
/// [`Error::Malformed`] for invalid JSON, file names with a path, and an empty map; [`Error::MissingField`] without a
/// `weight_map`.
pub fn indexed_files(file: &str, index_json: &str) -> Result<Vec<(String, Vec<String>)>> {
    let malformed = |reason: String| Error::Malformed { file: file.into(), reason };
    let index: Value = serde_json::from_str(index_json).map_err(|e| malformed(e.to_string()))?;
    let weight_map = index
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| Error::MissingField { file: file.into(), field: "weight_map".into() })?;
    let mut shards: Vec<(String, Vec<String>)> = Vec::new();
    let mut position: HashMap<&str, usize> = HashMap::new();
    for (name, shard) in weight_map {
        let shard = shard.as_str().ok_or_else(|| malformed(format!("`{name}` is not mapped to a file name")))?;
        check_file_name(file, shard)?;
        let at = *position.entry(shard).or_insert_with(|| {
            shards.push((shard.to_owned(), Vec::new()));
            shards.len() - 1
        });
        shards[at].1.push(name.clone());
    }
    if shards.is_empty() {
        return Err(malformed("`weight_map` is empty".into()));
    }
    Ok(shards)
}

/// Names and byte ranges of the tensors in a safetensors file, in the order of their offsets. `bytes` is the whole
/// file, `file` its path, for errors. Checks the header completely.
///
/// # Errors
///
/// [`Error::Malformed`] for an invalid header, [`Error::FileSize`] if the file's size does not match it.
pub fn tensor_ranges(file: &str, bytes: &[u8]) -> Result<Vec<(String, Range<usize>)>> {
    Ok(read_headers(file, bytes)?.into_iter().map(|(name, (_, range))| (name, range)).collect())
}

/// A tensor's name, its entry in the header, and its byte range in the file.
type Entry = (String, (Header, Range<usize>));

/// Parses and checks the header of a safetensors file. Returns the tensors in the order of their offsets. Sizes must
/// match shapes and types, and the tensors must fill the file without overlaps and gaps.
///
/// The library's own validation checks less (names) and its errors give neither the tensor nor the sizes.
fn read_headers(file: &str, bytes: &[u8]) -> Result<Vec<Entry>> {
    let malformed = |reason: String| Error::Malformed { file: file.into(), reason };
    let size = |expected: u64| Error::FileSize { file: file.into(), found: bytes.len() as u64, expected };
    let length = bytes.first_chunk::<8>().ok_or_else(|| size(8))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > MAX_HEADER {
        return Err(malformed(format!("not a safetensors file: its header would have {length} bytes")));
    }
    let data_start = 8 + length;
    let header = bytes.get(8..data_start).ok_or_else(|| size(data_start as u64))?;
    let header: Map<String, Value> =
        serde_json::from_slice(header).map_err(|e| malformed(format!("its header is not JSON: {e}")))?;

    let mut tensors = Vec::with_capacity(header.len());
    for (name, value) in header {
        if name == "__metadata__" {
            continue;
        }
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(malformed(format!("{name:?} is not a tensor name")));
        }
        let header: Header = serde_json::from_value(value).map_err(|e| malformed(format!("tensor `{name}`: {e}")))?;
        tensors.push((name, header));
    }
    tensors.sort_by_key(|(_, header)| header.data_offsets);

    let mut end = 0;
    let mut placed = Vec::with_capacity(tensors.len());
    for (name, header) in tensors {
        let (first, last) = header.data_offsets;
        if first != end {
            let what = if first < end { "overlaps the previous tensor" } else { "leaves a gap before it" };
            return Err(malformed(format!("tensor `{name}` {what}: it begins at {first}, expected {end}")));
        }
        let expected = header
            .shape
            .iter()
            .try_fold(header.dtype.bitsize(), |bits, &extent| bits.checked_mul(extent))
            .ok_or_else(|| malformed(format!("tensor `{name}` has an impossible shape: {:?}", header.shape)))?
            .div_ceil(8);
        if last.checked_sub(first) != Some(expected) {
            return Err(malformed(format!(
                "tensor `{name}` has bytes {first}..{last}, but {} of shape {:?} needs {expected} bytes",
                header.dtype, header.shape
            )));
        }
        end = last;
        let range = data_start.checked_add(first).zip(data_start.checked_add(last));
        let (first, last) = range.ok_or_else(|| malformed(format!("tensor `{name}` ends at an impossible offset")))?;
        placed.push((name, (header, first..last)));
    }
    if end != bytes.len() - data_start {
        return Err(size((data_start as u64).saturating_add(end as u64)));
    }
    Ok(placed)
}

/// Converts the library's number type. `None` if it is unsupported.
fn dtype(stored: StoredDtype) -> Option<Dtype> {
    Some(match stored {
        StoredDtype::F32 => Dtype::F32,
        StoredDtype::F16 => Dtype::F16,
        StoredDtype::BF16 => Dtype::BF16,
        StoredDtype::I32 => Dtype::I32,
        StoredDtype::U32 => Dtype::U32,
        StoredDtype::I64 => Dtype::I64,
        _ => return None,
    })
}
