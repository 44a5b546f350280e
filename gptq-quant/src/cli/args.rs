//! The flags of `gptq-quant`, named as in AutoGPTQ and GPTQModel, and the library settings that follow from them.

use std::path::PathBuf;

use calib_data::{Place, Source};
use clap::{ArgAction, Parser, ValueEnum};
use gptq_quant::{Grid, Options, ScaleSearch, Settings, TokenWeight};
use infer_core::{DeviceChoice, PrefixToken};
use model_format::{
    QuantFormat,
    gptq::{Rule, Rules},
};

/// Quantize a model with GPTQ.
#[derive(Parser)]
#[command(
    version,
    after_long_help = "\
Examples:
  gptq-quant HuggingFaceTB/SmolLM2-135M-Instruct -o SmolLM2-GPTQ
  gptq-quant ./model -o ./model-q4 --grid q4f16_1 --to-mlc ./model-q4f16_1-MLC
  gptq-quant ./model -o ./model-gptq --bits 4 --group-size 128 --calib text.jsonl --samples 256
  gptq-quant ./model -o ./model-gptq --calib chats.parquet=3 --calib wikitext2 --eval wikitext2

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."
)]
pub struct Args {
    /// A Hugging Face folder, a GGUF file, a name on the hub (org/name[@revision]), or `demo`
    pub model: String,
    /// Output folder of the GPTQ checkpoint
    #[arg(short, long)]
    pub output: PathBuf,
    /// The values that a weight may have
    #[arg(long, value_enum, default_value_t = GridName::Gptq)]
    pub grid: GridName,
    /// Bits per weight: 2, 3, 4 or 8 [default: 4]
    #[arg(long, value_parser = ["2", "3", "4", "8"])]
    pub bits: Option<String>,
    /// Inputs per scale; -1 for all [default: 128]
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..=1 << 20))]
    pub group_size: Option<i64>,
    /// Symmetric codes: the zero point is the middle code [default: true]
    #[arg(long)]
    pub sym: Option<bool>,
    /// Quantize columns in the order of decreasing Hessian diagonal
    #[arg(long, visible_alias = "desc-act", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub act_order: bool,
    /// Keep scales in original column order under act-order: `g_idx` stays sequential, kernels need no gather
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub static_groups: bool,
    /// Calibrate each matrix of a layer on the outputs of the quantized matrices before it in that layer
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub true_sequential: bool,
    /// Allow negative symmetric scales, so that all codes are used; only for --scale-search hessian
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub signed_scales: bool,
    /// Round scales to f16 before error feedback, which then also compensates this rounding
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub scales_first: bool,
    /// Criterion of the scale search
    #[arg(long, value_enum, default_value_t = Scales::Hessian)]
    pub scale_search: Scales,
    /// Damping: share of the Hessian's mean diagonal that is added to its diagonal [default: 0.01; 0.05 with `self`]
    #[arg(long)]
    pub damp_percent: Option<f64>,
    /// Share of the input error of earlier layers that remaining columns also compensate (GPTAQ). 0 disables it and takes less
    /// than half the time [default: 1; 0.5 with `self` and less than 98,304 tokens]
    #[arg(long, value_name = "ALPHA")]
    pub gptaq_alpha: Option<f64>,
    /// Share of the residual-stream error that shifts of `o_proj` and `down_proj` cancel; 0 disables it. Needs --gptaq-alpha
    /// above 0 [default: 0.5; 0 with --gptaq-alpha 0, or with `self` and less than 98,304 tokens]
    #[arg(long, value_name = "ALPHA")]
    pub stream_alpha: Option<f64>,
    /// Sweeps of coordinate descent over scales and codes after GPTQ (QuantEase) [default: 5; 1 with `self` and less than
    /// 98,304 tokens]
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=100), value_name = "SWEEPS")]
    pub refine: Option<u32>,
    /// Columns between two updates of all remaining columns; changes only speed
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub block_size: u32,
    /// Treatment of the embedding table and the head. GPTQ formats store no codes for them, so `gptq` stores f16 values on the
    /// grid, which every reader accepts [default: gptq with --grid q4f16_1, otherwise float]
    #[arg(long, value_enum)]
    pub embedding: Option<Ends>,
    /// Other settings for some matrices, `PATTERN:bits=8,group=32,sym=false`, or none, `PATTERN:skip`. PATTERN is a regular
    /// expression that matches the beginning of a name, such as `.*\.mlp\..*` or `model\.layers\.0\.`. The first match decides.
    /// q, k and v are one matrix here; so are gate and up
    #[arg(long = "override", value_name = "PATTERN:SETTINGS", value_parser = Rule::parse)]
    pub overrides: Vec<Rule>,
    /// Quantize the head too and store codes; for models whose head is not tied to the embedding table
    #[arg(long)]
    pub lm_head: bool,
    /// Version of the checkpoint format [default: gptq, which every reader supports; with --sym false gptq_v2, the only version
    /// in which GPTQModel reads such codes]
    #[arg(long, value_enum)]
    pub format: Option<Version>,
    /// Weights of calibration tokens in the Hessian [default: plain; equal-norm with --gptaq-alpha 0]
    #[arg(long, value_enum)]
    pub token_weight: Option<Weighting>,
    /// Additional weight of the first token of a window, as a share of the weight of all its tokens
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    pub first_token_weight: f64,
    /// Calibration text: a text file; a .jsonl or .parquet file with `text` or `messages` (also .gz); `wikitext2`, `c4` or `ptb`
    /// from the hub (the training part, or another as in `wikitext2:validation`); or `self`, text that the model writes.
    /// Repeat the flag to mix sources in equal shares, or with shares: `--calib a.jsonl=3 --calib c4=1`
    #[arg(long, default_value = "self", value_name = "SOURCE[=SHARE]")]
    pub calib: Vec<String>,
    /// Field of a file's records that has the text [default: `text` or `messages`]
    #[arg(long, value_name = "NAME")]
    pub calib_column: Option<String>,
    /// The beginning of each calibration and evaluation window: `auto`, the tokenizer's prefix (BOS if the model has one), or
    /// `none`, the WikiText protocol of GPTQ's authors
    #[arg(long, default_value_t, value_name = "PREFIX")]
    pub prefix_token: PrefixToken,
    /// Measure perplexity before and after, and the divergence of the predictions, on this text: a file, or the evaluation part
    /// of `wikitext2`, `c4` or `ptb`. It must not overlap with the calibration text
    #[arg(long, value_name = "TEXT")]
    pub eval: Option<String>,
    /// Join the rows of a raw WikiText file as GPTQ's authors do
    #[arg(long, requires = "eval")]
    pub eval_wikitext: bool,
    /// Windows of 2048 tokens to measure, from the beginning of the text
    #[arg(long, default_value_t = 16, requires = "eval", value_parser = clap::value_parser!(u32).range(1..=1 << 20), value_name = "N")]
    pub eval_windows: u32,
    /// Total number of calibration windows [default: 128; 192 with `self`]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub samples: Option<u32>,
    /// Tokens per window [default: 2048, or the model's context; 512 with `self`]
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    pub seq_len: Option<u32>,
    /// Seed of the choice of windows and of the text that the model writes
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Sampling temperature of the text that the model writes
    #[arg(long, default_value_t = 1.2, value_name = "T")]
    pub self_temperature: f32,
    /// Share of the windows of `self` that consist of random tokens
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    pub self_random: f64,
    #[arg(long, default_value = "auto", value_name = "DEVICE", help = DeviceChoice::HELP)]
    pub device: DeviceChoice,
    /// Run the calibration text in f32 even if the GPU has matrix units for f16. Hessians are always f32
    #[arg(long)]
    pub no_cooperative_matrix: bool,
    /// Limit of activations on the device, in GiB; the rest goes to host memory [default: the free memory of the device]
    #[arg(long, value_name = "GIB")]
    pub device_memory: Option<f64>,
    /// Start over: discard the state of an interrupted run, and replace a finished result. Without this flag, the same command
    /// resumes
    #[arg(long)]
    pub restart: bool,
    /// Replace a GPTQ checkpoint of another program in the output folder, and shards and tokenizer files in the folder of --to-mlc.
    /// Files with other names, and unquantized models, are still refused
    #[arg(long)]
    pub overwrite: bool,
    /// Also convert the result to an MLC folder (q4f16_1)
    #[arg(long, value_name = "FOLDER")]
    pub to_mlc: Option<PathBuf>,
    /// Conversation template of the MLC folder [default: inferred from the model]
    #[arg(long, requires = "to_mlc", value_name = "NAME")]
    pub conv_template: Option<String>,
}

