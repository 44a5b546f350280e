//! [`Work`]: how much there is to do and how much of it is done, and how long what is left will take.
//!
//! A run is the same few steps again and again. What one takes is foreseen from [`Speeds`] until it has been done once, and
//! known from then on: after the first layer little is left to foresee.

use std::{collections::BTreeMap, time::Duration};

use model_format::{DecoderConfig, Param, Role, params::joined_params};

use crate::{Result, Settings, observe::Pass, pipeline::matrix_roles, speed::Speeds};

/// How many of the last times count, where something was done often: the machine may be busier than it was.
const REMEMBERED: usize = 4;

/// A kind of step. Places are those of matrices in a layer's forward pass: 0 for q, k and v, 3 for down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// The float model through a layer, on its way to the head.
    ToHead,
    /// A part of a layer: the places that the pass begins and ends at, and whether the inputs of its end are added up.
    Part { start: Option<usize>, stop: Option<usize>, observes: bool },
    /// The matrix at a place is solved.
    Matrix(usize),
    /// The embedding table or the head is solved.
    Table,
}

impl Step {
    /// The step that a pass over a layer is.
    pub(crate) fn of(pass: Pass, layer: usize, observes: bool) -> Step {
        let place = |role: Role| matrix_roles(layer).iter().position(|&r| r == role);
        Step::Part { start: pass.start.and_then(place), stop: pass.stop.and_then(place), observes }
    }

    /// Whether the model is run: what one such step took more than was foreseen, others will.
    fn runs_model(self) -> bool {
        matches!(self, Step::ToHead | Step::Part { .. })
    }
}

/// What is done and to do, by which the time left is told.
#[derive(Default)]
pub(crate) struct Work {
    kinds: BTreeMap<Step, Kind>,
    /// What is being done, and the share of it that is.
    current: Option<(Step, f64)>,
    /// The largest that was told.
    fraction: f64,
}

/// Steps that take the same.
#[derive(Default)]
struct Kind {
    /// Seconds that one takes.
    foreseen: f64,
    /// The same as it was, and how often it was measured.
    measured: f64,
    times: usize,
    done: usize,
    left: usize,
}

impl Work {
    /// All of a run, whose steps take what `foreseen` tells in seconds.
    pub(crate) fn new(steps: &Steps, foreseen: impl Fn(Step) -> f64) -> Work {
        let mut work = Work::default();
        let mut kind = |step: Step, done: usize, left: usize| {
            let kind = work.kinds.entry(step).or_insert_with(|| Kind { foreseen: foreseen(step), ..Kind::default() });
            kind.done += done;
            kind.left += left;
        };
        steps.done.iter().for_each(|&step| kind(step, 1, 0));
        steps.left.iter().for_each(|&step| kind(step, 0, 1));
        work
    }

    /// A share more of a step is done.
    pub(crate) fn advance(&mut self, step: Step, share: f64) {
        let before = self.current.filter(|(current, _)| *current == step).map_or(0.0, |(_, share)| share);
        self.current = Some((step, (before + share).min(1.0)));
    }

    /// A step is done that took so long.
    pub(crate) fn finish(&mut self, step: Step, took: Duration) {
        self.current = None;
        // What nobody planned is not there again.
        let Some(kind) = self.kinds.get_mut(&step) else { return };
        kind.times += 1;
        kind.measured += (took.as_secs_f64() - kind.measured) / kind.times.min(REMEMBERED) as f64;
        kind.done += 1;
        kind.left = kind.left.saturating_sub(1);
    }

    /// How long what is left will take.
    pub(crate) fn left(&self) -> Duration {
        let of_steps: f64 = self.kinds.iter().map(|(&step, kind)| kind.left as f64 * self.seconds(step)).sum();
        Duration::from_secs_f64((of_steps - self.of_current()).max(0.0))
    }

    /// The share of the whole that is done. It never falls.
    pub(crate) fn fraction(&mut self) -> f64 {
        let of_steps: f64 = self.kinds.iter().map(|(&step, kind)| kind.done as f64 * self.seconds(step)).sum();
        let (done, left) = (of_steps + self.of_current(), self.left().as_secs_f64());
        if done + left > 0.0 {
            self.fraction = self.fraction.max(done / (done + left)).min(1.0);
        }
        self.fraction
    }

    fn of_current(&self) -> f64 {
        self.current.map_or(0.0, |(step, share)| share * self.seconds(step))
    }

