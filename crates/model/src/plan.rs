//! Memory and speed by arithmetic alone: what a model needs before any weight is read.

use crate::spec::{Mlp, ModelSpec};
use kernels::{CacheFormat, Precision, Scoring};
use std::collections::BTreeSet;
use std::fmt;

/// Numbers in the weights, by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parameters {
    pub embedding: u64,
    /// 0 where the embedding is the head.
    pub lm_head: u64,
    pub attention: u64,
    pub dense_mlp: u64,
    pub routed_experts: u64,
    pub shared_experts: u64,
    pub router: u64,
    pub norms: u64,
}

impl Parameters {
    pub fn of(spec: &ModelSpec) -> Self {
        let hidden = spec.hidden_size as u64;
        let embedding = spec.vocab_size as u64 * hidden;
        let layers = spec.n_layers() as u64;
        let mut p = Self {
            embedding,
            lm_head: if spec.tie_word_embeddings { 0 } else { embedding },
            attention: layers * attention(spec),
            norms: hidden + layers * norms(spec),
            ..Self::default()
        };
        for layer in &spec.layers {
            match layer {
                Mlp::Dense { intermediate_size } => p.dense_mlp += gated_mlp(hidden, *intermediate_size),
                Mlp::Moe(moe) => {
                    let n = moe.rule.n_experts as u64;
                    p.routed_experts += n * gated_mlp(hidden, moe.intermediate_size);
                    p.shared_experts += gated_mlp(hidden, moe.shared_intermediate_size);
                    let bias = if moe.rule.scoring == Scoring::Sigmoid { n } else { 0 };
                    p.router += n * hidden + bias;
                }
            }
        }
        p
    }

    pub fn total(&self) -> u64 {
        self.attention
            + self.dense_mlp
            + self.routed_experts
            + self.shared_experts
            + self.router
            + self.norms
            + self.embedding
            + self.lm_head
    }

    /// Read by every step, whichever experts it needs; of the embedding a step reads single rows.
    fn always_read(&self) -> u64 {
        let head = if self.lm_head == 0 { self.embedding } else { self.lm_head };
        self.attention + self.dense_mlp + self.shared_experts + self.router + self.norms + head
    }

    fn parts(&self) -> [(&'static str, u64); 8] {
        [
            ("embedding", self.embedding),
            ("output head", self.lm_head),
            ("attention", self.attention),
            ("dense MLPs", self.dense_mlp),
            ("routed experts", self.routed_experts),
            ("shared experts", self.shared_experts),
            ("routers", self.router),
            ("norms", self.norms),
        ]
    }
}

fn attention(spec: &ModelSpec) -> u64 {
    let (mla, hidden) = (&spec.mla, spec.hidden_size);
    let q_width = mla.n_heads * mla.qk_head_dim();
    let query = match spec.q_lora_rank {
        Some(rank) => rank * (hidden + q_width),
        None => hidden * q_width,
    };
    let latent = hidden * mla.latent_width();
    let up = mla.kv_lora_rank * mla.n_heads * (mla.qk_nope_head_dim + mla.v_head_dim);
    let output = mla.n_heads * mla.v_head_dim * hidden;
    (query + latent + up + output) as u64
}

fn norms(spec: &ModelSpec) -> u64 {
    (2 * spec.hidden_size + spec.mla.kv_lora_rank + spec.q_lora_rank.unwrap_or(0)) as u64
}

fn gated_mlp(hidden: u64, intermediate: usize) -> u64 {
    3 * hidden * intermediate as u64
}

/// Numbers that a cache holds a token and layer, had the model this or that attention with heads of
/// the same sizes (keys `qk_nope_head_dim`, values `v_head_dim`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvWidths {
    /// Each head with a key and a value of its own.
    pub mha: u64,
    /// Eight keys and values, shared by groups of heads.
    pub gqa8: u64,
    /// One key and value for all.
    pub mqa: u64,
    /// What is stored here: the latent and the shared rotary key.
    pub mla: u64,
}

impl KvWidths {
    pub fn of(spec: &ModelSpec) -> Self {
        let mqa = (spec.mla.qk_nope_head_dim + spec.mla.v_head_dim) as u64;
        let heads = spec.mla.n_heads as u64;
        Self { mha: heads * mqa, gqa8: heads.min(8) * mqa, mqa, mla: spec.latent_width() as u64 }
    }
}

