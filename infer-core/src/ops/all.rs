//! [`Ops`]: every operation that a model needs.

use super::{forward::Forward, loading::Loading, losses::Losses};

/// Every operation that a model needs to be loaded, run and measured. Implemented for every type that has them.
pub trait Ops: Loading + Forward + Losses {}

impl<O: Loading + Forward + Losses> Ops for O {}
