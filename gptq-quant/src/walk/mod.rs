//! The walk through the layers: runs the calibration windows, quantizes each matrix with the inputs that it really gets, and
//! continues with the quantized matrix.
//!
//! `quantize_layers.rs` has the order of work. Hidden states of all windows stay on the device as far as memory allows, the
//! rest in host memory. The weights of only one part of a layer are loaded at a time.

mod activations;
mod ends;
mod layer;
mod matrix;
mod memory;
pub mod observe;
mod pass;
mod pending;
pub mod quantize_layers;
mod state;
mod time_left;
pub mod timings;
