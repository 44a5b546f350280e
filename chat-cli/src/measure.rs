//! `chat-cli perplexity` and `chat-cli logits`: losses and logits of a text, to compare engines and models.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    process::ExitCode,
    time::Instant,
};

use calib_data::perplexity;
use chat_cli::{Weights, weights::tokenizer};
use command_line::Bars;
use infer_core::{PrefixToken, block_on, check_tokens};
use model_format::{Dtype, checkpoint::SafetensorsWriter};

use crate::{
    arguments::{LogitsArguments, PerplexityArguments},
    load,
};

/// A file with other content than required. The hint says the required content.
#[derive(Debug, thiserror::Error)]
#[error("`{file}` {what}")]
pub struct BadFile {
    file: String,
    what: String,
    hint: &'static str,
}

impl BadFile {
    pub fn hint(&self) -> String {
        self.hint.into()
    }
}

const IDS_HINT: &str = "write a JSON array of token ids, such as [1, 2, 3]";
const TEXT_HINT: &str = "use a text file in UTF-8 with at least two tokens (one, if the tokenizer adds a prefix token)";

/// Runs `chat-cli perplexity`.
pub fn perplexity(arguments: &PerplexityArguments) -> anyhow::Result<ExitCode> {
    let text = match &arguments.text {
        Some(path) => {
            let text = read_text(path, TEXT_HINT)?;
            if arguments.plain { text } else { perplexity::wikitext_text(&text) }
        }
        None => perplexity::SHORT_TEXT.into(),
    };
    let setup = load::setup(&arguments.model.device, &arguments.model.kernels)?;
    let mut bars = Bars::quiet_if(arguments.model.quiet);
    let model = load::open(&arguments.model.model, &mut bars)?;
    let tokenizer = block_on(tokenizer(&model))?;
    let tokens = tokenizer.encode(&text)?;
    let prefix = arguments.prefix_token.ids(&tokenizer);
    let most = arguments.max_windows.unwrap_or(usize::MAX);
    let Some(windows) = perplexity::windows(&tokens, prefix, arguments.window, most)? else {
        let file = arguments.text.as_deref().map_or_else(String::new, |path| path.display().to_string());
        let what = format!("has too few tokens: {}", tokens.len());
        return Err(BadFile { file, what, hint: TEXT_HINT }.into());
    };
    let (window, count) = (windows.seq_len(), windows.len());

    let types = load::number_types(arguments.cache, arguments.model.cpu_weights);
    let (mut loaded, device) = load::load_model(&Weights::Files(model), &setup, types, window, &mut bars)?;
    check_tokens(&tokens, loaded.config().vocab_size, &tokenizer)?;
    loaded.time_submissions();
    let start = Instant::now();
    let mut losses = Vec::with_capacity(count);
    for window in windows.iter() {
        let of_tokens = block_on(loaded.token_losses(window))?;
        let of_tokens = &of_tokens[perplexity::first_loss(prefix.len())..];
        losses.push(of_tokens.iter().map(|&loss| f64::from(loss)).sum::<f64>() / of_tokens.len() as f64);
        bars.count("windows", losses.len() as u64, count as u64);
    }
    bars.clear();
    warn(&bars, loaded.take_notice());
    let (seconds, value) = (start.elapsed().as_secs_f64(), perplexity::perplexity(&losses));
    let submissions = block_on(loaded.submission_seconds())?;
    let mut out = io::stdout();
    let prefix_tokens = prefix.iter().filter_map(|&id| tokenizer.token(id)).collect::<Vec<_>>();
    if arguments.json {
        let report = serde_json::json!({
            "model": arguments.model.model,
            "device": device,
            "perplexity": value,
            "window": window,
            "windows": count,
            "prefix_tokens": prefix_tokens,
            "text_tokens": tokens.len(),
            "window_losses": losses,
            "seconds": seconds,
            "submissions": submission_report(submissions),
        });
        writeln!(out, "{report}")?;
    } else {
        let beginning = perplexity::describe_prefix(&prefix_tokens);
        writeln!(
            out,
            "perplexity {value:.4} over {count} windows of {window} tokens, {beginning}, on {device} in {seconds:.1} s"
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a notice of the engine, if any.
fn warn(bars: &Bars, notice: Option<String>) {
    if let Some(notice) = notice {
        bars.say(&format!("warning: {notice}"));
    }
}

/// GPU time of submissions; null if it was not measured.
fn submission_report(mut seconds: Vec<f64>) -> serde_json::Value {
    seconds.sort_by(f64::total_cmp);
    let Some(longest) = seconds.last() else { return serde_json::Value::Null };
    let ms = |seconds: f64| (seconds * 1e4).round() / 10.0;
    serde_json::json!({
        "count": seconds.len(),
        "median_ms": ms(seconds[seconds.len() / 2]),
        "longest_ms": ms(*longest),
        "over_500_ms": seconds.iter().filter(|&&seconds| seconds > 0.5).count(),
    })
}

/// Runs `chat-cli logits`.
pub fn logits(arguments: &LogitsArguments) -> anyhow::Result<ExitCode> {
    let ids = arguments.ids.as_deref().map(read_ids).transpose()?;
    let text = arguments.text.as_deref().map(|path| read_text(path, TEXT_HINT)).transpose()?;
    let setup = load::setup(&arguments.model.device, &arguments.model.kernels)?;
    let mut bars = Bars::quiet_if(arguments.model.quiet);
    let model = load::open(&arguments.model.model, &mut bars)?;
    let ids = match (ids, text) {
        (Some(ids), _) => ids,
        (None, text) => {
            let (text, tokenizer) = (text.expect("ids or a text"), block_on(tokenizer(&model))?);
            let ids = match arguments.prefix_token {
                PrefixToken::Auto => tokenizer.encode_with_prefix(&text)?,
                PrefixToken::None => tokenizer.encode(&text)?,
            };
            if ids.is_empty() {
                let file = arguments.text.as_deref().map_or_else(String::new, |path| path.display().to_string());
                return Err(BadFile { file, what: "holds no token".into(), hint: TEXT_HINT }.into());
            }
            ids
        }
    };
    let types = load::number_types(Some(arguments.cache), arguments.model.cpu_weights);
    let (mut loaded, device) = load::load_model(&Weights::Files(model), &setup, types, ids.len(), &mut bars)?;
    let vocab_size = loaded.config().vocab_size;
    loaded.check_text(&ids)?;
    let tensors = [
        ("ids".to_string(), Dtype::U32, vec![ids.len()]),
        ("logits".to_string(), Dtype::F32, vec![ids.len(), vocab_size]),
    ];
    let mut file = SafetensorsWriter::create(&arguments.output, &tensors)?;
    file.append("ids", bytemuck::cast_slice(&ids))?;
    let mut rows = 0;
    block_on(loaded.text_logits(&ids, |logits| {
        file.append("logits", bytemuck::cast_slice(logits))?;
        rows += logits.len() / vocab_size;
        bars.count("tokens", rows as u64, ids.len() as u64);
        Ok::<(), infer_core::Error>(())
    }))?;
    file.finish()?;
    bars.clear();
    warn(&bars, loaded.take_notice());
    bars.say(&format!("{}: logits [{}, {vocab_size}], on {device}", arguments.output.display(), ids.len()));
    Ok(ExitCode::SUCCESS)
}

fn read_ids(path: &Path) -> anyhow::Result<Vec<u32>> {
    let text = read_text(path, IDS_HINT)?;
    let bad = |what: String| BadFile { file: path.display().to_string(), what, hint: IDS_HINT };
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| bad(format!("is not JSON: {e}")))?;
    let list = value.as_array().ok_or_else(|| bad("is not an array".into()))?;
    if list.is_empty() {
        return Err(bad("holds no token id".into()).into());
    }
    let id = |(position, value): (usize, &serde_json::Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| bad(format!("holds no token id at position {position}: {value}")).into())
    };
    list.iter().enumerate().map(id).collect()
}

fn read_text(path: &Path, hint: &'static str) -> anyhow::Result<String> {
    let bad = |what: String| BadFile { file: path.display().to_string(), what, hint };
    let bytes = fs::read(path).map_err(|error| bad(format!("cannot be read: {error}")))?;
    String::from_utf8(bytes)
        .map_err(|error| bad(format!("is not UTF-8: byte {}", error.utf8_error().valid_up_to())).into())
}
