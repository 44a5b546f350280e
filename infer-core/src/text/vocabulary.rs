//! Checks that the embedding table has a row for each token id, before the ids run.
//!
//! Some tokenizers have more tokens than their model has rows: tokens that were added but never trained. These models load. A
//! prompt with such a token is an error when the answer starts ([`check_tokens`]). A chat template that writes one into every
//! prompt is an error when the model is loaded ([`check_template`]).

use super::{
    chat_template::{ChatTemplate, Message},
    tokenizer::Tokenizer,
};
use crate::{Error, Result};

/// Checks that an embedding table of `rows` rows has a row for each id.
///
/// Errors: [`Error::TokenOutOfRange`].
pub fn check_ids(ids: &[u32], rows: usize) -> Result<()> {
    match ids.iter().position(|&id| id as usize >= rows) {
        Some(position) => Err(Error::TokenOutOfRange { id: ids[position], token: None, position, rows }),
        None => Ok(()),
    }
}

/// [`check_ids`] for ids from `tokenizer`: the error has the token's text.
pub fn check_tokens(ids: &[u32], rows: usize, tokenizer: &Tokenizer) -> Result<()> {
    check_ids(ids, rows).map_err(|error| match error {
        Error::TokenOutOfRange { id, position, .. } => {
            Error::TokenOutOfRange { id, token: tokenizer.token(id), position, rows }
        }
        other => other,
    })
}

/// Checks that the table has a row for every token that `template` writes around an empty message.
///
/// A template that rejects an empty message passes: its prompts are checked when they run.
pub(crate) fn check_template(template: &ChatTemplate, rows: usize, tokenizer: &Tokenizer) -> Result<()> {
    let beyond = |ids: &[u32]| ids.iter().copied().find(|&id| id as usize >= rows);
    let (file, field) = template.place();
    let error = |field, id| Error::TemplateToken { file: file.into(), field, id, token: tokenizer.token(id), rows };
    if let Some(id) = beyond(template.prefix_ids()) {
        return Err(error("conv_template.system_prefix_token_ids", id));
    }
    let ids = template.encode(tokenizer, &[Message::user("")], true).unwrap_or_default();
    beyond(&ids).map_or(Ok(()), |id| Err(error(field, id)))
}

/// Checks that the model computes a logit for each token with a bias.
pub(crate) fn check_biases(biases: &[(u32, f32)], rows: usize) -> Result<()> {
    match biases.iter().find(|(id, _)| *id as usize >= rows) {
        Some(&(id, _)) => Err(Error::BiasOutOfRange { id, rows }),
        None => Ok(()),
    }
}
