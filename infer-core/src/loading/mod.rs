//! Loading a model onto a device: memory, kernels, weights.

mod loaded_model;
mod need;
mod options;
mod plan;
mod prepare;

pub use loaded_model::LoadedModel;
pub(crate) use loaded_model::default_context;
pub use options::LoadOptions;
pub use plan::{PlannedWork, planned_work};
