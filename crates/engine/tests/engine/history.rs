//! Random histories: what may happen to an engine, and to which.

use engine::Policy;
use proptest::prelude::*;

use crate::harness::Limits;

#[derive(Debug, Clone)]
pub(crate) struct History {
    pub(crate) setup: Setup,
    pub(crate) acts: Vec<Act>,
    pub(crate) ending: Ending,
}

#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) policy: Policy,
    pub(crate) prefix_cache: bool,
    pub(crate) max_waiting: usize,
    /// Steps that fail, whoever is in them.
    pub(crate) fail_at: Vec<usize>,
    pub(crate) panic_at: Option<usize>,
    /// What comes of a step is told once the next is launched.
    pub(crate) ahead: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Act {
    Submit(Wish),
    Step(usize),
    /// A choice's client takes so many events, if there are, and leaves. Guest and choice modulo their number.
    Leave {
        guest: usize,
        choice: usize,
        events: usize,
    },
    /// So many seconds pass.
    Pass(u64),
}

/// A request; prompts of one family begin alike, and of one name are the same beyond.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) family: u32,
    pub(crate) shared: usize,
    pub(crate) name: u32,
    pub(crate) len: usize,
    pub(crate) max_new_tokens: usize,
    pub(crate) n: usize,
    pub(crate) salt: u8,
    pub(crate) priority: i32,
    pub(crate) scored: bool,
    pub(crate) sampled: bool,
    pub(crate) stops: bool,
    /// Seconds from its arrival.
    pub(crate) deadline: Option<u64>,
    pub(crate) poison: Option<(Poison, usize)>,
    /// Goes on from the answer of a guest before it, if that is complete and there is room.
    pub(crate) follows: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Poison {
    /// Fails the step that computes it.
    Fast,
    /// Fails steps that come some tokens later, perhaps in the answer.
    Slow,
}

/// How it all ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ending {
    /// When all answers are complete.
    Rest,
    /// At once.
    Shutdown,
    /// The last handle goes; what was asked for is completed.
    HandlesGone,
}

pub(crate) fn histories(acts: std::ops::Range<usize>) -> impl Strategy<Value = History> {
    let ending =
        prop_oneof![3 => Just(Ending::Rest), 1 => Just(Ending::Shutdown), 1 => Just(Ending::HandlesGone)];
    let n_steps = acts.end;
    (setups(n_steps), prop::collection::vec(act(), acts), ending).prop_map(|(setup, acts, ending)| History {
        setup,
        acts,
        ending,
    })
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => wish().prop_map(Act::Submit),
        6 => (1usize..6).prop_map(Act::Step),
        1 => (any::<usize>(), any::<usize>(), 0usize..6)
            .prop_map(|(guest, choice, events)| Act::Leave { guest, choice, events }),
        1 => (1u64..4).prop_map(Act::Pass),
    ]
}

fn wish() -> impl Strategy<Value = Wish> {
    let len = prop_oneof![5 => 1usize..20, 1 => 1usize..48];
    let prompt = (0u32..3, 0usize..32, 0u32..4, len, prop_oneof![1 => Just(0usize), 9 => 1usize..20]);
    let draws = (prop_oneof![6 => Just(1usize), 2 => 2usize..5], any::<u8>(), -1i32..2);
    let kinds = (prop::bool::weighted(0.15), prop::bool::weighted(0.2), prop::bool::weighted(0.3));
    let poison = prop_oneof![Just(Poison::Fast), Just(Poison::Slow)];
    let troubles =
        (prop::option::weighted(0.15, 0u64..8), prop::option::weighted(0.06, (poison, 0usize..40)));
    let follows = prop::option::weighted(0.3, any::<usize>());
    (prompt, draws, kinds, troubles, follows).prop_map(|(prompt, draws, kinds, troubles, follows)| {
        let ((n, salt, priority), (deadline, poison)) = (draws, troubles);
        let (family, shared, name, len, max_new_tokens) = prompt;
        let (scored, sampled, stops) = kinds;
        let salt = u8::from(salt > 200);
        Wish {
            family,
            shared,
            name,
            len,
            max_new_tokens,
            n,
            salt,
            priority,
            scored,
            sampled,
            stops,
            deadline,
            poison,
            follows,
        }
    })
}

fn setups(n_steps: usize) -> impl Strategy<Value = Setup> {
    let options = (policies(), prop::bool::weighted(0.8), prop_oneof![Just(3usize), Just(1_000)]);
    let fail_at = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(0..2 * n_steps, 1..8)];
    let panic_at = prop::option::weighted(0.2, 0..n_steps);
    (sizes(), options, fail_at, panic_at, any::<bool>()).prop_map(
        |(limits, options, fail_at, panic_at, ahead)| {
            let (policy, prefix_cache, max_waiting) = options;
            Setup { limits, policy, prefix_cache, max_waiting, fail_at, panic_at, ahead }
        },
    )
}

fn policies() -> impl Strategy<Value = Policy> {
    let share = prop_oneof![Just(1usize), Just(4), Just(usize::MAX)];
    let pairs = prop_oneof![Just(8usize), Just(usize::MAX)];
    let spare = prop_oneof![3 => Just(0usize), 1 => Just(6), 1 => Just(usize::MAX)];
    let waits = (prop_oneof![Just(2usize), Just(usize::MAX)], prop_oneof![Just(0usize), Just(3)]);
    (share, pairs, spare, waits, prop::bool::weighted(0.8)).prop_map(
        |(share, pairs, spare, waits, prefixes)| Policy {
            prompt_tokens_beside_answers: share,
            prompt_pairs_beside_answers: pairs,
            spare_tokens: spare,
            overtaken_max: waits.0,
            passed_over_max: waits.1,
            await_prefixes: prefixes,
        },
    )
}

fn sizes() -> impl Strategy<Value = Limits> {
    let n_blocks = prop_oneof![2 => 2usize..16, 4 => 10usize..40, 1 => 100usize..200];
    (1usize..9, n_blocks, 1usize..40, 1usize..7, 1usize..40, 2usize..10).prop_map(
        |(block_len, n_blocks, step_tokens, step_rows, step_outputs, unit)| Limits {
            vocab_size: 96,
            context_len: 48,
            block_len,
            n_blocks,
            step_tokens,
            step_rows,
            step_outputs,
            prefill_unit: match step_tokens.min(step_outputs).saturating_sub(step_rows) {
                0 | 1 => usize::MAX,
                room => unit.min(room),
            },
        },
    )
}
