//! [`tune`]: times the candidates of problems on a device and chooses the fastest.
//!
//! Candidates run in turn, in rounds, so that a change of the clock affects all of them. Slow candidates drop out after each round.
//! Each run of a candidate reads other weights than the run before, as the layers of a decoder do, so that weights come from
//! memory and not from a cache. Each candidate is first compared with its reference.

use std::time::Duration;

use web_time::Instant;

use super::{Choice, Problem, Trial};
use crate::{
    Error, Result,
    case_check::{Outcome, check_all},
    gpu::{Around, Buffer, Gpu, Recorder, SLICE_ALIGN},
};

/// The measurements of a problem.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The problem.
    pub problem: Problem,
    /// The candidates, the default first, with the seconds of a run. `None`: not measured to the end, because time was up, the result
    /// was wrong, or the candidate was far too slow in the first run.
    pub candidates: Vec<(Choice, Option<f64>)>,
    /// Index of the chosen candidate.
    pub chosen: usize,
    /// Candidates whose results differ from their reference.
    pub wrong: Vec<(Choice, String)>,
}

impl Measured {
    /// Speedup of the chosen candidate over the default.
    pub fn gain(&self) -> f64 {
        let seconds = |place: usize| self.candidates[place].1;
        seconds(0).zip(seconds(self.chosen)).map_or(1.0, |(default, chosen)| default / chosen)
    }
}

/// Bytes of the buffer that runs walk through. More than the caches of large devices, and more than the largest slice of a matrix
/// with its scales.
const AREA_BYTES: u64 = 160 << 20;
/// Most rounds of a candidate.
const ROUNDS: usize = 4;
/// After each round, candidates slower than the fastest times this factor drop out.
const OUT_AFTER: [f64; ROUNDS] = [1.5, 1.2, 1.1, f64::INFINITY];
/// A candidate replaces the present choice (a preset or the default) if it takes at most this fraction of its time.
const WORTH: f64 = 0.97;
/// Approximate time of a candidate's runs in a round, with timestamps and without.
const ROUND_SECONDS: [f64; 2] = [1e-3, 8e-3];
const MOST_RUNS: usize = 64;
/// An idle device runs slowly until its clock has risen. The warm-up lasts until runs have not become faster for this long.
const STEADY: Duration = Duration::from_millis(400);
/// Runs that take at least this fraction of the fastest time so far are no faster.
const SAME_SPEED: f64 = 0.97;
/// Longest warm-up.
const MOST_WARM_UP: Duration = Duration::from_secs(3);

/// Chooses the fastest candidate of each of `problems`, in order, until `budget` is used up. Remaining problems keep their choices.
/// `progress` gets the number of finished problems and of all problems.
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

/// The setup for timing.
struct Bench<'a> {
    gpu: &'a Gpu,
    recorder: Recorder,
    /// Buffers of [`Trial::rotated`] are slices of this one.
    area: Buffer<u32>,
    is_warm: bool,
}

/// Words of a run's buffers in the area.
fn aligned_words(lens: &[usize], rotated: &[usize]) -> usize {
    rotated.iter().map(|&i| lens[i].next_multiple_of(SLICE_ALIGN)).sum()
}

/// A candidate that takes part in the race.
struct Runner {
    place: usize,
    trial: Trial,
    /// The buffers that stay the same. `None`: a slice of the area.
    fixed: Vec<Option<Buffer<u32>>>,
    /// Start of the next run's slices in the area.
    at: usize,
}

