//! Step `timing`: each op at sizes of DeepSeek-V2-Lite by graph replay. A graph rotates over copies of an op's weights, or
//! of its layer of the cache, that are larger than the L2 together, so that each is read from memory.

use crate::noisy::Noisy;
use crate::peaks::{Repeats, replays};
use crate::report::{self, Found, Outcome};
use crate::sizes::{Cost, Op, Sizes, TINY, V2_LITE, cost};
use crate::{Open, Options};
use kernels::cuda::{CudaBackend, Device, Launch};
use kernels::*;

const STEP: &str = "timing";
/// Bytes to rotate over.
const COLD: f64 = 220e6;
const COPIES_MAX: usize = 128;
/// Bytes from which memory begins as noise.
const NOISY: usize = 4096;

type Cuda<D> = CudaBackend<Noisy<D>>;
type Weight<D> = <Cuda<D> as Backend>::Weight;
type Buffer<D> = <Cuda<D> as Backend>::Buffer;

pub(crate) fn cases(options: &Options) -> Vec<String> {
    let mut cases = vec!["experts".to_owned(), "dense".into(), "ends".into()];
    let (heads, depths): (&[usize], &[usize]) = match (options.sim, options.quick) {
        (true, _) => (&[2], &[70]),
        (false, true) => (&[16], &[4096]),
        (false, false) => (&[16, 128], &[1024, 4096, 32_768]),
    };
    for heads in heads {
        for cache in ["", " fp8"] {
            cases.extend(depths.iter().map(|depth| format!("attention {heads} {depth}{cache}")));
        }
    }
    cases
}

pub(crate) fn run<D: Device>(
    case: &str,
    options: &Options,
    open: Open<'_, D>,
) -> std::result::Result<(), String> {
    let sizes = if options.sim { TINY } else { V2_LITE };
    let batches: &[usize] = match (options.sim, options.quick) {
        (true, _) => &[1, 4],
        (false, true) => &[1, 64],
        (false, false) => &[1, 16, 64, 256],
    };
    let mut words = case.split(' ').skip(1).map(|word| word.parse::<usize>().unwrap_or(0));
    let (heads, depth) = match (words.next(), words.next()) {
        (Some(heads), Some(depth)) => (heads, depth),
        _ => (sizes.mla.n_heads, 64),
    };
    let sizes = Sizes { mla: MlaDims { n_heads: heads, ..sizes.mla }, ..sizes };
    let largest = batches.iter().copied().max().unwrap_or(1);
    let cache = if case.ends_with("fp8") { CacheFormat::Fp8 } else { CacheFormat::Plain };
    let mut bench =
        Bench::new(open()?, options, sizes, (largest, depth), cache).map_err(|e| e.to_string())?;
    let done = match case {
        "experts" => bench.experts(batches),
        "dense" => bench.dense(batches),
        "ends" => bench.ends(batches),
        _ => bench.attention(batches),
    };
    done.map_err(|e| e.to_string())
}

struct Bench<'a, D: Device> {
    b: Cuda<D>,
    options: &'a Options,
    s: Sizes,
    limits: StepLimits,
    zeros: Vec<u8>,
}

impl<'a, D: Device> Bench<'a, D> {
    /// For so many tokens, at a depth.
    fn new(
        device: D,
        options: &'a Options,
        s: Sizes,
        (tokens, depth): (usize, usize),
        cache: CacheFormat,
    ) -> Result<Self> {
        let limits = StepLimits {
            tokens,
            rows: tokens,
            outputs: tokens,
            vocab_size: s.vocab,
            context_len: depth,
            block_len: 64,
            n_blocks: tokens * depth.div_ceil(64) + 1,
        };
        let d = s.mla;
        let mut b = CudaBackend::new(Noisy::new(device, NOISY), Precision::Bf16).with_cache(cache);
        b.reserve(Workspace {
            limits: limits.clone(),
            mla: d,
            rope: Rope { inv_freq: vec![0.5; d.qk_rope_head_dim / 2], scale: 1.0 },
            hidden: s.hidden,
            widest: s.hidden.max(d.n_heads * d.qk_head_dim().max(d.kv_lora_rank)),
            widest_mlp: s.shared.max(s.top_k * s.expert.next_multiple_of(16)),
            n_experts: s.experts,
            top_k: s.top_k,
        })?;
        Ok(Self { b, options, s, limits, zeros: Vec::new() })
    }

