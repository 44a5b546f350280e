//! Shards: which tensor goes into which file, and the files and their index being written.

use model_format::{Dtype, TensorCache, quant::StoredTensor, tensor_cache::ShardSum};
use serde_json::{Value, json};

use crate::{
    Result,
    python_json::to_python_json,
    staging::{StagedFile, Staging},
};

/// MLC's size of a shard, which one holds only where a single tensor is as large or larger.
pub(crate) const SHARD_SIZE: usize = 32 << 20;

/// Where a tensor goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Number of the file.
    pub(crate) shard: usize,
    /// Where it begins there.
    pub(crate) offset: usize,
}

/// The places of tensors of these sizes, in their order, as TVM's sharding manager chooses them.
///
/// A tensor that does not fit beside those that wait gets a shard of its own when it is half a shard or more, and that
/// shard has the lower number, because the others are still waiting.
pub(crate) fn plan_shards(sizes: &[usize]) -> Vec<Place> {
    let mut places = vec![Place { shard: 0, offset: 0 }; sizes.len()];
    let mut waiting: Vec<usize> = Vec::new();
    let (mut pending, mut next) = (0, 0);
    let flush = |waiting: &mut Vec<usize>, next: &mut usize, places: &mut Vec<Place>| {
        for i in waiting.drain(..) {
            places[i].shard = *next;
        }
        *next += 1;
    };
    for (i, &size) in sizes.iter().enumerate() {
        if pending + size >= SHARD_SIZE {
            if size >= SHARD_SIZE / 2 {
                places[i] = Place { shard: next, offset: 0 };
                next += 1;
                continue;
            }
            if !waiting.is_empty() {
                flush(&mut waiting, &mut next, &mut places);
                pending = 0;
            }
        }
        places[i].offset = pending;
        waiting.push(i);
        pending += size;
    }
    if !waiting.is_empty() {
        flush(&mut waiting, &mut next, &mut places);
    }
    places
}

/// Writes stored tensors in the order in which they were announced, then the index.
pub(crate) struct ShardWriter<'a> {
    staging: &'a mut Staging,
    tensors: Vec<(StoredTensor, Place)>,
    /// How many tensors have been written.
    written: usize,
    /// Files that have begun, by number.
    open: Vec<Option<OpenShard>>,
    finished: Vec<Option<FinishedShard>>,
}

struct OpenShard {
    file: StagedFile,
    sum: ShardSum,
    nbytes: usize,
    records: Vec<Value>,
    /// Tensors that are still to come.
    remaining: usize,
}

struct FinishedShard {
    nbytes: usize,
    records: Vec<Value>,
    md5sum: String,
}

/// What the index says of the whole.
pub(crate) struct Totals {
    /// Bytes in memory.
    pub(crate) param_bytes: u64,
    /// Bits per weight of the checkpoint.
    pub(crate) bits_per_param: f64,
    /// Number of files.
    pub(crate) shards: usize,
    /// Number of records.
    pub(crate) records: usize,
}