/// What the plan is made for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Assumptions {
    /// 2 for bf16; 1.0625 for q8_0.
    pub weight_bytes: f64,
    /// How the cache stores its rows, and in what precision products are computed.
    pub cache: (CacheFormat, Precision),
    /// For weights and cache together.
    pub memory_bytes: Option<u64>,
    /// Memory that can be read in a second.
    pub bandwidth_bytes: Option<f64>,
    /// Longest sequence, in tokens.
    pub context_len: usize,
    /// Devices with that memory and bandwidth each. Routed experts are divided among them; everything else is on each, and
    /// so are the sequences that each attends for (expert parallelism with data-parallel attention: a latent row is the
    /// same for all heads, so that dividing heads would store it on every device).
    pub devices: u64,
}

/// A model's memory and the speed that bandwidth allows. `Display` prints it as a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub model_type: String,
    pub n_layers: usize,
    pub parameters: Parameters,
    pub kv_widths: KvWidths,
    /// Of the cache, a token and layer.
    pub kv_row_bytes: u64,
    pub assumptions: Assumptions,
    /// `(n_experts, top_k, parameters of one expert in all layers)`; zeros without experts.
    experts: (u64, u64, u64),
}

impl Plan {
    pub fn new(spec: &ModelSpec, assumptions: Assumptions) -> Self {
        let parameters = Parameters::of(spec);
        let experts = spec.moe().map_or((0, 0, 0), |moe| {
            let n = moe.rule.n_experts as u64;
            (n, moe.rule.top_k as u64, parameters.routed_experts / n)
        });
        Self {
            model_type: spec.model_type.clone(),
            n_layers: spec.n_layers(),
            parameters,
            kv_widths: KvWidths::of(spec),
            kv_row_bytes: assumptions.cache.0.row_bytes(assumptions.cache.1, &spec.mla) as u64,
            assumptions,
            experts,
        }
    }

    pub fn weight_bytes(&self) -> u64 {
        self.bytes_of(self.parameters.total())
    }

    /// Weights on one of the devices; of the experts, the largest share.
    pub fn weight_bytes_per_device(&self) -> u64 {
        let (n, _, expert) = self.experts;
        let elsewhere = (n - n.div_ceil(self.assumptions.devices.max(1))) * expert;
        self.bytes_of(self.parameters.total() - elsewhere)
    }

    fn bytes_of(&self, parameters: u64) -> u64 {
        (parameters as f64 * self.assumptions.weight_bytes) as u64
    }

    /// Bytes that the cache takes a token, over all layers.
    pub fn kv_bytes_per_token(&self) -> u64 {
        self.kv_bytes_of(self.kv_widths.mla)
    }

    /// The same of rows `width` wide.
    fn kv_bytes_of(&self, width: u64) -> u64 {
        if self.assumptions.cache.0 == CacheFormat::Fp8 && width != self.kv_widths.mla {
            return self.n_layers as u64 * (width + 4 * width.div_ceil(128)); // no rotary part aside
        }
        (self.n_layers as u64 * width * self.kv_row_bytes).div_ceil(self.kv_widths.mla)
    }

    /// Parameters that take part in computing one token.
    pub fn active_parameters(&self) -> u64 {
        let (_, top_k, expert) = self.experts;
        self.parameters.always_read() + top_k * expert
    }

    /// Tokens whose cache fits beside the weights, on one of the devices; `None` if the memory is not given.
    pub fn tokens_that_fit(&self) -> Option<u64> {
        let memory = self.assumptions.memory_bytes?;
        Some(memory.saturating_sub(self.weight_bytes_per_device()) / self.kv_bytes_per_token().max(1))
    }

    /// Sequences of `len` tokens that fit.
    pub fn sessions_that_fit(&self, len: usize) -> Option<u64> {
        Some(self.tokens_that_fit()? / len.max(1) as u64)
    }

    /// Bytes that a decode step of `batch` sequences of `depth` tokens on each device must read there. Experts are read
    /// once a step; how many differ is what evenly spread routing expects.
    pub fn step_bytes(&self, batch: u64, depth: u64) -> f64 {
        let (n, top_k, expert) = self.experts;
        let devices = self.assumptions.devices.max(1);
        let missed = (1.0 - top_k as f64 / n.max(1) as f64).powf((batch * devices) as f64);
        let experts = n as f64 / devices as f64 * (1.0 - missed) * expert as f64;
        let weights = (self.parameters.always_read() as f64 + experts) * self.assumptions.weight_bytes;
        weights + batch as f64 * depth as f64 * self.kv_bytes_per_token() as f64
    }