/// Values that a weight may have.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GridName {
    /// Those of GPTQ checkpoints, by --bits, --group-size and --sym
    Gptq,
    /// Those of MLC's q4f16_1 (4 bits, groups of 32, symmetric), to which the checkpoint converts without loss
    #[value(name = "q4f16_1")]
    Q4f16_1,
}

/// Treatment of the embedding table and the head.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ends {
    /// Quantize by GPTQ, calibrated on the inputs of the head
    Gptq,
    /// Keep in f16
    Float,
}

/// Version of the checkpoint format.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Version {
    /// The first version: stores zero points minus one
    Gptq,
    /// The second version, of GPTQModel: stores zero points unchanged; vLLM reads it too
    #[value(name = "gptq_v2")]
    GptqV2,
}

/// Criterion of the scale search.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scales {
    /// The range of a group's weights
    Range,
    /// The shrunken range with the least sum of |error|^2.4 (`mse` of GPTQ's tools)
    Mse,
    /// The least squared error, weighted by the Hessian's diagonal
    Hessian,
}

/// Weights of calibration tokens in the Hessian.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Weighting {
    /// Equal for all tokens, so that a few tokens with huge activations do not dominate
    EqualNorm,
    /// The squared norm of the activations, as in the original GPTQ
    Plain,
}

