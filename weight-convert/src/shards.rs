//! Shards: assigns tensors to files, and writes the files and their index.

use model_format::{
    Dtype, PythonJson, TensorCache,
    quant::StoredTensor,
    staging::{Finished, StagedFile, Staging},
};
use serde_json::{Value, json};

use crate::Result;

/// MLC's size of a shard in bytes. Only a shard with a single tensor may reach or exceed it.
pub const SHARD_SIZE: usize = 32 << 20;

/// The place of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Number of the shard.
    pub(crate) shard: usize,
    /// Offset in the shard, in bytes.
    pub(crate) offset: usize,
}

/// The places of tensors of these sizes, by the rule of TVM's sharding manager.
///
/// A tensor that does not fit into the pending shard gets its own shard if it is at least half a shard. Its shard has the lower
/// number, because the pending one is not written yet.
fn plan_shards(sizes: &[usize], shard_size: usize) -> Vec<Place> {
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
        if pending + size >= shard_size {
            if 2 * size >= shard_size {
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

/// The shards of a conversion: the place of each tensor, and the index.
pub(crate) struct Shards {
    /// Tensors in the order of writing.
    pub(crate) tensors: Vec<(StoredTensor, Place)>,
    /// Bytes of each shard.
    pub(crate) sizes: Vec<usize>,
    /// Number of weights, the divisor of bits per weight.
    elements: u64,
}

impl Shards {
    pub(crate) fn new(tensors: Vec<StoredTensor>, shard_size: usize, elements: u64) -> Shards {
        let places = plan_shards(&tensors.iter().map(StoredTensor::disk_bytes).collect::<Vec<_>>(), shard_size);
        let mut sizes = vec![0; places.iter().map(|place| place.shard + 1).max().unwrap_or(0)];
        for (tensor, place) in tensors.iter().zip(&places) {
            sizes[place.shard] += tensor.disk_bytes();
        }
        Shards { tensors: tensors.into_iter().zip(places).collect(), sizes, elements }
    }

    /// Size of the tensors in memory, as MLC counts it.
    pub(crate) fn param_bytes(&self) -> u64 {
        self.tensors.iter().map(|(t, _)| (t.shape.iter().product::<usize>() * t.dtype.size()) as u64).sum()
    }

    /// The same, in bits per weight of the checkpoint.
    pub(crate) fn bits_per_param(&self) -> f64 {
        self.param_bytes() as f64 * 8.0 / self.elements as f64
    }

    /// The indices by name, given the MD5 sum of each shard: one index under two names and, if any tensor is f32, another for readers
    /// that support bf16.
    pub(crate) fn indices(&self, sums: &[String]) -> Vec<(&'static str, String)> {
        let mut files: Vec<_> = TensorCache::FILE_NAMES.map(|name| (name, self.index(sums, false))).into();
        if self.tensors.iter().any(|(tensor, _)| tensor.dtype == Dtype::F32) {
            files.push(("tensor-cache-b16.json", self.index(sums, true)));
        }
        files
    }

    fn index(&self, sums: &[String], as_bf16: bool) -> String {
        let mut records: Vec<Vec<Value>> = vec![Vec::new(); self.sizes.len()];
        for (tensor, place) in &self.tensors {
            let is_bf16 = as_bf16 && tensor.dtype == Dtype::F32;
            records[place.shard].push(json!({
                "name": tensor.name,
                "shape": tensor.shape,
                "dtype": dtype_name(if is_bf16 { Dtype::BF16 } else { tensor.dtype }),
                // MLC writes this for every tensor, but it only applies to f32.
                "format": if is_bf16 { "raw" } else { "f32-to-bf16" },
                "nbytes": tensor.disk_bytes(),
                "byteOffset": place.offset,
            }));
        }
        let shards =
            records.into_iter().zip(&self.sizes).zip(sums).enumerate().map(|(number, ((records, nbytes), sum))| {
                json!({
                    "dataPath": data_path(number),
                    "format": "raw-shard",
                    "nbytes": nbytes,
                    "records": records,
                    "md5sum": sum,
                })
            });
        let index = json!({
            "metadata": {
                "ParamSize": self.tensors.len(),
                "ParamBytes": self.param_bytes() as f64,
                "BitsPerParam": self.bits_per_param(),
            },
            "records": shards.collect::<Vec<_>>(),
        });
        PythonJson::indented(4).write(&index)
    }
}

/// Writes tensors in the order of [`Shards`]. Skips finished shards.
pub(crate) struct ShardWriter<'a> {
    staging: &'a mut Staging,
    shards: &'a Shards,
    /// Index of the next tensor.
    next: usize,
    /// Unfinished files, by number.
    open: Vec<Option<StagedFile>>,
    sums: Vec<Option<String>>,
}

impl<'a> ShardWriter<'a> {
    pub(crate) fn new(staging: &'a mut Staging, shards: &'a Shards, finished: &[Finished]) -> ShardWriter<'a> {
        let count = shards.sizes.len();
        let sum =
            |number: usize| finished.iter().find(|shard| shard.name == data_path(number)).map(|s| s.md5sum.clone());
        ShardWriter {
            staging,
            shards,
            next: 0,
            open: (0..count).map(|_| None).collect(),
            sums: (0..count).map(sum).collect(),
        }
    }

    /// For each shard, true if an interrupted conversion finished it.
    pub(crate) fn finished(&self) -> Vec<bool> {
        self.sums.iter().map(Option::is_some).collect()
    }

    /// Skips the next `count` tensors, whose shards are finished.
    pub(crate) fn skip(&mut self, count: usize) {
        self.next += count;
    }

    /// Writes the next tensor.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let (tensor, place) = &self.shards.tensors[self.next];
        self.next += 1;
        assert_eq!(bytes.len(), tensor.disk_bytes(), "bytes of `{}`", tensor.name);
        let open = &mut self.open[place.shard];
        if open.is_none() {
            if self.sums[place.shard].is_some() {
                return Ok(());
            }
            *open = Some(self.staging.create(&data_path(place.shard))?);
        }
        let shard = open.as_mut().expect("just opened");
        assert_eq!(shard.nbytes(), place.offset as u64, "tensors of a shard are written in the order of their offsets");
        shard.write(bytes)?;
        if shard.nbytes() == self.shards.sizes[place.shard] as u64 {
            let finished = open.take().expect("it is open").finish()?;
            self.staging.record_finished(&finished)?;
            self.sums[place.shard] = Some(finished.md5sum);
        }
        Ok(())
    }

    /// Writes the indices.
    pub(crate) fn finish(self) -> Result<()> {
        let sums: Vec<String> =
            self.sums.into_iter().map(|sum| sum.expect("every announced tensor was written")).collect();
        for (name, text) in self.shards.indices(&sums) {
            self.staging.write(name, text.as_bytes())?;
        }
        Ok(())
    }
}

pub(crate) fn data_path(number: usize) -> String {
    format!("params_shard_{number}.bin")
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        Dtype::F32 => "float32",
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
        shards: Vec<(String, Vec<Record>)>,
    }

    type Record = (String, usize, usize);

    #[test]
    fn shards_are_those_of_tvm() {
        let json = include_str!("../../testdata/mlc/shard_plan_32MiB.json");
        let cases: std::collections::BTreeMap<String, Case> = serde_json::from_str(json).unwrap();
        assert_eq!(cases.len(), 8);
        for (name, case) in cases {
            let sizes: Vec<usize> = case.input.iter().map(|(_, size)| *size).collect();
            let places = plan_shards(&sizes, SHARD_SIZE);
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
