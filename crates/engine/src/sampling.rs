//! How the tokens of one answer are drawn, and what must be remembered for it.

use std::collections::HashMap;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sampler::{Draw, Draws};

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
    sampling: Sampling,
    stop_ids: Vec<u32>,
    min_new_tokens: usize,
    /// The prompt's tokens, once each, if the repetition penalty wants them; shared by all choices.
    prompt: Arc<[u32]>,
    /// How often each token was drawn, if a penalty wants it.
    counts: HashMap<u32, u32>,
    /// Tokens that are known.
    n_drawn: usize,
    stream: ChaCha8Rng,
}

impl Sampler {
    /// `choice`: which of the answers to one request. It draws as a request of its own would whose seed is so
    /// much more.
    pub(crate) fn new(request: &Request, choice: u64, prompt: Arc<[u32]>) -> Self {
        let sampling = request.sampling.clone();
        let seed = sampling.seed.map_or_else(rand::random, |seed| seed.wrapping_add(choice));
        Self {
            stop_ids: request.stop_ids.clone(),
            min_new_tokens: request.min_new_tokens,
            prompt,
            counts: HashMap::new(),
            n_drawn: 0,
            stream: ChaCha8Rng::seed_from_u64(seed),
            sampling,
        }
    }

    pub(crate) fn is_stop(&self, id: u32) -> bool {
        self.stop_ids.contains(&id)
    }

    /// Asks for the next token, from row `output` of the step's logits. `after`: the draw of the step before that comes to
    /// a token of this answer which is not known yet.
    pub(crate) fn push(&self, draws: &mut Draws, output: u32, after: Option<u32>) {
        let Sampling { temperature, top_p, top_k, min_p, .. } = self.sampling;
        let Sampling { repetition_penalty, frequency_penalty, presence_penalty, .. } = self.sampling;
        let n_before = self.n_drawn + usize::from(after.is_some());
        let mut draw = Draw {
            output,
            after,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            ..Draw::default()
        };
        if !draw.is_greedy() {
            draw.uniform = self.uniform(n_before);
        }
        if n_before < self.min_new_tokens {
            draw.banned = extend(&mut draws.banned, self.stop_ids.iter().copied());
        }
        if draw.penalises() {
            let drawn = self.counts.iter().map(|(&id, &count)| (id, count));
            let undrawn = self.prompt.iter().filter(|id| !self.counts.contains_key(id)).map(|&id| (id, 0));
            draw.counts = extend(&mut draws.counts, drawn.chain(undrawn));
        }
        draw.biases = extend(&mut draws.biases, self.sampling.logit_bias.iter().copied());
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
        let Sampling { repetition_penalty, frequency_penalty, presence_penalty, .. } = self.sampling;
        if (repetition_penalty, frequency_penalty, presence_penalty) != (1.0, 0.0, 0.0) {
            *self.counts.entry(id).or_default() += 1;
        }
        self.n_drawn += 1;
    }
}

/// Appends to `list`; returns where.
fn extend<T>(list: &mut Vec<T>, values: impl Iterator<Item = T>) -> std::ops::Range<usize> {
    let start = list.len();
    list.extend(values);
    start..list.len()
}
