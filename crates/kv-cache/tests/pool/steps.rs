//! What may happen to tables, at random.

use proptest::prelude::*;

#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// A sequence that begins like others of its family, from `own` on like none; `limit` of its
    /// tokens may come from the cache. Past answers drew so many of them, from so far on.
    Open {
        salt: u8,
        drawn: Option<(usize, usize)>,
        family: u32,
        own: usize,
        len: usize,
        limit: usize,
    },
    /// Of the table at this index (modulo their number), so many tokens more, or all that it has;
    /// full blocks are published or not.
    Compute {
        table: usize,
        tokens: Option<usize>,
        publish: bool,
    },
    /// Room for so many tokens.
    Reserve {
        table: usize,
        len: usize,
    },
    Fork {
        table: usize,
        len: usize,
    },
    CopyDone {
        table: usize,
    },
    /// A step that failed has written anything where it was to write.
    Scribble {
        table: usize,
    },
    Drop {
        table: usize,
    },
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let table = any::<usize>;
    let open = (
        0u8..2,
        prop::option::of((0usize..28, 1usize..6)),
        0u32..3,
        0usize..24,
        1usize..28,
        prop::option::of(0usize..28),
    )
        .prop_map(|(salt, drawn, family, own, len, limit)| Step::Open {
            salt: u8::from(salt == 1 && len % 3 == 0),
            drawn: drawn.filter(|_| len % 4 == 0),
            family,
            own: own.min(len) / 2 * 2,
            len,
            limit: limit.unwrap_or(len - 1).min(len),
        });
    let step = prop_oneof![
        8 => open,
        10 => (table(), prop::option::of(1usize..16), prop::bool::weighted(0.9))
            .prop_map(|(table, tokens, publish)| Step::Compute { table, tokens, publish }),
        2 => (table(), 0usize..40).prop_map(|(table, len)| Step::Reserve { table, len }),
        3 => (table(), 0usize..40).prop_map(|(table, len)| Step::Fork { table, len }),
        1 => table().prop_map(|table| Step::CopyDone { table }),
        1 => table().prop_map(|table| Step::Scribble { table }),
        6 => table().prop_map(|table| Step::Drop { table }),
    ];
    prop::collection::vec(step, 0..100)
}
