//! Configs as their authors published them.

use crate::{GOLDENS, config, golden};
use kernels::{CacheFormat, Precision, RouteRule, Scoring};
use model::spec::{GenerationConfig, Mlp, ModelSpec, MoeSpec};
use std::f64::consts::PI;

fn published(name: &str) -> ModelSpec {
    ModelSpec::parse(&config(name)).unwrap_or_else(|e| panic!("{e}"))
}

fn check_experts(name: &str, n_dense: usize, intermediate_size: usize, expected: MoeSpec) {
    let spec = published(name);
    let (dense, sparse) = spec.layers.split_at(n_dense);
    assert!(dense.iter().all(|mlp| *mlp == Mlp::Dense { intermediate_size }), "{name}: {dense:?}");
    assert!(!sparse.is_empty() && sparse.iter().all(|mlp| *mlp == Mlp::Moe(expected)), "{name}: {sparse:?}");
    assert_eq!(spec.notes, Vec::<String>::new());
}

#[test]
fn experts_of_published_models() {
    let rule = |scoring, n_experts, top_k, (n_groups, top_groups), scale| RouteRule {
        n_experts,
        top_k,
        scoring,
        n_groups,
        top_groups,
        normalise: scoring == Scoring::Sigmoid,
        scale,
    };
    let moe = |rule, intermediate_size, n_shared| MoeSpec {
        rule,
        intermediate_size,
        shared_intermediate_size: n_shared * intermediate_size,
    };
    let (softmax, sigmoid) = (Scoring::Softmax, Scoring::Sigmoid);
    check_experts("deepseek-v2-lite", 1, 10944, moe(rule(softmax, 64, 6, (1, 1), 1.0), 1408, 2));
    check_experts("deepseek-v2", 1, 12288, moe(rule(softmax, 160, 6, (8, 3), 16.0), 1536, 2));
    check_experts("deepseek-v3", 3, 18432, moe(rule(sigmoid, 256, 8, (8, 4), 2.5), 2048, 1));
    check_experts("kimi-k2", 1, 18432, moe(rule(sigmoid, 384, 8, (1, 1), 2.827), 2048, 1));
    check_experts("moonlight", 1, 11264, moe(rule(sigmoid, 64, 6, (1, 1), 2.446), 1408, 2));
    check_experts("glm-4.7-flash", 1, 10240, moe(rule(sigmoid, 64, 4, (1, 1), 1.8), 1536, 1));
}

#[test]
fn everything_else_of_two_published_models() {
    let v3 = published("deepseek-v3");
    assert_eq!((v3.vocab_size, v3.hidden_size, v3.n_layers(), v3.context_len), (129280, 7168, 61, 163840));
    assert_eq!((v3.mla.n_heads, v3.mla.kv_lora_rank, v3.q_lora_rank), (128, 512, Some(1536)));
    assert_eq!((v3.mla.qk_nope_head_dim, v3.mla.qk_rope_head_dim, v3.mla.v_head_dim), (128, 64, 128));
    assert_eq!((v3.rms_norm_eps, v3.latent_norm_eps), (1e-6, 1e-6));
    assert_eq!((v3.fp8_block, v3.n_mtp_layers, v3.tie_word_embeddings), (Some([128, 128]), 1, false));
    assert_eq!((v3.bos_id, v3.config_eos_ids.as_slice()), (Some(0), &[1][..]));
    assert_eq!((v3.latent_width(), v3.kv_bytes_per_token(CacheFormat::Plain, Precision::Bf16)), (576, 70272));

    let glm = published("glm-4.7-flash");
    assert_eq!((glm.rms_norm_eps, glm.latent_norm_eps), (1e-5, 1e-6));
    assert_eq!((glm.bos_id, glm.config_eos_ids.as_slice()), (None, &[154820, 154827, 154829][..]));
    assert_eq!((glm.fp8_block, glm.checkpoint_dtype), (None, Some(kernels::DType::Bf16)));
    assert_eq!(published("moonlight").q_lora_rank, None);
}

/// YaRN written out from the formulas, as far from the loader's code as they allow.
struct Yarn {
    dim: f64,
    theta: f64,
    factor: f64,
    original: f64,
    beta: [f64; 2],
}

