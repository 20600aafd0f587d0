//! Which forward pass a config asks for, and refusing those that are not served.

use super::fields::Fields;
use serde_json::Value;

/// Families whose forward passes differ in no more than the fields of a `ModelSpec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// Softmax routing.
    V2,
    /// Sigmoid routing with a correction bias: V3, R1, Kimi-K2, Moonlight.
    V3,
    /// As V3, without YaRN; the dense layers are named by `mlp_layer_types`.
    Glm4MoeLite,
}

/// Known models with a latent cache whose forward pass is another one.
const NOT_SERVED: &[(&str, &str)] = &[
    ("deepseek_v32", "sparse attention chosen by a lightning indexer"),
    ("glm_moe_dsa", "sparse attention chosen by a lightning indexer"),
    ("deepseek_v4", "compressed sparse attention and hyper-connections"),
    ("minicpm3", "scaled embeddings, residuals and logits"),
    ("longcat_flash", "two attention blocks a layer and zero-computation experts"),
    ("longcat_flash_ngram", "n-gram embeddings, two attention blocks a layer and zero-computation experts"),
    ("kimi_linear", "linear attention (KDA) in most layers"),
    ("bailing_hybrid", "linear attention in most layers"),
    ("mistral4", "queries scaled by their position"),
    ("pangu_ultra_moe", "sandwich norms around each block"),
    ("axk1", "a further norm after each MLP"),
    ("youtu", "options of its attention that have no reference here"),
    ("youtu_llm", "options of its attention that have no reference here"),
];

/// Keys that change the forward pass wherever they are set, whatever the model is called.
const CHANGES_THE_FORWARD: &[(&str, &str)] = &[
    ("index_topk", "sparse attention chosen by a lightning indexer is not served"),
    ("index_n_heads", "sparse attention chosen by a lightning indexer is not served"),
    ("linear_attn_config", "linear attention is not served"),
    ("sliding_window", "attention over a window is not served"),
    ("attention_bias", "biases in attention are not served"),
    ("qkv_bias", "biases in attention are not served"),
    ("mlp_bias", "biases in the MLPs are not served"),
    ("sandwich_norm", "sandwich norms are not served"),
    ("zero_expert_num", "zero-computation experts are not served"),
    ("scale_emb", "scaled embeddings are not served"),
    ("scale_depth", "scaled residuals are not served"),
    ("dim_model_base", "scaled logits are not served"),
    ("llama_4_scaling", "queries scaled by their position are not served"),
    ("hc_mult", "hyper-connections are not served"),
    ("final_logit_softcapping", "soft-capped logits are not served"),
    ("attn_logit_softcapping", "soft-capped attention is not served"),
    ("compression_config", "compressed weights are not served; take the checkpoint in bf16 or FP8"),
];

/// `None`: refused, and why is recorded.
pub(super) fn recognise(fields: &mut Fields<'_>) -> Option<Family> {
    let model_type = fields.text_or_null("model_type")?.unwrap_or_default();
    if let Some((_, differs)) = NOT_SERVED.iter().find(|(name, _)| *name == model_type) {
        fields.refuse("model_type", format!("this family is not served: {differs}"));
        return None;
    }
    if fields.value("kv_lora_rank").is_none() {
        let inside = match fields.value("text_config") {
            Some(_) => "; the language model of a multimodal checkpoint (text_config) is not served",
            None => "",
        };
        let what = format!(
            "not an MLA model ({model_type:?}): only models with a latent KV cache are served{inside}"
        );
        fields.refuse("kv_lora_rank", what);
        return None;
    }
    match model_type {
        "" => {
            fields.refuse("model_type", "must name the model family, such as \"deepseek_v3\"");
            None
        }
        "deepseek_v2" => Some(Family::V2),
        "deepseek_v3" | "kimi_k2" => Some(Family::V3),
        "glm4_moe_lite" => Some(Family::Glm4MoeLite),
        unknown => by_routing(fields, unknown),
    }
}

/// An unknown model with a latent cache is taken for the family whose routing it names.
fn by_routing(fields: &mut Fields<'_>, model_type: &str) -> Option<Family> {
    let method = fields.text_or_null("topk_method")?;
    let (family, like) = match method {
        Some("noaux_tc") => (Family::V3, "deepseek_v3"),
        Some(_) => (Family::V2, "deepseek_v2"),
        None if fields.value("n_routed_experts").is_none() => (Family::V3, "deepseek_v3 without experts"),
        None => {
            fields.refuse(
                "topk_method",
                format!("needed to tell which forward pass the unknown family {model_type:?} has"),
            );
            return None;
        }
    };
    fields.note(format!(
        "model_type {model_type:?} is unknown; its keys say that it computes what {like} does"
    ));
    Some(family)
}

/// Refuses keys that would silently change what is computed.
pub(super) fn refuse_other_forwards(fields: &mut Fields<'_>) {
    for (key, why) in CHANGES_THE_FORWARD {
        if fields.value(key).is_some_and(is_set) {
            fields.refuse(key, why);
        }
    }
    fields.only("hidden_act", "silu");
    fields.only("rope_interleave", true);
    fields.only("moe_layer_freq", 1);
    fields.only("partial_rotary_factor", 1);
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
        Value::Bool(true) | Value::String(_) => true,
    }
}