impl Runner {
    fn record(&mut self, recorder: &mut Recorder, area: &Buffer<u32>) {
        let Trial { case, lens, rotated, .. } = &self.trial;
        if self.at + aligned_words(lens, rotated) > area.len() {
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
        // Sixteen runs of the largest problem are enough. This saves memory on small devices.
        let largest = problems.iter().filter_map(|problem| {
            let first = *problem.candidates(gpu.caps()).first()?;
            let Trial { lens, rotated, .. } = problem.trial(gpu.caps(), first);
            Some(4 * rotated.iter().map(|&i| lens[i]).sum::<usize>() as u64)
        });
        let mut bytes = most.min(16 * largest.max().unwrap_or(0)).max(1 << 20);
        let area = loop {
            match gpu.zeroed::<u32>(bytes as usize / 4) {
                Ok(area) => break area,
                Err(Error::OutOfMemory { .. }) if bytes > 2 << 20 => bytes /= 2,
                Err(error) => return Err(error),
            }
        };
        // Random words: power and clock of a device may depend on how many bits change.
        let mut random = crate::cases::Random::new(7);
        let words: Vec<u32> = (0..area.len().min(1 << 20)).map(|_| random.next() as u32 & 0x3bff_3bff).collect();
        for start in (0..area.len()).step_by(words.len()) {
            gpu.write_at(&area, start, &words[..words.len().min(area.len() - start)]);
        }
        // A software device needs no warm-up.
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
        // Without a measurement, the present choice stays.
        let now = self.gpu.choice(problem);
        measured.chosen = candidates.iter().position(|choice| *choice == now).unwrap_or(0);
        if candidates.len() < 2 || Instant::now() >= deadline {
            return Ok(measured);
        }
        let Some(mut runners) = self.correct_candidates(&problem, &mut measured).await? else { return Ok(measured) };
        let places: Vec<usize> = runners.iter().map(|runner| runner.place).collect();
        let present = places.iter().position(|place| *place == measured.chosen).unwrap_or(0);
        if !self.is_warm {
            self.is_warm = true;
            self.warm_up(&mut runners, places[0]).await?;
        }
        let round_seconds = ROUND_SECONDS[usize::from(!self.gpu.caps().timestamps)];
        let time = async |places: &[usize], runs: usize| self.round(&mut runners, places, runs).await;
        let (seconds, chosen) = race(&places, present, round_seconds, time, || Instant::now() >= deadline).await?;
        for (place, seconds) in places.into_iter().zip(seconds) {
            measured.candidates[place].1 = seconds;
        }
        measured.chosen = chosen.unwrap_or(measured.chosen);
        Ok(measured)
    }

    /// The candidates with correct results. `None`: the default is wrong, or the problem does not fit in memory.
    async fn correct_candidates(&mut self, problem: &Problem, measured: &mut Measured) -> Result<Option<Vec<Runner>>> {
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
            if aligned_words(&trial.lens, &trial.rotated) > self.area.len() {
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

    /// Keeps the device busy with a candidate until its clock has risen.
    async fn warm_up(&mut self, runners: &mut [Runner], place: usize) -> Result<()> {
        let start = Instant::now();
        let (mut fastest, mut since) = (f64::INFINITY, start);
        while since.elapsed() < STEADY && start.elapsed() < MOST_WARM_UP {
            let seconds = self.round(runners, &[place], 8).await?[0];
            if seconds < SAME_SPEED * fastest {
                (fastest, since) = (seconds, Instant::now());
            }
        }
        Ok(())
    }

    /// Runs each candidate of `places` `runs` times. Returns the seconds per run of each.
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

/// Races the candidates at `places`. `present` is the index in `places` of the present choice, which stays unless another one is clearly faster. `time` runs some of them a number of times and returns the
/// seconds per run of each. `is_over` ends the race. Returns the least seconds of each candidate in its last round, and the chosen
/// place, or `None` if time was up.
async fn race(
    places: &[usize],
    present: usize,
    round_seconds: f64,
    mut time: impl AsyncFnMut(&[usize], usize) -> Result<Vec<f64>>,
    is_over: impl Fn() -> bool,
) -> Result<(Vec<Option<f64>>, Option<usize>)> {
    let present = places[present];
    let mut measured = vec![None; places.len()];
    // The first run of each does not count. It determines the runs of a round.
    let first = time(places, 2).await?;
    let mut alive: Vec<(usize, f64)> = places.iter().copied().zip(first).collect();
    let shortest = |alive: &[(usize, f64)]| alive.iter().map(|(_, best)| *best).fold(f64::INFINITY, f64::min);
    let runs = ((round_seconds / shortest(&alive).max(1e-9)) as usize).clamp(2, MOST_RUNS);
    for limit in OUT_AFTER {
        // The first round was short, so it only drops candidates that are far too slow.
        let most = 2.0 * limit * shortest(&alive);
        alive.retain(|(place, best)| *place == present || *best <= most);
        if is_over() {
            return Ok((measured, None));
        }
        let left: Vec<usize> = alive.iter().map(|(place, _)| *place).collect();
        let (one, other) = (time(&left, runs).await?, time(&left, runs).await?);
        alive = left.into_iter().zip(one.into_iter().zip(other).map(|(one, other)| one.min(other))).collect();
        for (place, best) in &alive {
            let at = places.iter().position(|other| other == place).expect("a raced place");
            measured[at] = Some(*best);
        }
        let most = limit * shortest(&alive);
        alive.retain(|(place, best)| *place == present || *best <= most);
        if alive.len() == 1 {
            break;
        }
    }
    let (fastest, best) = *alive.iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("the present choice stays");
    let of_present = alive.iter().find(|(place, _)| *place == present).map_or(f64::INFINITY, |(_, best)| *best);
    Ok((measured, Some(if best <= WORTH * of_present { fastest } else { present })))
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

    /// Races candidates with these seconds in each round (the last value repeats) for at most `rounds` rounds. Expects the chosen place
    /// and the calls of each candidate.
    fn check_race(seconds: &[&[f64]], rounds: usize, chosen: Option<usize>, calls: &[usize]) {
        check_race_from(0, seconds, rounds, chosen, calls);
    }

    /// [`check_race`] from another present choice than the default.
    fn check_race_from(present: usize, seconds: &[&[f64]], rounds: usize, chosen: Option<usize>, calls: &[usize]) {
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
        let (measured, found) = block_on(race(&places, present, 1e-3, time, is_over)).unwrap();
        assert_eq!((found, &counts.borrow()[..]), (chosen, calls), "{seconds:?}");
        // Candidates that ran after the first, uncounted run have seconds.
        assert_eq!(
            measured.iter().map(Option::is_some).collect::<Vec<_>>(),
            calls.iter().map(|n| *n > 1).collect::<Vec<_>>()
        );
    }

    #[test]
    fn the_fastest_of_given_times_is_chosen() {
        // One uncounted run, then two in each of four rounds.
        check_race(&[&[1e-3], &[0.9e-3]], 9, Some(1), &[9, 9]);
        // A gain of up to three percent is ignored.
        check_race(&[&[1e-3], &[0.98e-3]], 9, Some(0), &[9, 9]);
        check_race(&[&[1e-3], &[0.97e-3], &[0.96e-3]], 9, Some(2), &[9, 9, 9]);
        // A preset stays unless another candidate is clearly faster, even if the preset is far behind in the first round.
        check_race_from(1, &[&[0.98e-3], &[1e-3]], 9, Some(1), &[9, 9]);
        check_race_from(1, &[&[0.96e-3], &[1e-3]], 9, Some(0), &[9, 9]);
        check_race_from(1, &[&[1e-3], &[9e-3, 0.95e-3]], 9, Some(1), &[9, 9]);
        // 1.5, 1.2 and 1.1 times the fastest drops out after the first, second and third round, three times the fastest at once. The
        // default stays.
        check_race(&[&[1e-3], &[1.05e-3], &[1.15e-3], &[1.3e-3], &[2e-3], &[4e-3]], 9, Some(0), &[9, 9, 7, 5, 3, 1]);
        check_race(&[&[5e-3], &[1e-3], &[1.02e-3]], 9, Some(1), &[9, 9, 9]);
        check_race(&[&[1e-3], &[2e-3]], 9, Some(0), &[3, 3]);
        // The lesser of a round's two times counts. A slow first run does no harm.
        check_race(&[&[1e-3], &[2.9e-3, 0.5e-3, 9.0]], 9, Some(0), &[5, 5]);
        check_race(&[&[1e-3], &[2.9e-3, 9.0, 0.5e-3]], 9, Some(1), &[9, 9]);
        // Time is up: nothing is chosen.
        check_race(&[&[1e-3], &[0.5e-3]], 0, None, &[1, 1]);
        check_race(&[&[1e-3], &[0.5e-3]], 2, None, &[5, 5]);
    }

    #[test]
    fn choices_are_used_and_stay_without_time() {
        // A device with subgroups and one without.
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
            // Without time, all choices stay.
            let chosen: Vec<Choice> = problems.iter().map(|problem| gpu.choice(*problem)).collect();
            let untouched = block_on(tune(&gpu, &problems, Duration::ZERO, &mut |_, _| {})).unwrap();
            assert!(untouched.iter().all(|of| of.candidates.iter().all(|(_, seconds)| seconds.is_none())));
            assert_eq!(problems.iter().map(|problem| gpu.choice(*problem)).collect::<Vec<_>>(), chosen);
        }
    }
}
