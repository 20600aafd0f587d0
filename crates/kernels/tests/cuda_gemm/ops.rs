//! Each op on either backend, on made-up weights and activations.

#[path = "../noise/mod.rs"]
mod noise;

use kernels::cuda::CudaBackend;
use kernels::cuda::sim::Emulator;
use kernels::*;
pub(crate) use noise::noise;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    F32,
    Bf16,
    /// e4m3 with scales of 128 x 128, as DeepSeek-V3 has it.
    Fp8,
}

impl Format {
    pub(crate) fn precision(self) -> Precision {
        if self == Self::F32 { Precision::F32 } else { Precision::Bf16 }
    }
}

/// A stored matrix of random numbers.
pub(crate) struct Stored {
    format: Format,
    shape: [usize; 2],
    bytes: Vec<u8>,
    scales: Vec<u8>,
}

impl Stored {
    pub(crate) fn new(format: Format, shape: [usize; 2], seed: u64) -> Self {
        let [rows, cols] = shape;
        let values = noise(rows * cols, seed);
        let (bytes, scales) = match format {
            Format::Fp8 => {
                // All values but NaN: 0x7f and 0xff.
                let byte = |v: &f32| (v.to_bits() >> 7) as u8;
                let bytes = values.iter().map(byte).map(|b| if b & 0x7f == 0x7f { b - 0x40 } else { b });
                let scales = noise(rows.div_ceil(128) * cols.div_ceil(128), seed + 1);
                (bytes.collect(), scales.iter().flat_map(|s| (s / 256.0).to_le_bytes()).collect())
            }
            _ => (values.iter().flat_map(|v| v.to_le_bytes()).collect(), vec![]),
        };
        Self { format, shape, bytes, scales }
    }

    pub(crate) fn matrix(&self) -> Matrix<'_> {
        let (dtype, scales) = match self.format {
            Format::Fp8 => {
                let scales = BlockScales { bytes: &self.scales, block_rows: 128, block_cols: 128 };
                (DType::F8E4M3, Some(scales))
            }
            _ => (DType::F32, None),
        };
        Matrix::new(dtype, &self.bytes, self.shape, scales).unwrap()
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) hidden: usize,
    /// Of the plain product.
    pub(crate) rows: usize,
    pub(crate) intermediate: usize,
    pub(crate) n_experts: usize,
    pub(crate) top_k: usize,
    pub(crate) heads: usize,
    pub(crate) rank: usize,
    pub(crate) nope: usize,
    pub(crate) v: usize,
    pub(crate) vocab: usize,
}

pub(crate) const ROPE: usize = 6;

impl Sizes {
    pub(crate) fn mla(&self) -> MlaDims {
        MlaDims {
            n_heads: self.heads,
            kv_lora_rank: self.rank,
            qk_nope_head_dim: self.nope,
            qk_rope_head_dim: ROPE,
            v_head_dim: self.v,
            softmax_scale: 1.0,
        }
    }
}

/// Nothing here is a multiple of anything.
pub(crate) const ODD: Sizes = Sizes {
    hidden: 43,
    rows: 37,
    intermediate: 27,
    n_experts: 7,
    top_k: 3,
    heads: 3,
    rank: 22,
    nope: 10,
    v: 18,
    vocab: 50,
};
/// Rows that lie on 16 bytes, of more units than a ring has stages; the last one is not full.
pub(crate) const EVEN: Sizes = Sizes {
    hidden: 652,
    rows: 72,
    intermediate: 48,
    n_experts: 5,
    top_k: 2,
    heads: 2,
    rank: 64,
    nope: 128,
    v: 32,
    vocab: 80,
};
/// A slice of a real layer: all columns, few rows.
pub(crate) const LONG: Sizes = Sizes {
    hidden: 2048,
    rows: 24,
    intermediate: 1408,
    n_experts: 3,
    top_k: 2,
    heads: 2,
    rank: 512,
    nope: 128,
    v: 16,
    vocab: 20,
};

/// Different experts of token `t`: the first is everybody's, the others come in an order that is not theirs.
pub(crate) fn chosen(t: usize, n_experts: usize, top_k: usize) -> Vec<u32> {
    (0..top_k)
        .map(|j| if j == 0 { 1 } else { (2 + (t * 3 + j * (n_experts - 2)) % (n_experts - 1)) % n_experts })
        .map(|e| e as u32)
        .collect()
}

