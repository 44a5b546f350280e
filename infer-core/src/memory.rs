//! [`Need`]: what a model takes of its device's memory, before a byte of it is loaded.

#[cfg(feature = "native")]
use model_format::quant::group_quant::dot::Interleaved;
use model_format::{
    Checkpoint, DecoderConfig, Dtype, Param, QuantFormat, Role, gptq::GptqConfig, params, params::joined_params,
    quant::group_quant::GroupQuant, rope_scaling::RopeScaling,
};
use webgpu_kernels::{KvCache, KvDtype, WeightFormat, gemm::scratch_cols};

use crate::{
    Error, Result,
    device::Codes,
    model::{decoder::FEWEST_ROWS, session::PREFILL_CHUNK},
};

/// The shortest context that is chosen for want of memory.
const SHORTEST: usize = 256;

/// What a model takes of its device's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Weights.
    pub weights: u64,
    /// Of these, bytes that a decoded token reads: all but the embedding table, unless that is the head too.
    pub weights_per_token: u64,
    /// Keys, values and rotary tables of `context` tokens.
    pub cache: u64,
    /// Activations of as many tokens as are run at a time, about.
    pub scratch: u64,
    /// Tokens there is room for.
    pub context: usize,
}

impl Need {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.cache).saturating_add(self.scratch)
    }
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (total, weights) = (size(self.total()), size(self.weights));
        let (cache, scratch) = (size(self.cache), size(self.scratch));
        write!(f, "{total} (weights {weights}, cache of {} tokens {cache}, scratch {scratch})", self.context)
    }
}

/// The memory that there is for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that it may take.
    pub bytes: u64,
    /// Of so many bytes that the device has, where that is known and nobody set a limit.
    pub total: Option<u64>,
}

impl std::fmt::Display for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", size(self.bytes))?;
        self.total.map_or(Ok(()), |total| write!(f, " of the device's {}", size(total)))
    }
}

/// Bytes, as people say them.
pub(crate) fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1000.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

/// How a device holds a model.
pub(crate) struct Holding {
    pub weights: u64,
    /// Of these, bytes that a decoded token reads.
    pub per_token: u64,
    /// Number type of the cache.
    pub kv: KvDtype,
}

impl Holding {
    /// An MLC folder's parameters.
    pub fn of_mlc(config: &DecoderConfig, format: &QuantFormat, codes: Codes, kv: KvDtype) -> Holding {
        let stored = Stored::of_mlc(format);
        Holding::of(config, &params(config), |param| stored(param).bytes(param, codes), kv)
    }

