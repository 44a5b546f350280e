//! [`Gpu::beside`]: work on further devices of a software adapter, each on a thread of the caller's. Its driver compiles a
//! kernel when it is first run, on the one thread that does a device's work; what one device has compiled, the others find
//! in the driver's cache.

use std::pin::Pin;

use super::device::Gpu;

/// What to do with a device of its own.
pub(crate) type Work = Box<dyn FnOnce(Gpu) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

#[cfg(not(target_arch = "wasm32"))]
impl Gpu {
    /// On how many devices besides this one there can be work.
    pub(crate) fn room_beside(&self) -> usize {
        let threads = self.helpers().filter(|_| self.caps().is_software).map_or(0, |(_, threads)| threads);
        threads.saturating_sub(1)
    }

    /// Does the work on another device, opened like this one, on a thread. Where there is no such thread, or the device does
    /// not open, the work is dropped.
    pub(crate) fn beside(&self, work: Work) {
        let Some((spawn, _)) = self.helpers() else { return };
        let gpu = self.clone();
        #[expect(clippy::disallowed_methods, reason = "this thread belongs to the helper device and may wait")]
        spawn(Box::new(move || {
            if let Ok(another) = super::block_on(gpu.another()) {
                super::block_on(work(another));
            }
        }));
    }
}

/// A page has one thread.
#[cfg(target_arch = "wasm32")]
impl Gpu {
    pub(crate) fn room_beside(&self) -> usize {
        0
    }

    pub(crate) fn beside(&self, _: Work) {}
}
