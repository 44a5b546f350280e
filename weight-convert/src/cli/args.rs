//! The flags. Names and defaults of `convert_weight` and `gen_config` are mlc_llm's.

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
    /// Everything in one go: weights, configuration, tokenizer
    Convert(ConvertArgs),
    /// The weights alone, as mlc_llm does
    #[command(name = "convert_weight", visible_alias = "convert-weight")]
    ConvertWeight(ConvertWeightArgs),
    /// The configuration and the tokenizer alone, as mlc_llm does
    #[command(name = "gen_config", visible_alias = "gen-config")]
    GenConfig(GenConfigArgs),
    /// Compare an MLC folder with the checkpoint it was made from; exit code 3 when they differ
    Verify(VerifyArgs),
    /// Say what is in an MLC folder
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
    /// The folder to write: a new or empty one, or an MLC folder, which is replaced
    #[arg(short = 'o', long = "output", value_name = "OUTPUT")]
    pub folder: PathBuf,
    /// Replace shards, indices, configuration and tokenizer files in that folder also where no index lists them
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(clap::Args)]
pub struct WeightArgs {
    /// Where the format cannot hold the values of a GPTQ checkpoint, take the nearest and report the error
    #[arg(long)]
    pub refit: bool,
    /// Largest file of weights, in MiB, but for single tensors that are larger
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub shard_size: u32,
    /// Write nothing: say what would be written, and how large it is
    #[arg(long)]
    pub dry_run: bool,
}

impl WeightArgs {
    /// As the library takes them.
    pub fn options(&self, overwrite: bool) -> WeightOptions {
        WeightOptions { refit: self.refit, shard_size: (self.shard_size as usize) << 20, overwrite }
    }
}

#[derive(clap::Args)]
pub struct ReportArgs {
    /// Report in JSON
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
    /// The architecture; `auto` takes what config.json says
    #[arg(long, default_value = "auto")]
    pub model_type: String,
    /// Taken for mlc_llm's sake: the work is done on the CPU
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Where the weights are; `auto` takes them from the model
    #[arg(long, default_value = "auto")]
    pub source: String,
    /// What the weights are
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
    /// Whatever is there
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
    /// The architecture; `auto` takes what config.json says
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
    /// The conversation template; told from the checkpoint where it can be
    #[arg(long)]
    pub conv_template: Option<String>,
    /// Longest conversation, in tokens
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub context_window_size: Option<u64>,
    /// Tokens that attention looks back, for models with a sliding window
    #[arg(long, allow_negative_numbers = true)]
    pub sliding_window_size: Option<i64>,
    /// Tokens of a prompt that are processed at a time
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub prefill_chunk_size: Option<u64>,
    /// First tokens that a sliding window keeps
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
    /// Conversations at a time
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..))]
    pub max_batch_size: u64,
    /// Write mlc_llm's bytes also where they are wrong for the model
    #[arg(long)]
    pub mlc_compat: bool,
}

impl ConfigArgs {
    /// As the library takes them.
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
    /// Fail also where a value is further than this from the checkpoint's
    #[arg(long)]
    pub max_error: Option<f32>,
    /// Fail also where a parameter's values are on average further than this from the checkpoint's
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
