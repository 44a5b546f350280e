//! [`Recorder::begin_profile`] and [`Recorder::end_profile`].

use super::{
    profile::{Around, Pass, Profile, Timed},
    recorder::Recorder,
};
use crate::Result;

impl Recorder {
    /// Starts a profile. Submits earlier dispatches first. Returns false if the device has no timestamps.
    pub fn begin_profile(&mut self, around: Around) -> bool {
        self.submit();
        let can = self.gpu().caps().timestamps;
        self.profile = can.then(|| Profile::new(around));
        can
    }

    /// Ends the profile and returns the measured times in order. Waits for the device.
    pub async fn end_profile(&mut self) -> Result<Vec<Timed>> {
        self.submit();
        let Some(profile) = self.profile.take() else { return Ok(Vec::new()) };
        let second = f64::from(self.gpu().shared.queue.get_timestamp_period()) * 1e-9;
        let mut timed = Vec::new();
        for (passes, ticks) in profile.submitted {
            let ticks = self.read(&ticks)?.await?;
            let time = |pair: &[u32]| (u64::from(pair[0]) | u64::from(pair[1]) << 32) as f64 * second;
            for (Pass { dispatched, dispatches, rounds }, ticks) in passes.into_iter().zip(ticks.chunks_exact(4)) {
                let runs = if dispatched.is_some() { dispatches.len() * rounds } else { 1 };
                timed.push(Timed { dispatched, runs, begin: time(&ticks[..2]), end: time(&ticks[2..]) });
            }
        }
        Ok(timed)
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::{
        copy::Copy,
        gpu::{OpenOptions, block_on, for_test},
    };

    #[test]
    fn recorded_dispatches_are_timed() {
        let Some(gpu) = for_test(OpenOptions::default()) else { return };
        let (len, mut recorder) = (1 << 16, Recorder::new(&gpu));
        let values: Vec<u32> = (0..len as u32).collect();
        let source = gpu.upload(&values).unwrap();
        for (around, expected) in [(Around::Kernels, 1), (Around::Submissions, 2)] {
            let target = gpu.zeroed::<u32>(len).unwrap();
            if !recorder.begin_profile(around) {
                return eprintln!("skipped: no timestamps");
            }
            (0..300).for_each(|_| Copy { len }.record(&mut recorder, &source, &target));
            let timed = block_on(recorder.end_profile()).unwrap();
            assert_eq!(timed.len(), expected, "{around:?}");
            assert!(timed.iter().all(|timed| timed.begin <= timed.end));
            assert!(timed.is_sorted_by(|a, b| a.begin <= b.begin));
            for dispatched in timed.iter().filter_map(|timed| timed.dispatched.as_ref()) {
                assert_eq!((dispatched.kernel.name, dispatched.bytes), ("copy", 8 * len as u64));
                assert_eq!((dispatched.count, timed[0].runs), (300, 300));
            }
            assert_eq!(block_on(recorder.read(&target).unwrap()).unwrap(), values);
        }
        // The profile has ended.
        assert!(block_on(recorder.end_profile()).unwrap().is_empty());
    }
}
