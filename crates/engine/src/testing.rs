//! Two fakes for tests of whatever sits on an engine: a model without weights under the real
//! scheduler, and [`Script`], which plays the engine's part for one request.
//!
//! [`FakeRunner`] computes nothing, but it keeps the KV cache's promises: each token is written to
//! its slot, with how it was computed and from what, and logits depend on the sequence as read back
//! through the row's block table. A wrong slot, table, position or length shows as wrong tokens, and
//! so does a row that was computed in units where another was not; a batch that breaks the contract
//! of [`Batch`] is a panic that says how.

use std::collections::{HashSet, VecDeque};
use std::sync::mpsc;
use std::time::Duration;

use crate::reply::{self, Events, Reply};
use crate::request::{Event, Request};
use sampler::{Scratch, draw_all};

use crate::runner::{Batch, DRAWN, Drawn, Draws, Fault, Limits, ModelRunner, Outcome};

/// Small sizes to start from: 96 tokens, context 252, 63 blocks of 4, 16 tokens and 8 rows a step.
pub fn limits() -> Limits {
    Limits {
        vocab_size: 96,
        context_len: 252,
        block_len: 4,
        n_blocks: 64,
        step_tokens: 16,
        step_rows: 8,
        step_outputs: 16,
        prefill_unit: usize::MAX,
    }
}

/// Logits after `tokens`: noise in [0, 1) that any change of any token changes. A row's largest
/// is the fake's next token.
pub fn fill_noise(tokens: &[u32], row: &mut [f32]) {
    fill_noise_in_units(tokens, |_| false, row);
}

/// [`fill_noise`] where the tokens at some positions were computed in units, which changes it too.
pub fn fill_noise_in_units(tokens: &[u32], in_unit: impl Fn(usize) -> bool, row: &mut [f32]) {
    let tokens = tokens.iter().enumerate();
    noise(tokens.fold(SEED, |state, (position, &token)| digest(state, token, in_unit(position))), row);
}

fn noise(state: u64, row: &mut [f32]) {
    for (id, logit) in (0..).zip(row) {
        *logit = (scramble(state.wrapping_add(id)) >> 40) as f32 / (1 << 24) as f32;
    }
}

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// One token more: all before it as `state`.
fn digest(state: u64, token: u32, in_unit: bool) -> u64 {
    scramble(state ^ u64::from(token) ^ (u64::from(in_unit) << 32))
}

/// The finalizer of SplitMix64, plus one so that zero moves.
fn scramble(x: u64) -> u64 {
    let x = x.wrapping_add(1);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The engine's end of one request, played by a test. Dropping it tells the client `Failed`.
#[derive(Debug)]
pub struct Script(Reply);

/// A script for `request`, and what its owner would get.
pub fn script(request: &Request, limits: &Limits) -> (Script, Events) {
    let (reply, events) = reply::channel(request, limits);
    (Script(reply), events)
}

impl Script {
    /// # Panics
    /// If the request cannot cause so many events.
    pub fn send(&self, event: Event) {
        self.0.send(event);
    }

    /// The request's owner has dropped its events.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_closed()
    }
}

/// What one row of a step was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The sequence up to the last token of the step.
    pub tokens: Vec<u32>,
    /// How many of them the step computed.
    pub n_computed: usize,
}

/// What befalls a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The step returns a [`Fault`].
    Fault,
    /// The step panics.
    Panic,
}

/// A row of the fake's KV arena.
#[derive(Debug, Clone, Copy)]
struct Latent {
    position: u32,
    token: u32,
    /// Computed in a row with [`Batch::expanded`] set.
    in_unit: bool,
    /// Digest of everything up to here, as it was read when this was computed.
    state: u64,
}

type Edit = Box<dyn FnMut(&[u32], &mut [f32]) + Send>;
type Plot = Box<dyn FnMut(usize, &[Row]) -> Option<Trouble> + Send>;

