//! [`ChatTemplate`]: a conversation to the prompt that the model was trained on.
//!
//! The engine renders with the model's own Jinja template (`jinja.rs`), or with the conversation template of an MLC
//! folder that has no other. What a user typed is never read as a control token: [`ChatTemplate::render`] returns
//! [`Segment`]s, and [`encode_segments`] recognises control tokens only where the template wrote them.

mod files;
mod jinja;
mod json;
mod python;
mod segments;
mod strftime;
#[cfg(test)]
mod tests;

use model_format::{
    ChatConfig,
    conv_template::{self, ConvTemplate, Turn},
};
use serde_json::{Value, json};

use crate::{Result, Tokenizer, text_files::special_tokens};

pub use segments::{Segment, encode_segments};

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions above the conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool that the model called.
    Tool,
}

impl Role {
    /// The word of chat templates: `system`, `user`, `assistant`, `tool`.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// One contribution to a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who.
    pub role: Role,
    /// What.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into() }
    }

    /// Instructions above the conversation.
    pub fn system(content: impl Into<String>) -> Message {
        Message::new(Role::System, content)
    }

    /// What the person says.
    pub fn user(content: impl Into<String>) -> Message {
        Message::new(Role::User, content)
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message::new(Role::Assistant, content)
    }
}

/// How a model wants conversations written.
pub struct ChatTemplate {
    source: Source,
    /// Whether messages are trusted to hold control tokens.
    reads_control_tokens: bool,
}

enum Source {
    /// With the file that holds it.
    Jinja(&'static str, jinja::JinjaTemplate),
    Mlc(ConvTemplate),
}

impl ChatTemplate {
    /// The template of a model, from its files (names and contents): `chat_template.jinja`, else `chat_template` of
    /// `chat_template.json` or `tokenizer_config.json` (a text, or a list whose `default` is taken), else
    /// `conv_template` of `mlc-chat-config.json`. `None` if there is none: base models often have none.
    pub fn from_files(files: &[(String, Vec<u8>)]) -> Result<Option<ChatTemplate>> {
        let source = match files::jinja_text(files)? {
            Some((file, text)) => Some(Source::Jinja(file, jinja::JinjaTemplate::new(&text, special_tokens(files)?)?)),
            None => files::conv_template(files)?.map(Source::Mlc),
        };
        Ok(source.map(|source| ChatTemplate { source, reads_control_tokens: false }))
    }

    /// Fixes the time that templates can ask for, in seconds since 1970. Without this, the clock is read when a
    /// template first asks, and the answer kept, so that the beginning of a conversation never changes.
    pub fn set_time(&mut self, unix_seconds: i64) {
        if let Source::Jinja(_, template) = &mut self.source {
            template.set_time(unix_seconds);
        }
    }

    /// Whether control tokens in messages are read as such, for who writes them there on purpose. Without this they are
    /// plain text.
    pub fn set_reads_control_tokens(&mut self, reads: bool) {
        self.reads_control_tokens = reads;
    }

    /// Sets a variable that the model's template reads, such as `enable_thinking` of Qwen3.
    pub fn set_variable(&mut self, name: &str, value: Value) {
        if let Source::Jinja(_, template) = &mut self.source {
            template.set_variable(name, value);
        }
    }

    /// The prompt for `messages`, ending with the beginning of the assistant's answer if `add_generation_prompt` (the
    /// conversation templates of MLC always do). `tokenizer` tells what is a control token.
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
                if self.reads_control_tokens {
                    let contents = messages.iter().map(|message| message.content.clone()).collect();
                    return Ok(vec![Segment::Template(render(contents)?)]);
                }
                segments::render(messages, tokenizer, &render)?
            }
            Source::Mlc(template) => render_mlc(template, messages)?,
        };
        if !self.reads_control_tokens {
            return Ok(segments);
        }
        // A control token may begin in one segment and end in the next.
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

    /// The file and the field that hold the template.
    pub(crate) fn place(&self) -> (&'static str, &'static str) {
        match &self.source {
            Source::Jinja(file, _) => (file, "chat_template"),
            Source::Mlc(_) => (ChatConfig::FILE_NAME, "conv_template"),
        }
    }

    /// The ids that an MLC template puts before every conversation.
    pub(crate) fn prefix_ids(&self) -> &[u32] {
        match &self.source {
            Source::Jinja(..) => &[],
            Source::Mlc(template) => template.system_prefix_token_ids.as_deref().unwrap_or_default(),
        }
    }

    /// The token ids of that prompt.
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
