//! Plays a history, with what must hold after every step and in the end.
//!
//! The fake checks budgets and the batch's contract, the rig the pool, and clients the order of what they
//! hear. Here: who moves, who may fail, what they hear in all, and that the counters say the same.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::request::{End, Request, Sampling};
use engine::testing::{FakeRunner, Row, Trouble};
use engine::{Busy, Options, Policy, Snapshot};

use crate::ends::{Seen, settle};
use crate::harness::{Client, Limits, Rig, sampled};
use crate::history::{Act, Ending, History, Poison, Setup, Wish};

/// Tokens from here on are never drawn; prompts of the poisoned hold them.
pub(crate) const SAMPLED_VOCAB: usize = 94;
pub(crate) const FAST: u32 = 94;
pub(crate) const SLOW: u32 = 95;
/// Tokens after [`SLOW`] that can still be computed.
const SLOW_AFTER: usize = 6;

/// What the fake saw.
#[derive(Debug, Default, Clone)]
pub(crate) struct Account {
    /// Of steps that went well.
    pub(crate) tokens: u64,
    pub(crate) faults: u64,
    /// Faults of steps with one row that was not poisoned.
    pub(crate) faults_alone: u64,
    pub(crate) panicked: bool,
    pub(crate) steps: u64,
    /// Requests for which there was no place.
    pub(crate) refused: u64,
    /// Steps in which rows of a failed one are tried alone, at most.
    retries_left: usize,
}

pub(crate) struct Guest {
    pub(crate) request: Request,
    /// `None` once it has left.
    pub(crate) clients: Vec<Option<Client>>,
    /// How each client got on in the last step.
    paces: Vec<Pace>,
    started: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    tokens: usize,
    moved: bool,
}

struct World {
    rig: Rig,
    limits: Limits,
    guests: Vec<Guest>,
    account: Arc<Mutex<Account>>,
    policy: Policy,
    ahead: bool,
    steps: u64,
}

pub(crate) fn play(history: &History) -> Seen {
    let mut world = World::new(&history.setup);
    history.acts.iter().for_each(|act| world.act(act));
    let alive = world.rig.handle.snapshot().alive;
    match history.ending {
        Ending::HandlesGone if alive => return world.abandon(),
        Ending::Shutdown => world.rig.handle.shutdown(),
        Ending::Rest | Ending::HandlesGone => {}
    }
    world.come_to_rest();
    let account = world.account.lock().unwrap().clone();
    settle(world.guests, &world.limits, &account, world.ahead, Some(world.rig.handle.snapshot()))
}

fn is_poisoned(row: &Row) -> bool {
    let (old, new) = row.tokens.split_at(row.tokens.len() - row.n_computed);
    let slow = old.iter().chain(new).position(|&token| token == SLOW);
    new.contains(&FAST) || slow.is_some_and(|at| row.tokens.len() > at + SLOW_AFTER)
}

fn runner(setup: &Setup, account: Arc<Mutex<Account>>) -> FakeRunner {
    let (fail_at, panic_at) = (setup.fail_at.clone(), setup.panic_at);
    let runner = FakeRunner::new(setup.limits.clone());
    let runner = if setup.ahead { runner.ahead() } else { runner };
    runner.trouble(move |step, rows| {
        let mut account = account.lock().unwrap();
        account.steps += 1;
        if panic_at == Some(step) {
            account.panicked = true;
            return Some(Trouble::Panic);
        }
        let poisoned = rows.iter().any(is_poisoned);
        account.retries_left = account.retries_left.saturating_sub(1);
        if poisoned || fail_at.contains(&step) {
            account.faults += 1;
            account.faults_alone += u64::from(rows.len() == 1 && !poisoned);
            if rows.len() > 1 {
                account.retries_left = rows.len() + 1;
            }
            return Some(Trouble::Fault);
        }
        account.tokens += rows.iter().map(|row| row.n_computed as u64).sum::<u64>();
        None
    })
}

