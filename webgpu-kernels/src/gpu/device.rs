//! [`Gpu`]: an open device. Its buffers and recorders share it.

use std::borrow::Cow;
use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};

#[cfg(not(target_arch = "wasm32"))]
use super::{adapter::OpenOptions, memory};
use super::{
    adapter::{AdapterSummary, Caps},
    errors::Errors,
    lock::lock,
    pace::Pace,
    pipeline_cache::Pipelines,
    staging::Staging,
};
use crate::{
    Error, Variant,
    selftest::Switch,
    tuning::{PRESETS_FLAG, Table},
};

/// Most bytes of the parameters of one submission.
pub(crate) const UNIFORM_BYTES: u64 = 64 << 10;

/// Most bytes of a slice of a matrix: WebGPU's default limit, also on devices that allow more, so that all devices run the same code.
const SLICE_BYTES: u64 = 128 << 20;

/// An open device. Clones share it.
#[derive(Clone)]
pub struct Gpu {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    /// Adapter and options of the device.
    #[cfg(not(target_arch = "wasm32"))]
    pub opened: (wgpu::Adapter, OpenOptions),
    pub summary: AdapterSummary,
    pub limits: wgpu::Limits,
    pub staging: Mutex<Staging>,
    /// Locked while parameters are written and the commands that read them are submitted.
    pub submitting: Mutex<()>,
    /// Number of submissions so far.
    pub submissions: AtomicU64,
    /// Submissions that futures wait for.
    #[cfg(not(target_arch = "wasm32"))]
    pub waiting: Arc<super::waiting::Waiting>,
    pub pipelines: Mutex<Pipelines>,
    /// Key of the driver's pipeline cache, if it has one.
    pub pipeline_key: Option<String>,
    pub pace: Mutex<Pace>,
    /// Ids of freed buffers. Their bind groups must be freed too.
    pub dead: Mutex<Vec<u64>>,
    /// Kernels that are switched off on this device.
    pub switched_off: Mutex<Vec<Switch>>,
    /// Choices of tunable kernels.
    pub tuning: Mutex<Table>,
    /// Bytes in buffers.
    pub in_use: AtomicU64,
    /// Most bytes in buffers.
    pub most_bytes: AtomicU64,
    /// Bytes written since the last submission.
    pub staged: AtomicU64,
    pub next_id: AtomicU64,
    /// Errors that concern all recorders, or that the device does not attribute to a recorder.
    pub errors: Errors,
}

#[cfg(not(target_arch = "wasm32"))]
impl Drop for Shared {
    fn drop(&mut self) {
        self.waiting.close();
    }
}

impl Gpu {
    /// The device and its driver.
    pub fn summary(&self) -> &AdapterSummary {
        &self.shared.summary
    }

    /// Capabilities of the device, without those that [`OpenOptions`] exclude.
    pub fn caps(&self) -> &Caps {
        &self.shared.summary.caps
    }

    /// Free bytes of the device's memory, if its driver reports them.
    pub fn free_memory(&self) -> Option<u64> {
        #[cfg(not(target_arch = "wasm32"))]
        return memory::free(&self.shared.opened.0);
        #[cfg(target_arch = "wasm32")]
        None
    }

    /// Bytes of device memory that this program holds.
    pub fn bytes_in_use(&self) -> u64 {
        self.shared.in_use.load(Ordering::Relaxed)
    }

    /// Most bytes of a slice of a matrix.
    pub(crate) fn slice_bytes(&self) -> u64 {
        self.caps().max_binding.min(self.caps().max_buffer).min(SLICE_BYTES)
    }

    /// Most multiplications and additions of one submission, by the measured speed. It varies with the load: let it decide only where
    /// commands are cut, never which kernel computes a value.
    pub(crate) fn work_at_once(&self) -> u64 {
        lock(&self.shared.pace).work_at_once()
    }

    /// Most multiplications and additions of one operation over a part of a text, by the device's class. The same in every run.
    pub fn work_of_part(&self) -> u64 {
        lock(&self.shared.pace).work_of_part()
    }

    /// Sets both bounds, instead of the measured speed and the class. For tests, and callers that know their device.
    pub fn limit_work(&self, limit: Option<u64>) {
        lock(&self.shared.pace).limit(limit);
    }

    /// Adds a caller's measurement of the device's speed: the time of `work` multiplications and additions.
    pub fn note_speed(&self, work: u64, time: web_time::Duration) {
        lock(&self.shared.pace).measured(work, time);
    }

    /// Switches a kernel or one of its flags off. A substitute is used instead.
    pub fn switch_off(&self, switch: Switch) {
        if switch.flag.as_deref() == Some(PRESETS_FLAG) {
            self.forget_choices();
        }
        lock(&self.shared.switched_off).push(switch);
    }

    /// Choices of tunable kernels.
    pub(crate) fn tuning(&self) -> MutexGuard<'_, Table> {
        lock(&self.shared.tuning)
    }

    /// Kernels and flags that are switched off.
    pub fn switched_off(&self) -> Vec<Switch> {
        lock(&self.shared.switched_off).clone()
    }

    /// True if a kernel is switched off.
    pub fn is_off(&self, kernel: &str) -> bool {
        lock(&self.shared.switched_off).iter().any(|switch| switch.kernel == kernel && switch.flag.is_none())
    }

    /// A kernel's variant without the flags that are switched off.
    pub(crate) fn allowed<'a>(&self, kernel: &str, variant: &'a Variant) -> Cow<'a, Variant> {
        let mut allowed = Cow::Borrowed(variant);
        for switch in lock(&self.shared.switched_off).iter().filter(|switch| switch.kernel == kernel) {
            if let Some(flag) = switch.flag.as_ref().filter(|flag| *flag != PRESETS_FLAG) {
                allowed = Cow::Owned(allowed.without(flag));
            }
        }
        allowed
    }

    /// Bounds the device memory of this program. Allocations beyond it are out of memory.
    pub fn limit_memory(&self, bytes: Option<u64>) {
        self.shared.most_bytes.store(bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Destroys the device. To all its clones it is lost.
    pub fn destroy(&self) {
        self.shared.fail(Error::DeviceLost { reason: "the program destroyed it".into() });
        self.shared.device.destroy();
    }

    /// The first error of the device that no call has returned yet, for example its loss. Reads of a recorder return the errors that it
    /// caused.
    pub fn error(&self) -> Option<Error> {
        self.shared.errors.first()
    }
}

impl Shared {
    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The error for a call of a recorder to return: its own, or the device's. The loss of the device comes first: it explains the others.
    pub fn told_error(&self, of_recorder: &Errors) -> Option<Error> {
        match self.errors.first() {
            Some(lost @ Error::DeviceLost { .. }) => Some(lost),
            _ => of_recorder.told().or_else(|| self.errors.told()),
        }
    }

    /// Keeps an error of the device, unless there is an earlier one.
    pub fn fail(&self, error: Error) {
        self.errors.fail(error);
    }

    /// Forgets a rejected call.
    pub fn forgive(&self) {
        self.errors.forgive();
    }

    /// Starts pending copies and frees the staging memory of finished ones, so that loading a model does not need its memory twice. Does
    /// not wait.
    pub fn start_copies(&self) {
        self.staged.store(0, Ordering::Relaxed);
        self.queue.submit([]);
        // An error means a lost device. Its callback keeps it.
        let _ = self.device.poll(wgpu::PollType::Poll);
    }
}
