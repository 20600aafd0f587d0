//! Drawing the tokens of a step from its logits, one block a draw.

use super::device::{Kernel, Ptr, params};
use super::step::bucket;
use super::{CudaBackend, Device, Held};
use crate::backend::Workspace;
use crate::error::{Result, require};
use sampler::{Draw, Drawn, Draws, NoToken, mask_words};

/// Words of `csrc/sample.cu`: the front, and each draw.
const HEADER: usize = 4;
const DRAW: usize = 20;
const NONE: u32 = u32::MAX;
/// Numbers that stand for no token, as `csrc/step.h` says.
const NOT_FINITE: u32 = u32::MAX;
const ALL_MASKED: u32 = u32::MAX - 1;

/// Room a draw for biases, and as much for ids that are banned.
const LISTED: usize = 1024;
/// A bit an id of it must fit the shared memory that every GPU has.
const VOCAB_MAX: usize = 1 << 19;
/// `SHARED_FIXED_BYTES`, and the bins of a search behind.
const SHARED: [usize; 2] = [512, 3 * 4 * 2048];

static SAMPLE: Kernel = Kernel {
    name: "smxx_f32_sample",
    file: "sample",
    threads: 1024,
    shared_bytes_max: (SHARED[0] + VOCAB_MAX / 8) as u32,
};

pub(super) const KERNELS: &[&Kernel] = &[&SAMPLE];

params! {
    struct SampleParams {
        logits: Ptr,
        words: Ptr,
        step: Ptr,
        ids: Ptr,
        adjusted: Ptr,
        vocab: i32,
        most: i32,
    }
}

/// What draws need on the device.
pub(super) struct Scratch<D: Device> {
    words: Held<D>,
    /// `[most, vocab_size]`: rows of draws that change them
    adjusted: Held<D>,
    /// `[2, most]`: what the draws of the step and of the one before came to, in turns
    ids: Held<D>,
    on_host: Vec<u32>,
    /// Draws of a step.
    most: usize,
    vocab_size: usize,
    /// Of the step's draws that were loaded.
    n_draws: usize,
}

impl<D: Device> Scratch<D> {
    pub(super) fn new(b: &CudaBackend<D>, workspace: &Workspace) -> Result<Self> {
        let limits = &workspace.limits;
        let (most, vocab_size) = (limits.rows, limits.vocab_size);
        require(vocab_size <= VOCAB_MAX, "reserve", || {
            format!("{vocab_size} tokens in the vocabulary, and a GPU draws from {VOCAB_MAX} at most")
        })?;
        let counts = 2 * limits.context_len.min(vocab_size);
        let draw = DRAW + counts + 3 * LISTED + mask_words(vocab_size);
        Ok(Self {
            words: b.hold(4 * (HEADER + most * draw), "draws")?,
            adjusted: b.hold(4 * most * vocab_size, "adjusted logits")?,
            ids: b.hold(8 * most, "drawn tokens")?,
            on_host: Vec::new(),
            most,
            vocab_size,
            n_draws: 0,
        })
    }

