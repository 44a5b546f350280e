//! Calibration text that the model writes itself, for runs without other text.
//!
//! Every window begins with the tokenizer's prefix tokens (BOS), if any. Half of the windows continue the chat template up to the
//! user's first word; the model writes both sides of the conversation. The other half continue a random token of the vocabulary,
//! in any language, as prose or code. Tokens are sampled from the whole distribution at a temperature of 1 or slightly above,
//! because variety matters more than quality. A share of the windows is random tokens instead, which give inputs that the
//! model's own text never produces.

use calib_data::TokenWindows;
use infer_core::{
    ChatTemplate, Decoder, KvCache, KvPool, Message, SamplingParams, Tokenizer, check_ids,
    model::{Sequence, load_checkpoint},
    ops::Ops,
    sampler::Sampler,
};
use model_format::{Checkpoint, DecoderConfig};
use rayon::prelude::*;

use crate::{
    error::{Error, Result},
    progress::Progress,
    solve::{head_inputs::HeadInputs, hessian::TokenWeight},
    store::Store,
};

/// Windows written at the same time. More slow down each step by more than they save.
const BATCH: usize = 64;

/// Most bytes of keys and values of a batch.
const CACHE_MEMORY: usize = 768 << 20;

/// Most rows of a step with more than one window.
const ROWS: usize = 2048;

/// The text to write.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SelfText<'a> {
    /// Number of windows.
    pub samples: usize,
    /// Tokens per window.
    pub seq_len: usize,
    /// The first tokens of each window: [`Tokenizer::prefix`], or empty.
    pub prefix: &'a [u32],
    /// The same seed gives the same text.
    pub seed: u64,
    /// Sampling temperature: 1 for the model's own distribution, less to favor likely tokens.
    pub temperature: f32,
    /// The share of windows with random tokens.
    pub random: f64,
    /// Token weights for summing the head's inputs; `None` to skip that.
    pub head: Option<TokenWeight>,
}

/// Writes calibration text with the model of `checkpoint`. Continues after the windows that `store` has.
pub async fn write_windows<O: Ops>(
    mut ops: O,
    checkpoint: &dyn Checkpoint,
    text: SelfText<'_>,
    progress: &mut dyn Progress,
    store: &mut dyn Store,
) -> Result<TokenWindows> {
    assert!(text.seq_len > text.prefix.len(), "write_windows: windows of {} tokens", text.seq_len);
    let mut windows = store.text()?;
    windows.truncate(text.samples);
    if windows.len() == text.samples {
        return Ok(TokenWindows::from_windows(&windows));
    }
    let config = DecoderConfig::from_hf(checkpoint.config_json())?;
    let beginnings = beginnings(checkpoint, &config, text)?;
    beginnings.iter().try_for_each(|tokens| check_ids(tokens, config.vocab_size))?;
    let parts = load_checkpoint(&mut ops, &config, checkpoint, None, &mut ())?;
    let decoder = Decoder::new(&mut ops, &config, parts, text.seq_len)?;

    let kv_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size_of::<f32>();
    let batch = (CACHE_MEMORY / (kv_bytes * text.seq_len)).clamp(1, BATCH);
    // The store receives whole batches, so a resumed run has the same batches as an uninterrupted one.
    for beginnings in beginnings[windows.len()..].chunks(batch) {
        let (mut pool, caches) = KvPool::with_caches(&mut ops, &config, beginnings.len(), text.seq_len)?;
        let mut writers = Vec::with_capacity(beginnings.len());
        for (tokens, cache) in beginnings.iter().zip(caches) {
            let params = SamplingParams {
                seed: Some(seed(text.seed, windows.len() + writers.len())),
                temperature: text.temperature,
                ..Default::default()
            };
            writers.push(Writer {
                tokens: tokens.clone(),
                head_inputs: Vec::new(),
                cache,
                sampler: Sampler::new(&params, &[])?,
            });
        }
        while writers.iter().any(|writer| writer.tokens.len() < text.seq_len) {
            step(&mut ops, &decoder, &mut pool, &mut writers, text).await?;
            let written: usize = writers.iter().map(|writer| writer.tokens.len()).sum();
            progress.wrote(windows.len() * text.seq_len + written, text.samples * text.seq_len);
            if progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
        }
        let (written, inputs): (Vec<_>, Vec<_>) =
            writers.into_iter().map(|writer| (writer.tokens, writer.head_inputs)).unzip();
        let head = text.head.map(|weight| HeadInputs::of(&inputs, config.hidden_size, weight));
        store.add_text(&written, head.as_ref())?;
        windows.extend(written);
    }
    Ok(TokenWindows::from_windows(&windows))
}

/// One window being written.
struct Writer {
    tokens: Vec<u32>,
    /// The head's inputs `[tokens, hidden_size]` so far, if they are summed.
    head_inputs: Vec<f32>,
    cache: KvCache,
    sampler: Sampler,
}

