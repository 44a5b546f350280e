//! [`Gpu::on_extra_device`]: work on additional devices of a software adapter, each on one of the caller's threads. A software driver
//! compiles a kernel at its first run, on the only thread of the device. Other devices find the kernel in the driver's cache.

use std::pin::Pin;

use super::device::Gpu;

/// Work for an additional device.
pub(crate) type Work = Box<dyn FnOnce(Gpu) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

#[cfg(not(target_arch = "wasm32"))]
impl Gpu {
    /// Number of additional devices that may work at a time.
    pub(crate) fn extra_devices(&self) -> usize {
        let threads = self.helpers().filter(|_| self.caps().is_software).map_or(0, |(_, threads)| threads);
        threads.saturating_sub(1)
    }

    /// Opens another device like this one, and works on it on a thread. Without a thread, or if the device does not open, it drops the
    /// work.
    pub(crate) fn on_extra_device(&self, work: Work) {
        let Some((spawn, _)) = self.helpers() else { return };
        let gpu = self.clone();
        #[expect(clippy::disallowed_methods, reason = "this thread belongs to the additional device and may wait")]
        spawn(Box::new(move || {
            if let Ok(another) = super::block_on(gpu.another()) {
                super::block_on(work(another));
            }
        }));
    }
}

/// A page has only one thread.
#[cfg(target_arch = "wasm32")]
impl Gpu {
    pub(crate) fn extra_devices(&self) -> usize {
        0
    }

    pub(crate) fn on_extra_device(&self, _: Work) {}
}