    /// A step of so many rows of one token, each at the end of its blocks.
    fn begin(&mut self, t: usize) -> Result<()> {
        let depth = self.limits.context_len;
        let width = self.limits.table_width() as u32;
        let rows: Vec<u32> = (0..t as u32).collect();
        let last = (depth - 1) as u32;
        let step = Step {
            copies: &[],
            tokens: &rows.iter().map(|r| r * 97 % self.s.vocab as u32).collect::<Vec<_>>(),
            positions: &vec![last; t],
            slots: &rows.iter().map(|r| (1 + r * width + last / 64) * 64 + last % 64).collect::<Vec<_>>(),
            row_start: &(0..=t as u32).collect::<Vec<_>>(),
            kv_len: &vec![depth as u32; t],
            expanded: &vec![false; t],
            tables: &(1..=t as u32 * width).collect::<Vec<_>>(),
            outputs: &rows,
        };
        self.b.begin_step(&step)
    }

    /// Noise, made on the device.
    fn noise<T>(&mut self, make: impl FnOnce(&mut Cuda<D>) -> Result<T>) -> Result<T> {
        self.b.device().set(true);
        let made = make(&mut self.b);
        self.b.device().set(false);
        made
    }

    fn buffer(&mut self, width: usize) -> Result<Buffer<D>> {
        let tokens = self.limits.tokens;
        self.noise(|b| b.buffer(tokens * width))
    }

    fn copies_of(&self, bytes: f64) -> usize {
        if self.options.sim { 2 } else { ((COLD / bytes).ceil() as usize).clamp(1, COPIES_MAX) }
    }

    /// As many stacks of `n` matrices as are rotated over.
    fn weights(
        &mut self,
        n: usize,
        rows: usize,
        cols: usize,
        precision: Precision,
    ) -> Result<Vec<Weight<D>>> {
        let copies = self.copies_of((n * rows * cols * precision.size()) as f64);
        self.grow(rows * cols);
        let zeros = std::mem::take(&mut self.zeros);
        let made = self.noise(|b| {
            let one = Matrix::new(DType::Bf16, &zeros[..2 * rows * cols], [rows, cols], None)?;
            (0..copies).map(|_| b.pack(&vec![one.into(); n], precision)).collect()
        });
        self.zeros = zeros;
        made
    }

    fn gated(&mut self, n: usize, middle: usize) -> Result<Vec<[Weight<D>; 2]>> {
        let hidden = self.s.hidden;
        let copies = self.copies_of((n * 6 * hidden * middle) as f64);
        self.grow(middle * hidden);
        let zeros = std::mem::take(&mut self.zeros);
        let made = self.noise(|b| {
            let bytes = &zeros[..2 * middle * hidden];
            let half = Matrix::new(DType::Bf16, bytes, [middle, hidden], None)?;
            let down = Matrix::new(DType::Bf16, bytes, [hidden, middle], None)?;
            let pair = |b: &mut Cuda<D>| {
                let gate_up = b.pack(&vec![Parts::GateUp { gate: half, up: half }; n], Precision::Bf16)?;
                Ok([gate_up, b.pack(&vec![down.into(); n], Precision::Bf16)?])
            };
            (0..copies).map(|_| pair(b)).collect()
        });
        self.zeros = zeros;
        made
    }

    fn grow(&mut self, numbers: usize) {
        if self.zeros.len() < 2 * numbers {
            self.zeros = vec![0; 2 * numbers];
        }
    }

    /// Times what `run` puts on the list for each copy.
    fn time(
        &mut self,
        op: Op,
        t: usize,
        copies: usize,
        mut run: impl FnMut(&mut Cuda<D>, usize) -> Result<()>,
    ) -> Result<()> {
        self.b.take_launches();
        let mut launches = Vec::new();
        for copy in 0..copies {
            run(&mut self.b, copy)?;
            launches.extend(self.b.take_launches());
        }
        self.report(op, t, copies, &launches);
        Ok(())
    }

