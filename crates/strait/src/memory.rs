//! Policy about memory: how many KV blocks, and how long a context. All of it is decided here,
//! before a weight is packed, and printed with its arithmetic.

use std::fmt;

use anyhow::{Context as _, ensure};
use kernels::{Backend, CacheFormat, Precision, StepLimits};
use model::forward;
use model::plan::Parameters;
use model::spec::{Mlp, ModelSpec};

use crate::size::show;

/// Bytes of logits that one step may return: rows enough for every sequence, and for scoring
/// prompts at a decent pace without a gigabyte for large vocabularies.
const LOGITS_BYTES: usize = 64 << 20;
/// Slots are numbered in 32 bits.
const SLOTS_MAX: u64 = u32::MAX as u64;
/// Assumed where the system does not tell what is free.
const UNKNOWN_MEMORY: u64 = 4 << 30;

/// What the owner wants.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MemoryPolicy {
    /// `None`: what `sequences` full contexts need, within `share`. With less, sequences give way to each
    /// other; more would only keep more prompts.
    pub kv_bytes: Option<u64>,
    /// Of the available memory, for weights, buffers and KV pool together. `None`: the device's.
    pub share: Option<f64>,
    /// `None`: the checkpoint's.
    pub context_len: Option<usize>,
    /// A context that must shrink is an error.
    pub strict_context: bool,
    /// Computed together.
    pub sequences: usize,
    /// `None`: the device's.
    pub step_tokens: Option<usize>,
    pub block_len: usize,
}

/// What a device has where the owner says nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Defaults {
    pub share: f64,
    pub step_tokens: usize,
}

/// What is taken of it. `Display` is the table of `--dry-run`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MemoryPlan {
    pub limits: StepLimits,
    /// As packed; an estimate until the weights are loaded.
    pub weight_bytes: u64,
    pub kv_bytes: u64,
    pub kv_bytes_per_token: u64,
    /// Activations, scratch and logits of the largest step.
    pub buffer_bytes: u64,
    /// `None`: the system does not tell.
    pub available_bytes: Option<u64>,
    pub precision: Precision,
    pub cache: CacheFormat,
    /// What the owner should know, with the arithmetic.
    pub notes: Vec<String>,
}

impl MemoryPolicy {
    /// With `defaults` where the owner says nothing.
    pub(crate) fn or(&self, defaults: Defaults) -> Self {
        let share = Some(self.share.unwrap_or(defaults.share));
        Self { share, step_tokens: Some(self.step_tokens.unwrap_or(defaults.step_tokens)), ..self.clone() }
    }

    fn share(&self) -> f64 {
        self.share.unwrap_or(1.0)
    }

    /// `backend` reserves the scratch of the largest step, whose size nobody else knows; `available_bytes` were free
    /// before. Weights and cache are held in `precision`.
    pub(crate) fn plan<B: Backend>(
        &self,
        spec: &ModelSpec,
        backend: &mut B,
        (precision, cache): (Precision, CacheFormat),
        available_bytes: Option<u64>,
    ) -> anyhow::Result<MemoryPlan> {
        let wanted = self.context_len.unwrap_or(spec.context_len);
        ensure!(
            wanted <= spec.context_len,
            "max-model-len: {wanted} is more than the {} positions that this checkpoint was made for; give at most \
             that",
            spec.context_len
        );
        let limits = self.limits(spec, wanted);
        backend.reserve(forward::workspace(spec, &limits)).context("the buffers of a step")?;
        let buffer_bytes = (forward::activation_bytes(spec, limits.tokens) + backend.scratch_bytes()) as u64;
        let weight_bytes = packed_weight_bytes(spec, precision, B::KEEPS_FP8);
        let kv_bytes_per_token = spec.kv_bytes_per_token(cache, precision) as u64;
        let pool = match self.kv_bytes {
            Some(bytes) => Pool { bytes, of: "--kv-cache-memory".into() },
            None => self.pool_within(available_bytes, weight_bytes, buffer_bytes)?,
        };
        let mut plan = MemoryPlan {
            limits,
            weight_bytes,
            kv_bytes: 0,
            kv_bytes_per_token,
            buffer_bytes,
            available_bytes,
            precision,
            cache,
            notes: Vec::new(),
        };
        self.fit(&mut plan, &pool)?;
        Ok(plan.with_warnings())
    }

