//! [`Steps`]: recorded steps of one or many sequences, whose results are read in order.

use std::{collections::VecDeque, ops::Range};

use super::{decoder::Decoder, kv_pool::KvPool};
use crate::{
    Result,
    ops::{Choice, Choose, RowSpan, Source},
    sampling::prompt_lookup::MOST_GUESSED,
};

/// The rows of one sequence in a step.
pub struct StepRows<'a, D> {
    /// The tokens. [`Source::Chosen`] is a row of the choices of an earlier step.
    pub tokens: &'a [Source],
    /// The position of the first row.
    pub past_len: usize,
    /// The pages of the sequence.
    pub pages: &'a [u32],
    /// The results that the caller needs.
    pub want: Want<'a, D>,
}

impl<'a, D> StepRows<'a, D> {
    fn span(&self) -> RowSpan<'a> {
        RowSpan { rows: self.tokens.len(), past_len: self.past_len, pages: self.pages }
    }
}

/// The rows of one sequence in a step, whose sampler is one of the session's: see
/// [`Session::set_draw`](super::Session::set_draw).
pub struct PlannedRows {
    /// The tokens.
    pub sources: Vec<Source>,
    /// The position of the first row.
    pub past_len: usize,
    /// The pages of the sequence.
    pub pages: Vec<u32>,
    /// The results that the caller needs.
    pub want: PlannedWant,
}

/// Results of the rows of a sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PlannedWant {
    /// None.
    Nothing,
    /// The most likely token after the last row.
    MostLikely,
    /// A token after the last row, drawn by the session's sampler with this id.
    Drawn {
        /// The id of the sampler.
        by: u64,
        /// The random number.
        random: f64,
    },
    /// The most likely token after each row.
    EachMostLikely,
    /// A token after each row, drawn by the session's sampler with this id.
    EachDrawn {
        /// The id of the sampler. It has no history.
        by: u64,
        /// The random number of each row.
        randoms: [f64; MOST_GUESSED + 1],
    },
    /// The logits after the last row.
    Logits,
    /// The logits after each row.
    EachLogits,
}

