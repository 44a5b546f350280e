//! Calibration text that the model writes itself, where no other can be had.
//!
//! Every window begins with the tokens that the model's tokenizer puts before a text (BOS), if any. Half of the windows are
//! what the model makes of a conversation: its template up to the place where the user would
//! speak, and from there everything is the model's own, the user's part too. The other half begins with some token of
//! the vocabulary and goes on as it likes, in whatever language, prose or code that leads to. Tokens are drawn from all that the
//! model has, at a temperature of 1 or somewhat above: what matters is how varied its text is, not how good. A share of the windows
//! is no text at all, but tokens at random: inputs that the model's own text never has.

use calib_data::TokenWindows;
use infer_core::{
    ChatTemplate, Decoder, KvCache, Message, SamplingParams, Tokenizer, check_ids,
    model::{Sequence, load_checkpoint},
    ops::Ops,
    sampler::Sampler,
};
use model_format::{Checkpoint, DecoderConfig};
use rayon::prelude::*;

use crate::{Error, HeadInputs, Progress, Result, Store, TokenWeight};

/// Most windows that are written at the same time: more make a step slower than they save steps.
const BATCH: usize = 64;

/// Bytes that the keys and values of these may take.
const CACHE_MEMORY: usize = 768 << 20;

/// Most rows of a step, where it has more than one window.
const ROWS: usize = 2048;

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SelfText<'a> {
    /// Windows.
    pub samples: usize,
    /// Tokens per window.
    pub seq_len: usize,
    /// What each window begins with: [`Tokenizer::prefix`], or nothing.
    pub prefix: &'a [u32],
    /// Two runs with the same seed write the same.
    pub seed: u64,
    /// 1 for the model's own distribution; less for what is likelier.
    pub temperature: f32,
    /// The share of windows that hold tokens of the vocabulary at random instead.
    pub random: f64,
    /// How much each token counts in the products of the head's inputs, where these are wanted.
    pub head: Option<TokenWeight>,
}

/// Lets the model of `checkpoint` write calibration text. What `store` has of it already is not written again.
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
    // A batch is written or not, so that as many are to come as if nothing had been there.
    for beginnings in beginnings[windows.len()..].chunks(batch) {
        let mut writers = Vec::with_capacity(beginnings.len());
        for tokens in beginnings {
            let params = SamplingParams {
                seed: Some(seed(text.seed, windows.len() + writers.len())),
                temperature: text.temperature,
                ..Default::default()
            };
            writers.push(Writer {
                tokens: tokens.clone(),
                head_inputs: Vec::new(),
                cache: KvCache::new(&mut ops, &config, text.seq_len)?,
                sampler: Sampler::new(&params, &[])?,
            });
        }
        while writers.iter().any(|writer| writer.tokens.len() < text.seq_len) {
            step(&mut ops, &decoder, &mut writers, text).await?;
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
struct Writer<O: Ops> {
    tokens: Vec<u32>,
    /// The head's inputs `[tokens, hidden_size]` so far, where they are wanted.
    head_inputs: Vec<f32>,
    cache: KvCache<O>,
    sampler: Sampler,
}

/// One token more for each window that is not full.
async fn step<O: Ops>(ops: &mut O, decoder: &Decoder<O>, writers: &mut [Writer<O>], text: SelfText<'_>) -> Result<()> {
    let mut rows = 0;
    let mut open = Vec::with_capacity(writers.len());
    for writer in writers.iter_mut().filter(|writer| writer.tokens.len() < text.seq_len) {
        let new = writer.tokens.len() - writer.cache.len();
        // A long beginning waits for a step that has room for it.
        if rows == 0 || rows + new <= ROWS {
            rows += new;
            open.push(writer);
        }
    }
    let mut batch: Vec<_> = open
        .iter_mut()
        .map(|writer| Sequence { tokens: &writer.tokens[writer.cache.len()..], cache: &mut writer.cache })
        .collect();
    let hidden = decoder.hidden(ops, &mut batch);
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
    // The caches need not be sent between threads.
    let mut choices: Vec<_> = open.into_iter().map(|writer| (&mut writer.tokens, &mut writer.sampler)).collect();
    choices.par_iter_mut().zip(logits.par_chunks_exact_mut(decoder.config().vocab_size)).for_each(
        |((tokens, sampler), logits)| {
            let token = sampler.sample(logits, &[]);
            tokens.push(token);
        },
    );
    Ok(())
}

/// How each window begins: conversations and single tokens in turn, behind the prefix.
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
        return Err(Error::MissingFile { location: checkpoint.location(), file: "token that is text" });
    }
    let behind_prefix = |tokens: &[u32]| [text.prefix, tokens].concat();
    // Most templates write BOS themselves.
    let conversation = conversation.map(|tokens| match tokens.starts_with(text.prefix) {
        true => tokens,
        false => behind_prefix(&tokens),
    });
    let random_before = |i: usize| (i as f64 * text.random) as usize;
    let word = |n: u64| words[(n % words.len() as u64) as usize];
    let beginnings = (0..text.samples).map(|i| match &conversation {
        // The model adds the last of its tokens, so that it is run like the others.
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

/// The tokens of a conversation before the user's first word; `None` where the template refuses a lone user.
fn before_the_user(template: &ChatTemplate, tokenizer: &Tokenizer) -> Option<Vec<u32>> {
    let encode = |word: &str| template.encode(tokenizer, &[Message::user(word)], false).ok();
    let (one, other) = (encode("Hello")?, encode("12")?);
    let common = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    (common > 0).then(|| one[..common].to_vec())
}

/// A seed for window `i`: SplitMix64, so that neighbours have nothing in common.
fn seed(seed: u64, i: usize) -> u64 {
    let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
