//! The flags, named as in AutoGPTQ and GPTQModel.

use std::path::PathBuf;

use calib_data::{Place, Source};
use clap::{ArgAction, Parser, ValueEnum};
use gptq_quant::{Grid, Options, ScaleSearch, Settings, TokenWeight};
use infer_core::{DeviceChoice, Tokenizer};
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
    /// The folder for the GPTQ checkpoint
    #[arg(short, long)]
    pub output: PathBuf,
    /// The values a weight may take: those of GPTQ checkpoints by --bits, --group-size and --sym, or those of q4f16_1,
    /// into which the checkpoint then converts without loss
    #[arg(long, value_enum, default_value_t = GridName::Gptq)]
    pub grid: GridName,
    /// Bits per weight: 2, 3, 4 or 8 [default: 4]
    #[arg(long, value_parser = ["2", "3", "4", "8"])]
    pub bits: Option<String>,
    /// Inputs that share a scale, -1 for all [default: 128]
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..=1 << 20))]
    pub group_size: Option<i64>,
    /// Fix the zero in the middle of the codes [default: true]
    #[arg(long)]
    pub sym: Option<bool>,
    /// Quantize columns by falling Hessian diagonal
    #[arg(long, visible_alias = "desc-act", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub act_order: bool,
    /// Keep groups contiguous under act-order, which readers like better
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub static_groups: bool,
    /// Solve each matrix of a layer with the inputs that the quantized ones before it in the layer give
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub true_sequential: bool,
    /// Let symmetric scales be negative, so that all codes are of use; with --scale-search hessian
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub signed_scales: bool,
    /// Round scales to f16 before error feedback, which makes that good too, and not after it
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub scales_first: bool,
    /// How the scales are chosen
    #[arg(long, value_enum, default_value_t = Scales::Hessian)]
    pub scale_search: Scales,
    /// Share of the Hessian's mean diagonal that is added to its diagonal [default: 0.01, with text that the model writes
    /// 0.05]
    #[arg(long)]
    pub damp_percent: Option<f64>,
    /// How far later weights make good that the inputs have drifted from the float model's (GPTAQ): 0 not at all, which
    /// takes less than half as long, 1 in full [default: 1, with less than 98,304 tokens of which the model writes some 0.5]
    #[arg(long, value_name = "ALPHA")]
    pub gptaq_alpha: Option<f64>,
    /// How far the matrices whose outputs are added to the residual stream make good that it has drifted from the float
    /// model's, beyond their own inputs: 0 not at all. Needs --gptaq-alpha [default: 0.5, without --gptaq-alpha and
    /// with less than 98,304 tokens of which the model writes some 0]
    #[arg(long, value_name = "ALPHA")]
    pub stream_alpha: Option<f64>,
    /// Sweeps of coordinate descent over scales and codes after GPTQ (QuantEase) [default: 5, with less than 98,304 tokens of
    /// which the model writes some 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=100), value_name = "SWEEPS")]
    pub refine: Option<u32>,
    /// Columns between two updates of the rest; changes speed only
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub block_size: u32,
    /// What becomes of the embedding table and the head: GPTQ formats have no place for codes there, so that `gptq` stores
    /// numbers on the grid, which readers take as they are [default: gptq with --grid q4f16_1, otherwise float]
    #[arg(long, value_enum)]
    pub embedding: Option<Ends>,
    /// Quantize some matrices otherwise, or not: `PATTERN:bits=8,group=32,sym=false` or `PATTERN:skip`, where PATTERN is a
    /// regular expression that a name begins with, such as `.*\.mlp\..*` or `model\.layers\.0\.`. The first that matches
    /// decides. Queries, keys and values are quantized as one, so are gate and up
    #[arg(long = "override", value_name = "PATTERN:SETTINGS", value_parser = Rule::parse)]
    pub overrides: Vec<Rule>,
    /// Quantize the head too, in codes; for models whose head is not their embedding table
    #[arg(long)]
    pub lm_head: bool,
    /// The version of the checkpoint's format [default: gptq, which every reader knows; with --sym false gptq_v2, since
    /// GPTQModel reads such codes in that alone]
    #[arg(long, value_enum)]
    pub format: Option<Version>,
    /// How much each calibration token counts [default: plain, with --gptaq-alpha 0 equal-norm]
    #[arg(long, value_enum)]
    pub token_weight: Option<Weighting>,
    /// How much the first token of a window counts beyond the others, as a share of all of the window's tokens
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    pub first_token_weight: f64,
    /// Calibration text: a text file; a .jsonl or .parquet with `text` or `messages` (.gz too); `wikitext2`, `c4` or
    /// `ptb` from the hub, their parts to learn from or, as in `wikitext2:validation`, another; or `self` for text that
    /// the model writes. Several are mixed, in equal shares or as in `--calib a.jsonl=3 --calib c4=1`
    #[arg(long, default_value = "self", value_name = "SOURCE[=SHARE]")]
    pub calib: Vec<String>,
    /// The field of a file's records that holds the text [default: `text` or `messages`]
    #[arg(long, value_name = "NAME")]
    pub calib_column: Option<String>,
    /// What each window of text begins with, of calibration text and of --eval's
    #[arg(long, value_enum, default_value_t = PrefixToken::Auto)]
    pub prefix_token: PrefixToken,
    /// A text to measure what quantizing cost on (perplexity before and after, divergence of the predictions), of which
    /// nothing may be in the calibration text: a file, or `wikitext2`, `c4` or `ptb`, of which the part to measure with is
    /// taken
    #[arg(long, value_name = "TEXT")]
    pub eval: Option<String>,
    /// The text of --eval is a raw WikiText file: join its rows as GPTQ's authors do
    #[arg(long, requires = "eval")]
    pub eval_wikitext: bool,
    /// Windows of 2048 tokens of that text, from its beginning on
    #[arg(long, default_value_t = 16, requires = "eval", value_parser = clap::value_parser!(u32).range(1..=1 << 20), value_name = "N")]
    pub eval_windows: u32,
    /// Windows of calibration text in all [default: 128; 192 with `self`]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub samples: Option<u32>,
    /// Tokens per window [default: 2048, or the model's context; 512 with `self`]
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    pub seq_len: Option<u32>,
    /// Which windows of the text, or what the model writes
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The temperature at which the model writes: below 1 it keeps to what is likelier
    #[arg(long, default_value_t = 1.2, value_name = "T")]
    pub self_temperature: f32,
    /// The share of the windows of `self` that hold tokens of the vocabulary at random
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    pub self_random: f64,
    #[arg(long, default_value = "auto", value_name = "DEVICE", help = DeviceChoice::HELP)]
    pub device: DeviceChoice,
    /// Keep to f32 on a GPU whose matrix units would run the text in f16; Hessians are f32 in any case
    #[arg(long)]
    pub no_cooperative_matrix: bool,
    /// Activations that stay on the device, in GiB; beyond that they go to the host's memory [default: what it has left]
    #[arg(long, value_name = "GIB")]
    pub device_memory: Option<f64>,
    /// Throw away what an interrupted run has left, and make anew what is there already; without this, the same command
    /// goes on where it was
    #[arg(long)]
    pub restart: bool,
    /// Replace a GPTQ checkpoint of another program in the output folder, and shards and tokenizer files in that of --to-mlc. Files
    /// that are named like none of these, and unquantized models, are refused all the same
    #[arg(long)]
    pub overwrite: bool,
    /// Convert to an MLC folder (q4f16_1) too
    #[arg(long, value_name = "FOLDER")]
    pub to_mlc: Option<PathBuf>,
    /// The conversation template of the MLC folder; told from the model where it can be
    #[arg(long, requires = "to_mlc", value_name = "NAME")]
    pub conv_template: Option<String>,
}

