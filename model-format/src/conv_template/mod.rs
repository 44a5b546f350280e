//! MLC's conversation templates ([`ConvTemplate`]). `templates.json` has 53 of them.
//!
//! Every mlc-chat-config.json contains a template. A model without a Jinja template renders its prompts by this one. To
//! add a template, add a record to `templates.json`. To select it automatically for a checkpoint, add a rule to
//! `infer.rs`.

mod infer;
mod render;

pub use infer::{check_fits, infer};
pub use render::{Segment, Turn};

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ChatConfig, Error, Result};

static TEMPLATES: LazyLock<Vec<ConvTemplate>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("templates.json")).expect("templates.json is a list of records")
});

/// Names of all templates, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    TEMPLATES.iter().map(|template| template.name.as_str())
}

/// A conversation template: turns messages into a prompt. Fields and their order are those of `conv_template` in
/// mlc-chat-config.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConvTemplate {
    /// MLC's name.
    #[serde(default)]
    pub name: String,
    /// System part of the prompt, with the placeholder `{system_message}`.
    #[serde(default = "system_placeholder")]
    pub system_template: String,
    /// Default for `{system_message}` if the conversation has no system message.
    #[serde(default)]
    pub system_message: String,
    /// Token ids at the start of the prompt, typically the BOS token.
    #[serde(default)]
    pub system_prefix_token_ids: Option<Vec<u32>>,
    /// True if the first message has its role prefix even after a system part.
    #[serde(default = "yes")]
    pub add_role_after_system_message: bool,
    /// Prefix of each role's messages.
    pub roles: Roles,
    /// Template of each role's content.
    #[serde(default)]
    pub role_templates: RoleTemplates,
    /// Messages of a conversation. MLC uses this field at run time; it is empty in files.
    #[serde(default)]
    pub messages: Vec<Value>,
    /// Text after a message: one for all roles, or one for the user and one for the assistant.
    pub seps: Vec<String>,
    /// Separator between role prefix and content.
    #[serde(default)]
    pub role_content_sep: String,
    /// Text after the role prefix of the answer to generate.
    #[serde(default)]
    pub role_empty_sep: String,
    /// Strings that end an answer.
    #[serde(default)]
    pub stop_str: Vec<String>,
    /// Tokens that end an answer.
    #[serde(default)]
    pub stop_token_ids: Vec<u32>,
    /// True to remove the text up to `</think>` from earlier answers.
    #[serde(default)]
    pub strip_reasoning_in_history: bool,
    /// Descriptions of the functions that the model may call.
    #[serde(default)]
    pub function_string: String,
    /// True if the prompt describes functions.
    #[serde(default)]
    pub use_function_calling: bool,
}

/// Prefix of each role's messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roles {
    /// Prefix of the user's messages.
    pub user: String,
    /// Prefix of the model's messages.
    pub assistant: String,
    /// Prefix of tool results, if the model supports them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
}

/// Template of each role's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoleTemplates {
    /// With the placeholder `{user_message}`.
    pub user: String,
    /// With the placeholder `{assistant_message}`.
    pub assistant: String,
    /// With the placeholder `{tool_message}`.
    pub tool: String,
}

impl Default for RoleTemplates {
    fn default() -> RoleTemplates {
        RoleTemplates {
            user: "{user_message}".into(),
            assistant: "{assistant_message}".into(),
            tool: "{tool_message}".into(),
        }
    }
}

fn system_placeholder() -> String {
    "{system_message}".into()
}

fn yes() -> bool {
    true
}

impl ConvTemplate {
    /// The template with this name.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownConvTemplate`].
    pub fn by_name(name: &str) -> Result<&'static ConvTemplate> {
        TEMPLATES
            .iter()
            .find(|template| template.name == name)
            .ok_or_else(|| Error::UnknownConvTemplate { name: name.into(), known: names().collect() })
    }

    /// The template in an mlc-chat-config.json: a record, or a name in old files. `Ok(None)` if the field is missing.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownConvTemplate`], [`Error::Malformed`].
    pub fn from_chat_config(config: &ChatConfig) -> Result<Option<ConvTemplate>> {
        let template = match config.value.get("conv_template") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(name)) => return ConvTemplate::by_name(name).map(|t| Some(t.clone())),
            Some(record) => ConvTemplate::deserialize(record),
        };
        let malformed = |reason: String| Error::Malformed { file: ChatConfig::FILE_NAME.into(), reason };
        let template = template.map_err(|e| malformed(format!("`conv_template`: {e}")))?;
        if !matches!(template.seps.len(), 1 | 2) {
            return Err(malformed(format!(
                "`conv_template.seps` has {} entries, expected 1 or 2",
                template.seps.len()
            )));
        }
        Ok(Some(template))
    }
}
