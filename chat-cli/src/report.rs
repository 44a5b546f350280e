//! Reports: statistics of answers, the tables of `selftest` and `tune`, and their JSON.

use infer_core::{FinishReason, KernelCheck, Stats, TokenLogprobs, Tuned};
use serde_json::{Value, json};

use crate::Answer;

/// Printed after an answer that reached `max_tokens`.
pub const ENDED_BY_LENGTH: &str =
    "(the answer reached max_tokens; `--max-tokens N` or `/set max_tokens=N` raises the limit, `none` removes it)";

/// Token counts and speed of an answer, in one line.
pub fn stats_line(stats: &Stats) -> String {
    let cached = match stats.cached_tokens {
        0 => String::new(),
        cached => format!(" ({cached} of them cached)"),
    };
    let guessed = match stats.guessed_tokens {
        0 => String::new(),
        guessed => format!(" ({} of {guessed} guesses accepted)", stats.right_tokens),
    };
    format!(
        "prompt: {} tokens{cached}, prefill: {:.1} tokens/s, first token after {:.2} s; answer: {} tokens{guessed}, decode: {:.1} tokens/s",
        stats.prompt_tokens,
        stats.prefill_tokens_per_second(),
        stats.time_to_first_token,
        stats.generated_tokens,
        stats.decode_tokens_per_second(),
    )
}

/// The reason for the end of an answer, as a word.
pub fn finish_reason(answer: &Answer) -> &'static str {
    match answer.finish_reason {
        Some(FinishReason::ContextFull) => "context_full",
        Some(reason) => reason.as_str(),
        None => "interrupted",
    }
}

/// The object of `--json`.
pub fn answer_json(answer: &Answer, model: &str, device: &str) -> Value {
    let Answer { stats, .. } = answer;
    json!({
        "model": model,
        "device": device,
        "text": answer.text,
        "finish_reason": finish_reason(answer),
        "prompt_token_ids": answer.prompt_tokens,
        "token_ids": answer.tokens,
        "logprobs": (!answer.logprobs.is_empty()).then(|| logprobs_json(&answer.logprobs)),
        "stats": {
            "prompt_tokens": stats.prompt_tokens,
            "cached_tokens": stats.cached_tokens,
            "generated_tokens": stats.generated_tokens,
            "guessed_tokens": stats.guessed_tokens,
            "right_tokens": stats.right_tokens,
            "time_to_first_token_s": stats.time_to_first_token,
            "prefill_tokens_per_s": stats.prefill_tokens_per_second(),
            "decode_tokens_per_s": stats.decode_tokens_per_second(),
        },
    })
}

/// Id and log probability of each token and of its most likely alternatives.
fn logprobs_json(logprobs: &[TokenLogprobs]) -> Value {
    let pair = |&(id, logprob): &(u32, f32)| json!({"token_id": id, "logprob": logprob});
    let entry = |token: &TokenLogprobs| {
        let top: Vec<Value> = token.top.iter().map(pair).collect();
        json!({"token_id": token.id, "logprob": token.logprob, "top": top})
    };
    logprobs.iter().map(entry).collect()
}

/// The table of `chat-cli selftest`: a line for each kernel, then a line for each wrong variant.
pub fn selftest_table(lines: &[KernelCheck]) -> String {
    let mut rows = vec![["KERNEL", "VARIANTS", "RIGHT", "WORST NMSE"].map(str::to_string).to_vec()];
    for of_kernel in lines.chunk_by(|a, b| a.kernel == b.kernel) {
        let right: Vec<f64> = of_kernel.iter().filter_map(|line| line.outcome.as_ref().ok().copied()).collect();
        let worst = right.iter().copied().fold(0.0, f64::max);
        let counts = [of_kernel.len().to_string(), right.len().to_string(), format!("{worst:.1e}")];
        rows.push([vec![of_kernel[0].kernel.to_string()], counts.to_vec()].concat());
    }
    let wrong = lines.iter().filter_map(|line| {
        let reason = line.outcome.as_ref().err()?;
        Some(format!("wrong: {} [{}], {}: {reason}\n", line.kernel, line.variant, line.label))
    });
    table(&rows) + &wrong.collect::<String>()
}

/// The same as JSON, with every variant.
pub fn selftest_json(lines: &[KernelCheck], device: &str, driver: &str, seconds: f64) -> Value {
    let variant = |line: &KernelCheck| {
        json!({
            "kernel": line.kernel,
            "variant": line.variant.to_string(),
            "case": line.label,
            "nmse": line.outcome.as_ref().ok(),
            "error": line.outcome.as_ref().err(),
        })
    };
    json!({
        "device": device,
        "driver": driver,
        "right": lines.iter().filter(|line| line.outcome.is_ok()).count(),
        "wrong": lines.iter().filter(|line| line.outcome.is_err()).count(),
        "seconds": seconds,
        "variants": lines.iter().map(variant).collect::<Vec<_>>(),
    })
}

/// The table of `chat-cli tune`: a line for each kernel and shape; with `all`, also a line for each candidate.
pub fn tuned_table(tuned: &[Tuned], all: bool) -> String {
    let us = |us: Option<f64>| us.map_or("-".to_string(), |us| format!("{us:.1}"));
    let mut rows = vec![["WORK", "DEFAULT", "US", "CHOICE", "US", "GAIN"].map(str::to_string).to_vec()];
    for of in tuned {
        let gain = of.own_us.zip(of.us).map_or("-".to_string(), |(own, us)| format!("{:.2}", own / us));
        rows.push(vec![of.problem.clone(), of.own.clone(), us(of.own_us), of.chosen.clone(), us(of.us), gain]);
        for (words, time, wrong) in of.candidates.iter().filter(|_| all) {
            let wrong = wrong.as_ref().map(|why| format!("wrong: {why}")).unwrap_or_default();
            rows.push(vec![String::new(), String::new(), String::new(), words.clone(), us(*time), wrong]);
        }
    }
    table(&rows)
}

/// The same as JSON.
pub fn tuned_json(tuned: &[Tuned]) -> Value {
    let entry = |of: &Tuned| {
        let candidate = |(words, us, wrong): &(String, Option<f64>, Option<String>)| json!({"choice": words, "us": us, "error": wrong});
        json!({
            "work": of.problem,
            "own": of.own,
            "own_us": of.own_us,
            "taken": of.chosen,
            "us": of.us,
            "candidates": of.candidates.iter().map(candidate).collect::<Vec<_>>(),
        })
    };
    tuned.iter().map(entry).collect()
}

/// Rows as a table: left-aligned columns, two spaces between.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).filter_map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_are_one_line() {
        let stats = Stats {
            prompt_tokens: 50,
            cached_tokens: 40,
            generated_tokens: 21,
            guessed_tokens: 0,
            right_tokens: 0,
            time_to_first_token: 0.25,
            prefill_seconds: 0.1,
            decode_seconds: 2.0,
        };
        assert_eq!(
            stats_line(&stats),
            "prompt: 50 tokens (40 of them cached), prefill: 100.0 tokens/s, first token after 0.25 s; \
             answer: 21 tokens, decode: 10.0 tokens/s"
        );
    }

    #[test]
    fn tables_line_up() {
        let rows = [vec!["a".to_string(), "bb".into(), "c".into()], vec!["éé".into(), "".into(), "dd".into()]];
        assert_eq!(table(&rows), "a   bb  c\néé      dd\n");
    }
}