    /// Once the weights are there: the pool must fit into what is left of the share. `free_bytes` are, with the scratch
    /// of a step reserved and its `activation_bytes` not yet.
    pub(crate) fn fit_into(
        &self,
        plan: &mut MemoryPlan,
        free_bytes: u64,
        activation_bytes: u64,
    ) -> anyhow::Result<()> {
        let (Some(before), None) = (plan.available_bytes, self.kv_bytes) else { return Ok(()) };
        let kept = before - (before as f64 * self.share()) as u64;
        let bytes = free_bytes.saturating_sub(kept + activation_bytes);
        if bytes >= plan.kv_bytes {
            return Ok(());
        }
        let of = format!(
            "{} free beside the weights - {} of activations - {} that --memory-utilization {} leaves free",
            show(free_bytes),
            show(activation_bytes),
            show(kept),
            self.share()
        );
        self.fit(plan, &Pool { bytes, of })
    }

    /// As many blocks as are needed and fit into `pool`; the context shrinks with them.
    fn fit(&self, plan: &mut MemoryPlan, pool: &Pool) -> anyhow::Result<()> {
        let MemoryPlan { limits, kv_bytes_per_token, .. } = plan;
        let wanted = limits.context_len;
        let block_bytes = *kv_bytes_per_token * limits.block_len as u64;
        // Of block 0 nothing is lent: padding points to it.
        let lendable = (pool.bytes / block_bytes).min(SLOTS_MAX / limits.block_len as u64).saturating_sub(1);
        ensure!(
            lendable > 0,
            "{} ({}) holds no two KV blocks of {} ({} tokens of {kv_bytes_per_token} B); give more, or a smaller \
             --block-size",
            show(pool.bytes),
            pool.of,
            show(block_bytes),
            limits.block_len
        );
        let enough = (self.sequences * limits.table_width()) as u64;
        limits.n_blocks = 1 + if self.kv_bytes.is_some() { lendable } else { lendable.min(enough) } as usize;
        let room = (limits.n_blocks - 1) * limits.block_len;
        if room < wanted {
            let arithmetic = format!(
                "{} ({}) / ({} tokens of {kv_bytes_per_token} B a block) = {} blocks, less one of padding, hold \
                 {room} tokens; the context asked for is {wanted}",
                show(pool.bytes),
                pool.of,
                limits.block_len,
                limits.n_blocks,
            );
            ensure!(
                !self.strict_context,
                "{arithmetic}; give more --kv-cache-memory, a --max-model-len of at most {room}, or leave out \
                 --strict-context"
            );
            limits.context_len = room;
            plan.notes.push(format!("the context shrinks to {room} tokens: {arithmetic}"));
        }
        plan.kv_bytes = limits.n_blocks as u64 * block_bytes;
        Ok(())
    }

    /// All but the number of blocks.
    fn limits(&self, spec: &ModelSpec, context_len: usize) -> StepLimits {
        let outputs = LOGITS_BYTES / (4 * spec.vocab_size);
        let tokens = self.step_tokens.unwrap_or(1);
        let limits = StepLimits {
            tokens,
            rows: self.sequences,
            outputs: outputs.max(self.sequences).min(tokens),
            vocab_size: spec.vocab_size,
            context_len,
            block_len: self.block_len,
            n_blocks: 2,
        };
        // A prompt that is scored asks for the logits of whole units.
        let unit = forward::prefill_unit(spec, &limits);
        let outputs = unit.saturating_add(self.sequences).min(tokens).max(limits.outputs);
        StepLimits { outputs, ..limits }
    }

    fn pool_within(&self, available: Option<u64>, weights: u64, buffers: u64) -> anyhow::Result<Pool> {
        let memory = available.unwrap_or(UNKNOWN_MEMORY);
        let ours = (memory as f64 * self.share()) as u64;
        let bytes = ours.saturating_sub(weights + buffers);
        let of = format!(
            "{} available x {} - {} of weights - {} of buffers",
            show(memory),
            self.share(),
            show(weights),
            show(buffers)
        );
        ensure!(
            bytes > 0,
            "no memory is left for the KV pool: {of}; give more --memory-utilization, or a smaller model"
        );
        Ok(Pool { bytes, of })
    }
}

struct Pool {
    bytes: u64,
    /// How the number came about.
    of: String,
}

