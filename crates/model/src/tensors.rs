//! Which tensors a model needs, and whether a checkpoint holds them.

use crate::checkpoint::{Checkpoint, Tensor};
use crate::problems::Problems;
use crate::spec::{Mlp, ModelSpec};
use kernels::{DType, Scoring};
use std::collections::HashSet;

/// The names that Hugging Face checkpoints use.
pub mod name {
    pub const EMBED: &str = "model.embed_tokens.weight";
    pub const FINAL_NORM: &str = "model.norm.weight";
    pub const LM_HEAD: &str = "lm_head.weight";

    // Parts of a layer, for `layer`.
    pub const ATTENTION_NORM: &str = "input_layernorm.weight";
    pub const MLP_NORM: &str = "post_attention_layernorm.weight";
    /// Instead of the three that follow, where `q_lora_rank` is null.
    pub const Q_PROJ: &str = "self_attn.q_proj.weight";
    pub const Q_A_PROJ: &str = "self_attn.q_a_proj.weight";
    pub const Q_A_NORM: &str = "self_attn.q_a_layernorm.weight";
    pub const Q_B_PROJ: &str = "self_attn.q_b_proj.weight";
    pub const KV_A_PROJ: &str = "self_attn.kv_a_proj_with_mqa.weight";
    pub const KV_A_NORM: &str = "self_attn.kv_a_layernorm.weight";
    /// Rows of a head: its `qk_nope_head_dim` of keys, then its `v_head_dim` of values.
    pub const KV_B_PROJ: &str = "self_attn.kv_b_proj.weight";
    pub const O_PROJ: &str = "self_attn.o_proj.weight";
    pub const ROUTER: &str = "mlp.gate.weight";
    pub const ROUTER_BIAS: &str = "mlp.gate.e_score_correction_bias";

    pub fn layer(layer: usize, part: &str) -> String {
        format!("model.layers.{layer}.{part}")
    }

    /// The three matrices of a gated MLP.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct GatedMlp {
        pub gate: String,
        pub up: String,
        pub down: String,
    }

    pub fn dense_mlp(layer: usize) -> GatedMlp {
        gated_mlp(layer, "mlp")
    }

    pub fn shared_experts(layer: usize) -> GatedMlp {
        gated_mlp(layer, "mlp.shared_experts")
    }

    pub fn expert(layer: usize, expert: usize) -> GatedMlp {
        gated_mlp(layer, &format!("mlp.experts.{expert}"))
    }

    fn gated_mlp(index: usize, part: &str) -> GatedMlp {
        let name = |proj: &str| layer(index, &format!("{part}.{proj}_proj.weight"));
        GatedMlp { gate: name("gate"), up: name("up"), down: name("down") }
    }

    /// The block scales beside an FP8 matrix.
    pub fn scales(matrix: &str) -> String {
        format!("{matrix}_scale_inv")
    }
}

/// A tensor that the model needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub name: String,
    pub shape: Vec<usize>,
    /// May be FP8 with block scales.
    pub quantizable: bool,
}

/// A tensor of a [`Checked`] checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'a> {
    pub dtype: DType,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
    /// FP8 only: f32, little-endian, one for each block of [`ModelSpec::fp8_block`].
    pub scales: Option<&'a [u8]>,
}

/// A checkpoint that holds every tensor of a model in the right shape and in a readable format.
#[derive(Debug)]
pub struct Checked<'a> {
    checkpoint: &'a Checkpoint,
    /// What its owner should know: tensors that are not used.
    pub notes: Vec<String>,
}

impl<'a> Checked<'a> {
    /// A tensor that [`expected`] lists.
    ///
    /// # Panics
    /// On a name that it does not list: our mistake.
    pub fn weight(&self, name: &str) -> Weight<'a> {
        let tensor = self.checkpoint.tensor(name).unwrap_or_else(|| panic!("{name} was not checked"));
        let dtype = tensor.dtype().unwrap_or_else(|| panic!("{name} was not checked"));
        let scales = match dtype {
            DType::F8E4M3 => self.checkpoint.tensor(&name::scales(name)).map(|s| s.bytes),
            DType::F32 | DType::F16 | DType::Bf16 => None,
        };
        Weight { dtype, shape: tensor.shape, bytes: tensor.bytes, scales }
    }
}

