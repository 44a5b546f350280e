//! Token windows for calibrating a quantizer and for measuring perplexity.
//!
//! A [`Source`] is a text as the user names it: a file ([`read_documents`]), a data set of the hub ([`DATA_SETS`]), or
//! the model's own output. The caller passes a closure that tokenizes; this crate knows no tokenizer and no model.
//! [`TokenWindows`] cuts the tokens into windows of equal length. [`TextRuns`] checks that calibration windows share no
//! text with the evaluation text. [`perplexity`] documents and implements the evaluation protocol.
//!
//! ```
//! use calib_data::{Choice, TokenWindows};
//!
//! let documents = ["one two three four five six seven"];
//! let encode = |text: &str| Ok::<_, String>(text.split(' ').map(|word| word.len() as u32).collect());
//! let windows = TokenWindows::new(&documents, encode, &[], 3, 2, Choice::Seeded(0))?;
//! assert_eq!((windows.len(), windows.seq_len()), (2, 3));
//! # Ok::<(), calib_data::Error>(())
//! ```

#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods))]

mod data_set;
mod documents;
mod error;
mod overlap;
mod parquet;
pub mod perplexity;
mod source;
mod windows;

pub use data_set::{DATA_SETS, DataSet, Split};
pub use documents::{ChatMessage, Documents, Records, TEXT_LIMIT, read_documents};
pub use error::{Error, Result};
pub use overlap::{OVERLAP_TOKENS, TextRuns};
pub use source::{Place, Source, shares};
pub use windows::{Choice, TokenWindows};