impl Yarn {
    fn inv_freq(&self, i: f64) -> f64 {
        let turns_at = |beta: f64| {
            // The dimension whose wavelength fits `beta` times into the original context.
            self.dim / 2.0 * (self.original / (2.0 * PI * beta)).log(self.theta)
        };
        let low = turns_at(self.beta[0]).floor().max(0.0);
        let mut high = turns_at(self.beta[1]).ceil().min(self.dim - 1.0);
        if high == low {
            high += 0.001;
        }
        let extrapolated = 1.0 / self.theta.powf(2.0 * i / self.dim);
        let keep = 1.0 - ((i - low) / (high - low)).clamp(0.0, 1.0);
        extrapolated / self.factor * (1.0 - keep) + extrapolated * keep
    }
}

fn check_rope(name: &str, yarn: Yarn, softmax_scale: f64, cos_sin_scale: f64) {
    check_rope_of(name, &published(name), yarn, softmax_scale, cos_sin_scale);
}

fn check_rope_of(name: &str, spec: &ModelSpec, yarn: Yarn, softmax_scale: f64, cos_sin_scale: f64) {
    assert_eq!(spec.rope.inv_freq.len(), yarn.dim as usize / 2);
    for (i, got) in spec.rope.inv_freq.iter().enumerate() {
        let want = yarn.inv_freq(i as f64);
        assert!((f64::from(*got) / want - 1.0).abs() < 1e-6, "{name}: frequency {i} is {got}, not {want}");
    }
    let got = f64::from(spec.mla.softmax_scale);
    assert!((got / softmax_scale - 1.0).abs() < 1e-6, "{name}: softmax scale {got}, not {softmax_scale}");
    assert!((f64::from(spec.rope.scale) - cos_sin_scale).abs() < 1e-6, "{name}: {}", spec.rope.scale);
}

#[test]
fn rope_of_published_models() {
    let yarn = |theta, factor, beta| Yarn { dim: 64.0, theta, factor, original: 4096.0, beta };
    // (128 + 64)^-0.5 (0.1 a ln f + 1)^2
    let scale = |a: f64, f: f64| 192f64.powf(-0.5) * (0.1 * a * f.ln() + 1.0).powi(2);
    check_rope("deepseek-v2-lite", yarn(1e4, 40.0, [32.0, 1.0]), scale(0.707, 40.0), 1.0);
    check_rope("deepseek-v3", yarn(1e4, 40.0, [32.0, 1.0]), scale(1.0, 40.0), 1.0);
    check_rope("kimi-k2", yarn(5e4, 32.0, [1.0, 1.0]), scale(1.0, 32.0), 1.0);
    check_rope("moonlight", yarn(5e4, 1.0, [32.0, 1.0]), 192f64.powf(-0.5), 1.0);
    check_rope("glm-4.7-flash", yarn(1e6, 1.0, [32.0, 1.0]), 256f64.powf(-0.5), 1.0);
    assert!((published("deepseek-v3").mla.softmax_scale - 0.135_234).abs() < 1e-6);
    assert!((published("deepseek-v2-lite").mla.softmax_scale - 0.114_721).abs() < 1e-6);
}

fn with(name: &str, changes: serde_json::Value) -> Vec<u8> {
    let mut config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&config(name)).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config.insert(key.clone(), value.clone());
    }
    serde_json::to_vec(&config).unwrap()
}

