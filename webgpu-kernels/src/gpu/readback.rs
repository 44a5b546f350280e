//! [`Readback`]: a future of values that are copied to the host. It is the only wait of this crate.

use std::{
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::{Arc, Mutex, atomic::Ordering},
    task::{Context, Poll, Waker},
};

use web_time::Instant;

use super::{
    buffer::{Buffer, RawBuffer, Word},
    device::Gpu,
    errors::Errors,
    lock::lock,
    pool::size_class,
};
use crate::{Error, Result};

/// A future of values that are copied to the host. The event loop completes it in a browser; natively [`super::block_on`] or a
/// [`super::Driver`] does.
pub struct Readback<T> {
    gpu: Gpu,
    /// `None` after the values were read.
    staging: Option<wgpu::Buffer>,
    size: u64,
    len: usize,
    /// Number of words after the values that must be zero.
    flags: usize,
    submission: Option<wgpu::SubmissionIndex>,
    /// Number of submissions to the device up to this one.
    count: u64,
    /// Errors of the reading recorder.
    errors: Errors,
    progress: Arc<Mutex<Progress>>,
    element: PhantomData<T>,
}

#[derive(Default)]
struct Progress {
    outcome: Option<Result<(), wgpu::BufferAsyncError>>,
    waker: Option<Waker>,
}

impl<T: Word> Readback<T> {
    pub(crate) fn new(gpu: &Gpu, errors: &Errors, len: usize, flags: usize) -> Result<Readback<T>> {
        let size = size_class(4 * (len + flags) as u64);
        let pooled = lock(&gpu.shared.staging).take(size);
        let staging = match pooled {
            Some(staging) => staging,
            None => gpu.shared.create_buffer(size, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)?,
        };
        Ok(Readback {
            gpu: gpu.clone(),
            staging: Some(staging),
            size,
            len,
            flags,
            submission: None,
            count: 0,
            errors: errors.clone(),
            progress: Arc::default(),
            element: PhantomData,
        })
    }

    pub(crate) fn copy_from(&mut self, encoder: &mut wgpu::CommandEncoder, source: &Buffer<T>, flags: &[Buffer<u32>]) {
        let staging = self.staging.as_ref().expect("not read yet");
        let values = (&*source.raw, source.offset(), 4 * self.len as u64);
        let flags = flags.iter().map(|flag| (&*flag.raw, flag.offset(), 4));
        // Adjacent ranges are one copy: a copy waits for the copy before it.
        let mut copies: Vec<(&RawBuffer, u64, u64)> = Vec::with_capacity(2);
        for (raw, offset, bytes) in std::iter::once(values).chain(flags).filter(|(_, _, bytes)| *bytes > 0) {
            match copies.last_mut() {
                Some((last, start, len)) if last.id == raw.id && *start + *len == offset => *len += bytes,
                _ => copies.push((raw, offset, bytes)),
            }
        }
        let mut to = 0;
        for (raw, offset, bytes) in copies {
            encoder.copy_buffer_to_buffer(&raw.buffer, offset, staging, to, bytes);
            to += bytes;
        }
    }

    /// Requests the mapping, after the submission of the copy.
    pub(crate) fn begin(&mut self, submission: wgpu::SubmissionIndex, count: u64) {
        (self.submission, self.count) = (Some(submission), count);
        let progress = self.progress.clone();
        self.staging.as_ref().expect("not read yet").map_async(wgpu::MapMode::Read, .., move |outcome| {
            let mut progress = lock(&progress);
            progress.outcome = Some(outcome);
            if let Some(waker) = progress.waker.take() {
                waker.wake();
            }
        });
    }
}

impl<T: Word + Unpin> Future for Readback<T> {
    type Output = Result<Vec<T>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Vec<T>>> {
        let this = &mut *self;
        {
            let mut progress = lock(&this.progress);
            match progress.outcome {
                None => {
                    if let Some(error) = this.gpu.shared.told_error(&this.errors) {
                        return Poll::Ready(Err(error));
                    }
                    progress.waker = Some(context.waker().clone());
                    drop(progress);
                    #[cfg(not(target_arch = "wasm32"))]
                    super::wait::expect(&this.gpu.shared, this.submission.clone(), context.waker());
                    return Poll::Pending;
                }
                Some(Err(wgpu::BufferAsyncError)) => {
                    let lost = Error::DeviceLost { reason: "a result could not be read back".into() };
                    return Poll::Ready(Err(this.gpu.shared.told_error(&this.errors).unwrap_or(lost)));
                }
                Some(Ok(())) => {}
            }
        }
        let staging = this.staging.take().expect("a readback is awaited once");
        let (values, flags) = match staging.get_mapped_range(..4 * (this.len + this.flags).max(1) as u64) {
            Ok(view) => {
                let (values, flags) = view.split_at(4 * this.len);
                let flags = bytemuck::pod_collect_to_vec::<u8, u32>(&flags[..4 * this.flags]);
                (bytemuck::pod_collect_to_vec::<u8, T>(values), flags)
            }
            Err(e) => {
                let refused = Error::Refused { reason: e.to_string() };
                return Poll::Ready(Err(this.gpu.shared.told_error(&this.errors).unwrap_or(refused)));
            }
        };
        staging.unmap();
        lock(&this.gpu.shared.staging).give_back(this.size, staging);
        if this.gpu.shared.submissions.load(Ordering::Relaxed) == this.count {
            lock(&this.gpu.shared.pace).finished(Instant::now());
        }
        // Values are invalid after an error.
        let expired = || flags.iter().any(|flag| *flag != 0).then_some(Error::WaitExpired);
        Poll::Ready(this.gpu.shared.told_error(&this.errors).or_else(expired).map_or(Ok(values), Err))
    }
}
