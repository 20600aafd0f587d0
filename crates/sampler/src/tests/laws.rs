//! Against a full sort, over rows of any shape.

use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::*;
use crate::reference::{kept as kept_by_sorting, mass, sorted};

/// Rows larger than a sample, over several tiles: even, tied, flat, with a head, with holes.
fn rows() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        Just((0..1, 1.0)),       // all equal
        Just((-3..3, 1.0)),      // tied
        Just((-999..999, 1e-4)), // nearly equal
        Just((-999..999, 1e-2)), // wide
        Just((-999..999, 1e-1)), // a few tokens hold all
    ];
    let size = prop_oneof![1usize..300, 1usize..9000];
    (logit, size, 0usize..4, 0usize..4, any::<u64>()).prop_map(
        |((range, unit), size, n_heads, holes, seed)| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let mut below = |n: usize| (random.next_u64() % n as u64) as usize;
            let width = (range.end - range.start) as usize;
            let mut row: Vec<f32> =
                (0..size).map(|_| (range.start + below(width) as i32) as f32 * unit).collect();
            for _ in 0..n_heads * 5 {
                row[below(size)] += 6.0 * n_heads as f32;
            }
            for _ in 0..holes * size / 4 {
                row[below(size)] = NEG_INF;
            }
            row
        },
    )
}

fn any_draw() -> impl Strategy<Value = Draw> {
    let top_k = prop_oneof![Just(0), 1usize..80, 1usize..9000];
    let top_p = prop_oneof![Just(1.0), Just(0.95f32), 0.001f32..1.0];
    let min_p = prop_oneof![Just(0.0), Just(1.0), 0.0001f32..0.5];
    let temperature = prop_oneof![Just(1.0f32), 0.1f32..3.0];
    (top_k, top_p, min_p, temperature, 0.0f64..1.0).prop_map(|(top_k, top_p, min_p, temperature, uniform)| {
        Draw { top_k, top_p, min_p, temperature, uniform, ..Draw::default() }
    })
}

/// What each token weighs after the cuts.
fn kept(draw: &Draw, row: &[f32], scratch: &mut Scratch) -> Vec<f32> {
    assert!(survey(row, &mut scratch.maxima));
    let best = largest(&scratch.maxima);
    let cut = draw.weigh(row, best, scratch);
    let mut kept = vec![0.0; row.len()];
    for (at, &weight) in scratch.weights.iter().enumerate().filter(|(_, weight)| **weight >= cut) {
        kept[scratch.shortlist.ids.get(at).map_or(at, |&id| id as usize)] = weight;
    }
    kept
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn draws_agree_with_a_full_sort(row in rows(), draws in prop::collection::vec(any_draw(), 3)) {
        let mut scratch = Scratch::default();
        let all_masked = row.iter().all(|logit| *logit == NEG_INF);
        for draw in draws {
            // Sees to it that the reference agrees.
            let drawn = drawn_from(&draw, &row);
            prop_assert_eq!(drawn.is_err(), all_masked);
            if !all_masked {
                let expected = kept_by_sorting(&draw, &row);
                prop_assert!(kept(&draw, &row, &mut scratch) == expected, "{:?}", draw);
                prop_assert!(mass(&expected) > 0.0);
            }
        }
    }

    #[test]
    fn adjusted_draws_agree_with_a_full_sort(
        row in rows(),
        draw in any_draw(),
        greedy: bool,
        banned in prop::collection::vec(0u32..300, 0..4),
        counts in prop::collection::btree_map(0u32..300, 0u32..9, 0..20),
        biases in prop::collection::btree_map(prop_oneof![0u32..300, 0u32..9000], prop_oneof![-100i32..101, Just(100)], 0..9),
        penalties in prop_oneof![Just([1.0, 0.0, 0.0]), [0.5f32..2.0, -2.0f32..2.0, -2.0f32..2.0]],
        before in prop::option::of(0u32..300),
    ) {
        let temperature = if greedy { 0.0 } else { draw.temperature };
        let [repetition_penalty, frequency_penalty, presence_penalty] = penalties;
        let draw = Draw { temperature, repetition_penalty, frequency_penalty, presence_penalty, ..draw };
        let biases = biases.into_iter().map(|(id, bias)| (id, bias as f32)).collect();
        let counts = counts.into_iter().collect();
        let lists = Lists { banned, counts, biases, mask: None, before: before.map(Ok) };
        let (draws, before) = lists.draws(draw, row.len());
        let _ = drawn_with(&draws, &row, &before); // sees to it that the reference agrees
    }

    #[test]
    fn masked_draws_agree_with_a_full_sort(row in rows(), draw in any_draw(), words in prop::collection::vec(any::<u32>(), 300)) {
        let draws = Draws {
            sampled_vocab: row.len(),
            draws: vec![Draw { mask: Some(3), ..draw }],
            masks: words,
            ..Draws::default()
        };
        let _ = drawn_with(&draws, &row, &[]);
    }

    #[test]
    fn logprobs_agree_with_a_full_sort(row in rows(), n in 0usize..30, chosen: prop::sample::Index) {
        let chosen = chosen.index(row.len());
        let ids = sorted(&row);
        let largest = f64::from(row[ids[0]]);
        let mass: f64 = row.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
        let exact = |id: usize| (f64::from(row[id]) - largest - mass.ln()).max(-9999.0);
        let Ok(got) = logprobs(&row, chosen as u32, n) else {
            prop_assert_eq!(largest, f64::NEG_INFINITY);
            return Ok(());
        };
        let top: Vec<usize> = got.top.iter().map(|&(id, _)| id as usize).collect();
        prop_assert_eq!(&top, &ids[..n.min(ids.len())]);
        prop_assert_eq!(got.rank as usize, 1 + row.iter().filter(|&&logit| logit > row[chosen]).count());
        let close = |logprob: f32, id: usize| (f64::from(logprob) - exact(id)).abs() <= 3e-7 + 1e-7 * exact(id).abs();
        prop_assert!(close(got.chosen, chosen), "{} for {}", got.chosen, exact(chosen));
        prop_assert!(got.top.iter().all(|&(id, logprob)| close(logprob, id as usize)));
    }
}

/// Every fourth token is looked at for a guess where top-p cuts a row of 4096; the others differ.
#[test]
fn a_wrong_guess_costs_time_alone() {
    let check = |looked_at: fn(usize) -> f32, others: f32, top_p: f32| {
        let row: Vec<f32> = (0..4096).map(|id| if id % 4 == 0 { looked_at(id) } else { others }).collect();
        let draw = Draw { top_p, ..hot(1.0) };
        let kept = kept(&draw, &row, &mut Scratch::default());
        assert!(kept == kept_by_sorting(&draw, &row), "{others} at {top_p}");
    };
    let one_ahead = |id| if id == 0 { 1.0 } else { -20.0 };
    for top_p in [0.01, 0.5, 0.95] {
        check(one_ahead, 0.0, top_p);
        check(|_| 0.0, -20.0, top_p);
        check(|_| 0.0, 20.0, top_p);
    }
}
