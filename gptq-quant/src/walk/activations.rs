//! Activations of all windows between two passes: [`Stream`], stored on the device or in host memory.

use std::rc::Rc;

use infer_core::ops::Ops;
use model_format::{Role, Weight};

use super::observe::Activation;

/// Activations between two passes.
pub(super) enum Stored<T> {
    /// On the device.
    Device(T),
    /// In host memory, because the device has no room.
    Host(Vec<f32>),
}

impl<T> Stored<T> {
    /// Moves the activations out.
    pub(super) fn take(&mut self) -> Stored<T> {
        std::mem::replace(self, Stored::Host(Vec::new()))
    }
}

/// The activations of all windows in one of the models, batch by batch.
pub(super) struct Stream<O: Ops> {
    /// The residual stream `[rows, hidden_size]`.
    pub(super) hidden: Vec<Stored<Activation<O::Tensor>>>,
    /// The cached inputs `[rows, cols]` of one matrix, empty between passes that do not use the cache.
    pub(super) inputs: Vec<Stored<Rc<O::Tensor>>>,
}

/// The use of cached inputs in a pass. Starting from them saves running the part of the layer before a matrix twice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum InputCache {
    /// Not used.
    Unused,
    /// Starts from the cached inputs of its first matrix and frees them.
    Take,
    /// Caches the inputs of the matrix where it stops.
    Fill,
}

/// A matrix for the next pass.
#[derive(Clone)]
pub(super) struct LayerMatrix {
    pub(super) role: Role,
    /// The values in the model quantized so far.
    pub(super) weight: Weight,
    /// The values in the float model, if they are in memory already.
    pub(super) float: Option<Vec<f32>>,
}
