//! How fast the model runs here, beside what the machine's memory and arithmetic allow, so that each
//! row says what share of the limit it is.

use crate::device::{Limits, Measured};
use kernels::{CacheFormat, Draw, Draws, Precision, Step, StepLimits};
use model::forward::{Model, prefill_unit};
use model::plan::Parameters;
use model::spec::ModelSpec;
use serde::Serialize;
use std::fmt;
use std::time::{Duration, Instant};

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct Cases {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Steps of a decode measurement, at most.
    pub steps: usize,
    pub depths: Vec<usize>,
    pub batches: Vec<usize>,
    /// Tokens of one prefill step.
    pub chunk: usize,
}

/// A decode measurement ends after so long, if it has a few steps by then.
const ENOUGH: Duration = Duration::from_secs(8);
const FEW_STEPS: usize = 8;
/// Steps before those that are counted, at most.
const WARM_UP: usize = 2;
const BLOCK_LEN: usize = 64;

impl Cases {
    /// Leaves out depths at which a sequence of `context_len` has no room to decode; returns them.
    pub(crate) fn drop_deeper_than(&mut self, context_len: usize) -> Vec<usize> {
        let (kept, dropped) = self.depths.iter().partition(|&&depth| depth + FEW_STEPS < context_len);
        self.depths = kept;
        dropped
    }

