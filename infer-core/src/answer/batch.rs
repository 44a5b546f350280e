//! [`Batch`]: the answers in progress on one model, run together step by step.
//!
//! [`Batch::step`] plans and records steps until enough are in flight, then waits for the first one and puts its tokens into the
//! outboxes of their answers. A generation that finds its outbox empty calls it; nothing runs otherwise.

use std::collections::{HashMap, VecDeque};

use web_time::Instant;

use super::{chunk::Chunk, outbox::Outbox, state::Answer};
use crate::{
    Result,
    loading::LoadedModel,
    model::{
        chunks::{FEWEST_ROWS, PREFILL_CHUNK},
        steps::{StepChoice, StepRows},
    },
    ops::Source,
    schedule::{Limits, Request, Scheduler, Work},
};

/// Fewest rows of a step on a device that is too slow for more: two chunks beside decoding rows.
const LEAST_ROWS: usize = 4 * FEWEST_ROWS;

/// The answers in progress on one model.
pub(super) struct Batch {
    model: LoadedModel,
    scheduler: Scheduler,
    answers: HashMap<u64, InBatch>,
    /// The work of each recorded step, in order.
    in_flight: VecDeque<Vec<Work>>,
    /// The start of the clock.
    begun: Instant,
    /// True while a step's results are awaited. Still true at the next step: the future was dropped, and the results are lost.
    is_waiting: bool,
}

/// An answer, and its pieces that wait for their reader.
struct InBatch {
    answer: Answer,
    way: Option<Way>,
    outbox: Outbox,
    /// Tokens without complete text yet.
    pending: Chunk,
}

/// Where the tokens of an answer are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// On the device: the most likely one.
    MostLikely,
    /// On the device, by a sampler.
    Drawn,
    /// On the host.
    Host,
}

/// The use of the cache, in pages of 32 tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheUse {
    /// All pages.
    pub pages: usize,
    /// Pages of answers in progress. The others are empty, or stored for reuse.
    pub owned_pages: usize,
}

impl Batch {
    /// No answers yet.
    pub fn new(model: LoadedModel) -> Batch {
        let scheduler = Scheduler::new(limits(&model));
        Batch {
            model,
            scheduler,
            answers: HashMap::new(),
            in_flight: VecDeque::new(),
            begun: Instant::now(),
            is_waiting: false,
        }
    }

    /// Adds an answer, whose pieces go to `outbox`.
    pub fn add(&mut self, id: u64, answer: Answer, outbox: Outbox) {
        let tokens = answer.history.clone();
        // One client: prompts run in the order of their arrival.
        let request = Request { id, client: 0, priority: 0, deadline: None, tokens };
        if let Err(error) = self.scheduler.add(request) {
            outbox.fail(error);
        }
        self.answers.insert(id, InBatch { answer, way: None, outbox, pending: Chunk::default() });
    }

    /// Ends an answer. Returns its state.
    pub fn remove(&mut self, id: u64) -> Option<Answer> {
        self.scheduler.cancel(id);
        self.model.drop_draw(id);
        self.answers.remove(&id).map(|it| it.answer)
    }

    /// Forgets all keys and values. Answers in progress compute theirs again.
    pub fn forget(&mut self) {
        self.drop_steps();
        self.scheduler.restart();
    }

    /// The use of the cache.
    pub fn cache_use(&self) -> CacheUse {
        let pages = self.model.pages();
        CacheUse { pages, owned_pages: pages - self.scheduler.free_pages() }
    }

    /// The model.
    pub fn model(&self) -> &LoadedModel {
        &self.model
    }

    /// The model, for other work than answers, after [`Batch::forget`].
    pub fn model_mut(&mut self) -> &mut LoadedModel {
        &mut self.model
    }

    /// Puts another model with the same shape in the place of this one.
    pub fn replace_model(&mut self, model: LoadedModel) {
        let former = std::mem::replace(&mut self.model, model);
        self.forget();
        self.model.take_over_from(former);
    }

