//! Drawing the tokens of a step, its draws shared out over the threads.

use super::pool::Pool;
use crate::logits::HostLogits;
use sampler::{Drawn, Draws, Scratch};
use std::sync::{Mutex, PoisonError};

/// What a thread draws with, and what it has drawn: `(draw, token)`.
type Desk = (Scratch, Vec<(usize, Drawn)>);

pub(super) struct Samplers {
    /// `[threads]`; no two threads want the same, the locks only say so.
    desks: Vec<Mutex<Desk>>,
    /// What all have drawn.
    all: Vec<(usize, Drawn)>,
}

impl Samplers {
    pub(super) fn new(threads: usize) -> Self {
        Self { desks: (0..threads).map(|_| Mutex::default()).collect(), all: Vec::new() }
    }

    /// Memory for so many draws.
    pub(super) fn reserve(&mut self, draws: usize) {
        self.all = Vec::with_capacity(draws);
        for desk in &mut self.desks {
            desk.get_mut().unwrap_or_else(PoisonError::into_inner).1 = Vec::with_capacity(draws);
        }
    }

    /// Pushes what each draw comes to.
    pub(super) fn draw(&mut self, pool: &mut Pool, draws: &Draws, logits: &HostLogits, out: &mut Vec<Drawn>) {
        pool.run(draws.len(), &|worker, at| {
            let mut desk = self.desks[worker].lock().unwrap_or_else(PoisonError::into_inner);
            let (scratch, drawn) = &mut *desk;
            let row = logits.row(draws.draws[at].output);
            drawn.push((at, sampler::draw(draws, at, row, logits.drawn(), scratch)));
        });
        let desks = self.desks.iter_mut().map(|desk| desk.get_mut().unwrap_or_else(PoisonError::into_inner));
        desks.for_each(|(_, drawn)| self.all.append(drawn));
        self.all.sort_unstable_by_key(|(at, _)| *at);
        out.extend(self.all.drain(..).map(|(_, drawn)| drawn));
    }
}
