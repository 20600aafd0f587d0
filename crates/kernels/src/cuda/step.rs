//! The step's indices on the device: one block of 32-bit words, written with one copy. Its device side is `csrc/step.h`.

use super::device::{Device, Ptr};
use crate::error::Result;
use crate::step::{Row, StepLimits, StepState};

/// Counts at the front, then the first token of each pass of attend_latent, and one past the last.
const HEADER: usize = 16;
/// A token's keys are attended in at most so many parts of at least so many keys: by its own position alone, so that
/// neighbours change no sum's order.
const SPLITS_MAX: usize = 32;
const SPLIT_KEYS: usize = 512;

/// Keys of one part of a token that sees `keys` of them: a multiple of 64.
pub(crate) fn split_len(keys: usize) -> usize {
    SPLIT_KEYS.max(keys.div_ceil(SPLITS_MAX).next_power_of_two())
}

/// The most parts that a token of a sequence of up to `context_len` has.
pub(crate) fn splits(context_len: usize) -> usize {
    context_len.div_ceil(SPLIT_KEYS).min(SPLITS_MAX)
}

/// The most passes that a step has. A pass ends where the items of the next token, `splits` at most, do not fit.
fn passes_max(tokens: usize, splits: usize, pass_items: usize) -> usize {
    tokens.min(1 + tokens * splits / (pass_items - splits + 1)).max(1)
}

/// Tokens, rows or outputs rounded up to what launches are made for: few enough that a graph is met again.
pub(crate) fn bucket(n: usize) -> usize {
    match n {
        0..=8 => n.max(1).next_power_of_two(),
        9..=64 => n.next_multiple_of(8),
        65..=256 => n.next_multiple_of(32),
        _ => n.next_multiple_of(128),
    }
}

/// Where the arrays of a step lie, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    tokens: usize,
    positions: usize,
    slots: usize,
    row_of: usize,
    outputs: usize,
    copies: usize,
    first_item: usize,
    items: usize,
}

impl Layout {
    fn new(limits: &StepLimits, passes_max: usize) -> Self {
        let tokens = HEADER + passes_max + 1;
        let positions = tokens + limits.tokens;
        let slots = positions + limits.tokens;
        let row_of = slots + limits.tokens;
        let outputs = row_of + limits.tokens;
        // Read two words at a time, as items are four.
        let copies = (outputs + limits.outputs).next_multiple_of(2);
        let first_item = copies + 2 * limits.rows;
        let items = (first_item + limits.tokens + 1).next_multiple_of(4);
        Self { tokens, positions, slots, row_of, outputs, copies, first_item, items }
    }
}

/// The device's copy of a step, and what the host knows of it.
pub(crate) struct DeviceStep<D: Device> {
    memory: D::Memory,
    layout: Layout,
    words: Vec<u32>,
    /// Items of attend_latent that fit into one pass.
    pass_items: usize,
    pub tokens: usize,
    pub outputs: usize,
    pub copies: usize,
    pub passes: usize,
    /// Rows that take attend_expanded.
    pub expanded: Vec<Row>,
}