impl<'a> ShardWriter<'a> {
    pub(crate) fn new(staging: &'a mut Staging, tensors: Vec<StoredTensor>) -> ShardWriter<'a> {
        let sizes: Vec<usize> = tensors.iter().map(nbytes).collect();
        let places = plan_shards(&sizes);
        let shards = places.iter().map(|place| place.shard + 1).max().unwrap_or(0);
        ShardWriter {
            staging,
            tensors: tensors.into_iter().zip(places).collect(),
            written: 0,
            open: (0..shards).map(|_| None).collect(),
            finished: (0..shards).map(|_| None).collect(),
        }
    }

    /// Writes the next tensor.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let (tensor, place) = self.tensors[self.written].clone();
        self.written += 1;
        assert_eq!(bytes.len(), nbytes(&tensor), "bytes of `{}`", tensor.name);
        if self.open[place.shard].is_none() {
            self.open[place.shard] = Some(OpenShard {
                file: self.staging.create(&data_path(place.shard))?,
                sum: ShardSum::default(),
                nbytes: 0,
                records: Vec::new(),
                remaining: self.tensors.iter().filter(|(_, other)| other.shard == place.shard).count(),
            });
        }
        let shard = self.open[place.shard].as_mut().expect("just opened");
        assert_eq!(shard.nbytes, place.offset, "tensors of a shard are written in the order of their offsets");
        shard.file.write(bytes)?;
        shard.sum.update(bytes);
        shard.nbytes += bytes.len();
        shard.records.push(json!({
            "name": tensor.name,
            "shape": tensor.shape,
            "dtype": dtype_name(tensor.dtype),
            // MLC writes this for every tensor and means it for f32 alone.
            "format": "f32-to-bf16",
            "nbytes": bytes.len(),
            "byteOffset": place.offset,
        }));
        shard.remaining -= 1;
        if shard.remaining == 0 {
            let shard = self.open[place.shard].take().expect("it is open");
            shard.file.finish()?;
            self.finished[place.shard] =
                Some(FinishedShard { nbytes: shard.nbytes, records: shard.records, md5sum: shard.sum.finish() });
        }
        Ok(())
    }

    /// Writes the index, under both of its names. `elements` are the weights that the bits are averaged over.
    pub(crate) fn finish(self, elements: u64) -> Result<Totals> {
        assert_eq!(self.written, self.tensors.len(), "every announced tensor is written");
        let param_bytes: u64 =
            self.tensors.iter().map(|(t, _)| (t.shape.iter().product::<usize>() * t.dtype.size()) as u64).sum();
        let bits_per_param = param_bytes as f64 * 8.0 / elements as f64;
        let shards: Vec<Value> = self
            .finished
            .into_iter()
            .enumerate()
            .map(|(number, shard)| {
                let shard = shard.expect("every shard is finished");
                json!({
                    "dataPath": data_path(number),
                    "format": "raw-shard",
                    "nbytes": shard.nbytes,
                    "records": shard.records,
                    "md5sum": shard.md5sum,
                })
            })
            .collect();
        let totals = Totals { param_bytes, bits_per_param, shards: shards.len(), records: self.tensors.len() };
        let index = json!({
            "metadata": {
                "ParamSize": totals.records,
                "ParamBytes": param_bytes as f64,
                "BitsPerParam": bits_per_param,
            },
            "records": shards,
        });
        let index = to_python_json(&index, 4);
        for name in TensorCache::FILE_NAMES {
            self.staging.write(name, index.as_bytes())?;
        }
        Ok(totals)
    }
}

fn nbytes(tensor: &StoredTensor) -> usize {
    tensor.shape.iter().product::<usize>() * tensor.dtype.size()
}

fn data_path(number: usize) -> String {
    format!("params_shard_{number}.bin")
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::U32 => "uint32",
        other => panic!("no format stores {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Input sizes by name, and the shards: file, and name, offset, size of each record.
    #[derive(serde::Deserialize)]
    struct Case {
        input: Vec<(String, usize)>,
        shards: Vec<(String, Vec<(String, usize, usize)>)>,
    }

    #[test]
    fn shards_are_those_of_tvm() {
        let json = include_str!("../../testdata/mlc/shard_plan_32MiB.json");
        let cases: std::collections::BTreeMap<String, Case> = serde_json::from_str(json).unwrap();
        assert_eq!(cases.len(), 8);
        for (name, case) in cases {
            let sizes: Vec<usize> = case.input.iter().map(|(_, size)| *size).collect();
            let places = plan_shards(&sizes);
            for (file, records) in case.shards {
                for (tensor, offset, size) in records {
                    let i = case.input.iter().position(|(input, _)| *input == tensor).unwrap();
                    assert_eq!(sizes[i], size);
                    let place = places[i];
                    assert_eq!((data_path(place.shard), place.offset), (file.clone(), offset), "{name}: {tensor}");
                }
            }
        }
    }
}
