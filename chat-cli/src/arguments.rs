//! The flags of `chat-cli`.

use std::path::PathBuf;

use chat_cli::Settings;
use clap::{Args, CommandFactory, Parser, Subcommand, error::ErrorKind};
use infer_core::{ChatDefaults, DeviceChoice, KvDtype, Tokenizer, ops::candle::CpuWeights};

/// Talk to a language model in the terminal, on the GPU or the CPU.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Talk to a model, or ask it one thing with -p
    Chat(ChatArguments),
    /// Measure how surprised a model is by a text
    Perplexity(PerplexityArguments),
    /// Write the logits after each of a text's tokens, to compare engines
    Logits(LogitsArguments),
    /// Measure prefill and decode, and where their time goes
    Bench(BenchArguments),
    /// List the devices that --device can name
    Devices(DevicesArguments),
    /// Check every kernel on a device against its reference
    Selftest(SelftestArguments),
    /// Find out which forms of its kernels are fastest on a GPU
    Tune(TuneArguments),
}

/// Check every kernel on a device against its reference.
#[derive(Args)]
#[command(after_long_help = "\
A model's kernels are checked when it is first loaded onto a device. This checks all there are, in every variant that the
device may be given, on small inputs. With --full also those that run a whole layer in one dispatch, at the size of published models
and at depths of 0 to 4095 tokens, against the separate kernels of the same device; this takes some GB of memory and a minute.
Exit codes: 0 all are right, 3 some are wrong.")]
pub struct SelftestArguments {
    /// Check also at the full size of models
    #[arg(long)]
    pub full: bool,

    /// With --full: of this shape alone; may be given several times
    #[arg(long, value_name = "NAME", requires = "full")]
    pub shape: Vec<String>,

    #[arg(long, default_value = "gpu", value_name = "DEVICE", help = DeviceChoice::HELP)]
    pub device: DeviceChoice,

    /// Print a JSON object
    #[arg(long)]
    pub json: bool,

    /// Say nothing but the table
    #[arg(short, long)]
    pub quiet: bool,
}

/// How a GPU does its work.
#[derive(Args)]
pub struct KernelArguments {
    /// Multiply in f32, as a browser does, where the GPU's matrix units would multiply f16
    #[arg(long)]
    pub no_cooperative_matrix: bool,

    /// Take kernels as they come, instead of finding out once which of their forms are fastest on this GPU
    #[arg(long)]
    pub no_tune: bool,
}

/// A model, or a shape with weights that are made up.
#[derive(Args)]
pub struct SubjectArguments {
    /// An MLC folder, a Hugging Face folder, a GGUF file, a name on the hub (org/name[@revision]), or `demo`
    #[arg(required_unless_present = "shape", conflicts_with = "shape")]
    pub model: Option<String>,

    /// Random weights of a published shape, such as smollm2-135m; a name that is none lists them
    #[arg(long, value_name = "SHAPE")]
    pub shape: Option<String>,

    /// Quantization format of a shape
    #[arg(long, default_value = "q4f16_1", value_name = "FORMAT", requires = "shape")]
    pub format: String,
}

/// Find out which forms of its kernels are fastest on a GPU.
#[derive(Args)]
#[command(after_long_help = "\
This is done for what a model needs when it is first loaded onto a GPU, within five seconds, and kept in the cache folder. Here
it may take longer, be done again, and the outcome is shown: for each kernel and shape its own rule, what is taken, and the time
of a run by either.

Examples:
  chat-cli tune ./SmolLM2-135M-Instruct-q4f16_1
  chat-cli tune --shape smollm2-135m --again --seconds 30 --all")]
pub struct TuneArguments {
    #[command(flatten)]
    pub subject: SubjectArguments,

    #[arg(long, default_value = "gpu", value_name = "DEVICE", help = DeviceChoice::HELP)]
    pub device: DeviceChoice,

    #[command(flatten)]
    pub kernels: KernelArguments,

    /// Forget what was found out before about this model's work
    #[arg(long)]
    pub again: bool,

