//! The inputs of a run: the float model, and calibration text that the model writes itself.

pub mod self_text;
pub mod source;
