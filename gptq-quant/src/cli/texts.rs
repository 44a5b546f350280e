//! Windows of the texts of `--calib` and `--eval`. The two must not overlap.

use std::path::Path;

use anyhow::{Context, Result};
use calib_data::{
    ChatMessage, Choice, DataSet, Documents, OVERLAP_TOKENS, Place, Records, Source, TEXT_LIMIT, TextRuns,
    TokenWindows, perplexity, read_documents, shares,
};
use gptq_quant::{SelfText, Settings, Store, run::sum_of_windows, write_windows};
use infer_core::{
    ChatTemplate, KvDtype, Message, Tokenizer, block_on,
    chat_template::{Role, Segment},
    ops::{candle::CandleOps, gpu::GpuOps},
};
use model_format::Checkpoint;
use model_hub::HubConfig;
use serde_json::{Value, json};

use super::{args::Args, device::Device, progress::RunProgress};

/// Tokens of an evaluation window.
const EVAL_SEQ_LEN: usize = 2048;

/// Calibration windows.
pub struct Texts {
    /// The windows of all sources.
    pub calibration: TokenWindows,
    /// Name and window count of each source.
    pub sources: Vec<(String, usize)>,
    /// Prefix tokens of each window, as text.
    pub prefix_tokens: Vec<String>,
}

/// Evaluation windows.
#[derive(Clone)]
pub struct Evaluated {
    /// The argument of `--eval`.
    pub name: String,
    /// Its windows.
    pub windows: TokenWindows,
    /// Prefix tokens of each window.
    pub prefix_len: usize,
}

/// Calibration sources; the model's own text is still to be generated.
pub struct Sources<'a> {
    args: &'a Args,
    sources: Vec<Source>,
    /// Windows of each source.
    shares: Vec<usize>,
    seq_len: usize,
    /// Prefix ids of each window.
    prefix: Vec<u32>,
    /// The same tokens as text.
    prefix_tokens: Vec<String>,
    /// The windows read so far, by source.
    parts: Vec<Option<TokenWindows>>,
    /// The evaluation text, with its runs of tokens; calibration text must not contain any of them.
    evaluation: Option<(Evaluated, TextRuns)>,
}

impl<'a> Sources<'a> {
    /// Reads or downloads all texts except the model's own.
    pub fn read(
        args: &'a Args,
        checkpoint: &dyn Checkpoint,
        hub: &HubConfig,
        progress: &mut RunProgress,
    ) -> Result<Sources<'a>> {
        let sources = args.calib.iter().map(|name| Source::parse(name)).collect::<Result<Vec<_>, _>>()?;
        let config = model_format::DecoderConfig::from_hf(checkpoint.config_json())?;
        let context = config.max_position_embeddings;
        let (samples, seq_len) = args.windows(context);
        let weights: Vec<_> = sources.iter().map(|source| source.weight).collect();
        let shares = shares(samples, &weights);

        let reader = Reader::new(args, checkpoint, hub)?;
        let prefix = args.prefix_token.ids(&reader.tokenizer).to_vec();
        let prefix_tokens = prefix.iter().filter_map(|&id| reader.tokenizer.token(id)).collect();
        if seq_len <= prefix.len() {
            return Err(calib_data::Error::NoRoom { seq_len, prefix: prefix.len() }.into());
        }
        let evaluation = match &args.eval {
            Some(name) => {
                let tokens = reader.evaluation(name, progress)?;
                let windows =
                    perplexity::windows(&tokens, &prefix, EVAL_SEQ_LEN.min(context), args.eval_windows as usize)?;
                let windows = windows.with_context(|| format!("`{name}` is too short to measure on"))?;
                let evaluated = Evaluated { name: name.clone(), windows, prefix_len: prefix.len() };
                Some((evaluated, TextRuns::new(tokens, seq_len - prefix.len())))
            }
            None => None,
        };
        let parts = vec![None; sources.len()];
        let mut read = Sources { args, sources, shares, seq_len, prefix, prefix_tokens, parts, evaluation };
        for i in 0..read.sources.len() {
            if read.shares[i] > 0 && !is_own(&read.sources[i]) {
                let windows = reader.windows(&read.sources[i], seq_len, read.shares[i], progress)?;
                read.take(i, windows)?;
            }
        }
        Ok(read)
    }

    /// The evaluation windows, if `--eval` is set.
    pub fn evaluated(&self) -> Option<Evaluated> {
        self.evaluation.as_ref().map(|(evaluated, _)| evaluated.clone())
    }

    /// The texts' part of a run's fingerprint: sources by content, settings of generated text.
    pub fn description(&self) -> Value {
        let parts = self.sources.iter().zip(&self.shares).zip(&self.parts);
        let parts = parts.map(|((source, share), part)| {
            json!({ "source": source.name, "windows": share, "content": part.as_ref().map(sum_of_windows) })
        });
        json!({ "sources": parts.collect::<Vec<_>>(), "seq_len": self.seq_len, "prefix_tokens": self.prefix, "seed": self.args.seed, "temperature": self.args.self_temperature, "random": self.args.self_random })
    }

    /// Generates the model's own text, except windows that `store` already has.
    pub fn complete(
        mut self,
        checkpoint: &dyn Checkpoint,
        settings: &Settings,
        device: &Device,
        store: &mut dyn Store,
        progress: &mut RunProgress,
    ) -> Result<Texts> {
        for i in 0..self.sources.len() {
            if is_own(&self.sources[i]) && self.shares[i] > 0 {
                let Args { seed, self_temperature: temperature, self_random: random, .. } = *self.args;
                let (samples, seq_len) = (self.shares[i], self.seq_len);
                let prefix = &self.prefix;
                let text = SelfText { samples, seq_len, prefix, seed, temperature, random, head: None };
                // On a software GPU, generating is slower than on the CPU backend.
                let windows = match device {
                    Device::Gpu(gpu) if !device.is_software() => {
                        let ops = GpuOps::new(gpu.clone(), KvDtype::F32);
                        block_on(write_windows(ops, checkpoint, text, progress, store))?
                    }
                    _ => {
                        // Record the inputs of the head while generating: computing them again takes a seventh of a run on
                        // the CPU, and little on a GPU.
                        let is_all = self.shares[i] == self.shares.iter().sum::<usize>();
                        let is_wanted = is_all && (settings.quantize_ends || settings.lm_head);
                        let text = SelfText { head: is_wanted.then_some(settings.token_weight), ..text };
                        block_on(write_windows(CandleOps::rounded(), checkpoint, text, progress, store))?
                    }
                };
                progress.clear();
                self.take(i, windows)?;
            }
        }
        let used = self.sources.iter().zip(&self.parts);
        let sources = used.map(|(source, part)| (source.name.clone(), part.as_ref().map_or(0, TokenWindows::len)));
        let sources = sources.collect();
        let parts: Vec<_> = self.parts.into_iter().flatten().collect();
        Ok(Texts { calibration: TokenWindows::joined(&parts), sources, prefix_tokens: self.prefix_tokens })
    }

    fn take(&mut self, i: usize, windows: TokenWindows) -> Result<()> {
        if let Some((evaluation, runs)) = &self.evaluation
            && runs.first_shared(&windows).is_some()
        {
            let (source_name, evaluation) = (self.sources[i].name.clone(), evaluation.name.clone());
            return Err(calib_data::Error::Overlap {
                source_name,
                evaluation,
                run: OVERLAP_TOKENS.min(self.seq_len - self.prefix.len()),
            }
            .into());
        }
        self.parts[i] = Some(windows);
        Ok(())
    }
}