    /// Time it may take
    #[arg(long, default_value_t = 20.0, value_name = "SECONDS", value_parser = parse_size)]
    pub seconds: f64,

    /// Show every candidate
    #[arg(long)]
    pub all: bool,

    /// Print a JSON array
    #[arg(long)]
    pub json: bool,

    /// Say nothing but the table
    #[arg(short, long)]
    pub quiet: bool,
}

/// What runs, and where.
#[derive(Args)]
pub struct ModelArguments {
    /// An MLC folder, a Hugging Face folder, a GGUF file, a name on the hub (org/name[@revision]), or `demo`
    pub model: String,

    #[arg(long, default_value = "auto", value_name = "DEVICE", help = DeviceChoice::HELP)]
    pub device: DeviceChoice,

    /// How the CPU multiplies matrices in codes
    #[arg(long, value_enum, default_value_t = Products::Exact, value_name = "PRODUCTS")]
    pub cpu_weights: Products,

    #[command(flatten)]
    pub kernels: KernelArguments,

    /// Say nothing but the result and errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// What a text begins with.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PrefixToken {
    /// The token that the model's tokenizer puts before a text (BOS), where it has one
    Auto,
    /// The text
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

/// Number types of the cache.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Cache {
    /// Half the memory
    F16,
    /// Exact
    F32,
    /// A little more than a quarter: eight bits, and a scale for each 32 values
    Q8,
}

impl From<Cache> for KvDtype {
    fn from(cache: Cache) -> KvDtype {
        match cache {
            Cache::F16 => KvDtype::F16,
            Cache::F32 => KvDtype::F32,
            Cache::Q8 => KvDtype::Q8,
        }
    }
}

/// How the CPU multiplies matrices in codes. Others are multiplied in f32.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Products {
    /// In f32: the reference
    Exact,
    /// In integers, activations rounded to eight bits: several times as fast
    Integer,
}

impl From<Products> for CpuWeights {
    fn from(products: Products) -> CpuWeights {
        match products {
            Products::Exact => CpuWeights::Exact,
            Products::Integer => CpuWeights::Integer,
        }
    }
}

/// Measure how surprised a model is by a text.
#[derive(Args)]
#[command(after_long_help = "\
The text's rows (a line with its newline, or nothing where the line is blank) are joined with two newlines, unless --plain.
Its tokens are cut into windows that do not overlap; an incomplete last window is dropped; each window is run alone.
Perplexity is exp of the mean over windows of a window's mean loss.

Where the model's tokenizer puts a prefix token (BOS) before a text, each window of N tokens is this token and N - 1 tokens
of the text, all of whose losses count. Otherwise, and with --prefix-token none, it is N tokens of the text, and the losses of
all but the first count: the WikiText protocol of GPTQ's authors, which published figures follow.

Examples:
  chat-cli perplexity ./SmolLM2-135M-Instruct-q4f16_1 --text wiki.test.raw --max-windows 60 --json
  chat-cli perplexity ./Llama-3.2-1B --text wiki.test.raw --prefix-token none
  chat-cli perplexity demo --device cpu")]
pub struct PerplexityArguments {
    #[command(flatten)]
    pub model: ModelArguments,

    /// The text, a file in UTF-8 [default: a short one that comes with the program, as it is]
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,

    /// Tokens of a window; a shorter text is one window
    #[arg(long, default_value_t = 2048, value_name = "TOKENS", value_parser = parse_window)]
    pub window: usize,

    /// Measure only the first windows
    #[arg(long, value_name = "COUNT", value_parser = parse_positive)]
    pub max_windows: Option<usize>,

    /// Take the text as it is, without joining its rows
    #[arg(long, requires = "text")]
    pub plain: bool,

    /// What each window begins with
    #[arg(long, value_enum, default_value_t = PrefixToken::Auto)]
    pub prefix_token: PrefixToken,

    /// Number type of the cache [default: f16 on a GPU, f32 on the CPU]
    #[arg(long, value_enum)]
    pub cache: Option<Cache>,

    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
}

