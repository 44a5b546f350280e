//! [`Scheduler`]: the rows of every step of continuous batching.
//!
//! A request waits, then runs, until the caller cancels it. A running sequence has a table of pages. Each step has a row for
//! every sequence that decodes. Chunks of prompts fill the rest of the step.
//!
//! - **Order.** Prompts are served by priority. Among equals, preempted sequences come first. Then comes the client with the
//!   fewest rows so far, see `infer-core/src/schedule/clients.rs`. Then comes the first arrival.
//! - **Pages.** A sequence gets the pages of its whole text when it starts to run, and more as it decodes. If the pool is
//!   full, the sequence of the lowest priority is preempted, the last arrival among equals. It gives up its pages and waits
//!   again, with its tokens. Stored pages shorten its second prefill. The first arrival of the highest priority always runs.
//! - **Equal prompts.** A request waits while a running sequence computes pages that the request needs too.
//! - **Lookahead.** Steps are planned before earlier ones are finished. The device runs steps in order. Therefore pages can
//!   change owners while work is in flight: the new owner's rows run later. An epoch marks the work in flight of a
//!   sequence. A new epoch makes it void.
//!
//! `infer-core/src/schedule/pages/mod.rs` has the pages, `infer-core/src/schedule/simulation.rs` the test of both.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
};

use super::{
    clients::Clients,
    pages::{PAGE, Pages, Table},
    step::{Limits, Request, Step, Work},
};
use crate::error::{Error, Result};

/// Requests, their pages, and the order of their work.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    pages: Pages,
    sequences: BTreeMap<u64, Sequence>,
    clients: Clients,
    /// The next arrival or epoch.
    next: u64,
}

/// A present request.
#[derive(Debug)]
struct Sequence {
    client: u64,
    priority: i32,
    deadline: Option<f64>,
    arrival: u64,
    epoch: u64,
    /// The prompt and the chosen tokens.
    tokens: Vec<u32>,
    /// Present while the sequence runs.
    table: Option<Table>,
    /// Number of rows that ran.
    written: usize,
    /// Number of rows that ran or are in flight.
    planned: usize,
    /// Number of tokens that work in flight chooses.
    wanted: usize,
    /// Guessed tokens after `tokens`, to check in the next step.
    guess: Vec<u32>,
    /// Most rows that are planned before their token is known.
    ahead: usize,
    /// Number of prompt tokens that were found stored.
    cached: usize,
    has_started: bool,
    has_answered: bool,
}

/// Priority and age. The greatest rank is preempted first.
type Rank = (Reverse<i32>, u64);

impl Sequence {
    fn rank(&self) -> Rank {
        (Reverse(self.priority), self.arrival)
    }

    /// The known tokens of some rows.
    fn tokens_of(&self, start: usize, rows: usize) -> Vec<u32> {
        self.tokens.iter().chain(&self.guess).skip(start).take(rows).copied().collect()
    }

    /// Position after the last row that can be planned.
    fn end(&self, limits: &Limits) -> usize {
        (self.tokens.len() + self.wanted).min(limits.context - 1)
    }

    /// Most prompt tokens that are taken from stored pages: the last token runs, in a chunk of enough rows.
    fn most_stored(&self, limits: &Limits) -> usize {
        self.tokens.len().saturating_sub(limits.min_chunk)
    }
}

impl Scheduler {
    /// A scheduler without requests. Panics if a step has no room for two chunks beside a decoding row.
    pub(crate) fn new(mut limits: Limits) -> Scheduler {
        let two_chunks = 2 * limits.min_chunk.max(1);
        assert!(limits.prefill >= two_chunks && limits.rows > two_chunks, "too few rows: {limits:?}");
        limits.context = limits.context.min(limits.pages * PAGE + 1);
        assert!(limits.context > 1, "too short a context: {limits:?}");
        let pages = Pages::new(limits.pages);
        Scheduler { limits, pages, sequences: BTreeMap::new(), clients: Clients::default(), next: 0 }
    }

