//! Log probabilities in the two formats of the API.

use std::sync::Arc;

use engine::request::Logprobs;
use openai::{
    ChatLogprobs, CompletionLogprobs, PromptLogprobs, PromptScore, PromptScores, TokenLogprob, TokenMap,
    TopLogprob,
};
use text::Tokenizer;

use crate::decode::ScoredToken;

/// What stands for minus infinity, which JSON cannot write.
const LEAST: f32 = -9999.0;

/// How tokens are named beside their log probabilities.
pub(crate) struct TokenNames {
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// `token_id:123` instead of the text: nothing collides.
    pub(crate) as_ids: bool,
}

impl TokenNames {
    fn name(&self, id: u32) -> String {
        if self.as_ids {
            return format!("token_id:{id}");
        }
        self.tokenizer.token_text(id)
    }

    fn entry(&self, id: u32, logprob: f32) -> TopLogprob {
        TopLogprob { token: self.name(id), logprob: finite(logprob), bytes: self.tokenizer.token_bytes(id) }
    }

    pub(crate) fn chat(&self, tokens: &[ScoredToken]) -> ChatLogprobs {
        let scored = |token: &ScoredToken| {
            let logprobs = token.logprobs.as_ref()?;
            let top = logprobs.top.iter().map(|&(id, logprob)| self.entry(id, logprob));
            let chosen = self.entry(token.id, logprobs.chosen);
            Some(TokenLogprob { chosen, top_logprobs: top.collect() })
        };
        ChatLogprobs { content: tokens.iter().filter_map(scored).collect(), refusal: None }
    }

    /// `top`: so many beside each token.
    pub(crate) fn completion<'a>(
        &self,
        tokens: impl Iterator<Item = &'a ScoredToken>,
        top: usize,
    ) -> CompletionLogprobs {
        let mut lists = CompletionLogprobs::default();
        for token in tokens {
            lists.tokens.push(self.name(token.id));
            lists.text_offset.push(token.text_offset);
            lists.token_logprobs.push(token.logprobs.as_ref().map(|l| finite(l.chosen)));
            lists.top_logprobs.push(token.logprobs.as_ref().map(|l| self.map(token.id, l, top)));
        }
        lists
    }

    /// The best tokens by name, and the chosen one if it is not among them.
    fn map(&self, id: u32, logprobs: &Logprobs, top: usize) -> TokenMap {
        let mut map: Vec<(String, f32)> = Vec::with_capacity(top + 1);
        let chosen = std::iter::once((id, logprobs.chosen));
        for (id, logprob) in logprobs.top.iter().take(top).copied().chain(chosen) {
            let name = self.name(id);
            // Several tokens may share a text (parts of characters): the best one keeps it.
            if map.iter().all(|(known, _)| *known != name) {
                map.push((name, finite(logprob)));
            }
        }
        TokenMap(map)
    }

    /// Of a prompt. `top`: so many beside each token.
    pub(crate) fn prompt(&self, tokens: &[ScoredToken], top: usize) -> PromptLogprobs {
        let scores = |token: &ScoredToken| token.logprobs.as_ref().map(|l| self.scores(token.id, l, top));
        tokens.iter().map(scores).collect()
    }

    fn scores(&self, id: u32, logprobs: &Logprobs, top: usize) -> PromptScores {
        let score = |id, logprob, rank| {
            let decoded_token = self.tokenizer.token_text(id);
            (id, PromptScore { logprob: finite(logprob), rank, decoded_token })
        };
        let mut scores = Vec::with_capacity(top + 1);
        scores.push(score(id, logprobs.chosen, logprobs.rank));
        let (mut rank, mut last) = (1, f32::INFINITY);
        for (place, &(other, logprob)) in (1..).zip(logprobs.top.iter().take(top)) {
            // Equals share a rank.
            if logprob < last {
                (rank, last) = (place, logprob);
            }
            if other != id {
                scores.push(score(other, logprob, rank));
            }
        }
        PromptScores(scores)
    }
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob.max(LEAST) } else { LEAST }
}
