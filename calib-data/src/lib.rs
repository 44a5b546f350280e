//! Token windows, to calibrate a quantizer on and to measure a model with.
//!
//! Text comes from a file ([`read_documents`]), becomes tokens through a closure of the caller's (this crate knows no
//! tokenizer and no model), and is cut into full windows ([`TokenWindows`]). [`perplexity`] holds the protocol by which
//! models are compared.
//!
//! ```
//! use calib_data::{Choice, TokenWindows};
//!
//! let documents = ["one two three four five six seven"];
//! let encode = |text: &str| Ok::<_, String>(text.split(' ').map(|word| word.len() as u32).collect());
//! let windows = TokenWindows::new(&documents, encode, 3, 2, Choice::Seeded(0))?;
//! assert_eq!((windows.len(), windows.seq_len()), (2, 3));
//! # Ok::<(), calib_data::Error>(())
//! ```

#![deny(missing_docs)]

mod error;
pub mod perplexity;
mod sources;
mod windows;

pub use error::{Error, Result};
pub use sources::{ChatMessage, read_documents};
pub use windows::{Choice, TokenWindows};