/// Write the logits after each of a text's tokens, to compare engines.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  echo '[1, 2, 3]' > ids.json
  chat-cli logits ./model --ids ids.json -o logits.safetensors --device gpu
  chat-cli logits ./model --text letter.txt -o logits.safetensors")]
pub struct LogitsArguments {
    #[command(flatten)]
    pub model: ModelArguments,

    /// A JSON array of token ids, which are run as they are
    #[arg(long, value_name = "FILE", required_unless_present = "text", conflicts_with = "text")]
    pub ids: Option<PathBuf>,

    /// A text, a file in UTF-8, instead of ids
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,

    /// What the text begins with
    #[arg(long, value_enum, default_value_t = PrefixToken::Auto, conflicts_with = "ids")]
    pub prefix_token: PrefixToken,

    /// Where to write the tensors `logits` [ids, vocabulary] in f32 and `ids` [ids] in u32
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,

    /// Number type of the cache
    #[arg(long, value_enum, default_value_t = Cache::F32)]
    pub cache: Cache,
}

/// Forms of a report.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Output {
    /// Tables in Markdown
    Md,
    /// An array of objects, samples included
    Json,
    /// Comma-separated values
    Csv,
}

/// Measure prefill and decode, and where their time goes.
#[derive(Args)]
#[command(after_long_help = "\
In the form of llama.cpp's own bench: pp512 is the prefill of a prompt of 512 tokens up to the first token after it, so its ms are
the time to first token; tg128 is the decoding of 128 tokens; @ d2048 is behind 2048 tokens. Means and deviations are of the
runs after one that is not counted.

--roofline holds each kernel of a decoded token against the bandwidth of a copy on the device; its time is that of all its runs
for a token, back to back between two timestamps.

Examples:
  chat-cli bench ./SmolLM2-135M-Instruct-q4f16_1 -p 512 -n 128 -d 0,2048
  chat-cli bench --shape smollm2-135m --roofline --at 336GB/s -o json")]
pub struct BenchArguments {
    #[command(flatten)]
    pub subject: SubjectArguments,

    /// Prompt lengths to prefill; 0 for none
    #[arg(short, long, value_delimiter = ',', default_values_t = [512], value_name = "TOKENS")]
    pub prompt: Vec<usize>,

    /// Tokens to decode; 0 for none
    #[arg(short = 'n', long, value_delimiter = ',', default_values_t = [128], value_name = "TOKENS")]
    pub decode: Vec<usize>,

    /// Tokens in the cache before
    #[arg(short, long, value_delimiter = ',', default_values_t = [0], value_name = "TOKENS")]
    pub depth: Vec<usize>,

    /// Counted runs of each
    #[arg(short, long, default_value_t = 5, value_name = "COUNT", value_parser = parse_positive)]
    pub repetitions: usize,

    /// Form of the report
    #[arg(short, long, value_enum, default_value_t = Output::Md)]
    pub output: Output,

    /// Tell where the time of a decoded token goes, kernel by kernel
    #[arg(long)]
    pub roofline: bool,

    /// Tell what that would give with memory of this bandwidth, such as 336GB/s
    #[arg(long, value_name = "BANDWIDTH", value_parser = parse_bandwidth, requires = "roofline")]
    pub at: Option<f64>,

    #[arg(long, default_value = "auto", value_name = "DEVICE", help = DeviceChoice::HELP)]
    pub device: DeviceChoice,

    /// How the CPU multiplies matrices in codes
    #[arg(long, value_enum, default_value_t = Products::Integer, value_name = "PRODUCTS")]
    pub cpu_weights: Products,

    #[command(flatten)]
    pub kernels: KernelArguments,

    /// Number type of the cache [default: f16 on a GPU, f32 on the CPU]
    #[arg(long, value_enum)]
    pub cache: Option<Cache>,

    /// Say nothing but the result and errors
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Args)]
pub struct DevicesArguments {
    /// Print a JSON array
    #[arg(long)]
    pub json: bool,
}

