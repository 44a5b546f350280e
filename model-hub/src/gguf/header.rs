//! Reads the header of a GGUF file with candle, after checking all its sizes against the file's length.
//!
//! candle trusts the header: it divides by a zero alignment, and it expands an array of a million bytes to a million
//! 32-byte values. [`check`] therefore walks the header first, without storing values.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};

use crate::error::io;
use crate::{Error, Result};

/// Maximum number of tensors.
const MAX_TENSORS: u64 = 100_000;
/// Maximum number of metadata entries.
const MAX_ENTRIES: u64 = 10_000;
/// Maximum number of array elements in the whole file. Four times the need of a vocabulary of 256,000 tokens with
/// merges.
const MAX_ELEMENTS: u64 = 4 << 20;
/// Maximum string length in bytes. The longest strings are chat templates and licenses.
const MAX_STRING: u64 = 16 << 20;
/// Maximum nesting depth of arrays.
const MAX_DEPTH: usize = 2;

/// Tensor types that candle reads, by their numbers in the GGUF specification: F32, F16, Q4_0 to Q8_1, Q2_K to Q8_K,
/// BF16.
const CANDLE_TYPES: [u32; 15] = [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 30];

/// One tensor as the file stores it.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    /// Name in the file, for example `blk.0.attn_q.weight`.
    pub name: String,
    /// Block type.
    pub dtype: GgmlDType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Position of its first byte in the file.
    pub offset: u64,
}

impl Stored {
    /// Bytes of one row (the innermost dimension).
    pub fn row_bytes(&self) -> usize {
        self.shape.last().copied().unwrap_or(1) / self.dtype.block_size() * self.dtype.type_size()
    }
}

/// A checked header.
pub(super) struct Header {
    /// Metadata values by key.
    pub metadata: std::collections::HashMap<String, Value>,
    /// Tensors in the order of the file, each completely inside the file.
    pub tensors: Vec<Stored>,
}

/// Reads and checks the header of `path`.
pub(super) fn read(path: &Path) -> Result<Header> {
    let file = File::open(path).map_err(io("read", path))?;
    let file_len = file.metadata().map_err(io("read", path))?.len();
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let bad = |reason: String| Error::BadGguf { file: path.into(), reason };
    check(&mut reader, file_len).map_err(|fault| match fault {
        Fault::Bad(reason) => bad(reason),
        Fault::Unsupported(reason) => Error::UnsupportedGguf { file: path.into(), reason },
    })?;
    reader.seek(SeekFrom::Start(0)).map_err(io("read", path))?;
    let content = Content::read(&mut reader).map_err(|error| bad(error.to_string()))?;

    let mut tensors = Vec::with_capacity(content.tensor_infos.len());
    for (name, info) in &content.tensor_infos {
        let stored = Stored {
            name: name.clone(),
            dtype: info.ggml_dtype,
            shape: info.shape.dims().to_vec(),
            offset: content.tensor_data_offset.checked_add(info.offset).ok_or_else(|| bad(overflow(name)))?,
        };
        let row = stored.shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(stored.dtype.block_size()) {
            let block = stored.dtype.block_size();
            return Err(bad(format!("rows of tensor `{name}` have {row} elements, not a multiple of {block}")));
        }
        let rows = stored.shape.iter().rev().skip(1).try_fold(1u64, |n, &extent| n.checked_mul(extent as u64));
        let end = rows
            .and_then(|rows| rows.checked_mul(stored.row_bytes() as u64))
            .and_then(|bytes| bytes.checked_add(stored.offset))
            .ok_or_else(|| bad(overflow(name)))?;
        if end > file_len {
            return Err(bad(format!("tensor `{name}` ends at byte {end}, but the file has {file_len} bytes")));
        }
        tensors.push(stored);
    }
    tensors.sort_by(|a, b| (a.offset, &a.name).cmp(&(b.offset, &b.name)));
    Ok(Header { metadata: content.metadata, tensors })
}

fn overflow(name: &str) -> String {
    format!("tensor `{name}` has an impossible size or offset")
}

/// An error of [`check`].
enum Fault {
    /// The file is damaged.
    Bad(String),
    /// The file is valid but not supported.
    Unsupported(String),
}

impl From<String> for Fault {
    fn from(reason: String) -> Fault {
        Fault::Bad(reason)
    }
}

