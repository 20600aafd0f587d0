//! Against a full sort, over rows of any shape.

use proptest::prelude::*;

use super::*;

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

fn samplings() -> impl Strategy<Value = Sampling> {
    let top_k = prop_oneof![Just(0), 1usize..80, 1usize..9000];
    let top_p = prop_oneof![Just(1.0), Just(0.95f32), 0.001f32..1.0];
    let min_p = prop_oneof![Just(0.0), Just(1.0), 0.0001f32..0.5];
    let temperature = prop_oneof![Just(1.0f32), 0.1f32..3.0];
    (top_k, top_p, min_p, temperature, any::<u64>()).prop_map(|(top_k, top_p, min_p, temperature, seed)| {
        Sampling { top_k, top_p, min_p, temperature, seed: Some(seed), ..Sampling::default() }
    })
}

/// Ids from the largest value down, the lowest id first on ties.
fn sorted(row: &[f32]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..row.len()).collect();
    ids.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap());
    ids
}

fn mass<'a>(weights: impl IntoIterator<Item = &'a f32>) -> f64 {
    weights.into_iter().copied().map(f64::from).sum()
}

/// What each token weighs after the cuts, by sorting.
fn kept_by_sorting(sampling: &Sampling, row: &[f32]) -> Vec<f32> {
    let &Sampling { top_k, top_p, min_p, temperature, .. } = sampling;
    let ids = sorted(row);
    let softmax = Softmax::new(row[ids[0]], temperature);
    let mut weights = vec![0.0; row.len()];
    for &id in ids.iter().take(if top_k == 0 { ids.len() } else { top_k }) {
        weights[id] = softmax.weight(row[id]);
    }
    if top_p < 1.0 {
        let needed = mass(&weights) * f64::from(top_p) * (1.0 - f64::from(f32::EPSILON));
        let mut reached = 0.0;
        for id in sorted(&weights) {
            let weight = std::mem::take(&mut weights[id]);
            if reached < needed {
                weights[id] = weight;
            }
            reached += f64::from(weight);
        }
    }
    weights.iter_mut().filter(|weight| **weight < min_p).for_each(|weight| *weight = 0.0);
    weights
}

/// The same by the sampler.
fn kept(sampler: &Sampler, row: &[f32], scratch: &mut Scratch) -> Vec<f32> {
    assert!(survey(row, &mut scratch.maxima));
    let best = largest(&scratch.maxima);
    let cut = sampler.weigh(row, best, scratch);
    let mut kept = vec![0.0; row.len()];
    for (at, &weight) in scratch.weights.iter().enumerate().filter(|(_, weight)| **weight >= cut) {
        kept[scratch.shortlist.ids.get(at).map_or(at, |&id| id as usize)] = weight;
    }
    kept
}

fn drawn_in_order(weights: &[f32], sampler: &Sampler) -> u32 {
    let uniform = (sampler.stream.clone().next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let mut left = uniform * mass(weights);
    let drawn = weights.iter().position(|&weight| {
        left -= f64::from(weight);
        left < 0.0
    });
    drawn.unwrap() as u32
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn draws_agree_with_a_full_sort(row in rows(), samplings in prop::collection::vec(samplings(), 3)) {
        let mut scratch = Scratch::new(row.len());
        let all_masked = row.iter().all(|logit| *logit == NEG_INF);
        for sampling in samplings {
            let mut sampler = sampler(sampling);
            if all_masked {
                prop_assert_eq!(sampler.draw(&row, &mut scratch), Err(NoToken::AllMasked));
                continue;
            }
            let expected = kept_by_sorting(&sampler.sampling, &row);
            prop_assert!(kept(&sampler, &row, &mut scratch) == expected, "{:?}", sampler.sampling);
            for _ in 0..3 {
                let id = drawn_in_order(&expected, &sampler);
                prop_assert_eq!(sampler.draw(&row, &mut scratch), Ok(id), "{:?}", sampler.sampling);
            }
        }
    }

    #[test]
    fn a_bias_is_worth_what_it_adds_to_the_row(
        row in rows(),
        sampling in samplings(),
        greedy: bool,
        biases in prop::collection::vec((prop_oneof![0u32..300, 0u32..9000], prop_oneof![-100i32..101, Just(100)]), 1..9),
    ) {
        let temperature = if greedy { 0.0 } else { sampling.temperature };
        let plain = Sampling { temperature, ..sampling };
        let mut logits = row.clone();
        for &(id, bias) in &biases {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if bias == -100 { NEG_INF } else { *logit + bias as f32 };
            }
        }
        let forced = |id: usize| biases.iter().any(|&(biased, bias)| biased as usize == id && bias == 100);
        if (0..logits.len()).any(|id| forced(id) && logits[id].is_finite()) {
            (0..logits.len()).filter(|&id| !forced(id)).for_each(|id| logits[id] = NEG_INF);
        }
        let logit_bias = biases.iter().map(|&(id, bias)| (id, bias as f32)).collect();
        let mut scratch = Scratch::new(row.len());
        let expected = sampler(plain.clone()).draw(&logits, &mut scratch);
        prop_assert_eq!(sampler(Sampling { logit_bias, ..plain }).draw(&row, &mut scratch), expected);
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
        let sampler = sampler(Sampling { top_p, ..hot(1.0) });
        let kept = kept(&sampler, &row, &mut Scratch::new(row.len()));
        assert!(kept == kept_by_sorting(&sampler.sampling, &row), "{others} at {top_p}");
    };
    let one_ahead = |id| if id == 0 { 1.0 } else { -20.0 };
    for top_p in [0.01, 0.5, 0.95] {
        check(one_ahead, 0.0, top_p);
        check(|_| 0.0, -20.0, top_p);
        check(|_| 0.0, 20.0, top_p);
    }
}

#[test]
fn a_seed_draws_the_same_alone_and_among_others() {
    let row: Vec<f32> = (0..5000).map(|i| (i * 7919 % 4999) as f32 * 2e-3).collect();
    let draws = |among: &[Sampling]| {
        let mut samplers: Vec<Sampler> = among.iter().cloned().map(sampler).collect();
        let mut scratch = Scratch::new(row.len());
        let mut draw = |sampler: &mut Sampler| sampler.draw(&row, &mut scratch).unwrap();
        (0..20).map(|_| samplers.iter_mut().map(&mut draw).next_back().unwrap()).collect::<Vec<u32>>()
    };
    let last = Sampling { top_p: 0.9, frequency_penalty: 0.5, ..hot(1.0) };
    let others = [hot(2.0), Sampling { top_k: 3, ..hot(1.0) }, Sampling::default(), last.clone()];
    assert_eq!(draws(&[last]), draws(&others));
}

#[test]
fn each_choice_draws_from_a_stream_of_its_own() {
    let request = Request { sampling: hot(1.0), ..Request::default() };
    let first = |choice| {
        let mut sampler = Sampler::new(&request, choice, penalised(&request));
        sampler.draw(&[0.0; 9000], &mut Scratch::new(9000)).unwrap()
    };
    assert_eq!([first(0), first(1), first(2)], [first(0), first(1), first(2)]);
    assert!(first(0) != first(1) && first(1) != first(2));
}
