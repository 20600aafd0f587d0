//! What a step can still take.

use crate::sequence::Sequence;

/// What is left of a step's budget.
pub(crate) struct Budget {
    pub(crate) tokens: usize,
    pub(crate) outputs: usize,
}

impl Budget {
    pub(crate) fn grant(&mut self, sequence: &mut Sequence, tokens_max: usize) -> usize {
        let (tokens, outputs) = sequence.affordable(self.tokens.min(tokens_max), self.outputs);
        sequence.granted += tokens;
        self.tokens -= tokens;
        self.outputs -= outputs;
        tokens
    }
}

/// What prompts may take of a step.
pub(crate) struct Share {
    pub(crate) tokens: usize,
    /// Of a token and one before it. Whole units are not cut for them.
    pub(crate) pairs: usize,
}

impl Share {
    pub(crate) fn grant(&mut self, budget: &mut Budget, sequence: &mut Sequence) -> usize {
        let depth = sequence.launched().max(1);
        let shallow = if sequence.takes_units() { usize::MAX } else { self.pairs / depth };
        let tokens = budget.grant(sequence, self.tokens.min(shallow));
        self.tokens -= tokens;
        self.pairs = self.pairs.saturating_sub(tokens * depth);
        tokens
    }
}
