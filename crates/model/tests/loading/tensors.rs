//! Whether a checkpoint holds what its config asks for.

use crate::checkpoint::safetensors;
use crate::{GOLDENS, config, golden};
use kernels::DType;
use model::checkpoint::Checkpoint;
use model::problems::Problems;
use model::spec::ModelSpec;
use model::tensors::{check, expected, name};
use serde_json::json;

fn spec(changes: serde_json::Value) -> ModelSpec {
    let mut config = json!({"model_type": "deepseek_v3", "vocab_size": 6, "hidden_size": 4,
        "num_hidden_layers": 2, "first_k_dense_replace": 1, "num_attention_heads": 2, "q_lora_rank": 3,
        "kv_lora_rank": 5, "qk_nope_head_dim": 2, "qk_rope_head_dim": 2, "v_head_dim": 3,
        "intermediate_size": 8, "moe_intermediate_size": 2, "n_routed_experts": 2, "n_shared_experts": 1,
        "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": true,
        "routed_scaling_factor": 1.0, "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 64});
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    ModelSpec::parse(&serde_json::to_vec(&config).unwrap()).unwrap_or_else(|e| panic!("{e}"))
}

fn fp8() -> serde_json::Value {
    json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 3]}})
}

/// `(name, format, shape)`
type Stored = (String, &'static str, Vec<usize>);

/// What the model needs, in f32.
fn whole(spec: &ModelSpec) -> Vec<Stored> {
    expected(spec).map(|e| (e.name, "F32", e.shape)).collect()
}

fn checkpoint(tensors: &[Stored]) -> Checkpoint {
    let size = |format: &str| match format {
        "F32" | "I32" => 4,
        "F8_E4M3" | "U8" => 1,
        _ => 2,
    };
    let sized: Vec<_> = tensors
        .iter()
        .map(|(name, format, shape)| {
            (name.as_str(), *format, shape.as_slice(), shape.iter().product::<usize>() * size(format))
        })
        .collect();
    Checkpoint::from_bytes(safetensors(&sized).leak()).unwrap_or_else(|e| panic!("{e}"))
}

fn check_refused(
    spec: &ModelSpec,
    change: impl FnOnce(&mut Vec<Stored>),
    wanted: &[(&str, &str)],
) -> Problems {
    let mut tensors = whole(spec);
    change(&mut tensors);
    let problems = check(spec, &checkpoint(&tensors)).expect_err("refused");
    let named: Vec<&str> = problems.first().iter().map(|p| p.key.as_str()).collect();
    assert_eq!(named, wanted.iter().map(|(name, _)| *name).collect::<Vec<_>>(), "{problems}");
    for (problem, (_, says)) in problems.first().iter().zip(wanted) {
        assert!(problem.what.contains(says), "{problem}");
    }
    problems
}

fn set(tensors: &mut [Stored], name: &str, change: impl FnOnce(&mut Stored)) {
    change(tensors.iter_mut().find(|t| t.0 == name).unwrap());
}

#[test]
fn the_list_of_tensors() {
    let list = |spec: &ModelSpec| {
        expected(spec).map(|e| format!("{} {:?}", e.name, e.shape)).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(list(&spec(json!({}))));
    let v2 = spec(json!({"model_type": "deepseek_v2", "q_lora_rank": null, "tie_word_embeddings": true}));
    let v2 = list(&v2);
    for absent in ["q_a_proj", "q_b_proj", "q_a_layernorm", "e_score_correction_bias", "lm_head"] {
        assert!(!v2.contains(absent), "{v2}");
    }
    assert!(v2.contains("model.layers.0.self_attn.q_proj.weight [8, 4]"), "{v2}");
    let bare = list(&spec(json!({"n_shared_experts": null})));
    assert!(!bare.contains("shared_experts"), "{bare}");
}

#[test]
fn golden_checkpoints_are_complete() {
    for golden_name in GOLDENS {
        let config = std::fs::read(golden(golden_name).join("config.json")).unwrap();
        let spec = ModelSpec::parse(&config).unwrap();
        let checkpoint = Checkpoint::open(&golden(golden_name)).unwrap();
        let checked = check(&spec, &checkpoint).unwrap_or_else(|e| panic!("{golden_name}: {e}"));
        // v3-f32 holds the tensors of an MTP layer, v3-fp8 block scales: known, not worth a note.
        assert_eq!(checked.notes, Vec::<String>::new(), "{golden_name}");
        let kv_b = checked.weight(&name::layer(1, name::KV_B_PROJ));
        let scales = (golden_name == "v3-fp8").then_some(2 * 4);
        assert_eq!(kv_b.scales.map(<[u8]>::len), scales, "{golden_name}");
        assert_eq!(kv_b.dtype == DType::F8E4M3, scales.is_some());
    }
}

#[test]
fn missing_misshapen_and_unreadable_tensors_are_named_together() {
    let spec = spec(json!({}));
    let change = |tensors: &mut Vec<Stored>| {
        tensors.retain(|t| t.0 != "model.norm.weight" && t.0 != "lm_head.weight");
        set(tensors, "model.layers.0.self_attn.o_proj.weight", |t| t.2 = vec![6, 4]);
        set(tensors, "model.layers.1.mlp.experts.1.up_proj.weight", |t| t.1 = "U8");
        set(tensors, "model.layers.1.mlp.experts.1.down_proj.weight", |t| t.1 = "F8_E4M3");
    };
    check_refused(
        &spec,
        change,
        &[
            ("model.norm.weight", "missing"),
            ("lm_head.weight", "tie_word_embeddings"),
            ("model.layers.0.self_attn.o_proj.weight", "shape [6, 4], config.json asks for [4, 6]"),
            ("model.layers.1.mlp.experts.1.up_proj.weight", "U8, served are F32, F16, BF16"),
            ("model.layers.1.mlp.experts.1.down_proj.weight", "no quantization_config"),
        ],
    );
}

#[test]
fn a_long_list_is_cut_and_counted() {
    let spec = spec(json!({"n_routed_experts": 40}));
    let mut tensors = whole(&spec);
    tensors.retain(|t| !t.0.contains(".experts."));
    let problems = check(&spec, &checkpoint(&tensors)).unwrap_err();
    assert_eq!((problems.count(), problems.first().len()), (120, 20));
    let text = problems.to_string();
    assert!(text.starts_with("weights: 120 problems\n") && text.ends_with("\n  and 100 more"), "{text}");
    assert_eq!(text.lines().count(), 22);
}

#[test]
fn fp8_matrices_need_their_scales() {
    let spec = spec(fp8());
    let q_b = "model.layers.0.self_attn.q_b_proj.weight"; // [8, 3] in blocks of 4 x 3
    let with_scales = |format: &'static str, shape: &[usize]| {
        let scales = (name::scales(q_b), format, shape.to_vec());
        move |tensors: &mut Vec<Stored>| {
            set(tensors, q_b, |t| t.1 = "F8_E4M3");
            tensors.push(scales);
        }
    };
    let mut tensors = whole(&spec);
    with_scales("F32", &[2, 1])(&mut tensors);
    let good = checkpoint(&tensors);
    let checked = check(&spec, &good).unwrap();
    assert_eq!(checked.weight(q_b).scales.map(<[u8]>::len), Some(8));
    assert_eq!(checked.notes, Vec::<String>::new());

    let scales = "model.layers.0.self_attn.q_b_proj.weight_scale_inv";
    check_refused(&spec, |t| set(t, q_b, |t| t.1 = "F8_E4M3"), &[(scales, "missing")]);
    check_refused(&spec, with_scales("F32", &[1, 2]), &[(scales, "ask for [2, 1]")]);
    check_refused(&spec, with_scales("BF16", &[2, 1]), &[(scales, "must be F32")]);
    let embed = |t: &mut Vec<Stored>| set(t, name::EMBED, |t| t.1 = "F8_E4M3");
    check_refused(&spec, embed, &[(name::EMBED, "F8_E4M3, served are F32, F16, BF16")]);
}

#[test]
fn tensors_that_nothing_reads_are_noted() {
    let spec = spec(json!({"tie_word_embeddings": true, "num_nextn_predict_layers": 1}));
    let mut tensors = whole(&spec);
    let extra = |name: &str| (name.to_owned(), "F16", vec![1]);
    // Known to be idle.
    tensors.extend(
        ["model.layers.2.eh_proj.weight", "lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]
            .map(extra),
    );
    let silent = checkpoint(&tensors);
    assert_eq!(check(&spec, &silent).unwrap().notes, Vec::<String>::new());
    tensors.extend(["model.layers.1.self_attn.q_b_proj.bias", "vision.patch", "model.layers.x.y"].map(extra));
    let noted = checkpoint(&tensors);
    assert_eq!(
        check(&spec, &noted).unwrap().notes,
        ["3 tensors are not used: model.layers.1.self_attn.q_b_proj.bias, model.layers.x.y, vision.patch"]
    );
}

#[test]
fn the_tensors_of_a_published_model() {
    let spec = ModelSpec::parse(&config("deepseek-v2-lite")).unwrap();
    let numbers: usize = expected(&spec).map(|e| e.shape.iter().product::<usize>()).sum();
    assert_eq!(numbers, 15_706_484_224);
}