    /// Seconds that a step takes.
    fn seconds(&self, step: Step) -> f64 {
        match self.kinds.get(&step) {
            None => 0.0,
            Some(kind) if kind.times > 0 => kind.measured,
            Some(kind) => kind.foreseen * self.correction(step.runs_model()),
        }
    }

    /// What steps took that run the model, or that solve matrices, over what was foreseen.
    fn correction(&self, runs_model: bool) -> f64 {
        let alike = self.kinds.iter().filter(|(step, kind)| step.runs_model() == runs_model && kind.times > 0);
        let (mut measured, mut foreseen) = (0.0, 0.0);
        for (_, kind) in alike {
            measured += kind.times as f64 * kind.measured;
            foreseen += kind.times as f64 * kind.foreseen;
        }
        if foreseen > 0.0 { measured / foreseen } else { 1.0 }
    }
}

/// The steps of a run.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Steps {
    /// Of a run before it that was interrupted.
    pub(crate) done: Vec<Step>,
    pub(crate) left: Vec<Step>,
}

impl Steps {
    /// Of a run that finds some matrices done already. `keeps_inputs`: those of down are there again for what follows on it.
    pub(crate) fn new(
        config: &DecoderConfig,
        settings: &Settings,
        knows_head_inputs: bool,
        keeps_inputs: bool,
        is_done: impl Fn(&Param) -> bool,
    ) -> Result<Steps> {
        let mut steps = Steps::default();
        let list = joined_params(config);
        let param = |role: Role| list.iter().find(|param| param.role == role).expect("the list has every role");
        steps.add_ends(config, settings, knows_head_inputs, param, &is_done)?;
        let is_sequential = settings.true_sequential;
        let starts = if is_sequential { [None, None, Some(1), Some(2)] } else { [None; 4] };
        // These passes are wanted for more than their end's inputs.
        let changes = [false, is_sequential, is_sequential, is_sequential && keeps_inputs];
        let rest = if !is_sequential { None } else { Some(if keeps_inputs { 3 } else { 2 }) };
        for layer in 0..config.num_hidden_layers {
            for (place, param) in matrix_roles(layer).map(param).into_iter().enumerate() {
                let part = |observes| Step::Part { start: starts[place], stop: Some(place), observes };
                let is_chosen = settings.options(param)?.is_some();
                if is_chosen && !is_done(param) {
                    steps.left.extend([part(true), Step::Matrix(place)]);
                    continue;
                }
                if is_chosen {
                    steps.done.extend([part(true), Step::Matrix(place)]);
                }
                if changes[place] {
                    steps.left.push(part(false));
                }
            }
            if layer + 1 < config.num_hidden_layers {
                steps.left.push(Step::Part { start: rest, stop: None, observes: false });
            }
        }
        Ok(steps)
    }

    /// The embedding table and the head.
    fn add_ends<'p>(
        &mut self,
        config: &DecoderConfig,
        settings: &Settings,
        knows_head_inputs: bool,
        param: impl Fn(Role) -> &'p Param,
        is_done: impl Fn(&Param) -> bool,
    ) -> Result<()> {
        for (i, &role) in end_roles(config, settings).iter().enumerate() {
            let param = param(role);
            if settings.options(param)?.is_none() {
                continue;
            }
            let steps = if is_done(param) { &mut self.done } else { &mut self.left };
            if i == 0 && !knows_head_inputs {
                steps.extend(std::iter::repeat_n(Step::ToHead, config.num_hidden_layers));
            }
            steps.push(Step::Table);
        }
        Ok(())
    }
}

/// The matrices before the first layer and after the last that may be quantized, the one first that is quantized for its
/// outputs.
pub(crate) fn end_roles(config: &DecoderConfig, settings: &Settings) -> &'static [Role] {
    match settings.quantize_ends || settings.lm_head {
        false => &[],
        // A table that is also the head is wanted for its outputs; one that is not, for its rows.
        true if config.tie_word_embeddings => &[Role::Embedding],
        true => &[Role::LmHead, Role::Embedding],
    }
}

