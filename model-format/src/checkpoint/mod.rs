//! [`Checkpoint`]: named tensors with the configuration that explains them, whatever file they come from.
//!
//! [`SafetensorsCheckpoint`] is a Hugging Face folder; model-hub adds others. [`read_param`] is how everybody turns a
//! [`Param`] into numbers.

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

/// What a checkpoint says of one of its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Checkpoint name, such as `model.norm.weight`.
    pub name: String,
    /// Number type as stored.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// The file that holds it, for messages and for MLC's record order.
    pub file: String,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Named tensors, whatever file they come from.
pub trait Checkpoint: Send + Sync {
    /// Every tensor, in the order in which `convert_weight` meets them: the order of the index, or of the file.
    fn tensors(&self) -> &[TensorInfo];
    /// One tensor's bytes, as stored. A missing one is an error that names the nearest.
    fn tensor(&self, name: &str) -> Result<HostTensor<'_>>;
    /// What to call this checkpoint in messages.
    fn location(&self) -> String;
    /// The text of config.json.
    fn config_json(&self) -> &str;
    /// The files that go with the weights (tokenizer.json, tokenizer_config.json, generation_config.json,
    /// chat_template.jinja ...): name and content, those that exist. Includes config.json.
    fn companion_files(&self) -> Result<Vec<(String, Vec<u8>)>>;

    /// Tells that a tensor's bytes will not be wanted again soon: memory that only repeats a file may be given back.
    fn release(&self, name: &str) {
        let _ = name;
    }

    /// What the checkpoint says of one tensor.
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors().iter().find(|info| info.name == name)
    }
}

/// The error for a tensor that `checkpoint` lacks.
pub fn missing_param(checkpoint: &dyn Checkpoint, name: &str) -> Error {
    let names = checkpoint.tensors().iter().map(|info| info.name.as_str());
    Error::MissingParam { name: name.into(), file: checkpoint.location(), nearest: nearest(name, names) }
}

/// The path of the file that holds a tensor, for messages.
pub fn file_of(checkpoint: &dyn Checkpoint, name: &str) -> String {
    let location = checkpoint.location();
    match checkpoint.info(name) {
        Some(info) if !location.ends_with(&info.file) => format!("{location}/{}", info.file),
        _ => location,
    }
}

/// Checks that a tensor has floating-point values of `shape`. For use before anything is read.
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

/// The values of a floating-point tensor in f32, of the expected shape and finite.
pub fn read_float(checkpoint: &dyn Checkpoint, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let tensor = float_tensor(checkpoint, name, shape)?;
    float_rows(checkpoint, name, &tensor, 0..shape[0])
}

/// A floating-point tensor of the expected shape.
fn float_tensor<'a>(checkpoint: &'a dyn Checkpoint, name: &str, shape: &[usize]) -> Result<HostTensor<'a>> {
    let tensor = checkpoint.tensor(name)?;
    let info = TensorInfo { name: name.into(), dtype: tensor.dtype, shape: tensor.shape.clone(), file: String::new() };
    check_float(checkpoint, &info, shape)?;
    Ok(tensor)
}

/// Some rows of it in f32, finite.
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

/// As [`read_param`] for a matrix of a checkpoint that is not quantized, some rows at a time, so that the values are
/// never all in memory: in order, at most `most` rows of one source at once.
pub fn read_rows<'a>(
    checkpoint: &'a dyn Checkpoint,
    param: &'a Param,
    most: usize,
) -> Result<impl Iterator<Item = Result<Vec<f32>>> + 'a> {
    let tensor = |source: &'a Source| {
        let mut shape = param.shape.clone();
        shape[0] = source.rows;
        Ok((source, float_tensor(checkpoint, &source.name, &shape)?))
    };
    let tensors = param.sources.iter().map(tensor).collect::<Result<Vec<_>>>()?;
    let read = move |(source, tensor): (&'a Source, HostTensor<'a>)| {
        (0..source.rows).step_by(most).map(move |first| {
            let rows = first..source.rows.min(first + most);
            let mut values = float_rows(checkpoint, &source.name, &tensor, rows)?;
            if param.adds_one {
                values.iter_mut().for_each(|v| *v += 1.0);
            }
            Ok(values)
        })
    };
    Ok(tensors.into_iter().flat_map(read))
}