pub struct FakeRunner {
    limits: Limits,
    /// `[n_blocks * block_len]`
    arena: Vec<Option<Latent>>,
    n_steps: usize,
    /// What came of steps that were not collected.
    outcomes: VecDeque<Result<Outcome, Fault>>,
    steps_ahead: usize,
    /// By the step launched last.
    drawn: Vec<Drawn>,
    scratch: Scratch,
    plot: Plot,
    delay: Duration,
    edit: Edit,
    rows: Option<mpsc::Sender<Vec<Row>>>,
}

impl FakeRunner {
    pub fn new(limits: Limits) -> Self {
        Self {
            arena: vec![None; limits.n_blocks * limits.block_len],
            limits,
            n_steps: 0,
            outcomes: VecDeque::new(),
            steps_ahead: 0,
            drawn: Vec::new(),
            scratch: Scratch::default(),
            plot: Box::new(|_, _| None),
            delay: Duration::ZERO,
            edit: Box::new(|_, _| ()),
            rows: None,
        }
    }

    /// What comes of a step is told only once the next is launched, as a device would that works on its own.
    pub fn ahead(mut self) -> Self {
        self.steps_ahead = 1;
        self
    }

    /// Changes the logits after a sequence, given its tokens so far. To make the fake say
    /// something: `|tokens, row| row[next(tokens)] = 9.0`.
    pub fn edit(mut self, edit: impl FnMut(&[u32], &mut [f32]) + Send + 'static) -> Self {
        self.edit = Box::new(edit);
        self
    }

    /// Lets steps go wrong, given their number, from 0, and rows. One that does leaves anything where it
    /// was to write.
    pub fn trouble(mut self, plot: impl FnMut(usize, &[Row]) -> Option<Trouble> + Send + 'static) -> Self {
        self.plot = Box::new(plot);
        self
    }

    /// The step with this number, from 0, and no other returns a [`Fault`].
    pub fn fail_at(self, at: usize) -> Self {
        self.trouble(move |step, _| (step == at).then_some(Trouble::Fault))
    }

    /// The step with this number, from 0, and no other panics.
    pub fn panic_at(self, at: usize) -> Self {
        self.trouble(move |step, _| (step == at).then_some(Trouble::Panic))
    }

    /// Each step takes so long.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sends the rows of each step.
    pub fn report_to(mut self, rows: mpsc::Sender<Vec<Row>>) -> Self {
        self.rows = Some(rows);
        self
    }

    /// Reads the first `len` tokens of a sequence back through its block table, and what they digest to.
    fn read(&self, table: &[u32], len: usize) -> (Vec<u32>, u64) {
        let block_len = self.limits.block_len;
        let (mut tokens, mut state) = (Vec::with_capacity(len), SEED);
        for position in 0..len {
            let slot = table[position / block_len] as usize * block_len + position % block_len;
            let Some(latent) = self.arena[slot].filter(|latent| latent.position as usize == position) else {
                panic!("slot {slot} holds {:?} where position {position} is read", self.arena[slot]);
            };
            state = digest(state, latent.token, latent.in_unit);
            assert_eq!(
                state, latent.state,
                "slot {slot}, position {position} was computed after other tokens"
            );
            tokens.push(latent.token);
        }
        (tokens, state)
    }

    fn copy_blocks(&mut self, batch: &Batch) {
        for &(from, to) in &batch.copies {
            let slots = |block: u32| block as usize * self.limits.block_len;
            self.arena.copy_within(slots(from)..slots(from + 1), slots(to));
        }
    }

