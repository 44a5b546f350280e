//! The flags of `chat-cli`: one file per group of commands.

mod chat;
mod devices;
mod measure;
mod model;
mod parse;

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};
use infer_core::ChatDefaults;

pub use chat::ChatArguments;
pub use devices::{DevicesArguments, SelftestArguments, TuneArguments};
pub use measure::{BenchArguments, LogitsArguments, Output, PerplexityArguments};
pub use model::{Cache, KernelArguments, Products, SubjectArguments};

/// Run a language model in the terminal, on the GPU or the CPU.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Chat with a model, or get one answer with -p
    Chat(ChatArguments),
    /// Measure the perplexity of a text
    Perplexity(PerplexityArguments),
    /// Write the logits after each token of a text, to compare engines
    Logits(LogitsArguments),
    /// Measure prefill and decode, and the time of each kernel
    Bench(BenchArguments),
    /// List the devices that --device can select
    Devices(DevicesArguments),
    /// Check every kernel on a device against its reference
    Selftest(SelftestArguments),
    /// Autotune the kernels of a model on a GPU and show the result
    Tune(TuneArguments),
}

impl Arguments {
    /// Reads the command line. A value out of range is wrong usage, reported before a model is loaded.
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
