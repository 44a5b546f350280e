//! The memory that a model needs on a device, computed before it is loaded.

#[cfg(feature = "native")]
use model_format::quant::group_quant::dot::Interleaved;
use model_format::{
    Checkpoint, DecoderConfig, Dtype, Param, QuantFormat, Role, gptq::GptqConfig, params, params::joined_params,
    quant::group_quant::GroupQuant, rope_scaling::RopeScaling,
};
use webgpu_kernels::{KvDtype, KvPool, PAGE, WeightFormat, gemm::scratch_cols};

use crate::{
    Error, Result,
    device::MatrixStorage,
    memory::{Need, Room},
    model::chunks::{FEWEST_ROWS, PREFILL_CHUNK},
};

/// The shortest context that is chosen automatically if memory is scarce.
const MIN_CONTEXT: usize = 256;

/// Sizes of a model on a device that do not depend on the context.
pub(crate) struct ModelSize {
    /// Bytes of all weights.
    pub weights: u64,
    /// Bytes of the weights that each decoded token reads.
    pub per_token: u64,
    /// Number type of the cache.
    pub kv: KvDtype,
    /// Number of conversations that the cache has room for.
    pub conversations: usize,
}

impl ModelSize {
    /// The sizes of an MLC folder.
    pub fn of_mlc(config: &DecoderConfig, format: &QuantFormat, storage: MatrixStorage, kv: KvDtype) -> ModelSize {
        let stored = Stored::of_mlc(format);
        ModelSize::of(config, &params(config), |param| stored(param).bytes(param, storage), kv)
    }

    /// The format in which a GPU stores each parameter of an MLC folder.
    pub fn stored_mlc(format: &QuantFormat) -> impl Fn(&Param) -> WeightFormat + use<'_> {
        let stored = Stored::of_mlc(format);
        move |param| stored(param).into()
    }

    fn of(config: &DecoderConfig, params: &[Param], bytes: impl Fn(&Param) -> u64, kv: KvDtype) -> ModelSize {
        let is_read = |param: &&Param| param.role != Role::Embedding || config.tie_word_embeddings;
        ModelSize {
            weights: params.iter().map(&bytes).sum(),
            per_token: params.iter().filter(is_read).map(&bytes).sum(),
            kv,
            conversations: 1,
        }
    }

    /// The sizes of a checkpoint. GPTQ matrices with the bits of `format` stay packed; all other parameters become f32.
    pub fn of_checkpoint(
        config: &DecoderConfig,
        checkpoint: &dyn Checkpoint,
        format: &QuantFormat,
        storage: MatrixStorage,
        kv: KvDtype,
    ) -> Result<ModelSize> {
        let stored = Stored::of_checkpoint(checkpoint, format)?;
        Ok(ModelSize::of(config, &joined_params(config), |param| stored(param).bytes(param, storage), kv))
    }

    /// The format in which a GPU stores each parameter of a checkpoint.
    pub fn stored_checkpoint(
        checkpoint: &dyn Checkpoint,
        format: &QuantFormat,
    ) -> Result<impl Fn(&Param) -> WeightFormat + use<>> {
        let stored = Stored::of_checkpoint(checkpoint, format)?;
        Ok(move |param: &Param| stored(param).into())
    }

    /// The same sizes with a cache for so many conversations.
    pub fn with_conversations(self, conversations: Option<usize>) -> ModelSize {
        ModelSize { conversations: conversations.unwrap_or(1).max(1), ..self }
    }

    /// The memory for a model with this context.
    pub fn need(&self, config: &DecoderConfig, context: usize) -> Need {
        let layer = KvPool::bytes(
            config.num_key_value_heads,
            self.conversations.saturating_mul(context.div_ceil(PAGE)),
            config.head_dim,
            self.kv,
        );
        let is_long = matches!(config.rope_scaling, Some(RopeScaling::LongRope { .. }));
        let tables = if config.window_rope_theta.is_some() || is_long { 2 } else { 1 };
        let rope = 4 * (tables * context * config.rotary_dim) as u64;
        let cache = layer.saturating_mul(config.num_hidden_layers as u64).saturating_add(rope);
        Need {
            weights: self.weights,
            weights_per_token: self.per_token,
            cache,
            scratch: scratch(config, context, self.conversations),
            context,
            conversations: self.conversations,
        }
    }

    /// The memory for the longest context that fits into `room`: exactly `wanted` if given, else up to `default`.
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
        // The need grows with the context, so search by bisection.
        let (mut fits, mut fails) = (0, most);
        while fits + 1 < fails {
            let middle = fits + (fails - fits) / 2;
            if self.need(config, middle).total() <= room.bytes { fits = middle } else { fails = middle }
        }
        match wanted {
            None if fits >= MIN_CONTEXT.min(default) => Ok(self.need(config, fits)),
            _ => Err(Error::DoesNotFit { need, room, longest: (fits >= MIN_CONTEXT).then_some(fits) }),
        }
    }
}