/// What a window begins with.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrefixToken {
    /// The token that the model's tokenizer puts before a text (BOS), where it has one
    Auto,
    /// The text: what is measured follows the WikiText protocol of GPTQ's authors
    None,
}

impl PrefixToken {
    /// The ids that come before a text.
    pub fn ids(self, tokenizer: &Tokenizer) -> &[u32] {
        match self {
            PrefixToken::Auto => tokenizer.prefix(),
            PrefixToken::None => &[],
        }
    }
}

/// What the weights are rounded to.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GridName {
    /// By --bits, --group-size and --sym
    Gptq,
    /// MLC's q4f16_1: 4 bits, groups of 32, symmetric
    #[value(name = "q4f16_1")]
    Q4f16_1,
}

/// What becomes of the embedding table and the head.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ends {
    /// Quantized by GPTQ, with the inputs of the head
    Gptq,
    /// Left in f16
    Float,
}

/// The version of the checkpoint's format.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Version {
    /// The first, with zeros stored minus one
    Gptq,
    /// The second, of GPTQModel, with zeros as they are; vLLM reads it too
    #[value(name = "gptq_v2")]
    GptqV2,
}

/// How the scales are chosen.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scales {
    /// By the range of a group's weights
    Range,
    /// Of shrunken ranges, that with the least error of the weights to the power of 2.4 (`mse` of GPTQ's tools)
    Mse,
    /// With the least squared error, each weight's multiplied by its entry in the Hessian's diagonal
    Hessian,
}