    /// Tokens a second that one device's bandwidth allows it; `None` if it is not given.
    pub fn decode_tokens_per_second(&self, batch: u64, depth: u64) -> Option<f64> {
        Some(batch as f64 * self.assumptions.bandwidth_bytes? / self.step_bytes(batch, depth))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let a = &self.assumptions;
        let total = self.parameters.total();
        writeln!(
            f,
            "{}: {} layers, {} parameters, {} active a token",
            self.model_type,
            self.n_layers,
            count(total),
            count(self.active_parameters())
        )?;
        writeln!(f, "\nWeights at {} bytes a number", a.weight_bytes)?;
        for (part, n) in self.parameters.parts().into_iter().filter(|(_, n)| *n > 0) {
            writeln!(f, "  {part:<16}{:>12}{:>14}", count(n), bytes(self.bytes_of(n)))?;
        }
        writeln!(f, "  {:<16}{:>12}{:>14}", "all", count(total), bytes(self.weight_bytes()))?;
        self.write_cache(f)?;
        self.write_fit(f)?;
        self.write_speed(f)
    }
}

impl Plan {
    fn write_cache(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = &self.kv_widths;
        let (cache, precision) = self.assumptions.cache;
        writeln!(f, "\nCache in {}", cache.name(precision))?;
        writeln!(f, "  {:<16}{:>12}{:>14}{:>10}", "attention", "a layer", "a token", "of MHA")?;
        for (name, width) in [
            ("MHA", widths.mha),
            ("GQA, 8 groups", widths.gqa8),
            ("MQA", widths.mqa),
            ("MLA (stored)", widths.mla),
        ] {
            let share = 100.0 * width as f64 / widths.mha as f64;
            writeln!(f, "  {name:<16}{width:>12}{:>14}{share:>9.1}%", bytes(self.kv_bytes_of(width)))?;
        }
        Ok(())
    }

    fn write_fit(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(memory), Some(tokens)) = (self.assumptions.memory_bytes, self.tokens_that_fit()) else {
            return Ok(());
        };
        let weights = self.weight_bytes_per_device();
        match self.assumptions.devices {
            0 | 1 => writeln!(f, "\nIn {} beside the weights", bytes(memory))?,
            n => writeln!(
                f,
                "\nOn each of {n} devices of {}, {} of weights (experts divided, the rest on each)",
                bytes(memory),
                bytes(weights)
            )?,
        }
        if weights > memory {
            return writeln!(f, "  the weights do not fit: {} more are needed", bytes(weights - memory));
        }
        writeln!(f, "  {:<16}{tokens:>12}", "tokens")?;
        let context_len = self.assumptions.context_len;
        for len in BTreeSet::from([context_len.min(4096), context_len]) {
            let label = format!("sessions of {len}");
            writeln!(f, "  {label:<20}{:>8}", tokens / len.max(1) as u64)?;
        }
        Ok(())
    }

    fn write_speed(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(bandwidth) = self.assumptions.bandwidth_bytes else { return Ok(()) };
        let each = if self.assumptions.devices > 1 { " on each device" } else { "" };
        writeln!(f, "\nDecoding at {:.1} GB/s, tokens a second at most{each}", bandwidth / 1e9)?;
        writeln!(f, "  {:<16}{:>12}{:>14}", "depth", "batch 1", "batch 16")?;
        for depth in [0, 2048, 8192] {
            let [one, many] = [1, 16].map(|b| self.decode_tokens_per_second(b, depth).unwrap_or_default());
            writeln!(f, "  {depth:<16}{one:>12.1}{many:>14.1}")?;
        }
        Ok(())
    }
}

/// `671.0 B`
fn count(n: u64) -> String {
    scaled(n, 1000.0, ["", " K", " M", " B", " T"])
}

/// `68.6 KiB`
fn bytes(n: u64) -> String {
    scaled(n, 1024.0, [" B", " KiB", " MiB", " GiB", " TiB"])
}

fn scaled(n: u64, step: f64, units: [&str; 5]) -> String {
    let (mut x, mut unit) = (n as f64, 0);
    while x >= step && unit + 1 < units.len() {
        x /= step;
        unit += 1;
    }
    if unit == 0 { format!("{n}{}", units[0]) } else { format!("{x:.1}{}", units[unit]) }
}