/// Number type of a parameter in its file.
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

    /// Bytes of the parameter on a device with this storage. f16 stays f16 only with `Packed` storage, on a GPU.
    fn bytes(self, param: &Param, storage: MatrixStorage) -> u64 {
        match (self, storage) {
            #[cfg(feature = "native")]
            (Stored::Codes(group), MatrixStorage::Interleaved) => {
                Interleaved::bytes(group, param.shape[0], param.shape[1]) as u64
            }
            (_, MatrixStorage::Packed) => param_bytes(param, self.into()),
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

/// Bytes of a parameter on the device. Only matrices are stored in `format`; the rest is f32.
fn param_bytes(param: &Param, format: WeightFormat) -> u64 {
    match param.shape[..] {
        [rows, cols] if param.role.is_matrix() => format.matrix_bytes(rows, cols),
        _ => 4 * param.shape.iter().product::<usize>() as u64,
    }
}

/// Upper estimate of the activations in memory at a time: those around the feed-forward's gate, or around attention.
fn scratch(config: &DecoderConfig, context: usize, conversations: usize) -> u64 {
    let rows = context.min(PREFILL_CHUNK + FEWEST_ROWS);
    let qkv = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim;
    let heads = config.num_attention_heads * config.head_dim;
    let widest = qkv.max(heads).max(2 * config.intermediate_size);
    let product = scratch_cols(widest, config.hidden_size);
    let per_row = 4 * config.hidden_size + qkv + 2 * heads + 3 * config.intermediate_size + product;
    // Pooled buffers are up to a quarter larger than requested: 5 bytes for each 4-byte value. Each conversation has a row of
    // logits, and one is read back.
    5 * (rows * per_row + conversations.saturating_add(1).min(PREFILL_CHUNK) * config.vocab_size) as u64
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

    fn size() -> ModelSize {
        ModelSize::of_mlc(&config(), QuantFormat::by_name("q4f16_1").unwrap(), MatrixStorage::Packed, KvDtype::F16)
    }

    #[test]
    fn weights_and_cache_are_counted_exactly() {
        // 3,212,749,824 parameters, all but 57 norms of 3072 in 18 bytes per 32; norms in f32.
        let norms = 57 * 3072;
        assert_eq!(size().weights, (3_212_749_824 - norms) / 32 * 18 + 4 * norms);
        // 28 layers, keys and values, 8 heads of 128 in f16; the rotary table of 128 in f32.
        // The last page of 32 tokens is not full.
        assert_eq!(size().need(&config(), 1000).cache, 1024 * 28 * 2 * 8 * 128 * 2 + 1000 * 128 * 4);
        // With 8-bit caches, a head has 128 codes and four f32 scales.
        let in_eight_bits = ModelSize { kv: KvDtype::Q8, ..size() };
        assert_eq!(in_eight_bits.need(&config(), 1000).cache, 1024 * 28 * 2 * 8 * (128 + 4 * 4) + 1000 * 128 * 4);
    }

    #[test]
    fn a_cpu_stores_codes_or_f32() {
        let of =
            |storage| ModelSize::of_mlc(&config(), QuantFormat::by_name("q4f16_1").unwrap(), storage, KvDtype::F32);
        assert_eq!(of(MatrixStorage::Dequantized).weights, 3_212_749_824 * 4);
        // Every strip is full, so no padding is added to codes and scales.
        assert_eq!(of(MatrixStorage::Interleaved).weights, size().weights);
    }

    #[test]
    fn the_longest_context_that_fits_is_chosen() {
        let (config, size) = (config(), size());
        let total = Some(16 << 30);
        let room = |gib: f64| Room { bytes: (gib * f64::from(1 << 30)) as u64, total };
        let fit = |wanted, gib: f64| size.fit(&config, wanted, 4096, Some(room(gib)));
        assert_eq!(size.fit(&config, None, 4096, None).unwrap().context, 4096);
        assert_eq!(fit(None, 8.0).unwrap().context, 4096);
        let less = fit(None, 2.1).unwrap();
        assert!((MIN_CONTEXT..4096).contains(&less.context), "{less}");
        assert!(less.total() as f64 <= 2.1 * f64::from(1 << 30));
        // One more page does not fit.
        assert!(size.need(&config, less.context + PAGE).total() as f64 > 2.1 * f64::from(1 << 30));
        let Err(Error::DoesNotFit { longest, .. }) = fit(Some(131_072), 8.0) else { panic!("131072 tokens fit") };
        assert_eq!(fit(longest, 8.0).unwrap().context, longest.unwrap());
        let error = fit(None, 1.0).unwrap_err();
        assert!(matches!(error, Error::DoesNotFit { longest: None, .. }));
        let (message, hint) = (error.to_string(), error.hint().unwrap());
        assert!(message.contains("1.68 GiB") && message.contains("1.00 GiB of the device's 16.00 GiB"), "{message}");
        assert!(hint.contains("CPU"), "{hint}");
    }
}
