//! MLC's conversation templates: [`ConvTemplate`], the 53 of them in `templates.json`, and which one fits a checkpoint.
//!
//! A template is what a model gets whose checkpoint brings no Jinja template of its own, and what every
//! mlc-chat-config.json carries. To add one, add a record to `templates.json`; to have it found for a checkpoint, add a
//! rule to `infer.rs`.

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

/// Names of all templates, in alphabetical order.
pub fn names() -> impl Iterator<Item = &'static str> {
    TEMPLATES.iter().map(|template| template.name.as_str())
}

/// How a conversation becomes a prompt. Fields and their order are those of mlc-chat-config.json's `conv_template`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConvTemplate {
    /// MLC's name.
    #[serde(default)]
    pub name: String,
    /// The system part, with `{system_message}` in it.
    #[serde(default = "system_placeholder")]
    pub system_template: String,
    /// What stands for `{system_message}` when the conversation has no system message.
    #[serde(default)]
    pub system_message: String,
    /// Token ids before everything else: the beginning-of-text token, mostly.
    #[serde(default)]
    pub system_prefix_token_ids: Option<Vec<u32>>,
    /// Whether the first message names its role although a system part stands before it.
    #[serde(default = "yes")]
    pub add_role_after_system_message: bool,
    /// What introduces each role.
    pub roles: Roles,
    /// How each role's content is wrapped.
    #[serde(default)]
    pub role_templates: RoleTemplates,
    /// The conversation, in MLC's own use of the record; empty in files.
    #[serde(default)]
    pub messages: Vec<Value>,
    /// What ends a message: one text for all, or one for the user's and one for the assistant's.
    pub seps: Vec<String>,
    /// Between role and content.
    #[serde(default)]
    pub role_content_sep: String,
    /// After the role of the answer that is to come.
    #[serde(default)]
    pub role_empty_sep: String,
    /// Texts that end an answer.
    #[serde(default)]
    pub stop_str: Vec<String>,
    /// Tokens that end an answer.
    #[serde(default)]
    pub stop_token_ids: Vec<u32>,
    /// Whether earlier answers lose what stands before `</think>`.
    #[serde(default)]
    pub strip_reasoning_in_history: bool,
    /// Descriptions of functions that the model may call.
    #[serde(default)]
    pub function_string: String,
    /// Whether functions are described.
    #[serde(default)]
    pub use_function_calling: bool,
}

/// What introduces each role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roles {
    /// The person.
    pub user: String,
    /// The model.
    pub assistant: String,
    /// The result of a tool, where the model knows such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
}

/// How each role's content is wrapped: texts with `{user_message}` and so on in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoleTemplates {
    /// With `{user_message}`.
    pub user: String,
    /// With `{assistant_message}`.
    pub assistant: String,
    /// With `{tool_message}`.
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
    /// The template of that name.
    pub fn by_name(name: &str) -> Result<&'static ConvTemplate> {
        TEMPLATES
            .iter()
            .find(|template| template.name == name)
            .ok_or_else(|| Error::UnknownConvTemplate { name: name.into(), known: names().collect() })
    }

    /// The template in an mlc-chat-config.json: a record, or in old files a name. `Ok(None)` where there is none.
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
