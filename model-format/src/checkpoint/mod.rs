//! [`Checkpoint`]: named tensors and their configuration, independent of the file format.
//!
//! [`SafetensorsCheckpoint`] reads a Hugging Face folder; model-hub adds other sources. [`read_param`] reads the values
//! of a [`Param`].

mod nearest;
mod read_param;
mod safetensors;
mod writer;

pub use self::nearest::nearest;
pub use self::read_param::read_param;
pub use self::safetensors::{COMPANIONS, SafetensorsCheckpoint, companion_files, indexed_files, tensor_ranges};
pub use writer::{SafetensorsWriter, write_safetensors};

use std::ops::Range;

use crate::{Dtype, Error, HostTensor, Param, Result, params::Source, tensor::widen};

/// Name, type and location of a tensor in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Checkpoint name, for example `model.norm.weight`.
    pub name: String,
    /// Number type as stored.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The tensor's file, for messages and for MLC's record order.
    pub file: String,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Named tensors and their configuration, independent of the file format.
pub trait Checkpoint: Send + Sync {
    /// All tensors, in the order of the index, or else of the file. MLC's `convert_weight` uses the same order.
    fn tensors(&self) -> &[TensorInfo];
    /// A tensor as stored.
    ///
    /// # Errors
    ///
    /// [`Error::MissingParam`] with the most similar name, or an error of reading.
    fn tensor(&self, name: &str) -> Result<HostTensor<'_>>;
    /// Path of the checkpoint, for messages.
    fn location(&self) -> String;
    /// Content of config.json.
    fn config_json(&self) -> &str;
    /// Name and content of the existing companion files (see [`COMPANIONS`]), including config.json.
    fn companion_files(&self) -> Result<Vec<(String, Vec<u8>)>>;

    /// Hints that a tensor is not needed soon, so that memory-mapped pages can be dropped.
    fn release(&self, name: &str) {
        let _ = name;
    }

    /// The info of a tensor. `None` if it does not exist.
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors().iter().find(|info| info.name == name)
    }
}

/// The error for a tensor that is missing in `checkpoint`, with the most similar name.
pub fn missing_param(checkpoint: &dyn Checkpoint, name: &str) -> Error {
    let names = checkpoint.tensors().iter().map(|info| info.name.as_str());
    Error::MissingParam { name: name.into(), file: checkpoint.location(), nearest: nearest(name, names) }
}

/// Path of a tensor's file, for messages.
pub fn file_of(checkpoint: &dyn Checkpoint, name: &str) -> String {
    let location = checkpoint.location();
    match checkpoint.info(name) {
        Some(info) if !location.ends_with(&info.file) => format!("{location}/{}", info.file),
        _ => location,
    }
}

/// Checks that a tensor has a floating-point type and this shape, without reading it.
///
/// # Errors
///
/// [`Error::ParamShape`], [`Error::ParamDtype`].
pub fn check_float(checkpoint: &dyn Checkpoint, info: &TensorInfo, shape: &[usize]) -> Result<()> {
    let file = || file_of(checkpoint, &info.name);
    if info.shape != shape {
        return Err(Error::ParamShape {
            name: info.name.clone(),
            file: file(),
            found: info.shape.clone(),
            expected: shape.to_vec(),
        });
    }
    if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return Err(Error::ParamDtype {
            name: info.name.clone(),
            file: file(),
            found: info.dtype.to_string(),
            expected: "bf16, f16 or f32".into(),
        });
    }
    Ok(())
}

/// Reads a floating-point tensor, converted to f32. Checks its shape and that all values are finite.
///
/// # Errors
///
/// [`Error::MissingParam`], [`Error::ParamShape`], [`Error::ParamDtype`], [`Error::NonFinite`], or an error of reading.
pub fn read_float(checkpoint: &dyn Checkpoint, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let tensor = float_tensor(checkpoint, name, shape)?;
    float_rows(checkpoint, name, &tensor, 0..shape[0])
}

/// A floating-point tensor of this shape, in its stored form.
fn float_tensor<'a>(checkpoint: &'a dyn Checkpoint, name: &str, shape: &[usize]) -> Result<HostTensor<'a>> {
    let tensor = checkpoint.tensor(name)?;
    let info = TensorInfo { name: name.into(), dtype: tensor.dtype, shape: tensor.shape.clone(), file: String::new() };
    check_float(checkpoint, &info, shape)?;
    Ok(tensor)
}

/// Some rows of a tensor, converted to f32. Checks that all values are finite.
fn float_rows(
    checkpoint: &dyn Checkpoint,
    name: &str,
    tensor: &HostTensor<'_>,
    rows: Range<usize>,
) -> Result<Vec<f32>> {
    let cols: usize = tensor.shape[1..].iter().product();
    let row_bytes = cols * tensor.dtype.size();
    let mut values = Vec::new();
    widen(tensor.dtype, &tensor.bytes[rows.start * row_bytes..rows.end * row_bytes], &mut values);
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => {
            let (index, value) = (rows.start * cols + at, values[at]);
            Err(Error::NonFinite { name: name.into(), file: file_of(checkpoint, name), index, value })
        }
        None => Ok(values),
    }
}

/// As [`read_param`] for an unquantized matrix, in chunks of rows to bound the memory. A chunk has at most `max_rows`
/// rows of one source. The chunks are in the order of the rows.
///
/// # Errors
///
/// As [`read_float`].
pub fn read_rows<'a>(
    checkpoint: &'a dyn Checkpoint,
    param: &'a Param,
    max_rows: usize,
) -> Result<impl Iterator<Item = Result<Vec<f32>>> + 'a> {
    let tensor = |source: &'a Source| {
        let mut shape = param.shape.clone();
        shape[0] = source.rows;
        Ok((source, float_tensor(checkpoint, &source.name, &shape)?))
    };
    let tensors = param.sources.iter().map(tensor).collect::<Result<Vec<_>>>()?;
    let read = move |(source, tensor): (&'a Source, HostTensor<'a>)| {
        (0..source.rows).step_by(max_rows).map(move |first| {
            let rows = first..source.rows.min(first + max_rows);
            let mut values = float_rows(checkpoint, &source.name, &tensor, rows)?;
            if param.adds_one {
                values.iter_mut().for_each(|v| *v += 1.0);
            }
            Ok(values)
        })
    };
    Ok(tensors.into_iter().flat_map(read))
}
