//! [`Steps`]: recorded steps of one or many sequences, whose results are read in order.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
};

use super::{decoder::Decoder, kv_pool::KvPool};
use crate::{
    Result,
    ops::{Choice, Choose, RowSpan, Source},
};

/// The rows of one sequence in a step.
pub struct StepRows {
    /// The tokens. [`Source::Chosen`] is a row of the choices of an earlier step.
    pub tokens: Vec<Source>,
    /// The position of the first row.
    pub past_len: usize,
    /// The pages of the sequence.
    pub pages: Vec<u32>,
    /// Number of last rows whose results the caller needs.
    pub results: usize,
    /// The kind of these results.
    pub choice: StepChoice,
}

impl StepRows {
    fn span(&self) -> RowSpan<'_> {
        RowSpan { rows: self.tokens.len(), past_len: self.past_len, pages: &self.pages }
    }
}

/// The result of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum StepChoice {
    /// The most likely token.
    MostLikely,
    /// A token drawn by a sampler of the session: see [`Session::set_draw`](super::Session::set_draw).
    Drawn {
        /// The id of the sampler. With several rows, it has no history.
        by: u64,
        /// The random number of each row with a result.
        randoms: Vec<f64>,
    },
    /// The logits, for a choice on the host.
    Logits,
}

/// Results of a step, in the order of its sequences.
pub struct StepResults {
    /// A token for each row with a result. Those of [`StepChoice::Logits`] have no meaning, and may be absent.
    pub tokens: Vec<Vec<u32>>,
    /// Logits `[results, vocab_size]` of each sequence; empty if not wanted.
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
    /// `draws`: samplers by id. `long`: the texts use the rotary frequencies of long ones.
    #[expect(clippy::too_many_arguments, reason = "the parts of a session")]
    pub fn record(
        &mut self,
        ops: &mut O,
        decoder: &Decoder<O>,
        pool: &mut KvPool<O>,
        draws: &HashMap<u64, O::Draw>,
        rows: &[StepRows],
        chosen: Option<usize>,
        long: bool,
    ) -> Result<()> {
        let sources: Vec<Source> = rows.iter().flat_map(|rows| &rows.tokens).copied().collect();
        let spans: Vec<RowSpan<'_>> = rows.iter().map(StepRows::span).collect();
        let x = decoder.embed_sources(ops, &sources, chosen.and_then(|step| self.recorded[step].tokens.as_ref()));
        let hidden = decoder.run(ops, pool, x, long, &spans);

        // The rows with results, and the choice from each.
        let (mut selected, mut choices) = (Vec::new(), Vec::new());
        let mut ranges = Vec::with_capacity(rows.len());
        let mut with_logits = Vec::new();
        let mut end = 0;
        for (i, StepRows { tokens, results, choice, .. }) in rows.iter().enumerate() {
            let first = selected.len();
            end += tokens.len();
            for (n, row) in (end - results..end).enumerate() {
                choices.push(match choice {
                    StepChoice::MostLikely => Choice::MostLikely,
                    StepChoice::Drawn { by, randoms } => Choice::Drawn { by: &draws[by], random: randoms[n] },
                    StepChoice::Logits => {
                        with_logits.push((i, selected.len()));
                        Choice::MostLikely
                    }
                });
                selected.push(row);
            }
            ranges.push(first..selected.len());
        }
        if selected.is_empty() {
            // Reading a token tells when the device is done.
            selected.push(end - 1);
            choices.push(Choice::MostLikely);
        }
        let only_logits = with_logits.len() == selected.len();
        let logits = decoder.logits_of(ops, hidden, &selected, end);
        let tokens = if only_logits { None } else { Some(ops.choose(&logits, &choices)?) };
        let logits = (!with_logits.is_empty()).then(|| {
            let (sequences, rows): (Vec<usize>, Vec<usize>) = with_logits.into_iter().unzip();
            let logits = if rows.len() < selected.len() { ops.select_rows(&logits, &rows) } else { logits };
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