/// How much each calibration token counts.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Weighting {
    /// All the same, so that the few tokens with huge activations do not crowd out the others
    EqualNorm,
    /// By the square of their activations, as the first GPTQ
    Plain,
}

/// Windows and their tokens, where the user does not say.
const WINDOWS: (usize, usize) = (128, 2048);

/// The same, where the model writes some of them itself.
const OWN_WINDOWS: (usize, usize) = (192, 512);

/// Tokens of text, some of it the model's own, from which on matrices are fitted to it about as closely as to other text: with so
/// many that is better by 0.9 in perplexity, with a third as many no better (docs/laboratory/quantization.md).
const MUCH_TEXT: usize = 192 * 512;

/// Flags that contradict each other.
pub struct Contradiction(pub String);

/// How closely matrices are fitted to the calibration text, where the user does not say.
struct Fit {
    damp_percent: f64,
    gptaq_alpha: f64,
    stream_alpha: f64,
    refine: u32,
}

impl Fit {
    const REAL_TEXT: Fit = Fit { damp_percent: 0.01, gptaq_alpha: 1.0, stream_alpha: 0.5, refine: 5 };
    /// What a model writes is not what it will read: less closely is better.
    const OWN_TEXT: Fit = Fit { damp_percent: 0.05, gptaq_alpha: 0.5, stream_alpha: 0.0, refine: 1 };
    /// Unless there is much of it.
    const MUCH_OWN_TEXT: Fit = Fit { damp_percent: 0.05, gptaq_alpha: 1.0, stream_alpha: 0.5, refine: 5 };
}

impl Args {
    /// Whether the model writes some of the calibration text.
    pub fn is_on_own_text(&self) -> bool {
        let is_own = |name: &String| Source::parse(name).is_ok_and(|source| source.place == Place::SelfGenerated);
        self.calib.iter().any(is_own)
    }

    /// Windows and the tokens of each, which fit into the model's `context`.
    pub fn windows(&self, context: usize) -> (usize, usize) {
        let (samples, seq_len) = if self.is_on_own_text() { OWN_WINDOWS } else { WINDOWS };
        let samples = self.samples.map_or(samples, |samples| samples as usize);
        (samples, self.seq_len.map_or(seq_len.min(context), |len| len as usize))
    }

    /// How closely matrices are fitted to it, where the user does not say.
    fn fit(&self) -> Fit {
        let (samples, seq_len) = self.windows(usize::MAX);
        match self.is_on_own_text() {
            false => Fit::REAL_TEXT,
            true if samples * seq_len < MUCH_TEXT => Fit::OWN_TEXT,
            true => Fit::MUCH_OWN_TEXT,
        }
    }

    /// As the library takes them.
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
            // Each matrix would make good what those before it have made good.
            return Err(Contradiction(
                "--true-sequential false needs --gptaq-alpha 0: drift would be made good twice".into(),
            ));
        }
        if stream_alpha != 0.0 && gptaq_alpha == 0.0 {
            return Err(Contradiction("--stream-alpha needs the float model beside the other: --gptaq-alpha".into()));
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
        // Without the correction of drift a few huge tokens would spoil the others.
        let default = if gptaq_alpha == 0.0 { Weighting::EqualNorm } else { Weighting::Plain };
        let equal_norm = self.token_weight.unwrap_or(default) == Weighting::EqualNorm;
        let token_weight = TokenWeight { equal_norm, first_token: self.first_token_weight };
        let activation_memory = self.device_memory.map(|gib| (gib * (1u64 << 30) as f64) as usize);
        let default = if self.grid == GridName::Q4f16_1 { Ends::Gptq } else { Ends::Float };
        let quantize_ends = self.embedding.unwrap_or(default) == Ends::Gptq;
        if self.lm_head && self.embedding == Some(Ends::Gptq) {
            return Err(Contradiction("--lm-head and --embedding gptq both say what becomes of the head".into()));
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

    /// What the matrices are fitted with where only this is said.
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
    fn a_model_is_fitted_less_closely_to_a_little_text_of_its_own() {
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