/// `before`: prompt and answer that it goes on from, and where that was drawn.
fn request(wish: &Wish, rig: &Rig, before: Option<(Vec<u32>, Range<usize>)>) -> Request {
    let token = |at: usize| {
        let i = at as u32;
        if at < wish.shared {
            (wish.family * 31 + i * 7 + i * i) % 90
        } else {
            (wish.name * 17 + i * 5 + 3) % 90
        }
    };
    let (mut prompt, drawn) = before.unwrap_or_default();
    prompt.extend((0..wish.len).map(token));
    if let Some((poison, at)) = wish.poison {
        let at = at % prompt.len();
        prompt[at] = match poison {
            Poison::Fast => FAST,
            Poison::Slow => SLOW,
        };
    }
    Request {
        prompt,
        n: wish.n,
        max_new_tokens: wish.max_new_tokens,
        stop_ids: if wish.stops { (0..8).collect() } else { Vec::new() },
        sampling: if wish.sampled { sampled(u64::from(wish.name)) } else { Sampling::default() },
        logprobs: wish.scored.then_some(1),
        prompt_logprobs: wish.scored.then_some(1),
        priority: wish.priority,
        deadline: wish.deadline.map(|seconds| rig.now + Duration::from_secs(seconds)),
        cache_salt: vec![wish.salt],
        drawn: if drawn.is_empty() { Vec::new() } else { vec![drawn] },
        ..Request::default()
    }
}