/// Default number of windows, and tokens of each.
const WINDOWS: (usize, usize) = (128, 2048);

/// The same if the model writes some of the text.
const OWN_WINDOWS: (usize, usize) = (192, 512);

/// From this many tokens, text of the model itself is fitted about as closely as other text. This lowers perplexity by 0.9; with a
/// third of the tokens it does not (docs/laboratory/quantization.md).
const MUCH_TEXT: usize = 192 * 512;

/// Flags that contradict each other.
pub struct Contradiction(pub String);

/// Defaults of the options that fit matrices to the calibration text.
struct Fit {
    damp_percent: f64,
    gptaq_alpha: f64,
    stream_alpha: f64,
    refine: u32,
}

impl Fit {
    const REAL_TEXT: Fit = Fit { damp_percent: 0.01, gptaq_alpha: 1.0, stream_alpha: 0.5, refine: 5 };
    /// Text of the model differs from text that it will read: fit less closely.
    const OWN_TEXT: Fit = Fit { damp_percent: 0.05, gptaq_alpha: 0.5, stream_alpha: 0.0, refine: 1 };
    /// At least [`MUCH_TEXT`] tokens of it.
    const MUCH_OWN_TEXT: Fit = Fit { damp_percent: 0.05, gptaq_alpha: 1.0, stream_alpha: 0.5, refine: 5 };
}

impl Args {
    /// True if the model writes some of the calibration text.
    pub fn is_on_own_text(&self) -> bool {
        let is_own = |name: &String| Source::parse(name).is_ok_and(|source| source.place == Place::SelfGenerated);
        self.calib.iter().any(is_own)
    }

    /// Number of windows, and tokens of each. The default length is at most the model's `context`.
    pub fn windows(&self, context: usize) -> (usize, usize) {
        let (samples, seq_len) = if self.is_on_own_text() { OWN_WINDOWS } else { WINDOWS };
        let samples = self.samples.map_or(samples, |samples| samples as usize);
        (samples, self.seq_len.map_or(seq_len.min(context), |len| len as usize))
    }

    /// The defaults for the calibration text of the flags.
    fn fit(&self) -> Fit {
        let (samples, seq_len) = self.windows(usize::MAX);
        match self.is_on_own_text() {
            false => Fit::REAL_TEXT,
            true if samples * seq_len < MUCH_TEXT => Fit::OWN_TEXT,
            true => Fit::MUCH_OWN_TEXT,
        }
    }