    /// How a GPU stores an MLC folder's parameters.
    pub fn stored_mlc(format: &QuantFormat) -> impl Fn(&Param) -> WeightFormat + use<'_> {
        let stored = Stored::of_mlc(format);
        move |param| stored(param).into()
    }

    fn of(config: &DecoderConfig, params: &[Param], bytes: impl Fn(&Param) -> u64, kv: KvDtype) -> Holding {
        let is_read = |param: &&Param| param.role != Role::Embedding || config.tie_word_embeddings;
        Holding {
            weights: params.iter().map(&bytes).sum(),
            per_token: params.iter().filter(is_read).map(&bytes).sum(),
            kv,
        }
    }

    /// A checkpoint's parameters, which are widened, but for matrices of GPTQ that fit `format`.
    pub fn of_checkpoint(
        config: &DecoderConfig,
        checkpoint: &dyn Checkpoint,
        format: &QuantFormat,
        codes: Codes,
        kv: KvDtype,
    ) -> Result<Holding> {
        let stored = Stored::of_checkpoint(checkpoint, format)?;
        Ok(Holding::of(config, &joined_params(config), |param| stored(param).bytes(param, codes), kv))
    }

    /// How a GPU stores a checkpoint's parameters.
    pub fn stored_checkpoint(
        checkpoint: &dyn Checkpoint,
        format: &QuantFormat,
    ) -> Result<impl Fn(&Param) -> WeightFormat + use<>> {
        let stored = Stored::of_checkpoint(checkpoint, format)?;
        Ok(move |param: &Param| stored(param).into())
    }

    /// The need of a context.
    pub fn need(&self, config: &DecoderConfig, context: usize) -> Need {
        let layer = KvCache::bytes(config.num_key_value_heads, context, config.head_dim, self.kv);
        let is_long = matches!(config.rope_scaling, Some(RopeScaling::LongRope { .. }));
        let tables = if config.window_rope_theta.is_some() || is_long { 2 } else { 1 };
        let rope = 4 * (tables * context * config.rotary_dim) as u64;
        let cache = layer.saturating_mul(config.num_hidden_layers as u64).saturating_add(rope);
        Need {
            weights: self.weights,
            weights_per_token: self.per_token,
            cache,
            scratch: scratch(config, context),
            context,
        }
    }

    /// A context that fits `room`: the wanted one, or where none is, the longest up to `default`.
    ///
    /// Errors: [`Error::DoesNotFit`].
    pub fn fit(
        &self,
        config: &DecoderConfig,
        wanted: Option<usize>,
        default: usize,
        room: Option<Room>,
    ) -> Result<Need> {
        let most = wanted.unwrap_or(default);
        let need = self.need(config, most);
        let Some(room) = room else { return Ok(need) };
        if need.total() <= room.bytes {
            return Ok(need);
        }
        // The need grows with the context.
        let (mut fits, mut fails) = (0, most);
        while fits + 1 < fails {
            let middle = fits + (fails - fits) / 2;
            if self.need(config, middle).total() <= room.bytes { fits = middle } else { fails = middle }
        }
        match wanted {
            None if fits >= SHORTEST.min(default) => Ok(self.need(config, fits)),
            _ => Err(Error::DoesNotFit { need, room, longest: (fits >= SHORTEST).then_some(fits) }),
        }
    }
}

/// What the numbers of a parameter's file are.
#[derive(Clone, Copy)]
enum Stored {
    Codes(GroupQuant),
    F16,
    F32,
}

impl Stored {
    fn of_mlc(format: &QuantFormat) -> impl Fn(&Param) -> Stored + use<'_> {
        move |param| match format.group() {
            Some(group) if format.quantizes(param) => Stored::Codes(group),
            _ if format.model_dtype() == Dtype::F16 => Stored::F16,
            _ => Stored::F32,
        }
    }

    fn of_checkpoint(checkpoint: &dyn Checkpoint, format: &QuantFormat) -> Result<impl Fn(&Param) -> Stored + use<>> {
        let gptq = GptqConfig::from_config(checkpoint.config_json())?;
        let group = format.group().filter(|group| gptq.is_some_and(|gptq| gptq.bits == group.bits));
        Ok(move |param: &Param| match group {
            Some(group) if param.role.is_layer_matrix() => Stored::Codes(group),
            _ => Stored::F32,
        })
    }

    /// Bytes of the parameter on a device that holds codes so; only a GPU, which keeps them, holds f16.
    fn bytes(self, param: &Param, codes: Codes) -> u64 {
        match (self, codes) {
            #[cfg(feature = "native")]
            (Stored::Codes(group), Codes::Interleaved) => {
                Interleaved::bytes(group, param.shape[0], param.shape[1]) as u64
            }
            (_, Codes::Kept) => param_bytes(param, self.into()),
            #[cfg(feature = "native")]
            _ => param_bytes(param, WeightFormat::F32),
        }
    }
}

impl From<Stored> for WeightFormat {
    fn from(stored: Stored) -> WeightFormat {
        match stored {
            Stored::Codes(group) => group.into(),
            Stored::F16 => WeightFormat::F16,
            Stored::F32 => WeightFormat::F32,
        }
    }
}

/// Bytes of a parameter on the device; only matrices are stored in `format`.
fn param_bytes(param: &Param, format: WeightFormat) -> u64 {
    match param.shape[..] {
        [rows, cols] if param.role.is_matrix() => format.matrix_bytes(rows, cols),
        _ => 4 * param.shape.iter().product::<usize>() as u64,
    }
}

