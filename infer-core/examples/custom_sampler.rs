//! Samples by a rule of its own: reads the logits of each step, and draws among the tokens within a logit distance of the best.
//!
//! ```text
//! cargo run --release -p infer-core --example custom_sampler -- MODEL_FOLDER "Write a haiku about rust."
//! ```

mod common;

use std::{error::Error, io::Write, path::Path, process::ExitCode};

use infer_core::{Engine, Message, block_on, tokenizer::StreamDecoder};
use rand::{Rng, SeedableRng, rngs::StdRng};

const USAGE: &str = "custom_sampler MODEL_FOLDER QUESTION";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let Some(arguments) = common::arguments(2, USAGE) else { return Ok(ExitCode::from(2)) };
    block_on(async {
        let engine = common::load(Path::new(&arguments[0]), common::device().await?).await?;
        answer(&engine, &arguments[1], 256, &mut std::io::stdout()).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Writes an answer of at most `max_tokens` tokens to `out`.
pub async fn answer(
    engine: &Engine,
    question: &str,
    max_tokens: usize,
    out: &mut impl Write,
) -> Result<(), Box<dyn Error>> {
    let (tokenizer, stop_tokens) = (engine.tokenizer().clone(), engine.stop_tokens().to_vec());
    let mut stream = StreamDecoder::new(&tokenizer, true);
    let mut rng = StdRng::seed_from_u64(1);

    // The first step runs the whole prompt. Each later step runs the token before.
    let mut next = engine.chat_tokens(&[Message::user(question)])?;
    let mut model = engine.model().await;
    for _ in 0..max_tokens {
        let logits = model.logits(&next).await?; // [vocab_size]
        let token = draw(&logits, &mut rng);
        if stop_tokens.contains(&token) || model.room() == 0 {
            break;
        }
        write!(out, "{}", stream.push(token)?)?;
        out.flush()?;
        next = vec![token];
    }
    writeln!(out, "{}", stream.finish()?)?;
    Ok(())
}

/// Draws among the tokens whose logits are within 2 of the largest, by their softmax.
fn draw(logits: &[f32], rng: &mut impl Rng) -> u32 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> =
        logits.iter().map(|logit| if *logit < best - 2.0 { 0.0 } else { (logit - best).exp() }).collect();
    let mut left = rng.random_range(0.0..weights.iter().sum::<f32>());
    for (id, weight) in (0..).zip(&weights) {
        left -= weight;
        if left < 0.0 {
            return id;
        }
    }
    // Rounding can leave a rest: take the last candidate.
    weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0) as u32
}
