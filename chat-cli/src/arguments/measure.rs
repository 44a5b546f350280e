//! Flags of the commands that measure: `perplexity`, `logits`, `bench`.

use std::path::PathBuf;

use clap::Args;
use infer_core::PrefixToken;

use super::{
    model::{Cache, DeviceArguments, ModelArguments, SubjectArguments},
    parse,
};

/// Measure the perplexity of a text.
#[derive(Args)]
#[command(after_long_help = "\
The rows of the text (a line with its newline; nothing for a blank line) are joined with two newlines, unless --plain is set. The
tokens are cut into windows without overlap. An incomplete last window is dropped. Each window runs alone. Perplexity is exp of the
mean over windows of the mean loss of a window.

If the model's tokenizer puts a prefix token (BOS) before a text, each window of N tokens is this token and N - 1 tokens of the text,
and all their losses count. Otherwise, and with --prefix-token none, a window is N tokens of the text, and all losses except the
first count. The latter is the WikiText protocol of GPTQ's authors, which published figures follow.

Examples:
  chat-cli perplexity ./SmolLM2-135M-Instruct-q4f16_1 --text wiki.test.raw --max-windows 60 --json
  chat-cli perplexity ./Llama-3.2-1B --text wiki.test.raw --prefix-token none
  chat-cli perplexity demo --device cpu")]
pub struct PerplexityArguments {
    #[command(flatten)]
    pub model: ModelArguments,

    /// The text, a file in UTF-8 [default: a short text in the program, used as with --plain]
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,

    /// Tokens of a window; a shorter text is one window
    #[arg(long, default_value_t = 2048, value_name = "TOKENS", value_parser = parse::window)]
    pub window: usize,

    /// Measure only the first windows
    #[arg(long, value_name = "COUNT", value_parser = parse::positive)]
    pub max_windows: Option<usize>,

    /// Use the text unchanged; do not join its rows
    #[arg(long, requires = "text")]
    pub plain: bool,

    /// The beginning of each window: `auto`, the tokenizer's prefix (BOS if the model has one), or `none`
    #[arg(long, default_value_t, value_name = "PREFIX")]
    pub prefix_token: PrefixToken,

    /// Number type of the cache [default: f16 on a GPU, f32 on the CPU]
    #[arg(long, value_enum)]
    pub cache: Option<Cache>,

    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
}

/// Write the logits after each token of a text, to compare engines.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  echo '[1, 2, 3]' > ids.json
  chat-cli logits ./model --ids ids.json -o logits.safetensors --device gpu
  chat-cli logits ./model --text letter.txt -o logits.safetensors")]
pub struct LogitsArguments {
    #[command(flatten)]
    pub model: ModelArguments,

    /// A JSON array of token ids; no prefix token is added
    #[arg(long, value_name = "FILE", required_unless_present = "text", conflicts_with = "text")]
    pub ids: Option<PathBuf>,

    /// A text instead of ids, a file in UTF-8
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,

    /// The beginning of the text: `auto`, the tokenizer's prefix (BOS if the model has one), or `none`
    #[arg(long, default_value_t, value_name = "PREFIX", conflicts_with = "ids")]
    pub prefix_token: PrefixToken,

    /// The file to write, with the tensors `logits` [ids, vocabulary] in f32 and `ids` [ids] in u32
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,

    /// Number type of the cache
    #[arg(long, value_enum, default_value_t = Cache::F32)]
    pub cache: Cache,
}

/// Formats of a report.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Output {
    /// Tables in Markdown
    Md,
    /// An array of objects, samples included
    Json,
    /// Comma-separated values
    Csv,
}

/// Measure prefill and decode, and the time of each kernel.
#[derive(Args)]
#[command(after_long_help = "\
The report has the form of llama.cpp's own bench. pp512 is the prefill of a prompt of 512 tokens up to the first token after it,
so its ms are the time to first token. tg128 is the decoding of 128 tokens. @ d2048 means with 2048 tokens in the cache. Each mean
and deviation covers the counted runs; one more run before them warms up.

--roofline compares the bandwidth of each kernel of a decoded token with a copy on the device. A kernel's time covers all its
dispatches for one token, back to back between two timestamps.

--parallel measures many conversations that run together: tokens/s of all and of each, the time to first token that half and that
95 % of the streams meet, and the longest time between two tokens of a stream.

Examples:
  chat-cli bench ./SmolLM2-135M-Instruct-q4f16_1 -p 512 -n 128 -d 0,2048
  chat-cli bench --shape smollm2-135m --parallel 1,2,4,8,16,32 -p 512 -n 128
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

    /// Tokens in the cache before each run
    #[arg(short, long, value_delimiter = ',', default_values_t = [0], value_name = "TOKENS")]
    pub depth: Vec<usize>,

    /// Counted runs of each measurement
    #[arg(short, long, default_value_t = 5, value_name = "COUNT", value_parser = parse::positive)]
    pub repetitions: usize,

    /// Format of the report
    #[arg(short, long, value_enum, default_value_t = Output::Md)]
    pub output: Output,

    /// Measure each kernel of a decoded token
    #[arg(long)]
    pub roofline: bool,

    /// Measure so many streams at once, each with the first prompt length and the first decoded length
    #[arg(long, value_delimiter = ',', value_name = "STREAMS", value_parser = parse::positive, conflicts_with_all = ["roofline", "depth"])]
    pub parallel: Vec<usize>,

    /// With --parallel: the number of leading tokens that all prompts share
    #[arg(long, default_value_t = 0, value_name = "TOKENS", requires = "parallel")]
    pub shared_prefix: usize,

    /// With --parallel: one more prompt of this length arrives when half of the tokens are decoded
    #[arg(long, default_value_t = 0, value_name = "TOKENS", requires = "parallel")]
    pub late_prompt: usize,

    /// Estimate tokens/s with memory of this bandwidth, such as 336GB/s
    #[arg(long, value_name = "BANDWIDTH", value_parser = parse::bandwidth, requires = "roofline")]
    pub at: Option<f64>,

    #[command(flatten)]
    pub device: DeviceArguments,

    /// Print only the result and errors
    #[arg(short, long)]
    pub quiet: bool,
}
