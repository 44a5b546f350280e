//! Answers several questions in one batch: each step runs the next token of every unfinished answer.
//!
//! ```text
//! cargo run --release -p infer-core --example batch -- MLC_FOLDER "Name a color." "Name a fruit." "Name a city."
//! ```
//!
//! `Engine` runs one conversation at a time. This example uses the level below: operations, decoder and KV caches.

mod common;

use std::{error::Error, path::Path, process::ExitCode};

use infer_core::{
    ChatTemplate, Decoder, Device, Engine, KvCache, Message, Tokenizer, block_on,
    model::{Sequence, load_mlc},
    ops::{Choose, candle::CandleOps, gpu::GpuOps},
    stop::stop_token_ids,
};
use model_format::{ChatConfig, DecoderConfig, DirFiles, ModelFiles, QuantFormat};

const USAGE: &str = "batch MLC_FOLDER QUESTION...";
/// Capacity of each KV cache in tokens.
const CONTEXT: usize = 1024;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let Some(arguments) = common::arguments(2, USAGE) else { return Ok(ExitCode::from(2)) };
    let (folder, questions) = (Path::new(&arguments[0]), &arguments[1..]);
    let answers = block_on(async {
        match common::device().await? {
            Device::Cpu(options) => answers(CandleOps::new(options), folder, questions, 256).await,
            Device::Gpu(gpu, kv) => answers(GpuOps::new(gpu, kv), folder, questions, 256).await,
        }
    })?;
    for (question, answer) in questions.iter().zip(answers) {
        println!("{question}\n{answer}\n");
    }
    Ok(ExitCode::SUCCESS)
}

/// The greedy answers to `questions`, of at most `max_tokens` tokens each.
pub async fn answers<O: Choose>(
    mut ops: O,
    folder: &Path,
    questions: &[String],
    max_tokens: usize,
) -> Result<Vec<String>, Box<dyn Error>> {
    let files = DirFiles::new(folder);
    let chat_config = ChatConfig::read(&files).await?;
    let config = DecoderConfig::from_mlc(&chat_config)?;
    let format = QuantFormat::by_name(&chat_config.quantization)?;
    let texts = Engine::text_files(&files).await?;
    let tokenizer = Tokenizer::from_files(&texts, &files.location())?;
    let template = ChatTemplate::from_files(&texts)?.ok_or("the model has no chat template")?;
    let stop_tokens = stop_token_ids(&texts, &tokenizer);

    let parts = load_mlc(&mut ops, &config, format, &files, &mut ()).await?;
    let decoder = Decoder::new(&mut ops, &config, parts, CONTEXT)?;

    struct Answer<O: Choose> {
        cache: KvCache<O>,
        /// The tokens to run next: the prompt, then the last token of the answer.
        next: Vec<u32>,
        tokens: Vec<u32>,
        is_finished: bool,
    }
    let mut all = Vec::new();
    for question in questions {
        let next = template.encode(&tokenizer, &[Message::user(question.as_str())], true)?;
        let cache = KvCache::new(&mut ops, &config, CONTEXT)?;
        all.push(Answer { cache, next, tokens: Vec::new(), is_finished: false });
    }
    loop {
        let mut running: Vec<&mut Answer<O>> = all.iter_mut().filter(|answer| !answer.is_finished).collect();
        if running.is_empty() {
            break;
        }
        let mut batch: Vec<Sequence<'_, O>> =
            running.iter_mut().map(|answer| Sequence { tokens: &answer.next, cache: &mut answer.cache }).collect();
        let logits = decoder.forward(&mut ops, &mut batch); // [sequences, vocab_size]
        let chosen = ops.choose_rows(&logits, batch.len()).await?;
        for (answer, token) in running.into_iter().zip(chosen) {
            if stop_tokens.contains(&token) {
                answer.is_finished = true;
                continue;
            }
            answer.next = vec![token];
            answer.tokens.push(token);
            answer.is_finished = answer.tokens.len() == max_tokens || answer.cache.len() == CONTEXT;
        }
    }
    Ok(all.iter().map(|answer| tokenizer.decode(&answer.tokens, true)).collect::<Result<_, _>>()?)
}