    /// The settings of the library.
    pub fn settings(&self) -> Result<Settings, Contradiction> {
        let grid = match self.grid {
            GridName::Gptq => Grid {
                bits: self.bits.as_deref().unwrap_or("4").parse().expect("one of the listed values"),
                group_size: match self.group_size.unwrap_or(128) {
                    -1 => None,
                    0 => return Err(Contradiction("--group-size must be -1 or more than 0".into())),
                    size => Some(size as usize),
                },
                sym: self.sym.unwrap_or(true),
            },
            GridName::Q4f16_1 => {
                if self.bits.is_some() || self.group_size.is_some() || self.sym.is_some() {
                    return Err(Contradiction("--grid q4f16_1 sets --bits, --group-size and --sym itself".into()));
                }
                let format = QuantFormat::by_name("q4f16_1").expect("a format of ours");
                Grid::of_format(format).expect("a format with codes")
            }
        };
        let fit = self.fit();
        let damp_percent = self.damp_percent.unwrap_or(fit.damp_percent);
        let gptaq_alpha = self.gptaq_alpha.unwrap_or(fit.gptaq_alpha);
        if !(0.0..=1.0).contains(&damp_percent) {
            return Err(Contradiction("--damp-percent must be between 0 and 1".into()));
        }
        if !(0.0..=2.0).contains(&gptaq_alpha) {
            return Err(Contradiction("--gptaq-alpha must be between 0 and 2".into()));
        }
        let default = if gptaq_alpha == 0.0 { 0.0 } else { fit.stream_alpha };
        let stream_alpha = self.stream_alpha.unwrap_or(default);
        if !(0.0..=2.0).contains(&stream_alpha) {
            return Err(Contradiction("--stream-alpha must be between 0 and 2".into()));
        }
        if !self.true_sequential && gptaq_alpha != 0.0 {
            // All matrices of a layer would compensate the same input error.
            return Err(Contradiction(
                "--true-sequential false needs --gptaq-alpha 0: the input error would be compensated twice".into(),
            ));
        }
        if stream_alpha != 0.0 && gptaq_alpha == 0.0 {
            return Err(Contradiction(
                "--stream-alpha needs --gptaq-alpha above 0: it compares with the float model".into(),
            ));
        }
        let scale_search = match self.scale_search {
            Scales::Range => ScaleSearch::Range,
            Scales::Mse => ScaleSearch::Mse,
            Scales::Hessian => ScaleSearch::Hessian,
        };
        let matrix = Options {
            scale_search,
            signed_scales: self.signed_scales,
            scales_first: self.scales_first,
            act_order: self.act_order,
            static_groups: self.static_groups,
            damp_percent,
            gptaq_alpha,
            stream_alpha,
            refine: self.refine.unwrap_or(fit.refine) as usize,
            block_size: self.block_size as usize,
            ..Options::new(grid)
        };
        if !(0.0..=1.0).contains(&self.first_token_weight) {
            return Err(Contradiction("--first-token-weight must be between 0 and 1".into()));
        }
        if !(0.0..=2.0).contains(&self.self_temperature) {
            return Err(Contradiction("--self-temperature must be between 0 and 2".into()));
        }
        if !(0.0..=1.0).contains(&self.self_random) {
            return Err(Contradiction("--self-random must be between 0 and 1".into()));
        }
        if self.device_memory.is_some_and(|gib| !(0.0..=1e6).contains(&gib)) {
            return Err(Contradiction("--device-memory must be between 0 and 1000000".into()));
        }
        // Without GPTAQ, tokens with huge activations dominate the Hessian unless all weigh the same.
        let default = if gptaq_alpha == 0.0 { Weighting::EqualNorm } else { Weighting::Plain };
        let equal_norm = self.token_weight.unwrap_or(default) == Weighting::EqualNorm;
        let token_weight = TokenWeight { equal_norm, first_token: self.first_token_weight };
        let activation_memory = self.device_memory.map(|gib| (gib * (1u64 << 30) as f64) as usize);
        let default = if self.grid == GridName::Q4f16_1 { Ends::Gptq } else { Ends::Float };
        let quantize_ends = self.embedding.unwrap_or(default) == Ends::Gptq;
        if self.lm_head && self.embedding == Some(Ends::Gptq) {
            return Err(Contradiction("--lm-head and --embedding gptq both quantize the head".into()));
        }
        Ok(Settings {
            true_sequential: self.true_sequential,
            token_weight,
            quantize_ends,
            lm_head: self.lm_head,
            rules: Rules(self.overrides.clone()),
            v2: self.format.map_or(!grid.sym, |version| version == Version::GptqV2),
            activation_memory,
            ..Settings::new(matrix)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The defaults that follow from `flags`.
    fn check(flags: &str, [gptaq_alpha, stream_alpha, damp_percent]: [f64; 3], refine: usize) {
        let args = Args::parse_from(format!("gptq-quant model -o out {flags}").split_whitespace());
        let Ok(settings) = args.settings() else { panic!("{flags}: a contradiction") };
        let found = settings.matrix;
        assert_eq!(
            [found.gptaq_alpha, found.stream_alpha, found.damp_percent],
            [gptaq_alpha, stream_alpha, damp_percent]
        );
        assert_eq!(found.refine, refine, "{flags}");
    }

    #[test]
    fn a_model_is_fitted_less_closely_to_little_text_of_its_own() {
        check("", [1.0, 0.5, 0.05], 5);
        check("--samples 64", [0.5, 0.0, 0.05], 1);
        check("--samples 256", [1.0, 0.5, 0.05], 5);
        check("--samples 48 --seq-len 2048", [1.0, 0.5, 0.05], 5);
        check("--calib a.txt --calib self --samples 191", [0.5, 0.0, 0.05], 1);
        check("--calib a.txt", [1.0, 0.5, 0.01], 5);
        check("--calib a.txt --samples 2", [1.0, 0.5, 0.01], 5);
        check("--samples 256 --gptaq-alpha 0", [0.0, 0.0, 0.05], 5);
    }
}
