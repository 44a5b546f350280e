//! [`Checkpoint`]: named tensors with the configuration that explains them, whatever file they come from.
//!
//! [`SafetensorsCheckpoint`] is a Hugging Face folder; model-hub adds others. [`read_param`] is how everybody turns a
//! [`Param`] into numbers.

mod nearest;
mod safetensors;
mod writer;

pub use self::nearest::nearest;
pub use self::safetensors::{COMPANIONS, SafetensorsCheckpoint, companion_files, indexed_files, tensor_ranges};
pub use writer::{SafetensorsWriter, write_safetensors};

use crate::{Dtype, Error, HostTensor, Param, Result, gptq::GptqConfig, gptq::GptqMatrix};

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
    let tensor = checkpoint.tensor(name)?;
    let info = TensorInfo { name: name.into(), dtype: tensor.dtype, shape: tensor.shape.clone(), file: String::new() };
    check_float(checkpoint, &info, shape)?;
    let values = tensor.to_f32();
    match values.iter().position(|v| !v.is_finite()) {
        Some(index) => {
            Err(Error::NonFinite { name: name.into(), file: file_of(checkpoint, name), index, value: values[index] })
        }
        None => Ok(values),
    }
}

/// The values of `param` in f32, its sources joined by rows: shapes checked, NaN and infinity refused. GPTQ matrices are
/// dequantized. Values of float tensors are widened, not rounded. A parameter that is one more than its source is, in f32.
pub fn read_param(checkpoint: &dyn Checkpoint, param: &Param) -> Result<Vec<f32>> {
    let gptq = if param.role.is_matrix() { GptqConfig::from_config(checkpoint.config_json())? } else { None };
    let mut values = Vec::with_capacity(param.shape.iter().product());
    for source in &param.sources {
        let mut shape = param.shape.clone();
        shape[0] = source.rows;
        let matrix = match &gptq {
            Some(config) => GptqMatrix::read(checkpoint, config, source.module())?,
            None => None,
        };
        match matrix {
            Some(matrix) => {
                matrix.check_shape(checkpoint, source.module(), &shape)?;
                values.extend(matrix.dequantize());
            }
            None => values.extend(read_float(checkpoint, &source.name, &shape)?),
        }
    }
    if param.adds_one {
        values.iter_mut().for_each(|v| *v += 1.0);
    }
    Ok(values)
}
