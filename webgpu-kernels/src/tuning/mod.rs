//! Autotuning: which kernel variant is fastest on a device.
//!
//! A kernel with several variants has a [`Tunable`] (`crate::TUNABLES` lists them). It passes a [`Problem`], its shape, to
//! [`Gpu::choice`] and gets a [`Choice`]. The first of these applies:
//!
//! 1. the choice measured on this device by [`tune`] or read from a file, set by [`Gpu::choose`];
//! 2. the preset for this device in `presets.json`;
//! 3. the default, which is the first of the kernel's candidates.
//!
//! Only candidates are used, wherever a choice comes from. Variants sum in different orders, so the last digits of a result
//! depend on the choice. The same choices give the same results.

mod choice;
mod presets;
mod tuner;

use crate::{
    Case, Gpu, Kernel, WeightFormat,
    gpu::{AdapterSummary, Caps},
};
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};

pub use choice::{
    AttentionDecodeChoice, AttentionTileChoice, ChainChoice, Choice, GemmChoice, GemmCooperativeChoice, GemmFewChoice,
    GemmSplitsChoice, GemvChainChoice, GemvChoice, Team, Teams,
};
use presets::Rule;
pub use tuner::{Measured, tune};

/// The flag of a `Switch` that disables the presets of a kernel.
pub(crate) const PRESETS_FLAG: &str = "PRESETS";

/// Most extents of a problem.
const MOST_EXTENTS: usize = 5;

/// A kernel with several variants.
pub struct Tunable {
    /// Its name, unique among all tunables, for tables and files.
    pub name: &'static str,
    /// The kernel that a problem is dispatched to.
    pub kernel: fn(&Problem) -> &'static Kernel,
    /// Names of a problem's extents.
    pub extents: &'static [&'static str],
    /// The choices that a device allows for a problem, the default first.
    pub candidates: fn(&Caps, &Problem) -> Vec<Choice>,
    /// The work of a problem under one choice.
    pub trial: fn(&Caps, &Problem, Choice) -> Trial,
}

/// A kernel and the shape that its choice depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The kernel.
    pub tunable: &'static Tunable,
    /// Storage of the weights, if the kernel reads weights.
    pub format: Option<WeightFormat>,
    /// The values of [`Tunable::extents`], then zeros.
    pub extents: [u32; MOST_EXTENTS],
}

/// A problem under one choice, to time and to check.
pub struct Trial {
    /// The problem at its full size. Its input values and its reference are not used.
    pub case: Case,
    /// Length of each buffer, in words.
    pub lens: Vec<usize>,
    /// The buffers that a model reads from memory rather than from a cache. Each run gets other ones.
    pub rotated: Vec<usize>,
    /// Small cases that cover every variant of this problem and choice, compared with their references.
    pub checks: Vec<Case>,
}

impl PartialEq for Tunable {
    fn eq(&self, other: &Tunable) -> bool {
        self.name == other.name
    }
}

impl Eq for Tunable {}

impl Hash for Tunable {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.name.hash(hasher);
    }
}

impl fmt::Debug for Tunable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
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
        Problem { tunable, format, extents: all }
    }

    /// The extents as sizes.
    pub(crate) fn sizes(&self) -> [usize; MOST_EXTENTS] {
        self.extents.map(|extent| extent as usize)
    }

    /// The extent of this name.
    fn extent(&self, name: &str) -> Option<u32> {
        self.tunable.extents.iter().position(|other| *other == name).map(|place| self.extents[place])
    }

    /// The choices that a device allows, the default first.
    pub fn candidates(&self, caps: &Caps) -> Vec<Choice> {
        (self.tunable.candidates)(caps, self)
    }

    /// This problem under one choice.
    pub fn trial(&self, caps: &Caps, choice: Choice) -> Trial {
        (self.tunable.trial)(caps, self, choice)
    }

    /// Estimated cost: the bytes that memory could move in the time.
    pub fn cost(&self, caps: &Caps) -> u64 {
        // Devices do some tens of operations per byte.
        let cost = |choice: &Choice| self.trial(caps, *choice).case;
        self.candidates(caps).first().map(cost).map_or(0, |case| case.bytes + case.flops / 64)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.tunable.name)?;
        if let Some(format) = self.format {
            write!(f, " {format}")?;
        }
        let extents = self.tunable.extents.iter().zip(self.extents).map(|(name, extent)| format!("{name} {extent}"));
        write!(f, " {}", extents.collect::<Vec<_>>().join(", "))
    }
}