    /// Sizes for which the model must be loaded.
    pub(crate) fn limits(&self, spec: &ModelSpec) -> StepLimits {
        let batch = self.batches.iter().copied().max().unwrap_or(1);
        let depth = self.depths.iter().copied().max().unwrap_or(0) + self.steps + WARM_UP;
        let context_len = depth.max(self.prompt).min(spec.context_len);
        StepLimits {
            tokens: self.chunk.max(batch),
            rows: batch,
            outputs: batch,
            vocab_size: spec.vocab_size,
            context_len,
            block_len: BLOCK_LEN,
            n_blocks: batch * context_len.div_ceil(BLOCK_LEN) + 1,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct RateCard {
    pub model: String,
    pub parameters: u64,
    pub weights: &'static str,
    pub cache: &'static str,
    pub device: String,
    #[serde(flatten)]
    pub limits: Option<Limits>,
    pub prefill: Vec<Prefill>,
    pub decode: Vec<Decode>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Prefill {
    pub tokens: usize,
    pub tokens_per_second: f64,
    pub flops: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Decode {
    pub depth: usize,
    pub batch: usize,
    pub steps: usize,
    pub tokens_per_second: f64,
    pub median_step_ms: f64,
    /// Weights and latent rows that a step must read, experts as many as such a batch hits on average.
    pub bytes_per_step: f64,
}

/// One sequence under way: its place among the blocks and how far it is.
struct Sequences<'a> {
    limits: &'a StepLimits,
    /// New tokens from which a row is expanded.
    unit: usize,
    /// `[batch]` tokens in the cache
    len: Vec<usize>,
}

impl Sequences<'_> {
    fn block(&self, row: usize, position: usize) -> usize {
        1 + row * self.limits.table_width() + position / BLOCK_LEN
    }

    /// The next `n` tokens of each row, as a step that asks for each row's last logits.
    fn step<T>(&mut self, n: usize, run: impl FnOnce(&Step<'_>) -> T) -> T {
        let rows = self.len.len();
        let (mut tokens, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        for (row, len) in self.len.iter().enumerate() {
            for p in *len..len + n {
                // Tokens that jump about, so that experts are hit as in text.
                tokens.push(((row * 7919 + p * 104_729) % self.limits.vocab_size) as u32);
                positions.push(p as u32);
                slots.push((self.block(row, p) * BLOCK_LEN + p % BLOCK_LEN) as u32);
            }
        }
        self.len.iter_mut().for_each(|len| *len += n);
        let width = self.limits.table_width();
        let row_start: Vec<u32> = (0..=rows).map(|r| (r * n) as u32).collect();
        let kv_len: Vec<u32> = self.len.iter().map(|&len| len as u32).collect();
        let expanded = vec![n >= self.unit; rows];
        let tables: Vec<u32> = (0..rows * width).map(|i| 1 + i as u32).collect();
        let outputs: Vec<u32> = (1..=rows).map(|r| (r * n - 1) as u32).collect();
        run(&Step {
            copies: &[],
            tokens: &tokens,
            positions: &positions,
            slots: &slots,
            row_start: &row_start,
            kv_len: &kv_len,
            expanded: &expanded,
            tables: &tables,
            outputs: &outputs,
        })
    }
}

/// Runs all cases. `device` and `numbers` (of products, of the cache) are the model's; `tell` hears what is being measured.
pub(crate) fn measure<B: Measured>(
    model: &mut Model<B>,
    name: &str,
    (device, numbers): (String, (Precision, CacheFormat)),
    cases: &Cases,
    mut tell: impl FnMut(&str),
) -> anyhow::Result<RateCard> {
    tell("memory bandwidth and arithmetic");
    let limits = model.backend_mut().limits()?;
    let mut prefills = Vec::new();
    if cases.prompt > 0 {
        tell(&format!("prefill of {} tokens", cases.prompt));
        prefills.push(prefill(model, cases)?);
    }
    let mut decodes = Vec::new();
    for &depth in &cases.depths {
        for &batch in &cases.batches {
            tell(&format!("decode at depth {depth}, batch {batch}"));
            decodes.push(decode(model, depth, batch, cases.steps, numbers)?);
        }
    }
    Ok(RateCard {
        model: name.to_owned(),
        parameters: Parameters::of(model.spec()).total(),
        weights: numbers.0.name(),
        cache: numbers.1.name(numbers.0),
        device,
        limits,
        prefill: prefills,
        decode: decodes,
    })
}

fn prefill<B: Measured>(model: &mut Model<B>, cases: &Cases) -> anyhow::Result<Prefill> {
    let limits = model.step_limits().clone();
    let tokens = cases.prompt.min(limits.context_len);
    let mut logits = Vec::new();
    let unit = prefill_unit(model.spec(), &limits);
    let mut best = f64::MAX;
    for _ in 0..3 {
        let mut sequences = Sequences { limits: &limits, unit, len: vec![0] };
        let start = Instant::now();
        while sequences.len[0] < tokens {
            let n = cases.chunk.min(tokens - sequences.len[0]);
            sequences.step(n, |step| model.forward(step, &mut logits))?;
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    let flops = prefill_flops(model.spec(), tokens) / best;
    Ok(Prefill { tokens, tokens_per_second: tokens as f64 / best, flops })
}

/// Two operations a weight that a token passes through, and the attention over what came before.
fn prefill_flops(spec: &ModelSpec, tokens: usize) -> f64 {
    let p = Parameters::of(spec);
    let routed = spec.moe().map_or(0.0, |moe| moe.rule.top_k as f64 / moe.rule.n_experts as f64);
    let a_token =
        (p.attention + p.dense_mlp + p.shared_experts + p.router) as f64 + p.routed_experts as f64 * routed;
    let heads = spec.n_layers() * spec.mla.n_heads;
    let a_pair = (heads * (spec.mla.qk_head_dim() + spec.mla.v_head_dim)) as f64;
    let pairs = tokens as f64 * (tokens as f64 + 1.0) / 2.0;
    2.0 * (a_token * tokens as f64 + a_pair * pairs)
}

/// Steps as a server takes them: a token drawn for each row, greedily, and the next step launched before it is known where
/// the device works on its own.
fn decode<B: Measured>(
    model: &mut Model<B>,
    depth: usize,
    batch: usize,
    steps: usize,
    numbers: (Precision, CacheFormat),
) -> anyhow::Result<Decode> {
    let limits = model.step_limits().clone();
    let unit = prefill_unit(model.spec(), &limits);
    let mut sequences = Sequences { limits: &limits, unit, len: vec![0; batch] };
    while sequences.len[0] < depth {
        let n = (limits.tokens / batch).max(1).min(depth - sequences.len[0]);
        sequences.step(n, |step| model.prime(step))?;
    }
    let draw = |output| Draw { output, ..Draw::default() };
    let draws = (0..batch as u32).map(draw).collect();
    let draws = Draws { sampled_vocab: limits.vocab_size, draws, ..Draws::default() };
    let (mut drawn, mut logits) = (Vec::new(), Vec::new());
    let mut under_way = 0;
    let mut times = Vec::new();
    let start = Instant::now();
    let room = limits.context_len - depth;
    // The first steps are warm-up: they are not counted.
    for i in 0..=(steps + B::STEPS_AHEAD).min(room.saturating_sub(1)) {
        let before = Instant::now();
        sequences.step(1, |step| model.launch(step, &draws, &[]))?;
        under_way += 1;
        if under_way > B::STEPS_AHEAD {
            model.collect(&mut drawn, &mut logits)?;
            under_way -= 1;
        }
        if i > B::STEPS_AHEAD {
            times.push(before.elapsed().as_secs_f64());
        }
        if start.elapsed() > ENOUGH && times.len() >= FEW_STEPS {
            break;
        }
    }
    for _ in 0..under_way {
        model.collect(&mut drawn, &mut logits)?;
    }
    anyhow::ensure!(
        !times.is_empty(),
        "no room to decode at depth {depth} in a context of {}",
        limits.context_len
    );
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    Ok(Decode {
        depth,
        batch,
        steps: times.len(),
        tokens_per_second: batch as f64 / median,
        median_step_ms: median * 1e3,
        bytes_per_step: bytes_per_step(model.spec(), depth, batch, numbers),
    })
}

/// Every weight once, of the routed experts the share that `batch` tokens hit on average, and the
/// latent rows of each sequence.
fn bytes_per_step(
    spec: &ModelSpec,
    depth: usize,
    batch: usize,
    (precision, cache): (Precision, CacheFormat),
) -> f64 {
    let p = Parameters::of(spec);
    let head = if p.lm_head == 0 { p.embedding } else { p.lm_head };
    let hit = spec.moe().map_or(0.0, |moe| {
        1.0 - (1.0 - moe.rule.top_k as f64 / moe.rule.n_experts as f64).powi(batch as i32)
    });
    let weights = (p.attention + p.dense_mlp + p.shared_experts + p.router + head) as f64
        + p.routed_experts as f64 * hit;
    let latents = batch * depth * spec.kv_bytes_per_token(cache, precision);
    weights * precision.size() as f64 + latents as f64
}

impl fmt::Display for RateCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let billions = self.parameters as f64 / 1e9;
        writeln!(f, "{}: {billions:.2} B parameters, {}, cache {}", self.model, self.weights, self.cache)?;
        match self.limits {
            Some(Limits { threads, read_bandwidth, peak_flops }) => writeln!(
                f,
                "{}, {threads} threads: reads {:.1} GB/s, computes {:.0} GFLOP/s\n",
                self.device,
                read_bandwidth / 1e9,
                peak_flops / 1e9
            )?,
            None => writeln!(f, "{}\n", self.device)?,
        }
        let last = if self.limits.is_some() { "of the limit" } else { "computes, reads" };
        writeln!(f, "{:<28} {:>10} {:>12} {last:>22}", "", "tok/s", "ms a step")?;
        for p in &self.prefill {
            let name = format!("prefill {}", p.tokens);
            write!(f, "{name:<28} {:>10.1} {:>12}", p.tokens_per_second, "")?;
            match &self.limits {
                Some(l) => writeln!(f, " {:>11.0} % of GFLOP/s", p.flops / l.peak_flops * 100.0)?,
                None => writeln!(f, " {:>14.2} TFLOP/s", p.flops / 1e12)?,
            }
        }
        for d in &self.decode {
            let name = format!("decode depth {:>6} batch {:>3}", d.depth, d.batch);
            let bandwidth = d.bytes_per_step / (d.median_step_ms / 1e3);
            write!(f, "{name:<28} {:>10.1} {:>12.2}", d.tokens_per_second, d.median_step_ms)?;
            match &self.limits {
                Some(l) => writeln!(f, " {:>13.0} % of GB/s", bandwidth / l.read_bandwidth * 100.0)?,
                None => writeln!(f, " {:>17.1} GB/s", bandwidth / 1e9)?,
            }
        }
        Ok(())
    }
}
