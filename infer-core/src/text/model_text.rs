//! [`ModelText`]: the text side of an [`Engine`](crate::Engine): tokenizer, template, stop conditions, settings.

use super::{
    chat_template::ChatTemplate,
    stop::{stop_strings, stop_token_ids},
    tokenizer::Tokenizer,
    vocabulary::check_template,
};
use crate::{ChatDefaults, Result};

/// The small files of a model that an engine reads if they exist.
pub(crate) const TEXT_FILES: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
    "mlc-chat-config.json",
];

/// Tokenizer, chat template, stop conditions and recommended settings of a model.
pub(crate) struct ModelText {
    pub tokenizer: Tokenizer,
    pub stop_tokens: Vec<u32>,
    pub stop_strings: Vec<String>,
    pub template: Option<ChatTemplate>,
    pub defaults: ChatDefaults,
}

impl ModelText {
    /// Reads `files` (names and contents). `vocab_size` is the number of rows of the embedding table.
    ///
    /// Errors: a damaged file; a chat template that writes an id beyond the embedding table.
    pub fn new(files: &[(String, Vec<u8>)], location: &str, vocab_size: usize) -> Result<ModelText> {
        let tokenizer = Tokenizer::from_files(files, location)?;
        let template = ChatTemplate::from_files(files)?;
        if let Some(template) = &template {
            check_template(template, vocab_size, &tokenizer)?;
        }
        // The model never chooses an id beyond its table, so such a stop token has no effect.
        let is_in_table = |id: &u32| (*id as usize) < vocab_size;
        let stop_tokens = stop_token_ids(files, &tokenizer).into_iter().filter(is_in_table).collect();
        Ok(ModelText {
            stop_tokens,
            stop_strings: stop_strings(files),
            template,
            defaults: ChatDefaults::from_files(files),
            tokenizer,
        })
    }
}