impl MemoryPlan {
    /// What the KV pool is held in.
    pub(crate) fn kv_dtype(&self) -> &'static str {
        self.cache.name(self.precision)
    }

    pub(crate) fn pool_tokens(&self) -> usize {
        (self.limits.n_blocks - 1) * self.limits.block_len
    }

    /// Sequences of a full context that fit: `4 sessions of 2048 tokens`.
    pub(crate) fn sessions(&self) -> String {
        let fit = (self.limits.n_blocks - 1) / self.limits.table_width();
        format!("{} of {}", count(fit, "session"), count(self.limits.context_len, "token"))
    }

    /// Where the system gives less than was planned.
    pub(crate) fn remedy(&self) -> String {
        format!(
            "weights need {}, the KV pool {} and buffers {}; give less --kv-cache-memory, or fewer --max-num-seqs or \
             a shorter --max-model-len",
            show(self.weight_bytes),
            show(self.kv_bytes),
            show(self.buffer_bytes)
        )
    }

    fn total_bytes(&self) -> u64 {
        self.weight_bytes + self.kv_bytes + self.buffer_bytes
    }

    fn with_warnings(mut self) -> Self {
        if let Some(available) = self.available_bytes.filter(|available| self.total_bytes() > *available) {
            let total = show(self.total_bytes());
            self.notes.push(format!(
                "weights, KV pool and buffers need {total}, but only {} are available now: the system may run out",
                show(available)
            ));
        }
        self
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let l = &self.limits;
        let mut row =
            |what: &str, bytes: u64, note: String| writeln!(f, "  {what:<10}{:>12}   {note}", show(bytes));
        row("weights", self.weight_bytes, format!("in {}", self.precision.name()))?;
        let pool = format!(
            "{} in {} of {}: {}, {} B a token in {}",
            count(self.pool_tokens(), "token"),
            count(l.n_blocks - 1, "block"),
            l.block_len,
            self.sessions(),
            self.kv_bytes_per_token,
            self.kv_dtype()
        );
        row("KV pool", self.kv_bytes, pool)?;
        let step = format!("for steps of {} in {}", count(l.tokens, "token"), count(l.rows, "sequence"));
        row("buffers", self.buffer_bytes, step)?;
        let of = self.available_bytes.map_or("what is available is not known".into(), |available| {
            format!("of {} available", show(available))
        });
        row("together", self.total_bytes(), of)?;
        self.notes.iter().try_for_each(|note| writeln!(f, "  {note}"))
    }
}