    /// Writes the latent rows of each row's tokens, one after the other, and reads all of them back.
    fn write(&mut self, batch: &Batch) -> Vec<Row> {
        let write_row = |r: usize| {
            let tokens = batch.row_start[r] as usize..batch.row_start[r + 1] as usize;
            let (len, n_computed) = (batch.kv_len[r] as usize, tokens.len());
            let table = &batch.tables[r * batch.table_width..];
            let (_, mut state) = self.read(table, len - n_computed);
            for t in tokens {
                let (position, token) = (batch.positions[t], self.token(batch.tokens[t]));
                let in_unit = batch.expanded[r];
                state = digest(state, token, in_unit);
                self.arena[batch.slots[t] as usize] = Some(Latent { position, token, in_unit, state });
            }
            Row { tokens: self.read(table, len).0, n_computed }
        };
        (0..batch.n_rows()).map(write_row).collect()
    }

    /// What a word of [`Batch::tokens`] means. A draw that came to nothing is nobody's.
    fn token(&self, word: u32) -> u32 {
        if word & DRAWN == 0 { word } else { self.drawn[(word & !DRAWN) as usize].unwrap_or(0) }
    }

    /// A step that failed leaves anything where it was to write.
    fn forget(&mut self, batch: &Batch) {
        batch.slots.iter().for_each(|&slot| self.arena[slot as usize] = None);
    }

    fn run(&mut self, batch: &Batch) -> Result<Outcome, Fault> {
        let step = self.n_steps;
        self.n_steps += 1;
        std::thread::sleep(self.delay);
        assert_contract(batch, &self.limits, self.drawn.len());
        if self.outcomes.iter().any(Result::is_err) {
            self.forget(batch);
            return Err(Fault(format!("step {step} builds on one that failed")));
        }
        self.copy_blocks(batch);
        let rows = self.write(batch);
        match (self.plot)(step, &rows) {
            Some(Trouble::Panic) => panic!("the fake model panics at step {step}, as told"),
            Some(Trouble::Fault) => {
                self.forget(batch);
                return Err(Fault(format!("the fake model fails at step {step}, as told")));
            }
            None => {}
        }
        if let Some(listener) = &self.rows {
            let _ = listener.send(rows); // a listener may leave
        }
        let vocab_size = self.limits.vocab_size;
        let mut logits = vec![f32::NAN; batch.outputs.len() * vocab_size];
        for (&output, row) in batch.outputs.iter().zip(logits.chunks_exact_mut(vocab_size)) {
            let owner = batch.row_start.partition_point(|&start| start <= output) - 1;
            let len = batch.positions[output as usize] as usize + 1;
            let (tokens, state) = self.read(&batch.tables[owner * batch.table_width..], len);
            noise(state, row);
            (self.edit)(&tokens, row);
        }
        let mut outcome = Outcome::default();
        draw_all(&batch.draws, &logits, vocab_size, &self.drawn, &mut self.scratch, &mut outcome.drawn);
        for &read in &batch.reads {
            outcome.logits.extend_from_slice(&logits[read as usize * vocab_size..][..vocab_size]);
        }
        Ok(outcome)
    }
}

impl ModelRunner for FakeRunner {
    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn steps_ahead(&self) -> usize {
        self.steps_ahead
    }

    fn launch(&mut self, batch: &mut Batch, masks: &mut dyn FnMut(&mut Draws)) -> Result<(), Fault> {
        masks(&mut batch.draws);
        assert!(self.outcomes.len() <= self.steps_ahead, "{} steps under way", self.outcomes.len());
        let to_read = |outcome: &Result<Outcome, Fault>| outcome.as_ref().is_ok_and(|o| !o.logits.is_empty());
        assert!(!self.outcomes.iter().any(to_read), "logits to be read are written over");
        let first = !self.outcomes.iter().any(Result::is_err);
        let outcome = self.run(batch);
        self.drawn.clear();
        match outcome {
            // Of a fault, a device that works on its own hears when the step is launched, or later.
            Err(fault) if self.steps_ahead == 0 || (first && self.n_steps.is_multiple_of(2)) => {
                return Err(fault);
            }
            Ok(outcome) => {
                self.drawn.extend_from_slice(&outcome.drawn);
                self.outcomes.push_back(Ok(outcome));
            }
            Err(fault) => {
                self.drawn.resize(batch.draws.len(), Ok(0));
                self.outcomes.push_back(Err(fault));
            }
        }
        Ok(())
    }