impl World {
    fn new(setup: &Setup) -> Self {
        let account = Arc::new(Mutex::new(Account::default()));
        let options = Options {
            max_waiting: setup.max_waiting,
            sampled_vocab: SAMPLED_VOCAB,
            prefix_cache: setup.prefix_cache,
            policy: setup.policy.clone(),
            ..Options::default()
        };
        Self {
            rig: Rig::with_options(runner(setup, account.clone()), options),
            limits: setup.limits.clone(),
            guests: Vec::new(),
            account,
            policy: setup.policy.clone(),
            ahead: setup.ahead,
            steps: 0,
        }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Submit(wish) => self.submit(wish),
            Act::Step(n) => {
                for _ in 0..*n {
                    self.step();
                }
            }
            Act::Pass(seconds) => self.rig.now += Duration::from_secs(*seconds),
            Act::Leave { guest, choice, events } => {
                let n = self.guests.len().max(1);
                let Some(guest) = self.guests.get_mut(guest % n) else { return };
                let choice = choice % guest.clients.len();
                if let Some(mut client) = guest.clients[choice].take() {
                    (0..*events).for_each(|_| client.listen_once());
                }
            }
        }
    }

    fn submit(&mut self, wish: &Wish) {
        let request = request(wish, &self.rig, self.turn_before(wish));
        let alive = self.rig.handle.snapshot().alive;
        match self.rig.handle.submit(request.clone()) {
            Ok(choices) => {
                assert!(alive || request.check(&self.limits).is_err(), "a dead engine takes nothing");
                let clients: Vec<_> = choices.into_iter().map(|events| Some(Client::new(events))).collect();
                let paces = vec![Pace::default(); clients.len()];
                self.guests.push(Guest { request, clients, paces, started: false });
            }
            Err(busy) => {
                assert_eq!(busy == Busy::Stopped, !alive, "{busy}");
                self.account.lock().unwrap().refused += u64::from(alive);
            }
        }
    }

    fn turn_before(&self, wish: &Wish) -> Option<(Vec<u32>, Range<usize>)> {
        let guest = self.guests.get(wish.follows? % self.guests.len().max(1))?;
        let heard = guest.clients[0].as_ref()?.heard();
        let begin = guest.request.prompt.len();
        let tokens = [guest.request.prompt.clone(), heard.ids()].concat();
        let ended = matches!(heard.end, Some(End::Finished(_)));
        (ended && tokens.len() < 36).then(|| (tokens.clone(), begin..tokens.len()))
    }

    fn step(&mut self) -> bool {
        let before = self.rig.handle.snapshot();
        let calm = self.account.lock().unwrap().retries_left == 0;
        if !self.rig.step() {
            return false;
        }
        self.steps += 1;
        let after = self.rig.handle.snapshot();
        // Where steps are told late, one that waits for another tells nothing.
        let calm = calm
            && !self.ahead
            && after.steps == before.steps + 1
            && after.steps_failed == before.steps_failed;
        self.check_pace(calm, after.preempted == before.preempted);
        self.check_turns();
        true
    }

    /// Answers go on in every step that goes well, but for those sent back; and the first in rank is
    /// never sent back.
    fn check_pace(&mut self, calm: bool, nobody_left: bool) {
        let now = self.rig.now;
        let mut first: Option<((i32, usize, usize), bool)> = None;
        for (number, guest) in self.guests.iter_mut().enumerate() {
            for (choice, (client, pace)) in guest.clients.iter_mut().zip(&mut guest.paces).enumerate() {
                let Some(client) = client else { continue };
                let was_open = client.heard().end.is_none();
                let heard = client.listen();
                let tokens = heard.tokens.len();
                let moved = tokens > pace.tokens;
                let at_once = 1 + usize::from(self.ahead);
                assert!(tokens <= pace.tokens + at_once, "one token for each step that is over");
                let stands = was_open && heard.end.is_none() && pace.moved && !moved;
                // The first token of all choices but one may come before they have blocks.
                assert!(!(stands && calm && nobody_left && tokens > 1), "an answer stands still: {heard:?}");
                let rank = (guest.request.priority, number, choice);
                if was_open && first.is_none_or(|(first, ..)| rank < first) {
                    first = Some((rank, stands && tokens > 1));
                }
                let late = guest.request.deadline.is_some_and(|deadline| deadline <= now);
                assert!(!late || heard.end.is_some(), "its time was over");
                *pace = Pace { tokens, moved };
            }
        }
        let first_stands = first.is_some_and(|(_, stands)| stands);
        // Nobody is put before it for having waited, and clients that have left hide nothing.
        let ranks_stay = self.policy.overtaken_max == usize::MAX;
        let all_here = self.guests.iter().all(|guest| guest.clients.iter().all(Option::is_some));
        assert!(!(first_stands && calm && ranks_stay && all_here), "the first in rank stands still");
    }

    /// No more younger requests are admitted before a waiting one than the policy allows. One that awaits a
    /// prefix has chosen to let them pass.
    fn check_turns(&mut self) {
        let mut younger_started = 0;
        for guest in self.guests.iter_mut().rev() {
            let mut clients = guest.clients.iter().flatten().map(Client::heard);
            guest.started |= clients.clone().any(|heard| heard.started);
            let waits = !guest.started && clients.any(|heard| heard.end.is_none());
            let overtaken = waits && younger_started > self.policy.overtaken_max;
            assert!(!overtaken || self.policy.await_prefixes, "{younger_started} have overtaken a request");
            younger_started += usize::from(guest.started);
        }
    }

    /// Everybody's work, in tokens.
    fn work(&self) -> u64 {
        let work = |guest: &Guest| {
            let Request { prompt, n, max_new_tokens, .. } = &guest.request;
            (prompt.len() + n * (max_new_tokens + 2)) as u64
        };
        self.guests.iter().map(work).sum()
    }

    fn come_to_rest(&mut self) {
        let patience = Patience::new(self);
        let from = self.steps;
        while self.step() {
            patience.check(self.steps - from);
        }
        let Snapshot { running, waiting, blocks_used, .. } = self.rig.handle.snapshot();
        assert_eq!((running, waiting, blocks_used), (0, 0, 0));
    }

    /// The last handle goes, and the engine when all is done.
    fn abandon(self) -> Seen {
        let (mut steps, patience) = (0, Patience::new(&self));
        self.rig.abandon(|| {
            steps += 1;
            patience.check(steps);
        });
        let account = self.account.lock().unwrap().clone();
        settle(self.guests, &self.limits, &account, self.ahead, None)
    }
}

/// How long all who are here may take. The first in rank goes on in every step that goes well, so that each
/// computes a token at least; those that are sent back compute some again, though most are found in the
/// cache: a little more than everybody's work is the most that 30,000 short histories took. Twice is allowed,
/// and after a fault a step for each row that is tried alone.
struct Patience {
    work: u64,
    rows: u64,
    /// A step that is launched may be told in another.
    late: u64,
    account: Arc<Mutex<Account>>,
}

impl Patience {
    fn new(world: &World) -> Self {
        let rows = world.limits.step_rows as u64;
        let late = 1 + u64::from(world.ahead);
        Self { work: world.work(), rows, late, account: world.account.clone() }
    }

    fn check(&self, steps: u64) {
        let faults = self.account.lock().unwrap().faults;
        assert!(steps <= self.late * (2 * self.work + faults * (self.rows + 1) + 1), "someone starves");
    }
}