/// Walks and checks the header. Stores only the names, to detect duplicates.
fn check(reader: &mut (impl Read + Seek), file_len: u64) -> Result<(), Fault> {
    let mut walk = Walk { reader, file_len, wide: true, elements: 0 };
    let magic = walk.u32()?;
    if magic != u32::from_le_bytes(*b"GGUF") {
        return Err(Fault::Bad("it does not begin with `GGUF`".into()));
    }
    let version = walk.u32()?;
    if !(1..=3).contains(&version) {
        return Err(Fault::Bad(format!("version {version} is unknown, or the file is big-endian")));
    }
    walk.wide = version > 1;
    let tensors = walk.length("tensors", MAX_TENSORS)?;
    let entries = walk.length("metadata entries", MAX_ENTRIES)?;

    let mut keys = HashSet::new();
    for _ in 0..entries {
        let key = walk.name()?;
        let kind = walk.u32()?;
        if key == "general.alignment" {
            walk.alignment(kind)?;
        } else {
            walk.value(kind, 0).map_err(|reason| format!("metadata `{key}`: {reason}"))?;
        }
        if !keys.insert(key.clone()) {
            return Err(Fault::Bad(format!("metadata `{key}` occurs twice")));
        }
    }
    let mut names = HashSet::new();
    for _ in 0..tensors {
        let name = walk.name()?;
        let dims = walk.u32()?;
        if !(1..=4).contains(&dims) {
            return Err(Fault::Bad(format!("tensor `{name}` has {dims} dimensions")));
        }
        let mut elements = 1u64;
        for _ in 0..dims {
            let extent = if walk.wide { walk.u64()? } else { walk.u32()?.into() };
            elements = elements.checked_mul(extent).filter(|&n| n > 0 && n < 1 << 48).ok_or_else(|| overflow(&name))?;
        }
        let kind = walk.u32()?;
        if !CANDLE_TYPES.contains(&kind) {
            return Err(Fault::Unsupported(format!("tensor `{name}` has the unsupported type {kind}")));
        }
        walk.u64()?;
        if !names.insert(name.clone()) {
            return Err(Fault::Bad(format!("tensor `{name}` occurs twice")));
        }
    }
    Ok(())
}

struct Walk<'a, R> {
    reader: &'a mut R,
    file_len: u64,
    /// True if lengths are 64-bit (version 2 and later).
    wide: bool,
    /// Array elements so far.
    elements: u64,
}

impl<R: Read + Seek> Walk<'_, R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|error| self.unreadable(&error))?;
        Ok(bytes)
    }

    fn unreadable(&self, error: &std::io::Error) -> String {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => self.truncated(),
            _ => error.to_string(),
        }
    }

    fn truncated(&self) -> String {
        format!("its header is cut off after {} bytes", self.file_len)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn length(&mut self, what: &str, max: u64) -> Result<u64, String> {
        let length = if self.wide { self.u64()? } else { self.u32()?.into() };
        if length > max { Err(format!("{length} {what} exceed the limit of {max}")) } else { Ok(length) }
    }

    fn skip(&mut self, bytes: u64) -> Result<(), String> {
        let position = self.reader.stream_position().map_err(|e| e.to_string())?;
        if position.checked_add(bytes).is_none_or(|end| end > self.file_len) {
            return Err(self.truncated());
        }
        self.reader.seek_relative(bytes as i64).map_err(|e| e.to_string())
    }

    fn name(&mut self) -> Result<String, String> {
        let length = self.length("bytes in a name", 1024)?;
        let mut bytes = vec![0; length as usize];
        self.reader.read_exact(&mut bytes).map_err(|error| self.unreadable(&error))?;
        match String::from_utf8(bytes) {
            Ok(name) if !name.is_empty() && !name.contains(char::is_control) => Ok(name),
            _ => Err("a name is empty, not UTF-8, or has control characters".into()),
        }
    }

    /// Skips a value. `kind` is the value type's number in the GGUF specification.
    fn value(&mut self, kind: u32, depth: usize) -> Result<(), String> {
        match kind {
            0 | 1 | 7 => self.skip(1),
            2 | 3 => self.skip(2),
            4..=6 => self.skip(4),
            10..=12 => self.skip(8),
            8 => {
                let length = self.length("bytes in a string", MAX_STRING)?;
                self.skip(length)
            }
            9 if depth < MAX_DEPTH => {
                let kind = self.u32()?;
                let length = self.length("elements in an array", MAX_ELEMENTS)?;
                self.elements += length;
                if self.elements > MAX_ELEMENTS {
                    return Err(format!("{} elements in arrays exceed the limit of {MAX_ELEMENTS}", self.elements));
                }
                (0..length).try_for_each(|_| self.value(kind, depth + 1))
            }
            9 => Err("arrays are nested too deeply".into()),
            other => Err(format!("type {other} is unknown")),
        }
    }

    /// Reads and checks the value of `general.alignment`, a u32 by the specification.
    fn alignment(&mut self, kind: u32) -> Result<(), String> {
        let value = if kind == 4 { self.u32()? } else { return Err("`general.alignment` is not a u32".into()) };
        if value.is_power_of_two() && value <= 1 << 20 {
            return Ok(());
        }
        Err(format!("`general.alignment` is {value}, not a power of two up to 2^20"))
    }
}
