//! [`tune`]: the candidates of problems timed on a device, and the fastest chosen.
//!
//! Candidates take turns, in rounds, so that a clock that rises or falls meets them all; those that are far behind do not
//! come to the next round. Each run of a candidate reads other weights than the one before, as a decoder's layers do, so
//! that a cache does not hold what in a model comes from memory. A candidate is first held against its reference.

use std::time::Duration;

use web_time::Instant;

use super::{Choice, Problem, Trial, Tunable};
use crate::{
    Error, Result,
    case_check::{Outcome, check_all},
    gpu::{Around, Buffer, Gpu, Recorder, SLICE_ALIGN},
};

/// What was found out about a problem.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The problem.
    pub problem: Problem,
    /// Each of its candidates, the kernel's own rule first, with the seconds of a run; `None` where it was not measured to
    /// the end: time was up, it was wrong, or a run before had left it far behind.
    pub candidates: Vec<(Choice, Option<f64>)>,
    /// The place of the one that is taken from now on.
    pub chosen: usize,
    /// Candidates that gave something else than their reference.
    pub wrong: Vec<(Choice, String)>,
}

impl Measured {
    /// How much faster the chosen one is than the kernel's own rule.
    pub fn gain(&self) -> f64 {
        let seconds = |place: usize| self.candidates[place].1;
        seconds(0).zip(seconds(self.chosen)).map_or(1.0, |(own, chosen)| own / chosen)
    }
}

/// Bytes that runs take turns in: more than the caches of large devices hold, and than the largest slice of a matrix with its
/// scales.
const AREA_BYTES: u64 = 160 << 20;
/// Rounds that a candidate is run in at most.
const ROUNDS: usize = 4;
/// Factors over the fastest beyond which a candidate is out after the first round, the second, ...
const OUT_AFTER: [f64; ROUNDS] = [1.5, 1.2, 1.1, f64::INFINITY];
/// A candidate takes the place of the kernel's own rule if it needs no more than this of its time.
const WORTH: f64 = 0.97;
/// Time that the runs of a candidate in a round take together, about, with timestamps and without.
const ROUND_SECONDS: [f64; 2] = [1e-3, 8e-3];
const MOST_RUNS: usize = 64;
/// A device that had nothing to do runs slowly until it has been busy for a while.
const WARM_UP: Duration = Duration::from_millis(400);

/// Chooses for each of `problems` what is fastest on the device, the first ones first, until `budget` is used up; what was
/// not come to stays as it was. `progress`: how many are done of how many.
///
/// Errors: the device's.
pub async fn tune(
    gpu: &Gpu,
    problems: &[Problem],
    budget: Duration,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Measured>> {
    let start = Instant::now();
    let deadline = start + budget;
    let mut bench = Bench::new(gpu, problems)?;
    let mut all = Vec::with_capacity(problems.len());
    for (done, problem) in problems.iter().enumerate() {
        progress(done, problems.len());
        all.push(bench.measure(*problem, deadline).await?);
    }
    progress(problems.len(), problems.len());
    for measured in &all {
        gpu.choose(measured.problem, measured.candidates[measured.chosen].0);
    }
    Ok(all)
}

/// What problems are timed on.
struct Bench<'a> {
    gpu: &'a Gpu,
    recorder: Recorder,
    /// What takes turns lies in here.
    area: Buffer<u32>,
    is_warm: bool,
}

/// A candidate on its way.
struct Runner {
    place: usize,
    trial: Trial,
    /// The buffers that do not take turns; in the place of the others, nothing.
    fixed: Vec<Option<Buffer<u32>>>,
    /// Where in the area the next run begins.
    at: usize,
    best: f64,
}

impl Runner {
    fn record(&mut self, recorder: &mut Recorder, area: &Buffer<u32>) {
        let Trial { case, lens, rotated, .. } = &self.trial;
        let all: usize = lens[rotated.clone()].iter().map(|len| len.next_multiple_of(SLICE_ALIGN)).sum();
        if self.at + all > area.len() {
            self.at = 0;
        }
        let mut buffers = Vec::with_capacity(lens.len());
        for (buffer, &len) in self.fixed.iter().zip(lens) {
            buffers.push(match buffer {
                Some(buffer) => buffer.clone(),
                None => {
                    let slice = area.slice(self.at, len);
                    self.at += len.next_multiple_of(SLICE_ALIGN);
                    slice
                }
            });
        }
        (case.record)(recorder, &buffers);
    }
}

