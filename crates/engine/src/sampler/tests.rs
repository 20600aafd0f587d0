use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const NEG_INF: f32 = f32::NEG_INFINITY;

fn sampler(sampling: Sampling) -> Sampler {
    Sampler::new(&Request { sampling, ..Request::default() }, 0)
}

fn hot(temperature: f32) -> Sampling {
    Sampling { temperature, seed: Some(11), ..Sampling::default() }
}

/// The tokens that can be drawn, by drawing often; and how often each was.
fn histogram(sampling: Sampling, row: &[f32]) -> Vec<usize> {
    let (mut sampler, mut scratch) = (sampler(sampling), Scratch::new(row.len()));
    let mut counts = vec![0; row.len()];
    for _ in 0..20_000 {
        counts[sampler.draw(row, &mut scratch).unwrap() as usize] += 1;
    }
    counts
}

fn check_drawn(sampling: Sampling, row: &[f32], expected: &[u32]) {
    let counts = histogram(sampling, row);
    let drawn: Vec<u32> = (0..row.len() as u32).filter(|&id| counts[id as usize] > 0).collect();
    assert_eq!(drawn, expected);
}

#[test]
fn greedy_takes_the_largest_and_the_lowest_id_on_ties() {
    let check = |row: &[f32], expected: Result<u32, NoToken>| {
        for temperature in [0.0, 1e-9, 0.99e-5] {
            let got = sampler(hot(temperature)).draw(row, &mut Scratch::new(row.len()));
            assert_eq!(got, expected, "{row:?} at {temperature}");
        }
    };
    check(&[1.0, 3.0, 3.0, 2.0], Ok(1));
    check(&[-0.0, 0.0, -1.0], Ok(0));
    check(&[NEG_INF, -5.0], Ok(1));
    check(&[f32::MIN, NEG_INF], Ok(0));
    check(&[NEG_INF, NEG_INF], Err(NoToken::AllMasked));
    check(&[1.0, f32::NAN], Err(NoToken::NotFinite));
    check(&[f32::INFINITY, 1.0], Err(NoToken::NotFinite));
}

#[test]
fn cuts_keep_what_they_promise() {
    let tied = [1.0, 2.0, 2.0, 2.0, 2.0, 0.0];
    check_drawn(Sampling { top_k: 3, ..hot(1.0) }, &tied, &[1, 2, 3]);
    check_drawn(Sampling { top_k: 1, ..hot(2.0) }, &tied, &[1]);
    check_drawn(Sampling { top_k: 99, ..hot(2.0) }, &tied, &[0, 1, 2, 3, 4, 5]);
    check_drawn(Sampling { top_k: 3, ..hot(1.0) }, &[NEG_INF, 1.0, NEG_INF, 0.0], &[1, 3]);
    check_drawn(Sampling { top_k: 1, ..hot(1.0) }, &[-0.0, 0.0, -1.0], &[0]);
    let even = [0.0; 10];
    check_drawn(Sampling { top_p: 0.3, ..hot(1.0) }, &even, &[0, 1, 2]);
    check_drawn(Sampling { top_p: 0.31, ..hot(1.0) }, &even, &[0, 1, 2, 3]);
    check_drawn(Sampling { top_p: 1e-6, ..hot(1.0) }, &even, &[0]);
    // Weights 1/2, 1/4, 1/8, 1/8 at temperature 1.
    let halves = [-3.0, 0.0, -1.0, -2.0, -3.0].map(|log2: f32| log2 * std::f32::consts::LN_2);
    check_drawn(Sampling { min_p: 0.2, ..hot(1.0) }, &halves, &[1, 2, 3]);
    check_drawn(Sampling { min_p: 1.0, ..hot(1.0) }, &halves, &[1]);
    // In this order: temperature, top-k, top-p over what top-k left, min-p.
    check_drawn(Sampling { min_p: 0.4, ..hot(0.5) }, &halves, &[1]);
    check_drawn(Sampling { top_p: 0.6, ..hot(1.0) }, &halves, &[1, 2]);
    check_drawn(Sampling { top_p: 0.6, top_k: 2, ..hot(1.0) }, &halves, &[1]);
}

