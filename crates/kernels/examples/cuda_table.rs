//! What one layer and the ends of DeepSeek-V2-Lite are to a GPU: each op's launches, and the bytes that it must move, as
//! lines of tab-separated values for `scripts/cuda/table.py`. Nothing is run: the device below only takes notes.

use kernels::cuda::{About, CudaBackend, Device, Launch, Ptr};
use kernels::*;
use std::cell::Cell;

/// DeepSeek-V2-Lite: a layer with experts.
const HIDDEN: usize = 2048;
const VOCAB: usize = 102_400;
const EXPERTS: usize = 64;
const TOP_K: usize = 6;
const EXPERT: usize = 1408;
const SHARED: usize = 2816;
const MLA: MlaDims = MlaDims {
    n_heads: 16,
    kv_lora_rank: 512,
    qk_nope_head_dim: 128,
    qk_rope_head_dim: 64,
    v_head_dim: 128,
    softmax_scale: 0.1,
};
/// Tokens in the cache of each sequence.
const DEPTH: usize = 4096;

/// Bytes of a row in FP8: 512 numbers, four scales, and a rotary part in bf16.
const FP8_ROW: usize = 512 + 4 * 4 + 2 * 64;

/// An H100 that does nothing.
struct Notebook {
    about: About,
    next: Cell<u64>,
}

impl Device for Notebook {
    type Memory = (Ptr, usize);
    type Reading = ();
    type Graph = ();

    fn about(&self) -> &About {
        &self.about
    }

    fn free_bytes(&self) -> Result<u64> {
        Ok(self.about.memory_bytes)
    }

    fn allocate(&self, bytes: usize, _: &'static str) -> Result<Self::Memory> {
        let at = self.next.get();
        self.next.set(at + bytes.next_multiple_of(256) as u64);
        Ok((Ptr(at), bytes))
    }

    fn address(memory: &Self::Memory) -> Ptr {
        memory.0
    }

    fn bytes(memory: &Self::Memory) -> usize {
        memory.1
    }

