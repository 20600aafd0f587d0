//! Gated MLPs, the router, and experts grouped so that each is read once a step.

use super::arena::Stored;
use super::matmul::{Item, Segment, matmul};
use super::packed::{Panels, SendPtr};
use super::tile::{Elem, PANEL};
use super::{Cpu, lanes, same_precision};
use crate::backend::View;
use crate::error::{Result, require};
use crate::ops::{Experts, GatedMlp, Route, route_reference};

/// The step's `(token, expert)` pairs sorted by expert.
#[derive(Default)]
pub(super) struct Groups {
    /// One for each expert that somebody chose, by rising id; vectors are places in `tokens`.
    segments: Vec<Segment>,
    /// `[tokens * top_k]`
    tokens: Vec<u32>,
    /// `[tokens * top_k]`
    weights: Vec<f32>,
    /// `[experts]` next place of each expert
    next: Vec<u32>,
}

impl Groups {
    pub(super) fn new(pairs: usize, n_experts: usize) -> Self {
        Self {
            segments: Vec::with_capacity(n_experts),
            tokens: Vec::with_capacity(pairs),
            weights: Vec::with_capacity(pairs),
            next: Vec::with_capacity(n_experts),
        }
    }

    /// A counting sort: within an expert, tokens stay in order.
    fn fill(&mut self, ids: &[u32], weights: &[f32], top_k: usize, n_experts: usize) {
        self.next.clear();
        self.next.resize(n_experts, 0);
        for &id in ids {
            self.next[id as usize] += 1;
        }
        self.segments.clear();
        let mut first = 0;
        for (matrix, count) in self.next.iter_mut().enumerate() {
            let len = *count as usize;
            if len > 0 {
                self.segments.push(Segment { matrix, first, len });
            }
            *count = first as u32;
            first += len;
        }
        self.tokens.resize(ids.len(), 0);
        self.weights.resize(ids.len(), 0.0);
        for (pair, (&id, &weight)) in ids.iter().zip(weights).enumerate() {
            let place = &mut self.next[id as usize];
            self.tokens[*place as usize] = (pair / top_k) as u32;
            self.weights[*place as usize] = weight;
            *place += 1;
        }
    }
}

/// `silu(gate) * up` of one piece of packed gate and up rows, into the middle row of its vector.
fn finish_middle<E: Elem>(isa: super::Isa, out: *mut E, values: &mut [f32]) {
    for (i, pair) in values.chunks_exact_mut(2 * PANEL).enumerate() {
        let (gate, up) = pair.split_at_mut(PANEL);
        lanes::silu_mul(isa, gate, up);
        // SAFETY: the caller's row has room for the panels of its matrix.
        let out = unsafe { std::slice::from_raw_parts_mut(out.wrapping_add(i * PANEL), PANEL) };
        E::convert(isa, gate, out);
    }
}

impl Cpu {
    /// Room for `rows` middle rows of these weights; returns it with the length of a row.
    fn middle<E: Stored>(&mut self, gate_up: &Panels<E>, rows: usize) -> Result<(SendPtr<E>, usize)> {
        let stride = gate_up.per_matrix / 2 * PANEL;
        let middle = E::operands(&mut self.scratch).middle.as_mut();
        let room = middle.as_ref().map_or(0, |m| m.len());
        require(rows * stride <= room, "gated_mlp", || format!("{rows} rows of {stride} in {room}"))?;
        Ok((SendPtr::new(middle.map_or(std::ptr::null_mut(), |m| m.as_mut_ptr())), stride))
    }

    pub(super) fn gated_mlp_of<E: Stored>(
        &mut self,
        op: GatedMlp<'_, Self>,
        tokens: usize,
        hidden: usize,
    ) -> Result<()> {
        require(op.gate_up.gated, "gated_mlp", || "gate and up are not packed as such".into())?;
        let gate_up = same_precision(E::panels(op.gate_up), "gated_mlp")?;
        let down = same_precision(E::panels(op.down), "gated_mlp")?;
        let isa = self.isa;
        let x = E::operands(&mut self.scratch).load(&mut self.pool, isa, &op.x, tokens, hidden)?;
        let (middle, stride) = self.middle(gate_up, tokens)?;
        let segments = [Segment { matrix: 0, first: 0, len: tokens }];
        let to_middle = |_: usize, t: usize, first: usize, values: &mut [f32]| {
            finish_middle(isa, middle.get().wrapping_add(t * stride + first / 2), values);
        };
        // SAFETY: `x` holds `tokens` rows of `hidden`.
        unsafe {
            matmul(&mut self.pool, isa, gate_up, &segments, Item::SegmentPanels, |_, t| x.row(t), to_middle)
        };
        let row = |t: usize| middle.get().wrapping_add(t * stride).cast_const();
        // SAFETY: the middle rows are `stride` long, the intermediate size rounded up to panels.
        unsafe { self.product(down, tokens, row, hidden, op.out, true) };
        Ok(())
    }