fn is_own(source: &Source) -> bool {
    source.place == Place::SelfGenerated
}

/// Reads texts and encodes them with the model's tokenizer.
struct Reader<'a> {
    args: &'a Args,
    hub: &'a HubConfig,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl<'a> Reader<'a> {
    fn new(args: &'a Args, checkpoint: &dyn Checkpoint, hub: &'a HubConfig) -> Result<Reader<'a>> {
        let files = checkpoint.companion_files()?;
        let tokenizer = Tokenizer::from_files(&files, &checkpoint.location())?;
        Ok(Reader { args, hub, tokenizer, template: ChatTemplate::from_files(&files)? })
    }

    /// `share` windows of a source. Without `--samples`, a shorter source gives all windows that it has.
    fn windows(
        &self,
        source: &Source,
        seq_len: usize,
        share: usize,
        progress: &mut RunProgress,
    ) -> Result<TokenWindows> {
        let documents = self.documents(&source.place, self.args.calib_column.as_deref(), progress)?;
        if documents.is_truncated {
            progress.say(&format!("reading only the first {} MiB of `{}`", TEXT_LIMIT >> 20, source.name));
        }
        let encode = |text: &str| self.tokenizer.encode(text);
        let choice = Choice::Seeded(self.args.seed);
        let prefix = self.args.prefix_token.ids(&self.tokenizer);
        let windows = |samples| TokenWindows::new(&documents.texts, encode, prefix, seq_len, samples, choice);
        let windows = match windows(share) {
            // The default number of windows is an upper limit.
            Err(calib_data::Error::TooShort { available, .. }) if self.args.samples.is_none() && available > 0 => {
                windows(available)
            }
            result => result,
        };
        windows.with_context(|| format!("`{}` cannot be calibrated on", source.name))
    }

    /// The tokens of the evaluation text.
    fn evaluation(&self, name: &str, progress: &mut RunProgress) -> Result<Vec<u32>> {
        let place = match DataSet::for_evaluation(name)? {
            Some(data_set) if !Path::new(name).exists() => Place::Hub(data_set),
            _ => Place::File(name.into()),
        };
        let texts = self.documents(&place, None, progress)?.texts;
        let text = texts.join("\n\n");
        let text = if self.args.eval_wikitext { perplexity::wikitext_text(&text) } else { text };
        Ok(self.tokenizer.encode(&text)?)
    }

    fn documents(&self, place: &Place, column: Option<&str>, progress: &mut RunProgress) -> Result<Documents> {
        let render = |messages: &[ChatMessage]| self.conversation(messages);
        Ok(match place {
            Place::SelfGenerated => unreachable!("the model's own text is not read"),
            Place::File(path) => read_documents(path, Records { column, join: None }, render)?,
            Place::Hub(data_set) => {
                let path = data_set.fetch(self.hub, progress.bars())?;
                let records = Records { column: Some(data_set.column), join: data_set.join };
                read_documents(&path, records, render)?
            }
        })
    }

    /// A conversation, rendered by the model's chat template.
    fn conversation(&self, messages: &[ChatMessage]) -> Result<String> {
        let template = self.template.as_ref().context("the model has no chat template to render `messages`")?;
        let messages: Vec<_> = messages.iter().map(message).collect::<Result<_>>()?;
        let segments = template.render(&self.tokenizer, &messages, false)?;
        Ok(segments.iter().map(Segment::text).collect())
    }
}

/// Converts a message of a calibration file to the chat template's type.
fn message(message: &ChatMessage) -> Result<Message> {
    let roles = [Role::System, Role::User, Role::Assistant, Role::Tool];
    let role = roles.into_iter().find(|role| role.as_str() == message.role);
    let role = role.with_context(|| format!("`{}` is not the role of a message", message.role))?;
    Ok(Message::new(role, &message.content))
}
