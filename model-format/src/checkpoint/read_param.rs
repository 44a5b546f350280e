//! [`read_param`]: the values of a parameter, from float tensors or from a GPTQ matrix.

use super::{Checkpoint, read_float};
use crate::{
    Param, Result,
    gptq::{GptqConfig, GptqMatrix},
};

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
