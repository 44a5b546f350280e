//! The output folder: a GPTQ checkpoint, written piece by piece.

pub mod checkpoint;
pub(crate) mod folder;
mod tensors;
