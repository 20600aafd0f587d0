//! The contract between the engine and whoever feeds it: a request in, a stream of events out.

use std::ops::{Range, RangeInclusive};
use std::time::Instant;

pub use sampler::Logprobs;

use crate::grammar::Constraint;
use crate::runner::Limits;

/// Of one request.
pub(crate) const CHOICES_MAX: usize = 1_024;
/// Biases and stop ids of one request: a device has room for so many a row.
const LISTED_MAX: usize = 1_024;

/// How the next token is drawn. Built and range-checked at the edge; see [`Request`].
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy: the largest logit, the lowest id on ties.
    pub temperature: f32,
    /// In (0, 1]; 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub top_k: usize,
    /// In [0, 1]; 0 is off.
    pub min_p: f32,
    /// Over generated tokens.
    pub presence_penalty: f32,
    /// Over generated tokens.
    pub frequency_penalty: f32,
    /// Over prompt and generated tokens; 1 is off.
    pub repetition_penalty: f32,
    /// Added to logits after the penalties, each id once. -100 bans a token, 100 forces it.
    pub logit_bias: Vec<(u32, f32)>,
    /// `None`: fresh randomness.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// One prompt, and how to go on from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// At least one token, each below the model's vocabulary size.
    pub prompt: Vec<u32>,
    /// Which tokens of the prompt past answers drew, if that is known: then those answers' blocks, computed
    /// token by token, are found in the cache. See [`kv_cache::Units`].
    pub drawn: Vec<Range<usize>>,
    /// Answers to draw, at least 1: the first is what `n` = 1 would draw, each other what it would draw with
    /// a seed that is one more. The prompt is computed once, and its blocks are shared.
    pub n: usize,
    /// 0 only scores the prompt, all of it computed as answers are: it may be one.
    pub max_new_tokens: usize,
    /// Stop ids cannot be drawn before so many tokens.
    pub min_new_tokens: usize,
    /// EOS and stop ids: any of them ends the answer and is its last token.
    pub stop_ids: Vec<u32>,
    pub sampling: Sampling,
    /// What each answer may be.
    pub constraint: Option<Constraint>,
    /// `Some(n)`: log probabilities of each generated token and of the `n` best beside it.
    pub logprobs: Option<usize>,
    /// The same for each prompt token but the first.
    pub prompt_logprobs: Option<usize>,
    /// Lower runs earlier; equal ones in order of arrival.
    pub priority: i32,
    /// The request ends as [`End::Expired`] if it is not complete by then.
    pub deadline: Option<Instant>,
    /// Cached blocks are shared only among requests of equal salts.
    pub cache_salt: Vec<u8>,
}

impl Default for Request {
    /// An empty prompt and no tokens to draw; one choice, greedy.
    fn default() -> Self {
        Self {
            prompt: Vec::new(),
            drawn: Vec::new(),
            n: 1,
            max_new_tokens: 0,
            min_new_tokens: 0,
            stop_ids: Vec::new(),
            sampling: Sampling::default(),
            constraint: None,
            logprobs: None,
            prompt_logprobs: None,
            priority: 0,
            deadline: None,
            cache_salt: Vec::new(),
        }
    }
}

impl Sampling {
    /// Names the first field out of range.
    pub fn check(&self) -> Result<(), String> {
        const ABOVE_ZERO: f32 = f32::MIN_POSITIVE;
        let ranges = [
            ("temperature", self.temperature, 0.0..=f32::MAX),
            ("top_p", self.top_p, ABOVE_ZERO..=1.0),
            ("min_p", self.min_p, 0.0..=1.0),
            ("presence_penalty", self.presence_penalty, -2.0..=2.0),
            ("frequency_penalty", self.frequency_penalty, -2.0..=2.0),
            ("repetition_penalty", self.repetition_penalty, ABOVE_ZERO..=2.0),
        ];
        for (name, value, range) in ranges {
            if !range.contains(&value) {
                return Err(format!("{name} is {value}; give a number {}", spoken(&range)));
            }
        }
        if let Some((id, bias)) = self.logit_bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(bias)) {
            return Err(format!("logit_bias of token {id} is {bias}; give a number from -100 to 100"));
        }
        if self.logit_bias.len() > LISTED_MAX {
            let n = self.logit_bias.len();
            return Err(format!("logit_bias has {n} entries; give at most {LISTED_MAX}"));
        }
        let mut ids: Vec<u32> = self.logit_bias.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        match ids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("logit_bias names token {} twice; name each once", pair[0])),
            None => Ok(()),
        }
    }
}

