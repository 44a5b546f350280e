//! [`tune`]: the candidates of problems timed on a device, and the fastest chosen.
//!
//! Candidates take turns, in rounds, so that a clock that rises or falls meets them all; those that are far behind do not
//! come to the next round. Each run of a candidate reads other weights than the one before, as a decoder's layers do, so
//! that a cache does not hold what in a model comes from memory. A candidate is first held against its reference.

use std::time::Duration;

use web_time::Instant;

use super::{Choice, Problem, Trial};
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
            let Trial { lens, rotated, .. } = problem.trial(gpu.caps(), first);
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
        let places: Vec<usize> = runners.iter().map(|runner| runner.place).collect();
        if !self.is_warm {
            self.is_warm = true;
            let until = Instant::now() + WARM_UP;
            while Instant::now() < until {
                self.round(&mut runners, &places[..1], 8).await?;
            }
        }
        let round_seconds = ROUND_SECONDS[usize::from(!self.gpu.caps().timestamps)];
        let time = async |places: &[usize], runs: usize| self.round(&mut runners, places, runs).await;
        let (seconds, chosen) = race(&places, round_seconds, time, || Instant::now() >= deadline).await?;
        for (place, seconds) in places.into_iter().zip(seconds) {
            measured.candidates[place].1 = seconds;
        }
        measured.chosen = chosen.unwrap_or(measured.chosen);
        Ok(measured)
    }

    /// The candidates that give what they should. `None`: the kernel's own rule is not among them, or the problem does not
    /// fit.
    async fn right_ones(&mut self, problem: &Problem, measured: &mut Measured) -> Result<Option<Vec<Runner>>> {
        let trials: Vec<Trial> =
            measured.candidates.iter().map(|(choice, _)| problem.trial(self.gpu.caps(), *choice)).collect();
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
                Ok(fixed) => runners.push(Runner { place, trial, fixed, at: 0 }),
                Err(Error::OutOfMemory { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(runners))
    }

    /// Runs each candidate of `places` so many times: the seconds of a run of each.
    async fn round(&mut self, runners: &mut [Runner], places: &[usize], runs: usize) -> Result<Vec<f64>> {
        let has_timestamps = self.recorder.begin_profile(Around::Submissions);
        let mut seconds = Vec::with_capacity(places.len());
        for runner in runners.iter_mut().filter(|runner| places.contains(&runner.place)) {
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
            seconds.push(start.elapsed().as_secs_f64() / runs as f64);
        }
        let timed = self.recorder.end_profile().await?;
        seconds.extend(timed.into_iter().map(|timed| (timed.end - timed.begin) / runs as f64));
        Ok(seconds)
    }
}

