//! Configs that must be refused, each naming the key at fault.

use crate::{GOLDENS, config, golden};
use model::spec::{GenerationConfig, ModelSpec};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// `good` with the value at `key` (dots lead into objects) replaced, or removed.
fn mutated(good: &[u8], key: &str, value: Option<Value>) -> Vec<u8> {
    let mut config: Value = serde_json::from_slice(good).unwrap();
    let mut object = &mut config;
    let (parents, last) = key.rsplit_once('.').map_or((None, key), |(parents, last)| (Some(parents), last));
    for parent in parents.into_iter().flat_map(|p| p.split('.')) {
        object = &mut object[parent];
    }
    let object = object.as_object_mut().unwrap();
    match value {
        Some(value) => object.insert(last.to_owned(), value),
        None => object.remove(last),
    };
    serde_json::to_vec(&config).unwrap()
}

fn check(model: &str, key: &str, value: impl Into<Option<Value>>, at: &str) {
    let value = value.into();
    let json = mutated(&config(model), key, value.clone());
    let problems = ModelSpec::parse(&json).expect_err(&format!("{model} with {key} = {value:?}"));
    let named: Vec<&str> = problems.first().iter().map(|p| p.key.as_str()).collect();
    assert_eq!(named, [at], "{model} with {key} = {value:?}: {problems}");
    if let Some(value) = value.filter(|v| key == at && v.to_string().len() < 60) {
        assert!(problems.to_string().contains(&value.to_string()), "{value} is not shown: {problems}");
    }
}

#[test]
fn integers() {
    for key in [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "max_position_embeddings",
        "intermediate_size",
        "moe_intermediate_size",
        "num_experts_per_tok",
        "n_group",
        "topk_group",
    ] {
        for bad in [json!(0), json!(-1), json!(64.0), json!("64"), json!(true), json!([64]), json!(u64::MAX)]
        {
            check("deepseek-v3", key, bad, key);
        }
        check("deepseek-v3", key, None, key);
    }
    for key in ["q_lora_rank", "n_routed_experts"] {
        check("deepseek-v3", key, json!(0), key);
        check("deepseek-v3", key, json!(1e9), key);
    }
    check("deepseek-v3", "n_shared_experts", None, "n_shared_experts");
    check("deepseek-v3", "first_k_dense_replace", json!(-3), "first_k_dense_replace");
    check("deepseek-v3", "num_nextn_predict_layers", json!(1.5), "num_nextn_predict_layers");
    check("deepseek-v3", "num_hidden_layers", json!(1 << 30), "num_hidden_layers");
}

#[test]
fn numbers_and_flags() {
    for key in ["rms_norm_eps", "rope_theta", "routed_scaling_factor"] {
        for bad in [json!(0), json!(-1.0), json!("1e-6"), json!(1e300), json!(null)] {
            check("deepseek-v3", key, bad, key);
        }
        check("deepseek-v3", key, None, key);
    }
    check("deepseek-v3", "rope_theta", json!(1.0), "rope_theta");
    check("deepseek-v3", "norm_topk_prob", json!(1), "norm_topk_prob");
    check("deepseek-v3", "norm_topk_prob", None, "norm_topk_prob");
    check("deepseek-v2", "norm_topk_prob", json!("no"), "norm_topk_prob");
    check("deepseek-v3", "tie_word_embeddings", json!(0.5), "tie_word_embeddings");
}

