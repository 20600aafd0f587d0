mod laws;

use super::*;

const NEG_INF: f32 = f32::NEG_INFINITY;

fn hot(temperature: f32) -> Draw {
    Draw { temperature, uniform: 0.3, ..Draw::default() }
}

/// What `draw` comes to in a row of which all may be drawn.
fn drawn_from(draw: &Draw, row: &[f32]) -> Drawn {
    drawn_with(&Draws { sampled_vocab: row.len(), draws: vec![draw.clone()], ..Draws::default() }, row, &[])
}

fn drawn_with(draws: &Draws, row: &[f32], before: &[Drawn]) -> Drawn {
    let mut ids = Vec::new();
    draws.check(1, row.len(), before.len()).unwrap();
    draw_all(draws, row, row.len(), before, &mut Scratch::default(), &mut ids);
    assert_eq!(ids[0], reference(draws, 0, row, before), "{draws:?}");
    ids[0]
}

/// How often each token is drawn by so many numbers, one at each step of the way from 0 to 1.
fn histogram(draw: &Draw, row: &[f32], steps: usize) -> Vec<usize> {
    let draw = |i| Draw { uniform: (i as f64 + 0.5) / steps as f64, ..draw.clone() };
    let draws = Draws { sampled_vocab: row.len(), draws: (0..steps).map(draw).collect(), ..Draws::default() };
    let (mut ids, mut counts) = (Vec::new(), vec![0; row.len()]);
    draw_all(&draws, row, row.len(), &[], &mut Scratch::default(), &mut ids);
    ids.into_iter().for_each(|id| counts[id.unwrap() as usize] += 1);
    counts
}

fn check_drawn(draw: Draw, row: &[f32], expected: &[u32]) {
    let counts = histogram(&draw, row, 20_000);
    let drawn: Vec<u32> = (0..row.len() as u32).filter(|&id| counts[id as usize] > 0).collect();
    assert_eq!(drawn, expected);
}