/// The choices of a device.
#[derive(Default, Clone)]
pub(crate) struct Table {
    chosen: HashMap<Problem, Choice>,
    rules: &'static [Rule],
    /// The problems looked up since [`Gpu::note_problems`], each with its count.
    noted: Option<Vec<(Problem, u32)>>,
}

impl Table {
    pub fn new(summary: &AdapterSummary) -> Table {
        Table { rules: presets::rules_of(summary), ..Table::default() }
    }

    /// The preset, or the default.
    fn preset(&self, caps: &Caps, problem: &Problem, is_off: bool) -> Choice {
        let candidates = problem.candidates(caps);
        let named = |rule: &Rule| candidates.iter().find(|choice| rule.names(problem, choice));
        let preset = self.rules.iter().filter(|_| !is_off).find_map(named);
        *preset.or(candidates.first()).expect("a problem has a candidate")
    }
}

impl Gpu {
    /// The choice for a problem on this device.
    pub fn choice(&self, problem: Problem) -> Choice {
        let mut table = self.tuning();
        if let Some(noted) = &mut table.noted {
            match noted.iter_mut().find(|(other, _)| *other == problem) {
                Some((_, count)) => *count += 1,
                None => noted.push((problem, 1)),
            }
        }
        if let Some(choice) = table.chosen.get(&problem) {
            return *choice;
        }
        let choice = table.preset(self.caps(), &problem, self.presets_are_off(problem.tunable.name));
        table.chosen.insert(problem, choice);
        choice
    }

    fn presets_are_off(&self, name: &str) -> bool {
        self.switched_off().iter().any(|switch| switch.kernel == name && switch.flag.as_deref() == Some(PRESETS_FLAG))
    }

    /// Uses `choice` for a problem from now on. Returns false, and changes nothing, if it is not a candidate.
    pub fn choose(&self, problem: Problem, choice: Choice) -> bool {
        let is_candidate = problem.candidates(self.caps()).contains(&choice);
        if is_candidate {
            self.tuning().chosen.insert(problem, choice);
        }
        is_candidate
    }

    /// Drops all measured choices. Presets and defaults apply again.
    pub fn forget_choices(&self) {
        self.tuning().chosen.clear();
    }

    /// Starts to record which problems are looked up.
    pub fn note_problems(&self) {
        self.tuning().noted = Some(Vec::new());
    }

    /// The problems since [`Gpu::note_problems`] in order of their first lookup, each with its number of lookups.
    pub fn noted_problems(&self) -> Vec<(Problem, u32)> {
        self.tuning().noted.take().unwrap_or_default()
    }

    /// The presets that differ from the default, for all problems looked up so far.
    pub(crate) fn presets(&self) -> Vec<(Problem, Choice)> {
        let table = self.tuning();
        let preset = |problem: &Problem| table.preset(self.caps(), problem, self.presets_are_off(problem.tunable.name));
        let all = table.chosen.keys().map(|problem| (*problem, preset(problem)));
        let mut presets: Vec<_> =
            all.filter(|(problem, choice)| problem.candidates(self.caps()).first() != Some(choice)).collect();
        presets.sort_by_cached_key(|(problem, _)| problem.to_string());
        presets
    }
}

/// The kernel of a problem, and the cases that check a choice.
pub(crate) fn checks_of(caps: &Caps, problem: &Problem, choice: Choice) -> (&'static Kernel, Vec<Case>) {
    ((problem.tunable.kernel)(problem), problem.trial(caps, choice).checks)
}

#[cfg(test)]
mod tests {
    use super::MOST_EXTENTS;
    use crate::TUNABLES;

    #[test]
    fn names_are_unique_and_extents_have_room() {
        let mut names: Vec<&str> = TUNABLES.iter().map(|tunable| tunable.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TUNABLES.len());
        assert!(TUNABLES.iter().all(|tunable| tunable.extents.len() <= MOST_EXTENTS));
    }
}
