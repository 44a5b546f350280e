//! Where a decoder's weights come from: an MLC folder, a Hugging Face checkpoint, or nothing but their shapes.
//!
//! Each loader hands one parameter at a time to the device, in the order in which it has them, so that the host holds no
//! more than one shard or one tensor beyond what it maps.

use std::collections::HashMap;

use half::{bf16, f16};
use model_format::{
    Checkpoint, DecoderConfig, Dtype, Error, HostTensor, ModelFiles, Param, QuantFormat, QuantizedMatrix, Role,
    TensorCache, Weight,
    checkpoint::read_param,
    gptq::{GptqConfig, GptqMatrix},
    params,
    params::joined_params,
    quant::group_quant::Scales,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Parts;
use crate::{Progress, Result, ops::Ops};

/// Loads an MLC folder's shards, one after the other.
pub async fn load_mlc<O: Ops>(
    ops: &mut O,
    config: &DecoderConfig,
    format: &'static QuantFormat,
    files: &impl ModelFiles,
    progress: &mut dyn Progress,
) -> Result<Parts<O>> {
    let (index_name, cache) = read_index(files).await?;
    let mut expected = Expected::new(config, format);
    let mut unjoined = Unjoined::default();
    let mut parts = Parts::default();
    let total: usize = cache.shards.iter().map(|shard| shard.nbytes).sum();
    let mut done = 0;
    for shard in &cache.shards {
        let bytes = files.read(&shard.data_path).await?;
        if bytes.len() != shard.nbytes {
            return Err(Error::FileSize {
                file: shard.data_path.clone(),
                found: bytes.len() as u64,
                expected: shard.nbytes as u64,
            }
            .into());
        }
        for record in &shard.records {
            let tensor = HostTensor {
                // An f32 tensor of MLC lies on disk as bf16.
                dtype: if record.f32_as_bf16 { Dtype::BF16 } else { record.dtype },
                shape: record.shape.clone(),
                bytes: bytes[record.byte_offset..record.byte_offset + record.nbytes].into(),
            };
            let taken = expected.take(&index_name, &record.name, &tensor)?;
            if let Some((role, weight)) = taken.and_then(|(role, weight)| unjoined.join(role, weight)) {
                parts.add(ops, role, weight)?;
            }
        }
        done += shard.nbytes;
        progress.loaded(done as u64, total as u64);
    }
    expected.finish(&index_name)?;
    Ok(parts)
}

/// Reads tensor-cache.json, or its older name.
async fn read_index(files: &impl ModelFiles) -> Result<(String, TensorCache)> {
    let [name, older] = TensorCache::FILE_NAMES;
    let name = if !files.exists(name).await && files.exists(older).await { older } else { name };
    let json = String::from_utf8_lossy(&files.read(name).await?).into_owned();
    Ok((name.into(), TensorCache::parse(name, &json)?))
}

/// The parameters of an MLC folder that have not come yet.
struct Expected {
    format: &'static QuantFormat,
    params: Vec<Param>,
    /// Stored name -> index of its parameter, and its place among that parameter's tensors.
    places: HashMap<String, (usize, usize)>,
    /// Tensors of each parameter, as they come.
    tensors: Vec<Vec<Option<HostTensor<'static>>>>,
}

impl Expected {
    fn new(config: &DecoderConfig, format: &'static QuantFormat) -> Expected {
        let params = params(config);
        let mut places = HashMap::new();
        let mut tensors = Vec::with_capacity(params.len());
        for (index, param) in params.iter().enumerate() {
            let stored = format.stored(param);
            tensors.push(vec![None; stored.len()]);
            places.extend(stored.into_iter().enumerate().map(|(place, stored)| (stored.name, (index, place))));
        }
        Expected { format, params, places, tensors }
    }

    /// Takes a stored tensor; the parameter, where this makes it complete. Unknown tensors are passed over.
    fn take(&mut self, file: &str, name: &str, tensor: &HostTensor<'_>) -> Result<Option<(Role, Weight)>> {
        let Some((index, place)) = self.places.remove(name) else { return Ok(None) };
        let tensors = &mut self.tensors[index];
        tensors[place] = Some(HostTensor { bytes: tensor.bytes.to_vec().into(), ..tensor.clone() });
        if tensors.iter().any(Option::is_none) {
            return Ok(None);
        }
        let whole: Vec<_> = std::mem::take(tensors).into_iter().flatten().collect();
        let param = &self.params[index];
        Ok(Some((param.role, self.format.weight_from_stored(file, param, &whole)?)))
    }

    /// Whether everything came.
    fn finish(self, file: &str) -> Result<()> {
        match self.places.into_keys().min() {
            None => Ok(()),
            Some(name) => Err(Error::MissingParam { name, file: file.into(), nearest: None }.into()),
        }
    }
}

/// Queries, keys and values that came apart, layer by layer, until all three are there.
#[derive(Default)]
struct Unjoined {
    layers: HashMap<usize, [Option<Weight>; 3]>,
}

impl Unjoined {
    /// Takes a parameter; gives it back, or the joined one where this makes it complete.
    fn join(&mut self, role: Role, weight: Weight) -> Option<(Role, Weight)> {
        let (layer, place) = match role {
            Role::Query(i) => (i, 0),
            Role::Key(i) => (i, 1),
            Role::Value(i) => (i, 2),
            _ => return Some((role, weight)),
        };
        let parts = self.layers.entry(layer).or_default();
        parts[place] = Some(weight);
        if parts.iter().any(Option::is_none) {
            return None;
        }
        let parts = self.layers.remove(&layer)?.into_iter().flatten().collect();
        Some((Role::Qkv(layer), Weight::concat_rows(parts)))
    }
}

/// Loads a Hugging Face checkpoint: float as it is, GPTQ matrices in `format` where that is possible without loss and
/// dequantized where not.
pub fn load_checkpoint<O: Ops>(
    ops: &mut O,
    config: &DecoderConfig,
    checkpoint: &dyn Checkpoint,
    format: Option<&'static QuantFormat>,
    progress: &mut dyn Progress,
) -> Result<Parts<O>> {
    let gptq = GptqConfig::from_config(checkpoint.config_json())?;
    let mut parts = Parts::default();
    let list = joined_params(config);
    for (done, param) in list.iter().enumerate() {
        let weight = match (&gptq, format) {
            (Some(gptq), Some(format)) if param.role.is_layer_matrix() => gptq_weight(checkpoint, gptq, format, param)?,
            _ => None,
        };
        let weight = match weight {
            Some(weight) => weight,
            None => {
                let data = read_param(checkpoint, param)?;
                Weight::F32 { shape: param.shape.clone(), data }
            }
        };
        parts.add(ops, param.role, weight)?;
        progress.loaded(done as u64 + 1, list.len() as u64);
    }
    Ok(parts)
}

/// The parts of a GPTQ matrix in `format`, joined; `None` where one of them cannot be had so.
fn gptq_weight(
    checkpoint: &dyn Checkpoint,
    gptq: &GptqConfig,
    format: &'static QuantFormat,
    param: &Param,
) -> Result<Option<Weight>> {
    let mut joined = Vec::with_capacity(param.sources.len());
    for source in &param.sources {
        let Some(matrix) = GptqMatrix::read(checkpoint, gptq, source.module())? else { return Ok(None) };
        match matrix.to_format(format, source.module()) {
            Ok(matrix) => joined.push(matrix),
            Err(Error::NotLossless { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    let matrix = QuantizedMatrix::concat_rows(joined);
    if [matrix.rows, matrix.cols] != param.shape[..] {
        return Err(Error::ParamShape {
            name: param.name.clone(),
            file: checkpoint.location(),
            found: vec![matrix.rows, matrix.cols],
            expected: param.shape.clone(),
        }
        .into());
    }
    Ok(Some(Weight::Quantized(matrix)))
}

/// Makes weights up, on the spot, for measuring a shape whose files are not there. Magnitudes keep activations finite.
pub fn load_random<O: Ops>(
    ops: &mut O,
    config: &DecoderConfig,
    format: &'static QuantFormat,
    seed: u64,
    progress: &mut dyn Progress,
) -> Result<Parts<O>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut parts = Parts::default();
    let list = joined_params(config);
    for (done, param) in list.iter().enumerate() {
        let len: usize = param.shape.iter().product();
        let weight = match (format.group(), &param.shape[..]) {
            (Some(group), &[rows, cols]) if format.quantizes(param) => {
                // Uniform codes have a standard deviation of 4.3 steps; this keeps a row's output near its input's size.
                let scale = 1.0 / (4.3 * (cols as f32).sqrt());
                let groups = group.groups(cols);
                let dtype = group.scale_dtype();
                let bits =
                    if dtype == Dtype::F16 { f16::from_f32(scale).to_bits() } else { bf16::from_f32(scale).to_bits() };
                Weight::Quantized(QuantizedMatrix {
                    format,
                    rows,
                    cols,
                    q_weight: (0..rows * groups * group.words_per_group()).map(|_| rng.random()).collect(),
                    q_scale: Scales { dtype, bits: vec![bits; rows * groups] },
                })
            }
            (_, &[_, cols]) => {
                let bound = (3.0f32 / cols as f32).sqrt();
                let data = (0..len).map(|_| f16::from_f32(rng.random_range(-bound..bound))).collect();
                Weight::F16 { shape: param.shape.clone(), data }
            }
            _ => Weight::F32 { shape: param.shape.clone(), data: vec![1.0; len] },
        };
        parts.add(ops, param.role, weight)?;
        progress.loaded(done as u64 + 1, list.len() as u64);
    }
    Ok(parts)
}
