//! The model: the forward pass, once, over [`crate::ops::Ops`], and where its weights come from.

pub mod decoder;
pub mod session;
pub mod weights;

pub use decoder::{Decoder, Layer, Parts, Sequence};
pub use session::Session;
pub use weights::{load_checkpoint, load_mlc, load_random};