/// Results of the rows of a sequence, with the sampler.
pub enum Want<'a, D> {
    /// None.
    Nothing,
    /// A token after the last row.
    Token(Choice<'a, D>),
    /// A token after each row.
    EachToken(Vec<Choice<'a, D>>),
    /// The logits after the last row.
    Logits,
    /// The logits after each row.
    EachLogits,
}

/// Results of a step, in the order of its sequences.
pub struct StepResults {
    /// Tokens of each sequence: one, one for each row, or none.
    pub tokens: Vec<Vec<u32>>,
    /// Logits of each sequence, `[rows, vocab_size]`; empty if not wanted.
    pub logits: Vec<Vec<f32>>,
}

/// Recorded steps whose results are not read yet, in order.
pub struct Steps<O: Choose> {
    recorded: VecDeque<Recorded<O>>,
}

struct Recorded<O: Choose> {
    /// `None` if only logits are wanted.
    tokens: Option<O::Tokens>,
    /// The rows of `tokens` that belong to each sequence.
    rows: Vec<Range<usize>>,
    /// The sequences whose logits are wanted, and the logits.
    logits: Option<(Vec<usize>, O::Tensor)>,
}

impl<O: Choose> Default for Steps<O> {
    fn default() -> Steps<O> {
        Steps { recorded: VecDeque::new() }
    }
}

impl<O: Choose> Steps<O> {
    /// Number of steps whose results are not read yet.
    pub fn len(&self) -> usize {
        self.recorded.len()
    }

    /// True if all results are read.
    pub fn is_empty(&self) -> bool {
        self.recorded.is_empty()
    }

    /// Drops the results of all recorded steps.
    pub fn clear(&mut self) {
        self.recorded.clear();
    }

    /// Adds a step of one sequence whose token is chosen already.
    pub(super) fn push(&mut self, tokens: O::Tokens) {
        self.recorded.push_back(Recorded {
            tokens: Some(tokens),
            rows: vec![Range { start: 0, end: 1 }],
            logits: None,
        });
    }

    /// The row of the choices of step `step` with the token of its sequence `i`. Steps count from the first whose results are
    /// not read yet.
    pub fn chosen_row(&self, step: usize, i: usize) -> usize {
        self.recorded[step].rows[i].start
    }

    /// Records a step, and submits it. [`Source::Chosen`] refers to the choices of step `chosen`, see [`Steps::chosen_row`].
    /// `long`: the texts use the rotary frequencies of long ones.
    pub fn record(
        &mut self,
        ops: &mut O,
        decoder: &Decoder<O>,
        pool: &mut KvPool<O>,
        rows: Vec<StepRows<'_, O::Draw>>,
        chosen: Option<usize>,
        long: bool,
    ) -> Result<()> {
        let sources: Vec<Source> = rows.iter().flat_map(|rows| rows.tokens).copied().collect();
        let spans: Vec<RowSpan<'_>> = rows.iter().map(StepRows::span).collect();
        let x = decoder.embed_sources(ops, &sources, chosen.and_then(|step| self.recorded[step].tokens.as_ref()));
        let hidden = decoder.run(ops, pool, x, long, &spans);

        let mut selected = Selected { rows: Vec::new(), choices: Vec::new() };
        let mut ranges = Vec::with_capacity(rows.len());
        let mut with_logits = Vec::new();
        let mut end = 0;
        for (i, rows) in rows.into_iter().enumerate() {
            let (begin, first) = (end, selected.rows.len());
            end += rows.tokens.len();
            match rows.want {
                Want::Nothing => {}
                Want::Token(choice) => selected.add(end - 1, choice),
                Want::EachToken(choices) => {
                    (begin..end).zip(choices).for_each(|(row, choice)| selected.add(row, choice));
                }
                Want::Logits | Want::EachLogits => {
                    let begin = if matches!(rows.want, Want::Logits) { end - 1 } else { begin };
                    for row in begin..end {
                        with_logits.push((i, selected.rows.len()));
                        selected.add(row, Choice::MostLikely);
                    }
                }
            }
            ranges.push(first..selected.rows.len());
        }
        if selected.rows.is_empty() {
            // Reading a token tells when the device is done.
            selected.add(end - 1, Choice::MostLikely);
        }
        let only_logits = with_logits.len() == selected.rows.len();
        let logits = decoder.logits_of(ops, hidden, &selected.rows, end);
        let tokens = if only_logits { None } else { Some(ops.choose(&logits, &selected.choices)?) };
        let logits = (!with_logits.is_empty()).then(|| {
            let (sequences, rows): (Vec<usize>, Vec<usize>) = with_logits.into_iter().unzip();
            let logits = if rows.len() < selected.rows.len() { ops.select_rows(&logits, &rows) } else { logits };
            (sequences, logits)
        });
        self.recorded.push_back(Recorded { tokens, rows: ranges, logits });
        Ok(())
    }

    /// Waits for the results of the first recorded step. Panics if there is none.
    ///
    /// If the future is dropped, these results are lost.
    pub async fn finish(&mut self, ops: &mut O) -> Result<StepResults> {
        let Recorded { tokens, rows, logits } = self.recorded.pop_front().expect("a recorded step");
        let ids = match tokens {
            Some(tokens) => ops.tokens(tokens).await?,
            None => Vec::new(),
        };
        let mut results = StepResults {
            tokens: rows.iter().map(|rows| ids.get(rows.clone()).unwrap_or_default().to_vec()).collect(),
            logits: vec![Vec::new(); rows.len()],
        };
        if let Some((sequences, logits)) = logits {
            let values = ops.read(&logits).await?;
            for (row, i) in values.chunks_exact(values.len() / sequences.len()).zip(sequences) {
                results.logits[i].extend_from_slice(row);
            }
        }
        Ok(results)
    }
}

/// The rows whose logits are computed, and the choice from each.
struct Selected<'a, D> {
    rows: Vec<usize>,
    choices: Vec<Choice<'a, D>>,
}

impl<'a, D> Selected<'a, D> {
    fn add(&mut self, row: usize, choice: Choice<'a, D>) {
        self.rows.push(row);
        self.choices.push(choice);
    }
}