    /// Runs steps until one has results, and hands them out. Does nothing without answers in progress.
    ///
    /// After an error, keys and values are forgotten: a later step computes them again.
    pub async fn step(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.is_waiting, false) {
            self.rewind();
        }
        let result = match self.step_once().await {
            // The wait of a workgroup for another one expired: run the step again, without chains.
            Err(error) if error.is_expired_wait() => {
                self.rewind();
                self.step_once().await
            }
            result => result,
        };
        self.is_waiting = false;
        if result.is_err() {
            self.forget();
        }
        result
    }

    async fn step_once(&mut self) -> Result<()> {
        let begun = Instant::now();
        if self.in_flight.is_empty() {
            // Work of one text may have used the pages.
            self.model.clear();
        }
        while self.in_flight.len() <= self.model.ahead() {
            self.guess();
            let now = self.begun.elapsed().as_secs_f64();
            let step = self.scheduler.plan(now);
            if step.work.is_empty() {
                let is_over = |it: &InBatch| it.outbox.is_over();
                let has_work = !self.in_flight.is_empty() || self.answers.values().all(is_over);
                assert!(has_work, "batch: no rows for an answer in progress");
                break;
            }
            // Texts with the rotary frequencies of long texts run apart from the others.
            let (long, short): (Vec<Work>, Vec<Work>) = step.work.into_iter().partition(|work| work.is_long);
            for works in [short, long] {
                if works.len() == 2 && works.iter().all(|work| work.rows == 1) && self.model.has_chained() {
                    // A chain runs a row in less than half the time of two rows by separate dispatches.
                    for work in works {
                        self.record(vec![work], begun).await?;
                    }
                } else if !works.is_empty() {
                    self.record(works, begun).await?;
                }
            }
        }
        self.wait(begun).await
    }

    /// Waits for the first step in flight, and hands out its results.
    async fn wait(&mut self, begun: Instant) -> Result<()> {
        if self.in_flight.is_empty() {
            return Ok(());
        }
        self.is_waiting = true;
        let results = self.model.finish_step().await?;
        self.is_waiting = false;
        let works = self.in_flight.pop_front().expect("the step that finished");
        for (work, (tokens, logits)) in works.into_iter().zip(results.tokens.into_iter().zip(results.logits)) {
            self.deliver(&work, tokens, logits, begun);
        }
        Ok(())
    }

    /// The step in flight that chooses the unknown token of a work, and the work's place there.
    fn chosen_by(&self, work: &Work) -> Option<(usize, usize)> {
        let is_before = |other: &Work| other.id == work.id && other.epoch == work.epoch;
        let place = |works: &Vec<Work>| works.iter().position(is_before);
        self.in_flight.iter().enumerate().rev().find_map(|(step, works)| Some((step, place(works)?)))
    }

    /// Records a step. All texts are short, or all are long.
    async fn record(&mut self, mut works: Vec<Work>, begun: Instant) -> Result<()> {
        let unknown = works.iter().filter(|work| work.known < work.rows);
        let mut steps: Vec<usize> = unknown.filter_map(|work| self.chosen_by(work)).map(|(step, _)| step).collect();
        steps.dedup();
        if steps.len() > 1 {
            // A kernel embeds the tokens of one step. After a change of the division into steps, wait until they are known.
            while !self.in_flight.is_empty() {
                self.wait(begun).await?;
            }
            works.retain(|work| self.scheduler.is_valid(work));
            works.iter_mut().for_each(|work| work.known = work.rows);
            steps.clear();
        }
        if works.is_empty() {
            return Ok(());
        }
        for work in works.iter().filter(|work| work.wants_token) {
            self.choose_way(work.id)?;
        }
        let mut planned = Vec::with_capacity(works.len());
        for work in &works {
            let tokens = self.scheduler.tokens_of(work);
            let mut sources: Vec<Source> = tokens.iter().map(|&id| Source::Id(id)).collect();
            if work.known < work.rows {
                let (step, i) = self.chosen_by(work).expect("the step that chooses the token");
                sources.push(Source::Chosen(self.model.chosen_row(step, i)));
            }
            let ahead = self.in_flight.iter().flatten();
            let ahead = ahead.filter(|w| w.id == work.id && w.epoch == work.epoch && w.wants_token).count();
            let it = self.answers.get_mut(&work.id).expect("an answer for each request");
            let results = if work.wants_token { work.guessed + 1 } else { 0 };
            let choice = match it.way {
                Some(Way::MostLikely) => StepChoice::MostLikely,
                Some(Way::Drawn) => {
                    let randoms = (ahead..ahead + results).map(|draw| it.answer.sampler.random(draw));
                    StepChoice::Drawn { by: work.id, randoms: randoms.collect() }
                }
                Some(Way::Host) | None => StepChoice::Logits,
            };
            let pages = self.scheduler.pages_of(work.id).to_vec();
            planned.push(StepRows { tokens: sources, past_len: work.start, pages, results, choice });
        }
        self.model.record_step(&planned, steps.first().copied(), works[0].is_long)?;
        self.in_flight.push_back(works);
        Ok(())
    }

    /// Decides where the tokens of an answer are chosen.
    fn choose_way(&mut self, id: u64) -> Result<()> {
        let it = self.answers.get_mut(&id).expect("an answer for each request");
        if it.way.is_none() {
            let Answer { params, sampler, generated, .. } = &it.answer;
            it.way = Some(if params.is_plain_greedy() {
                Way::MostLikely
            } else if params.logprobs.is_none() && self.model.set_draw(id, sampler, generated)? {
                Way::Drawn
            } else {
                Way::Host
            });
            if it.way == Some(Way::Host) {
                // The host knows the token before the next row runs.
                self.scheduler.look_ahead(id, 0);
            }
        }
        Ok(())
    }

    /// Prompt lookup: appends guesses to the answers that use it.
    fn guess(&mut self) {
        if !self.model.may_guess() {
            return;
        }
        let (context, ahead) = (self.model.context(), self.model.ahead());
        for (&id, it) in self.answers.iter_mut().filter(|(_, it)| it.answer.params.may_guess()) {
            // A guess needs all tokens before it. During a pause, the device runs ahead of the host.
            let pause = it.answer.lookup.pause();
            if it.way != Some(Way::Host) {
                self.scheduler.look_ahead(id, pause.min(ahead));
            }
            if pause == 0 && self.scheduler.may_guess(id) {
                let guess = it.answer.guess((context + 1).saturating_sub(it.answer.history.len()));
                self.scheduler.guess(id, guess);
            }
        }
    }

    /// Hands the results of a work to its answer.
    fn deliver(&mut self, work: &Work, mut tokens: Vec<u32>, mut logits: Vec<f32>, begun: Instant) {
        let is_valid = self.scheduler.is_valid(work);
        let Some(it) = self.answers.get_mut(&work.id).filter(|_| is_valid) else { return };
        it.answer.count_time(begun);
        if !work.wants_token {
            self.scheduler.done(work, &[]);
            it.answer.stats.cached_tokens = self.scheduler.cached(work.id);
            // A piece without text tells that the prompt advances.
            it.outbox.push(Chunk::default(), None, it.answer.stats);
            return;
        }
        let guess = self.scheduler.guess_of(work.id).to_vec();
        if !logits.is_empty() {
            // In a step with other answers, the device also chose tokens from these rows.
            tokens.clear();
            // Draws until a token differs from the guess.
            let mut guessed = guess.iter();
            for row in logits.chunks_exact_mut(self.model.config().vocab_size) {
                let token = it.answer.sample(row, &mut it.pending.logprobs);
                tokens.push(token);
                if guessed.next() != Some(&token) {
                    break;
                }
            }
        }
        let right = guess.iter().zip(&tokens).take_while(|(guessed, chosen)| guessed == chosen).count();
        tokens.truncate(right + 1);
        if it.way == Some(Way::Drawn) {
            tokens.iter().for_each(|_| it.answer.sampler.advance());
        }
        if work.guessed > 0 {
            it.answer.stats.guessed_tokens += work.guessed;
            it.answer.stats.right_tokens += right;
            it.answer.lookup.learn(right);
        } else {
            it.answer.lookup.pass();
        }
        self.scheduler.done(work, &tokens);
        if it.answer.generated.is_empty() {
            it.answer.stats.cached_tokens = self.scheduler.cached(work.id);
        }
        let context = self.model.context();
        let mut shifts = false;
        for token in tokens {
            // The last token has no place in the cache yet.
            let room = context.saturating_sub(it.answer.history.len());
            match it.answer.push(token, room, &mut it.pending) {
                Ok(shifted) => shifts |= shifted,
                Err(error) => it.outbox.fail(error),
            }
            if it.answer.finished.is_some() || it.outbox.is_over() || shifts {
                break;
            }
        }
        let finished = it.answer.finished;
        if !it.pending.text.is_empty() || !it.answer.has_text() || finished.is_some() {
            it.outbox.push(std::mem::take(&mut it.pending), finished, it.answer.stats);
        }
        let is_over = it.outbox.is_over();
        if shifts && !is_over {
            let history = it.answer.history.clone();
            it.way = None;
            self.scheduler.replace(work.id, history).expect("the shifted text is shorter than the context");
            self.model.drop_draw(work.id);
        }
        if is_over {
            self.scheduler.cancel(work.id);
            self.model.drop_draw(work.id);
        }
    }

    /// Drops the steps in flight. Their rows run again.
    fn rewind(&mut self) {
        self.drop_steps();
        self.scheduler.rewind();
    }

    fn drop_steps(&mut self) {
        self.in_flight.clear();
        self.model.clear();
        for (&id, it) in &mut self.answers {
            // A sampler on the device has counted the tokens of dropped steps.
            self.model.drop_draw(id);
            it.way = None;
        }
    }
}

/// The sizes of steps for a model on its device.
fn limits(model: &LoadedModel) -> Limits {
    let chunk = model.chunk_len(usize::MAX, PREFILL_CHUNK).max(LEAST_ROWS);
    Limits {
        pages: model.pages(),
        // The last token has no place in the cache.
        context: model.context() + 1,
        long_from: model.long_from(),
        rows: chunk,
        prefill: chunk,
        min_chunk: model.fewest_rows(),
        ahead: model.ahead(),
    }
}
