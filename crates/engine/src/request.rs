//! The contract between the engine and whoever feeds it: a request in, a stream of events out.

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
    /// Added to logits after the penalties. -100 bans a token, 100 forces it.
    pub logit_bias: Vec<(u32, f32)>,
    /// `None`: fresh randomness.
    pub seed: Option<u64>,
    /// Which of the `n` choices of one API request this is: each draws from a stream of its own.
    pub choice: u64,
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
            choice: 0,
        }
    }
}

/// One sequence to generate.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Request {
    /// At least one token, each below the model's vocabulary size.
    pub prompt: Vec<u32>,
    /// 0 only scores the prompt.
    pub max_new_tokens: usize,
    /// Stop ids cannot be drawn before so many tokens.
    pub min_new_tokens: usize,
    /// EOS and stop ids: any of them ends the answer and is its last token.
    pub stop_ids: Vec<u32>,
    pub sampling: Sampling,
    /// `Some(n)`: log probabilities of each generated token and of the `n` best beside it.
    pub logprobs: Option<usize>,
    /// The same for each prompt token but the first.
    pub prompt_logprobs: Option<usize>,
}

/// Log probabilities at one position, from the softmax of the model's raw logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// Of the token that stands at the position.
    pub chosen: f32,
    /// Tokens with a larger logit, plus one.
    pub rank: u32,
    /// The best tokens, best first, `(id, log probability)`.
    pub top: Vec<(u32, f32)>,
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub id: u32,
    pub logprobs: Option<Logprobs>,
}

/// What a request's owner hears, in this order: `Started`, then `Prompt`s if asked for, then
/// `Tokens`, then exactly one `End`. A request that is refused hears only `End`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The first tokens of the prompt are being computed; the queue is behind it.
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
    /// The step failed, the sampler had nothing left to draw, or the engine died.
    Failed(String),
}