fn parse_with(name: &str, changes: serde_json::Value) -> ModelSpec {
    ModelSpec::parse(&with(name, changes)).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn yarn_without_mscales_and_with_a_range_of_nothing() {
    // Both ends of the range clamp to 0; without mscales only cos and sin are scaled.
    let scaling = serde_json::json!({"type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 1,
        "original_max_position_embeddings": 6});
    let spec = parse_with("moonlight", serde_json::json!({ "rope_scaling": scaling }));
    let yarn = Yarn { dim: 64.0, theta: 5e4, factor: 4.0, original: 6.0, beta: [1.0, 1.0] };
    check_rope_of("moonlight", &spec, yarn, 192f64.powf(-0.5), 0.1 * 4f64.ln() + 1.0);
}

#[test]
fn unequal_mscales_scale_cos_and_sin() {
    let scaling = serde_json::json!({"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096});
    let spec = parse_with("deepseek-v2", serde_json::json!({ "rope_scaling": scaling }));
    let m = |a: f64| 0.1 * a * 40f64.ln() + 1.0;
    assert!((f64::from(spec.rope.scale) - m(1.0) / m(0.707)).abs() < 1e-6);
    assert!((f64::from(spec.mla.softmax_scale) - m(0.707).powi(2) / 192f64.sqrt()).abs() < 1e-7);
}

fn with_theta(parameters: &serde_json::Value, theta: u32) -> serde_json::Value {
    let mut parameters = parameters.clone();
    parameters["rope_theta"] = theta.into();
    parameters
}

#[test]
fn rope_parameters_win_over_the_top_level() {
    let parameters = |v: serde_json::Value| serde_json::json!({ "rope_parameters": v });
    let glm = parse_with(
        "glm-4.7-flash",
        parameters(serde_json::json!({"rope_theta": 10000, "rope_type": "default"})),
    );
    assert!((glm.rope.inv_freq[31] - 10000f32.powf(-31.0 / 32.0)).abs() < 1e-7);
    // As transformers 5 writes DeepSeek-V3: the same rope as the published config.
    let mut changes =
        parameters(serde_json::json!({"rope_theta": 10000.0, "rope_type": "yarn", "type": "yarn",
        "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096}));
    changes["rope_theta"] = 77.into();
    for old in [serde_json::Value::Null, with_theta(&changes["rope_parameters"], 78)] {
        changes["rope_scaling"] = old;
        let v3 = parse_with("deepseek-v3", changes.clone());
        assert_eq!(v3.rope, published("deepseek-v3").rope);
        assert_eq!(v3.mla, published("deepseek-v3").mla);
    }
}

#[test]
fn dense_layers_of_glm_are_listed_or_the_first_alone() {
    let is_dense = |spec: &ModelSpec| -> Vec<bool> {
        spec.layers.iter().map(|mlp| matches!(mlp, Mlp::Dense { .. })).collect()
    };
    let spec =
        parse_with("glm-4.7-flash", serde_json::json!({"num_hidden_layers": 3, "first_k_dense_replace": 2}));
    assert_eq!(is_dense(&spec), [true, false, false]);
    assert_eq!(spec.notes.len(), 1);
    let listed = serde_json::json!({"num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "dense"]});
    assert_eq!(is_dense(&parse_with("glm-4.7-flash", listed)), [true, false, true]);
}

#[test]
fn unknown_names_are_served_by_what_their_keys_say() {
    let v3 = parse_with("moonlight", serde_json::json!({"model_type": "aurora"}));
    assert!(v3.notes[0].contains("aurora") && v3.notes[0].contains("deepseek_v3"), "{:?}", v3.notes);
    assert_eq!(v3.moe(), published("moonlight").moe());
    let v2 = parse_with("deepseek-v2", serde_json::json!({"model_type": "aurora"}));
    assert!(v2.notes[0].contains("deepseek_v2"), "{:?}", v2.notes);
    assert_eq!(v2.moe(), published("deepseek-v2").moe());
    let dense = serde_json::json!({"model_type": "aurora", "n_routed_experts": null, "topk_method": null});
    assert_eq!(parse_with("moonlight", dense).moe(), None);
}

#[test]
fn golden_checkpoints_are_served() {
    for name in GOLDENS {
        let read = |file: &str| std::fs::read(golden(name).join(file)).unwrap();
        let spec = ModelSpec::parse(&read("config.json")).unwrap_or_else(|e| panic!("{name}: {e}"));
        let generation = GenerationConfig::parse(&read("generation_config.json")).unwrap();
        assert_eq!((generation.do_sample, generation.top_p), (Some(true), Some(0.95)));
        let answers: serde_json::Value = serde_json::from_slice(&read("golden.json")).unwrap();
        let eos = serde_json::to_value(spec.eos_ids(Some(&generation)).unwrap()).unwrap();
        assert_eq!(eos, answers["eos_token_ids"], "{name}");
    }
}
