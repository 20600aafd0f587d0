//! How the tokens of one answer are drawn, and what must be remembered for it.

use std::collections::HashMap;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sampler::{Draw, Draws, mask_words};

use crate::grammar::Constrained;
use crate::request::{Request, Sampling};

/// The tokens of a request's prompt that its choices are to repeat less, once each.
pub(crate) fn penalised(request: &Request) -> Arc<[u32]> {
    if request.sampling.repetition_penalty == 1.0 {
        return Arc::default();
    }
    let mut ids = request.prompt.clone();
    ids.sort_unstable();
    ids.dedup();
    ids.into()
}

pub(crate) struct Sampler {
    /// What all its draws have in common.
    common: Draw,
    logit_bias: Vec<(u32, f32)>,
    stop_ids: Vec<u32>,
    min_new_tokens: usize,
    /// The prompt's tokens, once each, if the repetition penalty wants them; shared by all choices.
    prompt: Arc<[u32]>,
    /// How often each token was drawn, if a penalty wants it.
    counts: HashMap<u32, u32>,
    /// Tokens that are known.
    n_drawn: usize,
    constrained: Option<Constrained>,
    stream: ChaCha8Rng,
}

impl Sampler {
    /// `choice`: which of the answers to one request. It draws as a request of its own would whose seed is so
    /// much more.
    pub(crate) fn new(request: &Request, choice: u64, prompt: Arc<[u32]>) -> Self {
        let Sampling { temperature, top_p, top_k, min_p, seed, .. } = request.sampling;
        let Sampling { repetition_penalty, frequency_penalty, presence_penalty, .. } = request.sampling;
        let seed = seed.map_or_else(rand::random, |seed| seed.wrapping_add(choice));
        Self {
            common: Draw {
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty,
                frequency_penalty,
                presence_penalty,
                ..Draw::default()
            },
            logit_bias: request.sampling.logit_bias.clone(),
            stop_ids: request.stop_ids.clone(),
            min_new_tokens: request.min_new_tokens,
            prompt,
            counts: HashMap::new(),
            n_drawn: 0,
            constrained: request.constraint.as_ref().map(Constrained::new),
            stream: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    pub(crate) fn is_stop(&self, id: u32) -> bool {
        self.stop_ids.contains(&id)
    }

    /// Asks for the next token, from row `output` of the step's logits. `after`: the draw of the step before that comes to
    /// a token of this answer which is not known yet.
    pub(crate) fn push(&mut self, draws: &mut Draws, output: u32, after: Option<u32>) {
        let n_before = self.n_drawn + usize::from(after.is_some());
        let mut draw = Draw { output, after, ..self.common.clone() };
        if !draw.is_greedy() {
            draw.uniform = self.uniform(n_before);
        }
        let delayed = if n_before < self.min_new_tokens { self.stop_ids.as_slice() } else { &[] };
        match &mut self.constrained {
            Some(constrained) => {
                constrained.ask(delayed);
                draw.mask =
                    Some(extend(&mut draws.masks, (0..mask_words(draws.sampled_vocab)).map(|_| 0)).start);
            }
            None => draw.banned = extend(&mut draws.banned, delayed.iter().copied()),
        }
        if draw.penalises() {
            let drawn = self.counts.iter().map(|(&id, &count)| (id, count));
            let undrawn = self.prompt.iter().filter(|id| !self.counts.contains_key(id)).map(|&id| (id, 0));
            draw.counts = extend(&mut draws.counts, drawn.chain(undrawn));
        }
        draw.biases = extend(&mut draws.biases, self.logit_bias.iter().copied());
        draws.draws.push(draw);
    }

    /// The random number of the answer's token `at`, in [0, 1): it takes two words of the stream.
    fn uniform(&self, at: usize) -> f64 {
        let mut stream = self.stream.clone();
        stream.set_word_pos(2 * at as u128);
        (stream.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The next token is known.
    pub(crate) fn note(&mut self, id: u32) {
        if self.common.penalises() {
            *self.counts.entry(id).or_default() += 1;
        }
        if let Some(constrained) = &mut self.constrained {
            constrained.note(id);
        }
        self.n_drawn += 1;
    }

    /// Whether the request excludes tokens from the next draw.
    pub(crate) fn restricts(&self) -> bool {
        self.constrained.is_some() || !self.logit_bias.is_empty() || self.n_drawn < self.min_new_tokens
    }

    pub(crate) fn constrained(&mut self) -> Option<&mut Constrained> {
        self.constrained.as_mut()
    }

    /// Why the mask of the last draw is empty, if that is not what the grammar says.
    pub(crate) fn fault(&self) -> Option<&str> {
        self.constrained.as_ref()?.fault.as_deref()
    }
}

/// Appends to `list`; returns where.
fn extend<T>(list: &mut Vec<T>, values: impl Iterator<Item = T>) -> std::ops::Range<usize> {
    let start = list.len();
    list.extend(values);
    start..list.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(request: &Request, choice: u64) -> Sampler {
        Sampler::new(request, choice, penalised(request))
    }

    fn pushed(sampler: &mut Sampler, after: Option<u32>) -> Draws {
        let mut draws = Draws::default();
        sampler.push(&mut draws, 3, after);
        draws
    }

    fn hot(seed: u64) -> Request {
        let sampling = Sampling { temperature: 0.8, seed: Some(seed), ..Sampling::default() };
        Request { sampling, ..Request::default() }
    }

    /// Each token takes the next number of the stream, whether those before it are known or on their way.
    #[test]
    fn numbers_come_in_the_order_of_the_tokens() {
        let mut sampler = sampler(&hot(7), 0);
        let mut stream = ChaCha8Rng::seed_from_u64(7);
        let numbers: Vec<f64> =
            (0..9).map(|_| (stream.next_u64() >> 11) as f64 / (1u64 << 53) as f64).collect();
        for at in 0..8 {
            assert_eq!(pushed(&mut sampler, None).draws[0].uniform, numbers[at]);
            assert_eq!(pushed(&mut sampler, Some(0)).draws[0].uniform, numbers[at + 1]);
            sampler.note(5);
        }
    }

    #[test]
    fn each_choice_draws_from_a_stream_of_its_own() {
        let first = |seed, choice| pushed(&mut sampler(&hot(seed), choice), None).draws[0].uniform;
        assert_eq!([first(7, 0), first(7, 2)], [first(7, 0), first(9, 0)]);
        assert!(first(7, 0) != first(7, 1) && first(7, 1) != first(7, 2));
        assert!(first(u64::MAX, 1) == first(0, 0));
    }

    #[test]
    fn drawn_tokens_are_counted_and_the_prompt_s_are_listed() {
        let check = |sampling: Sampling, expected: &[(u32, u32)]| {
            let request = Request { prompt: vec![4, 9, 4], sampling, ..Request::default() };
            let mut sampler = sampler(&request, 0);
            [9, 2, 2].into_iter().for_each(|id| sampler.note(id));
            let mut counts = pushed(&mut sampler, None).counts;
            counts.sort_unstable();
            assert_eq!(counts, expected);
        };
        let none = Sampling::default;
        check(none(), &[]);
        check(Sampling { presence_penalty: 0.5, ..none() }, &[(2, 2), (9, 1)]);
        check(Sampling { frequency_penalty: 0.5, ..none() }, &[(2, 2), (9, 1)]);
        check(Sampling { repetition_penalty: 1.5, ..none() }, &[(2, 2), (4, 0), (9, 1)]);
    }

    #[test]
    fn stop_ids_are_banned_for_the_first_tokens() {
        let request = Request { stop_ids: vec![1, 900], min_new_tokens: 2, ..Request::default() };
        let mut sampler = sampler(&request, 0);
        let banned = |sampler: &mut Sampler, after| pushed(sampler, after).banned;
        assert_eq!(banned(&mut sampler, None), [1, 900]);
        assert_eq!(banned(&mut sampler, Some(0)), [1, 900]);
        sampler.note(5);
        assert_eq!(banned(&mut sampler, None), [1, 900]);
        assert!(banned(&mut sampler, Some(0)).is_empty());
        sampler.note(5);
        assert!(banned(&mut sampler, None).is_empty());
    }
}
