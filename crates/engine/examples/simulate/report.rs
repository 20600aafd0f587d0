//! Plays sessions against an engine and notes who waited how long.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use engine::request::{Event, Request};
use engine::runner::ModelRunner as _;
use engine::{Engine, Events, Options, Snapshot, connect};

use crate::machine::Machine;
use crate::traces::{Session, Turn};

/// Times in seconds, all of one run.
#[derive(Default)]
pub(crate) struct Report {
    first_token: Vec<f64>,
    between_tokens: Vec<f64>,
    whole: Vec<f64>,
    end: f64,
    counters: Snapshot,
}

/// A turn that is being answered.
struct Open {
    session: usize,
    turn: usize,
    events: Events,
    submitted: Duration,
    latest: Option<Duration>,
    said: Vec<u32>,
}

/// A session so far.
#[derive(Clone)]
struct Heard {
    tokens: Vec<u32>,
    /// Where the answers are.
    drawn: Vec<Range<usize>>,
}

impl Heard {
    fn new(session: &Session) -> Self {
        Self { tokens: session.system.clone(), drawn: Vec::new() }
    }

    fn hear(&mut self, answer: &[u32]) {
        self.drawn.push(self.tokens.len()..self.tokens.len() + answer.len());
        self.tokens.extend(answer);
    }
}

/// # Panics
/// If the engine comes to rest while somebody waits: a bug in it.
pub(crate) fn simulate(machine: Machine, options: Options, sessions: Vec<Session>) -> Report {
    let clock = machine.clock();
    let (handle, inbox) = connect(machine.limits(), options);
    let mut engine = Engine::new(machine, inbox);
    let start = Instant::now();
    let now = || Duration::from_nanos(clock.load(Relaxed));
    let mut heard: Vec<Heard> = sessions.iter().map(Heard::new).collect();
    // When a session's next turn is due: time, session, turn.
    let mut due: BinaryHeap<Reverse<(Duration, usize, usize)>> =
        sessions.iter().enumerate().map(|(i, session)| Reverse((session.arrives, i, 0))).collect();
    let mut open: Vec<Open> = Vec::new();
    let mut report = Report::default();
    while let Some(next) = due.peek().map(|next| next.0.0).or_else(|| open.first().map(|_| Duration::MAX)) {
        if open.is_empty() && next > now() {
            clock.store(next.as_nanos() as u64, Relaxed); // nothing to do until then
        }
        while let Some(Reverse((at, session, turn))) = due.peek().copied().filter(|next| next.0.0 <= now()) {
            due.pop();
            let Turn { user, answer_len, .. } = &sessions[session].turns[turn];
            heard[session].tokens.extend(user);
            let Heard { tokens: prompt, drawn } = heard[session].clone();
            let priority = sessions[session].priority;
            let request =
                Request { prompt, drawn, priority, max_new_tokens: *answer_len, ..Request::default() };
            let events = handle.submit(request).expect("an endless queue").pop().expect("one choice");
            open.push(Open { session, turn, events, submitted: at, latest: None, said: Vec::new() });
        }
        assert!(engine.receive());
        engine.step(start + now());
        let mut index = 0;
        while let Some(client) = open.get_mut(index) {
            if !client.listen(now(), &mut report) {
                index += 1;
                continue;
            }
            let Open { session, turn, said, .. } = open.swap_remove(index);
            heard[session].hear(&said);
            if let Some(next) = sessions[session].turns.get(turn + 1) {
                due.push(Reverse((now() + next.pause, session, turn + 1)));
            }
        }
    }
    report.end = now().as_secs_f64();
    report.counters = handle.snapshot();
    report
}

impl Open {
    /// Notes the tokens that came; true at the end.
    fn listen(&mut self, now: Duration, report: &mut Report) -> bool {
        while let Some(event) = self.events.try_recv() {
            match event {
                Event::Tokens(tokens) => {
                    match self.latest.replace(now) {
                        None => report.first_token.push((now - self.submitted).as_secs_f64()),
                        Some(latest) => report.between_tokens.push((now - latest).as_secs_f64()),
                    }
                    self.said.extend(tokens.iter().map(|token| token.id));
                }
                Event::End(_) => {
                    report.whole.push((now - self.submitted).as_secs_f64());
                    return true;
                }
                Event::Started { .. } | Event::Prompt(_) => {}
            }
        }
        false
    }
}

impl Report {
    pub(crate) fn header(first: &str) -> String {
        format!(
            "| {first} | first token s, p50 | p95 | p99 | between tokens ms, p50 | p99 | max | whole s, p50 | tok/s | \
             cached | preempted | computed twice |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
        )
    }

    pub(crate) fn row(mut self, name: &str) -> String {
        let c = &self.counters;
        let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        let hits = share(c.cache_hits + c.cache_copied, c.cache_queries);
        let waste = share(c.recomputed_tokens, c.step_tokens_sum);
        let (preempted, rate) = (c.preempted, c.generated_tokens as f64 / self.end);
        let [first, between, whole] = [&mut self.first_token, &mut self.between_tokens, &mut self.whole];
        format!(
            "| {name} | {:.2} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} | {:.1} | {rate:.1} | {hits:.0} % | {preempted} \
             | {waste:.1} % |",
            quantile(first, 0.5),
            quantile(first, 0.95),
            quantile(first, 0.99),
            1e3 * quantile(between, 0.5),
            1e3 * quantile(between, 0.99),
            1e3 * quantile(between, 1.0),
            quantile(whole, 0.5),
        )
    }
}

fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values
        .get(((values.len() as f64 * q) as usize).min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}
