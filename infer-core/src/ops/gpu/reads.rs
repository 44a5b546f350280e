//! Reads of [`GpuOps`]. After an expired wait or a lost device, disables chains on the device.

use std::sync::Arc;

use webgpu_kernels::{
    Error as GpuError,
    gemv_chain::{self, Links},
    gpu::{Buffer, Readback, Word},
};

use super::GpuOps;
use crate::{
    Result,
    device::{DeviceCache, chain_record},
};

/// Values on their way from the device to the host.
pub(super) struct Reading<T> {
    readback: Readback<T>,
    /// Number of chains recorded before the read.
    chains: u64,
}

/// The state of the chains of a [`GpuOps`].
#[derive(Default)]
pub(super) struct Chains {
    /// Stores the devices on which chains failed.
    cache: Option<Arc<dyn DeviceCache>>,
    /// [`Links::expired`] of replaced links, until all chains that used them were read.
    old_flags: Vec<Buffer<u32>>,
    /// Number of recorded chains.
    recorded: u64,
    /// Number of recorded chains whose results were read.
    confirmed: u64,
    notice: Option<String>,
}

impl Chains {
    /// Records a dispatch of a chain.
    pub fn recorded(&mut self) {
        self.recorded += 1;
    }

    /// Records that these links are replaced by others.
    pub fn replaced(&mut self, links: &Links) {
        self.old_flags.push(links.expired());
    }

    /// See [`crate::ops::Choose::take_notice`].
    pub fn take_notice(&mut self) -> Option<String> {
        self.notice.take()
    }
}

impl GpuOps {
    /// The same operations, without chains on a device where a chain failed before, by the record in `cache`. Stores further
    /// failures there.
    pub fn with_cache(mut self, cache: Option<Arc<dyn DeviceCache>>) -> GpuOps {
        self.set_cache(cache);
        self
    }

    pub(crate) fn set_cache(&mut self, cache: Option<Arc<dyn DeviceCache>>) {
        chain_record::disable_if_failed(&self.gpu, cache.as_deref());
        self.chains.cache = cache;
    }

    /// The word for a chosen token: beside the chain's flag, so that one copy reads both. The next token overwrites it, after
    /// the embedding of this one.
    pub(super) fn token_word(&mut self) -> Buffer<u32> {
        match &self.links {
            Some(links) => links.token(),
            None => self.recorder.temporary(1),
        }
    }

    /// Submits the recorded work, and starts to read `buffer`.
    pub(super) fn begin_read<T: Word>(&mut self, buffer: &Buffer<T>) -> Result<Reading<T>> {
        let mut flags = self.chains.old_flags.clone();
        flags.extend(self.links.as_ref().map(Links::expired));
        match self.recorder.read_unless(buffer, &flags) {
            Ok(readback) => Ok(Reading { readback, chains: self.chains.recorded }),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Waits for the values.
    ///
    /// Errors: a failure of the device; [`GpuError::WaitExpired`]: then run the same work again, it uses no chains.
    pub(super) async fn finish_read<T: Word + Unpin>(&mut self, reading: Reading<T>) -> Result<Vec<T>> {
        let values = match reading.readback.await {
            Ok(values) => values,
            Err(error) => return Err(self.failed(error)),
        };
        self.chains.confirmed = self.chains.confirmed.max(reading.chains);
        if self.chains.confirmed == self.chains.recorded {
            self.chains.old_flags.clear();
        }
        Ok(values)
    }

    /// Starts to read `buffer`, and waits for the values.
    pub(super) async fn read_now<T: Word + Unpin>(&mut self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        let reading = self.begin_read(buffer)?;
        self.finish_read(reading).await
    }

    /// Converts the error of a read. Disables chains on the device if a chain caused it.
    fn failed(&mut self, error: GpuError) -> crate::Error {
        let reason = match &error {
            GpuError::WaitExpired => "the wait of a workgroup for another one expired",
            GpuError::DeviceLost { .. } if self.chains.recorded > self.chains.confirmed => {
                "the device was lost while a kernel chain ran"
            }
            _ => return error.into(),
        };
        (self.links, self.chain) = (None, None);
        self.chains.old_flags.clear();
        self.chains.confirmed = self.chains.recorded;
        if gemv_chain::switch_off(&self.gpu) {
            self.chains.notice = Some(chain_record::add(&self.gpu, self.chains.cache.as_deref(), reason));
        }
        error.into()
    }
}
