//! Sizes that are timed, and what an op must move and compute at them.

use kernels::{CacheFormat, MlaDims, Precision};

/// A layer with experts, and the ends.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) hidden: usize,
    pub(crate) vocab: usize,
    pub(crate) experts: usize,
    pub(crate) top_k: usize,
    /// Intermediate sizes: of an expert, and of the shared ones together.
    pub(crate) expert: usize,
    pub(crate) shared: usize,
    pub(crate) mla: MlaDims,
}

pub(crate) const V2_LITE: Sizes = Sizes {
    hidden: 2048,
    vocab: 102_400,
    experts: 64,
    top_k: 6,
    expert: 1408,
    shared: 2816,
    mla: MlaDims {
        n_heads: 16,
        kv_lora_rank: 512,
        qk_nope_head_dim: 128,
        qk_rope_head_dim: 64,
        v_head_dim: 128,
        softmax_scale: 0.1,
    },
};

/// For the emulator.
pub(crate) const TINY: Sizes = Sizes {
    hidden: 64,
    vocab: 128,
    experts: 8,
    top_k: 2,
    expert: 32,
    shared: 64,
    mla: MlaDims {
        n_heads: 2,
        kv_lora_rank: 64,
        qk_nope_head_dim: 16,
        qk_rope_head_dim: 16,
        v_head_dim: 16,
        softmax_scale: 0.1,
    },
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Embed,
    RmsNorm,
    QueryAndLatent,
    LatentWrite,
    AbsorbQuery,
    AbsorbOutput,
    Output,
    Route,
    Shared,
    Experts,
    LmHead,
    /// At a temperature, with top-p.
    Sample,
    /// Over so many keys.
    Attend(usize, CacheFormat),
}

impl Op {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::RmsNorm => "rms_norm",
            Self::QueryAndLatent => "linear (q, kv_a)",
            Self::LatentWrite => "latent_write",
            Self::AbsorbQuery => "absorb_query",
            Self::AbsorbOutput => "absorb_output",
            Self::Output => "linear (o)",
            Self::Route => "route",
            Self::Shared => "gated_mlp (shared)",
            Self::Experts => "experts",
            Self::LmHead => "lm_head",
            Self::Sample => "sample",
            Self::Attend(..) => "attend_latent",
        }
    }
}

/// What an op must do at least.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cost {
    /// Read and written.
    pub(crate) bytes: f64,
    pub(crate) flop: f64,
}

/// For `t` tokens: weights and latent rows in bf16, the router and activations in f32, each moved once; of the experts
/// those that evenly spread routing is expected to choose.
pub(crate) fn cost(s: &Sizes, op: Op, t: usize) -> Cost {
    let d = &s.mla;
    let (q, latent, heads) = (d.n_heads * d.qk_head_dim(), d.latent_width(), d.n_heads);
    // `weights` numbers of `each` bytes; `input` and `output` numbers a token.
    let product = |weights: usize, each: usize, input: usize, output: usize| Cost {
        bytes: (each * weights + 4 * t * (input + output)) as f64,
        flop: (2 * t * weights) as f64,
    };
    let moved = |each: usize| Cost { bytes: (t * each) as f64, flop: 0.0 };
    match op {
        Op::Embed => moved(6 * s.hidden),
        Op::RmsNorm => moved(8 * s.hidden),
        Op::LatentWrite => moved(6 * latent),
        Op::QueryAndLatent => product((q + latent) * s.hidden, 2, s.hidden, q + latent),
        Op::AbsorbQuery => product(heads * d.kv_lora_rank * d.qk_nope_head_dim, 2, q, heads * latent),
        Op::AbsorbOutput => {
            let width = heads * d.v_head_dim;
            product(width * d.kv_lora_rank, 2, heads * d.kv_lora_rank, width)
        }
        // Adds to its output.
        Op::Output => product(s.hidden * heads * d.v_head_dim, 2, heads * d.v_head_dim, 2 * s.hidden),
        Op::Route => product(s.experts * s.hidden, 4, s.hidden, 2 * s.top_k),
        Op::Shared => product(3 * s.hidden * s.shared, 2, s.hidden, 2 * s.hidden),
        Op::Experts => {
            let one = (3 * s.hidden * s.expert) as f64;
            let missed = (1.0 - s.top_k as f64 / s.experts as f64).powi(t as i32);
            Cost {
                bytes: 2.0 * one * s.experts as f64 * (1.0 - missed) + (12 * t * s.hidden) as f64,
                flop: 2.0 * one * (t * s.top_k) as f64,
            }
        }
        Op::LmHead => product(s.vocab * s.hidden, 2, s.hidden, s.vocab),
        Op::Sample => Cost { bytes: (4 * t * (s.vocab + 1)) as f64, flop: 0.0 },
        Op::Attend(depth, cache) => Cost {
            bytes: (t * (depth * cache.row_bytes(Precision::Bf16, d) + 4 * heads * (latent + d.kv_lora_rank)))
                as f64,
            flop: (2 * t * depth * heads * (latent + d.kv_lora_rank)) as f64,
        },
    }
}