/// Writes one more token for each incomplete window.
async fn step<O: Ops>(
    ops: &mut O,
    decoder: &Decoder<O>,
    pool: &mut KvPool<O>,
    writers: &mut [Writer],
    text: SelfText<'_>,
) -> Result<()> {
    let mut rows = 0;
    let mut open = Vec::with_capacity(writers.len());
    for writer in writers.iter_mut().filter(|writer| writer.tokens.len() < text.seq_len) {
        let new = writer.tokens.len() - writer.cache.len();
        // A long beginning waits for a step with enough rows.
        if rows == 0 || rows + new <= ROWS {
            rows += new;
            open.push(writer);
        }
    }
    let mut batch: Vec<_> = open
        .iter_mut()
        .map(|writer| Sequence { tokens: &writer.tokens[writer.cache.len()..], cache: &mut writer.cache })
        .collect();
    let hidden = decoder.hidden(ops, pool, &mut batch);
    let rows: Vec<usize> = batch.iter().map(|sequence| sequence.tokens.len()).collect();
    let last: Vec<usize> = rows.iter().scan(0, |end, rows| Some((*end += rows, *end - 1).1)).collect();
    let logits = if rows.iter().all(|&rows| rows == 1) {
        decoder.head(ops, &hidden)
    } else {
        let last = ops.select_rows(&hidden, &last);
        decoder.head(ops, &last)
    };
    if text.head.is_some() {
        let hidden_size = decoder.config().hidden_size;
        let hidden = ops.read(&hidden).await?;
        let mut left = &hidden[..];
        for (writer, rows) in open.iter_mut().zip(rows) {
            let inputs;
            (inputs, left) = left.split_at(rows * hidden_size);
            writer.head_inputs.extend_from_slice(inputs);
        }
    }
    let mut logits = ops.read(&logits).await?;
    let mut choices: Vec<_> = open.into_iter().map(|writer| (&mut writer.tokens, &mut writer.sampler)).collect();
    choices.par_iter_mut().zip(logits.par_chunks_exact_mut(decoder.config().vocab_size)).for_each(
        |((tokens, sampler), logits)| {
            let token = sampler.sample(logits, &[]);
            tokens.push(token);
        },
    );
    Ok(())
}

/// The beginning of each window: prefix tokens, then in turn a conversation or a single token.
fn beginnings(checkpoint: &dyn Checkpoint, config: &DecoderConfig, text: SelfText<'_>) -> Result<Vec<Vec<u32>>> {
    let files = checkpoint.companion_files()?;
    let tokenizer = Tokenizer::from_files(&files, &checkpoint.location())?;
    let conversation = match ChatTemplate::from_files(&files)? {
        Some(template) => before_the_user(&template, &tokenizer),
        None => None,
    };
    let is_text = |id: &u32| (*id as usize) < tokenizer.vocab_size() && !tokenizer.is_control(*id);
    let words: Vec<u32> = (0..config.vocab_size as u32).filter(is_text).collect();
    if words.is_empty() {
        return Err(Error::MissingFile { location: checkpoint.location(), file: "text token" });
    }
    let behind_prefix = |tokens: &[u32]| [text.prefix, tokens].concat();
    // Most templates include BOS.
    let conversation = conversation.map(|tokens| match tokens.starts_with(text.prefix) {
        true => tokens,
        false => behind_prefix(&tokens),
    });
    let random_before = |i: usize| (i as f64 * text.random) as usize;
    let word = |n: u64| words[(n % words.len() as u64) as usize];
    let beginnings = (0..text.samples).map(|i| match &conversation {
        // The model writes the last token, so that these windows run like the others.
        _ if random_before(i + 1) > random_before(i) => {
            let own = seed(text.seed, i);
            let own_words = (1..text.seq_len.saturating_sub(text.prefix.len()).max(2)).map(|t| word(seed(own, t)));
            behind_prefix(&own_words.collect::<Vec<_>>())
        }
        Some(conversation) if i % 2 == 0 && conversation.len() < text.seq_len => conversation.clone(),
        _ => behind_prefix(&[word(seed(text.seed, i))]),
    });
    Ok(beginnings.collect())
}

/// The tokens of a conversation before the user's first word; `None` if the template rejects a conversation of one user message.
fn before_the_user(template: &ChatTemplate, tokenizer: &Tokenizer) -> Option<Vec<u32>> {
    let encode = |word: &str| template.encode(tokenizer, &[Message::user(word)], false).ok();
    let (one, other) = (encode("Hello")?, encode("12")?);
    let common = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    (common > 0).then(|| one[..common].to_vec())
}

/// A seed for window `i` by SplitMix64, so that neighboring windows are independent.
fn seed(seed: u64, i: usize) -> u64 {
    let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
