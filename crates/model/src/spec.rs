//! `config.json` read once: after [`ModelSpec::parse`] no code looks at raw keys again.

mod family;
mod fields;
mod generation;
mod moe;
mod rope;

pub use generation::GenerationConfig;

use crate::problems::Problems;
use family::Family;
use fields::{Fields, json_object};
use kernels::{CacheFormat, DType, MlaDims, Precision, Rope, RouteRule};

/// Widest row that is served. With the other bounds it keeps every count of bytes below 2^63.
const WIDTH_MAX: usize = 1 << 20;

/// What a model computes, in the checkpoint's words. Every combination that this can hold is served.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// `max_position_embeddings`: the longest sequence, in tokens.
    pub context_len: usize,
    pub mla: MlaDims,
    /// `None`: queries are projected from the hidden state at once (`q_proj`).
    pub q_lora_rank: Option<usize>,
    pub rope: Rope,
    pub rms_norm_eps: f32,
    /// Of `q_a_layernorm` and `kv_a_layernorm`: 1e-6 whatever `rms_norm_eps` says.
    pub latent_norm_eps: f32,
    /// `[n_layers]`
    pub layers: Vec<Mlp>,
    /// The embedding is the output head too.
    pub tie_word_embeddings: bool,
    /// Layers after the last that only predict further tokens; not loaded.
    pub n_mtp_layers: usize,
    /// FP8 e4m3 weights with one scale for each block of `[rows, columns]`.
    pub fp8_block: Option<[usize; 2]>,
    /// What the config says of its weights; each tensor says it itself.
    pub checkpoint_dtype: Option<DType>,
    pub bos_id: Option<u32>,
    /// `generation_config.json` may name more: see [`ModelSpec::eos_ids`].
    pub config_eos_ids: Vec<u32>,
    /// What the owner should know and that stops nothing.
    pub notes: Vec<String>,
}

/// The second half of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mlp {
    Dense { intermediate_size: usize },
    Moe(MoeSpec),
}

/// Routed experts and the shared one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MoeSpec {
    pub rule: RouteRule,
    /// `moe_intermediate_size`: of one routed expert.
    pub intermediate_size: usize,
    /// `n_shared_experts * moe_intermediate_size`: they are one MLP. 0: none.
    pub shared_intermediate_size: usize,
}

impl ModelSpec {
    /// Reads a `config.json`, or says all that keeps it from being served.
    pub fn parse(config_json: &[u8]) -> Result<Self, Problems> {
        const SUBJECT: &str = "config.json";
        let object = json_object(SUBJECT, config_json)?;
        let (mut problems, mut notes) = (Problems::of(SUBJECT), Vec::new());
        let mut fields = Fields::new(&object, &mut problems, &mut notes);
        let spec = family::recognise(&mut fields).and_then(|family| read(&mut fields, family));
        let spec = problems.none_or(spec)?.expect("no spec without a recorded problem");
        Ok(Self { notes, ..spec })
    }

    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// The experts, the same in every layer that has them.
    pub fn moe(&self) -> Option<&MoeSpec> {
        self.layers.iter().find_map(|layer| match layer {
            Mlp::Moe(moe) => Some(moe),
            Mlp::Dense { .. } => None,
        })
    }

    /// Numbers that the cache holds a token and layer.
    pub fn latent_width(&self) -> usize {
        self.mla.latent_width()
    }

    /// Bytes that the cache holds a token, over all layers, where `precision` is that of products.
    pub fn kv_bytes_per_token(&self, cache: CacheFormat, precision: Precision) -> usize {
        self.n_layers() * cache.row_bytes(precision, &self.mla)
    }

    /// The tokens that end an answer: those of `generation_config.json` if it names any, else the
    /// config's.
    pub fn eos_ids(&self, generation: Option<&GenerationConfig>) -> Result<Vec<u32>, Problems> {
        let Some(ids) = generation.map(|g| &g.eos_ids).filter(|ids| !ids.is_empty()) else {
            return Ok(self.config_eos_ids.clone());
        };
        let mut problems = Problems::of("generation_config.json");
        for id in ids.iter().filter(|&&id| id as usize >= self.vocab_size) {
            problems.push("eos_token_id", format!("{id}, must be below vocab_size ({})", self.vocab_size));
        }
        problems.none_or(ids.clone())
    }
}

