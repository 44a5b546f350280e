//! The text side of a model: tokenizer, chat template, stop tokens, and everything else that its small files say.

pub mod chat_template;
mod files;
mod model_text;
mod prefix;
mod prefix_token;
pub mod stop;
pub mod tokenizer;
mod vocabulary;

pub(crate) use model_text::{ModelText, TEXT_FILES};
pub use prefix_token::PrefixToken;
pub(crate) use vocabulary::check_biases;
pub use vocabulary::{check_ids, check_tokens};