/// Talk to a model, or ask it one thing with -p.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  chat-cli chat ./SmolLM2-135M-Instruct-q4f16_1
  chat-cli chat HuggingFaceTB/SmolLM2-135M-Instruct -p 'What is the capital of France?' --temperature 0
  cat letter.txt | chat-cli chat model.gguf --system 'Summarize in one sentence.' -p - --json

Where an answer repeats the same words without end, give `--repetition-penalty 1.1` (or `--frequency-penalty 0.5`, or a higher
`--temperature`); in a conversation `/set repetition_penalty=1.1`. `/set` alone shows the settings and who chose each: you, the
model's files, or this program's default.

Answers go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.")]
pub struct ChatArguments {
    /// An MLC folder, a Hugging Face folder, a GGUF file, a name on the hub (org/name[@revision]), or `demo`
    pub model: String,

    /// Ask this, print the answer, and leave; `-` reads it from stdin
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,

    /// Instructions above the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Print text, token ids and statistics as a JSON object
    #[arg(long, requires = "prompt")]
    pub json: bool,

    #[arg(long, default_value = "auto", value_name = "DEVICE", help = DeviceChoice::HELP)]
    pub device: DeviceChoice,

    /// How the CPU multiplies matrices in codes
    #[arg(long, value_enum, default_value_t = Products::Integer, value_name = "PRODUCTS")]
    pub cpu_weights: Products,

    #[command(flatten)]
    pub kernels: KernelArguments,

    /// Tokens that fit in the conversation; fewer need less memory [default: the model's, at most 4096]
    #[arg(long, value_name = "TOKENS", value_parser = parse_positive)]
    pub context: Option<usize>,

    /// Memory of the device that may be taken, in GiB [default: nine tenths of what its driver says it has]
    #[arg(long, value_name = "GIB", value_parser = parse_size)]
    pub memory: Option<f64>,

    /// Number type of the cache [default: f16 on a GPU, f32 on the CPU]
    #[arg(long, value_enum)]
    pub cache: Option<Cache>,

    #[command(flatten)]
    pub sampling: SamplingArguments,

    /// Say nothing but the answers and errors
    #[arg(short, long)]
    pub quiet: bool,

    /// Read control tokens in what is typed as such, instead of as plain text
    #[arg(long)]
    pub control_tokens: bool,

    /// Do not keep what is typed for the next chat
    #[arg(long)]
    pub no_history: bool,
}

/// How the next token is chosen. What is not given is as [`ChatDefaults`] says.
#[derive(Args)]
#[command(next_help_heading = "Sampling (default: what the model's files recommend, else as noted)")]
pub struct SamplingArguments {
    /// Randomness: 0 always takes the most likely token [else: 0.7]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Choose among the most likely tokens that hold this share of the probability [else: 0.95]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Choose among this many most likely tokens; 0 is no limit [else: 0]
    #[arg(long, value_name = "COUNT")]
    top_k: Option<usize>,
    /// Leave out tokens less likely than this times the most likely [else: 0.05]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Make tokens of the conversation less likely; 1 does not. Try 1.1 where answers repeat themselves [else: 1]
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Make tokens that the answer holds less likely, by this much
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Make tokens that the answer holds less likely, by this much for each time
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// The same seed gives the same answer
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Longest answer; `none` ends it only where the context is full [default: 2048]
    #[arg(long, value_name = "TOKENS", value_parser = parse_longest)]
    max_tokens: Option<Longest>,
    /// End the answer at this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Add to a token's logit, from -100 to 100; may be given several times
    #[arg(long, value_name = "ID=BIAS", value_parser = parse_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Tell how likely each token was, and so many of the likeliest in its place; shown by --json
    #[arg(long, value_name = "COUNT")]
    logprobs: Option<usize>,
    /// When the context is full, forget what is oldest and go on, instead of ending the answer
    #[arg(long)]
    shift: bool,
    /// Guess this many tokens, at most 7, by what the text had before, and check them at once; the answer stays the same.
    /// For --temperature 0 without penalties [default: 0]
    #[arg(long, value_name = "TOKENS", default_value_t = 0, hide_default_value = true)]
    prompt_lookup: usize,
}