    fn report(&self, op: Op, t: usize, copies: usize, launches: &[Launch]) {
        let name = match op {
            Op::Attend(depth, cache) => {
                let (heads, cache) = (self.s.mla.n_heads, cache.name(Precision::Bf16));
                format!("{} x{t} {heads} heads {depth} keys in {cache}", op.name())
            }
            _ => format!("{} x{t}", op.name()),
        };
        report::case(STEP, &name, Outcome::Measured, || {
            let (median, p95) = replays(self.b.device(), launches, Repeats::of(self.options))?;
            let (median, p95) = (median / copies as f64, p95 / copies as f64);
            let Cost { bytes, flop } = cost(&self.s, op, t);
            let mut found = Found::default().with("us", 1e6 * median).with("p95", 1e6 * p95);
            let Options { bandwidth, flops, .. } = *self.options;
            if bandwidth > 0.0 && flops > 0.0 {
                let least = (bytes / bandwidth).max(flop / flops);
                found = found.with("share", least / median).with("least us", 1e6 * least);
            }
            Ok(found
                .with("GB/s", bytes / median / 1e9)
                .with("TFLOP/s", flop / median / 1e12)
                .with("MB", bytes / 1e6)
                .with("launches", (launches.len() / copies) as f64)
                .with("copies", copies as f64))
        });
    }

    fn attention(&mut self, batches: &[usize]) -> Result<()> {
        let (d, depth) = (self.s.mla, self.limits.context_len);
        let cache = self.b.cache();
        let row = (depth * cache.row_bytes(Precision::Bf16, &d)) as f64;
        // One sequence's keys of all layers are more than the L2 holds; several take fewer layers.
        let layers = if self.options.sim { 2 } else { ((75e6 / row).ceil() as usize).clamp(1, 64) };
        let limits = self.limits.clone();
        let arena = self.noise(|b| b.arena(layers, &limits, &d))?;
        let q = self.buffer(d.n_heads * d.latent_width())?;
        let mut out = self.buffer(d.n_heads * d.kv_lora_rank)?;
        for &t in batches {
            self.begin(t)?;
            let copies = self.copies_of(row * t as f64).min(layers);
            self.time(Op::Attend(depth, cache), t, copies, |b, layer| {
                b.attend_latent(AttendLatent { q: &q, arena: &arena, layer, out: &mut out, dims: d })
            })?;
        }
        Ok(())
    }

    fn experts(&mut self, batches: &[usize]) -> Result<()> {
        let s = self.s;
        let routers = self.weights(1, s.experts, s.hidden, Precision::F32)?;
        let experts = self.gated(s.experts, s.expert)?;
        let shared = self.gated(1, s.shared)?;
        let x = self.buffer(s.hidden)?;
        let mut out = self.buffer(s.hidden)?;
        let tokens = self.limits.tokens;
        let mut ids = self.b.indices(tokens * s.top_k)?;
        let mut weights = self.b.buffer(tokens * s.top_k)?;
        let rule = RouteRule {
            n_experts: s.experts,
            top_k: s.top_k,
            scoring: Scoring::Softmax,
            n_groups: 1,
            top_groups: 1,
            normalise: false,
            scale: 1.0,
        };
        let from = View::dense(&x, s.hidden);
        for &t in batches {
            self.begin(t)?;
            self.time(Op::Route, t, routers.len(), |b, i| {
                let (ids, weights) = (&mut ids, &mut weights);
                b.route(Route { x: from, weight: &routers[i], bias: None, rule, ids, weights })
            })?;
            self.time(Op::Experts, t, experts.len(), |b, i| {
                let [gate_up, down] = &experts[i];
                let (ids, weights, out) = (&ids, &weights, &mut out);
                b.experts(Experts { gate_up, down, x: from, ids, weights, top_k: s.top_k, out })
            })?;
            self.time(Op::Shared, t, shared.len(), |b, i| {
                let [gate_up, down] = &shared[i];
                b.gated_mlp(GatedMlp { gate_up, down, x: from, out: &mut out })
            })?;
        }
        Ok(())
    }