#[test]
fn draws_follow_the_softmax() {
    let row = [0.5, -1.0, 2.0, 0.0, NEG_INF];
    let temperature = 1.7;
    let weights: Vec<f64> = row.iter().map(|&l| f64::from(l / temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    for (count, weight) in histogram(hot(temperature), &row).into_iter().zip(weights) {
        let share = weight / total;
        let deviation = (20_000.0 * share * (1.0 - share)).sqrt(); // of a binomial
        assert!((count as f64 - 20_000.0 * share).abs() <= 4.0 * deviation, "{count} for {share}");
    }
}

#[test]
fn a_low_temperature_stays_finite() {
    check_drawn(hot(1e-5), &[f32::MIN, 3.0, 2.9, f32::MAX, NEG_INF], &[3]);
    check_drawn(Sampling { top_p: 0.5, min_p: 0.5, ..hot(1e-5) }, &[1.0, 3.0, 2.9], &[1]);
}

/// Logits after masks, penalties and bias, once `drawn` has been generated after `prompt`.
fn check_adjusted(request: Request, drawn: &[u32], row: &[f32], expected: &[f32]) {
    let mut sampler = Sampler::new(&request, 0);
    sampler.n_drawn = drawn.len();
    for &id in drawn {
        *sampler.counts.entry(id).or_default() += 1;
    }
    let mut logits = row.to_vec();
    sampler.adjust(&mut logits);
    assert_eq!(logits, expected);
}

#[test]
fn penalties_and_bias_move_logits_in_their_order() {
    let check = |sampling: Sampling, expected: &[f32]| {
        let request = Request { prompt: vec![0, 1, 0], sampling, ..Request::default() };
        check_adjusted(request, &[1, 2, 2], &[4.0, -4.0, 2.0, 1.0], expected);
    };
    let none = Sampling::default;
    check(none(), &[4.0, -4.0, 2.0, 1.0]);
    check(Sampling { repetition_penalty: 2.0, ..none() }, &[2.0, -8.0, 1.0, 1.0]);
    check(Sampling { repetition_penalty: 0.5, ..none() }, &[8.0, -2.0, 4.0, 1.0]);
    check(Sampling { frequency_penalty: 0.5, ..none() }, &[4.0, -4.5, 1.0, 1.0]);
    check(Sampling { presence_penalty: 0.5, ..none() }, &[4.0, -4.5, 1.5, 1.0]);
    let all = Sampling {
        repetition_penalty: 2.0,
        frequency_penalty: 1.0,
        presence_penalty: -0.5,
        logit_bias: vec![(2, 10.0), (3, -1.0)],
        ..none()
    };
    check(all, &[2.0, -8.5, 9.5, 0.0]);
    check(Sampling { logit_bias: vec![(0, -100.0), (900, 5.0)], ..none() }, &[NEG_INF, -4.0, 2.0, 1.0]);
    let forced = vec![(1, 100.0), (3, 100.0), (0, 99.0)];
    check(Sampling { logit_bias: forced, ..none() }, &[NEG_INF, 96.0, NEG_INF, 101.0]);
}

#[test]
fn drawn_tokens_are_remembered() {
    let check = |sampling: Sampling, expected: [u32; 6]| {
        let (mut sampler, mut scratch) = (sampler(sampling), Scratch::new(3));
        assert_eq!([(); 6].map(|()| sampler.draw(&[2.0, 1.75, 1.0], &mut scratch).unwrap()), expected);
    };
    check(Sampling { presence_penalty: 0.5, ..Sampling::default() }, [0, 1, 0, 0, 0, 0]);
    check(Sampling { frequency_penalty: 0.5, ..Sampling::default() }, [0, 1, 0, 1, 0, 2]);
    check(Sampling { repetition_penalty: 2.0, ..Sampling::default() }, [0, 1, 0, 0, 0, 0]);
}

#[test]
fn stop_ids_are_masked_for_the_first_tokens_even_if_forced() {
    let sampling = Sampling { logit_bias: vec![(1, 100.0)], ..Sampling::default() };
    let request = Request { stop_ids: vec![1, 900], min_new_tokens: 2, sampling, ..Request::default() };
    check_adjusted(request.clone(), &[0], &[3.0, 4.0], &[3.0, NEG_INF]);
    check_adjusted(request, &[0, 0], &[3.0, 4.0], &[NEG_INF, 104.0]);
}

#[test]
fn logprobs_stay_exact_over_a_large_vocabulary() {
    // 128 k equal tokens and one that is ahead: an f32 sum would lose every small term.
    let mut row = vec![0.0; 128_000];
    row[77] = 16.0;
    let total = 16.0f64.exp() + 127_999.0;
    let got = logprobs(&row, 5, 3).unwrap();
    assert_eq!((got.rank, got.top.iter().map(|t| t.0).collect::<Vec<_>>()), (2, vec![77, 0, 1]));
    assert!((f64::from(got.chosen) + total.ln()).abs() < 1e-5, "{}", got.chosen);
    assert!((f64::from(got.top[0].1) - (16.0 - total.ln())).abs() < 1e-5);
    assert_eq!(logprobs(&[NEG_INF, NEG_INF], 0, 0), Err(NoToken::NotFinite));
    assert_eq!(logprobs(&[0.0, 1.0], 0, 9).unwrap().top.len(), 2);
}

/// Few distinct values, so that ties are common.
fn weights() -> impl Strategy<Value = Vec<Candidate>> {
    prop::collection::vec(prop_oneof![(0u8..6).prop_map(f32::from), 0.0f32..1.0], 1..200)
        .prop_map(|values| (0..).zip(values).map(|(id, value)| Candidate::new(value + 1e-3, id)).collect())
}

fn ids(candidates: &[Candidate]) -> BTreeSet<u32> {
    candidates.iter().map(|candidate| candidate.id()).collect()
}

proptest! {
    #[test]
    fn cuts_agree_with_a_full_sort(candidates in weights(), k in 1usize..220, p in 0.001f32..1.0) {
        let mut sorted = candidates.clone();
        sorted.sort_by(|a, b| b.value().total_cmp(&a.value()).then(a.id().cmp(&b.id())));

        let mut top_k = candidates.clone();
        keep_top_k(&mut top_k, k);
        prop_assert_eq!(ids(&top_k), ids(&sorted[..k.min(sorted.len())]));

        let mut top_p = candidates;
        keep_top_p(&mut top_p, p);
        let mass = |n: usize| sorted[..n].iter().map(|c| f64::from(c.value())).sum::<f64>();
        let needed = f64::from(p) * mass(sorted.len());
        let n = top_p.len();
        prop_assert_eq!(ids(&top_p), ids(&sorted[..n]));
        prop_assert!(mass(n) >= needed * (1.0 - 2e-7), "{} of {needed}", mass(n));
        prop_assert!(n == 1 || mass(n - 1) < needed, "{} would do", n - 1);
    }

    #[test]
    fn top_logprobs_agree_with_a_full_sort(candidates in weights(), n in 0usize..30) {
        let row: Vec<f32> = candidates.iter().map(|candidate| candidate.value()).collect();
        let mut sorted: Vec<u32> = (0..row.len() as u32).collect();
        sorted.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
        sorted.truncate(n);
        let top: Vec<u32> = logprobs(&row, 0, n).unwrap().top.into_iter().map(|(id, _)| id).collect();
        prop_assert_eq!(top, sorted);
    }
}
