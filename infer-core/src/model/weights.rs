//! Loaders of a decoder's weights: from an MLC folder, from a Hugging Face checkpoint, or random.
//!
//! Each loader uploads one parameter at a time, and large ones in pieces, so that the host has at most one tensor in memory
//! (except memory-mapped files).

use std::{collections::HashMap, ops::Range};

use half::{bf16, f16};
use model_format::{
    Checkpoint, DecoderConfig, Dtype, Error, FileBytes, HostTensor, ModelFiles, Param, QuantFormat, QuantizedMatrix,
    Role, TensorCache, Weight,
    checkpoint::{read_param, read_rows},
    gptq::{GptqConfig, GptqMatrix},
    params,
    params::joined_params,
    quant::group_quant::Scales,
    tensor_cache::{Record, Shard},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use webgpu_kernels::WeightFormat;

use super::Parts;
use crate::{
    Progress, Result,
    ops::{Loading, RowSource},
};

/// Limit in bytes of a piece of a parameter that is read at a time, if its rows are stored one after another.
const PIECE_BYTES: usize = 8 << 20;

/// Loads an MLC folder, parameter by parameter.
///
/// Errors: a missing or damaged file; out of memory on the device.
pub async fn load_mlc<O: Loading>(
    ops: &mut O,
    config: &DecoderConfig,
    format: &'static QuantFormat,
    files: &impl ModelFiles,
    progress: &mut dyn Progress,
) -> Result<Parts<O>> {
    let (index_name, cache) = read_index(files).await?;
    for shard in &cache.shards {
        let (found, expected) = (files.size(&shard.data_path).await?, shard.nbytes as u64);
        if found != expected {
            return Err(Error::FileSize { file: shard.data_path.clone(), found, expected }.into());
        }
    }
    let stored = params(config)
        .into_iter()
        .map(|param| StoredParam::find(files, &cache, &index_name, format, param))
        .collect::<Result<Vec<_>>>()?;
    let total: usize = stored.iter().map(StoredParam::nbytes).sum();
    let mut unjoined = Unjoined::default();
    let mut parts = Parts::default();
    let mut done = 0;
    for mut param in stored {
        let role = param.param.role;
        let in_parts = param.stored_format().is_some() || param.rows_at_once() < param.rows();
        if in_parts && Unjoined::place(role).is_none() {
            parts.add_matrix(role, ops.upload_rows(role, &mut param).await?);
        } else if let Some((role, weight)) = unjoined.join(role, param.whole().await?) {
            parts.add(ops, role, weight)?;
        }
        done += param.nbytes();
        progress.loaded(done as u64, total as u64);
    }
    Ok(parts)
}

/// Reads tensor-cache.json, or its older name.
async fn read_index(files: &impl ModelFiles) -> Result<(String, TensorCache)> {
    let [name, older] = TensorCache::FILE_NAMES;
    let name = if !files.exists(name).await && files.exists(older).await { older } else { name };
    let json = String::from_utf8_lossy(&files.read(name).await?).into_owned();
    Ok((name.into(), TensorCache::parse(name, &json)?))
}

/// A parameter in an MLC folder.
struct StoredParam<'a, F> {
    files: &'a F,
    index_name: &'a str,
    format: &'static QuantFormat,
    param: Param,
    /// In the order of [`QuantFormat::stored`].
    records: Vec<(&'a Shard, &'a Record)>,
}

impl<'a, F: ModelFiles> StoredParam<'a, F> {
    /// Finds the records of `param`, and checks their shapes and number types.
    fn find(
        files: &'a F,
        cache: &'a TensorCache,
        index_name: &'a str,
        format: &'static QuantFormat,
        param: Param,
    ) -> Result<StoredParam<'a, F>> {
        let mut records = Vec::new();
        for expected in format.stored(&param) {
            let missing =
                || Error::MissingParam { name: expected.name.clone(), file: index_name.into(), nearest: None };
            let (shard, record) = cache.find(&expected.name).ok_or_else(missing)?;
            format.check_stored(index_name, &param, &expected, &record.shape, disk_dtype(record))?;
            records.push((shard, record));
        }
        Ok(StoredParam { files, index_name, format, param, records })
    }

    fn nbytes(&self) -> usize {
        self.records.iter().map(|(_, record)| record.nbytes).sum()
    }

    fn rows(&self) -> usize {
        self.param.shape[0]
    }

    async fn whole(&mut self) -> Result<Weight> {
        self.read(0..self.rows()).await
    }
}

