//! What everybody must have heard when a history is over, and what the counters must say of it.

use std::collections::BTreeMap;

use engine::request::{End, FinishReason, Request, Sampling};
use engine::testing::FakeRunner;
use engine::{Options, Snapshot};

use crate::harness::{Client, Heard, Limits, Rig, expected};
use crate::world::{Account, FAST, Guest, SAMPLED_VOCAB, SLOW};

/// How often each thing happened.
pub(crate) type Seen = BTreeMap<&'static str, u64>;

/// `ahead`: steps were launched before all was known, and some of their tokens nobody wanted. `now`: the engine's counters, if there is still a handle to ask.
pub(crate) fn settle(
    guests: Vec<Guest>,
    limits: &Limits,
    account: &Account,
    ahead: bool,
    now: Option<Snapshot>,
) -> Seen {
    let mut told = Told::default();
    let follows = guests.iter().filter(|guest| !guest.request.drawn.is_empty()).count() as u64;
    let dead = account.panicked || now.as_ref().is_some_and(|now| !now.alive);
    for Guest { request, clients, .. } in guests {
        let expected = answers(&request, limits);
        told.choices += clients.len() as u64;
        told.left += clients.iter().filter(|client| client.is_none()).count() as u64;
        let mut heard = Vec::new();
        for (client, expected) in clients.into_iter().zip(&expected) {
            let Some(mut client) = client else { continue };
            client.listen();
            let cached_tokens = client.cached_tokens;
            let choice = client.end();
            check_answer(&request, &choice, expected, limits, account, dead);
            told.note(&choice);
            heard.push((choice, cached_tokens));
        }
        if let Some((_, cached_tokens)) = heard.iter().find(|(choice, _)| choice.started) {
            assert!(heard.iter().all(|(choice, cached)| choice.started && cached == cached_tokens));
            told.prompts += request.prompt.len() as u64;
            told.cached += *cached_tokens as u64;
        }
    }
    if let Some(now) = &now {
        told.check_counters(now, account, ahead, dead);
    }
    let now = now.unwrap_or_default();
    let mut seen = told.ends;
    seen.extend([
        ("choices", told.choices),
        ("left", told.left),
        ("cancelled", now.cancelled),
        ("follows", follows),
        ("faults", account.faults),
        ("panics", u64::from(account.panicked)),
        ("steps", account.steps),
        ("preempted", now.preempted),
        ("recomputed", now.recomputed_tokens),
        ("hit", now.cache_hits),
        ("copied", now.cache_copied),
        ("busy", account.refused),
    ]);
    seen
}

/// The choices of `request`, drawn by an engine that has nothing else to do, without a prefix cache and
/// with room for everything.
fn answers(request: &Request, limits: &Limits) -> Vec<Heard> {
    if request.check(limits).is_err() {
        return vec![Heard::default(); request.n];
    }
    if request.sampling == Sampling::default() && request.prompt_logprobs.is_none() {
        let limits = Limits { vocab_size: SAMPLED_VOCAB, ..limits.clone() };
        return vec![expected(request, &limits); request.n];
    }
    let limits = Limits { n_blocks: 1_000, ..limits.clone() };
    let options = Options { prefix_cache: false, sampled_vocab: SAMPLED_VOCAB, ..Options::default() };
    let mut rig = Rig::with_options(FakeRunner::new(limits), options);
    let clients = rig.submit_choices(Request { deadline: None, ..request.clone() });
    rig.finish();
    clients.into_iter().map(Client::end).collect()
}

