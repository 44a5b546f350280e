//! The tensors of a parameter in a checkpoint: their announcement, their content, and reading them back.

use half::f16;
use model_format::{
    Checkpoint, Dtype, HostTensor, Param, Role, TensorInfo, checkpoint::missing_param, gptq::GptqConfig,
};
use rayon::prelude::*;

use crate::{
    error::{Error, Result},
    solve::quantized::Quantized,
};

/// The name, number type and shape of a tensor.
pub(super) type Announced = (String, Dtype, Vec<usize>);

/// The tensors of a quantized matrix, as announced.
pub(super) fn pack(
    param: &Param,
    quantized: &Quantized,
    config: &GptqConfig,
    announced: &[Announced],
) -> Result<Vec<(String, HostTensor<'static>)>> {
    let mut tensors = Vec::new();
    let in_codes = param.role.is_layer_matrix() || (param.role == Role::LmHead && config.lm_head);
    if in_codes {
        let mut starts = vec![0; param.sources.len()];
        (1..starts.len()).for_each(|i| starts[i] = starts[i - 1] + param.sources[i - 1].rows);
        let parts = param.sources.par_iter().zip(starts).map(|(part, start)| {
            let matrix = quantized.rows_to_checkpoint(start, part.rows);
            Ok(matrix.to_tensors(&config.of_module(part.module())?, part.module()))
        });
        tensors.extend(parts.collect::<Result<Vec<_>>>()?.into_iter().flatten());
    } else {
        let [part] = &param.sources[..] else { panic!("`{}` is one tensor of a checkpoint", param.name) };
        tensors.push((part.name.clone(), values_in_f16(&part.name, quantized)?));
    }
    let written = tensors.iter().map(|(name, tensor)| (name, tensor.dtype, &tensor.shape));
    assert!(announced.iter().map(|(name, dtype, shape)| (name, *dtype, shape)).eq(written), "{announced:?}");
    Ok(tensors)
}

/// The tensors of one parameter, as a checkpoint that readers take.
pub(super) struct PartialCheckpoint {
    pub(super) config_json: String,
    pub(super) infos: Vec<TensorInfo>,
    pub(super) bytes: Vec<Vec<u8>>,
}

impl Checkpoint for PartialCheckpoint {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn tensor(&self, name: &str) -> model_format::Result<HostTensor<'_>> {
        let at = self.infos.iter().position(|info| info.name == name).ok_or_else(|| missing_param(self, name))?;
        let TensorInfo { dtype, shape, .. } = &self.infos[at];
        Ok(HostTensor { dtype: *dtype, shape: shape.clone(), bytes: (&self.bytes[at][..]).into() })
    }

    fn location(&self) -> String {
        self.infos.first().map_or(String::new(), |info| info.file.clone())
    }

    fn config_json(&self) -> &str {
        &self.config_json
    }

    fn companion_files(&self) -> model_format::Result<Vec<(String, Vec<u8>)>> {
        Ok(Vec::new())
    }
}

/// The tensors that hold a quantized matrix `[rows, cols]`. Errors: [`Error::Unpackable`].
pub(super) fn announce(
    config: &GptqConfig,
    module: &str,
    rows: usize,
    cols: usize,
) -> Result<[(String, Dtype, Vec<usize>); 4]> {
    let multiple = config.multiple();
    if !rows.is_multiple_of(multiple) || !cols.is_multiple_of(multiple) {
        return Err(Error::Unpackable { module: module.into(), rows, cols, multiple });
    }
    let groups = config.groups(cols);
    Ok([
        (format!("{module}.qweight"), Dtype::I32, vec![cols * config.bits / 32, rows]),
        (format!("{module}.qzeros"), Dtype::I32, vec![groups, rows * config.bits / 32]),
        (format!("{module}.scales"), Dtype::F16, vec![groups, rows]),
        (format!("{module}.g_idx"), Dtype::I32, vec![cols]),
    ])
}

/// True for f32, f16 and bf16.
pub(super) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// The values as an f16 tensor. Errors: [`Error::F16Overflow`].
pub(super) fn to_f16(name: &str, shape: Vec<usize>, values: &[f32]) -> Result<HostTensor<'static>> {
    let mut bytes = Vec::with_capacity(values.len() * 2);
    for &value in values {
        let rounded = f16::from_f32(value);
        if rounded.is_infinite() {
            return Err(Error::F16Overflow { name: name.into(), value });
        }
        bytes.extend(rounded.to_le_bytes());
    }
    Ok(HostTensor { dtype: Dtype::F16, shape, bytes: bytes.into() })
}

/// The dequantized values of a matrix as an f16 tensor. Converts row by row, because the matrix may be too large to be in memory
/// in f32 too.
fn values_in_f16(name: &str, quantized: &Quantized) -> Result<HostTensor<'static>> {
    let (rows, cols) = quantized.codes.dim();
    let mut bytes = vec![0; 2 * rows * cols];
    bytes.par_chunks_mut((2 * cols).max(1)).enumerate().try_for_each(|(row, bytes)| {
        let values = to_f16(name, vec![cols], &quantized.row(row))?;
        bytes.copy_from_slice(&values.bytes);
        Ok::<_, Error>(())
    })?;
    Ok(HostTensor { dtype: Dtype::F16, shape: vec![rows, cols], bytes: bytes.into() })
}
