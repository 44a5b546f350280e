//! The GPU runtime: the only place that touches `wgpu`.
//!
//! [`Gpu`] opens a device, [`Buffer`] is memory on it, and a [`Recorder`] collects dispatches and submits them in one pass. Only reading a
//! buffer back waits. Start with `recorder.rs`.

#![cfg_attr(
    target_arch = "wasm32",
    expect(
        clippy::arc_with_non_send_sync,
        reason = "a browser's objects belong to one thread, native ones to several"
    )
)]

mod adapter;
mod buffer;
mod device;
mod errors;
mod extra_devices;
mod instance;
mod known;
mod lock;
mod memory;
mod open;
mod pace;
mod pass_timer;
mod pipeline;
mod pipeline_cache;
mod pool;
mod probe;
mod profile;
mod profiling;
mod readback;
mod recorder;
#[cfg(not(target_arch = "wasm32"))]
mod role;
mod staging;
mod timing;
mod trace;
#[cfg(not(target_arch = "wasm32"))]
mod wait;
#[cfg(not(target_arch = "wasm32"))]
mod waiting;

pub use adapter::{AdapterSummary, Caps, DeviceType, OpenOptions, Selection, SubgroupSizes};
pub(crate) use buffer::SLICE_ALIGN;
pub use buffer::{Buffer, Word};
pub use device::Gpu;
pub(crate) use lock::lock;
pub(crate) use open::COOPERATIVE_BYTES;
pub use pass_timer::PassTimer;
pub use pipeline_cache::Spawn;
pub use profile::{Around, Dispatched, Timed};
pub use readback::Readback;
pub use recorder::{Binding, FEWEST_ROWS, Recorder};
pub use trace::{Traced, TracedBinding, TracedUpload};
#[cfg(not(target_arch = "wasm32"))]
pub use wait::{Driver, block_on};

/// The machine's first device, for tests. Without a device the test is skipped with the reason.
#[cfg(all(test, not(target_arch = "wasm32")))]
pub(crate) fn for_test(options: OpenOptions) -> Option<Gpu> {
    match block_on(Gpu::open(&Selection::Auto, options)) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(std::env::var_os("REQUIRE_GPU").is_none(), "no GPU: {error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}