impl SamplingArguments {
    /// The flags over the defaults.
    pub fn over(&self, defaults: &ChatDefaults) -> chat_cli::Result<Settings> {
        let given = [
            ("temperature", self.temperature.is_some()),
            ("top_p", self.top_p.is_some()),
            ("top_k", self.top_k.is_some()),
            ("min_p", self.min_p.is_some()),
            ("repetition_penalty", self.repetition_penalty.is_some()),
            ("presence_penalty", self.presence_penalty.is_some()),
            ("frequency_penalty", self.frequency_penalty.is_some()),
            ("seed", self.seed.is_some()),
            ("max_tokens", self.max_tokens.is_some()),
            ("shift", self.shift),
            ("prompt_lookup", self.prompt_lookup > 0),
            ("stop", !self.stop.is_empty()),
        ];
        let by_user = given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect();
        Settings::new(defaults, by_user, |params| {
            params.temperature = self.temperature.unwrap_or(params.temperature);
            params.top_p = self.top_p.unwrap_or(params.top_p);
            params.top_k = self.top_k.unwrap_or(params.top_k);
            params.min_p = self.min_p.unwrap_or(params.min_p);
            params.repetition_penalty = self.repetition_penalty.unwrap_or(params.repetition_penalty);
            params.presence_penalty = self.presence_penalty.unwrap_or(params.presence_penalty);
            params.frequency_penalty = self.frequency_penalty.unwrap_or(params.frequency_penalty);
            params.seed = self.seed.or(params.seed);
            params.max_tokens = self.max_tokens.map_or(params.max_tokens, |Longest(most)| most);
            params.logit_bias.clone_from(&self.logit_bias);
            params.logprobs = self.logprobs;
            params.shift = self.shift;
            params.prompt_lookup = self.prompt_lookup;
            params.stop.clone_from(&self.stop);
        })
    }
}

impl Arguments {
    /// Reads the command line. What is out of range is wrong usage, and found before a model is loaded.
    pub fn parse() -> Arguments {
        let arguments = <Arguments as Parser>::parse();
        if let Command::Chat(chat) = &arguments.command
            && let Err(error) = chat.sampling.over(&ChatDefaults::default())
        {
            Arguments::command().error(ErrorKind::ValueValidation, error).exit();
        }
        arguments
    }
}

fn parse_positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "must be a number, 1 or more".into())
}

/// Tokens of the longest answer; `None` is no limit.
#[derive(Clone, Copy)]
struct Longest(Option<usize>);

fn parse_longest(text: &str) -> Result<Longest, String> {
    match text {
        "none" => Ok(Longest(None)),
        text => parse_positive(text).map(|tokens| Longest(Some(tokens))).map_err(|error| format!("{error}, or `none`")),
    }
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(id, bias)| Some((id.trim().parse().ok()?, bias.trim().parse().ok()?)));
    parsed.ok_or_else(|| "must be a token id and a number, such as 42=-1.5".into())
}

/// Bytes per second.
fn parse_bandwidth(text: &str) -> Result<f64, String> {
    let units = [("TB/s", 1e12), ("GB/s", 1e9), ("MB/s", 1e6)];
    let parsed = units.iter().find_map(|(unit, bytes)| {
        let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        Some(number * bytes)
    });
    let parsed = parsed.filter(|bandwidth| bandwidth.is_finite() && *bandwidth > 0.0);
    parsed.ok_or_else(|| "must be a number above 0 with its unit, such as 336GB/s".into())
}

fn parse_size(text: &str) -> Result<f64, String> {
    let size = text.parse().ok().filter(|size: &f64| size.is_finite() && *size > 0.0);
    size.ok_or_else(|| "must be a number above 0".into())
}

/// A window predicts all its tokens but the first.
fn parse_window(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 1).ok_or_else(|| "must be a number, 2 or more".into())
}
