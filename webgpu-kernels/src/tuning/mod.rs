//! Which of a kernel's equivalent forms is the fastest on a device: [`Tunable`], the kernels that have a choice.
//!
//! A kernel asks with a [`Problem`], the shape of what it is to do, and gets a [`Choice`]: what was measured on this device
//! ([`tune`]) and put into its table ([`Gpu::choose`]); else what `presets.json` says of devices like it; else the first of the
//! kernel's candidates, which is its own rule. A choice that is none of the candidates is never taken, wherever it comes from.
//!
//! Choices may add in another order, so results may differ in their last digits from one choice to another. As long as a device's
//! table stays the same, the same work gives the same results.

mod presets;
mod tuner;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use crate::{
    Case, Gpu, Kernel, WeightFormat, attention, gemm, gemv, gemv_chain,
    gpu::{AdapterSummary, Caps},
    selftest::Switch,
};

use presets::Rule;
pub use tuner::{Measured, tune};

/// Every kernel that has a choice.
pub const TUNABLES: &[&Tunable] = &[
    &gemv::TUNABLE,
    &gemv::ADD_TUNABLE,
    &gemv::SCALED_TUNABLE,
    &gemv::ROPE_TUNABLE,
    &gemv_chain::TUNABLE,
    &gemm::TUNABLE,
    &gemm::SPLITS_TUNABLE,
    &gemm::COOPERATIVE_TUNABLE,
    &attention::DECODE_TUNABLE,
    &attention::TILE_TUNABLE,
];

/// A flag that stands for the presets of a kernel, to switch them off by.
pub(crate) const PRESETS_FLAG: &str = "PRESETS";

/// The most extents of a problem.
const MOST_EXTENTS: usize = 5;
/// The most numbers of a choice.
const MOST_NUMBERS: usize = 4;

/// A kernel that can do a problem in several ways.
pub struct Tunable {
    /// Its name, for tables and files.
    pub name: &'static str,
    /// The kernel that is dispatched.
    pub kernel: fn(&Problem) -> &'static Kernel,
    /// Names of a problem's extents.
    pub extents: &'static [&'static str],
    /// Names of a choice's numbers.
    pub numbers: &'static [&'static str],
    /// The ways there are on a device, the one that is taken where nothing is known first.
    pub candidates: fn(&Caps, &Problem) -> Vec<Choice>,
    /// The problem, done in one of these ways.
    pub trial: fn(&Caps, &Problem, Choice) -> Trial,
}

/// What there is to do: a kernel, and the shape that its choice may depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Name of the [`Tunable`].
    pub name: &'static str,
    /// How the weights are stored, where there are such.
    pub format: Option<WeightFormat>,
    /// As [`Tunable::extents`] names them, then zeros.
    pub extents: [u32; MOST_EXTENTS],
}

/// One way to do it: numbers, as [`Tunable::numbers`] names them, then zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Choice(pub [u32; MOST_NUMBERS]);

/// A problem done in one way, to be timed and to be checked.
pub struct Trial {
    /// The problem at its size. Its inputs and its reference are not asked for.
    pub case: Case,
    /// Words of each of its buffers.
    pub lens: Vec<usize>,
    /// The buffers that in a model come from memory, and not from a cache: each run is given other ones.
    pub rotated: Range<usize>,
    /// Small ones that are done by the same variant, or where it depends on more than the problem by each, to be held against their
    /// references.
    pub checks: Vec<Case>,
}

impl Tunable {
    fn by_name(name: &str) -> &'static Tunable {
        TUNABLES.iter().find(|tunable| tunable.name == name).expect("a problem is of a tunable kernel")
    }
}

impl Problem {
    /// A problem of `tunable`.
    pub(crate) fn new<const N: usize>(
        tunable: &'static Tunable,
        format: Option<WeightFormat>,
        extents: [usize; N],
    ) -> Problem {
        debug_assert_eq!(tunable.extents.len(), N, "{}: extents", tunable.name);
        let mut all = [0; MOST_EXTENTS];
        all.iter_mut().zip(extents).for_each(|(to, extent)| *to = extent as u32);
        Problem { name: tunable.name, format, extents: all }
    }

    /// The extents as sizes.
    pub(crate) fn sizes(&self) -> [usize; MOST_EXTENTS] {
        self.extents.map(|extent| extent as usize)
    }

    /// The ways there are on a device, the kernel's own rule first.
    pub fn candidates(&self, caps: &Caps) -> Vec<Choice> {
        (Tunable::by_name(self.name).candidates)(caps, self)
    }

