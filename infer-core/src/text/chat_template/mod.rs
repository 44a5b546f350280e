//! [`ChatTemplate`]: renders a conversation as the prompt format that the model was trained on.
//!
//! The engine uses the model's Jinja template (`jinja.rs`), or the conversation template of an MLC folder without one. User
//! input is never parsed as control tokens: [`ChatTemplate::render`] returns [`Segment`]s, and [`encode_segments`] recognizes
//! control tokens only in text of the template.

mod jinja;
mod json;
mod keyword_args;
mod message;
mod python;
mod segments;
mod strftime;
mod template_files;
#[cfg(test)]
mod tests;

use model_format::{
    ChatConfig,
    conv_template::{self, ConvTemplate, Turn},
};
use serde_json::{Value, json};

use super::{files::special_tokens, tokenizer::Tokenizer};
use crate::Result;

pub use message::{Message, Role};
pub use segments::{Segment, encode_segments};

/// The prompt format of a model.
pub struct ChatTemplate {
    source: Source,
    /// True if control tokens in messages are parsed as such.
    parses_control_tokens: bool,
}

enum Source {
    /// The name of the file, and the template.
    Jinja(&'static str, jinja::JinjaTemplate),
    Mlc(ConvTemplate),
}

impl ChatTemplate {
    /// The template among a model's files (names and contents): `chat_template.jinja`, else `chat_template` of
    /// `chat_template.json` or `tokenizer_config.json` (a text, or the `default` of a list), else `conv_template` of
    /// `mlc-chat-config.json`. `None` if the model has none, like many base models.
    pub fn from_files(files: &[(String, Vec<u8>)]) -> Result<Option<ChatTemplate>> {
        let source = match template_files::jinja_text(files)? {
            Some((file, text)) => Some(Source::Jinja(file, jinja::JinjaTemplate::new(&text, special_tokens(files)?)?)),
            None => template_files::conv_template(files)?.map(Source::Mlc),
        };
        Ok(source.map(|source| ChatTemplate { source, parses_control_tokens: false }))
    }

    /// Fixes the time for templates that write a date, in seconds since 1970 (UTC). Without this call, the template reads the
    /// clock once and keeps the time, so that the beginning of a conversation never changes.
    pub fn set_time(&mut self, unix_seconds: i64) {
        if let Source::Jinja(_, template) = &mut self.source {
            template.set_time(unix_seconds);
        }
    }

    /// If `reads` is true, parses control tokens in messages as such. Unsafe for untrusted text: it can then end its turn and
    /// start another. By default they are plain text.
    pub fn set_reads_control_tokens(&mut self, reads: bool) {
        self.parses_control_tokens = reads;
    }

    /// Sets a variable of the model's template, for example `enable_thinking` of Qwen3.
    pub fn set_variable(&mut self, name: &str, value: Value) {
        if let Source::Jinja(_, template) = &mut self.source {
            template.set_variable(name, value);
        }
    }

    /// The prompt for `messages`. With `add_generation_prompt` it ends with the beginning of the assistant's answer. MLC's
    /// conversation templates always do that. `tokenizer` defines the control tokens.
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<Segment>> {
        let segments = match &self.source {
            Source::Jinja(_, template) => {
                let render = |contents: Vec<String>| {
                    let messages = messages.iter().zip(contents);
                    let json = messages.map(|(m, content)| json!({ "role": m.role.as_str(), "content": content }));
                    template.render(json.collect(), add_generation_prompt)
                };
                if self.parses_control_tokens {
                    let contents = messages.iter().map(|message| message.content.clone()).collect();
                    return Ok(vec![Segment::Template(render(contents)?)]);
                }
                segments::render(messages, tokenizer, &render)?
            }
            Source::Mlc(template) => render_mlc(template, messages)?,
        };
        if !self.parses_control_tokens {
            return Ok(segments);
        }
        // A control token may start in one segment and end in the next.
        let mut joined: Vec<Segment> = Vec::new();
        for segment in segments {
            match (joined.last_mut(), segment) {
                (Some(Segment::Template(text)), Segment::Template(more) | Segment::Plain(more)) => text.push_str(&more),
                (_, Segment::Template(text) | Segment::Plain(text)) => joined.push(Segment::Template(text)),
                (_, tokens) => joined.push(tokens),
            }
        }
        Ok(joined)
    }

    /// The file and the field of the template.
    pub(crate) fn place(&self) -> (&'static str, &'static str) {
        match &self.source {
            Source::Jinja(file, _) => (file, "chat_template"),
            Source::Mlc(_) => (ChatConfig::FILE_NAME, "conv_template"),
        }
    }

    /// The ids that an MLC template writes before every conversation.
    pub(crate) fn prefix_ids(&self) -> &[u32] {
        match &self.source {
            Source::Jinja(..) => &[],
            Source::Mlc(template) => template.system_prefix_token_ids.as_deref().unwrap_or_default(),
        }
    }

    /// The token ids of [`ChatTemplate::render`].
    pub fn encode(&self, tokenizer: &Tokenizer, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<u32>> {
        encode_segments(tokenizer, &self.render(tokenizer, messages, add_generation_prompt)?)
    }
}

fn render_mlc(template: &ConvTemplate, messages: &[Message]) -> Result<Vec<Segment>> {
    let turns: Vec<Turn<'_>> = messages.iter().map(|m| Turn { role: m.role.as_str(), content: &m.content }).collect();
    let prefix = template.system_prefix_token_ids.clone().map(Segment::Tokens);
    let text = template.render(&turns)?.into_iter().map(|segment| match segment {
        conv_template::Segment::Markup(text) => Segment::Template(text),
        conv_template::Segment::Content(text) => Segment::Plain(text),
    });
    Ok(prefix.into_iter().chain(text).collect())
}
