//! [`read_param`]: reads the values of a parameter from float tensors or GPTQ matrices.

use super::{Checkpoint, read_float};
use crate::{
    Param, Result,
    gptq::{GptqConfig, GptqMatrix},
};

/// Reads the values of `param` in f32, row-major, with its sources joined by rows.
///
/// Float tensors are converted to f32 without rounding. GPTQ matrices are dequantized. Adds one, in f32, if
/// [`Param::adds_one`].
///
/// # Errors
///
/// [`MissingParam`](crate::Error::MissingParam), [`ParamShape`](crate::Error::ParamShape),
/// [`ParamDtype`](crate::Error::ParamDtype), [`NonFinite`](crate::Error::NonFinite), an error of the GPTQ
/// configuration, or an error of reading.
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