    /// Adds a request with an id that is not present.
    ///
    /// # Errors
    ///
    /// [`Error::TextLength`] if the prompt is empty, or leaves no room for a token in the context or in the pool.
    pub(crate) fn add(&mut self, request: Request) -> Result<()> {
        let Request { id, client, priority, deadline, tokens } = request;
        self.check_length(&tokens)?;
        self.clients.enter(client);
        let (arrival, epoch) = (self.tick(), self.tick());
        let sequence = Sequence {
            client,
            priority,
            deadline,
            arrival,
            epoch,
            tokens,
            table: None,
            written: 0,
            planned: 0,
            wanted: 0,
            guess: Vec::new(),
            ahead: self.limits.ahead,
            cached: 0,
            has_started: false,
            has_answered: false,
        };
        assert!(self.sequences.insert(id, sequence).is_none(), "request {id} is present already");
        Ok(())
    }

    /// Forgets a request, finished or not. Its full pages stay findable. Work in flight for it becomes void.
    pub(crate) fn cancel(&mut self, id: u64) {
        let Some(sequence) = self.sequences.remove(&id) else { return };
        if let Some(table) = sequence.table {
            self.pages.close(table);
        }
        self.clients.leave(sequence.client);
    }

    /// Plans the next step. `now` is the time of the caller's clock, in seconds.
    ///
    /// Read [`Scheduler::pages_of`] and [`Scheduler::tokens_of`] for the step's work before the next call of another method.
    pub(crate) fn plan(&mut self, now: f64) -> Step {
        let mut step = Step::default();
        let is_late = |sequence: &Sequence| !sequence.has_answered && sequence.deadline.is_some_and(|time| time < now);
        step.expired.extend(self.sequences.iter().filter(|(_, sequence)| is_late(sequence)).map(|(&id, _)| id));
        for &id in &step.expired {
            self.cancel(id);
        }
        self.plan_decoding(&mut step);
        self.plan_prefill(&mut step);
        step
    }

    /// Reports that the rows of `work` are in the cache. `tokens`: the chosen token if the work wanted one; after a guess, the
    /// guessed tokens that were right and the token after them. Call this in the order of plans. Void work is ignored.
    pub(crate) fn done(&mut self, work: &Work, tokens: &[u32]) {
        let Some(sequence) = self.sequences.get_mut(&work.id).filter(|sequence| sequence.epoch == work.epoch) else {
            return;
        };
        assert_eq!(!tokens.is_empty(), work.wants_token, "a token for each work that wants one");
        assert_eq!(sequence.written, work.start, "done is called in the order of plans");
        assert!(tokens.len() <= work.guessed + 1, "more tokens than were guessed");
        sequence.written += if work.guessed > 0 { tokens.len() } else { work.rows };
        if work.guessed > 0 {
            sequence.planned = sequence.written;
            sequence.guess.clear();
        }
        if work.wants_token {
            sequence.tokens.extend_from_slice(tokens);
            sequence.wanted -= 1;
            sequence.has_answered = true;
        }
        let table = sequence.table.as_mut().expect("the epoch ends with the table");
        self.pages.commit(table, &sequence.tokens[..sequence.written]);
    }

    /// True if the results of `work` are still wanted.
    pub(crate) fn is_valid(&self, work: &Work) -> bool {
        self.sequences.get(&work.id).is_some_and(|sequence| sequence.epoch == work.epoch)
    }

    /// The known tokens of the rows of `work`.
    pub(crate) fn tokens_of(&self, work: &Work) -> Vec<u32> {
        self.sequences.get(&work.id).map_or_else(Vec::new, |sequence| sequence.tokens_of(work.start, work.known))
    }

