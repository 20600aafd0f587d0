//! One answer: how its tokens are drawn, and who hears of them.

use std::sync::Arc;

use crate::grammar::Constrained;
use crate::reply::Reply;
use sampler::{Drawn, Draws, Logprobs, NoToken, logprobs};

use crate::request::{End, Event, FinishReason, Request, Token};
use crate::sampling::Sampler;

pub(crate) struct Head {
    /// Index among the request's choices.
    pub(crate) choice: usize,
    pub(crate) reply: Reply,
    /// Set by the step that ends it.
    pub(crate) end: Option<End>,
    sampler: Sampler,
    logprobs: Option<usize>,
}

impl Head {
    pub(crate) fn new(request: &Request, choice: usize, reply: Reply, penalised: &Arc<[u32]>) -> Self {
        let sampler = Sampler::new(request, choice as u64, penalised.clone());
        Self { choice, reply, end: None, sampler, logprobs: request.logprobs }
    }

    /// It has ended, or nobody listens any more.
    pub(crate) fn has_left(&self) -> bool {
        self.end.is_some() || self.reply.is_closed()
    }

    /// Wants to see the logits that it draws from.
    pub(crate) fn reads(&self) -> bool {
        self.logprobs.is_some()
    }

    pub(crate) fn constrained(&mut self) -> Option<&mut Constrained> {
        self.sampler.constrained()
    }

    /// Asks for its next token. See [`Sampler::push`].
    pub(crate) fn push_draw(&mut self, draws: &mut Draws, output: u32, after: Option<u32>) {
        self.sampler.push(draws, output, after);
    }

    /// Takes what was drawn and tells the client; `None` where nothing could be drawn, which ends this head. `row`: the
    /// logits, if it [reads](Self::reads) them. `last`: there is room for no more.
    pub(crate) fn take(&mut self, drawn: Drawn, row: Option<&[f32]>, last: bool) -> Option<u32> {
        match self.token(drawn, row) {
            Ok(token) => {
                let id = token.id;
                self.sampler.note(id);
                self.reply.send(Event::Tokens(vec![token]));
                self.end = match (self.sampler.is_stop(id), last) {
                    (true, _) => Some(End::Finished(FinishReason::Stop)),
                    (false, true) => Some(End::Finished(FinishReason::Length)),
                    (false, false) => None,
                };
                Some(id)
            }
            Err(reason) => {
                self.end = Some(match (self.sampler.fault(), reason) {
                    (Some(fault), _) => {
                        tracing::warn!(fault, "a grammar came to no mask");
                        End::Stuck
                    }
                    (None, NoToken::AllMasked) if self.sampler.restricts() => End::Stuck,
                    (None, _) => End::Failed(reason.to_string()),
                });
                None
            }
        }
    }

    fn token(&self, drawn: Drawn, row: Option<&[f32]>) -> Result<Token, NoToken> {
        let id = drawn?;
        let logprobs: Option<Logprobs> =
            self.logprobs.zip(row).map(|(n, row)| logprobs(row, id, n)).transpose()?;
        Ok(Token { id, logprobs })
    }
}