/// The rounds of the candidates at `places`, the first of them the kernel's own rule. `time` runs some of them so many times and
/// gives the seconds of a run of each; `is_over`: no more rounds. The least seconds of each in its last round, and the place that
/// is chosen; `None` where time was over.
async fn race(
    places: &[usize],
    round_seconds: f64,
    mut time: impl AsyncFnMut(&[usize], usize) -> Result<Vec<f64>>,
    is_over: impl Fn() -> bool,
) -> Result<(Vec<Option<f64>>, Option<usize>)> {
    let own = places[0];
    let mut measured = vec![None; places.len()];
    // The first run of each is not counted, and tells how many make a round.
    let first = time(places, 2).await?;
    let mut alive: Vec<(usize, f64)> = places.iter().copied().zip(first).collect();
    let shortest = |alive: &[(usize, f64)]| alive.iter().map(|(_, best)| *best).fold(f64::INFINITY, f64::min);
    let runs = ((round_seconds / shortest(&alive).max(1e-9)) as usize).clamp(2, MOST_RUNS);
    for limit in OUT_AFTER {
        // The very first round was short, so it decides on what is hopeless alone.
        let most = 2.0 * limit * shortest(&alive);
        alive.retain(|(place, best)| *place == own || *best <= most);
        if is_over() {
            return Ok((measured, None));
        }
        let left: Vec<usize> = alive.iter().map(|(place, _)| *place).collect();
        let (one, other) = (time(&left, runs).await?, time(&left, runs).await?);
        alive = left.into_iter().zip(one.into_iter().zip(other).map(|(one, other)| one.min(other))).collect();
        for (place, best) in &alive {
            let at = places.iter().position(|other| other == place).expect("one of them");
            measured[at] = Some(*best);
        }
        let most = limit * shortest(&alive);
        alive.retain(|(place, best)| *place == own || *best <= most);
        if alive.len() == 1 {
            break;
        }
    }
    let (fastest, best) = *alive.iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("one is left");
    let of_own = alive.iter().find(|(place, _)| *place == own).map_or(f64::INFINITY, |(_, best)| *best);
    Ok((measured, Some(if best <= WORTH * of_own { fastest } else { own })))
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

    /// The race of candidates that take these seconds in each round (the last for all that follow), until `rounds` are over: the
    /// place that is chosen, and the calls of each.
    fn check_race(seconds: &[&[f64]], rounds: usize, chosen: Option<usize>, calls: &[usize]) {
        let counts = std::cell::RefCell::new(vec![0; seconds.len()]);
        let asked = std::cell::Cell::new(0);
        let time = async |places: &[usize], runs: usize| {
            assert!((2..=MOST_RUNS).contains(&runs));
            let mut counts = counts.borrow_mut();
            let times = places.iter().map(|&place| {
                let of = seconds[place];
                let at = counts[place].min(of.len() - 1);
                counts[place] += 1;
                of[at]
            });
            Ok(times.collect())
        };
        let is_over = || {
            asked.set(asked.get() + 1);
            asked.get() > rounds
        };
        let places: Vec<usize> = (0..seconds.len()).collect();
        let (measured, found) = block_on(race(&places, 1e-3, time, is_over)).unwrap();
        assert_eq!((found, &counts.borrow()[..]), (chosen, calls), "{seconds:?}");
        // What was timed after the first, uncounted run has its seconds.
        assert_eq!(
            measured.iter().map(Option::is_some).collect::<Vec<_>>(),
            calls.iter().map(|n| *n > 1).collect::<Vec<_>>()
        );
    }

    #[test]
    fn the_fastest_of_given_times_is_chosen() {
        // One run that is not counted, then two in each of four rounds.
        check_race(&[&[1e-3], &[0.9e-3]], 9, Some(1), &[9, 9]);
        // No more than three per cent is not worth it.
        check_race(&[&[1e-3], &[0.98e-3]], 9, Some(0), &[9, 9]);
        check_race(&[&[1e-3], &[0.97e-3], &[0.96e-3]], 9, Some(2), &[9, 9, 9]);
        // More than 1.1, 1.2 and 1.5 times the fastest is out after so many rounds, three times as much at once; the own rule stays.
        check_race(&[&[1e-3], &[1.05e-3], &[1.15e-3], &[1.3e-3], &[2e-3], &[4e-3]], 9, Some(0), &[9, 9, 7, 5, 3, 1]);
        check_race(&[&[5e-3], &[1e-3], &[1.02e-3]], 9, Some(1), &[9, 9, 9]);
        check_race(&[&[1e-3], &[2e-3]], 9, Some(0), &[3, 3]);
        // The lesser of a round's two counts, and a slow first run is forgiven.
        check_race(&[&[1e-3], &[2.9e-3, 0.5e-3, 9.0]], 9, Some(0), &[5, 5]);
        check_race(&[&[1e-3], &[2.9e-3, 9.0, 0.5e-3]], 9, Some(1), &[9, 9]);
        // Time is over: nothing is chosen.
        check_race(&[&[1e-3], &[0.5e-3]], 0, None, &[1, 1]);
        check_race(&[&[1e-3], &[0.5e-3]], 2, None, &[5, 5]);
    }

    #[test]
    fn what_is_chosen_stays() {
        // One with subgroups, and one without.
        for (name, options) in [OpenOptions::PROFILES[1], OpenOptions::PROFILES[3]] {
            let Some(gpu) = for_test(options) else { return };
            let mut steps = Vec::new();
            let problems = problems();
            let measured = block_on(tune(&gpu, &problems, Duration::from_secs(24 * 3600), &mut |done, all| {
                steps.push((done, all));
            }))
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