#[test]
fn greedy_takes_the_largest_and_the_lowest_id_on_ties() {
    let check = |row: &[f32], expected: Result<u32, NoToken>| {
        for temperature in [0.0, 1e-9, 0.99e-5] {
            assert_eq!(drawn_from(&hot(temperature), row), expected, "{row:?} at {temperature}");
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
    check_drawn(Draw { top_k: 3, ..hot(1.0) }, &tied, &[1, 2, 3]);
    check_drawn(Draw { top_k: 1, ..hot(2.0) }, &tied, &[1]);
    check_drawn(Draw { top_k: 99, ..hot(2.0) }, &tied, &[0, 1, 2, 3, 4, 5]);
    check_drawn(Draw { top_k: 3, ..hot(1.0) }, &[NEG_INF, 1.0, NEG_INF, 0.0], &[1, 3]);
    check_drawn(Draw { top_k: 1, ..hot(1.0) }, &[-0.0, 0.0, -1.0], &[0]);
    let even = [0.0; 10];
    check_drawn(Draw { top_p: 0.3, ..hot(1.0) }, &even, &[0, 1, 2]);
    check_drawn(Draw { top_p: 0.31, ..hot(1.0) }, &even, &[0, 1, 2, 3]);
    check_drawn(Draw { top_p: 1e-6, ..hot(1.0) }, &even, &[0]);
    // Weights 1/2, 1/4, 1/8, 1/8 at temperature 1.
    let halves = [-3.0, 0.0, -1.0, -2.0, -3.0].map(|log2: f32| log2 * std::f32::consts::LN_2);
    check_drawn(Draw { min_p: 0.2, ..hot(1.0) }, &halves, &[1, 2, 3]);
    check_drawn(Draw { min_p: 1.0, ..hot(1.0) }, &halves, &[1]);
    // In this order: temperature, top-k, top-p over what top-k left, min-p.
    check_drawn(Draw { min_p: 0.4, ..hot(0.5) }, &halves, &[1]);
    check_drawn(Draw { top_p: 0.6, ..hot(1.0) }, &halves, &[1, 2]);
    check_drawn(Draw { top_p: 0.6, top_k: 2, ..hot(1.0) }, &halves, &[1]);
}

#[test]
fn draws_follow_the_softmax() {
    let row = [0.5, -1.0, 2.0, 0.0, NEG_INF];
    let temperature = 1.7;
    let weights: Vec<f64> = row.iter().map(|&l| f64::from(l / temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    for (count, weight) in histogram(&hot(temperature), &row, 20_000).into_iter().zip(weights) {
        let share = weight / total;
        assert!((count as f64 - 20_000.0 * share).abs() <= 2.0, "{count} for {share}");
    }
}

#[test]
fn a_low_temperature_stays_finite() {
    check_drawn(hot(1e-5), &[f32::MIN, 3.0, 2.9, f32::MAX, NEG_INF], &[3]);
    check_drawn(Draw { top_p: 0.5, min_p: 0.5, ..hot(1e-5) }, &[1.0, 3.0, 2.9], &[1]);
}

/// The lists that a draw may name, all of them.
#[derive(Default)]
struct Lists {
    banned: Vec<u32>,
    counts: Vec<(u32, u32)>,
    biases: Vec<(u32, f32)>,
    mask: Option<u32>,
    before: Option<Drawn>,
}

impl Lists {
    fn draws(self, draw: Draw, sampled_vocab: usize) -> (Draws, Vec<Drawn>) {
        let draw = Draw {
            banned: 0..self.banned.len(),
            counts: 0..self.counts.len(),
            biases: 0..self.biases.len(),
            mask: self.mask.map(|_| 0),
            after: self.before.map(|_| 0),
            ..draw
        };
        let (banned, counts, biases) = (self.banned, self.counts, self.biases);
        let masks = self.mask.into_iter().collect();
        (
            Draws { sampled_vocab, draws: vec![draw], banned, counts, biases, masks },
            self.before.into_iter().collect(),
        )
    }
}

/// Logits after masks, penalties and bias.
fn check_adjusted(draw: Draw, lists: Lists, row: &[f32], expected: &[f32]) {
    let (draws, before) = lists.draws(draw, row.len());
    let mut logits = row.to_vec();
    let row_of = Row { draws: &draws, draw: &draws.draws[0], before: &before };
    row_of.adjust(&mut Adjusted { logits: &mut logits, maxima: &mut [0.0] });
    assert_eq!(logits, expected, "{draws:?}");
    assert_eq!(reference::adjusted(&draws, &draws.draws[0], row, &before), expected, "{draws:?}");
}

#[test]
fn penalties_and_bias_move_logits_in_their_order() {
    let row = [4.0, -4.0, 2.0, 1.0];
    let counts = || vec![(2, 2), (1, 1), (0, 0)];
    let check = |draw: Draw, biases: &[(u32, f32)], expected: &[f32]| {
        let lists = || Lists { counts: counts(), biases: biases.to_vec(), ..Lists::default() };
        check_adjusted(draw.clone(), lists(), &row, expected);
        // One of them was not known when the list was made.
        let unlisted = |at: usize| {
            let mut counts = counts();
            counts[at].1 -= 1;
            if counts[at].1 == 0 {
                [counts[..at].to_vec(), counts[at + 1..].to_vec()].concat()
            } else {
                counts
            }
        };
        for (at, id) in [(0, 2), (1, 1)] {
            let late = Lists { counts: unlisted(at), before: Some(Ok(id)), ..lists() };
            check_adjusted(draw.clone(), late, &row, expected);
        }
        check_adjusted(draw, Lists { before: Some(Err(NoToken::NotFinite)), ..lists() }, &row, expected);
    };
    let none = Draw::default;
    check(none(), &[], &[4.0, -4.0, 2.0, 1.0]);
    check(Draw { repetition_penalty: 2.0, ..none() }, &[], &[2.0, -8.0, 1.0, 1.0]);
    check(Draw { repetition_penalty: 0.5, ..none() }, &[], &[8.0, -2.0, 4.0, 1.0]);
    check(Draw { frequency_penalty: 0.5, ..none() }, &[], &[4.0, -4.5, 1.0, 1.0]);
    check(Draw { presence_penalty: 0.5, ..none() }, &[], &[4.0, -4.5, 1.5, 1.0]);
    let all = Draw { repetition_penalty: 2.0, frequency_penalty: 1.0, presence_penalty: -0.5, ..none() };
    check(all, &[(2, 10.0), (3, -1.0)], &[2.0, -8.5, 9.5, 0.0]);
    check(none(), &[(0, -100.0), (900, 5.0)], &[NEG_INF, -4.0, 2.0, 1.0]);
    check(none(), &[(1, 100.0), (3, 100.0), (0, 99.0)], &[NEG_INF, 96.0, NEG_INF, 101.0]);
}

#[test]
fn what_is_banned_or_masked_stays_so_even_if_forced() {
    let forced = || vec![(1, 100.0)];
    let check = |lists: Lists, expected| check_adjusted(Draw::default(), lists, &[3.0, 4.0], expected);
    check(Lists { biases: forced(), ..Lists::default() }, &[NEG_INF, 104.0]);
    check(Lists { banned: vec![1, 900], biases: forced(), ..Lists::default() }, &[3.0, NEG_INF]);
    check(Lists { mask: Some(0b01), biases: forced(), ..Lists::default() }, &[3.0, NEG_INF]);
    check(Lists { mask: Some(0b10), ..Lists::default() }, &[NEG_INF, 4.0]);
    let (draws, before) = Lists { mask: Some(0b100), ..Lists::default() }.draws(Draw::default(), 2);
    assert_eq!(drawn_with(&draws, &[3.0, 4.0], &before), Err(NoToken::AllMasked));
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
                    let lists = Lists { banned: vec![at as u32], ..Lists::default() }; // does not hide it
                    let (draws, before) = lists.draws(Draw::default(), sampled_vocab);
                    assert_eq!(drawn_with(&draws, &row, &before), Err(NoToken::NotFinite), "{at} of {size}");
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
        for draw in [Draw::default(), hot(1.0), Draw { top_k: 2, ..hot(1.0) }] {
            let (draws, before) = Lists { banned: vec![size as u32], ..Lists::default() }.draws(draw, size);
            let id = drawn_with(&draws, &row, &before).unwrap();
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