#[test]
fn what_would_change_the_forward() {
    check("deepseek-v3", "hidden_act", json!("gelu"), "hidden_act");
    check("deepseek-v3", "attention_bias", json!(true), "attention_bias");
    check("deepseek-v3", "mlp_bias", json!(true), "mlp_bias");
    check("deepseek-v3", "moe_layer_freq", json!(2), "moe_layer_freq");
    check("deepseek-v3", "rope_interleave", json!(false), "rope_interleave");
    check("deepseek-v3", "sliding_window", json!(4096), "sliding_window");
    check("deepseek-v3", "index_topk", json!(2048), "index_topk");
    check("deepseek-v3", "sandwich_norm", json!(true), "sandwich_norm");
    check("deepseek-v3", "llama_4_scaling", json!({"beta": 0.1}), "llama_4_scaling");
    check("glm-4.7-flash", "partial_rotary_factor", json!(0.5), "partial_rotary_factor");
    check("deepseek-v3", "mlp_layer_types", json!(["dense"]), "mlp_layer_types");
    check("deepseek-v3", "mlp_layer_types", json!(vec!["dense"; 61]), "mlp_layer_types");
    check("glm-4.7-flash", "mlp_layer_types", json!(vec!["sparse"; 46]), "mlp_layer_types");
    check("glm-4.7-flash", "mlp_layer_types", json!(vec!["thick"; 47]), "mlp_layer_types");
    check("deepseek-v3", "num_key_value_heads", json!(8), "num_key_value_heads");
    check("deepseek-v3", "qk_head_dim", json!(128), "qk_head_dim");
    check("deepseek-v3", "qk_rope_head_dim", json!(63), "qk_rope_head_dim");
    check("deepseek-v3", "qk_nope_head_dim", json!(8193), "qk_nope_head_dim");
    check("deepseek-v3", "num_attention_heads", json!(64), "num_key_value_heads");
    let wide = mutated(&config("deepseek-v3"), "num_attention_heads", Some(json!(4096)));
    let problems = ModelSpec::parse(&mutated(&wide, "num_key_value_heads", None)).unwrap_err();
    assert_eq!(problems.first()[0].key, "num_attention_heads");
}

#[test]
fn routing() {
    check("deepseek-v3", "scoring_func", json!("softmax"), "scoring_func");
    check("deepseek-v3", "scoring_func", json!("relu"), "scoring_func");
    check("deepseek-v3", "topk_method", json!("greedy"), "topk_method");
    check("deepseek-v2", "scoring_func", json!("sigmoid"), "scoring_func");
    check("deepseek-v2", "topk_method", json!("noaux_tc"), "topk_method");
    check("deepseek-v2", "topk_method", json!("best"), "topk_method");
    check("deepseek-v2", "topk_method", json!(3), "topk_method");
    check("deepseek-v3", "n_group", json!(7), "n_group");
    check("deepseek-v3", "n_group", json!(256), "n_group");
    check("deepseek-v3", "topk_group", json!(9), "topk_group");
    check("deepseek-v3", "num_experts_per_tok", json!(129), "num_experts_per_tok");
    check("deepseek-v2-lite", "num_experts_per_tok", json!(65), "num_experts_per_tok");
    check("deepseek-v3", "n_shared_experts", json!(257), "n_shared_experts");
    check("moonlight", "moe_intermediate_size", json!(1 << 18), "moe_intermediate_size");
    let unknown = mutated(&config("moonlight"), "model_type", Some(json!("aurora")));
    let problems = ModelSpec::parse(&mutated(&unknown, "topk_method", None)).unwrap_err();
    assert_eq!(problems.first()[0].key, "topk_method");
}

#[test]
fn rope() {
    let scaling = |v: Value| ("rope_scaling", v);
    for kind in ["linear", "dynamic", "llama3", "longrope", "mrope"] {
        check("deepseek-v3", "rope_scaling.type", json!(kind), "rope_scaling.type");
    }
    for (key, value) in [
        ("factor", json!(0.5)),
        ("factor", json!("40")),
        ("factor", json!(null)),
        ("original_max_position_embeddings", json!(0)),
        ("original_max_position_embeddings", json!(4096.0)),
        ("beta_fast", json!(0)),
        ("beta_fast", json!(0.5)),
        ("beta_slow", json!(-1)),
        ("mscale", json!(-1)),
        ("mscale", json!(null)),
        ("mscale_all_dim", json!(0)),
        ("mscale_all_dim", json!(null)),
        ("attention_factor", json!(1.2)),
        ("truncate", json!(false)),
        ("partial_rotary_factor", json!(0.5)),
        ("short_factor", json!([1.0])),
        ("rope_type", json!("default")),
        ("rope_theta", json!("10000")),
    ] {
        let at = format!("rope_scaling.{key}");
        check("deepseek-v3", &at, value, &at);
    }
    check("deepseek-v3", "rope_scaling.type", None, "rope_scaling.type");
    let (key, value) = scaling(json!("yarn"));
    check("deepseek-v3", key, value, "rope_scaling");
    check("deepseek-v3", "rope_parameters", json!({"rope_type": "default"}), "rope_scaling");
    check("deepseek-v3", "rope_parameters", json!({"full_attention": {}}), "rope_parameters.full_attention");
    let yarn = json!({"type": "yarn", "factor": 4, "original_max_position_embeddings": 4096});
    check("glm-4.7-flash", "rope_scaling", yarn, "rope_scaling");
}