    fn collect(&mut self, outcome: &mut Outcome) -> Result<(), Fault> {
        *outcome = self.outcomes.pop_front().expect("a step to collect")?;
        Ok(())
    }
}

/// # Panics
/// If the batch is not what [`Batch`]'s fields promise.
fn assert_contract(batch: &Batch, limits: &Limits, n_drawn: usize) {
    let (n_tokens, n_rows) = (batch.n_tokens(), batch.n_rows());
    assert!((1..=limits.step_tokens).contains(&n_tokens), "{n_tokens} tokens in a step");
    assert!((1..=limits.step_rows).contains(&n_rows), "{n_rows} rows in a step");
    assert!(batch.outputs.len() <= limits.step_outputs, "{} outputs in a step", batch.outputs.len());
    assert_eq!(batch.table_width, limits.table_width());
    assert_eq!(batch.tables.len(), n_rows * batch.table_width);
    assert_eq!((batch.positions.len(), batch.slots.len()), (n_tokens, n_tokens));
    assert_eq!((batch.row_start.len(), batch.expanded.len()), (n_rows + 1, n_rows));
    assert!(limits.prefill_unit < usize::MAX || !batch.expanded.contains(&true), "there are no units");
    assert_eq!((batch.row_start[0], batch.row_start[n_rows] as usize), (0, n_tokens));
    let known = |&token: &u32| (token as usize) < limits.vocab_size;
    let drawn = |&token: &u32| token & DRAWN != 0 && ((token & !DRAWN) as usize) < n_drawn;
    assert!(batch.tokens.iter().all(|token| known(token) || drawn(token)), "{:?}", batch.tokens);
    assert!(batch.reads.is_sorted_by(|a, b| a < b), "reads must rise: {:?}", batch.reads);
    assert!(batch.reads.iter().all(|&read| (read as usize) < batch.outputs.len()));
    assert!(batch.draws.len() <= limits.step_rows, "{} draws in a step", batch.draws.len());
    batch.draws.check(batch.outputs.len(), limits.vocab_size, n_drawn).unwrap();
    assert!(batch.outputs.is_sorted_by(|a, b| a < b), "outputs must rise: {:?}", batch.outputs);
    assert!(batch.outputs.iter().all(|&output| (output as usize) < n_tokens));
    let lists = |r: usize| &batch.tables[r * batch.table_width..][..batch.table_width];
    for &(from, to) in &batch.copies {
        let blocks = 1..limits.n_blocks as u32;
        assert!(from != to && blocks.contains(&from) && blocks.contains(&to), "copy from {from} to {to}");
        let owners = (0..n_rows).filter(|&r| lists(r).contains(&to)).count();
        assert_eq!(owners, 1, "block {to} is copied to and in {owners} tables");
    }
    let written: HashSet<&u32> = batch.slots.iter().collect();
    assert_eq!(written.len(), n_tokens, "a slot is written twice: {:?}", batch.slots);
    for r in 0..n_rows {
        let tokens = batch.row_start[r] as usize..batch.row_start[r + 1] as usize;
        assert!(!tokens.is_empty(), "row {r} is empty");
        let first = batch.kv_len[r] as usize - tokens.len();
        let table = lists(r);
        assert!(batch.kv_len[r] as usize <= limits.context_len);
        for (position, t) in (first..).zip(tokens) {
            let block = table[position / limits.block_len] as usize;
            assert!((1..limits.n_blocks).contains(&block), "position {position} in block {block}");
            assert_eq!(batch.positions[t] as usize, position);
            assert_eq!(batch.slots[t] as usize, block * limits.block_len + position % limits.block_len);
            let shared = (0..n_rows).any(|other| other != r && lists(other).contains(&(block as u32)));
            assert!(!shared, "row {r} writes position {position} to block {block}, which another row lists");
        }
    }
}