/// A backend that a test can hand expert ids to.
pub(crate) trait Ids: Backend {
    fn ids(&mut self, ids: &[u32]) -> Self::Indices;
}

impl Ids for Reference {
    fn ids(&mut self, ids: &[u32]) -> Vec<u32> {
        ids.to_vec()
    }
}

impl Ids for CudaBackend<Emulator> {
    fn ids(&mut self, ids: &[u32]) -> Self::Indices {
        self.upload(&ids.iter().map(|&id| f32::from_bits(id)).collect::<Vec<_>>()).unwrap()
    }
}

/// Enough rows for four panels a warp once x is rounded, but for its own rows.
pub(crate) const TALL: Sizes = Sizes { hidden: 1036, rows: 4200, intermediate: 2052, ..ODD };
/// Enough for that in any case.
pub(crate) const TALLER: Sizes = Sizes { rows: 16_900, ..TALL };

/// The ops under test.
pub(crate) const OPS: [&str; 7] =
    ["linear", "linear added", "absorb_query", "absorb_output", "gated_mlp", "experts", "lm_head"];

/// What `op` makes of the tokens `which`; every third token's row takes attend_expanded. Token t's inputs depend on t
/// alone.
pub(crate) fn run<B: Ids>(b: &mut B, op: &str, s: Sizes, format: Format, which: &[usize]) -> Vec<f32> {
    let n = which.len();
    let d = s.mla();
    let limits = StepLimits {
        tokens: n,
        rows: n,
        outputs: n,
        vocab_size: s.vocab,
        context_len: 1,
        block_len: 1,
        n_blocks: n + 1,
    };
    let widest = [s.hidden, s.intermediate, s.heads * (s.nope + ROPE), s.heads * s.rank, s.heads * s.v];
    b.reserve(Workspace {
        limits,
        mla: d,
        rope: Rope { inv_freq: vec![1.0; ROPE / 2], scale: 1.0 },
        hidden: s.hidden,
        widest: widest.into_iter().max().unwrap(),
        widest_mlp: s.top_k * s.intermediate.next_multiple_of(16),
        n_experts: s.n_experts,
        top_k: s.top_k,
    })
    .unwrap();
    let count = |from: u32| (from..from + n as u32).collect::<Vec<u32>>();
    // Of the outputs, all tokens but the second.
    let outputs: Vec<u32> = count(0).into_iter().filter(|&t| t != 1).collect();
    let step = Step {
        copies: &[],
        tokens: &vec![0; n],
        positions: &vec![0; n],
        slots: &count(1),
        row_start: &[count(0), vec![n as u32]].concat(),
        kv_len: &vec![1; n],
        expanded: &which.iter().map(|t| t % 3 == 2).collect::<Vec<_>>(),
        tables: &count(1),
        outputs: &outputs,
    };
    b.begin_step(&step).unwrap();
    let input = |b: &mut B, width: usize, seed: u64| {
        let rows = which.iter().flat_map(|&t| noise(width, seed + 1000 * t as u64));
        b.upload(&rows.collect::<Vec<_>>()).unwrap()
    };
    let weight = |b: &mut B, stack: usize, rows: usize, cols: usize, seed: u64| {
        let stored: Vec<Stored> =
            (0..stack).map(|i| Stored::new(format, [rows, cols], seed + 100 * i as u64)).collect();
        let parts: Vec<Parts<'_>> = stored.iter().map(|m| m.matrix().into()).collect();
        b.pack(&parts, format.precision()).unwrap()
    };
    let gate_up = |b: &mut B, stack: usize, seed: u64| {
        let shape = [s.intermediate, s.hidden];
        let stored: Vec<Stored> =
            (0..2 * stack).map(|i| Stored::new(format, shape, seed + 100 * i as u64)).collect();
        let pairs = stored.as_chunks::<2>().0;
        let parts: Vec<Parts<'_>> =
            pairs.iter().map(|[g, u]| Parts::GateUp { gate: g.matrix(), up: u.matrix() }).collect();
        b.pack(&parts, format.precision()).unwrap()
    };
    match op {
        "linear" => {
            // Columns of wider rows; the odd shape begins where 16 bytes do not.
            let w = weight(b, 1, s.rows, s.hidden, 1);
            let (offset, stride) = (if s.hidden.is_multiple_of(4) { 8 } else { 11 }, s.hidden + 16);
            let x = input(b, stride, 2);
            let mut y = b.buffer(n * s.rows).unwrap();
            let x = View::columns(&x, offset, stride);
            b.linear(Linear { weight: &w, x, out: &mut y, accumulate: false }).unwrap();
            b.read(&y, n * s.rows)
        }
        "linear added" => {
            // Two parts, one below the other.
            let parts = [9, s.rows - 9].map(|rows| Stored::new(format, [rows, s.hidden], rows as u64));
            let w = [Parts::Rows(parts.iter().map(Stored::matrix).collect())];
            let w = b.pack(&w, format.precision()).unwrap();
            let (x, mut y) = (input(b, s.hidden, 2), input(b, s.rows, 3));
            let x = View::dense(&x, s.hidden);
            b.linear(Linear { weight: &w, x, out: &mut y, accumulate: true }).unwrap();
            b.read(&y, n * s.rows)
        }
        "absorb_query" => {
            let stored = [0, 1, 2].map(|h| Stored::new(format, [s.nope, s.rank], 4 + h));
            let parts: Vec<Parts<'_>> =
                stored[..s.heads].iter().map(|m| m.matrix().transposed().into()).collect();
            let w = b.pack(&parts, format.precision()).unwrap();
            let width = s.heads * d.qk_head_dim();
            let q = input(b, width + 8, 5);
            let out_width = s.heads * d.latent_width();
            let mut y = input(b, out_width, 6);
            let q = View::columns(&q, 4, width + 8);
            b.absorb_query(AbsorbQuery { q, w_uk: &w, out: &mut y, dims: d }).unwrap();
            // The rotated rest of a head is another kernel's.
            let y = b.read(&y, n * out_width);
            y.chunks(d.latent_width()).flat_map(|row| row[..s.rank].to_vec()).collect()
        }
        "absorb_output" => {
            let w = weight(b, s.heads, s.v, s.rank, 7);
            let latent = input(b, s.heads * s.rank, 8);
            let mut y = input(b, s.heads * s.v, 9);
            b.absorb_output(AbsorbOutput { latent: &latent, w_uv: &w, out: &mut y, dims: d }).unwrap();
            b.read(&y, n * s.heads * s.v)
        }
        "gated_mlp" => {
            let (gate_up, down) = (gate_up(b, 1, 10), weight(b, 1, s.hidden, s.intermediate, 11));
            let (x, mut y) = (input(b, s.hidden, 12), input(b, s.hidden, 13));
            let x = View::dense(&x, s.hidden);
            b.gated_mlp(GatedMlp { gate_up: &gate_up, down: &down, x, out: &mut y }).unwrap();
            b.read(&y, n * s.hidden)
        }
        "experts" => {
            let stack = s.n_experts;
            let (gate_up, down) = (gate_up(b, stack, 14), weight(b, stack, s.hidden, s.intermediate, 15));
            let (x, mut y) = (input(b, s.hidden, 16), input(b, s.hidden, 17));
            let ids: Vec<u32> = which.iter().flat_map(|&t| chosen(t, stack, s.top_k)).collect();
            let (ids, weights) = (b.ids(&ids), input(b, s.top_k, 18));
            let x = View::dense(&x, s.hidden);
            let (ids, weights, top_k) = (&ids, &weights, s.top_k);
            b.experts(Experts { gate_up: &gate_up, down: &down, x, ids, weights, top_k, out: &mut y })
                .unwrap();
            b.read(&y, n * s.hidden)
        }
        "lm_head" => {
            let w = weight(b, 1, s.vocab, s.hidden, 19);
            let (x, norm) = (input(b, s.hidden, 20), b.upload(&noise(s.hidden, 21)).unwrap());
            let mut logits = Vec::new();
            b.lm_head(LmHead { x: &x, norm: &norm, eps: 1e-6, weight: &w }).unwrap();
            b.read_logits(&Vec::from_iter(0..outputs.len() as u32), &mut logits).unwrap();
            logits
        }
        _ => panic!("{op}"),
    }
}
