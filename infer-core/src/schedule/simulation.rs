//! Scheduler and pages against a simulated device.
//!
//! The model is a pure function of all tokens, but the device computes it through the pages only: a row reads all cells
//! before it by the page table, as attention does, and writes its own. A wrong page, a page that is reused too early and a
//! stale token all change the answer. Each answer is compared with the one that [`alone`] computes without pages.

use std::collections::{BTreeMap, HashMap, VecDeque};

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::{
    pages::PAGE,
    scheduler::Scheduler,
    step::{Limits, Request, Work},
};

const VOCABULARY: u64 = 1000;
/// Steps that are planned before the first of them is finished.
const IN_FLIGHT: usize = 2;

fn mix(hash: u64, value: u64) -> u64 {
    let mixed = (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// The state before the first token.
fn start(is_long: bool) -> u64 {
    mix(1, u64::from(is_long))
}

/// The cell of a token after `hash`, and the hash with it.
fn append(hash: u64, token: u32) -> (u64, u64) {
    let cell = mix(hash, u64::from(token));
    (cell, mix(hash, cell))
}

fn choose(hash: u64) -> u32 {
    u32::try_from(hash % VOCABULARY).unwrap()
}

/// The prompt and `count` chosen tokens.
fn alone(prompt: &[u32], count: usize, long_from: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    let mut hashes = [start(false), start(true)];
    for position in 0..prompt.len() + count {
        if position == tokens.len() {
            tokens.push(choose(hashes[usize::from(position > long_from)]));
        }
        hashes = hashes.map(|hash| append(hash, tokens[position]).1);
    }
    tokens
}

/// Work with the data that a device gets at the time of the plan.
struct Submitted {
    work: Work,
    tokens: Vec<u32>,
    pages: Vec<u32>,
}

struct Device {
    cells: Vec<[u64; PAGE]>,
    /// The token that each request chose last.
    chosen: HashMap<u64, u32>,
}

impl Device {
    fn read(&self, pages: &[u32], position: usize) -> u64 {
        self.cells[pages[position / PAGE] as usize][position % PAGE]
    }

    /// Runs the work of a step in the given order. Returns the chosen tokens.
    fn run(&mut self, step: &[Submitted]) -> Vec<Option<u32>> {
        let mut hashes = Vec::new();
        for Submitted { work, tokens, pages } in step {
            let before = (0..work.start).map(|position| self.read(pages, position));
            let mut hash = before.fold(start(work.is_long), mix);
            for row in 0..work.rows {
                let token = tokens.get(row).copied().unwrap_or_else(|| self.chosen[&work.id]);
                let (cell, next) = append(hash, token);
                let position = work.start + row;
                self.cells[pages[position / PAGE] as usize][position % PAGE] = cell;
                hash = next;
            }
            hashes.push(hash);
        }
        let results = step.iter().zip(hashes).map(|(Submitted { work, pages, .. }, hash)| {
            let cells = (0..work.start + work.rows).map(|position| self.read(pages, position));
            assert_eq!(cells.fold(start(work.is_long), mix), hash, "no work writes to pages that the same step reads");
            work.wants_token.then(|| (work.id, choose(hash)))
        });
        let results: Vec<_> = results.collect();
        self.chosen.extend(results.iter().flatten().copied());
        results.into_iter().map(|result| result.map(|(_, token)| token)).collect()
    }
}

/// A present request.
struct Present {
    prompt: Vec<u32>,
    /// Number of tokens to choose.
    answer: usize,
    arrived: usize,
    first_token: Option<usize>,
    deadline: Option<f64>,
    is_disturbed: bool,
}

/// Times of a request that was answered, in steps.
struct Answered {
    id: u64,
    arrived: usize,
    first_token: usize,
    ended: usize,
    /// Steps that the request takes alone, at most.
    alone: usize,
    is_disturbed: bool,
}

struct Server {
    limits: Limits,
    scheduler: Scheduler,
    device: Device,
    in_flight: VecDeque<Vec<Submitted>>,
    present: BTreeMap<u64, Present>,
    answered: Vec<Answered>,
    random: ChaCha8Rng,
    now: usize,
    preempted: usize,
    expired: usize,
    prefilled: usize,
    cached: usize,
    next_id: u64,
    checks: bool,
}

impl Server {
    fn new(limits: Limits, seed: u64) -> Server {
        let device = Device { cells: vec![[0; PAGE]; limits.pages], chosen: HashMap::new() };
        Server {
            scheduler: Scheduler::new(limits.clone()),
            limits,
            device,
            in_flight: VecDeque::new(),
            present: BTreeMap::new(),
            answered: Vec::new(),
            random: ChaCha8Rng::seed_from_u64(seed),
            now: 0,
            preempted: 0,
            expired: 0,
            prefilled: 0,
            cached: 0,
            next_id: 0,
            checks: false,
        }
    }

    fn add(&mut self, (client, priority): (u64, i32), prompt: Vec<u32>, answer: usize, deadline: Option<f64>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.scheduler.add(Request { id, client, priority, deadline, tokens: prompt.clone() }).unwrap();
        let (arrived, first_token, is_disturbed) = (self.now, None, false);
        self.present.insert(id, Present { prompt, answer, arrived, first_token, deadline, is_disturbed });
        id
    }

    /// Cancels a request. Checks the tokens that it has until now.
    fn cancel(&mut self, id: u64) {
        let present = self.present.remove(&id).unwrap();
        let tokens = self.scheduler.tokens(id);
        let expected = alone(&present.prompt, tokens.len() - present.prompt.len(), self.limits.long_from);
        assert_eq!(tokens, expected, "answer of request {id}");
        self.cached += self.scheduler.cached(id);
        self.scheduler.cancel(id);
    }

    /// Replaces the text of a request by the first `kept` tokens and others.
    fn replace(&mut self, id: u64, kept: usize, others: &[u32]) {
        let present = self.present.get_mut(&id).unwrap();
        present.prompt = [&self.scheduler.tokens(id)[..kept], others].concat();
        present.is_disturbed = true;
        self.scheduler.replace(id, present.prompt.clone()).unwrap();
    }

    /// Plans a step, and finishes the one that was planned before the steps in flight.
    fn step(&mut self) {
        let step = self.scheduler.plan(self.now as f64);
        self.preempted += step.preempted.len();
        self.expired += step.expired.len();
        for id in step.expired {
            let present = self.present.remove(&id).unwrap();
            assert!(present.first_token.is_none() && present.deadline.unwrap() < self.now as f64);
        }
        self.check_step(&step.work);
        let is_idle = step.work.is_empty() && self.in_flight.iter().all(Vec::is_empty);
        assert!(!is_idle || self.present.is_empty(), "a request is stuck");
        let mut submitted: Vec<Submitted> = Vec::new();
        for work in step.work {
            let tokens = self.scheduler.tokens(work.id).iter().skip(work.start).take(work.known).copied().collect();
            let pages = self.scheduler.pages_of(work.id).to_vec();
            submitted.push(Submitted { work, tokens, pages });
        }
        submitted.shuffle(&mut self.random); // rows of a step run at the same time
        self.in_flight.push_back(submitted);
        if self.in_flight.len() > IN_FLIGHT {
            self.finish_step();
        }
        if self.checks {
            self.scheduler.check();
        }
        self.now += 1;
    }

    fn finish_step(&mut self) {
        let step = self.in_flight.pop_front().unwrap();
        let chosen = self.device.run(&step);
        for (Submitted { work, .. }, token) in step.iter().zip(chosen) {
            let before = self.scheduler.tokens(work.id).len();
            self.scheduler.done(work, token.as_slice());
            let len = self.scheduler.tokens(work.id).len();
            if len == before {
                continue; // a chunk, or void work
            }
            let present = self.present.get_mut(&work.id).unwrap();
            let first_token = *present.first_token.get_or_insert(self.now);
            if len == present.prompt.len() + present.answer || len == self.limits.context {
                let chunk = self.limits.prefill - self.limits.min_chunk;
                // Planning and finishing lie apart, and a text that becomes long is computed twice.
                let alone = 2 * len.div_ceil(chunk) + (len - present.prompt.len()) + IN_FLIGHT + 1;
                let (arrived, is_disturbed, ended) = (present.arrived, present.is_disturbed, self.now);
                let id = work.id;
                self.answered.push(Answered { id, arrived, first_token, ended, alone, is_disturbed });
                self.cancel(id);
            }
        }
    }

    /// The rules of a step.
    fn check_step(&mut self, step: &[Work]) {
        let Limits { rows, prefill, min_chunk, ahead, .. } = self.limits;
        let total: usize = step.iter().map(|work| work.rows).sum();
        assert!(total <= rows);
        let decoding = step.iter().take_while(|work| work.rows == 1).count();
        if decoding > 0 {
            assert!(total - decoding <= prefill, "prompts do not stall decoding");
        }
        self.prefilled += total - decoding;
        for (at, work) in step.iter().enumerate() {
            let len = self.scheduler.tokens(work.id).len();
            assert!(step[..at].iter().all(|other| other.id != work.id), "one work per request");
            assert!(work.rows > 0 && work.known + 1 >= work.rows && work.start + work.rows <= len + ahead);
            assert_eq!(work.is_long, work.start + work.rows > self.limits.long_from || work.is_long);
            let is_whole = work.start == 0 && work.rows == len;
            assert!(work.rows == 1 || work.rows >= min_chunk || is_whole, "{work:?} of {len} tokens is too short");
            assert!(work.rows > 1 || at < decoding || len == 1, "decoding rows come first");
        }
    }

    /// Runs until all requests are answered. Then every page is free.
    fn drain(&mut self) {
        while !self.present.is_empty() {
            self.step();
        }
        while !self.in_flight.is_empty() {
            self.finish_step();
        }
        self.scheduler.check();
        assert_eq!(self.scheduler.free_pages(), self.limits.pages, "no page leaks");
    }
}

/// A run with random requests.
struct Load {
    arrivals: usize,
    /// Most present requests.
    present: usize,
    longest_prompt: usize,
    longest_answer: usize,
    /// Probabilities per step.
    cancels: f64,
    replacements: f64,
    restarts: f64,
    /// Probability that a request has a deadline.
    deadlines: f64,
    priorities: i32,
    checks: bool,
}

const LOAD: Load = Load {
    arrivals: 2500,
    present: 40,
    longest_prompt: 300,
    longest_answer: 40,
    cancels: 0.05,
    replacements: 0.05,
    restarts: 0.001,
    deadlines: 0.1,
    priorities: 3,
    checks: false,
};

const LIMITS: Limits =
    Limits { pages: 400, context: 400, long_from: usize::MAX, rows: 160, prefill: 64, min_chunk: 16, ahead: 2 };

fn random_tokens(random: &mut ChaCha8Rng, len: usize) -> Vec<u32> {
    (0..len).map(|_| random.random_range(0..1000)).collect()
}

fn simulate(limits: Limits, load: &Load, seed: u64) -> Server {
    let mut server = Server::new(limits, seed);
    let mut random = ChaCha8Rng::seed_from_u64(seed + 1);
    server.checks = load.checks;
    // Earlier texts. Prompts continue parts of them.
    let mut texts: Vec<Vec<u32>> = (1..8).map(|pages| random_tokens(&mut random, pages * 40)).collect();
    let mut arrived = 0;
    while arrived < load.arrivals {
        while server.present.len() < load.present && arrived < load.arrivals && random.random_bool(0.4) {
            let mut prompt = texts[random.random_range(0..texts.len())].clone();
            prompt.truncate(random.random_range(0..=load.longest_prompt));
            let fresh = random.random_range(1..60);
            prompt.extend(random_tokens(&mut random, fresh));
            prompt.truncate(load.longest_prompt);
            let copies = if random.random_bool(0.1) { 3 } else { 1 }; // equal prompts that arrive together
            for _ in 0..copies {
                let user = (random.random_range(0..5), random.random_range(0..load.priorities));
                let deadline = random.random_bool(load.deadlines);
                let deadline = deadline.then(|| server.now as f64 + random.random_range(1.0..60.0));
                let answer = random.random_range(1..=load.longest_answer);
                server.add(user, prompt.clone(), answer, deadline);
                arrived += 1;
            }
            let slot = random.random_range(0..texts.len());
            texts[slot] = alone(&prompt, 40, server.limits.long_from);
        }
        server.step();
        let ids: Vec<u64> = server.present.keys().copied().collect();
        if !ids.is_empty() {
            let id = ids[random.random_range(0..ids.len())];
            if random.random_bool(load.cancels) {
                server.cancel(id);
            } else if random.random_bool(load.replacements) {
                let len = server.scheduler.tokens(id).len();
                // Half of the replacements are near the end, as rejected guesses are.
                let least = if random.random_bool(0.5) { len.saturating_sub(8) } else { 0 };
                let kept = random.random_range(least..=len).min(load.longest_prompt - 20);
                let fresh = random.random_range(usize::from(kept == 0)..20);
                server.replace(id, kept, &random_tokens(&mut random, fresh));
            }
        }
        if random.random_bool(load.restarts) {
            server.scheduler.restart();
            server.device.cells.fill([7; PAGE]);
            server.in_flight.clear(); // lost with the device
        }
    }
    server.drain();
    server
}

#[test]
fn answers_are_the_same_as_alone() {
    // Room for everybody; a short pool; little lookahead and small steps; texts that become long.
    let roomy = simulate(LIMITS, &LOAD, 1);
    assert!(roomy.cached > 50_000 && roomy.expired > 10, "{} {}", roomy.cached, roomy.expired);
    let short = simulate(Limits { pages: 48, ..LIMITS }, &LOAD, 2);
    assert!(short.preempted > 500, "{}", short.preempted);
    simulate(Limits { pages: 80, rows: 40, prefill: 32, ahead: 0, ..LIMITS }, &LOAD, 3);
    simulate(Limits { long_from: 150, pages: 100, min_chunk: 5, ahead: 1, ..LIMITS }, &LOAD, 4);
}

#[test]
fn the_bookkeeping_is_right_after_every_step() {
    let load = Load { arrivals: 300, checks: true, ..LOAD };
    for (seed, pages) in [(5, 13), (6, 20), (7, 60)] {
        simulate(Limits { pages, ahead: 1, long_from: 200, ..LIMITS }, &load, seed);
    }
}

/// Bound: a request waits no longer for its first token than it takes to run, one after the other, all requests that were
/// present meanwhile.
#[test]
fn no_request_starves() {
    let undisturbed = Load { cancels: 0.0, replacements: 0.0, restarts: 0.0, deadlines: 0.0, arrivals: 1000, ..LOAD };
    for (seed, pages) in [(8, 400), (9, 40), (10, 20)] {
        let server = simulate(Limits { pages, ..LIMITS }, &undisturbed, seed);
        let requests = &server.answered;
        assert!(requests.len() >= undisturbed.arrivals && requests.iter().all(|request| !request.is_disturbed));
        for request in requests {
            let meanwhile = |other: &&Answered| other.arrived <= request.first_token && other.ended >= request.arrived;
            let bound: usize = requests.iter().filter(meanwhile).map(|other| other.alone).sum();
            let waited = request.first_token - request.arrived;
            assert!(waited <= bound, "request {} waited {waited} steps, the bound is {bound}", request.id);
        }
    }
}

/// Steps until the first token of a request of 512 tokens, `delay` steps after `others` requests of the same length from
/// another client.
fn wait_beside(others: usize, delay: usize, limits: Limits) -> usize {
    let mut server = Server::new(limits, 11);
    let mut random = ChaCha8Rng::seed_from_u64(12);
    for _ in 0..others {
        server.add((1, 0), random_tokens(&mut random, 512), 32, None);
    }
    for _ in 0..delay {
        server.step();
    }
    let id = server.add((2, 0), random_tokens(&mut random, 512), 32, None);
    server.drain();
    let request = server.answered.iter().find(|request| request.id == id).unwrap();
    request.first_token - request.arrived
}

/// Bound: beside another client's requests, a request waits three times as long as alone if the pool has room. Else it also
/// waits until running requests end.
#[test]
fn a_client_with_many_requests_does_not_delay_another_client() {
    let limits = Limits { context: 600, pages: 2000, ..LIMITS };
    let alone = wait_beside(0, 0, Limits { prefill: 64, rows: 65, ..limits.clone() });
    assert_eq!(alone, 8 - 1 + IN_FLIGHT);
    for delay in [0, 1, 10, 50, 200] {
        let waited = wait_beside(100, delay, limits.clone());
        assert!(waited <= 3 * alone, "waited {waited} steps after {delay}");
        // The pool has room for six requests. Each takes 8 steps of prefill and 32 of decoding.
        let waited = wait_beside(100, delay, Limits { pages: 110, ..limits.clone() });
        assert!(waited <= 3 * alone + 2 * (8 + 32), "waited {waited} steps after {delay} in a short pool");
    }
}

/// Bound: a request that needs half of the pool waits until the small requests that run before it end, and three times as
/// long as its own prefill takes.
#[test]
fn small_requests_do_not_starve_a_large_one() {
    let mut server = Server::new(Limits { pages: 40, context: 1000, ..LIMITS }, 19);
    let mut random = ChaCha8Rng::seed_from_u64(20);
    let mut large = None;
    for step in 0..600 {
        while server.present.len() < 25 {
            let client = random.random_range(1..5);
            let answer = random.random_range(10..60);
            server.add((client, 0), random_tokens(&mut random, 60), answer, None);
        }
        if step == 50 {
            large = Some(server.add((9, 0), random_tokens(&mut random, 700), 10, None));
        }
        server.step();
    }
    let request = server.answered.iter().find(|request| Some(request.id) == large).expect("the large request starved");
    let waited = request.first_token - request.arrived;
    assert!(waited <= 65 + 3 * 700 / 64, "waited {waited} steps");
    server.drain();
}

#[test]
fn equal_prompts_that_arrive_together_are_computed_once() {
    let mut server = Server::new(LIMITS, 13);
    let prompt = random_tokens(&mut ChaCha8Rng::seed_from_u64(14), 300);
    for client in 0..10 {
        server.add((client, 0), prompt.clone(), 20, None);
    }
    server.drain();
    // 256 of 300 - 16 tokens are whole pages.
    assert_eq!(server.prefilled, 256 + 10 * (300 - 256));
    assert_eq!(server.cached, 9 * 256);
}

#[test]
fn higher_priorities_are_served_first() {
    let mut server = Server::new(LIMITS, 15);
    let mut random = ChaCha8Rng::seed_from_u64(16);
    let mut ids: Vec<(i32, u64)> = Vec::new();
    for priority in [0, 2, 1, 2, 0] {
        let id = server.add((0, priority), random_tokens(&mut random, 256), 30, None);
        ids.push((-priority, id));
    }
    server.drain();
    ids.sort_unstable();
    let mut answered: Vec<(usize, u64)> =
        server.answered.iter().map(|request| (request.first_token, request.id)).collect();
    answered.sort_unstable();
    let order = |list: &[(usize, u64)]| list.iter().map(|&(_, id)| id).collect::<Vec<_>>();
    assert_eq!(order(&answered), ids.iter().map(|&(_, id)| id).collect::<Vec<_>>());
}

#[test]
fn cancelling_leaves_no_page() {
    let mut server = Server::new(Limits { pages: 40, ..LIMITS }, 17);
    let mut random = ChaCha8Rng::seed_from_u64(18);
    for _ in 0..1000 {
        let len = random.random_range(1..300);
        let id = server.add((0, 0), random_tokens(&mut random, len), 300, None);
        for _ in 0..random.random_range(0..8) {
            server.step();
        }
        server.cancel(id);
        assert_eq!(server.scheduler.free_pages(), 40);
    }
    server.drain();
}

#[test]
fn texts_that_cannot_run_are_refused() {
    let mut scheduler = Scheduler::new(Limits { pages: 3, ..LIMITS });
    let mut add =
        |id, len| scheduler.add(Request { id, client: 0, priority: 0, deadline: None, tokens: vec![1; len] }).is_ok();
    assert_eq!([add(0, 0), add(1, 1), add(2, 96), add(3, 97)], [false, true, true, false]);
    assert!(scheduler.replace(1, vec![1; 97]).is_err());
    assert_eq!(scheduler.tokens(1), [1]);
}
