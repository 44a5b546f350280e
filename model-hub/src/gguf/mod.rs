//! [`GgufCheckpoint`]: reads a GGUF file as the Hugging Face checkpoint that it was converted from.
//!
//! candle reads the header and the blocks. This module restores the checkpoint's tensor names, row order, configuration
//! and tokenizer. Next file to read: `header.rs`.

mod config;
mod header;
mod metadata;
mod tokenizer;

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use half::{bf16, f16};
use model_format::checkpoint::missing_param;
use model_format::{Checkpoint, DecoderConfig, Dtype, HostTensor, TensorInfo};

use self::header::{Header, Stored};
use self::metadata::Metadata;
use crate::error::io;
use crate::{Error, Result};

/// Module names in GGUF and in checkpoints. In a layer, the prefixes are `blk.N.` and `model.layers.N.`.
const MODULES: &[(&str, &str)] = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Divisors of the rotary frequencies. Not a checkpoint tensor; `config.rs` turns it into `rope_scaling`.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// Bytes of blocks to dequantize at a time. Bounds the memory for f32 values.
const CHUNK: usize = 8 << 20;

/// A GGUF file as a checkpoint, with the tensor names and row order of Hugging Face checkpoints and a rebuilt
/// configuration and tokenizer.
///
/// Quantized tensors are dequantized in f32 and rounded to f16. Unquantized tensors keep their type. Exception: an f32
/// vector whose values are all exact in f16 becomes f16, its type before llama.cpp's converter widened it.
pub struct GgufCheckpoint {
    path: PathBuf,
    tensors: Vec<TensorInfo>,
    /// The stored form of each of `tensors`.
    origins: Vec<Origin>,
    config_json: String,
    companions: Vec<(String, Vec<u8>)>,
}

/// The stored form of a tensor.
struct Origin {
    stored: Stored,
    /// Number of heads whose rows llama.cpp interleaved; `None` if the rows are in order.
    interleaved_heads: Option<usize>,
}

impl GgufCheckpoint {
    /// Opens a file: reads and checks its header, and rebuilds the companion files. Weights are read on demand.
    ///
    /// # Errors
    ///
    /// [`Error::BadGguf`] for a damaged file, [`Error::UnsupportedGguf`] for an unsupported architecture, tensor or
    /// tokenizer, [`Error::Format`] if the file is unreadable or its configuration is invalid.
    pub fn open(path: &Path) -> Result<GgufCheckpoint> {
        let Header { metadata, tensors: stored } = header::read(path)?;
        let metadata = Metadata { file: path.into(), entries: metadata };
        let (_, gguf) = config::architecture(&metadata)?;

        let find = |name: &str| stored.iter().find(|tensor| tensor.name == name);
        let embedding = find("token_embd.weight")
            .filter(|tensor| tensor.shape.len() == 2)
            .ok_or_else(|| metadata.bad("it has no embedding table `token_embd.weight`"))?;
        let vocab_size = embedding.shape[0];
        let rope_divisors = find(ROPE_DIVISORS).map(|tensor| read_rows(path, tensor)).transpose()?;
        let facts = config::Facts {
            vocab_size,
            tied: find("output.weight").is_none(),
            rope_divisors: rope_divisors.as_deref(),
        };
        let config_json = config::config_json(&metadata, &facts)?;
        let decoder = DecoderConfig::from_hf(&config_json)?;

        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut found = Vec::new();
        for stored in stored.into_iter().filter(|tensor| tensor.name != ROPE_DIVISORS) {
            let name = checkpoint_name(&stored.name)
                .ok_or_else(|| metadata.unsupported(format!("it has an unknown tensor `{}`", stored.name)))?;
            let heads = match () {
                () if !gguf.interleaves_qk => None,
                () if name.contains(".q_proj.") => Some(decoder.num_attention_heads),
                () if name.contains(".k_proj.") => Some(decoder.num_key_value_heads),
                () => None,
            };
            let heads = heads.filter(|_| stored.shape.len() <= 2);
            if heads.is_some_and(|heads| stored.shape[0] != heads * decoder.head_dim) {
                return Err(metadata.bad(format!("tensor `{}` has {} rows", stored.name, stored.shape[0])));
            }
            let dtype = output_dtype(path, &stored)?;
            let info = TensorInfo { name, dtype, shape: stored.shape.clone(), file: file.clone() };
            found.push((info, Origin { stored, interleaved_heads: heads }));
        }
        // Sort by name: `tensor` searches by bisection, and transformers writes checkpoints in this order.
        found.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        let (tensors, origins) = found.into_iter().unzip();

        let tokenizer = tokenizer::tokenizer_files(&metadata, vocab_size)?;
        let companions = vec![
            ("config.json".into(), config_json.clone().into_bytes()),
            ("generation_config.json".into(), config::generation_config_json(&metadata, vocab_size)?.into_bytes()),
            ("tokenizer.json".into(), tokenizer.tokenizer.into_bytes()),
            ("tokenizer_config.json".into(), tokenizer.config.into_bytes()),
            ("special_tokens_map.json".into(), tokenizer.special_tokens.into_bytes()),
        ];
        Ok(GgufCheckpoint { path: path.into(), tensors, origins, config_json, companions })
    }
}

impl std::fmt::Debug for GgufCheckpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("GgufCheckpoint").field(&self.path).finish()
    }
}

