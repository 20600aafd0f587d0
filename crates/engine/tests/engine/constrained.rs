//! Answers that a grammar constrains.

use std::sync::Arc;

use engine::grammar::{Constraint, Grammar, Matcher};
use engine::request::{End, FinishReason, Request, Sampling};
use engine::testing::{FakeRunner, limits};
use engine::{Options, Policy};

use crate::harness::{Heard, Limits, Rig, request, sampled};

/// The id that ends a constrained answer.
const STOP: u32 = 95;

/// Of each token, all that came before decide on three that may come next; after `len` of them, the end.
struct Walk {
    len: usize,
}

#[derive(Default)]
struct Walker {
    len: usize,
    seen: Vec<u32>,
}

fn allowed(seen: &[u32], len: usize) -> Vec<u32> {
    let digest = seen.iter().fold(7u32, |sum, id| sum.wrapping_mul(31).wrapping_add(*id));
    if seen.len() >= len { vec![STOP] } else { (0..3).map(|i| (digest.wrapping_add(i * 17)) % 90).collect() }
}

impl Grammar for Walk {
    fn begin(&self) -> Box<dyn Matcher> {
        Box::new(Walker { len: self.len, ..Walker::default() })
    }
}

impl Matcher for Walker {
    fn advance(&mut self, id: u32) -> Result<(), String> {
        if !allowed(&self.seen, self.len).contains(&id) {
            return Err(format!("{id} was not allowed"));
        }
        self.seen.push(id);
        Ok(())
    }

    fn mask(&mut self, words: &mut [u32]) -> Result<(), String> {
        if self.seen.len() == 40 {
            return Err("forty tokens are too many".into());
        }
        allowed(&self.seen, self.len).iter().for_each(|id| words[*id as usize / 32] |= 1 << (id % 32));
        Ok(())
    }
}

/// The request, its answer a walk of `len` tokens and [`STOP`].
pub(crate) fn constrained(request: Request, len: usize) -> Request {
    let constraint = Some(Constraint(Arc::new(Walk { len })));
    Request { constraint, stop_ids: vec![STOP], ..request }
}

fn assert_walk(heard: &Heard, len: usize) {
    let ids = heard.ids();
    for (at, id) in ids.iter().enumerate() {
        assert!(allowed(&ids[..at], len).contains(id), "token {at} of {ids:?}");
    }
}

#[test]
fn each_token_is_one_that_the_grammar_allows() {
    let check = |len: usize, new: usize, finish: FinishReason| {
        for sampling in [Sampling::default(), sampled(3)] {
            for ahead in [false, true] {
                let runner = FakeRunner::new(limits());
                let mut rig = Rig::new(if ahead { runner.ahead() } else { runner });
                let asked = Request { sampling: sampling.clone(), ..constrained(request(3, 20, new), len) };
                let heard = rig.answers([asked, request(4, 9, 30)]);
                assert_walk(&heard[0], len);
                assert_eq!(heard[0].end, Some(End::Finished(finish)));
                assert_eq!(heard[0].tokens.len(), new.min(len + 1));
            }
        }
    };
    check(5, 30, FinishReason::Stop);
    check(5, 6, FinishReason::Stop);
    check(5, 3, FinishReason::Length);
    check(0, 3, FinishReason::Stop);
}

#[test]
fn choices_walk_each_their_own_way_and_a_crowd_shares_out_the_masks() {
    let asked = Request { n: 24, sampling: sampled(3), ..constrained(request(3, 20, 30), 8) };
    let limits = Limits { step_rows: 32, ..limits() };
    let mut rig = Rig::new(FakeRunner::new(limits.clone()));
    let choices = rig.submit_choices(asked.clone());
    rig.finish();
    let heard: Vec<Heard> = choices.into_iter().map(|client| client.end()).collect();
    heard.iter().for_each(|one| assert_walk(one, 8));
    for (at, one) in heard.iter().enumerate() {
        let alone = Request { n: 1, sampling: sampled(3 + at as u64), ..asked.clone() };
        assert_eq!(Rig::new(FakeRunner::new(limits.clone())).answers([alone])[0].ids(), one.ids());
    }
}

#[test]
fn preempted_as_undisturbed() {
    let asked =
        |name| Request { sampling: sampled(u64::from(name)), ..constrained(request(name, 30, 60), 30) };
    let tiny = Limits { n_blocks: 40, ..limits() };
    let options = Options { policy: Policy { spare_tokens: 0, ..Policy::default() }, ..Options::default() };
    let mut rig = Rig::with_options(FakeRunner::new(tiny), options);
    let together = rig.answers((0..6).map(asked));
    assert!(rig.handle.snapshot().preempted > 0);
    for (name, heard) in (0..).zip(together) {
        assert_eq!(Rig::new(FakeRunner::new(limits())).answers([asked(name)])[0].ids(), heard.ids());
    }
}

#[test]
fn a_matcher_that_fails_ends_its_answer_alone() {
    let mut rig = Rig::new(FakeRunner::new(limits()));
    let heard = rig.answers([constrained(request(1, 5, 60), 60), constrained(request(2, 5, 60), 30)]);
    assert_eq!(heard[0].end, Some(End::Stuck));
    assert_eq!(heard[0].tokens.len(), 40);
    assert_eq!(heard[1].end, Some(End::Finished(FinishReason::Stop)));
}

#[test]
fn an_end_that_must_come_is_not_delayed() {
    let asked = Request { min_new_tokens: 20, ..constrained(request(1, 5, 60), 6) };
    let heard = Rig::new(FakeRunner::new(limits())).answers([asked]);
    assert_eq!(heard[0].tokens.len(), 7);
    assert_eq!(heard[0].end, Some(End::Finished(FinishReason::Stop)));
}