impl<'a> Bench<'a> {
    fn new(gpu: &'a Gpu, problems: &[Problem]) -> Result<Bench<'a>> {
        let most = gpu.caps().max_binding.min(gpu.caps().max_buffer).min(AREA_BYTES);
        // No more than what makes the largest problem's runs take turns, on devices with little memory.
        let largest = problems.iter().filter_map(|problem| {
            let first = *problem.candidates(gpu.caps()).first()?;
            let Trial { lens, rotated, .. } = (Tunable::by_name(problem.name).trial)(gpu.caps(), problem, first);
            Some(4 * lens[rotated].iter().sum::<usize>() as u64)
        });
        let mut bytes = most.min(16 * largest.max().unwrap_or(0)).max(1 << 20);
        let area = loop {
            match gpu.zeroed::<u32>(bytes as usize / 4) {
                Ok(area) => break area,
                Err(Error::OutOfMemory { .. }) if bytes > 2 << 20 => bytes /= 2,
                Err(error) => return Err(error),
            }
        };
        // Words of any value: what a device takes for a product may depend on how many bits change.
        let mut random = crate::cases::Random::new(7);
        let words: Vec<u32> = (0..area.len().min(1 << 20)).map(|_| random.next() as u32 & 0x3bff_3bff).collect();
        for start in (0..area.len()).step_by(words.len()) {
            gpu.write_at(&area, start, &words[..words.len().min(area.len() - start)]);
        }
        // A software device has no clock to rise.
        let is_warm = gpu.caps().is_software;
        Ok(Bench { gpu, recorder: Recorder::new(gpu).without_early_submission(), area, is_warm })
    }

    async fn measure(&mut self, problem: Problem, deadline: Instant) -> Result<Measured> {
        let candidates = problem.candidates(self.gpu.caps());
        let mut measured = Measured {
            problem,
            candidates: candidates.iter().map(|choice| (*choice, None)).collect(),
            chosen: 0,
            wrong: Vec::new(),
        };
        // What it stays at where nothing is found out.
        let now = self.gpu.choice(problem);
        measured.chosen = candidates.iter().position(|choice| *choice == now).unwrap_or(0);
        if candidates.len() < 2 || Instant::now() >= deadline {
            return Ok(measured);
        }
        let Some(mut runners) = self.right_ones(&problem, &mut measured).await? else { return Ok(measured) };
        if !self.is_warm {
            self.is_warm = true;
            let until = Instant::now() + WARM_UP;
            while Instant::now() < until {
                self.round(&mut runners[..1], 8).await?;
            }
            runners[0].best = f64::INFINITY;
        }
        // The first run of each is not counted, and tells how many make a round.
        self.round(&mut runners, 2).await?;
        let shortest = runners.iter().map(|runner| runner.best).fold(f64::INFINITY, f64::min);
        let round_seconds = ROUND_SECONDS[usize::from(!self.gpu.caps().timestamps)];
        let runs = ((round_seconds / shortest.max(1e-9)) as usize).clamp(2, MOST_RUNS);
        for limit in OUT_AFTER {
            let shortest = runners.iter().map(|runner| runner.best).fold(f64::INFINITY, f64::min);
            // The very first round was short, so it decides on what is hopeless alone.
            runners.retain(|runner| runner.place == 0 || runner.best <= 2.0 * limit * shortest);
            if Instant::now() >= deadline {
                return Ok(measured);
            }
            runners.iter_mut().for_each(|runner| runner.best = f64::INFINITY);
            for _ in 0..2 {
                self.round(&mut runners, runs).await?;
            }
            let shortest = runners.iter().map(|runner| runner.best).fold(f64::INFINITY, f64::min);
            for runner in &runners {
                measured.candidates[runner.place].1 = Some(runner.best);
            }
            runners.retain(|runner| runner.place == 0 || runner.best <= limit * shortest);
            if runners.len() == 1 {
                break;
            }
        }
        let own = runners.iter().find(|runner| runner.place == 0).map_or(f64::INFINITY, |runner| runner.best);
        let fastest = runners.iter().min_by(|a, b| a.best.total_cmp(&b.best)).expect("one is left");
        measured.chosen = if fastest.best <= WORTH * own { fastest.place } else { 0 };
        Ok(measured)
    }

    /// The candidates that give what they should. `None`: the kernel's own rule is not among them, or the problem does not
    /// fit.
    async fn right_ones(&mut self, problem: &Problem, measured: &mut Measured) -> Result<Option<Vec<Runner>>> {
        let tunable = Tunable::by_name(problem.name);
        let trials: Vec<Trial> =
            measured.candidates.iter().map(|(choice, _)| (tunable.trial)(self.gpu.caps(), problem, *choice)).collect();
        let checks: Vec<_> = trials.iter().flat_map(|trial| &trial.checks).collect();
        let mut outcomes = check_all(self.gpu, &checks).await?.into_iter();
        self.gpu.shared.forgive();
        let mut runners = Vec::new();
        for (place, trial) in trials.into_iter().enumerate() {
            let of_trial: Vec<Outcome> = outcomes.by_ref().take(trial.checks.len()).collect();
            if let Err(reason) = of_trial.into_iter().collect::<Result<Vec<_>, _>>() {
                measured.wrong.push((measured.candidates[place].0, reason));
                if place == 0 {
                    return Ok(None);
                }
                continue;
            }
            let needed: usize =
                trial.lens[trial.rotated.clone()].iter().map(|len| len.next_multiple_of(SLICE_ALIGN)).sum();
            if needed > self.area.len() {
                return Ok(None);
            }
            let buffer = |(i, &len): (usize, &usize)| match trial.rotated.contains(&i) {
                true => Ok(None),
                false => self.gpu.zeroed(len.max(SLICE_ALIGN)).map(Some),
            };
            let fixed = trial.lens.iter().enumerate().map(buffer).collect::<Result<_>>();
            match fixed {
                Ok(fixed) => runners.push(Runner { place, trial, fixed, at: 0, best: f64::INFINITY }),
                Err(Error::OutOfMemory { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(runners))
    }

    /// Runs each candidate so many times, and keeps the seconds of a run where they are the fewest.
    async fn round(&mut self, runners: &mut [Runner], runs: usize) -> Result<()> {
        let has_timestamps = self.recorder.begin_profile(Around::Submissions);
        for runner in runners.iter_mut() {
            let start = Instant::now();
            for _ in 0..runs {
                runner.record(&mut self.recorder, &self.area);
            }
            if has_timestamps {
                self.recorder.submit();
                continue;
            }
            let done = self.gpu.zeroed::<u32>(1)?;
            self.recorder.read(&done)?.await?;
            runner.best = runner.best.min(start.elapsed().as_secs_f64() / runs as f64);
        }
        let timed = self.recorder.end_profile().await?;
        for (runner, timed) in runners.iter_mut().zip(timed) {
            runner.best = runner.best.min((timed.end - timed.begin) / runs as f64);
        }
        Ok(())
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::{
        cases::four_bits,
        gemm, gemv,
        gpu::{OpenOptions, block_on, for_test},
    };

    /// A small problem of each of three kernels.
    fn problems() -> Vec<Problem> {
        [(&gemv::TUNABLE, [40, 96, 1]), (&gemv::ADD_TUNABLE, [40, 96, 1]), (&gemm::TUNABLE, [70, 96, 32])]
            .map(|(tunable, extents)| Problem::new(tunable, Some(four_bits()), extents))
            .into()
    }

    #[test]
    fn the_fastest_is_chosen_and_stays() {
        // One with subgroups, and one without.
        for (name, options) in [OpenOptions::PROFILES[1], OpenOptions::PROFILES[3]] {
            let Some(gpu) = for_test(options) else { return };
            let mut steps = Vec::new();
            let problems = problems();
            let measured =
                block_on(tune(&gpu, &problems, Duration::from_secs(30), &mut |done, all| steps.push((done, all))))
                    .unwrap();
            assert_eq!(steps.last(), Some(&(3, 3)), "{name}");
            for of in &measured {
                assert!(of.wrong.is_empty(), "{name}: {}: {:?}", of.problem, of.wrong);
                assert!(of.candidates[of.chosen].1.is_some(), "{name}: {} was not measured", of.problem);
                assert_eq!(gpu.choice(of.problem), of.candidates[of.chosen].0);
                assert!(of.gain() >= 1.0);
            }
            // Without time, all stays as it is.
            let chosen: Vec<Choice> = problems.iter().map(|problem| gpu.choice(*problem)).collect();
            let untouched = block_on(tune(&gpu, &problems, Duration::ZERO, &mut |_, _| {})).unwrap();
            assert!(untouched.iter().all(|of| of.candidates.iter().all(|(_, seconds)| seconds.is_none())));
            assert_eq!(problems.iter().map(|problem| gpu.choice(*problem)).collect::<Vec<_>>(), chosen);
        }
    }
}
