//! Log probabilities of prompts and answers.

use engine::request::{End, FinishReason, Logprobs, Request};
use engine::testing::{FakeRunner, fill_noise, limits};

use crate::harness::{Limits, Rig, request};

/// By the definition, in f64 and with a full sort.
fn reference(tokens: &[u32], next: u32, n: usize) -> Logprobs {
    let mut row = vec![0.0f32; limits().vocab_size];
    fill_noise(tokens, &mut row);
    let total: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
    let logprob = |id: u32| (f64::from(row[id as usize]) - total.ln()) as f32;
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
    Logprobs {
        chosen: logprob(next),
        rank: 1 + row.iter().filter(|&&logit| logit > row[next as usize]).count() as u32,
        top: order[..n].iter().map(|&id| (id, logprob(id))).collect(),
    }
}

fn assert_close(got: &Logprobs, wanted: &Logprobs) {
    let close = |a: f32, b: f32| (a - b).abs() < 1e-5;
    let tops = got.top.iter().zip(&wanted.top);
    assert!(
        close(got.chosen, wanted.chosen)
            && got.rank == wanted.rank
            && got.top.len() == wanted.top.len()
            && tops.clone().all(|(a, b)| a.0 == b.0 && close(a.1, b.1)),
        "{got:?}\n{wanted:?}"
    );
}

#[test]
fn prompt_and_answer_are_scored_by_the_raw_logits() {
    for step_outputs in [1, 5, 64] {
        let limits = Limits { step_outputs, ..limits() };
        let request = Request { prompt_logprobs: Some(3), logprobs: Some(2), ..request(2, 23, 6) };
        let heard = Rig::new(FakeRunner::new(limits)).answers([request.clone()]).remove(0);
        let sequence = [request.prompt.clone(), heard.ids()].concat();
        assert_eq!((heard.scores.len(), heard.tokens.len()), (22, 6));
        for (i, score) in heard.scores.iter().enumerate() {
            assert_close(score, &reference(&sequence[..i + 1], sequence[i + 1], 3));
        }
        for (i, token) in heard.tokens.iter().enumerate() {
            assert_close(token.logprobs.as_ref().unwrap(), &reference(&sequence[..23 + i], token.id, 2));
        }
    }
}

#[test]
fn no_new_tokens_only_scores() {
    let mut rig = Rig::new(FakeRunner::new(limits()));
    let scored = |len| Request { prompt_logprobs: Some(0), ..request(1, len, 0) };
    let heard = rig.answers([scored(30), scored(1), request(1, 30, 0)]);
    for (heard, n_scores) in heard.iter().zip([29, 0, 0]) {
        assert_eq!(heard.scores.len(), n_scores);
        assert_eq!(heard.tokens, []);
        assert_eq!(heard.end, Some(End::Finished(FinishReason::Length)));
    }
}

#[test]
fn scoring_an_answer_gives_its_own_logprobs() {
    let mut rig = Rig::new(FakeRunner::new(limits()));
    let asked = Request { logprobs: Some(1), ..request(3, 9, 12) };
    let answer = rig.answers([asked.clone()]).remove(0);
    let prompt = [asked.prompt, answer.ids()].concat();
    let echo = Request { prompt, prompt_logprobs: Some(1), ..Request::default() };
    let scores = rig.answers([echo]).remove(0).scores;
    let generated: Vec<Logprobs> = answer.tokens.into_iter().filter_map(|token| token.logprobs).collect();
    assert_eq!(scores[8..], generated);
}

#[test]
fn a_model_s_minus_infinity_is_written_as_a_number() {
    let runner = FakeRunner::new(limits()).edit(|_, row| row[2..].fill(f32::NEG_INFINITY));
    let request = Request { logprobs: Some(5), ..request(1, 3, 1) };
    let heard = Rig::new(runner).answers([request]).remove(0);
    let top = &heard.tokens[0].logprobs.as_ref().unwrap().top;
    assert_eq!(top[2..], [(2, -9999.0), (3, -9999.0), (4, -9999.0)]);
}
