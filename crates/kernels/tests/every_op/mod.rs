//! Every op once, on whichever backend, over a step of several rows.

#![allow(dead_code)] // each test target uses a part of it

mod draws;
#[path = "../noise/mod.rs"]
mod noise;

use Attention::Expanded;
pub(crate) use draws::check_draws;
use kernels::*;
pub(crate) use noise::noise;

/// `(tokens already cached, new tokens, how the row attends)`
pub(crate) type Row = (usize, usize, Attention);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attention {
    Latent,
    Expanded,
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Rows under way in shuffled blocks.
pub(crate) struct StepData {
    pub(crate) limits: StepLimits,
    /// Each row's last block goes where the row before had its own, the first one's to a spare block.
    copies: Vec<(u32, u32)>,
    tokens: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    row_start: Vec<u32>,
    kv_len: Vec<u32>,
    expanded: Vec<bool>,
    tables: Vec<u32>,
    outputs: Vec<u32>,
}

impl StepData {
    pub(crate) fn new(rows: &[Row], block_len: usize) -> Self {
        let context_len = rows.iter().map(|(cached, new, _)| cached + new).max().unwrap() + 3;
        let width = context_len.div_ceil(block_len);
        let lent = (rows.len() * width) as u32;
        let tokens: usize = rows.iter().map(|(_, new, _)| new).sum();
        let limits = StepLimits {
            tokens,
            rows: rows.len(),
            outputs: tokens,
            vocab_size: 50,
            context_len,
            block_len,
            n_blocks: lent as usize + 2,
        };
        // Blocks in falling order: a row's blocks are never neighbours in memory order.
        let tables: Vec<u32> = (1..=lent).rev().collect();
        let mut s = Self {
            limits,
            copies: vec![],
            tokens: (0..tokens as u32).map(|t| t * 7 % 50).collect(),
            positions: vec![],
            slots: vec![],
            row_start: vec![0],
            kv_len: vec![],
            expanded: rows.iter().map(|(.., attention)| *attention == Expanded).collect(),
            tables,
            outputs: vec![],
        };
        for (r, &(cached, new, _)) in rows.iter().enumerate() {
            for p in cached..cached + new {
                let block = s.tables[r * width + p / block_len];
                s.positions.push(p as u32);
                s.slots.push(block * block_len as u32 + (p % block_len) as u32);
            }
            s.row_start.push(s.positions.len() as u32);
            s.outputs.push(s.positions.len() as u32 - 1);
            s.kv_len.push((cached + new) as u32);
            let last = s.tables[r * width + (cached + new - 1) / block_len];
            s.copies.push((last, s.copies.last().map_or(lent + 1, |&(from, _)| from)));
        }
        s
    }

    pub(crate) fn step(&self) -> Step<'_> {
        Step {
            copies: &[],
            tokens: &self.tokens,
            positions: &self.positions,
            slots: &self.slots,
            row_start: &self.row_start,
            kv_len: &self.kv_len,
            expanded: &self.expanded,
            tables: &self.tables,
            outputs: &self.outputs,
        }
    }

    /// Where the rows of `block` are after [`Self::copies`].
    fn copied_to(&self, block: u32) -> u32 {
        self.copies.iter().find(|(from, _)| *from == block).map_or(block, |&(_, to)| to)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) mla: MlaDims,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) n_experts: usize,
    pub(crate) top_k: usize,
}