    pub(super) fn experts_of<E: Stored>(
        &mut self,
        op: Experts<'_, Self>,
        tokens: usize,
        n: usize,
        hidden: usize,
    ) -> Result<()> {
        require(op.gate_up.gated, "experts", || "gate and up are not packed as such".into())?;
        let gate_up = same_precision(E::panels(op.gate_up), "experts")?;
        let down = same_precision(E::panels(op.down), "experts")?;
        let pairs = tokens * op.top_k;
        let ids = &op.ids[..pairs];
        require(ids.iter().all(|&id| (id as usize) < n), "experts", || {
            format!("an id of {ids:?} is not below {n}")
        })?;
        let isa = self.isa;
        let mut groups = std::mem::take(&mut self.scratch.groups);
        groups.fill(ids, &op.weights[..pairs], op.top_k, n);
        let x = E::operands(&mut self.scratch).load(&mut self.pool, isa, &op.x, tokens, hidden)?;
        let (middle, stride) = self.middle(gate_up, pairs)?;
        let to_middle = |_: usize, i: usize, first: usize, values: &mut [f32]| {
            finish_middle(isa, middle.get().wrapping_add(i * stride + first / 2), values);
        };
        let token_row = |_: usize, i: usize| x.row(groups.tokens[i] as usize);
        // SAFETY: `x` holds `tokens` rows of `hidden`.
        unsafe {
            matmul(&mut self.pool, isa, gate_up, &groups.segments, Item::SegmentPanels, token_row, to_middle);
        }
        let out = SendPtr::new(op.out.as_mut_ptr());
        let add = |_: usize, i: usize, first: usize, values: &mut [f32]| {
            let (token, weight) = (groups.tokens[i] as usize, groups.weights[i]);
            let n = values.len().min(hidden.saturating_sub(first));
            // SAFETY: an item has these columns of all rows to itself, and they lie within `out`.
            let out = unsafe { std::slice::from_raw_parts_mut(out.at(token * hidden + first), n) };
            out.iter_mut().zip(values).for_each(|(o, v)| *o += weight * *v);
        };
        let row = |_: usize, i: usize| middle.get().wrapping_add(i * stride).cast_const();
        // SAFETY: as for `gated_mlp`.
        unsafe { matmul(&mut self.pool, isa, down, &groups.segments, Item::Panels, row, add) };
        self.scratch.groups = groups;
        Ok(())
    }

    pub(super) fn route_f32(&mut self, op: Route<'_, Self>, tokens: usize, hidden: usize) -> Result<()> {
        let w = <f32 as Stored>::panels(op.weight);
        let w = same_precision(w, "route (its weight is f32 always)")?;
        let (experts, top_k) = (op.rule.n_experts, op.rule.top_k);
        let room = self.scratch.router_logits.len();
        require(
            tokens * experts <= room && self.scratch.route.len() >= self.pool.threads(),
            "route",
            || format!("{tokens} rows of {experts} in {room}"),
        )?;
        let isa = self.isa;
        let view: View<'_, Self> = op.x;
        let x = self.scratch.f32.load(&mut self.pool, isa, &view, tokens, hidden)?;
        let mut logits = std::mem::take(&mut self.scratch.router_logits);
        // SAFETY: `x` holds `tokens` rows of `hidden`.
        unsafe { self.product(w, tokens, |t| x.row(t), experts, &mut logits, false) };
        let rows = SendPtr::new(logits.as_mut_ptr());
        let scratch = SendPtr::new(self.scratch.route.as_mut_ptr());
        let (ids, weights) = (SendPtr::new(op.ids.as_mut_ptr()), SendPtr::new(op.weights.as_mut_ptr()));
        let bias = op.bias.map(Vec::as_slice);
        let rule = op.rule;
        self.rows(tokens, &|worker, t| {
            // SAFETY: a worker runs one item at a time; rows of logits, ids and weights do not overlap
            // and lie within their buffers, as checked.
            let (scratch, logits, ids, weights) = unsafe {
                (
                    &mut *scratch.at(worker),
                    std::slice::from_raw_parts_mut(rows.at(t * experts), experts),
                    std::slice::from_raw_parts_mut(ids.at(t * top_k), top_k),
                    std::slice::from_raw_parts_mut(weights.at(t * top_k), top_k),
                )
            };
            route_reference(logits, bias, &rule, scratch, ids, weights);
        });
        self.scratch.router_logits = logits;
        Ok(())
    }
}
