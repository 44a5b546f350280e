//! Flags of the commands about devices: `devices`, `selftest`, `tune`.

use clap::Args;
use infer_core::DeviceChoice;

use super::{
    model::{KernelArguments, SubjectArguments},
    parse,
};

#[derive(Args)]
pub struct DevicesArguments {
    /// Print a JSON array
    #[arg(long)]
    pub json: bool,
}

/// Check every kernel on a device against its reference.
#[derive(Args)]
#[command(after_long_help = "\
The first load of a model onto a device checks that model's kernels. This command checks all kernels on small inputs, in every
variant that the device may use. --full also checks the kernels that run a whole layer in one dispatch, at the size of published
models and at depths of 0 to 4095 tokens, against the separate kernels of the same device. This takes some GB of memory and a minute.

Exit codes: 0 all kernels are right, 3 some are wrong.")]
pub struct SelftestArguments {
    /// Check also at the full size of models
    #[arg(long)]
    pub full: bool,

    /// With --full: check only this shape; may be given several times
    #[arg(long, value_name = "NAME", requires = "full")]
    pub shape: Vec<String>,

    #[arg(long, default_value = "gpu", value_name = "DEVICE", help = DeviceChoice::HELP)]
    pub device: DeviceChoice,

    /// Print a JSON object
    #[arg(long)]
    pub json: bool,

    /// Print only the table
    #[arg(short, long)]
    pub quiet: bool,
}

/// Autotune the kernels of a model on a GPU and show the result.
#[derive(Args)]
#[command(after_long_help = "\
The first load of a model onto a GPU autotunes its kernels within five seconds and stores the result in the cache folder. This
command may take longer, can repeat the tuning, and shows the result. For each kernel and shape, the table has the default rule,
the choice, and the time of both.

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

    /// Discard stored results for this model's kernels and measure again
    #[arg(long)]
    pub again: bool,

    /// Time limit of the measurements
    #[arg(long, default_value_t = 20.0, value_name = "SECONDS", value_parser = parse::size)]
    pub seconds: f64,

    /// Show every candidate
    #[arg(long)]
    pub all: bool,

    /// Print a JSON array
    #[arg(long)]
    pub json: bool,

    /// Print only the table
    #[arg(short, long)]
    pub quiet: bool,
}