fn spoken(range: &RangeInclusive<f32>) -> String {
    match (*range.start(), *range.end()) {
        (low, f32::MAX) => format!("of {low} or more"),
        (f32::MIN_POSITIVE, high) => format!("above 0, up to {high}"),
        (low, high) => format!("from {low} to {high}"),
    }
}

impl Request {
    /// The longest sequence this request can become: prompt and answer, cut at the context.
    pub fn len_max(&self, limits: &Limits) -> usize {
        self.prompt.len().saturating_add(self.max_new_tokens).min(limits.context_len)
    }

    /// Why this request can never run on a model of these sizes, if so, and what to do about it.
    pub fn check(&self, limits: &Limits) -> Result<(), String> {
        if self.prompt.is_empty() {
            return Err("the prompt is empty; give at least one token".into());
        }
        if !(1..=CHOICES_MAX).contains(&self.n) {
            return Err(format!("n is {}; ask for 1 to {CHOICES_MAX} choices", self.n));
        }
        let vocab_size = limits.vocab_size;
        if let Some(at) = self.prompt.iter().position(|&id| id as usize >= vocab_size) {
            let id = self.prompt[at];
            return Err(format!(
                "prompt[{at}] is token {id}; the vocabulary has {vocab_size} tokens, from 0"
            ));
        }
        if let Some((id, _)) = self.sampling.logit_bias.iter().find(|(id, _)| *id as usize >= vocab_size) {
            return Err(format!(
                "logit_bias names token {id}; the vocabulary has {vocab_size} tokens, from 0"
            ));
        }
        if self.stop_ids.len() > LISTED_MAX {
            return Err(format!("{} stop ids; give at most {LISTED_MAX}", self.stop_ids.len()));
        }
        self.sampling.check()?;
        self.check_length(limits)
    }

    fn check_length(&self, limits: &Limits) -> Result<(), String> {
        let (prompt_len, context_len) = (self.prompt.len(), limits.context_len);
        let room = if self.max_new_tokens == 0 { context_len } else { context_len - 1 };
        if prompt_len > room {
            return Err(format!(
                "the prompt has {prompt_len} tokens; this model's maximum context length is {context_len} \
                 tokens, answer included. Shorten the prompt"
            ));
        }
        let (len_max, block_len) = (self.len_max(limits), limits.block_len);
        let (needed, lendable) = (len_max.div_ceil(block_len), limits.n_blocks - 1);
        if needed > lendable {
            return Err(format!(
                "{prompt_len} prompt tokens and up to {} new ones need {needed} KV blocks of {block_len} \
                 tokens; the whole pool has {lendable} ({} tokens). Shorten the prompt, ask for fewer new \
                 tokens, or give the server more KV memory",
                len_max - prompt_len,
                lendable * block_len,
            ));
        }
        Ok(())
    }
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub id: u32,
    pub logprobs: Option<Logprobs>,
}

/// What the owner of a choice hears, in this order: `Started`, then `Prompt`s if asked for, then
/// `Tokens`, then exactly one `End`. A request that is refused hears only `End`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The first tokens of the prompt are being computed; the queue is behind it. `cached_tokens` of them
    /// were there already, in whole blocks shared with others.
    Started {
        cached_tokens: usize,
    },
    /// Log probabilities of the next prompt tokens, from the second token on.
    Prompt(Vec<Logprobs>),
    Tokens(Vec<Token>),
    End(End),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A token of `stop_ids` was drawn.
    Stop,
    /// `max_new_tokens` or the context is used up.
    Length,
}

#[derive(Debug, Clone, PartialEq)]
pub enum End {
    Finished(FinishReason),
    /// The request can never run here; the text names the reason and the remedy.
    Rejected(String),
    /// Its deadline passed.
    Expired,
    /// The request's own constraint, biases and `min_new_tokens` left no token to draw.
    Stuck,
    /// Its step failed, the model left nothing to draw, or the engine died.
    Failed(String),
}