/// What a model's steps take at these speeds, in seconds.
pub(crate) fn foreseen<'a>(
    config: &'a DecoderConfig,
    seq_len: usize,
    windows: usize,
    streams: usize,
    speeds: &'a Speeds,
) -> impl Fn(Step) -> f64 + 'a {
    let tokens = (windows * seq_len) as f64;
    let [hidden, qkv, inner] = [config.hidden_size, config.qkv_size(), config.intermediate_size].map(|n| n as f64);
    let attention = (config.num_attention_heads * config.head_dim) as f64;
    // Multiplications from the input of each matrix to that of the next. Of half of a window, the mean, scores and sums.
    let parts = [hidden * qkv + seq_len as f64 * attention, attention * hidden, 2.0 * hidden * inner, inner * hidden];
    let all: f64 = parts.iter().sum();
    move |step| match step {
        Step::ToHead => tokens * speeds.rounded_forward + speeds.weights,
        Step::Part { start, stop, observes } => {
            let share = parts[start.unwrap_or(0)..stop.unwrap_or(parts.len())].iter().sum::<f64>() / all;
            let forward = streams as f64 * share * (tokens * speeds.forward + speeds.weights);
            forward + stop.filter(|_| observes).map_or(0.0, |place| tokens * speeds.sums[place])
        }
        Step::Matrix(place) => {
            let rows = [qkv, hidden, 2.0 * inner, hidden][place];
            speeds.matrices[place].seconds(rows)
        }
        Step::Table => speeds.matrices[0].seconds(config.vocab_size as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Grid, Options, speed::Solving};

    const LAYERS: usize = 3;

    fn config() -> DecoderConfig {
        let json = serde_json::json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": LAYERS,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 128, "tie_word_embeddings": true, "rope_theta": 10000.0,
        });
        DecoderConfig::from_hf(&json.to_string()).unwrap()
    }

    fn settings() -> Settings {
        let options = Options::new(Grid { bits: 4, group_size: Some(32), sym: true });
        Settings { quantize_ends: true, ..Settings::new(Options { gptaq_alpha: 1.0, ..options }) }
    }

    /// From one place to another.
    fn part(start: impl Into<Option<usize>>, stop: impl Into<Option<usize>>, observes: bool) -> Step {
        Step::Part { start: start.into(), stop: stop.into(), observes }
    }

    /// The steps of a layer that is not the last.
    fn layer() -> [Step; 9] {
        let parts = [part(None, 0, true), part(None, 1, true), part(1, 2, true), part(2, 3, true)];
        let [a, b, c, d] = parts;
        let matrix = Step::Matrix;
        [a, matrix(0), b, matrix(1), c, matrix(2), d, matrix(3), part(3, None, false)]
    }

    #[test]
    fn a_run_is_these_steps() {
        let steps = Steps::new(&config(), &settings(), false, true, |_| false).unwrap();
        let mut expected = [vec![Step::ToHead; LAYERS], vec![Step::Table]].concat();
        (0..LAYERS).for_each(|_| expected.extend(layer()));
        expected.pop();
        assert_eq!(steps, Steps { done: Vec::new(), left: expected });

        // What goes into the head is known, and inputs are not kept: gate and up are run again.
        let steps = Steps::new(&config(), &settings(), true, false, |_| false).unwrap();
        assert_eq!(steps.left.iter().filter(|&&step| step == Step::ToHead).count(), 0);
        assert_eq!(steps.left.iter().filter(|&&step| step == part(2, None, false)).count(), LAYERS - 1);
    }

    #[test]
    fn a_run_that_goes_on_has_fewer() {
        // The table, the first layer and q, k and v of the second.
        let is_done = |param: &Param| match param.role {
            Role::Embedding | Role::Qkv(1) => true,
            role => role.layer() == Some(0),
        };
        let steps = Steps::new(&config(), &settings(), false, true, is_done).unwrap();
        let solved = |steps: &[Step]| steps.iter().filter(|step| !step.runs_model()).count();
        assert_eq!((solved(&steps.done), solved(&steps.left)), (1 + 4 + 1, 3 + 4));
        // The text goes through the first layer without sums.
        let first = [part(None, 1, false), part(1, 2, false), part(2, 3, false), part(3, None, false)];
        assert_eq!(steps.left[..5], [&first[..], &[part(None, 1, true)]].concat());
        let mut work = Work::new(&steps, |_| 1.0);
        let share = work.fraction();
        assert!((share - steps.done.len() as f64 / (steps.done.len() + steps.left.len()) as f64).abs() < 1e-9);
    }

    #[test]
    fn all_at_once_a_layer_begins_again_for_each_matrix() {
        let settings = Settings { true_sequential: false, quantize_ends: false, ..settings() };
        let steps = Steps::new(&config(), &settings, false, true, |_| false).unwrap();
        let of_layer: Vec<Step> = (0..4).flat_map(|place| [part(None, place, true), Step::Matrix(place)]).collect();
        assert_eq!(steps.left[..8], of_layer);
        assert_eq!(steps.left[8], part(None, None, false));
        assert_eq!(steps.left.len(), 9 * LAYERS - 1);
    }

    #[test]
    fn what_is_foreseen_is_tokens_and_rows_times_their_seconds() {
        let speeds = Speeds {
            forward: 2e-3,
            rounded_forward: 1e-3,
            weights: 0.5,
            sums: [1e-4, 2e-4, 3e-4, 4e-4],
            matrices: [1.0, 2.0, 3.0, 4.0].map(|whole| Solving { whole, each_row: 0.01 }),
        };
        let config = config();
        let foreseen = foreseen(&config, 10, 4, 2, &speeds);
        let close = |step: Step, expected: f64| {
            let found = foreseen(step);
            assert!((found - expected).abs() < 1e-9, "{step:?}: {found}, expected {expected}");
        };
        close(Step::ToHead, 40.0 * 1e-3 + 0.5);
        close(part(None, 0, true), 40.0 * 1e-4);
        close(part(None, None, false), 2.0 * (40.0 * 2e-3 + 0.5));
        // Multiplications for a token: 64 inputs times 128 of q, k and v, 64 of o, 320 of gate and up, 160 of down; and
        // 10 * 64 for attention.
        let all = 64.0 * (128.0 + 64.0 + 320.0 + 160.0) + 640.0;
        close(part(None, 1, true), 2.0 * 0.58 * (64.0 * 128.0 + 640.0) / all + 40.0 * 2e-4);
        close(part(2, 3, true), 2.0 * 0.58 * 64.0 * 320.0 / all + 40.0 * 4e-4);
        close(part(3, None, false), 2.0 * 0.58 * 64.0 * 160.0 / all);
        close(Step::Matrix(2), 3.0 + 320.0 * 0.01);
        close(Step::Matrix(3), 4.0 + 64.0 * 0.01);
        close(Step::Table, 1.0 + 100.0 * 0.01);
    }

    /// A machine that is another than was foreseen: after a layer that is known.
    #[test]
    fn after_the_first_layer_the_time_left_is_right() {
        // Each kind is wrong by a factor of its own, and every step takes a tenth more or less than its kind.
        let kind = |step: Step| match step {
            Step::ToHead => 5,
            Step::Part { start, stop, .. } => 10 + 5 * start.map_or(0, |i| i + 1) + stop.map_or(4, |i| i),
            Step::Matrix(place) => 40 + place,
            Step::Table => 50,
        };
        let takes = |step: Step, i: usize| {
            let uneven = 1.0 + 0.1 * ((i * 7919 % 21) as f64 / 10.0 - 1.0);
            (kind(step) as f64 * if step.runs_model() { 3.0 } else { 0.3 } * uneven).max(0.01)
        };
        let steps = Steps::new(&config(), &settings(), false, true, |_| false).unwrap();
        let times: Vec<f64> = steps.left.iter().enumerate().map(|(i, &step)| takes(step, i)).collect();
        let mut work = Work::new(&steps, |step| kind(step) as f64 * (1.0 + kind(step) as f64 % 3.0));
        let (mut told, mut fraction) = (Vec::new(), 0.0);
        for (i, (&step, &time)) in steps.left.iter().zip(&times).enumerate() {
            for _ in 0..4 {
                work.advance(step, 0.25);
                assert!(work.fraction() >= fraction, "{i}");
                fraction = work.fraction();
            }
            work.finish(step, Duration::from_secs_f64(time));
            told.push(work.left().as_secs_f64() / times[i + 1..].iter().sum::<f64>());
        }
        assert!((told[0] - 1.0).abs() > 0.2, "it was not foreseen: {told:?}");
        let first = LAYERS + 1 + layer().len();
        for (i, told) in told[first..told.len() - 1].iter().enumerate() {
            assert!((told - 1.0).abs() < 0.15, "step {i} after the first layer: {told}");
        }
        assert_eq!((work.left(), work.fraction()), (Duration::ZERO, 1.0));
    }

    /// Where one matrix was solved, the others are expected to be as much slower than was foreseen.
    #[test]
    fn what_is_not_known_follows_what_is_alike() {
        let steps = Steps { done: Vec::new(), left: vec![Step::Table, Step::Matrix(0), part(None, 0, true)] };
        let mut work = Work::new(&steps, |_| 10.0);
        assert_eq!(work.left(), Duration::from_secs(30));
        work.finish(Step::Table, Duration::from_secs(20));
        assert_eq!(work.left(), Duration::from_secs(20 + 10));
        // Half of a step.
        work.advance(part(None, 0, true), 0.5);
        assert_eq!(work.left(), Duration::from_secs(20 + 5));
    }
}