impl<D: Device> DeviceStep<D> {
    pub(crate) fn new(device: &D, limits: &StepLimits, pass_items: usize) -> Result<Self> {
        let splits = splits(limits.context_len);
        let pass_items = pass_items.max(splits);
        let layout = Layout::new(limits, passes_max(limits.tokens, splits, pass_items));
        let capacity = layout.items + 4 * limits.tokens * splits + limits.rows * limits.table_width();
        Ok(Self {
            memory: device.allocate(4 * capacity, "the step's indices")?,
            layout,
            words: Vec::with_capacity(capacity),
            pass_items,
            tokens: 0,
            outputs: 0,
            copies: 0,
            passes: 0,
            expanded: Vec::with_capacity(limits.rows),
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        D::bytes(&self.memory)
    }

    /// Lays the step out and writes it.
    /// `ids_half`: of [`sample::Scratch::ids`](super::sample::Scratch::ids), where what it draws goes.
    pub(crate) fn load(&mut self, device: &D, state: &StepState, ids_half: u32) -> Result<()> {
        let Layout { tokens, positions, slots, row_of, outputs, copies, first_item, items } = self.layout;
        let words = &mut self.words;
        words.clear();
        words.resize(items, 0);
        for (at, from) in [
            (tokens, &state.tokens),
            (positions, &state.positions),
            (slots, &state.slots),
            (outputs, &state.outputs),
        ] {
            words[at..at + from.len()].copy_from_slice(from);
        }
        for (i, &(from, to)) in state.copies.iter().enumerate() {
            words[copies + 2 * i..][..2].copy_from_slice(&[from, to]);
        }
        self.expanded.clear();
        // Items: [token, row, first key, end key], token by token; passes break between tokens.
        let (mut n_items, mut pass_from, mut passes) = (0, 0, 1);
        for row in &state.rows {
            let mark = if row.expanded { 1 << 31 } else { 0 };
            words[row_of + row.first..][..row.len].fill(row.index as u32 | mark);
            if row.expanded {
                self.expanded.push(*row);
            }
            for t in row.first..row.first + row.len {
                words[first_item + t] = n_items as u32;
                if row.expanded {
                    continue;
                }
                let keys = row.kv_len - row.len + (t - row.first) + 1;
                let len = split_len(keys);
                if n_items + keys.div_ceil(len) > pass_from + self.pass_items {
                    assert!(HEADER + passes + 1 < tokens, "more passes than there can be");
                    words[HEADER + passes] = t as u32;
                    (pass_from, passes) = (n_items, passes + 1);
                }
                for from in (0..keys).step_by(len) {
                    words.extend([t, row.index, from, keys.min(from + len)].map(|n| n as u32));
                    n_items += 1;
                }
            }
        }
        let n = state.n_tokens();
        words[first_item + n] = n_items as u32;
        words[HEADER + passes] = n as u32;
        let tables_at = words.len();
        let width = state.rows.iter().map(|row| row.kv_len.div_ceil(state.block_len)).max().unwrap_or(1);
        for row in &state.rows {
            words.extend_from_slice(&state.table(row.index)[..width]);
        }
        let counts = [
            n,
            state.rows.len(),
            state.outputs.len(),
            state.copies.len(),
            tables_at,
            width,
            passes,
            ids_half as usize,
        ];
        for (word, count) in words.iter_mut().zip(counts) {
            *word = count as u32;
        }
        (self.tokens, self.outputs, self.copies, self.passes) =
            (n, state.outputs.len(), state.copies.len(), passes);
        // SAFETY: any four bytes are a word, and bytes have no alignment.
        let bytes = unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), 4 * words.len()) };
        device.write(&self.memory, 0, bytes)
    }

    fn at(&self, word: usize) -> Ptr {
        D::address(&self.memory).offset(4 * word)
    }

    /// The counts: what kernels call `step`.
    pub(crate) fn header(&self) -> Ptr {
        self.at(0)
    }

    /// `[tokens]`; with the top bit set, a draw of the step before
    pub(crate) fn token_ids(&self) -> Ptr {
        self.at(self.layout.tokens)
    }

    /// `[tokens]`
    pub(crate) fn positions(&self) -> Ptr {
        self.at(self.layout.positions)
    }

    /// `[tokens]`
    pub(crate) fn slots(&self) -> Ptr {
        self.at(self.layout.slots)
    }

    /// `[tokens]` index of the token's row; the top bit says that it takes attend_expanded
    pub(crate) fn row_of(&self) -> Ptr {
        self.at(self.layout.row_of)
    }

    /// `[outputs]`
    pub(crate) fn output_tokens(&self) -> Ptr {
        self.at(self.layout.outputs)
    }

    /// `[copies, 2]`
    pub(crate) fn copy_pairs(&self) -> Ptr {
        self.at(self.layout.copies)
    }

    /// `[tokens + 1]` first of a token's items
    pub(crate) fn first_item(&self) -> Ptr {
        self.at(self.layout.first_item)
    }

    /// `[items, 4]`: token, row, first key, end key
    pub(crate) fn items(&self) -> Ptr {
        self.at(self.layout.items)
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::cuda::sim::{Emulator, Mode};
    use crate::step::Step;

    /// Rows of one token that sees four items of keys, or one, in turns as `long` says.
    fn check(rows: usize, pass_items: usize, long: &[bool], expected: usize) {
        let limits = StepLimits {
            tokens: 600,
            rows: 600,
            outputs: 0,
            vocab_size: 1000,
            context_len: 4 * SPLIT_KEYS,
            block_len: 4 * SPLIT_KEYS,
            n_blocks: 2,
        };
        let tokens: Vec<u32> = (0..rows as u32).map(|i| 900 - i).collect();
        let keys = |row: usize| if long[row % long.len()] { 4 * SPLIT_KEYS as u32 } else { 1 };
        let step = Step {
            copies: &[],
            tokens: &tokens,
            positions: &Vec::from_iter((0..rows).map(|row| keys(row) - 1)),
            slots: &vec![1; rows],
            row_start: &Vec::from_iter(0..=rows as u32),
            kv_len: &Vec::from_iter((0..rows).map(keys)),
            expanded: &vec![false; rows],
            tables: &vec![1; rows],
            outputs: &[],
        };
        let mut state = StepState::new(&limits);
        state.load(&step, &limits, 0).unwrap();
        let device = Emulator::new(Mode::FAST, 90);
        let mut step = DeviceStep::new(&device, &limits, pass_items).unwrap();
        step.load(&device, &state, 0).unwrap();
        assert_eq!(step.passes, expected, "{rows} rows");
        let firsts = &step.words[HEADER..][..expected + 1];
        assert!(firsts.is_sorted() && [firsts[0], firsts[expected]] == [0, rows as u32], "{firsts:?}");
        assert_eq!(step.words[step.layout.tokens..][..rows], tokens, "{rows} rows");
    }

    /// As many as the limits allow, or nearly: they stay in front of the tokens.
    #[test]
    fn passes_stay_in_the_header() {
        for rows in [1, 599, 600] {
            check(rows, 0, &[true], rows);
            check(rows, 7, &[true], rows);
        }
        check(600, 100, &[true], 24);
        check(600, 100, &[false], 6);
        check(600, 100, &[true, false, false, true, false], 14);
    }
}
