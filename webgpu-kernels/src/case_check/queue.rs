//! [`CaseQueue`]: divides cases among several devices of one software adapter, for [`crate::case_check::check_divided`].
//! On such an adapter a small case takes about as long as the compilation of its kernels, and each device compiles one at a time.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Poll, Waker},
};

use crate::{
    Case, Gpu, Result,
    case_check::{Outcome, check},
    gpu::lock,
};

/// Most additional devices.
const MOST_OTHERS: usize = 7;
/// Fewest cases per additional device.
const WORTH_OPENING: usize = 4;

/// Cases that devices take one by one. The last ones come first: they are attention's, which take longest.
pub(crate) struct CaseQueue {
    cases: Vec<Arc<Case>>,
    /// Number of cases that no device has taken.
    left: AtomicUsize,
    progress: Mutex<Progress>,
}

struct Progress {
    outcomes: Vec<Option<Outcome>>,
    /// Additional devices at work.
    others: usize,
    waker: Option<Waker>,
}

impl CaseQueue {
    /// Opens additional devices, at most one per thread, and starts to run cases on them. `None`: the device is not a software device, or
    /// there is no thread.
    pub fn begin(gpu: &Gpu, cases: &[Arc<Case>]) -> Option<Arc<CaseQueue>> {
        let others = gpu.extra_devices().min(cases.len() / WORTH_OPENING).min(MOST_OTHERS);
        if others == 0 {
            return None;
        }
        let progress = Progress { outcomes: vec![None; cases.len()], others, waker: None };
        let left = AtomicUsize::new(cases.len());
        let queue = Arc::new(CaseQueue { cases: cases.to_vec(), left, progress: Mutex::new(progress) });
        for worker in (0..others).map(|_| Worker(Arc::downgrade(&queue))) {
            // If a case fails for another reason than its kernel, the first device runs it again.
            gpu.on_extra_device(Box::new(move |another| Box::pin(async move { drop(worker.run(&another).await) })));
        }
        Some(queue)
    }

    /// Runs cases on the first device too, until all are done.
    pub async fn finish(&self, gpu: &Gpu, done: &mut dyn FnMut(usize)) -> Result<Vec<Outcome>> {
        while let Some(place) = self.take() {
            self.check(gpu, place).await?;
            done(lock(&self.progress).outcomes.iter().flatten().count());
        }
        self.wait_for_others().await;
        // Run the cases that failed for another reason again, to return that reason.
        let is_left = |place: &usize| lock(&self.progress).outcomes[*place].is_none();
        for place in (0..self.cases.len()).filter(is_left) {
            self.check(gpu, place).await?;
        }
        done(self.cases.len());
        Ok(lock(&self.progress).outcomes.iter().flatten().cloned().collect())
    }

    fn take(&self) -> Option<usize> {
        let one_less = |left: usize| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).ok().map(|left| left - 1)
    }

    async fn check(&self, gpu: &Gpu, place: usize) -> Result<()> {
        let outcome = check(gpu, &self.cases[place]).await?;
        gpu.shared.forgive();
        lock(&self.progress).outcomes[place] = Some(outcome);
        Ok(())
    }

    async fn wait_for_others(&self) {
        poll_fn(|context| {
            let mut progress = lock(&self.progress);
            if progress.others == 0 {
                return Poll::Ready(());
            }
            progress.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// An additional device, at work until this is dropped. It does not keep the queue alive.
struct Worker(Weak<CaseQueue>);

impl Worker {
    async fn run(&self, gpu: &Gpu) -> Result<()> {
        while let Some(queue) = self.0.upgrade() {
            let Some(place) = queue.take() else { break };
            queue.check(gpu, place).await?;
        }
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let Some(queue) = self.0.upgrade() else { return };
        let mut progress = lock(&queue.progress);
        progress.others -= 1;
        if let Some(waker) = progress.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        KERNELS,
        case_check::check_divided,
        gpu::{OpenOptions, Spawn, block_on, for_test},
        selftest::smallest_cases,
    };

    /// Outcomes of small cases on a device with threads. The second case has a wrong reference.
    fn outcomes(spawn: Spawn) -> Option<Vec<Outcome>> {
        let gpu = for_test(OpenOptions::default())?;
        gpu.compile_on(spawn, 3);
        // Kernels that a software driver compiles fast.
        let small = ["add", "copy", "glu", "soft_cap", "select_rows", "argmax", "argmax_join", "rms_norm"];
        let is_small = |kernel: &&&crate::Kernel| small.contains(&kernel.name);
        let mut cases: Vec<Case> =
            KERNELS.iter().filter(is_small).flat_map(|kernel| smallest_cases(&gpu, kernel)).collect();
        assert!(cases.len() >= 2 * WORTH_OPENING, "{} cases", cases.len());
        cases[1].reference = Box::new(|_| vec![Vec::new()]);
        let cases: Vec<Arc<Case>> = cases.into_iter().map(Arc::new).collect();
        let mut most = 0;
        let outcomes = block_on(check_divided(&gpu, &cases, &mut |count| most = most.max(count))).unwrap();
        assert_eq!(most, cases.len());
        Some(outcomes)
    }

    #[test]
    fn outcomes_belong_to_their_cases_on_any_device() {
        // With threads, and with a caller that starts none.
        for spawn in [|job| drop(std::thread::spawn(job)), (|job| drop(job)) as Spawn] {
            let Some(outcomes) = outcomes(spawn) else { return };
            let wrong: Vec<usize> = (0..outcomes.len()).filter(|place| outcomes[*place].is_err()).collect();
            assert_eq!(wrong, [1], "{outcomes:?}");
        }
    }
}