/// Activations that are alive at a time, at most: around the gate of the feed-forward, or around attention.
fn scratch(config: &DecoderConfig, context: usize) -> u64 {
    let rows = context.min(PREFILL_CHUNK + FEWEST_ROWS);
    let qkv = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim;
    let heads = config.num_attention_heads * config.head_dim;
    let widest = qkv.max(heads).max(2 * config.intermediate_size);
    let product = scratch_cols(widest, config.hidden_size);
    let per_row = 4 * config.hidden_size + qkv + 2 * heads + 3 * config.intermediate_size + product;
    // Pooled buffers are up to a quarter larger than what is asked for.
    5 * (rows * per_row + 2 * config.vocab_size) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> DecoderConfig {
        let json = r#"{"model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
            "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": true}"#;
        DecoderConfig::from_hf(json).unwrap()
    }

    fn holding() -> Holding {
        Holding::of_mlc(&config(), QuantFormat::by_name("q4f16_1").unwrap(), Codes::Kept, KvDtype::F16)
    }

    #[test]
    fn weights_and_cache_are_counted_exactly() {
        // 3,212,749,824 parameters, all but 57 norms of 3072 in 18 bytes per 32; norms in f32.
        let norms = 57 * 3072;
        assert_eq!(holding().weights, (3_212_749_824 - norms) / 32 * 18 + 4 * norms);
        // 28 layers, keys and values, 8 heads of 128 in f16; the rotary table of 128 in f32.
        assert_eq!(holding().need(&config(), 1000).cache, 1000 * (28 * 2 * 8 * 128 * 2 + 128 * 4));
        // In eight bits, a head has 128 codes and four scales in f32.
        let in_eight_bits = Holding { kv: KvDtype::Q8, ..holding() };
        assert_eq!(in_eight_bits.need(&config(), 1000).cache, 1000 * (28 * 2 * 8 * (128 + 4 * 4) + 128 * 4));
    }

    #[test]
    fn a_cpu_holds_codes_or_f32() {
        let of = |codes| Holding::of_mlc(&config(), QuantFormat::by_name("q4f16_1").unwrap(), codes, KvDtype::F32);
        assert_eq!(of(Codes::Widened).weights, 3_212_749_824 * 4);
        // Strips are whole: nothing is added to the codes and scales.
        assert_eq!(of(Codes::Interleaved).weights, holding().weights);
    }

    #[test]
    fn a_context_that_fits_is_chosen() {
        let (config, holding) = (config(), holding());
        let total = Some(16 << 30);
        let room = |gib: f64| Room { bytes: (gib * f64::from(1 << 30)) as u64, total };
        let fit = |wanted, gib: f64| holding.fit(&config, wanted, 4096, Some(room(gib)));
        assert_eq!(holding.fit(&config, None, 4096, None).unwrap().context, 4096);
        assert_eq!(fit(None, 8.0).unwrap().context, 4096);
        let less = fit(None, 2.1).unwrap();
        assert!((SHORTEST..4096).contains(&less.context), "{less}");
        assert!(less.total() as f64 <= 2.1 * f64::from(1 << 30));
        // One token more would not fit.
        assert!(holding.need(&config, less.context + 1).total() as f64 > 2.1 * f64::from(1 << 30));
        let Err(Error::DoesNotFit { longest, .. }) = fit(Some(131_072), 8.0) else { panic!("131072 tokens fit") };
        assert_eq!(fit(longest, 8.0).unwrap().context, longest.unwrap());
        let error = fit(None, 1.0).unwrap_err();
        assert!(matches!(error, Error::DoesNotFit { longest: None, .. }));
        let (message, hint) = (error.to_string(), error.hint().unwrap());
        assert!(message.contains("1.68 GiB") && message.contains("1.00 GiB of the device's 16.00 GiB"), "{message}");
        assert!(hint.contains("CPU"), "{hint}");
    }
}
