//! Parts that the measuring programs share.

use std::process::ExitCode;

use command_line::{HintOf, finish};

/// The Rust examples of the book, compiled as doctests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/embed-rust.md")]
struct EmbedRust;

/// Prints the error and its hint, if any, and returns the exit code.
pub fn exit_with(result: anyhow::Result<()>) -> ExitCode {
    exit_with_hint(result, |_| None)
}

/// The same for a program with an error type of its own.
pub fn exit_with_hint(result: anyhow::Result<()>, own: HintOf) -> ExitCode {
    let hints: &[HintOf] = &[
        own,
        |cause| cause.downcast_ref::<chat_cli::Error>()?.hint(),
        |cause| cause.downcast_ref::<infer_core::Error>()?.hint(),
        |cause| cause.downcast_ref::<calib_data::Error>()?.hint(),
    ];
    finish(result.map(|()| ExitCode::SUCCESS), hints)
}
