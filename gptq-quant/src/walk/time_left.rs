//! [`TimeLeft`]: the fraction of a run that is done, and the remaining time from the measured time of its stages.
//!
//! A run repeats stages of a few kinds. Most are layers with the same matrices to solve, which take about the same time. The
//! remaining time is therefore known once a stage of each remaining kind has been measured; nothing is guessed before that.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use model_format::{DecoderConfig, Param, Role, params::joined_params};

use super::layer::matrix_roles;
use crate::{error::Result, settings::Settings};

/// Latest stages of a kind in its mean, because the load of the machine may change.
const AVERAGED: usize = 4;

/// Passes over the text in a layer.
const PASSES: usize = 5;

/// A kind of stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Running the float model through a layer, for the Hessian of the head.
    FloatLayer,
    /// Solving the embedding table or the head.
    Table,
    /// A layer: which matrices, in the order of the forward pass, are solved. The last layer is counted like the others, although
    /// its outputs are not computed.
    Layer { solved: [bool; 4] },
}

impl Stage {
    /// Passes over the text and matrices to solve.
    fn steps(self) -> f64 {
        match self {
            Stage::FloatLayer | Stage::Table => 1.0,
            Stage::Layer { solved } => (PASSES + solved.iter().filter(|&&solved| solved).count()) as f64,
        }
    }
}

/// The stages of a run.
#[derive(Debug, Default)]
pub(super) struct TimeLeft {
    /// Stages to come. The first is running.
    stages: VecDeque<Stage>,
    /// Mean seconds of a stage, and how many were measured.
    measured: BTreeMap<Stage, (f64, usize)>,
    /// Steps of finished stages, including an earlier, interrupted run.
    finished_steps: f64,
    /// Finished steps of the running stage.
    running_steps: f64,
    total_steps: f64,
}

impl TimeLeft {
    /// Plans a run that skips parameters which are done. `knows_head_inputs`: the Hessian of the head is known.
    pub(super) fn plan(
        config: &DecoderConfig,
        settings: &Settings,
        knows_head_inputs: bool,
        is_done: impl Fn(&Param) -> bool,
    ) -> Result<TimeLeft> {
        let mut plan = TimeLeft::default();
        let list = joined_params(config);
        let param = |role: Role| list.iter().find(|param| param.role == role).expect("the list has every role");
        for (i, &role) in settings.end_roles(config).iter().enumerate() {
            if settings.options(param(role))?.is_none() {
                continue;
            }
            let float_layers = if i == 0 && !knows_head_inputs { config.num_hidden_layers } else { 0 };
            if is_done(param(role)) {
                plan.finished_steps += float_layers as f64 + Stage::Table.steps();
            } else {
                plan.stages.extend(std::iter::repeat_n(Stage::FloatLayer, float_layers));
                plan.stages.push_back(Stage::Table);
            }
        }
        for layer in 0..config.num_hidden_layers {
            let mut solved = [false; 4];
            for (solved, param) in solved.iter_mut().zip(matrix_roles(layer).map(param)) {
                let is_chosen = settings.options(param)?.is_some();
                *solved = is_chosen && !is_done(param);
                plan.finished_steps += f64::from(u8::from(is_chosen && !*solved));
            }
            plan.stages.push_back(Stage::Layer { solved });
        }
        plan.total_steps = plan.finished_steps + plan.stages.iter().map(|stage| stage.steps()).sum::<f64>();
        Ok(plan)
    }

    /// The running stage.
    pub(super) fn stage(&self) -> Option<Stage> {
        self.stages.front().copied()
    }

    /// Adds steps to the running stage: 1 for a matrix, the share of the text for a batch.
    pub(super) fn advance(&mut self, steps: f64) {
        self.running_steps += steps;
    }

    /// Ends the running stage, which took this time.
    pub(super) fn finish_stage(&mut self, took: Duration) {
        let stage = self.stages.pop_front().expect("a planned stage");
        let (mean, count) = self.measured.entry(stage).or_default();
        *count += 1;
        *mean += (took.as_secs_f64() - *mean) / (*count).min(AVERAGED) as f64;
        self.finished_steps += stage.steps();
        self.running_steps = 0.0;
    }

    /// The remaining time, `elapsed` after the running stage began. `None` if a kind of remaining stages was never measured.
    pub(super) fn left(&self, elapsed: Duration) -> Option<Duration> {
        let seconds = |stage: &Stage| self.measured.get(stage).map(|(mean, _)| *mean);
        let Some(running) = self.stages.front() else { return Some(Duration::ZERO) };
        let of_running = (seconds(running)? - elapsed.as_secs_f64()).max(0.0);
        let of_others = self.stages.iter().skip(1).map(seconds).sum::<Option<f64>>()?;
        Some(Duration::from_secs_f64(of_running + of_others))
    }