    fn write(&self, _: &Self::Memory, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn read(&self, _: &Self::Memory, _: usize, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn read_later(&self, _: &Self::Memory, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn finish_reading(&self, (): (), out: &mut [u8]) -> Result<()> {
        out.fill(0);
        Ok(())
    }

    fn run(&self, _: &[Launch]) -> Result<()> {
        Ok(())
    }

    fn capture(&self, _: &[Launch]) -> Result<()> {
        Ok(())
    }

    fn replay(&self, (): &()) -> Result<()> {
        Ok(())
    }
}

type B = CudaBackend<Notebook>;

/// The weights of a layer and of the ends.
struct Weights {
    table: <B as Backend>::Weight,
    qkv: <B as Backend>::Weight,
    w_uk: <B as Backend>::Weight,
    w_k: <B as Backend>::Weight,
    w_uv: <B as Backend>::Weight,
    o: <B as Backend>::Weight,
    router: <B as Backend>::Weight,
    shared: [<B as Backend>::Weight; 2],
    experts: [<B as Backend>::Weight; 2],
}

fn weights(b: &mut B) -> Result<Weights> {
    let zeros = vec![0u8; 2 * VOCAB * HIDDEN];
    let one =
        |rows: usize, cols: usize| Matrix::new(DType::Bf16, &zeros[..2 * rows * cols], [rows, cols], None);
    let stack = |b: &mut B, n: usize, rows, cols| b.pack(&vec![one(rows, cols)?.into(); n], Precision::Bf16);
    let gated = |b: &mut B, n: usize, middle: usize| -> Result<[<B as Backend>::Weight; 2]> {
        let half = one(middle, HIDDEN)?;
        let gate_up = b.pack(&vec![Parts::GateUp { gate: half, up: half }; n], Precision::Bf16)?;
        Ok([gate_up, stack(b, n, HIDDEN, middle)?])
    };
    let d = MLA;
    Ok(Weights {
        table: stack(b, 1, VOCAB, HIDDEN)?,
        qkv: stack(b, 1, d.n_heads * d.qk_head_dim() + d.latent_width(), HIDDEN)?,
        w_uk: stack(b, d.n_heads, d.kv_lora_rank, d.qk_nope_head_dim)?,
        w_k: stack(b, d.n_heads, d.qk_nope_head_dim, d.kv_lora_rank)?,
        w_uv: stack(b, d.n_heads, d.v_head_dim, d.kv_lora_rank)?,
        o: stack(b, 1, HIDDEN, d.n_heads * d.v_head_dim)?,
        router: b.pack(&[one(EXPERTS, HIDDEN)?.into()], Precision::F32)?,
        shared: gated(b, 1, SHARED)?,
        experts: gated(b, EXPERTS, EXPERT)?,
    })
}

/// Bytes that an op must read and write for `t` tokens: weights and latent rows in bf16, activations in f32, each once.
fn bytes(op: &str, t: usize) -> (usize, usize) {
    let d = MLA;
    let (q, latent, heads) = (d.n_heads * d.qk_head_dim(), d.latent_width(), d.n_heads);
    let product = |rows: usize, cols: usize| (2 * rows * cols + 4 * t * cols, 4 * t * rows);
    let gated = |n: f64, middle: usize| {
        ((n * (6 * HIDDEN * middle) as f64) as usize + 8 * t * HIDDEN, 4 * t * HIDDEN)
    };
    let missed = (1.0 - TOP_K as f64 / EXPERTS as f64).powi(t as i32);
    match op {
        "embed" => (2 * t * HIDDEN, 4 * t * HIDDEN),
        "rms_norm" => (4 * t * HIDDEN + 4 * HIDDEN, 4 * t * HIDDEN),
        "linear (q, kv_a)" => product(q + latent, HIDDEN),
        "latent_write" => (4 * t * latent, 2 * t * latent),
        "absorb_query" => {
            (2 * heads * d.kv_lora_rank * d.qk_nope_head_dim + 4 * t * q, 4 * t * heads * latent)
        }
        "attend_latent" => (2 * t * DEPTH * latent + 4 * t * heads * latent, 4 * t * heads * d.kv_lora_rank),
        "absorb_output" => {
            let weights = 2 * heads * d.v_head_dim * d.kv_lora_rank;
            (weights + 4 * t * heads * d.kv_lora_rank, 4 * t * heads * d.v_head_dim)
        }
        "linear (o)" => {
            let (read, written) = product(HIDDEN, heads * d.v_head_dim);
            (read + 4 * t * HIDDEN, written)
        }
        "route" => (4 * EXPERTS * HIDDEN + 4 * t * HIDDEN, 8 * t * TOP_K),
        "gated_mlp (shared)" => gated(1.0, SHARED),
        "experts" => gated(EXPERTS as f64 * (1.0 - missed), EXPERT),
        "lm_head" => (2 * VOCAB * HIDDEN + 4 * t * HIDDEN, 4 * t * VOCAB),
        "sample" => (4 * t * VOCAB, 4 * t),
        "latent_write (FP8 cache)" => (4 * t * latent, t * FP8_ROW),
        "attend_latent (FP8 cache)" => {
            (t * DEPTH * FP8_ROW + 4 * t * heads * latent, 4 * t * heads * d.kv_lora_rank)
        }
        "attend_expanded" => {
            let weights = 2 * heads * (d.qk_nope_head_dim + d.v_head_dim) * d.kv_lora_rank;
            (weights + 2 * t * latent + 4 * t * q, 4 * t * heads * d.v_head_dim)
        }
        other => unreachable!("{other}"),
    }
}

fn report(b: &mut B, op: &str, tokens: usize) {
    let (read, written) = bytes(op, tokens);
    let launches = b.take_launches();
    for launch in &launches {
        let [x, y, z] = launch.grid;
        let (kernel, shared) = (launch.kernel, launch.shared_bytes);
        println!(
            "{tokens}\t{op}\t{read}\t{written}\t{}\t{}\t{x} x {y} x {z}\t{shared}",
            kernel.name, kernel.threads
        );
    }
}

/// Begins a step of so many rows, each with as many new tokens at the end of `depth`; its arena.
fn begin(b: &mut B, rows: usize, new: usize, depth: usize, expanded: bool) -> Result<<B as Backend>::Arena> {
    let d = MLA;
    let t = rows * new;
    let limits = StepLimits {
        tokens: t,
        rows,
        outputs: rows,
        vocab_size: VOCAB,
        context_len: depth,
        block_len: 64,
        n_blocks: rows * depth / 64 + 1,
    };
    b.reserve(Workspace {
        limits: limits.clone(),
        mla: d,
        rope: Rope { inv_freq: vec![1.0; d.qk_rope_head_dim / 2], scale: 1.0 },
        hidden: HIDDEN,
        widest: d.n_heads * d.kv_lora_rank,
        widest_mlp: TOP_K * EXPERT,
        n_experts: EXPERTS,
        top_k: TOP_K,
    })?;
    let arena = b.arena(1, &limits, &d)?;
    let tables: Vec<u32> = (1..limits.n_blocks as u32).collect();
    let positions: Vec<u32> = (0..t).map(|i| (depth - new + i % new) as u32).collect();
    let slot = |(i, p): (usize, &u32)| tables[i / new * depth / 64 + *p as usize / 64] * 64 + p % 64;
    b.begin_step(&Step {
        copies: &[],
        tokens: &vec![0; t],
        positions: &positions,
        slots: &positions.iter().enumerate().map(slot).collect::<Vec<_>>(),
        row_start: &(0..=rows).map(|r| (r * new) as u32).collect::<Vec<_>>(),
        kv_len: &vec![depth as u32; rows],
        expanded: &vec![expanded; rows],
        tables: &tables,
        outputs: &(1..=rows).map(|r| (r * new - 1) as u32).collect::<Vec<_>>(),
    })?;
    Ok(arena)
}

/// What differs with a cache in FP8.
fn step_in_fp8(b: &mut B, t: usize) -> Result<()> {
    let d = MLA;
    let mut arena = begin(b, t, 1, DEPTH, false)?;
    let (norm, kv) = (b.buffer(d.kv_lora_rank)?, b.buffer(t * d.latent_width())?);
    let kv = View::dense(&kv, d.latent_width());
    b.latent_write(LatentWrite { kv, norm: &norm, eps: 1e-6, dims: d, layer: 0, arena: &mut arena })?;
    report(b, "latent_write (FP8 cache)", t);
    let q = b.buffer(t * d.n_heads * d.latent_width())?;
    let mut out = b.buffer(t * d.n_heads * d.kv_lora_rank)?;
    b.attend_latent(AttendLatent { q: &q, arena: &arena, layer: 0, out: &mut out, dims: d })?;
    report(b, "attend_latent (FP8 cache)", t);
    Ok(())
}

/// Attention of a prompt's `t` tokens, keys and values expanded.
fn prompt(b: &mut B, w: &Weights, t: usize) -> Result<()> {
    let d = MLA;
    let arena = begin(b, 1, t, t, true)?;
    let q = b.buffer(t * d.n_heads * d.qk_head_dim())?;
    let mut out = b.buffer(t * d.n_heads * d.v_head_dim)?;
    let q = View::dense(&q, d.n_heads * d.qk_head_dim());
    let (w_k, w_uv, out) = (&w.w_k, &w.w_uv, &mut out);
    b.attend_expanded(AttendExpanded { q, w_k, w_uv, arena: &arena, layer: 0, out, dims: d })?;
    report(b, "attend_expanded", t);
    Ok(())
}

fn step(b: &mut B, w: &Weights, t: usize) -> Result<()> {
    let d = MLA;
    let mut arena = begin(b, t, 1, DEPTH, false)?;
    let rows: Vec<u32> = (0..t as u32).collect();
    let width = d.n_heads * d.qk_head_dim();
    let a_width = width + d.latent_width();
    let norm = b.buffer(HIDDEN)?;
    let latent_norm = b.buffer(d.kv_lora_rank)?;
    let (mut x, mut h) = (b.buffer(t * HIDDEN)?, b.buffer(t * HIDDEN)?);
    let mut qkv = b.buffer(t * a_width)?;
    let mut q_latent = b.buffer(t * d.n_heads * d.latent_width())?;
    let mut latent = b.buffer(t * d.n_heads * d.kv_lora_rank)?;
    let mut attended = b.buffer(t * d.n_heads * d.v_head_dim)?;
    let (mut ids, mut chosen) = (b.indices(t * TOP_K)?, b.buffer(t * TOP_K)?);

    b.embed(Embed { table: &w.table, out: &mut x })?;
    report(b, "embed", t);
    b.rms_norm(RmsNorm { x: View::dense(&x, HIDDEN), weight: &norm, eps: 1e-6, out: &mut h })?;
    report(b, "rms_norm", t);
    b.linear(Linear { weight: &w.qkv, x: View::dense(&h, HIDDEN), out: &mut qkv, accumulate: false })?;
    report(b, "linear (q, kv_a)", t);
    let kv = View::columns(&qkv, width, a_width);
    b.latent_write(LatentWrite { kv, norm: &latent_norm, eps: 1e-6, dims: d, layer: 0, arena: &mut arena })?;
    report(b, "latent_write", t);
    let q = View::columns(&qkv, 0, a_width);
    b.absorb_query(AbsorbQuery { q, w_uk: &w.w_uk, out: &mut q_latent, dims: d })?;
    report(b, "absorb_query", t);
    b.attend_latent(AttendLatent { q: &q_latent, arena: &arena, layer: 0, out: &mut latent, dims: d })?;
    report(b, "attend_latent", t);
    b.absorb_output(AbsorbOutput { latent: &latent, w_uv: &w.w_uv, out: &mut attended, dims: d })?;
    report(b, "absorb_output", t);
    let from = View::dense(&attended, d.n_heads * d.v_head_dim);
    b.linear(Linear { weight: &w.o, x: from, out: &mut x, accumulate: true })?;
    report(b, "linear (o)", t);
    let from = View::dense(&h, HIDDEN);
    let rule = RouteRule {
        n_experts: EXPERTS,
        top_k: TOP_K,
        scoring: Scoring::Softmax,
        n_groups: 1,
        top_groups: 1,
        normalise: false,
        scale: 1.0,
    };
    b.route(Route { x: from, weight: &w.router, bias: None, rule, ids: &mut ids, weights: &mut chosen })?;
    report(b, "route", t);
    let [gate_up, down] = &w.shared;
    b.gated_mlp(GatedMlp { gate_up, down, x: from, out: &mut x })?;
    report(b, "gated_mlp (shared)", t);
    let [gate_up, down] = &w.experts;
    b.experts(Experts { gate_up, down, x: from, ids: &ids, weights: &chosen, top_k: TOP_K, out: &mut x })?;
    report(b, "experts", t);
    b.lm_head(LmHead { x: &x, norm: &norm, eps: 1e-6, weight: &w.table })?;
    report(b, "lm_head", t);
    let draw = |output| Draw { output, temperature: 0.8, top_p: 0.95, uniform: 0.5, ..Draw::default() };
    b.list_draws(&Draws {
        sampled_vocab: VOCAB,
        draws: rows.into_iter().map(draw).collect(),
        ..Draws::default()
    })?;
    report(b, "sample", t);
    Ok(())
}

fn main() -> Result<()> {
    let about = About {
        name: "H100 SXM, as on paper".into(),
        arch: 90,
        multiprocessors: 132,
        shared_bytes_max: 232_448,
        memory_bytes: 80 << 30,
    };
    let device = || Notebook { about: about.clone(), next: Cell::new(1 << 20) };
    let mut b = CudaBackend::new(device(), Precision::Bf16);
    let w = weights(&mut b)?;
    [1, 16, 64, 256].into_iter().try_for_each(|tokens| step(&mut b, &w, tokens))?;
    let mut fp8 = CudaBackend::new(device(), Precision::Bf16).with_cache(CacheFormat::Fp8);
    [1, 16, 64, 256].into_iter().try_for_each(|tokens| step_in_fp8(&mut fp8, tokens))?;
    [256, 1024, 4096].into_iter().try_for_each(|tokens| prompt(&mut b, &w, tokens))
}
