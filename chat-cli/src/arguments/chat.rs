//! Flags of `chat`: the model, the conversation, and sampling.

use chat_cli::Settings;
use clap::Args;
use infer_core::ChatDefaults;

use super::{
    model::DeviceArguments,
    parse::{self, TokenLimit},
};

/// Chat with a model, or get one answer with -p.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  chat-cli chat ./SmolLM2-135M-Instruct-q4f16_1
  chat-cli chat HuggingFaceTB/SmolLM2-135M-Instruct -p 'What is the capital of France?' --temperature 0
  cat letter.txt | chat-cli chat model.gguf --system 'Summarize in one sentence.' -p - --json

If an answer repeats the same words without end, use `--repetition-penalty 1.1` (or `--frequency-penalty 0.5`, or a higher
`--temperature`); in a conversation `/set repetition_penalty=1.1`. `/set` alone shows the settings and their origin: you, the
model's files, or this program's default.

Answers go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.")]
pub struct ChatArguments {
    /// An MLC folder, a Hugging Face folder, a GGUF file, a name on the hub (org/name[@revision]), or `demo`
    pub model: String,

    /// Print the answer to this prompt and exit; `-` reads the prompt from stdin
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,

    /// System message of the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Print text, token ids and statistics as a JSON object
    #[arg(long, requires = "prompt")]
    pub json: bool,

    #[command(flatten)]
    pub device: DeviceArguments,

    /// Length limit of the conversation; less needs less memory [default: the model's, at most 4096]
    #[arg(long, value_name = "TOKENS", value_parser = parse::positive)]
    pub context: Option<usize>,

    /// Limit of device memory, in GiB [default: nine tenths of the memory that the driver reports]
    #[arg(long, value_name = "GIB", value_parser = parse::size)]
    pub memory: Option<f64>,

    #[command(flatten)]
    pub sampling: SamplingArguments,

    /// Print only answers and errors
    #[arg(short, long)]
    pub quiet: bool,

    /// Parse special tokens in user input (unsafe for untrusted text)
    #[arg(long)]
    pub control_tokens: bool,

    /// Do not store input lines for the next chat
    #[arg(long)]
    pub no_history: bool,
}

/// Choice of the next token. [`ChatDefaults`] has the values of missing flags.
#[derive(Args)]
#[command(next_help_heading = "Sampling (default: recommended by the model's files, else as noted)")]
pub struct SamplingArguments {
    /// Randomness: 0 always takes the most likely token [else: 0.7]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Sample from the most likely tokens that together have this share of the probability [else: 0.95]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Sample from this many most likely tokens; 0 for no limit [else: 0]
    #[arg(long, value_name = "COUNT")]
    top_k: Option<usize>,
    /// Exclude tokens less likely than this times the most likely one [else: 0.05]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Make tokens of the conversation less likely; 1 for no penalty. Try 1.1 if answers repeat themselves [else: 1]
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Subtract this from the logits of tokens in the answer
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Subtract this from the logits of tokens in the answer, once per occurrence
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Seed of the sampler; the same seed gives the same answer
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Length limit of an answer; `none` stops only at the end of the context [default: 2048]
    #[arg(long, value_name = "TOKENS", value_parser = parse::token_limit)]
    max_tokens: Option<TokenLimit>,
    /// End the answer at this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Add to a token's logit, from -100 to 100; may be given several times
    #[arg(long, value_name = "ID=BIAS", value_parser = parse::bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Report the log probability of each token and of this many most likely alternatives; for --json
    #[arg(long, value_name = "COUNT")]
    logprobs: Option<usize>,
    /// If the context is full, drop the oldest tokens and continue instead of ending the answer
    #[arg(long)]
    shift: bool,
    /// Prompt lookup: guess up to this many tokens (at most 7) from repeated text and verify them in one step; the answer
    /// stays the same. Without penalties, biases and --logprobs [default: 0]
    #[arg(long, value_name = "TOKENS", default_value_t = 0, hide_default_value = true)]
    prompt_lookup: usize,
}

impl SamplingArguments {
    /// The settings: these flags over the defaults.
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
            params.max_tokens = self.max_tokens.map_or(params.max_tokens, |TokenLimit(tokens)| tokens);
            params.logit_bias.clone_from(&self.logit_bias);
            params.logprobs = self.logprobs;
            params.shift = self.shift;
            params.prompt_lookup = self.prompt_lookup;
            params.stop.clone_from(&self.stop);
        })
    }
}
