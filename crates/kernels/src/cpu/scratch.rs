//! Memory between and inside ops, made once for the largest step.

use super::attend::{self, Widths};
use super::attend_latent::{SPLIT_KEYS, few_items, sums_width};
use super::isa::Isa;
use super::packed::{Huge, SendPtr};
use super::pool::Pool;
use super::tile::{Elem, PANEL};
use super::{Cpu, FEW_ROWS};
use crate::backend::{View, Workspace};
use crate::cache::CacheFormat;
use crate::dtype::Precision;
use crate::error::{Result, require};
use crate::ops::RouteScratch;
use half::bf16;

/// Queries of a row that `attend_latent` takes at a time, times heads: enough that packing a tile of
/// keys costs little beside using it, few enough that their sums stay in L2.
const LATENT_QUERIES: usize = 64;
/// Parts of split rows that are under way before they are merged, a thread: enough that threads wait
/// little for each other. With 128 heads a part is 257 KiB, however long the context.
pub(super) const PARTS_A_THREAD: usize = 16;

/// Inputs of a product in the weights' own precision. f32 is used where it lies; bf16 is rounded to
/// here, each row followed by room for a tile's last step.
pub(super) struct Operands<E> {
    rounded: Option<Huge<E>>,
    /// `[tokens * top_k, middle]`: the middle of gated MLPs
    pub middle: Option<Huge<E>>,
    /// One a thread.
    pub attend: Vec<attend::Scratch<E>>,
}

impl<E> Default for Operands<E> {
    fn default() -> Self {
        Self { rounded: None, middle: None, attend: Vec::new() }
    }
}

/// Rows of a loaded operand.
pub(super) struct Rows<E> {
    first: SendPtr<E>,
    stride: usize,
}

impl<E> Rows<E> {
    pub(super) fn row(&self, t: usize) -> *const E {
        self.first.get().wrapping_add(t * self.stride)
    }

    /// Column `column` of row `t`.
    pub(super) fn at(&self, t: usize, column: usize) -> *const E {
        self.row(t).wrapping_add(column)
    }
}

impl<E: Elem> Operands<E> {
    /// Rows `0..rows` of `view`, `width` wide, as `E`. Each pointer that comes back is readable for
    /// `width` elements rounded up to whole steps.
    pub(super) fn load(
        &mut self,
        pool: &mut Pool,
        isa: Isa,
        view: &View<'_, Cpu>,
        rows: usize,
        width: usize,
    ) -> Result<Rows<E>> {
        let x = |t: usize| &view.buffer[view.offset + t * view.stride..][..width];
        if E::PAIR == 1 {
            // f32: the view's own memory, whose rows were checked by the op.
            return Ok(Rows { first: SendPtr::new(x(0).as_ptr().cast_mut().cast()), stride: view.stride });
        }
        let stride = width.next_multiple_of(E::PAIR);
        let buffer = self.rounded.as_mut();
        let room = buffer.as_ref().map_or(0, |b| b.len());
        // The last head of a row of odd heads is read one step further than the row is long.
        require(rows * stride + E::PAIR <= room, "operand", || format!("{rows} rows of {width} in {room}"))?;
        let first = SendPtr::new(buffer.map_or(std::ptr::null_mut(), |b| b.as_mut_ptr()));
        let convert = |_: usize, t: usize| {
            // SAFETY: rows do not overlap and lie within the buffer.
            let out = unsafe { std::slice::from_raw_parts_mut(first.at(t * stride), stride) };
            let (out, pad) = out.split_at_mut(width);
            E::convert(isa, x(t), out);
            // Its weight is 0, but 0 times what another op left here may be NaN.
            pad.fill(E::ZERO);
        };
        if rows < FEW_ROWS {
            (0..rows).for_each(|t| convert(0, t));
        } else {
            pool.run(rows, &convert);
        }
        Ok(Rows { first, stride })
    }