impl Checkpoint for GgufCheckpoint {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn tensor(&self, name: &str) -> model_format::Result<HostTensor<'_>> {
        let Ok(index) = self.tensors.binary_search_by(|info| info.name.as_str().cmp(name)) else {
            return Err(missing_param(self, name));
        };
        let (info, origin) = (&self.tensors[index], &self.origins[index]);
        let mut bytes = Vec::with_capacity(info.shape.iter().product::<usize>() * info.dtype.size());
        let read = for_each_chunk(&self.path, &origin.stored, |values| push_as(info.dtype, values, &mut bytes));
        read.map_err(|error| match error {
            Error::Format(error) => error,
            other => model_format::Error::Malformed { file: self.location(), reason: other.to_string() },
        })?;
        if let Some(heads) = origin.interleaved_heads {
            bytes = deinterleave_rows(&bytes, info.shape[0], heads);
        }
        Ok(HostTensor { dtype: info.dtype, shape: info.shape.clone(), bytes: Cow::Owned(bytes) })
    }

    fn location(&self) -> String {
        self.path.display().to_string()
    }

    fn config_json(&self) -> &str {
        &self.config_json
    }

    fn companion_files(&self) -> model_format::Result<Vec<(String, Vec<u8>)>> {
        Ok(self.companions.clone())
    }
}

/// The checkpoint's name of a GGUF tensor, for example of `blk.3.attn_q.weight`.
fn checkpoint_name(name: &str) -> Option<String> {
    let (stem, suffix) = name.rsplit_once('.').filter(|(_, suffix)| matches!(*suffix, "weight" | "bias"))?;
    let (layer, module) = match stem.strip_prefix("blk.") {
        Some(rest) => rest.split_once('.').map(|(layer, module)| (Some(layer), module))?,
        None => (None, stem),
    };
    let (_, module) = MODULES.iter().find(|(gguf, _)| *gguf == module)?;
    match layer {
        Some(layer) if layer.bytes().all(|b| b.is_ascii_digit()) => {
            Some(format!("model.layers.{layer}.{module}.{suffix}"))
        }
        Some(_) => None,
        None => Some(format!("{module}.{suffix}")),
    }
}

/// The type in which the checkpoint provides a tensor.
fn output_dtype(path: &Path, stored: &Stored) -> Result<Dtype> {
    Ok(match stored.dtype {
        GgmlDType::BF16 => Dtype::BF16,
        GgmlDType::F32 if stored.shape.len() > 1 => Dtype::F32,
        GgmlDType::F32 => {
            let fits = read_rows(path, stored)?.iter().all(|&value| f16::from_f32(value).to_f32() == value);
            if fits { Dtype::F16 } else { Dtype::F32 }
        }
        _ => Dtype::F16,
    })
}

/// All values of a tensor.
fn read_rows(path: &Path, stored: &Stored) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    for_each_chunk(path, stored, |values| all.extend_from_slice(values))?;
    Ok(all)
}

/// Reads a tensor's rows in chunks and calls `take` with the dequantized values of each chunk.
fn for_each_chunk(path: &Path, stored: &Stored, mut take: impl FnMut(&[f32])) -> Result<()> {
    let bad = |error: candle_core::Error| Error::BadGguf {
        file: path.into(),
        reason: format!("tensor `{}`: {error}", stored.name),
    };
    let mut file = File::open(path).map_err(io("read", path))?;
    file.seek(SeekFrom::Start(stored.offset)).map_err(io("read", path))?;
    let (&cols, outer) = stored.shape.split_last().expect("a tensor has a dimension");
    let rows: usize = outer.iter().product();
    let step = (CHUNK / stored.row_bytes().max(1)).max(1);
    let mut raw = Vec::new();
    for first in (0..rows).step_by(step) {
        let rows = step.min(rows - first);
        raw.resize(rows * stored.row_bytes(), 0);
        file.read_exact(&mut raw).map_err(io("read", path))?;
        let chunk = qtensor_from_ggml(stored.dtype, &raw, vec![rows, cols], &Device::Cpu).map_err(bad)?;
        let values = chunk.dequantize(&Device::Cpu).and_then(|t| t.flatten_all()?.to_vec1::<f32>()).map_err(bad)?;
        take(&values);
    }
    Ok(())
}

/// Appends `values`, rounded to `dtype`, as little-endian bytes.
fn push_as(dtype: Dtype, values: &[f32], bytes: &mut Vec<u8>) {
    match dtype {
        Dtype::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Dtype::F16 => bytes.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes())),
        Dtype::BF16 => bytes.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes())),
        other => unreachable!("output_dtype never returns {other}"),
    }
}

/// Restores the row order of checkpoints, in which RoPE rotates row `j` of a head with row `j + half`. llama.cpp
/// rotates adjacent rows, so its converter interleaves the two halves of each head.
fn deinterleave_rows(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let (row_bytes, head_dim) = (bytes.len() / rows, rows / heads);
    let half = head_dim / 2;
    let mut ordered = Vec::with_capacity(bytes.len());
    for head in 0..heads {
        for j in 0..head_dim {
            let stored_row = head * head_dim + (j % half) * 2 + j / half;
            ordered.extend_from_slice(&bytes[stored_row * row_bytes..][..row_bytes]);
        }
    }
    ordered
}