fn read(fields: &mut Fields<'_>, family: Family) -> Option<ModelSpec> {
    family::refuse_other_forwards(fields);
    let model_type = fields.text_or_null("model_type");
    let vocab_size = fields.integer("vocab_size", 1..=1 << 24);
    let hidden_size = fields.integer("hidden_size", 1..=1 << 17);
    let n_layers = fields.integer("num_hidden_layers", 1..=1 << 10);
    let context_len = fields.integer("max_position_embeddings", 1..=1 << 26);
    let q_lora_rank = fields.integer_or_null("q_lora_rank", 1..=WIDTH_MAX);
    let dims = mla_dims(fields);
    let rotary = rope::read(fields, family, dims.map(|d| d.qk_rope_head_dim));
    let rms_norm_eps = fields.number("rms_norm_eps", 1e-12..=1e-1);
    let layers = moe::read(fields, family, n_layers);
    let tied = fields.flag_or_null("tie_word_embeddings");
    let n_mtp_layers = fields.integer_or_null("num_nextn_predict_layers", 0..=64);
    let fp8_block = fp8_block(fields);
    let checkpoint_dtype = checkpoint_dtype(fields);
    let vocab = vocab_size.unwrap_or(1 << 24);
    let eos_ids = fields.token_ids("eos_token_id", vocab);
    let bos_id = fields.token_id("bos_token_id", vocab);

    let (dims, rotary) = (dims?, rotary?);
    let softmax_scale = rotary.softmax_factor / (dims.qk_head_dim() as f64).sqrt();
    Some(ModelSpec {
        model_type: model_type??.to_owned(),
        vocab_size: vocab_size?,
        hidden_size: hidden_size?,
        context_len: context_len?,
        mla: MlaDims { softmax_scale: softmax_scale as f32, ..dims },
        q_lora_rank: q_lora_rank?,
        rope: rotary.rope,
        rms_norm_eps: rms_norm_eps? as f32,
        latent_norm_eps: 1e-6,
        layers: layers?,
        tie_word_embeddings: tied?.unwrap_or(false),
        n_mtp_layers: n_mtp_layers?.unwrap_or(0),
        fp8_block: fp8_block?,
        checkpoint_dtype: checkpoint_dtype?,
        bos_id: bos_id?,
        config_eos_ids: eos_ids?,
        notes: Vec::new(),
    })
}

/// Dimensions of the attention; the softmax scale is filled in when the rope is known.
fn mla_dims(fields: &mut Fields<'_>) -> Option<MlaDims> {
    let n_heads = fields.integer("num_attention_heads", 1..=1 << 12);
    let kv_lora_rank = fields.integer("kv_lora_rank", 1..=1 << 14);
    let nope = fields.integer("qk_nope_head_dim", 1..=1 << 12);
    let rope = fields.integer("qk_rope_head_dim", 2..=1 << 12);
    let value = fields.integer("v_head_dim", 1..=1 << 12);
    let kv_heads = fields.integer_or_null("num_key_value_heads", 1..=1 << 12);
    if kv_heads.flatten().is_some_and(|kv_heads| n_heads.is_some_and(|n| n != kv_heads)) {
        fields.refuse("num_key_value_heads", "must equal num_attention_heads: all heads share one latent");
    }
    if rope.is_some_and(|rope| rope % 2 != 0) {
        fields.refuse("qk_rope_head_dim", "must be even: rope turns pairs");
    }
    let dims = MlaDims {
        n_heads: n_heads?,
        kv_lora_rank: kv_lora_rank?,
        qk_nope_head_dim: nope?,
        qk_rope_head_dim: rope?,
        v_head_dim: value?,
        softmax_scale: 1.0,
    };
    let per_head = dims.qk_head_dim().max(nope? + value?).max(dims.latent_width());
    if dims.n_heads * per_head > WIDTH_MAX {
        let what = format!("times the widest row of a head ({per_head}) must be at most {WIDTH_MAX}");
        fields.refuse("num_attention_heads", what);
    }
    let qk_head_dim = fields.integer_or_null("qk_head_dim", 1..=1 << 13)?;
    if qk_head_dim.is_some_and(|given| given != dims.qk_head_dim()) {
        let what = format!("must be qk_nope_head_dim + qk_rope_head_dim ({})", dims.qk_head_dim());
        fields.refuse("qk_head_dim", what);
    }
    Some(dims)
}

fn fp8_block(fields: &mut Fields<'_>) -> Option<Option<[usize; 2]>> {
    let Some(mut quantization) = fields.nested("quantization_config")? else { return Some(None) };
    let before = quantization.problem_count();
    if quantization.value("quant_method").is_none() {
        quantization.refuse("quant_method", "must be \"fp8\"");
    }
    quantization.only("quant_method", "fp8");
    quantization.only("fmt", "e4m3");
    quantization.only("activation_scheme", "dynamic");
    if quantization.problem_count() > before {
        return None;
    }
    let want = "must be two block sizes, each from 1 to 4096, such as [128, 128]";
    let block = quantization.optional("weight_block_size", want, |v| {
        let sizes: Vec<u64> = v.as_array()?.iter().map(serde_json::Value::as_u64).collect::<Option<_>>()?;
        let [rows, columns] = sizes[..] else { return None };
        let side = |n: u64| (1..=4096).contains(&n).then_some(n as usize);
        Some([side(rows)?, side(columns)?])
    })?;
    if block.is_none() {
        quantization.refuse("weight_block_size", want);
        return None;
    }
    Some(block)
}

/// `dtype`, as transformers 5 writes it, or `torch_dtype`.
fn checkpoint_dtype(fields: &mut Fields<'_>) -> Option<Option<DType>> {
    let (new, old) = (fields.text_or_null("dtype"), fields.text_or_null("torch_dtype"));
    match new?.or(old?) {
        None => Some(None),
        Some("float32") => Some(Some(DType::F32)),
        Some("float16") => Some(Some(DType::F16)),
        Some("bfloat16") => Some(Some(DType::Bf16)),
        Some("float8_e4m3fn") => Some(Some(DType::F8E4M3)),
        Some(other) => {
            fields.note(format!("dtype {other:?} is unknown; each tensor's own format is used"));
            Some(None)
        }
    }
}
