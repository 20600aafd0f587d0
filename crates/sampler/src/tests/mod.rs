mod laws;

use super::*;

const NEG_INF: f32 = f32::NEG_INFINITY;

fn sampler(sampling: Sampling) -> Sampler {
    Sampler::new(&Request { sampling, ..Request::default() }, 0, Default::default())
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
    let mut sampler = Sampler::new(&request, 0, penalised(&request));
    sampler.n_drawn = drawn.len();
    for &id in drawn {
        *sampler.counts.entry(id).or_default() += 1;
    }
    let mut logits = row.to_vec();
    sampler.adjust(&mut Adjusted { logits: &mut logits, maxima: &mut [0.0] });
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

/// Sizes around those of blocks and tiles.
const SIZES: [usize; 8] = [1, 127, 128, 129, 511, 512, 513, 1000];

#[test]
fn no_token_comes_of_a_row_that_is_not_numbers() {
    for size in SIZES {
        for at in [0, size / 2, size - 1] {
            for fault in [f32::NAN, -f32::NAN, f32::INFINITY] {
                let mut row = vec![-1.0; size];
                row[at] = fault;
                assert_eq!(logprobs(&row, 0, 1), Err(NoToken::NotFinite), "{at} of {size}");
                for sampled_vocab in [1, size] {
                    let request = Request {
                        stop_ids: vec![at as u32],
                        min_new_tokens: 1, // a mask does not hide it
                        ..Request::default()
                    };
                    let got = Sampler::new(&request, 0, penalised(&request))
                        .draw(&row, &mut Scratch::new(sampled_vocab));
                    assert_eq!(got, Err(NoToken::NotFinite), "{at} of {size}");
                }
            }
        }
    }
}

#[test]
fn ids_beyond_the_sampled_vocabulary_are_never_drawn() {
    for size in SIZES {
        let mut row = vec![0.0; size + 3];
        row[size..].fill(50.0);
        for sampling in [Sampling::default(), hot(1.0), Sampling { top_k: 2, ..hot(1.0) }] {
            let request =
                Request { sampling, stop_ids: vec![size as u32], min_new_tokens: 1, ..Request::default() };
            let id =
                Sampler::new(&request, 0, penalised(&request)).draw(&row, &mut Scratch::new(size)).unwrap();
            assert!((id as usize) < size, "{id} of {size}");
        }
    }
}

#[test]
fn weights_are_close_to_the_true_ones_and_the_same_however_compiled() {
    let logits: Vec<f32> = (0..300_001).map(|i| i as f32 * -3e-4).collect();
    let mut weights = vec![0.0; logits.len()];
    let softmax = Softmax::new(0.0, 1.0);
    softmax.weigh(&logits, &mut weights, &mut Vec::new());
    assert_eq!(weights[0], 1.0);
    for (&logit, weight) in logits.iter().zip(weights) {
        assert_eq!(softmax.weight(logit).to_bits(), weight.to_bits(), "{logit}: lanes differ");
        let y = logit * std::f32::consts::LOG2_E;
        let error = f64::from(weight) / f64::from(y).exp2() - 1.0;
        assert!(if y >= -125.0 { error.abs() < 2e-7 } else { weight == 0.0 }, "{logit}: {weight}");
    }
    assert_eq!(softmax.weight(NEG_INF), 0.0);
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
    let top = |row: &[f32]| logprobs(row, 0, 9).unwrap().top.iter().map(|t| t.0).collect::<Vec<_>>();
    assert_eq!(top(&[0.0, 1.0]), [1, 0]);
    assert_eq!(top(&[NEG_INF, -0.0, 0.0, 1.0]), [3, 1, 2, 0]);
}