    /// Lays out a step's draws, which were checked, and writes them.
    pub(super) fn load(&mut self, device: &D, draws: &Draws) -> Result<()> {
        require(draws.len() <= self.most, "sample", || {
            format!("{} draws, reserved for {} a step", draws.len(), self.most)
        })?;
        self.n_draws = draws.len();
        if draws.is_empty() {
            return Ok(());
        }
        let words = &mut self.on_host;
        words.clear();
        words.extend([draws.len() as u32, draws.sampled_vocab as u32, 0, 0]);
        // Pairs first: they are read two words at a time.
        let counts = HEADER + DRAW * draws.len();
        let biases = counts + 2 * draws.counts.len();
        let banned = biases + 2 * draws.biases.len();
        let lists = Lists { counts, biases, banned, masks: banned + draws.banned.len() };
        for draw in &draws.draws {
            words.extend(lists.words(draw, draws.sampled_vocab));
        }
        words.extend(draws.counts.iter().flat_map(|&(id, count)| [id, count]));
        words.extend(draws.biases.iter().flat_map(|&(id, bias)| [id, bias.to_bits()]));
        words.extend(&draws.banned);
        words.extend(&draws.masks);
        let (bytes, room) = (4 * words.len(), D::bytes(self.words.get()));
        require(bytes <= room, "sample", || {
            format!("penalties, biases and masks of {bytes} bytes in one step, reserved are {room}")
        })?;
        // SAFETY: any four bytes are a word, and bytes have no alignment.
        let bytes = unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), bytes) };
        device.write(self.words.get(), 0, bytes)
    }

    /// `[2, most]` of [`drawn`], and `most`.
    pub(super) fn ids(&self) -> (Ptr, i32) {
        (self.ids.ptr(), self.most as i32)
    }

    /// Memory that holds what a step's draws came to, and where in it they begin, in bytes. `half`: as its step says.
    pub(super) fn ids_of(&self, half: u32) -> (&D::Memory, usize) {
        (self.ids.get(), 4 * half as usize * self.most)
    }
}

/// What a word of [`Scratch::ids`] means.
pub(super) fn drawn(word: u32) -> Drawn {
    match word {
        NOT_FINITE => Err(NoToken::NotFinite),
        ALL_MASKED => Err(NoToken::AllMasked),
        id => Ok(id),
    }
}

/// First word of each list.
struct Lists {
    counts: usize,
    biases: usize,
    banned: usize,
    masks: usize,
}

impl Lists {
    fn words(&self, draw: &Draw, sampled_vocab: usize) -> [u32; DRAW] {
        let uniform = draw.uniform.to_bits();
        let scale = if draw.is_greedy() { 0.0 } else { std::f32::consts::LOG2_E / draw.temperature };
        let counts = if draw.penalises() { draw.counts.clone() } else { 0..0 };
        [
            draw.output,
            draw.after.filter(|_| draw.penalises()).unwrap_or(NONE),
            scale.to_bits(),
            if draw.top_k < sampled_vocab { draw.top_k as u32 } else { 0 },
            draw.top_p.to_bits(),
            draw.min_p.to_bits(),
            draw.repetition_penalty.to_bits(),
            draw.frequency_penalty.to_bits(),
            draw.presence_penalty.to_bits(),
            draw.adjusts().into(),
            uniform as u32,
            (uniform >> 32) as u32,
            (self.banned + draw.banned.start) as u32,
            draw.banned.len() as u32,
            (self.counts + 2 * counts.start) as u32,
            counts.len() as u32,
            (self.biases + 2 * draw.biases.start) as u32,
            draw.biases.len() as u32,
            draw.mask.map_or(NONE, |at| (self.masks + at) as u32),
            0,
        ]
    }
}

/// Draws, from rows of `vocab` logits, what was loaded.
pub(super) fn sample<D: Device>(b: &CudaBackend<D>, logits: Ptr, vocab: usize) -> Result<()> {
    let reserved = b.reserved("sample")?;
    let scratch = &reserved.sample;
    require(vocab <= scratch.vocab_size, "sample", || {
        format!("{vocab} logits a row, reserved for {}", scratch.vocab_size)
    })?;
    if scratch.n_draws == 0 {
        return Ok(());
    }
    let (ids, most) = scratch.ids();
    let params = SampleParams {
        logits,
        words: scratch.words.ptr(),
        step: reserved.step.header(),
        ids,
        adjusted: scratch.adjusted.ptr(),
        vocab: vocab as i32,
        most,
    };
    let shared = SHARED[0] + SHARED[1].max(4 * mask_words(vocab));
    b.launch(&SAMPLE, [bucket(scratch.n_draws), 1, 1], shared, &params);
    Ok(())
}

#[cfg(all(test, feature = "sim"))]
mod tests;
