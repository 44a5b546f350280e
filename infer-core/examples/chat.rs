//! Streams the answer to one question.
//!
//! ```text
//! cargo run --release -p infer-core --example chat -- MODEL_FOLDER "What is the capital of France?"
//! ```

mod common;

use std::{error::Error, io::Write, path::Path, process::ExitCode};

use infer_core::{Engine, Message, SamplingParams, block_on};

const USAGE: &str = "chat MODEL_FOLDER QUESTION";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let Some(arguments) = common::arguments(2, USAGE) else { return Ok(ExitCode::from(2)) };
    block_on(async {
        let engine = common::load(Path::new(&arguments[0]), common::device().await?).await?;
        let params = engine.chat_defaults().params().clone();
        answer(&engine, &arguments[1], params, &mut std::io::stdout()).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Writes the answer to `question` to `out`, piece by piece.
pub async fn answer(
    engine: &Engine,
    question: &str,
    params: SamplingParams,
    out: &mut impl Write,
) -> Result<(), Box<dyn Error>> {
    let mut answer = engine.chat(&[Message::user(question)], params)?;
    while let Some(chunk) = answer.next().await? {
        write!(out, "{}", chunk.text)?;
        out.flush()?;
    }
    writeln!(out)?;
    eprintln!("{:.0} tokens/s", answer.stats().decode_tokens_per_second());
    Ok(())
}
