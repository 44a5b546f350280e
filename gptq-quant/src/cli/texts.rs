//! Texts: the windows to calibrate on, from what `--calib` names, and those of `--eval`, which must be others.

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

use super::{Args, Bars, device::Device};

/// Tokens of a window that is measured on.
const SEQ_LEN: usize = 2048;

/// What is calibrated on.
pub struct Texts {
    /// The windows.
    pub calibration: TokenWindows,
    /// Each source by its name, with its windows among these.
    pub sources: Vec<(String, usize)>,
    /// What each window begins with, as the tokenizer writes it.
    pub prefix_tokens: Vec<String>,
}

/// What is measured on.
#[derive(Clone)]
pub struct Evaluated {
    /// The text, as it was named.
    pub name: String,
    /// Windows of it.
    pub windows: TokenWindows,
    /// Tokens at the beginning of each that are no text.
    pub prefix_len: usize,
}

/// What is to be calibrated on, before the model has written its part.
pub struct Sources<'a> {
    args: &'a Args,
    sources: Vec<Source>,
    /// Windows of each.
    shares: Vec<usize>,
    seq_len: usize,
    /// Ids that each window begins with.
    prefix: Vec<u32>,
    /// The same as the tokenizer writes them.
    prefix_tokens: Vec<String>,
    /// Those that were read.
    parts: Vec<Option<TokenWindows>>,
    /// What `--eval` names, and its runs, which calibration text may share nothing with.
    evaluation: Option<(Evaluated, TextRuns)>,
}

impl<'a> Sources<'a> {
    /// Reads or fetches what others have written.
    pub fn read(args: &'a Args, checkpoint: &dyn Checkpoint, hub: &HubConfig, bars: &mut Bars) -> Result<Sources<'a>> {
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
                let tokens = reader.evaluation(name, bars)?;
                let windows = perplexity::windows(&tokens, &prefix, SEQ_LEN.min(context), args.eval_windows as usize)?;
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
                let windows = reader.windows(&read.sources[i], seq_len, read.shares[i], bars)?;
                read.take(i, windows)?;
            }
        }
        Ok(read)
    }

    /// What is to be measured on.
    pub fn evaluated(&self) -> Option<Evaluated> {
        self.evaluation.as_ref().map(|(evaluated, _)| evaluated.clone())
    }

    /// Which text it is, by what it is written from and by what is in it.
    pub fn description(&self) -> Value {
        let parts = self.sources.iter().zip(&self.shares).zip(&self.parts);
        let parts = parts.map(|((source, share), part)| {
            json!({ "source": source.name, "windows": share, "content": part.as_ref().map(sum_of_windows) })
        });
        json!({ "sources": parts.collect::<Vec<_>>(), "seq_len": self.seq_len, "prefix_tokens": self.prefix, "seed": self.args.seed, "temperature": self.args.self_temperature, "random": self.args.self_random })
    }

    /// Lets the model write its part, as far as `store` does not have it.
    pub fn complete(
        mut self,
        checkpoint: &dyn Checkpoint,
        settings: &Settings,
        device: &Device,
        store: &mut dyn Store,
        bars: &mut Bars,
    ) -> Result<Texts> {
        for i in 0..self.sources.len() {
            if is_own(&self.sources[i]) && self.shares[i] > 0 {
                let Args { seed, self_temperature: temperature, self_random: random, .. } = *self.args;
                let (samples, seq_len) = (self.shares[i], self.seq_len);
                let prefix = &self.prefix;
                let text = SelfText { samples, seq_len, prefix, seed, temperature, random, head: None };
                // A GPU that the CPU plays writes more slowly than the CPU itself.
                let windows = match device {
                    Device::Gpu(gpu) if !device.is_software() => {
                        let ops = GpuOps::new(gpu.clone(), KvDtype::F32);
                        block_on(write_windows(ops, checkpoint, text, bars, store))?
                    }
                    _ => {
                        // A GPU soon has what goes into the head; here that is a seventh of the work.
                        let is_all = self.shares[i] == self.shares.iter().sum::<usize>();
                        let is_wanted = is_all && (settings.quantize_ends || settings.lm_head);
                        let text = SelfText { head: is_wanted.then_some(settings.token_weight), ..text };
                        block_on(write_windows(CandleOps::rounded(), checkpoint, text, bars, store))?
                    }
                };
                bars.clear();
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

/// Reads texts as this model does.
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

    /// `share` windows of a source, or as many as it has where nobody asked for a number.
    fn windows(&self, source: &Source, seq_len: usize, share: usize, bars: &mut Bars) -> Result<TokenWindows> {
        let documents = self.documents(&source.place, self.args.calib_column.as_deref(), bars)?;
        if documents.is_truncated {
            bars.line(&format!("of `{}`, the first {} MiB are read", source.name, TEXT_LIMIT >> 20));
        }
        let encode = |text: &str| self.tokenizer.encode(text);
        let choice = Choice::Seeded(self.args.seed);
        let prefix = self.args.prefix_token.ids(&self.tokenizer);
        let windows = |samples| TokenWindows::new(&documents.texts, encode, prefix, seq_len, samples, choice);
        let windows = match windows(share) {
            // A number that nobody asked for is taken as the most.
            Err(calib_data::Error::TooShort { available, .. }) if self.args.samples.is_none() && available > 0 => {
                windows(available)
            }
            result => result,
        };
        windows.with_context(|| format!("`{}` cannot be calibrated on", source.name))
    }

    /// The tokens of the text to measure on.
    fn evaluation(&self, name: &str, bars: &mut Bars) -> Result<Vec<u32>> {
        let place = match DataSet::for_evaluation(name)? {
            Some(data_set) if !Path::new(name).exists() => Place::Hub(data_set),
            _ => Place::File(name.into()),
        };
        let texts = self.documents(&place, None, bars)?.texts;
        let text = texts.join("\n\n");
        let text = if self.args.eval_wikitext { perplexity::wikitext_text(&text) } else { text };
        Ok(self.tokenizer.encode(&text)?)
    }

    fn documents(&self, place: &Place, column: Option<&str>, bars: &mut Bars) -> Result<Documents> {
        let render = |messages: &[ChatMessage]| self.conversation(messages);
        Ok(match place {
            Place::SelfGenerated => unreachable!("the model's own text is not read"),
            Place::File(path) => read_documents(path, Records { column, join: None }, render)?,
            Place::Hub(data_set) => {
                let path = data_set.fetch(self.hub, bars)?;
                let records = Records { column: Some(data_set.column), join: data_set.join };
                read_documents(&path, records, render)?
            }
        })
    }

    /// A conversation as the model's chat template writes it.
    fn conversation(&self, messages: &[ChatMessage]) -> Result<String> {
        let template = self.template.as_ref().context("the model has no chat template to write `messages` with")?;
        let messages: Vec<_> = messages.iter().map(message).collect::<Result<_>>()?;
        let segments = template.render(&self.tokenizer, &messages, false)?;
        Ok(segments.iter().map(Segment::text).collect())
    }
}

/// A message of a calibration file as the chat template takes it.
fn message(message: &ChatMessage) -> Result<Message> {
    let roles = [Role::System, Role::User, Role::Assistant, Role::Tool];
    let role = roles.into_iter().find(|role| role.as_str() == message.role);
    let role = role.with_context(|| format!("`{}` is not the role of a message", message.role))?;
    Ok(Message::new(role, &message.content))
}
