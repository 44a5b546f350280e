//! Values that [`GpuOps`] reads, and what follows where a workgroup stopped waiting or the device was lost: no more chains on it.

use std::sync::Arc;

use webgpu_kernels::{
    Error as GpuError,
    gemv_chain::{self, Links},
    gpu::{Buffer, Readback, Word},
};

use super::GpuOps;
use crate::{Result, chain_record, kept::Kept};

/// Values on their way to the host.
pub(super) struct Reading<T> {
    readback: Readback<T>,
    /// Chains that were recorded before.
    chains: u64,
}

/// What is known of the chains of a [`GpuOps`].
#[derive(Default)]
pub(super) struct Chains {
    /// Where it is kept that a device does not chain.
    kept: Option<Arc<dyn Kept>>,
    /// [`Links::expired`] of links that were too small for what came next, until it was read.
    old_flags: Vec<Buffer<u32>>,
    /// Chains that were recorded, and those whose results were read.
    recorded: u64,
    confirmed: u64,
    notice: Option<String>,
}

impl Chains {
    /// Notes a dispatch.
    pub fn recorded(&mut self) {
        self.recorded += 1;
    }

    /// Notes that other links take the place of these.
    pub fn replaced(&mut self, links: &Links) {
        self.old_flags.push(links.expired());
    }

    /// See [`crate::ops::Choose::take_notice`].
    pub fn take_notice(&mut self) -> Option<String> {
        self.notice.take()
    }
}

impl GpuOps {
    /// The same, with no chain on a device where one failed before, in this process or in another. `kept`: where that is kept.
    pub fn with_kept(mut self, kept: Option<Arc<dyn Kept>>) -> GpuOps {
        self.set_kept(kept);
        self
    }

    pub(crate) fn set_kept(&mut self, kept: Option<Arc<dyn Kept>>) {
        chain_record::take_up(&self.gpu, kept.as_deref());
        self.chains.kept = kept;
    }

    /// The word for a chosen token: beside the chain's flag, so that one copy reads both. The next token overwrites it, after
    /// the embedding of this one.
    pub(super) fn token_word(&mut self) -> Buffer<u32> {
        match &self.links {
            Some(links) => links.token(),
            None => self.recorder.temporary(1),
        }
    }

    /// Submits, and begins to read.
    pub(super) fn begin_read<T: Word>(&mut self, buffer: &Buffer<T>) -> Result<Reading<T>> {
        let mut flags = self.chains.old_flags.clone();
        flags.extend(self.links.as_ref().map(Links::expired));
        match self.recorder.read_unless(buffer, &flags) {
            Ok(readback) => Ok(Reading { readback, chains: self.chains.recorded }),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Waits for the values. Errors: the device's; [`GpuError::WaitExpired`], and then the same work gives the right ones.
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

    /// Both.
    pub(super) async fn read_now<T: Word + Unpin>(&mut self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        let reading = self.begin_read(buffer)?;
        self.finish_read(reading).await
    }

    /// The error of a read. A chain that failed is not tried again on this device.
    fn failed(&mut self, error: GpuError) -> crate::Error {
        let reason = match &error {
            GpuError::WaitExpired => "a workgroup waited for another in vain",
            GpuError::DeviceLost { .. } if self.chains.recorded > self.chains.confirmed => {
                "the device was lost while workgroups waited for one another"
            }
            _ => return error.into(),
        };
        (self.links, self.chain) = (None, None);
        self.chains.old_flags.clear();
        self.chains.confirmed = self.chains.recorded;
        if gemv_chain::switch_off(&self.gpu) {
            self.chains.notice = Some(chain_record::add(&self.gpu, self.chains.kept.as_deref(), reason));
        }
        error.into()
    }
}