#[test]
fn quantization_and_ids() {
    let quantization = |key: &str| format!("quantization_config.{key}");
    for (key, value) in [
        ("quant_method", json!("compressed-tensors")),
        ("quant_method", json!("gptq")),
        ("quant_method", json!(null)),
        ("fmt", json!("e5m2")),
        ("activation_scheme", json!("static")),
        ("weight_block_size", json!(null)),
        ("weight_block_size", json!([128])),
        ("weight_block_size", json!([128, 0])),
        ("weight_block_size", json!([128, 128.0])),
    ] {
        check("deepseek-v3", &quantization(key), value, &quantization(key));
    }
    check("deepseek-v3", "quantization_config", json!("fp8"), "quantization_config");
    check("deepseek-v3", "compression_config", json!({"bits": 4}), "compression_config");
    for bad in [json!(-1), json!(129_280), json!(1.0), json!([1, "2"]), json!(vec![1; 65])] {
        check("deepseek-v3", "eos_token_id", bad, "eos_token_id");
    }
    check("deepseek-v3", "bos_token_id", json!([0]), "bos_token_id");
    check("deepseek-v3", "dtype", json!(16), "dtype");
}

#[test]
fn families_that_compute_something_else() {
    for (name, differs) in [("deepseek-v3.2", "lightning indexer"), ("glm-5", "lightning indexer")] {
        let problems = ModelSpec::parse(&config(name)).unwrap_err();
        assert_eq!((problems.count(), problems.first()[0].key.as_str()), (1, "model_type"));
        assert!(problems.to_string().contains(differs), "{problems}");
    }
    for name in ["minicpm3", "longcat_flash", "kimi_linear", "mistral4", "youtu"] {
        check("deepseek-v3", "model_type", json!(name), "model_type");
    }
    check("deepseek-v3", "model_type", None, "model_type");
    check("deepseek-v3", "model_type", json!(3), "model_type");
    check("deepseek-v3", "kv_lora_rank", None, "kv_lora_rank");
    let nested = ModelSpec::parse(br#"{"model_type": "kimi_k25", "text_config": {}}"#).unwrap_err();
    assert!(nested.to_string().contains("multimodal"), "{nested}");
    let qwen = ModelSpec::parse(br#"{"model_type": "qwen3", "hidden_size": 1}"#).unwrap_err();
    assert!(qwen.to_string().contains("not an MLA model (\"qwen3\")"), "{qwen}");
}

#[test]
fn all_problems_at_once_and_readable() {
    let json = br#"{"model_type": "deepseek_v3", "kv_lora_rank": 512.5, "hidden_act": "gelu",
        "vocab_size": 10, "hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 0,
        "num_attention_heads": 4, "qk_nope_head_dim": 16, "qk_rope_head_dim": 7, "v_head_dim": 16,
        "rms_norm_eps": 1e-6, "intermediate_size": 8, "rope_theta": 10000, "first_k_dense_replace": 0,
        "n_routed_experts": 8, "moe_intermediate_size": 8, "n_shared_experts": 1,
        "num_experts_per_tok": 5, "n_group": 4, "topk_group": 2, "norm_topk_prob": true,
        "routed_scaling_factor": 1.0, "eos_token_id": [3, 10]}"#;
    insta::assert_snapshot!(ModelSpec::parse(json).unwrap_err());
}

#[test]
fn not_a_config_at_all() {
    for bytes in [
        "",
        "{",
        "[]",
        "null",
        "\u{feff}{}",
        "{\"rms_norm_eps\": NaN}",
        "{\"a\": 1e999}",
        &"[".repeat(100_000),
    ] {
        let problems = ModelSpec::parse(bytes.as_bytes()).unwrap_err();
        assert_eq!(problems.count(), 1, "{problems}");
        assert!(GenerationConfig::parse(bytes.as_bytes()).is_err());
    }
    assert!(ModelSpec::parse(b"\xff\xfe").is_err());
    assert!(ModelSpec::parse(b"{}").is_err());
}

#[test]
fn generation_configs() {
    for (json, at) in [
        (r#"{"eos_token_id": -1}"#, "eos_token_id"),
        (r#"{"eos_token_id": [1, 2.5]}"#, "eos_token_id"),
        (r#"{"bos_token_id": "1"}"#, "bos_token_id"),
        (r#"{"do_sample": 1}"#, "do_sample"),
        (r#"{"temperature": -0.1}"#, "temperature"),
        (r#"{"top_p": 0}"#, "top_p"),
        (r#"{"top_p": 1.5}"#, "top_p"),
        (r#"{"top_k": 0.5}"#, "top_k"),
        (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
    ] {
        let problems = GenerationConfig::parse(json.as_bytes()).expect_err(json);
        assert_eq!(problems.first()[0].key, at, "{problems}");
    }
    let good = GenerationConfig::parse(br#"{"eos_token_id": 2, "top_k": 50, "temperature": 0}"#).unwrap();
    assert_eq!((good.eos_ids.as_slice(), good.top_k, good.temperature), (&[2][..], Some(50), Some(0.0)));

    let spec = ModelSpec::parse(&config("deepseek-v3")).unwrap();
    assert_eq!(spec.eos_ids(Some(&good)).unwrap(), [2]);
    assert_eq!(spec.eos_ids(Some(&GenerationConfig::default())).unwrap(), [1]);
    assert_eq!(spec.eos_ids(None).unwrap(), [1]);
    let far = GenerationConfig::parse(br#"{"eos_token_id": [1, 129280]}"#).unwrap();
    assert!(spec.eos_ids(Some(&far)).unwrap_err().to_string().contains("129280"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0u64..300).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z_0-9é]{0,80}".prop_map(Value::from),
        prop::sample::select(vec![
            "yarn", "noaux_tc", "greedy", "softmax", "sigmoid", "fp8", "silu", "dense"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{1,8}", inner, 0..4)
                .prop_map(|map| Value::from(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever becomes of a few keys, the answer is a spec or a list of problems.
    #[test]
    fn mutations_never_panic(
        base in prop::sample::select(vec!["deepseek-v2", "deepseek-v3", "glm-4.7-flash"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_json(), any::<bool>()), 1..4),
    ) {
        let mut config: Map<String, Value> = serde_json::from_slice(&config(base)).unwrap();
        for (which, value, inside) in changes {
            let key = config.keys().nth(which.index(config.len())).unwrap().clone();
            match config.get_mut(&key) {
                Some(Value::Object(object)) if inside && !object.is_empty() => {
                    let key = object.keys().nth(which.index(object.len())).unwrap().clone();
                    object.insert(key, value);
                }
                _ => { config.insert(key, value); }
            }
        }
        match ModelSpec::parse(&serde_json::to_vec(&config).unwrap()) {
            Ok(spec) => prop_assert!(spec.mla.softmax_scale.is_finite() && spec.rope.inv_freq.iter().all(|f| f.is_finite())),
            Err(problems) => prop_assert!(problems.count() > 0 && !problems.to_string().is_empty()),
        }
    }

    #[test]
    fn broken_bytes_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), golden_index in 0..GOLDENS.len()) {
        let mut json = std::fs::read(golden(GOLDENS[golden_index]).join("config.json")).unwrap();
        let at = at.index(json.len());
        json[at] = byte;
        let _ = ModelSpec::parse(&json);
        json.truncate(at);
        prop_assert!(ModelSpec::parse(&json).is_err());
    }
}
