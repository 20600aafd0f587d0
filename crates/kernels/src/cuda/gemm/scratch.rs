//! Memory that products need between their launches.

use super::super::device::{GRID_MAX, Ptr};
use super::super::{CudaBackend, Device, Held};
use crate::backend::Workspace;
use crate::error::{Result, require};

/// What experts give back, before it is summed: a longer prefill takes them in turns.
const EXPERT_BYTES: usize = 128 << 20;
/// Rows that a tile of experts' work has at least room for (see `Product::tile_rows`).
const SMALLEST_TILE: usize = 8;

pub(crate) struct Scratch<D: Device> {
    rounded: Held<D>,
    middle: Held<D>,
    experts: Held<D>,
    lists: Held<D>,
    logits: Held<D>,
    /// (token, expert) pairs that the lists have room for.
    pairs: usize,
    /// Tiles that they have room for.
    tiles: usize,
}

impl<D: Device> Scratch<D> {
    pub(crate) fn new(b: &CudaBackend<D>, workspace: &Workspace) -> Result<Self> {
        let Workspace { limits, mla, hidden, widest, widest_mlp, n_experts, top_k, .. } = workspace;
        let tokens = super::super::step::bucket(limits.tokens.max(limits.outputs));
        // A grid has no more blocks than that in its second dimension.
        require(u16::try_from(tokens).is_ok(), "reserve", || {
            format!(
                "{} tokens a step, and a GPU takes 65,408 at most: give fewer --max-num-batched-tokens",
                limits.tokens
            )
        })?;
        // Rows are padded to units of 32, each head's and each expert's.
        let size = b.precision().size();
        let pairs = tokens * top_k;
        let tiles = 1 + n_experts.min(&pairs) + pairs / SMALLEST_TILE;
        let row = 4 * hidden * top_k;
        let experts = (row * if pairs > 0 { tokens } else { 0 }).min(EXPERT_BYTES.max(128 * row));
        Ok(Self {
            rounded: b.hold(size * tokens * (widest + 32 * (mla.n_heads + 1)), "rounded activations")?,
            middle: b.hold(size * tokens * (widest_mlp + 32 * (top_k + 1)), "the middle of MLPs")?,
            experts: b.hold(experts, "results of experts")?,
            lists: b.hold(16 * tiles + 8 * pairs, "lists of experts")?,
            logits: b.hold(4 * limits.outputs * limits.vocab_size, "logits")?,
            pairs,
            tiles,
        })
    }

    fn room(op: &'static str, held: &Held<D>, bytes: usize) -> Result<Ptr> {
        let room = D::bytes(held.get());
        require(bytes <= room, op, || format!("{bytes} bytes of scratch memory, {room} reserved"))?;
        Ok(held.ptr())
    }

    pub(super) fn rounded(&self, op: &'static str, bytes: usize) -> Result<Ptr> {
        Self::room(op, &self.rounded, bytes)
    }

    pub(super) fn middle(&self, op: &'static str, bytes: usize) -> Result<Ptr> {
        Self::room(op, &self.middle, bytes)
    }

    /// Room for what `top_k` of `n` experts give back for each token: as many tokens as there is room for, and as the
    /// grid of their products has tiles for.
    pub(super) fn experts(
        &self,
        op: &'static str,
        n: usize,
        hidden: usize,
        top_k: usize,
    ) -> Result<(Ptr, usize)> {
        let fit = D::bytes(self.experts.get()) / (4 * hidden * top_k).max(1);
        let tiled = (GRID_MAX[1] as usize).saturating_sub(n) * SMALLEST_TILE / top_k;
        let tokens = fit.min(tiled);
        require(tokens > 0, op, || format!("{top_k} of {n} experts' rows of {hidden} in their results"))?;
        Ok((self.experts.ptr(), tokens))
    }

    /// Tiles, token of each place, place of each pair.
    pub(super) fn lists(&self, op: &'static str, pairs: usize, tiles: usize) -> Result<[Ptr; 3]> {
        require(pairs <= self.pairs && tiles < self.tiles, op, || {
            format!("{pairs} pairs in {tiles} tiles, reserved for {} in {}", self.pairs, self.tiles)
        })?;
        let at = self.lists.ptr();
        let tokens = at.offset(16 * self.tiles);
        Ok([at, tokens, tokens.offset(4 * self.pairs)])
    }

    pub(in crate::cuda) fn logits(&self, op: &'static str, numbers: usize) -> Result<&Held<D>> {
        Self::room(op, &self.logits, 4 * numbers)?;
        Ok(&self.logits)
    }
}