impl<F: ModelFiles> RowSource for StoredParam<'_, F> {
    fn shape(&self) -> [usize; 2] {
        let [rows, cols] = self.param.shape[..] else { panic!("`{}` is not a matrix", self.param.name) };
        [rows, cols]
    }

    fn rows_at_once(&self) -> usize {
        // Whether bf16 scales fit into f16 is decided for a whole matrix, so read it at once.
        let is_plain = self.records.iter().all(|(_, record)| disk_dtype(record) != Dtype::BF16);
        if !self.format.stores_rows(&self.param) || !is_plain {
            return self.rows();
        }
        let row_bytes = self.records[0].1.nbytes / self.rows().max(1);
        // An even number of rows, so that their scales fill whole 32-bit words.
        ((PIECE_BYTES / row_bytes.max(1)).max(2) & !1).min(self.rows())
    }

    fn stored_format(&self) -> Option<WeightFormat> {
        if !self.param.role.is_matrix() || !self.format.stores_rows(&self.param) || cfg!(target_endian = "big") {
            return None;
        }
        let dtype = |place: usize| disk_dtype(self.records[place].1);
        let format = match (self.records.len(), self.format.group()) {
            (2, Some(group)) if group.words_per_group() == 4 && dtype(1) == Dtype::F16 => group.into(),
            (1, _) if dtype(0) == Dtype::F16 => WeightFormat::F16,
            (1, _) if dtype(0) == Dtype::F32 => WeightFormat::F32,
            _ => return None,
        };
        let [rows, cols] = self.shape();
        // The device pads rows that end within a block. Such a matrix is not stored in the device's layout.
        (format.matrix_bytes(rows, cols) == self.nbytes().next_multiple_of(4) as u64).then_some(format)
    }

    async fn stored(&mut self, rows: Range<usize>) -> Result<[FileBytes; 2]> {
        let mut parts = [FileBytes::Read(Vec::new()), FileBytes::Read(Vec::new())];
        for (part, (shard, record)) in parts.iter_mut().zip(&self.records) {
            let row_bytes = record.nbytes / self.rows();
            let at = |row: usize| (record.byte_offset + row * row_bytes) as u64;
            *part = self.files.view_range(&shard.data_path, at(rows.start)..at(rows.end)).await?;
        }
        Ok(parts)
    }

    async fn read(&mut self, rows: Range<usize>) -> Result<Weight> {
        let mut tensors = Vec::with_capacity(self.records.len());
        let mut shape = self.param.shape.clone();
        let is_part = rows.len() < self.rows();
        if is_part {
            shape[0] = rows.len();
        }
        for (shard, record) in &self.records {
            let (mut shape, mut bytes) = (record.shape.clone(), 0..record.nbytes);
            if is_part {
                let row_bytes = record.nbytes / self.rows();
                shape[0] = rows.len();
                bytes = rows.start * row_bytes..rows.end * row_bytes;
            }
            let at = |byte: usize| (record.byte_offset + byte) as u64;
            let bytes = self.files.read_range(&shard.data_path, at(bytes.start)..at(bytes.end)).await?;
            tensors.push(HostTensor { dtype: disk_dtype(record), shape, bytes: bytes.into() });
        }
        let param = Param { shape, ..self.param.clone() };
        Ok(self.format.weight_from_stored(self.index_name, &param, &tensors)?)
    }
}

/// The number type on disk: MLC stores f32 tensors as bf16.
fn disk_dtype(record: &Record) -> Dtype {
    if record.f32_as_bf16 { Dtype::BF16 } else { record.dtype }
}

/// Separate queries, keys and values of each layer, until all three are read and can be joined.
#[derive(Default)]
struct Unjoined {
    layers: HashMap<usize, [Option<Weight>; 3]>,
}

impl Unjoined {
    /// The layer of a separate query, key or value matrix, and its place in the joined one.
    fn place(role: Role) -> Option<(usize, usize)> {
        match role {
            Role::Query(i) => Some((i, 0)),
            Role::Key(i) => Some((i, 1)),
            Role::Value(i) => Some((i, 2)),
            _ => None,
        }
    }

    /// Adds a parameter. Returns it if it is not joined with others, the joined one if it is now complete, else `None`.
    fn join(&mut self, role: Role, weight: Weight) -> Option<(Role, Weight)> {
        let Some((layer, place)) = Unjoined::place(role) else { return Some((role, weight)) };
        let parts = self.layers.entry(layer).or_default();
        parts[place] = Some(weight);
        if parts.iter().any(Option::is_none) {
            return None;
        }
        let parts = self.layers.remove(&layer)?.into_iter().flatten().collect();
        Some((Role::Qkv(layer), Weight::concat_rows(parts)))
    }
}

/// Loads a Hugging Face checkpoint. GPTQ matrices are repacked in `format` if that is lossless, and dequantized if not.
///
/// Errors: a missing or damaged file; out of memory on the device.
pub fn load_checkpoint<O: Loading>(
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
        match weight {
            Some(weight) => parts.add(ops, param.role, weight)?,
            None if gptq.is_none() && is_large(param) => {
                let (rows, cols) = (param.shape[0], param.shape[1]);
                let most = (PIECE_BYTES / (4 * cols)).max(2) & !1;
                let weight = |data: Vec<f32>| Weight::F32 { shape: vec![data.len() / cols, cols], data };
                let mut read = read_rows(checkpoint, param, most)?.map(|data| Ok(weight(data?)));
                parts.add_matrix(param.role, ops.upload_parts(param.role, rows, &mut read)?);
            }
            None => {
                let data = read_param(checkpoint, param)?;
                parts.add(ops, param.role, Weight::F32 { shape: param.shape.clone(), data })?;
            }
        }
        progress.loaded(done as u64 + 1, list.len() as u64);
    }
    Ok(parts)
}

/// True if a matrix is large enough to be read in pieces, and its parts have even numbers of rows.
fn is_large(param: &Param) -> bool {
    let is_even = param.sources.iter().all(|source| source.rows.is_multiple_of(2));
    param.role.is_matrix() && is_even && 4 * param.shape.iter().product::<usize>() > PIECE_BYTES
}

/// The sources of a GPTQ matrix in `format`, joined by rows. `None` if one of them is not quantized, or not without loss.
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

/// Loads random weights, to measure a shape without its files. Their magnitudes keep activations finite.
pub fn load_random<O: Loading>(
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
                // Uniform codes have a standard deviation of 4.3 steps. This scale keeps outputs as large as inputs.
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
