//! [`CaseQueue`]: cases divided among several devices of one software adapter. [`super::check_divided`] makes it.
//! Nearly all that a small case takes there is the compiling of its kernels, which a device does one after the other.

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

/// Most devices besides the one that the cases are for.
const MOST_OTHERS: usize = 7;
/// Cases for each device that make it worth opening.
const WORTH_OPENING: usize = 4;

/// Cases that devices take from, the last ones first: those are the attention's, which take longest.
pub(crate) struct CaseQueue {
    cases: Vec<Arc<Case>>,
    /// How many nobody took yet.
    left: AtomicUsize,
    found: Mutex<Found>,
}

struct Found {
    outcomes: Vec<Option<Outcome>>,
    /// Devices at work, besides the one that waits for them.
    others: usize,
    waker: Option<Waker>,
}

impl CaseQueue {
    /// Begins to work on other devices, as many as there are threads for. `None`: the device is none of software, or there
    /// are none.
    pub fn begin(gpu: &Gpu, cases: &[Arc<Case>]) -> Option<Arc<CaseQueue>> {
        let others = gpu.room_beside().min(cases.len() / WORTH_OPENING).min(MOST_OTHERS);
        if others == 0 {
            return None;
        }
        let found = Found { outcomes: vec![None; cases.len()], others, waker: None };
        let left = AtomicUsize::new(cases.len());
        let queue = Arc::new(CaseQueue { cases: cases.to_vec(), left, found: Mutex::new(found) });
        for beside in (0..others).map(|_| Beside(Arc::downgrade(&queue))) {
            // What fails for another reason than the kernel is left to the device that the cases are for.
            gpu.beside(Box::new(move |another| Box::pin(async move { drop(beside.run(&another).await) })));
        }
        Some(queue)
    }

    /// Works beside them until all is done.
    pub async fn finish(&self, gpu: &Gpu, done: &mut dyn FnMut(usize)) -> Result<Vec<Outcome>> {
        while let Some(place) = self.take() {
            self.check(gpu, place).await?;
            done(lock(&self.found).outcomes.iter().flatten().count());
        }
        self.wait_for_others().await;
        // What nobody could do for another reason than the kernel has its reason told here.
        let is_left = |place: &usize| lock(&self.found).outcomes[*place].is_none();
        for place in (0..self.cases.len()).filter(is_left) {
            self.check(gpu, place).await?;
        }
        done(self.cases.len());
        Ok(lock(&self.found).outcomes.iter().flatten().cloned().collect())
    }

    fn take(&self) -> Option<usize> {
        let one_less = |left: usize| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).ok().map(|left| left - 1)
    }

    async fn check(&self, gpu: &Gpu, place: usize) -> Result<()> {
        let outcome = check(gpu, &self.cases[place]).await?;
        gpu.shared.forgive();
        lock(&self.found).outcomes[place] = Some(outcome);
        Ok(())
    }

    async fn wait_for_others(&self) {
        poll_fn(|context| {
            let mut found = lock(&self.found);
            if found.others == 0 {
                return Poll::Ready(());
            }
            found.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A device that is at work, or will be, until this is dropped. Who gives the queue up does not wait for it.
struct Beside(Weak<CaseQueue>);

impl Beside {
    async fn run(&self, gpu: &Gpu) -> Result<()> {
        while let Some(queue) = self.0.upgrade() {
            let Some(place) = queue.take() else { break };
            queue.check(gpu, place).await?;
        }
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let Some(queue) = self.0.upgrade() else { return };
        let mut found = lock(&queue.found);
        found.others -= 1;
        if let Some(waker) = found.waker.take() {
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

    /// Outcomes of small cases, one of which expects something else, on a device with threads.
    fn outcomes(spawn: Spawn) -> Option<Vec<Outcome>> {
        let gpu = for_test(OpenOptions::default())?;
        gpu.compile_on(spawn, 3);
        // Kernels that a software driver compiles in no time.
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
    fn outcomes_are_of_their_cases_whoever_found_them() {
        // Threads, and a caller who has none left.
        for spawn in [|job| drop(std::thread::spawn(job)), (|job| drop(job)) as Spawn] {
            let Some(outcomes) = outcomes(spawn) else { return };
            let wrong: Vec<usize> = (0..outcomes.len()).filter(|place| outcomes[*place].is_err()).collect();
            assert_eq!(wrong, [1], "{outcomes:?}");
        }
    }
}