/// Everything that one backend computes in one step, op by op.
pub(crate) fn run<B: Backend>(
    b: &mut B,
    s: Sizes,
    data: &StepData,
    precision: Precision,
) -> Vec<(&'static str, Vec<f32>)> {
    let d = s.mla;
    let (h, inter, e, k) = (s.hidden, s.intermediate, s.n_experts, s.top_k);
    let t = data.tokens.len();
    let widest = h.max(d.n_heads * d.qk_head_dim()).max(d.n_heads * d.latent_width());
    let rope =
        Rope { inv_freq: (0..d.qk_rope_head_dim / 2).map(|i| 0.5f32.powi(i as i32)).collect(), scale: 1.1 };
    b.reserve(Workspace {
        limits: data.limits.clone(),
        mla: d,
        rope,
        hidden: h,
        widest,
        widest_mlp: inter.max(k * inter.next_multiple_of(16)),
        n_experts: e,
        top_k: k,
    })
    .unwrap();
    b.begin_step(&data.step()).unwrap();
    let mut results = Vec::new();

    let weight = |b: &mut B, stack: usize, rows: usize, cols: usize, seed: u64, precision| {
        let values = bytes(&noise(stack * rows * cols, seed));
        let parts: Vec<Parts<'_>> = (0..stack)
            .map(|i| {
                let one = &values[i * rows * cols * 4..][..rows * cols * 4];
                Matrix::new(DType::F32, one, [rows, cols], None).unwrap().into()
            })
            .collect();
        b.pack(&parts, precision).unwrap()
    };
    let gate_up = |b: &mut B, stack: usize, seed: u64| {
        let values = bytes(&noise(stack * 2 * inter * h, seed));
        let part = |i: usize| {
            Matrix::new(DType::F32, &values[i * inter * h * 4..][..inter * h * 4], [inter, h], None).unwrap()
        };
        let parts: Vec<Parts<'_>> =
            (0..stack).map(|i| Parts::GateUp { gate: part(2 * i), up: part(2 * i + 1) }).collect();
        b.pack(&parts, precision).unwrap()
    };

    let table = weight(b, 1, 50, h, 1, precision);
    let mut x = b.buffer(t * h).unwrap();
    b.embed(Embed { table: &table, out: &mut x }).unwrap();
    results.push(("embed", b.read(&x, t * h)));

    let x = b.upload(&noise(t * h, 2)).unwrap();
    let norm = b.upload(&noise(h, 3)).unwrap();
    let mut normed = b.buffer(t * h).unwrap();
    b.rms_norm(RmsNorm { x: View::dense(&x, h), weight: &norm, eps: 1e-5, out: &mut normed }).unwrap();
    results.push(("rms_norm", b.read(&normed, t * h)));

    // A view into the middle of wider rows, replacing and adding.
    let w = weight(b, 1, 37, 21, 4, precision);
    let wide = b.upload(&noise(t * 40, 5)).unwrap();
    let mut y = b.upload(&noise(t * 37, 6)).unwrap();
    for accumulate in [false, true] {
        let x = View::columns(&wide, 11, 40);
        b.linear(Linear { weight: &w, x, out: &mut y, accumulate }).unwrap();
        results.push(("linear", b.read(&y, t * 37)));
    }

    // The cache: every position of every row is written by a step of its own, then attended to.
    let width = d.latent_width();
    let mut arena = b.arena(2, &data.limits, &d).unwrap();
    let latent_norm = b.upload(&noise(d.kv_lora_rank, 7)).unwrap();
    let cached: Vec<(usize, usize)> = data
        .row_start
        .windows(2)
        .zip(&data.kv_len)
        .map(|(w, &l)| (0, (l - (w[1] - w[0])) as usize))
        .collect();
    let table_width = data.limits.table_width();
    for (r, &(_, n)) in cached.iter().enumerate() {
        for p in 0..n {
            let block = data.tables[r * table_width + p / data.limits.block_len] as usize;
            let slot = (block * data.limits.block_len + p % data.limits.block_len) as u32;
            let one = Step {
                copies: &[],
                tokens: &[0],
                positions: &[p as u32],
                slots: &[slot],
                row_start: &[0, 1],
                kv_len: &[p as u32 + 1],
                expanded: &[false],
                tables: &data.tables[r * table_width..][..table_width],
                outputs: &[],
            };
            b.begin_step(&one).unwrap();
            let kv = b.upload(&noise(width, 1000 * r as u64 + p as u64 + 8)).unwrap();
            let kv = View::dense(&kv, width);
            b.latent_write(LatentWrite {
                kv,
                norm: &latent_norm,
                eps: 1e-6,
                dims: d,
                layer: 1,
                arena: &mut arena,
            })
            .unwrap();
        }
    }
    b.begin_step(&data.step()).unwrap();
    let kv = b.upload(&noise(t * width, 9)).unwrap();
    let kv = View::dense(&kv, width);
    b.latent_write(LatentWrite { kv, norm: &latent_norm, eps: 1e-6, dims: d, layer: 1, arena: &mut arena })
        .unwrap();

    let q_width = d.n_heads * d.qk_head_dim();
    let q = b.upload(&noise(t * (q_width + 5), 10)).unwrap();
    let q = View::columns(&q, 5, q_width + 5);
    let w_uk = weight(b, d.n_heads, d.kv_lora_rank, d.qk_nope_head_dim, 11, precision);
    let w_k = weight(b, d.n_heads, d.qk_nope_head_dim, d.kv_lora_rank, 12, precision);
    let w_uv = weight(b, d.n_heads, d.v_head_dim, d.kv_lora_rank, 13, precision);
    let mut q_latent = b.buffer(t * d.n_heads * width).unwrap();
    let mut latent = b.buffer(t * d.n_heads * d.kv_lora_rank).unwrap();
    let mut out = b.buffer(t * d.n_heads * d.v_head_dim).unwrap();
    b.absorb_query(AbsorbQuery { q, w_uk: &w_uk, out: &mut q_latent, dims: d }).unwrap();
    results.push(("absorb_query", b.read(&q_latent, t * d.n_heads * width)));
    b.attend_latent(AttendLatent { q: &q_latent, arena: &arena, layer: 1, out: &mut latent, dims: d })
        .unwrap();
    results.push(("attend_latent", b.read(&latent, t * d.n_heads * d.kv_lora_rank)));
    b.absorb_output(AbsorbOutput { latent: &latent, w_uv: &w_uv, out: &mut out, dims: d }).unwrap();
    results.push(("absorb_output", b.read(&out, t * d.n_heads * d.v_head_dim)));
    b.attend_expanded(AttendExpanded {
        q,
        w_k: &w_k,
        w_uv: &w_uv,
        arena: &arena,
        layer: 1,
        out: &mut out,
        dims: d,
    })
    .unwrap();
    results.push(("attend_expanded", b.read(&out, t * d.n_heads * d.v_head_dim)));

    // The same cache where its blocks were copied to.
    let tables: Vec<u32> = data.tables.iter().map(|&block| data.copied_to(block)).collect();
    b.begin_step(&Step { copies: &data.copies, tables: &tables, ..data.step() }).unwrap();
    b.copy_blocks(CopyBlocks { arena: &mut arena }).unwrap();
    let mut copied = b.buffer(t * d.n_heads * d.kv_lora_rank).unwrap();
    b.attend_latent(AttendLatent { q: &q_latent, arena: &arena, layer: 1, out: &mut copied, dims: d })
        .unwrap();
    let [copied, latent] = [copied, latent].map(|buffer| b.read(&buffer, t * d.n_heads * d.kv_lora_rank));
    assert!(copied == latent, "copied blocks differ");
    results.push(("copy_blocks", copied));

    let (gu, down) = (gate_up(b, 1, 14), weight(b, 1, h, inter, 15, precision));
    let mut y = b.upload(&noise(t * h, 16)).unwrap();
    b.gated_mlp(GatedMlp { gate_up: &gu, down: &down, x: View::dense(&x, h), out: &mut y }).unwrap();
    results.push(("gated_mlp", b.read(&y, t * h)));

    // So small that scores of wide layers differ, rather than all being 1.
    let router: Vec<f32> = noise(e * h, 17).iter().map(|w| w / (h as f32).sqrt()).collect();
    let router = bytes(&router);
    let router = Matrix::new(DType::F32, &router, [e, h], None).unwrap();
    let router = b.pack(&[router.into()], Precision::F32).unwrap();
    let (mut ids, mut weights) = (b.indices(t * k).unwrap(), b.buffer(t * k).unwrap());
    let rule = RouteRule {
        n_experts: e,
        top_k: k,
        scoring: Scoring::Sigmoid,
        n_groups: 1,
        top_groups: 1,
        normalise: true,
        scale: 2.5,
    };
    let x_view = View::dense(&x, h);
    b.route(Route { x: x_view, weight: &router, bias: None, rule, ids: &mut ids, weights: &mut weights })
        .unwrap();
    results.push(("route", b.read_indices(&ids, t * k).iter().map(|&i| i as f32).collect()));
    results.push(("route", b.read(&weights, t * k)));

    let (gu, down) = (gate_up(b, e, 18), weight(b, e, h, inter, 19, precision));
    let op =
        Experts { gate_up: &gu, down: &down, x: x_view, ids: &ids, weights: &weights, top_k: k, out: &mut y };
    b.experts(op).unwrap();
    results.push(("experts", b.read(&y, t * h)));

    let head = weight(b, 1, 50, h, 20, precision);
    let mut logits = Vec::new();
    b.lm_head(LmHead { x: &x, norm: &norm, eps: 1e-6, weight: &head }).unwrap();
    b.read_logits(&Vec::from_iter(0..data.outputs.len() as u32), &mut logits).unwrap();
    results.push(("lm_head", logits));
    results
}

pub(crate) const ODD: Sizes = Sizes {
    mla: MlaDims {
        n_heads: 3,
        kv_lora_rank: 22,
        qk_nope_head_dim: 10,
        qk_rope_head_dim: 6,
        v_head_dim: 18,
        softmax_scale: 0.3,
    },
    hidden: 43,
    intermediate: 27,
    n_experts: 7,
    top_k: 3,
};