    /// The fraction of steps that are done, from 0 to 1. Never falls.
    pub(super) fn fraction(&self) -> f64 {
        let Some(running) = self.stages.front() else { return 1.0 };
        (self.finished_steps + self.running_steps.min(running.steps())) / self.total_steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Grid, Options};

    const LAYERS: usize = 6;

    fn plan(knows_head_inputs: bool, is_done: impl Fn(&Param) -> bool) -> TimeLeft {
        let json = serde_json::json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": LAYERS,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 128, "tie_word_embeddings": true, "rope_theta": 10000.0,
        });
        let config = DecoderConfig::from_hf(&json.to_string()).unwrap();
        let options = Options::new(Grid { bits: 4, group_size: Some(32), sym: true });
        let settings = Settings { quantize_ends: true, ..Settings::new(options) };
        TimeLeft::plan(&config, &settings, knows_head_inputs, is_done).unwrap()
    }

    #[test]
    fn resumed_runs_skip_solved_matrices_and_count_them_as_done() {
        let whole = plan(false, |_| false);
        let layer = Stage::Layer { solved: [true; 4] };
        let stages = [vec![Stage::FloatLayer; LAYERS], vec![Stage::Table], vec![layer; LAYERS]].concat();
        assert_eq!((whole.stages, whole.finished_steps), (stages.into(), 0.0));
        assert_eq!(plan(true, |_| false).stages.iter().filter(|&&stage| stage == Stage::FloatLayer).count(), 0);

        let is_done = |param: &Param| match param.role {
            Role::Embedding | Role::Qkv(1) => true,
            role => role.layer() == Some(0),
        };
        let resumed = plan(false, is_done);
        assert_eq!(resumed.stages[0], Stage::Layer { solved: [false; 4] });
        assert_eq!(resumed.stages[1], Stage::Layer { solved: [false, true, true, true] });
        assert_eq!((resumed.stages.len(), resumed.total_steps), (LAYERS, whole.total_steps));
        assert_eq!(resumed.finished_steps, (LAYERS + 1 + 4 + 1) as f64);
    }

    /// Layers whose times vary by a tenth, and slower ends.
    #[test]
    fn time_left_is_unknown_before_the_first_layer_and_right_after_it() {
        let mut work = plan(false, |_| false);
        let times: Vec<f64> = (0..work.stages.len())
            .map(|i| if i <= LAYERS { 50.0 } else { 10.0 + (i * 7919 % 21) as f64 / 10.0 - 1.0 })
            .collect();
        let mut fraction = 0.0;
        for (i, &time) in times.iter().enumerate() {
            let steps = work.stage().unwrap().steps();
            for quarter in 0..4 {
                let elapsed = time * f64::from(quarter) / 4.0;
                let left = work.left(Duration::from_secs_f64(elapsed)).map(|left| left.as_secs_f64());
                assert_eq!(left.is_some(), i > LAYERS + 1, "stage {i}");
                let expected = times[i..].iter().sum::<f64>() - elapsed;
                // Within 1.8 seconds per remaining layer of about 10 seconds.
                let tolerance = 1.8 * (times.len() - i) as f64;
                assert!(left.is_none_or(|left| (left - expected).abs() < tolerance), "{i}: {left:?}, {expected}");
                work.advance(steps / 4.0);
                assert!(work.fraction() > fraction, "stage {i}");
                fraction = work.fraction();
            }
            work.finish_stage(Duration::from_secs_f64(time));
        }
        assert_eq!((work.left(Duration::ZERO), work.fraction()), (Some(Duration::ZERO), 1.0));
    }

    #[test]
    fn later_measurements_replace_earlier_ones() {
        let mut work = plan(true, |param| param.role == Role::Embedding);
        work.finish_stage(Duration::from_secs(10));
        assert_eq!(work.left(Duration::from_secs(4)), Some(Duration::from_secs(46)));
        // A stage that takes longer than the mean adds nothing below zero.
        assert_eq!(work.left(Duration::from_secs(40)), Some(Duration::from_secs(40)));
        work.finish_stage(Duration::from_secs(20));
        assert_eq!(work.left(Duration::ZERO), Some(Duration::from_secs(60)));
        let other = plan(false, |param| param.role.layer().is_some_and(|layer| layer < 2));
        assert_eq!(other.left(Duration::ZERO), None);
    }
}
