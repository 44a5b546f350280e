//! The float model that a run reads: its configuration, its values, and checks before the long work.

use model_format::{
    Checkpoint, DecoderConfig, Param,
    checkpoint::{read_float, read_param, read_rows},
    gptq::GptqConfig,
    params,
    params::Source,
    tensor_cache::ShardSum,
};
use rayon::prelude::*;

use crate::error::{Error, Result};

/// The configuration of a model that is not quantized yet. Errors: [`Error::AlreadyQuantized`].
pub fn unquantized_config(checkpoint: &dyn Checkpoint) -> Result<DecoderConfig> {
    let config = DecoderConfig::from_hf(checkpoint.config_json())?;
    match GptqConfig::from_config(checkpoint.config_json())? {
        None => Ok(config),
        Some(_) => Err(Error::AlreadyQuantized { location: checkpoint.location() }),
    }
}

/// Reads every parameter once and checks its shape and that all values are finite. Returns a checksum of everything that the
/// result depends on.
pub fn check_weights(checkpoint: &dyn Checkpoint) -> Result<String> {
    let config = unquantized_config(checkpoint)?;
    let sum_of = |bytes: &[u8]| {
        let mut sum = ShardSum::default();
        sum.update(bytes);
        sum.finish()
    };
    let list = params(&config);
    let sums = list.par_iter().map(|param| {
        // 1024 rows at a time: every thread reads a parameter, and the embedding table may be large.
        read_rows(checkpoint, param, 1024)?.try_for_each(|rows| rows.map(drop))?;
        let sum = param.sources.iter().map(|part| {
            let sum = sum_of(&checkpoint.tensor(&part.name)?.bytes);
            checkpoint.release(&part.name);
            Ok(sum)
        });
        sum.collect::<Result<String>>()
    });
    let mut sums = sums.collect::<Result<Vec<_>>>()?;
    let mut files = checkpoint.companion_files()?;
    files.sort();
    sums.extend(files.iter().map(|(name, content)| format!("{name} {}", sum_of(content))));
    Ok(sum_of(sums.join(" ").as_bytes()))
}

/// The values of a parameter, its joined parts read in parallel. Releases the mapped pages of its files afterwards.
pub(crate) fn read_values(checkpoint: &dyn Checkpoint, param: &Param) -> Result<Vec<f32>> {
    let values = if param.sources.len() == 1 || !param.role.is_matrix() {
        read_param(checkpoint, param)?
    } else {
        let read = |source: &Source| read_float(checkpoint, &source.name, &[source.rows, param.shape[1]]);
        param.sources.par_iter().map(read).collect::<model_format::Result<Vec<_>>>()?.concat()
    };
    param.sources.iter().for_each(|source| checkpoint.release(&source.name));
    Ok(values)
}