/// `1 block`, `2 blocks`
fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// Weights as backends pack them, less the padding of panels: the keys' half of `kv_b_proj` is there twice, for
/// absorbing (transposed) and for expanding, and routers stay in f32. `keeps_fp8`: see [`Backend::KEEPS_FP8`].
fn packed_weight_bytes(spec: &ModelSpec, precision: Precision, keeps_fp8: bool) -> u64 {
    let parameters = Parameters::of(spec);
    let d = &spec.mla;
    let keys_again = (spec.n_layers() * d.n_heads * d.qk_nope_head_dim * d.kv_lora_rank) as u64;
    let routers: usize = spec
        .layers
        .iter()
        .map(|layer| match layer {
            Mlp::Dense { .. } => 0,
            Mlp::Moe(moe) => moe.rule.n_experts * spec.hidden_size,
        })
        .sum();
    let element = precision.size() as u64;
    let all = (parameters.total() + keys_again) * element + routers as u64 * (4 - element);
    if !(keeps_fp8 && spec.fp8_block.is_some() && precision == Precision::Bf16) {
        return all;
    }
    // One byte instead of two, and 4 for each 8 x 128.
    let p = &parameters;
    let fp8 = p.attention + p.dense_mlp + p.routed_experts + p.shared_experts;
    all - fp8 + fp8 / 256
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::Cpu;

    /// 3 layers of a latent of 48 numbers: 576 B a token in f32, context 2048.
    const CONFIG: &[u8] = include_bytes!("../../../tests/goldens/v3-tied-f32/config.json");

    fn policy() -> MemoryPolicy {
        MemoryPolicy {
            kv_bytes: None,
            share: Some(0.5),
            context_len: None,
            strict_context: false,
            sequences: 4,
            step_tokens: Some(32),
            block_len: 64,
        }
    }

    fn plan(policy: &MemoryPolicy, available: u64) -> anyhow::Result<MemoryPlan> {
        let spec = ModelSpec::parse(CONFIG).unwrap();
        policy.plan(
            &spec,
            &mut Cpu::new(1, Precision::F32),
            (Precision::F32, CacheFormat::Plain),
            Some(available),
        )
    }

    #[test]
    fn with_plenty_the_pool_is_what_the_sequences_need() {
        let plan = plan(&policy(), 8 << 30).unwrap();
        assert_eq!((plan.limits.context_len, plan.limits.n_blocks), (2048, 4 * 32 + 1));
        assert_eq!(plan.kv_bytes, 129 * 64 * 576);
        assert!(plan.notes.is_empty(), "{:?}", plan.notes);
        assert!(
            plan.to_string().contains("8192 tokens in 128 blocks of 64: 4 sessions of 2048 tokens"),
            "{plan}"
        );
    }

    #[test]
    fn one_is_said_of_one() {
        let single = MemoryPolicy { sequences: 1, context_len: Some(64), ..policy() };
        let plan = plan(&single, 8 << 30).unwrap().to_string();
        for expected in ["64 tokens in 1 block of 64: 1 session of 64 tokens", "32 tokens in 1 sequence\n"] {
            assert!(plan.contains(expected), "{plan}");
        }
    }

    #[test]
    fn a_context_beyond_the_pool_shrinks_with_its_arithmetic() {
        let small = MemoryPolicy { kv_bytes: Some(10 * 64 * 576), ..policy() };
        let shrunk = plan(&small, 8 << 30).unwrap();
        assert_eq!((shrunk.limits.context_len, shrunk.limits.n_blocks), (9 * 64, 10));
        assert!(
            shrunk.notes[0].contains("= 10 blocks, less one of padding, hold 576 tokens"),
            "{:?}",
            shrunk.notes
        );
        let strict = MemoryPolicy { strict_context: true, ..small };
        let error = plan(&strict, 8 << 30).unwrap_err().to_string();
        assert!(error.contains("at most 576"), "{error}");
    }

    #[test]
    fn a_pool_that_does_not_fit_beside_the_weights_shrinks() {
        let available = 8 << 20;
        let mut plan = plan(&policy(), available).unwrap();
        let (whole, half_kept) = (plan.kv_bytes, available / 2);
        policy().fit_into(&mut plan, half_kept + 4096 + whole, 4096).unwrap();
        assert_eq!(plan.kv_bytes, whole);
        policy().fit_into(&mut plan, half_kept + 4096 + 10 * 64 * 576, 4096).unwrap();
        assert_eq!((plan.limits.n_blocks, plan.limits.context_len), (10, 9 * 64));
        assert!(plan.notes[0].contains("--memory-utilization 0.5 leaves free"), "{:?}", plan.notes);
        let error = policy().fit_into(&mut plan, half_kept, 4096).unwrap_err().to_string();
        assert!(error.contains("holds no two KV blocks"), "{error}");
        // Who said how much the pool shall have is not asked again.
        let given = MemoryPolicy { kv_bytes: Some(1), ..policy() };
        given.fit_into(&mut plan, 0, 0).unwrap();
    }

    /// DeepSeek-V3 as it is stored: 671 B parameters of nearly a byte each where they stay so.
    #[test]
    fn weights_that_stay_8_bits_are_planned_so() {
        let config = include_bytes!("../../model/tests/configs/deepseek-v3.json");
        let spec = ModelSpec::parse(config).unwrap();
        assert!(spec.fp8_block.is_some());
        let gigabytes = |precision, keeps| packed_weight_bytes(&spec, precision, keeps) >> 30;
        assert_eq!([gigabytes(Precision::Bf16, false), gigabytes(Precision::Bf16, true)], [1251, 630]);
        assert_eq!(gigabytes(Precision::F32, false), gigabytes(Precision::F32, true));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (policy, available, expected) in [
            (MemoryPolicy { kv_bytes: Some(64 * 576), ..policy() }, 8 << 30, "holds no two KV blocks"),
            (policy(), 1 << 20, "no memory is left for the KV pool"),
            (MemoryPolicy { context_len: Some(4096), ..policy() }, 8 << 30, "the 2048 positions"),
        ] {
            let error = plan(&policy, available).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn more_than_is_free_is_told() {
        let greedy = MemoryPolicy { kv_bytes: Some(1 << 30), ..policy() };
        let plan = plan(&greedy, 1 << 29).unwrap();
        assert!(plan.notes[0].contains("the system may run out"), "{:?}", plan.notes);
    }
}
