//! One answer: how its tokens are drawn, and who hears of them.

use std::sync::Arc;

use crate::reply::Reply;
use sampler::{Draws, Logprobs, NoToken, Scratch, logprobs};

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

    /// Draws a token and tells the client; `None` where nothing could be drawn, which ends this head.
    /// `last`: there is room for no more.
    pub(crate) fn draw(&mut self, row: &[f32], scratch: &mut Scratch, last: bool) -> Option<u32> {
        match self.token(row, scratch) {
            Ok(token) => {
                let id = token.id;
                self.reply.send(Event::Tokens(vec![token]));
                self.end = match (self.sampler.is_stop(id), last) {
                    (true, _) => Some(End::Finished(FinishReason::Stop)),
                    (false, true) => Some(End::Finished(FinishReason::Length)),
                    (false, false) => None,
                };
                Some(id)
            }
            Err(reason) => {
                self.end = Some(End::Failed(reason.to_string()));
                None
            }
        }
    }

    fn token(&mut self, row: &[f32], scratch: &mut Scratch) -> Result<Token, NoToken> {
        let mut draws = Draws::default();
        self.sampler.push(&mut draws, 0, None);
        let mut ids = Vec::new();
        sampler::draw_all(&draws, row, row.len(), &[], scratch, &mut ids);
        let id = ids[0]?;
        self.sampler.note(id);
        let logprobs: Option<Logprobs> = self.logprobs.map(|n| logprobs(row, id, n)).transpose()?;
        Ok(Token { id, logprobs })
    }
}
