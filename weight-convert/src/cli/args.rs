//! The flags of `weight-convert`. `convert_weight` and `gen_config` have the names and defaults of mlc_llm.

use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use weight_convert::{ConfigOptions, WeightOptions};

/// Convert checkpoints into MLC folders.
#[derive(Parser)]
#[command(version, about)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Convert weights, configuration and tokenizer in one command
    Convert(ConvertArgs),
    /// Convert only the weights, like mlc_llm
    #[command(name = "convert_weight", visible_alias = "convert-weight")]
    ConvertWeight(ConvertWeightArgs),
    /// Write only the configuration and the tokenizer, like mlc_llm
    #[command(name = "gen_config", visible_alias = "gen-config")]
    GenConfig(GenConfigArgs),
    /// Compare an MLC folder with its checkpoint; exit code 3 if they differ
    Verify(VerifyArgs),
    /// Show the content of an MLC folder
    Inspect(InspectArgs),
}

#[derive(clap::Args)]
pub struct ConvertArgs {
    /// A Hugging Face folder (float or GPTQ), a GGUF file, a name on the hub, or `demo`
    pub source: String,
    #[command(flatten)]
    pub output: OutputArgs,
    /// The quantization format
    #[arg(long, default_value = "q4f16_1")]
    pub quantization: String,
    #[command(flatten)]
    pub weights: WeightArgs,
    #[command(flatten)]
    pub config: ConfigArgs,
    #[command(flatten)]
    pub report: ReportArgs,
}

#[derive(clap::Args)]
pub struct OutputArgs {
    /// Output folder: new, empty, or an MLC folder, which is replaced
    #[arg(short = 'o', long = "output", value_name = "OUTPUT")]
    pub folder: PathBuf,
    /// Also replace shards, indices, configuration and tokenizer files that no index lists
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(clap::Args)]
pub struct WeightArgs {
    /// If the format cannot represent a value of a GPTQ checkpoint, use the nearest and report the error
    #[arg(long)]
    pub refit: bool,
    /// Size limit of a shard in MiB; a larger tensor has its own shard
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub shard_size: u32,
    /// Write nothing; list the files and their sizes
    #[arg(long)]
    pub dry_run: bool,
}

impl WeightArgs {
    /// The options of the library.
    pub fn options(&self, overwrite: bool) -> WeightOptions {
        WeightOptions { refit: self.refit, shard_size: (self.shard_size as usize) << 20, overwrite }
    }
}

#[derive(clap::Args)]
pub struct ReportArgs {
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args)]
pub struct ConvertWeightArgs {
    /// The model: a folder, its config.json, a GGUF file, or a name on the hub
    pub config: String,
    /// The quantization format
    #[arg(long)]
    pub quantization: String,
    /// The architecture; `auto` reads it from config.json
    #[arg(long, default_value = "auto")]
    pub model_type: String,
    /// Accepted for compatibility with mlc_llm; ignored. The work runs on the CPU
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Location of the weights; `auto` is the model's
    #[arg(long, default_value = "auto")]
    pub source: String,
    /// Format of the weights
    #[arg(long, default_value = "auto")]
    pub source_format: SourceFormat,
    #[command(flatten)]
    pub output: OutputArgs,
    /// A LoRA adapter to merge (not supported)
    #[arg(long, hide = true)]
    pub lora_adapter: Option<PathBuf>,
    #[command(flatten)]
    pub weights: WeightArgs,
    #[command(flatten)]
    pub report: ReportArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceFormat {
    /// Detect the format
    Auto,
    /// PyTorch files (not supported)
    HuggingfaceTorch,
    /// Floating point in safetensors
    HuggingfaceSafetensor,
    /// GPTQ codes in safetensors
    HuggingfaceGptq,
    /// AWQ codes (not supported)
    Awq,
}

#[derive(clap::Args)]
pub struct GenConfigArgs {
    /// The model: a folder, its config.json, a GGUF file, or a name on the hub
    pub config: String,
    /// The quantization format
    #[arg(long)]
    pub quantization: String,
    /// The architecture; `auto` reads it from config.json
    #[arg(long, default_value = "auto")]
    pub model_type: String,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub options: ConfigArgs,
    #[command(flatten)]
    pub report: ReportArgs,
}

#[derive(clap::Args)]
pub struct ConfigArgs {
    /// Conversation template [default: inferred from the checkpoint]
    #[arg(long)]
    pub conv_template: Option<String>,
    /// Length limit of a conversation, in tokens
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub context_window_size: Option<u64>,
    /// Tokens in the sliding attention window, for models that have one
    #[arg(long, allow_negative_numbers = true)]
    pub sliding_window_size: Option<i64>,
    /// Tokens per prefill chunk
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub prefill_chunk_size: Option<u64>,
    /// First tokens that stay in a sliding window
    #[arg(long, allow_negative_numbers = true)]
    pub attention_sink_size: Option<i64>,
    /// GPUs that share each layer
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub tensor_parallel_shards: Option<u64>,
    /// GPUs that share the layers
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub pipeline_parallel_stages: Option<u64>,
    /// MLC's disaggregated serving
    #[arg(long, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub disaggregation: Option<bool>,
    /// Number of conversations at the same time
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..))]
    pub max_batch_size: u64,
    /// Write mlc_llm's bytes even if they are wrong for the model
    #[arg(long)]
    pub mlc_compat: bool,
}

impl ConfigArgs {
    /// The options of the library.
    pub fn options(&self, overwrite: bool) -> ConfigOptions {
        ConfigOptions {
            conv_template: self.conv_template.clone(),
            context_window_size: self.context_window_size,
            sliding_window_size: self.sliding_window_size,
            prefill_chunk_size: self.prefill_chunk_size,
            attention_sink_size: self.attention_sink_size,
            tensor_parallel_shards: self.tensor_parallel_shards,
            pipeline_parallel_stages: self.pipeline_parallel_stages,
            disaggregation: self.disaggregation,
            max_batch_size: self.max_batch_size,
            mlc_compat: self.mlc_compat,
            overwrite,
        }
    }
}

#[derive(clap::Args)]
pub struct VerifyArgs {
    /// The checkpoint: a Hugging Face folder, a GGUF file, or a name on the hub
    pub source: String,
    /// The MLC folder
    pub folder: PathBuf,
    /// The quantization format, for a folder without a configuration
    #[arg(long)]
    pub quantization: Option<String>,
    /// Fail also if a value differs from the checkpoint's by more than this
    #[arg(long)]
    pub max_error: Option<f32>,
    /// Fail also if a parameter's values differ from the checkpoint's by more than this on average
    #[arg(long)]
    pub mean_error: Option<f32>,
    #[command(flatten)]
    pub report: ReportArgs,
}

#[derive(clap::Args)]
pub struct InspectArgs {
    /// The MLC folder
    pub folder: PathBuf,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
    #[command(flatten)]
    pub report: ReportArgs,
}
