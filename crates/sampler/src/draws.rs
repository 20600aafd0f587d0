//! What a step is asked to draw, laid out as a device takes it.

use std::ops::Range;

/// Set in a step's word for a token that is not known yet: the rest is the number of the draw of the step before that comes
/// to it.
pub const DRAWN: u32 = 1 << 31;

/// How one token is drawn from a row of logits. Complete in itself: whoever has the row and this, on any machine,
/// comes to the same token, but where the last bit of a sum in f64 decides.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw {
    /// Row of the step's logits.
    pub output: u32,
    /// The draw of the step before whose token the penalties count once more: it was not known when this was written.
    pub after: Option<u32>,
    /// Greedy below 1e-5: the largest logit, the lowest id on ties.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: usize,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// Over [`Self::counts`], of any count; 1 is off.
    pub repetition_penalty: f32,
    /// For each time that a token was drawn.
    pub frequency_penalty: f32,
    /// Once for a token that was drawn.
    pub presence_penalty: f32,
    /// In [0, 1): where in the kept mass, in the order of the ids, the token lies.
    pub uniform: f64,
    /// Of [`Draws::banned`].
    pub banned: Range<usize>,
    /// Of [`Draws::counts`].
    pub counts: Range<usize>,
    /// Of [`Draws::biases`].
    pub biases: Range<usize>,
    /// Where its mask of [`mask_words`] words begins in [`Draws::masks`].
    pub mask: Option<usize>,
}

impl Default for Draw {
    /// Greedy, from the first row.
    fn default() -> Self {
        Self {
            output: 0,
            after: None,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            uniform: 0.0,
            banned: 0..0,
            counts: 0..0,
            biases: 0..0,
            mask: None,
        }
    }
}

impl Draw {
    pub fn is_greedy(&self) -> bool {
        self.temperature < crate::TEMPERATURE_MIN
    }

    pub fn penalises(&self) -> bool {
        (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)
    }

    /// Draws from other logits than those of the row.
    pub fn adjusts(&self) -> bool {
        self.penalises() || !self.banned.is_empty() || !self.biases.is_empty() || self.mask.is_some()
    }
}

/// Words of a mask over `vocab_size` ids.
pub fn mask_words(vocab_size: usize) -> usize {
    vocab_size.div_ceil(32)
}

/// The draws of a step, and the lists that they name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Draws {
    /// Ids from here on are never drawn: rows that pad the output matrix beyond the tokenizer.
    pub sampled_vocab: usize,
    pub draws: Vec<Draw>,
    /// Ids that cannot be drawn.
    pub banned: Vec<u32>,
    /// `(id, times drawn)`, each id once in a draw's range; 0 times: it only stands in the prompt.
    pub counts: Vec<(u32, u32)>,
    /// `(id, bias)`, each id once in a draw's range, added after the penalties: ±[`crate::BIAS_MAX`] bans or forces.
    pub biases: Vec<(u32, f32)>,
    /// Bit `id % 32` of word `id / 32` of a mask: `id` may be drawn.
    pub masks: Vec<u32>,
}

impl Draws {
    pub fn len(&self) -> usize {
        self.draws.len()
    }

    pub fn is_empty(&self) -> bool {
        self.draws.is_empty()
    }

    /// Empties all lists, keeping their memory and the sampled vocabulary.
    pub fn clear(&mut self) {
        self.draws.clear();
        self.banned.clear();
        self.counts.clear();
        self.biases.clear();
        self.masks.clear();
    }

    /// Names what does not fit together, for `outputs` rows of `vocab_size` logits, after a step of `before` draws.
    pub fn check(&self, outputs: usize, vocab_size: usize, before: usize) -> Result<(), &'static str> {
        if !self.is_empty() && !(1..=vocab_size).contains(&self.sampled_vocab) {
            return Err("a sampled vocabulary that is empty, or larger than the model's");
        }
        let within = |range: &Range<usize>, len: usize| range.start <= range.end && range.end <= len;
        for draw in &self.draws {
            let mask_end = draw.mask.map_or(Some(0), |at| at.checked_add(mask_words(self.sampled_vocab)));
            let checks = [
                ((draw.output as usize) < outputs, "a draw from an output that is not there"),
                (
                    draw.after.is_none_or(|after| (after as usize) < before),
                    "a draw after one that was not made",
                ),
                (within(&draw.banned, self.banned.len()), "banned ids beyond their list"),
                (within(&draw.counts, self.counts.len()), "counts beyond their list"),
                (within(&draw.biases, self.biases.len()), "biases beyond their list"),
                (mask_end.is_some_and(|end| end <= self.masks.len()), "a mask beyond the masks"),
                ((0.0..1.0).contains(&draw.uniform), "a uniform number outside [0, 1)"),
                (draw.temperature >= 0.0, "a temperature below 0"),
            ];
            if let Some((_, what)) = checks.into_iter().find(|(holds, _)| !holds) {
                return Err(what);
            }
        }
        Ok(())
    }
}
