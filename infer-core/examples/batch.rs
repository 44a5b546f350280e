//! Answers several questions at once on one engine: each step runs the next token of every unfinished answer.
//!
//! ```text
//! cargo run --release -p infer-core --example batch -- MODEL_FOLDER "Name a color." "Name a fruit." "Name a city."
//! ```
//!
//! One task pulls all answers in turn here. Tasks of an executor can pull them too: see docs/embed-rust.md.

mod common;

use std::{error::Error, path::Path, process::ExitCode};

use infer_core::{Device, LoadOptions, Message, SamplingParams, block_on};

const USAGE: &str = "batch MODEL_FOLDER QUESTION...";
/// Limit of each conversation in tokens.
const CONTEXT: usize = 1024;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let Some(arguments) = common::arguments(2, USAGE) else { return Ok(ExitCode::from(2)) };
    let (folder, questions) = (Path::new(&arguments[0]), &arguments[1..]);
    let answers = block_on(async { answers(common::device().await?, folder, questions, 256).await })?;
    for (question, answer) in questions.iter().zip(answers) {
        println!("{question}\n{answer}\n");
    }
    Ok(ExitCode::SUCCESS)
}

/// The greedy answers to `questions`, of at most `max_tokens` tokens each.
pub async fn answers(
    device: Device,
    folder: &Path,
    questions: &[String],
    max_tokens: usize,
) -> Result<Vec<String>, Box<dyn Error>> {
    // The cache has room for all conversations at once.
    let options =
        LoadOptions { context: Some(CONTEXT), conversations: Some(questions.len()), ..LoadOptions::default() };
    let engine = common::load_with(folder, device, &options).await?;
    let params = SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::greedy() };

    let mut all = Vec::with_capacity(questions.len());
    for question in questions {
        all.push((engine.chat(&[Message::user(question.as_str())], params.clone())?, String::new()));
    }
    let mut is_running = true;
    while is_running {
        is_running = false;
        for (answer, text) in &mut all {
            // If there is no piece yet, this runs a step of all answers. The others then find their pieces.
            if let Some(chunk) = answer.next().await? {
                text.push_str(&chunk.text);
                is_running = true;
            }
        }
    }
    Ok(all.into_iter().map(|(_, text)| text).collect())
}