    /// Sets the lookahead of a request. Ignores absent requests.
    pub(crate) fn look_ahead(&mut self, id: u64, rows: usize) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.ahead = rows;
        }
    }

    /// True if the next step can check a guess: the request decodes, and no work is in flight for it.
    pub(crate) fn may_guess(&self, id: u64) -> bool {
        self.sequences.get(&id).is_some_and(|sequence| {
            sequence.table.is_some()
                && sequence.guess.is_empty()
                && sequence.planned == sequence.written
                && sequence.written + 1 == sequence.tokens.len()
        })
    }

    /// Guesses the tokens after those of a request that [`Scheduler::may_guess`]. The next step runs them too.
    pub(crate) fn guess(&mut self, id: u64, guess: Vec<u32>) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            let room = (self.limits.context - 1).saturating_sub(sequence.tokens.len());
            sequence.guess = guess;
            sequence.guess.truncate(room);
        }
    }

    /// The guess of a request until its work is done. Empty if there is none.
    pub(crate) fn guess_of(&self, id: u64) -> &[u32] {
        self.sequences.get(&id).map_or(&[], |sequence| &sequence.guess)
    }

    /// Makes all work in flight void. Its rows run again.
    pub(crate) fn rewind(&mut self) {
        let epoch = self.tick();
        for sequence in self.sequences.values_mut().filter(|sequence| sequence.table.is_some()) {
            (sequence.planned, sequence.wanted, sequence.epoch) = (sequence.written, 0, epoch);
            sequence.guess.clear();
        }
    }

    /// Gives a request another text, for example after a shift of the context, a rejected guess or an edit. Keeps the common
    /// prefix. Work in flight for it becomes void. Ignores absent requests.
    ///
    /// # Errors
    ///
    /// [`Error::TextLength`], as for [`Scheduler::add`]. The request keeps its text then.
    pub(crate) fn replace(&mut self, id: u64, tokens: Vec<u32>) -> Result<()> {
        self.check_length(&tokens)?;
        let epoch = self.tick();
        let Some(sequence) = self.sequences.get_mut(&id) else { return Ok(()) };
        let common = sequence.tokens.iter().zip(&tokens).take_while(|(old, new)| old == new).count();
        sequence.tokens = tokens;
        let most = sequence.most_stored(&self.limits);
        let Some(table) = &mut sequence.table else { return Ok(()) };
        let last = sequence.tokens.len() - 1;
        if (last >= self.limits.long_from) != table.is_long() {
            self.suspend(id);
            return Ok(());
        }
        let mut kept = self.pages.truncate(table, common.min(sequence.written).min(last));
        if kept < last {
            // These rows are a chunk, not a decoding row.
            kept = self.pages.truncate(table, kept.min(most));
        }
        (sequence.written, sequence.planned, sequence.wanted, sequence.epoch) = (kept, kept, 0, epoch);
        sequence.guess.clear();
        Ok(())
    }

    /// Forgets the content of the cache, after a lost device. All requests wait, with their tokens.
    pub(crate) fn restart(&mut self) {
        let running: Vec<u64> = self.running().map(|(id, _)| id).collect();
        for id in running {
            self.suspend(id);
        }
        self.pages.clear();
    }

    /// The prompt and the chosen tokens of a request. Empty if it is absent.
    #[cfg(test)]
    pub(crate) fn tokens(&self, id: u64) -> &[u32] {
        self.sequences.get(&id).map_or(&[], |sequence| &sequence.tokens)
    }

    /// The pages of a request. Empty unless it runs.
    pub(crate) fn pages_of(&self, id: u64) -> &[u32] {
        self.sequences.get(&id).and_then(|sequence| sequence.table.as_ref()).map_or(&[], Table::pages)
    }

    /// Number of prompt tokens that were found stored when the request started to run, or while it waited for its next chunk.
    pub(crate) fn cached(&self, id: u64) -> usize {
        self.sequences.get(&id).map_or(0, |sequence| sequence.cached)
    }

    /// Number of pages that no sequence owns.
    pub(crate) fn free_pages(&self) -> usize {
        self.pages.free()
    }

    /// A row for every sequence that decodes, and those of its guess, the first arrivals first.
    fn plan_decoding(&mut self, step: &mut Step) {
        let mut running: Vec<(Rank, u64)> = self.running().map(|(id, sequence)| (sequence.rank(), id)).collect();
        running.sort_unstable();
        for (_, id) in running {
            let sequence = &self.sequences[&id];
            let Some(table) = &sequence.table else { continue }; // preempted above
            let Sequence { planned, wanted, ref guess, .. } = *sequence;
            let guessed = guess.len();
            let is_ready = planned + 1 == sequence.end(&self.limits);
            if !is_ready || planned >= sequence.tokens.len() + sequence.ahead {
                continue;
            }
            if planned >= self.limits.long_from && !table.is_long() {
                // The text became long: all its keys are computed again, when its token is known.
                if wanted == 0 {
                    self.preempt(id, step);
                }
            } else if self.make_room(id, planned + 1 + guessed, step) {
                self.push_work(id, 1 + guessed, step);
            }
        }
    }

    /// Chunks of prompts, in the order of [`Scheduler::order`]. The order is computed anew after each chunk, since the chunk
    /// counts as rows of its client.
    fn plan_prefill(&mut self, step: &mut Step) {
        let decoding = step.work.len();
        let mut room = self.limits.rows - decoding;
        if decoding > 0 {
            room = room.min(self.limits.prefill);
        }
        // Beside so many decoding rows, two chunks fit. So the first prompt always advances.
        let most_running = self.limits.rows - 2 * self.limits.min_chunk;
        let mut admits = true;
        let is_candidate = |sequence: &Sequence| match sequence.table {
            Some(_) => sequence.planned + 1 < sequence.end(&self.limits),
            None => true,
        };
        let candidates = self.sequences.iter().filter(|(_, sequence)| is_candidate(sequence));
        let mut ids: Vec<u64> = candidates.map(|(&id, _)| id).collect();
        while room > 0 {
            let first = (0..ids.len()).min_by_key(|&at| self.order(&self.sequences[&ids[at]]));
            let Some(first) = first else { break };
            let id = ids.swap_remove(first);
            let has_pages = if self.sequences[&id].table.is_some() {
                self.adopt(id);
                self.make_room(id, self.sequences[&id].tokens.len(), step)
            } else if !admits || self.waits_for_another(&self.sequences[&id]) {
                false
            } else {
                // Later requests do not take the pages that this one waits for.
                admits = self.running().count() < most_running && self.admit(id, step);
                admits
            };
            if has_pages {
                let rows = self.chunk(&self.sequences[&id], room);
                if rows == 0 {
                    break;
                }
                self.push_work(id, rows, step);
                room -= rows;
            }
        }
    }

    /// The least is served first.
    fn order(&self, sequence: &Sequence) -> impl Ord + use<> {
        let is_preempted = sequence.has_started && sequence.table.is_none();
        let rows = if is_preempted { 0 } else { self.clients.rows(sequence.client) };
        (Reverse(sequence.priority), !is_preempted, rows, sequence.arrival)
    }

    /// Rows of the next chunk of a prompt. Zero if `room` is too small.
    fn chunk(&self, sequence: &Sequence, room: usize) -> usize {
        let Sequence { planned, .. } = *sequence;
        let missing = sequence.end(&self.limits) - planned;
        if missing <= room {
            return missing;
        }
        let most = room.min(missing.saturating_sub(self.limits.min_chunk)); // the last chunk is long enough too
        let to_boundary = ((planned + most) / PAGE * PAGE).saturating_sub(planned);
        let is_enough = |&rows: &usize| rows >= self.limits.min_chunk;
        [to_boundary, most].into_iter().find(is_enough).unwrap_or(0)
    }

    /// True if a running sequence of the same priority or a higher one computes a page that this request needs.
    fn waits_for_another(&self, sequence: &Sequence) -> bool {
        let tokens = &sequence.tokens;
        let is_long = tokens.len() > self.limits.long_from;
        self.running().any(|(_, other)| {
            let start = other.written / PAGE * PAGE;
            let end = start + PAGE;
            other.priority >= sequence.priority
                && other.table.as_ref().is_some_and(|table| table.is_long() == is_long)
                && end <= sequence.most_stored(&self.limits).min(other.tokens.len())
                && tokens[start..end] == other.tokens[start..end]
                && tokens[..start] == other.tokens[..start]
        })
    }

    /// Gives a waiting request the pages of its text. May preempt sequences of a greater rank. False if pages are missing.
    fn admit(&mut self, id: u64, step: &mut Step) -> bool {
        let sequence = &self.sequences[&id];
        let (rank, len) = (sequence.rank(), sequence.tokens.len());
        let most = sequence.most_stored(&self.limits);
        let (mut table, found) = self.pages.open(len > self.limits.long_from, &sequence.tokens, most);
        let missing = len.div_ceil(PAGE) - table.pages().len();
        // A page for each running sequence stays free: otherwise the next boundary preempts this one again.
        let is_short = |this: &Scheduler| missing + this.running().count() > this.pages.free();
        if is_short(self) && !self.fits_beside_others(rank, &table, missing) {
            self.pages.close(table);
            return false;
        }
        while is_short(self) {
            let victim = self.worst();
            self.preempt(victim, step);
        }
        self.pages.grow(&mut table, len).expect("enough pages are free");
        let sequence = self.sequences.get_mut(&id).expect("a present request");
        (sequence.written, sequence.planned, sequence.table) = (found, found, Some(table));
        if !sequence.has_started {
            (sequence.has_started, sequence.cached) = (true, found);
        }
        true
    }

    /// True if `missing` pages are left when all sequences of a greater rank are preempted.
    fn fits_beside_others(&self, rank: Rank, table: &Table, missing: usize) -> bool {
        let others = || self.running().filter(|(_, other)| other.rank() < rank).filter_map(|(_, s)| s.table.as_ref());
        let kept: HashSet<u32> = others().chain([table]).flat_map(Table::pages).copied().collect();
        kept.len() + missing + others().count() <= self.limits.pages
    }

    /// Takes over pages of a running prompt that were stored since its last chunk.
    fn adopt(&mut self, id: u64) {
        let sequence = self.sequences.get_mut(&id).expect("a present request");
        let most = sequence.most_stored(&self.limits);
        if let Some(table) = sequence.table.as_mut().filter(|_| sequence.planned == sequence.written) {
            let len = self.pages.adopt(table, &sequence.tokens, sequence.written, most);
            if !sequence.has_answered {
                sequence.cached += len - sequence.written;
            }
            (sequence.written, sequence.planned) = (len, len);
        }
    }

    /// Gives a running sequence pages for `len` tokens. May preempt others, or the sequence itself: false then.
    fn make_room(&mut self, id: u64, len: usize, step: &mut Step) -> bool {
        loop {
            let sequence = self.sequences.get_mut(&id).expect("a present request");
            let Some(table) = &mut sequence.table else { return false };
            if self.pages.grow(table, len).is_ok() {
                return true;
            }
            let victim = self.worst();
            self.preempt(victim, step);
        }
    }

    /// Plans the next rows of a running sequence.
    fn push_work(&mut self, id: u64, rows: usize, step: &mut Step) {
        let sequence = self.sequences.get_mut(&id).expect("a present request");
        let (start, guessed) = (sequence.planned, sequence.guess.len());
        sequence.planned += rows;
        let all_known = sequence.tokens.len() + guessed;
        let known = all_known.saturating_sub(start).min(rows);
        let wants_token = sequence.planned == all_known + sequence.wanted;
        sequence.wanted += usize::from(wants_token);
        let is_long = sequence.table.as_ref().expect("a running sequence").is_long();
        self.clients.charge(sequence.client, rows as i64);
        step.work.push(Work { id, epoch: sequence.epoch, start, rows, known, wants_token, guessed, is_long });
    }

    /// Lets a running sequence wait again. Its work of this step is dropped: the new owner of its pages may write to them in the
    /// same step.
    fn preempt(&mut self, id: u64, step: &mut Step) {
        if let Some(at) = step.work.iter().position(|work| work.id == id) {
            let work = step.work.remove(at);
            self.clients.charge(self.sequences[&id].client, -(work.rows as i64));
        }
        step.preempted.push(id);
        self.suspend(id);
    }

    /// Takes a sequence's pages.
    fn suspend(&mut self, id: u64) {
        let epoch = self.tick();
        let sequence = self.sequences.get_mut(&id).expect("a present request");
        self.pages.close(sequence.table.take().expect("a running sequence"));
        (sequence.written, sequence.planned, sequence.wanted, sequence.epoch) = (0, 0, 0, epoch);
        sequence.guess.clear();
    }

    /// The running sequence that is preempted first.
    fn worst(&self) -> u64 {
        self.running().max_by_key(|(_, sequence)| sequence.rank()).expect("a running sequence").0
    }

    fn running(&self) -> impl Iterator<Item = (u64, &Sequence)> {
        self.sequences.iter().filter(|(_, sequence)| sequence.table.is_some()).map(|(&id, sequence)| (id, sequence))
    }

    fn check_length(&self, tokens: &[u32]) -> Result<()> {
        let context = self.limits.context - 1;
        let tokens = tokens.len();
        if (1..=context).contains(&tokens) { Ok(()) } else { Err(Error::TextLength { tokens, context }) }
    }

    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

#[cfg(test)]
impl Scheduler {
    /// Panics if the bookkeeping of pages is broken.
    pub(crate) fn check(&self) {
        self.pages.check(&self.running().filter_map(|(_, sequence)| sequence.table.as_ref()).collect::<Vec<_>>());
    }
}
