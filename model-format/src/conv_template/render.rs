//! Renders messages as a prompt. Segments separate the template's markup from the content of messages.

use super::ConvTemplate;
use crate::{Error, Result};

/// One message of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn<'a> {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: &'a str,
    /// Text of the message.
    pub content: &'a str,
}

/// A part of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Text of the template. Tokenize its special tokens as special tokens.
    Markup(String),
    /// Content of a message, untrusted. Tokenize it as plain text, even if it contains the text of a special token.
    Content(String),
}

impl Segment {
    /// The text of the segment.
    pub fn text(&self) -> &str {
        match self {
            Segment::Markup(text) | Segment::Content(text) => text,
        }
    }
}

const FUNCTION: &str = "{function_string}";

impl ConvTemplate {
    /// Renders a conversation as a prompt that ends with the prefix of the assistant's next answer. The caller adds
    /// `system_prefix_token_ids` before it.
    ///
    /// A system message replaces the template's default. It must be the first message.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedRole`] for an unsupported role, or a system message at another position.
    pub fn render(&self, messages: &[Turn<'_>]) -> Result<Vec<Segment>> {
        let mut prompt = Prompt::default();
        let (system, messages) = match messages {
            [Turn { role: "system", content }, rest @ ..] => (*content, rest),
            _ => (self.system_message.as_str(), messages),
        };
        prompt.wrapped(&self.system_template, "{system_message}", system);
        let has_system = !prompt.segments.is_empty();
        let last_user = messages.iter().rposition(|m| m.role == "user");
        for (i, message) in messages.iter().enumerate() {
            let (role, template, placeholder) = match message.role {
                "user" => (Some(&self.roles.user), &self.role_templates.user, "{user_message}"),
                "assistant" => (Some(&self.roles.assistant), &self.role_templates.assistant, "{assistant_message}"),
                "tool" => (self.roles.tool.as_ref(), &self.role_templates.tool, "{tool_message}"),
                _ => (None, &self.role_templates.user, ""),
            };
            let Some(role) = role else {
                return Err(Error::UnsupportedRole { template: self.name.clone(), role: message.role.into() });
            };
            if i > 0 || !has_system || self.add_role_after_system_message {
                prompt.markup(role);
                prompt.markup(&self.role_content_sep);
            }
            let answered = message.role == "assistant" && last_user.is_some_and(|user| i < user);
            let content = match message.content.rsplit_once("</think>") {
                Some((_, answer)) if answered && self.strip_reasoning_in_history => answer.trim_start_matches('\n'),
                _ => message.content,
            };
            prompt.wrapped(template, placeholder, content);
            prompt.markup(self.separator(message.role));
        }
        prompt.markup(&self.roles.assistant);
        prompt.markup(&self.role_empty_sep);
        Ok(prompt.with_functions(&self.function_string))
    }

    /// The text after a message of `role`.
    fn separator(&self, role: &str) -> &str {
        let own = if role == "assistant" { self.seps.get(1) } else { None };
        own.or(self.seps.first()).map_or("", String::as_str)
    }
}

/// Collects segments, and merges adjacent markup.
#[derive(Default)]
struct Prompt {
    segments: Vec<Segment>,
}

impl Prompt {
    fn markup(&mut self, text: &str) {
        match self.segments.last_mut() {
            _ if text.is_empty() => {}
            Some(Segment::Markup(last)) => last.push_str(text),
            _ => self.segments.push(Segment::Markup(text.into())),
        }
    }

    fn content(&mut self, text: &str) {
        if !text.is_empty() {
            self.segments.push(Segment::Content(text.into()));
        }
    }

    /// Adds `template` with each `placeholder` replaced by `content`.
    fn wrapped(&mut self, template: &str, placeholder: &str, content: &str) {
        for (i, markup) in template.split(placeholder).enumerate() {
            if i > 0 {
                self.content(content);
            }
            self.markup(markup);
        }
    }

    /// Replaces the last placeholder for functions by their descriptions, and removes the other placeholders.
    fn with_functions(mut self, functions: &str) -> Vec<Segment> {
        let mut functions = Some(functions);
        for segment in self.segments.iter_mut().rev() {
            let Segment::Markup(text) = segment else { continue };
            if let Some(at) = text.rfind(FUNCTION) {
                text.replace_range(at..at + FUNCTION.len(), functions.take().unwrap_or(""));
                *text = text.replace(FUNCTION, "");
            }
        }
        self.segments.retain(|segment| !segment.text().is_empty());
        self.segments
    }
}