/// Compares names, shapes and formats, and says all that is wrong at once.
pub fn check<'a>(spec: &ModelSpec, checkpoint: &'a Checkpoint) -> Result<Checked<'a>, Problems> {
    let mut problems = Problems::of("weights");
    let mut used = HashSet::new();
    for expected in expected(spec) {
        match checkpoint.tensor(&expected.name) {
            None => problems.push(&expected.name, missing(spec, &expected.name)),
            Some(tensor) => {
                check_tensor(spec, checkpoint, &expected, &tensor, &mut problems);
                used.insert(tensor.name);
            }
        }
    }
    problems.none_or(Checked { checkpoint, notes: unused(spec, checkpoint, &used) })
}

/// Every tensor of the model, layer by layer.
pub fn expected(spec: &ModelSpec) -> impl Iterator<Item = Expected> + '_ {
    let hidden = spec.hidden_size;
    let ends = [
        plain(name::EMBED, &[spec.vocab_size, hidden]),
        plain(name::FINAL_NORM, &[hidden]),
        plain(name::LM_HEAD, &[spec.vocab_size, hidden]),
    ];
    let n_ends = if spec.tie_word_embeddings { 2 } else { 3 };
    let layers =
        spec.layers.iter().enumerate().flat_map(move |(i, mlp)| {
            attention_tensors(spec, i).into_iter().chain(mlp_tensors(hidden, i, *mlp))
        });
    ends.into_iter().take(n_ends).chain(layers)
}

fn attention_tensors(spec: &ModelSpec, i: usize) -> Vec<Expected> {
    let (hidden, mla) = (spec.hidden_size, &spec.mla);
    let q_width = mla.n_heads * mla.qk_head_dim();
    let part = |part: &str| name::layer(i, part);
    let mut tensors = vec![
        plain(part(name::ATTENTION_NORM), &[hidden]),
        plain(part(name::MLP_NORM), &[hidden]),
        matrix(part(name::KV_A_PROJ), mla.latent_width(), hidden),
        plain(part(name::KV_A_NORM), &[mla.kv_lora_rank]),
        matrix(
            part(name::KV_B_PROJ),
            mla.n_heads * (mla.qk_nope_head_dim + mla.v_head_dim),
            mla.kv_lora_rank,
        ),
        matrix(part(name::O_PROJ), hidden, mla.n_heads * mla.v_head_dim),
    ];
    match spec.q_lora_rank {
        None => tensors.push(matrix(part(name::Q_PROJ), q_width, hidden)),
        Some(rank) => tensors.extend([
            matrix(part(name::Q_A_PROJ), rank, hidden),
            plain(part(name::Q_A_NORM), &[rank]),
            matrix(part(name::Q_B_PROJ), q_width, rank),
        ]),
    }
    tensors
}

fn mlp_tensors(hidden: usize, i: usize, mlp: Mlp) -> Box<dyn Iterator<Item = Expected>> {
    let moe = match mlp {
        Mlp::Dense { intermediate_size } => {
            return Box::new(gated(name::dense_mlp(i), intermediate_size, hidden).into_iter());
        }
        Mlp::Moe(moe) => moe,
    };
    let n_experts = moe.rule.n_experts;
    let mut router = vec![plain(name::layer(i, name::ROUTER), &[n_experts, hidden])];
    if moe.rule.scoring == Scoring::Sigmoid {
        router.push(plain(name::layer(i, name::ROUTER_BIAS), &[n_experts]));
    }
    if moe.shared_intermediate_size > 0 {
        router.extend(gated(name::shared_experts(i), moe.shared_intermediate_size, hidden));
    }
    let experts = (0..n_experts).flat_map(move |e| gated(name::expert(i, e), moe.intermediate_size, hidden));
    Box::new(router.into_iter().chain(experts))
}

fn gated(names: name::GatedMlp, intermediate: usize, hidden: usize) -> [Expected; 3] {
    [
        matrix(names.gate, intermediate, hidden),
        matrix(names.up, intermediate, hidden),
        matrix(names.down, hidden, intermediate),
    ]
}