fn check_answer(
    request: &Request,
    heard: &Heard,
    expected: &Heard,
    limits: &Limits,
    account: &Account,
    dead: bool,
) {
    assert!(expected.tokens.starts_with(&heard.tokens), "{heard:?}\n{expected:?}\n{request:?}");
    assert!(expected.scores.starts_with(&heard.scores));
    let poisoned = request.prompt.iter().any(|&token| token == FAST || token == SLOW);
    let runs = request.check(limits).is_ok();
    match heard.end.as_ref().expect("an end was heard") {
        End::Finished(_) => {
            assert_eq!(heard, expected);
            assert!(!request.prompt.contains(&FAST), "what can never be computed is complete");
        }
        End::Rejected(_) => assert!(!runs),
        End::Expired => assert!(runs && request.deadline.is_some()),
        End::Stuck => panic!("nothing was excluded: {request:?}"),
        End::Failed(text) if text.contains("engine stopped") => assert!(runs && dead),
        End::Failed(text) => {
            assert!(text.contains("as told"), "{text}");
            assert!(runs && (poisoned || account.faults_alone > 0), "it failed for others");
        }
    }
}

/// All that the clients were told, counted.
#[derive(Default)]
struct Told {
    choices: u64,
    left: u64,
    ends: BTreeMap<&'static str, u64>,
    tokens: u64,
    /// Tokens that were drawn and computed, too.
    computed: u64,
    /// Of the requests that have started.
    prompts: u64,
    cached: u64,
}

impl Told {
    fn note(&mut self, heard: &Heard) {
        let kind = match heard.end.as_ref().expect("an end was heard") {
            End::Finished(FinishReason::Stop) => "stopped",
            End::Finished(FinishReason::Length) => "exhausted",
            End::Rejected(_) => "rejected",
            End::Expired => "expired",
            End::Failed(text) if text.contains("engine stopped") => "orphaned",
            End::Stuck | End::Failed(_) => "failed",
        };
        *self.ends.entry(kind).or_default() += 1;
        self.tokens += heard.tokens.len() as u64;
        self.computed += heard.tokens.len().saturating_sub(1) as u64; // the last one never is
    }

    fn n(&self, kind: &str) -> u64 {
        self.ends.get(kind).copied().unwrap_or(0)
    }

    fn check_counters(&self, now: &Snapshot, account: &Account, ahead: bool, dead: bool) {
        let counted = [
            ("stopped", now.stopped),
            ("exhausted", now.exhausted),
            ("rejected", now.rejected),
            ("expired", now.expired),
            ("failed", now.failed),
        ];
        for (kind, counted) in counted {
            let heard = self.n(kind);
            assert!(
                (heard..=heard + self.left).contains(&counted),
                "{kind}: {heard} heard, {counted} counted"
            );
        }
        assert!(now.cancelled <= self.left);
        let ends = counted.iter().map(|(_, n)| n).sum::<u64>() + now.cancelled + self.n("orphaned");
        // Of those that left, some may have been in the engine when it died.
        let lost = self.choices - ends;
        assert!(if dead { lost <= self.left } else { lost == 0 }, "{lost} choices have no end");
        assert_eq!((now.running, now.waiting, now.blocks_used, now.alive), (0, 0, 0, !dead));
        // The last step may be one that nobody waits for.
        let untold = u64::from(ahead);
        assert!((now.steps_failed..=now.steps_failed + untold).contains(&account.faults));
        assert_eq!(now.step_tokens.iter().sum::<u64>(), now.steps);
        assert!(now.step_tokens_sum >= account.tokens);
        assert!(now.generated_tokens >= self.tokens && now.cache_queries >= self.prompts);
        assert!(now.prompt_tokens + now.cache_hits + now.cache_copied <= now.cache_queries);
        if self.left > 0 {
            return;
        }
        assert_eq!((now.generated_tokens, now.cache_queries), (self.tokens, self.prompts));
        assert_eq!(now.cache_hits, self.cached);
        let committed = now.prompt_tokens + now.recomputed_tokens + self.computed;
        assert!(account.tokens == committed || ahead && account.tokens > committed);
        let complete = self.n("stopped") + self.n("exhausted") + self.n("rejected") == self.choices;
        if complete && now.preempted == 0 {
            assert_eq!(now.prompt_tokens + now.cache_hits + now.cache_copied, now.cache_queries);
        }
    }
}
