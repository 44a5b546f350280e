//! [`JinjaTemplate`]: the `chat_template` of a Hugging Face model, rendered as `transformers` renders it.

use std::sync::OnceLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

use super::{python, strftime::strftime};
use crate::{Error, Result};

/// Step limit of a template, so that an endless loop fails instead of hanging. A conversation of a thousand messages uses
/// several hundred thousand steps.
const FUEL: u64 = 50_000_000;

const NAME: &str = "chat_template";

/// A compiled template and its variables, except the messages.
pub struct JinjaTemplate {
    environment: Environment<'static>,
    variables: Map<String, Value>,
}

impl JinjaTemplate {
    /// Compiles `text`. `variables` come from the tokenizer: `bos_token`, `eos_token` ...
    pub fn new(text: &str, variables: Map<String, Value>) -> Result<JinjaTemplate> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        python::add_to(&mut environment);
        environment.add_function("raise_exception", raise_exception);
        let now = OnceLock::new();
        environment.add_function("strftime_now", move |format: &str| strftime(*now.get_or_init(unix_seconds), format));
        environment.add_template_owned(NAME, without_generation_tags(text)).map_err(failed)?;
        Ok(JinjaTemplate { environment, variables })
    }

    /// Fixes the time that `strftime_now` formats.
    pub fn set_time(&mut self, unix_seconds: i64) {
        self.environment.add_function("strftime_now", move |format: &str| strftime(unix_seconds, format));
    }

    /// Sets a variable of the template.
    pub fn set_variable(&mut self, name: &str, value: Value) {
        self.variables.insert(name.to_string(), value);
    }

    /// Renders messages, each an object with `role` and `content`.
    pub fn render(&self, messages: Vec<Value>, add_generation_prompt: bool) -> Result<String> {
        let mut context = Map::new();
        context.insert("messages".into(), Value::Array(messages));
        context.insert("tools".into(), Value::Null);
        context.insert("documents".into(), Value::Null);
        context.insert("add_generation_prompt".into(), Value::Bool(add_generation_prompt));
        for (name, value) in &self.variables {
            context.insert(name.clone(), value.clone());
        }
        let template = self.environment.get_template(NAME).map_err(failed)?;
        template.render(Serde(context)).map_err(failed)
    }
}

fn failed(error: minijinja::Error) -> Error {
    let line = error.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default();
    // A message of the template's own `raise_exception` is shown unchanged.
    let reason = match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(message)) if message.starts_with(RAISED) => {
            message[RAISED.len()..].to_string()
        }
        (kind, Some(detail)) => format!("{kind}: {detail}{line}"),
        (kind, None) => format!("{kind}{line}"),
    };
    Error::ChatTemplate { reason }
}

const RAISED: &str = "raised: ";

fn raise_exception(message: &str) -> std::result::Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

fn unix_seconds() -> i64 {
    let since = web_time::SystemTime::now().duration_since(web_time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Replaces `{% generation %}`, which marks text to train on, by a block that is always rendered.
fn without_generation_tags(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{%") {
        // Search for the end after `{%`, because `{%}` is not a tag.
        let Some(end) = rest[start + 2..].find("%}").map(|end| start + 2 + end + 2) else { break };
        let inside = &rest[start + 2..end - 2];
        let statement = inside.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']);
        let replacement = match statement.trim() {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        match replacement {
            Some(replacement) => {
                let (open, close) = inside.split_at(inside.find(statement).unwrap_or(0));
                out.push_str(&rest[..start]);
                out.push_str(&format!("{{%{open} {replacement} {}%}}", &close[statement.len()..]));
            }
            None => out.push_str(&rest[..end]),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}