    /// What it costs, in bytes that memory moves in the time, about.
    pub fn cost(&self, caps: &Caps) -> u64 {
        // Devices do some tens of operations for a byte.
        let cost = |choice: &Choice| (Tunable::by_name(self.name).trial)(caps, self, *choice).case;
        self.candidates(caps).first().map(cost).map_or(0, |case| case.bytes + case.flops / 64)
    }

    /// A choice in words: `workgroup 96, steps 2`.
    pub fn words(&self, choice: Choice) -> String {
        listed(Tunable::by_name(self.name).numbers, &choice.0)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if let Some(format) = self.format {
            write!(f, " {format}")?;
        }
        write!(f, " {}", listed(Tunable::by_name(self.name).extents, &self.extents))
    }
}

fn listed(names: &[&str], values: &[u32]) -> String {
    names.iter().zip(values).map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

/// What is chosen on a device.
#[derive(Default, Clone)]
pub(crate) struct Table {
    chosen: HashMap<Problem, Choice>,
    rules: Vec<Rule>,
    /// Problems that were asked for since that is wanted, with how often.
    asked: Option<Vec<(Problem, u32)>>,
}

impl Table {
    pub fn new(summary: &AdapterSummary) -> Table {
        Table { rules: presets::rules_of(summary), ..Table::default() }
    }

    fn preset(&self, caps: &Caps, problem: &Problem, is_off: bool) -> Choice {
        let candidates = problem.candidates(caps);
        let of_rule = |rule: &Rule| candidates.iter().find(|choice| rule.names(problem, choice));
        let preset = self.rules.iter().filter(|_| !is_off).find_map(of_rule);
        *preset.or(candidates.first()).expect("a problem can be done in one way at least")
    }
}

impl Gpu {
    /// How a problem is done on this device.
    pub fn choice(&self, problem: Problem) -> Choice {
        let mut table = self.tuning();
        if let Some(asked) = &mut table.asked {
            match asked.iter_mut().find(|(other, _)| *other == problem) {
                Some((_, count)) => *count += 1,
                None => asked.push((problem, 1)),
            }
        }
        if let Some(choice) = table.chosen.get(&problem) {
            return *choice;
        }
        let choice = table.preset(self.caps(), &problem, self.presets_are_off(problem.name));
        table.chosen.insert(problem, choice);
        choice
    }

    fn presets_are_off(&self, name: &str) -> bool {
        let is_presets = |switch: &Switch| switch.kernel == name && switch.flag.as_deref() == Some(PRESETS_FLAG);
        self.switched_off().iter().any(is_presets)
    }

    /// Does a problem in one of its ways from now on; whether it is one.
    pub fn choose(&self, problem: Problem, choice: Choice) -> bool {
        let is_one = problem.candidates(self.caps()).contains(&choice);
        if is_one {
            self.tuning().chosen.insert(problem, choice);
        }
        is_one
    }

    /// Forgets what was chosen: presets hold again, and each kernel's own rule.
    pub fn forget_choices(&self) {
        self.tuning().chosen.clear();
    }

    /// Notes from now on what problems there are.
    pub fn note_problems(&self) {
        self.tuning().asked = Some(Vec::new());
    }

    /// The problems since [`Gpu::note_problems`], in the order in which they came first, each with how often it came.
    pub fn noted_problems(&self) -> Vec<(Problem, u32)> {
        self.tuning().asked.take().unwrap_or_default()
    }

    /// What presets say of the problems so far, where it is not the kernel's own rule.
    pub(crate) fn presets(&self) -> Vec<(Problem, Choice)> {
        let table = self.tuning();
        let preset = |problem: &Problem| table.preset(self.caps(), problem, self.presets_are_off(problem.name));
        let all = table.chosen.keys().map(|problem| (*problem, preset(problem)));
        let mut presets: Vec<_> =
            all.filter(|(problem, choice)| problem.candidates(self.caps()).first() != Some(choice)).collect();
        presets.sort_by_cached_key(|(problem, _)| problem.to_string());
        presets
    }
}

/// The checks of a choice, with the kernel's record.
pub(crate) fn checks_of(caps: &Caps, problem: &Problem, choice: Choice) -> (&'static Kernel, Vec<Case>) {
    let tunable = Tunable::by_name(problem.name);
    ((tunable.kernel)(problem), (tunable.trial)(caps, problem, choice).checks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_each_and_so_are_candidates() {
        let mut names: Vec<&str> = TUNABLES.iter().map(|tunable| tunable.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TUNABLES.len());
        assert!(TUNABLES.iter().all(|tunable| tunable.extents.len() <= MOST_EXTENTS));
        assert!(TUNABLES.iter().all(|tunable| tunable.numbers.len() <= MOST_NUMBERS));
    }
}