    fn dense(&mut self, batches: &[usize]) -> Result<()> {
        let (s, d) = (self.s, self.s.mla);
        let q_width = d.n_heads * d.qk_head_dim();
        let (a_width, v_width) = (q_width + d.latent_width(), d.n_heads * d.v_head_dim);
        let bf16 = Precision::Bf16;
        let qkv = self.weights(1, a_width, s.hidden, bf16)?;
        let w_uk = self.weights(d.n_heads, d.kv_lora_rank, d.qk_nope_head_dim, bf16)?;
        let w_uv = self.weights(d.n_heads, d.v_head_dim, d.kv_lora_rank, bf16)?;
        let o = self.weights(1, s.hidden, v_width, bf16)?;
        let (h, mut a) = (self.buffer(s.hidden)?, self.buffer(a_width)?);
        let mut q_latent = self.buffer(d.n_heads * d.latent_width())?;
        let latent = self.buffer(d.n_heads * d.kv_lora_rank)?;
        let mut attended = self.buffer(v_width)?;
        let mut x = self.buffer(s.hidden)?;
        for &t in batches {
            self.begin(t)?;
            self.time(Op::QueryAndLatent, t, qkv.len(), |b, i| {
                let x = View::dense(&h, s.hidden);
                b.linear(Linear { weight: &qkv[i], x, out: &mut a, accumulate: false })
            })?;
            self.time(Op::AbsorbQuery, t, w_uk.len(), |b, i| {
                let q = View::columns(&a, 0, a_width);
                b.absorb_query(AbsorbQuery { q, w_uk: &w_uk[i], out: &mut q_latent, dims: d })
            })?;
            self.time(Op::AbsorbOutput, t, w_uv.len(), |b, i| {
                let out = &mut attended;
                b.absorb_output(AbsorbOutput { latent: &latent, w_uv: &w_uv[i], out, dims: d })
            })?;
            self.time(Op::Output, t, o.len(), |b, i| {
                let x_view = View::dense(&attended, v_width);
                b.linear(Linear { weight: &o[i], x: x_view, out: &mut x, accumulate: true })
            })?;
        }
        Ok(())
    }

    /// What is at the ends of the model, and what goes row by row: the latter stays in the L2, as it does in a step.
    fn ends(&mut self, batches: &[usize]) -> Result<()> {
        let (s, d) = (self.s, self.s.mla);
        let table = self.weights(1, s.vocab, s.hidden, Precision::Bf16)?;
        let limits = self.limits.clone();
        let mut arena = self.noise(|b| b.arena(1, &limits, &d))?;
        let norm = self.noise(|b| b.buffer(s.hidden))?;
        let latent_norm = self.noise(|b| b.buffer(d.kv_lora_rank))?;
        let (mut x, mut h) = (self.buffer(s.hidden)?, self.buffer(s.hidden)?);
        let kv = self.buffer(d.latent_width())?;
        for &t in batches {
            self.begin(t)?;
            self.time(Op::Embed, t, table.len(), |b, i| b.embed(Embed { table: &table[i], out: &mut x }))?;
            self.time(Op::RmsNorm, t, 1, |b, _| {
                let x = View::dense(&x, s.hidden);
                b.rms_norm(RmsNorm { x, weight: &norm, eps: 1e-6, out: &mut h })
            })?;
            self.time(Op::LatentWrite, t, 1, |b, _| {
                let kv = View::dense(&kv, d.latent_width());
                let (norm, arena) = (&latent_norm, &mut arena);
                b.latent_write(LatentWrite { kv, norm, eps: 1e-6, dims: d, layer: 0, arena })
            })?;
            self.time(Op::LmHead, t, table.len(), |b, i| {
                b.lm_head(LmHead { x: &x, norm: &norm, eps: 1e-6, weight: &table[i] })
            })?;
            let draw =
                |output| Draw { output, temperature: 0.8, top_p: 0.95, uniform: 0.5, ..Draw::default() };
            let draws = (0..t as u32).map(draw).collect();
            let draws = Draws { sampled_vocab: s.vocab, draws, ..Draws::default() };
            self.time(Op::Sample, t, 1, |b, _| b.list_draws(&draws))?;
        }
        Ok(())
    }
}
