//! What an answer may be, as masks over the next token. The grammar itself is somebody else's.

use std::fmt;
use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};

/// What answers may be: shared by all that it constrains.
pub trait Grammar: Send + Sync {
    /// Before the first token of an answer.
    fn begin(&self) -> Box<dyn Matcher>;
}

/// Where in its grammar an answer is. Moves to a thread that works while the model does.
pub trait Matcher: Send {
    /// The answer goes on with a token that the last mask allowed.
    fn advance(&mut self, id: u32) -> Result<(), String>;

    /// Sets the bits of ids that may come next, as [`sampler::Draws::masks`] has them: EOS where the text may end, and
    /// nothing else where it must. `words` are 0.
    fn mask(&mut self, words: &mut [u32]) -> Result<(), String>;
}

/// A request's grammar.
#[derive(Clone)]
pub struct Constraint(pub Arc<dyn Grammar>);

impl fmt::Debug for Constraint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Constraint")
    }
}

/// The same grammar, not one that allows the same.
impl PartialEq for Constraint {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The matcher of one answer, and what it has to hear.
pub(crate) struct Constrained {
    matcher: Box<dyn Matcher>,
    /// The token that was drawn last; the matcher has not heard of it.
    drawn: Option<u32>,
    /// A mask was asked for in the step that is launched just now.
    asked: bool,
    /// Ids that cannot be drawn unless nothing else can.
    delayed: Vec<u32>,
    /// Why no mask could be made.
    pub(crate) fault: Option<String>,
}

impl Constrained {
    pub(crate) fn new(constraint: &Constraint) -> Self {
        Self { matcher: constraint.0.begin(), drawn: None, asked: false, delayed: Vec::new(), fault: None }
    }

    pub(crate) fn ask(&mut self, delayed: &[u32]) {
        self.asked = true;
        self.delayed.clear();
        self.delayed.extend_from_slice(delayed);
    }

    /// Whether it was asked since it was last asked this.
    pub(crate) fn was_asked(&mut self) -> bool {
        std::mem::take(&mut self.asked)
    }

    pub(crate) fn note(&mut self, id: u32) {
        self.drawn = Some(id);
    }

    /// Writes the mask that was asked for. If it fails, no id is left in it.
    pub(crate) fn write(&mut self, words: &mut [u32]) {
        let advanced = self.drawn.take().map_or(Ok(()), |id| self.matcher.advance(id));
        if let Err(why) = advanced.and_then(|()| self.matcher.mask(words)) {
            words.fill(0);
            self.fault = Some(why);
        }
        self.delay(words);
    }

    /// A text that must end ends, however short it is.
    fn delay(&self, words: &mut [u32]) {
        let bit = |id: u32| (id as usize / 32, 1u32 << (id % 32));
        let is_delayed = |word: usize| {
            let own = self.delayed.iter().map(|&id| bit(id)).filter(|(at, _)| *at == word);
            own.fold(0, |bits, (_, own)| bits | own)
        };
        if self.delayed.is_empty() || words.iter().enumerate().all(|(at, &word)| word & !is_delayed(at) == 0)
        {
            return;
        }
        for &id in &self.delayed {
            let (at, own) = bit(id);
            if let Some(word) = words.get_mut(at) {
                *word &= !own;
            }
        }
    }
}

/// Masks that one thread makes; several share them out.
const MASKS_A_THREAD: usize = 16;
const THREADS_MAX: usize = 4;

/// Masks on their way, made by threads of a scope.
pub(crate) struct Masks<'scope>(Vec<ScopedJoinHandle<'scope, Vec<u32>>>);

impl<'scope> Masks<'scope> {
    /// Starts on the masks of all, of `words` words each.
    pub(crate) fn start<'env: 'scope>(
        scope: &'scope Scope<'scope, 'env>,
        mut constrained: Vec<&'env mut Constrained>,
        words: usize,
    ) -> Self {
        let a_thread = MASKS_A_THREAD.max(constrained.len().div_ceil(THREADS_MAX));
        let mut threads = Vec::with_capacity(THREADS_MAX);
        while !constrained.is_empty() {
            let own: Vec<_> = constrained.drain(..a_thread.min(constrained.len())).collect();
            threads.push(scope.spawn(move || {
                let mut masks = vec![0; own.len() * words];
                own.into_iter().zip(masks.chunks_mut(words)).for_each(|(one, mask)| one.write(mask));
                masks
            }));
        }
        Self(threads)
    }

    /// Waits for all, and writes them one after the other.
    ///
    /// # Panics
    /// If a matcher did.
    pub(crate) fn finish(&mut self, masks: &mut [u32]) {
        let mut rest = masks;
        for thread in self.0.drain(..) {
            let made = thread.join().expect("a matcher does not panic");
            let (own, others) = rest.split_at_mut(made.len());
            own.copy_from_slice(&made);
            rest = others;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Vec<u32>);

    impl Matcher for Fixed {
        fn advance(&mut self, id: u32) -> Result<(), String> {
            if id == 99 { Err("99 is no id".into()) } else { Ok(()) }
        }

        fn mask(&mut self, words: &mut [u32]) -> Result<(), String> {
            self.0.iter().for_each(|id| words[*id as usize / 32] |= 1 << (id % 32));
            Ok(())
        }
    }

    fn written(allowed: &[u32], drawn: Option<u32>, delayed: &[u32]) -> (Vec<u32>, Option<String>) {
        let matcher = Box::new(Fixed(allowed.to_vec()));
        let mut one = Constrained { matcher, drawn, asked: false, delayed: Vec::new(), fault: None };
        one.ask(delayed);
        assert!(one.was_asked() && !one.was_asked());
        let mut words = vec![0; 4];
        one.write(&mut words);
        ((0..128).filter(|id| words[*id as usize / 32] >> (id % 32) & 1 == 1).collect(), one.fault)
    }

    #[test]
    fn ends_are_delayed_where_something_else_is_left() {
        assert_eq!(written(&[1, 40, 127], None, &[]).0, [1, 40, 127]);
        assert_eq!(written(&[1, 40, 127], None, &[40, 41, 500]).0, [1, 127]);
        assert_eq!(written(&[40, 41], None, &[40, 41]).0, [40, 41]);
    }

    #[test]
    fn a_fault_leaves_nothing() {
        assert_eq!(written(&[1], Some(99), &[]), (vec![], Some("99 is no id".into())));
        assert_eq!(written(&[1], Some(98), &[]), (vec![1], None));
    }
}