    fn new(w: &Workspace, threads: usize, here: bool, cache: CacheFormat) -> Result<Self> {
        if !here {
            return Ok(Self::default());
        }
        let tokens = w.limits.tokens;
        let rounded = (E::PAIR > 1)
            .then(|| Huge::zeroed(tokens * w.widest.next_multiple_of(E::PAIR) + E::PAIR, "operands"))
            .transpose()?;
        let middle = tokens * w.widest_mlp.next_multiple_of(PANEL).max(w.top_k * PANEL);
        let middle = Some(Huge::zeroed(middle, "the middle of the MLPs")?);
        let cases = [(latent_queries(w), latent_widths(w)), (tokens, expanded_widths(w))];
        let widened = if cache == CacheFormat::Fp8 { w.mla.latent_width() } else { 0 };
        let attend = (0..threads).map(|_| attend::Scratch::new(&cases, widened)).collect();
        Ok(Self { rounded, middle, attend })
    }

    fn bytes(&self) -> usize {
        let huge = |h: &Option<Huge<E>>| h.as_ref().map_or(0, |h| h.len() * size_of::<E>());
        huge(&self.rounded)
            + huge(&self.middle)
            + self.attend.iter().map(attend::Scratch::bytes).sum::<usize>()
    }
}

pub(super) fn latent_widths(w: &Workspace) -> Widths {
    Widths { qk: w.mla.latent_width(), v: w.mla.kv_lora_rank }
}

pub(super) fn expanded_widths(w: &Workspace) -> Widths {
    Widths { qk: w.mla.qk_head_dim(), v: w.mla.v_head_dim }
}

/// Queries (tokens times heads) of one item of `attend_latent`, at most.
fn latent_queries(w: &Workspace) -> usize {
    tokens_per_item(w.mla.n_heads) * w.mla.n_heads
}

/// Tokens of one item of `attend_latent`, at most.
pub(super) fn tokens_per_item(n_heads: usize) -> usize {
    (LATENT_QUERIES / n_heads).max(1)
}

#[derive(Default)]
pub(super) struct Scratch {
    pub f32: Operands<f32>,
    pub bf16: Operands<bf16>,
    /// `[outputs, hidden]`
    pub normed: Vec<f32>,
    /// `[latent_width]`
    pub latent_row: Vec<f32>,
    /// `[tokens, experts]`
    pub router_logits: Vec<f32>,
    /// One a thread.
    pub route: Vec<RouteScratch>,
    pub groups: super::moe::Groups,
    /// `[heads]` every head's matrix over the absorbed tokens
    pub head_segments: Vec<super::matmul::Segment>,
    /// Items of `attend_latent`.
    pub items: Vec<super::attend_latent::LatentItem>,
    /// `[items, 1 + parts, queries, sums_width]`, where few items are split over threads
    pub parts: Vec<f32>,
    /// Sums of an item's earlier parts, one a thread: `[queries, sums_width]`
    pub merged: Vec<Vec<f32>>,
}

impl Scratch {
    pub(super) fn new(
        w: &Workspace,
        threads: usize,
        precision: Precision,
        cache: CacheFormat,
    ) -> Result<Self> {
        let tokens = w.limits.tokens;
        let part = latent_queries(w) * sums_width(latent_widths(w));
        let splits = w.limits.context_len.div_ceil(SPLIT_KEYS);
        let few = few_items(threads).min(tokens);
        let parts = if splits > 1 { few + (few * splits).min(PARTS_A_THREAD * threads) } else { 0 };
        let bf16 = precision == Precision::Bf16;
        Ok(Self {
            // The router is f32 always, and reads its inputs where they lie.
            f32: Operands::new(w, threads, !bf16, cache)?,
            bf16: Operands::new(w, threads, bf16, cache)?,
            normed: super::zeros(w.limits.outputs * w.widest)?,
            latent_row: super::zeros(w.mla.latent_width())?,
            router_logits: super::zeros(tokens * w.n_experts)?,
            route: (0..threads).map(|_| RouteScratch::new(w.n_experts)).collect(),
            groups: super::moe::Groups::new(tokens * w.top_k, w.n_experts),
            head_segments: Vec::with_capacity(w.mla.n_heads),
            items: Vec::with_capacity(tokens),
            parts: super::zeros(parts * part)?,
            merged: (0..threads).map(|_| super::zeros(part)).collect::<Result<_>>()?,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        let f32s = self.normed.len()
            + self.router_logits.len()
            + self.parts.len()
            + self.merged.iter().map(Vec::len).sum::<usize>();
        self.f32.bytes() + self.bf16.bytes() + f32s * 4
    }
}
