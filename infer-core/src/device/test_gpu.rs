//! The GPU of this crate's unit tests.

use webgpu_kernels::{Gpu, gpu::OpenOptions};

/// The machine's first GPU. Without one the test is skipped, and the reason printed; with `REQUIRE_GPU` set it fails.
pub(crate) fn gpu_for_test(options: OpenOptions) -> Option<Gpu> {
    match crate::block_on(Gpu::open(&Default::default(), options)) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(std::env::var_os("REQUIRE_GPU").is_none(), "no GPU: {error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}
