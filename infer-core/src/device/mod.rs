//! The device of a model: its choice, and the facts about it that are measured once and stored.

pub(crate) mod cache;
pub(crate) mod chain_record;
#[cfg(feature = "native")]
mod choice;
#[cfg(feature = "native")]
pub(crate) mod cpu_options;
pub(crate) mod pipeline_cache;
pub(crate) mod selftest;
mod target;
#[cfg(all(test, feature = "native"))]
pub(crate) mod test_gpu;
pub(crate) mod tuning;

pub use cache::{CacheFolder, DeviceCache};
#[cfg(feature = "native")]
pub use choice::{DeviceChoice, OpenedDevice, PickedDevice};
pub use selftest::{Checked, check_full};
pub use target::Device;
pub(crate) use target::MatrixStorage;
pub use tuning::{Tuned, Tuning};