fn plain(name: impl Into<String>, shape: &[usize]) -> Expected {
    Expected { name: name.into(), shape: shape.to_vec(), quantizable: false }
}

fn matrix(name: String, rows: usize, cols: usize) -> Expected {
    Expected { name, shape: vec![rows, cols], quantizable: true }
}

fn missing(spec: &ModelSpec, name: &str) -> &'static str {
    match name {
        name::LM_HEAD if !spec.tie_word_embeddings => {
            "missing; if the embedding is the head too, config.json must say tie_word_embeddings: true"
        }
        _ => "missing; config.json and weights do not belong together, or a shard is not whole",
    }
}

fn check_tensor(
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    expected: &Expected,
    tensor: &Tensor<'_>,
    problems: &mut Problems,
) {
    if tensor.shape != expected.shape {
        let what = format!("shape {:?}, config.json asks for {:?}", tensor.shape, expected.shape);
        problems.push(tensor.name, what);
        return;
    }
    match (tensor.dtype(), spec.fp8_block) {
        (Some(DType::F32 | DType::F16 | DType::Bf16), _) => {}
        (Some(DType::F8E4M3), Some(block)) if expected.quantizable => {
            check_scales(checkpoint, expected, block, problems);
        }
        (Some(DType::F8E4M3), None) => {
            problems.push(tensor.name, "F8_E4M3, but config.json has no quantization_config");
        }
        _ => {
            let fp8 = if expected.quantizable { ", F8_E4M3 with block scales" } else { "" };
            problems.push(tensor.name, format!("{}, served are F32, F16, BF16{fp8}", tensor.format()));
        }
    }
}

/// `[ceil(rows / block_rows), ceil(columns / block_columns)]`: blocks at the edges may be partial.
fn check_scales(checkpoint: &Checkpoint, expected: &Expected, block: [usize; 2], problems: &mut Problems) {
    let name = name::scales(&expected.name);
    let shape: Vec<usize> = expected.shape.iter().zip(block).map(|(n, b)| n.div_ceil(b)).collect();
    match checkpoint.tensor(&name) {
        None => problems.push(name, "missing; an FP8 matrix needs its block scales"),
        Some(s) if s.shape != shape => {
            let what = format!("shape {:?}, blocks of {block:?} ask for {shape:?}", s.shape);
            problems.push(name, what);
        }
        Some(s) if s.dtype() != Some(DType::F32) => {
            problems.push(name, format!("{}, block scales must be F32", s.format()));
        }
        Some(_) => {}
    }
}

/// A note on tensors that no part of the model reads, but for those that are known to be idle.
fn unused(spec: &ModelSpec, checkpoint: &Checkpoint, used: &HashSet<&str>) -> Vec<String> {
    const NAMED_MAX: usize = 5;
    let mut names: Vec<&str> = checkpoint
        .tensors()
        .map(|tensor| tensor.name)
        .filter(|name| !used.contains(name) && !is_idle(spec, checkpoint, name))
        .collect();
    if names.is_empty() {
        return Vec::new();
    }
    names.sort_unstable();
    let more = if names.len() > NAMED_MAX { ", …" } else { "" };
    let shown = names[..names.len().min(NAMED_MAX)].join(", ");
    vec![format!("{} tensors are not used: {shown}{more}", names.len())]
}

fn is_idle(spec: &ModelSpec, checkpoint: &Checkpoint, name: &str) -> bool {
    let mtp = name
        .strip_prefix("model.layers.")
        .and_then(|rest| rest.split('.').next()?.parse::<usize>().ok())
        .is_some_and(|layer| layer >= spec.n_layers());
    let scales = name
        .strip_suffix("_scale_inv")
        .and_then(|matrix| checkpoint.tensor(matrix))
        .is_some_and(|matrix| matrix.dtype() == Some(DType::F8E4M3));
    let tied_head = spec.tie_word_embeddings && name == name::LM_HEAD;
    mtp || scales || tied_head || name.ends_with("rotary_emb.inv_freq")
}
