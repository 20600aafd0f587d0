//! Memory arithmetic against published numbers.

use crate::{config, golden};
use kernels::{CacheFormat, Precision};
use model::plan::{Assumptions, KvWidths, Parameters, Plan};
use model::spec::ModelSpec;
use model::tensors::expected;

fn spec(name: &str) -> ModelSpec {
    ModelSpec::parse(&config(name)).unwrap()
}

const BF16: Assumptions = Assumptions {
    weight_bytes: 2.0,
    cache: (CacheFormat::Plain, Precision::Bf16),
    memory_bytes: Some(80 << 30),
    bandwidth_bytes: Some(100e9),
    context_len: 163_840,
    devices: 1,
};

#[test]
fn parameters_are_those_of_the_tensors() {
    for name in ["deepseek-v2-lite", "deepseek-v2", "deepseek-v3", "kimi-k2", "moonlight", "glm-4.7-flash"] {
        let spec = spec(name);
        let tensors: usize = expected(&spec).map(|e| e.shape.iter().product::<usize>()).sum();
        assert_eq!(Parameters::of(&spec).total(), tensors as u64, "{name}");
    }
}

#[test]
fn parameters_of_published_models() {
    let total = |name| Plan::new(&spec(name), BF16).parameters.total();
    assert_eq!(total("deepseek-v2-lite"), 15_706_484_224);
    assert_eq!(total("deepseek-v3"), 671_026_419_200);
    // As papers and model cards round them, in billions.
    for (name, total, active) in [
        ("deepseek-v2-lite", 15.7, 2.4),
        ("deepseek-v2", 236.0, 21.0),
        ("deepseek-v3", 671.0, 37.0),
        ("kimi-k2", 1030.0, 32.0),
        ("glm-4.7-flash", 30.0, 3.6),
    ] {
        let plan = Plan::new(&spec(name), BF16);
        for (got, card) in [(plan.parameters.total(), total), (plan.active_parameters(), active)] {
            assert!((got as f64 / (card * 1e9) - 1.0).abs() < 0.05, "{name}: {got}, not {card} B");
        }
    }
}

#[test]
fn cache_of_deepseek_v3() {
    let widths = KvWidths::of(&spec("deepseek-v3"));
    assert_eq!(widths, KvWidths { mha: 32_768, gqa8: 2048, mqa: 256, mla: 576 });
    let few_heads = std::fs::read(golden("v3-tied-f32").join("config.json")).unwrap();
    let few_heads = KvWidths::of(&ModelSpec::parse(&few_heads).unwrap());
    assert_eq!((few_heads.mha, few_heads.gqa8), (4 * 40, 4 * 40));
    let plan = Plan::new(&spec("deepseek-v3"), BF16);
    assert_eq!(plan.kv_bytes_per_token(), 61 * 576 * 2);
    let fp8 = Assumptions { cache: (CacheFormat::Fp8, Precision::Bf16), ..BF16 };
    let fp8 = Plan::new(&spec("deepseek-v3"), fp8);
    assert_eq!(fp8.kv_bytes_per_token(), 61 * 656);
    assert!(fp8.to_string().contains("Cache in fp8\n"), "{fp8}");
    assert_eq!(plan.tokens_that_fit(), Some(0), "1.3 TB of weights do not fit into 80 GiB");
}

#[test]
fn what_fits_and_how_fast() {
    let plan = Plan::new(&spec("deepseek-v2-lite"), BF16);
    let left = (80u64 << 30) - 2 * 15_706_484_224;
    assert_eq!(plan.tokens_that_fit(), Some(left / (27 * 576 * 2)));
    assert_eq!(plan.sessions_that_fit(4096), Some(left / (27 * 576 * 2) / 4096));
    // One token reads its active parameters; 10,000 tokens of context add 31,104 bytes each.
    assert_eq!(plan.step_bytes(1, 0), 2.0 * plan.active_parameters() as f64);
    assert_eq!(plan.step_bytes(1, 10_000) - plan.step_bytes(1, 0), 311_040_000.0);
    assert_eq!(plan.decode_tokens_per_second(1, 0), Some(100e9 / plan.step_bytes(1, 0)));
    // A large batch touches every expert once.
    let all = 2.0 * (plan.parameters.total() - plan.parameters.embedding) as f64;
    assert!((plan.step_bytes(1000, 0) / all - 1.0).abs() < 1e-9);
    let unknown = Plan::new(
        &spec("deepseek-v2-lite"),
        Assumptions { memory_bytes: None, bandwidth_bytes: None, ..BF16 },
    );
    assert_eq!((unknown.tokens_that_fit(), unknown.decode_tokens_per_second(1, 0)), (None, None));
}

/// DeepSeek-V3 in FP8 on eight devices: an eighth of the experts on each, and everything else.
#[test]
fn experts_are_divided_among_devices() {
    let eight = Assumptions { weight_bytes: 1.0, devices: 8, ..BF16 };
    let (whole, plan) = (
        Plan::new(&spec("deepseek-v3"), Assumptions { weight_bytes: 1.0, ..BF16 }),
        Plan::new(&spec("deepseek-v3"), eight),
    );
    let p = plan.parameters;
    assert_eq!(plan.weight_bytes_per_device(), p.total() - p.routed_experts / 8 * 7);
    assert_eq!(plan.weight_bytes(), whole.weight_bytes());
    // Eight times as many sequences hit more experts, but no device reads more than its eighth.
    let all = (p.total() - p.embedding - p.routed_experts / 8 * 7) as f64;
    assert!((plan.step_bytes(1000, 0) / all - 1.0).abs() < 1e-9);
    let few = plan.step_bytes(1, 0);
    assert!(few < whole.step_bytes(8, 0) && few > whole.step_bytes(1, 0) - p.routed_experts as f64 / 8.0);
    // Experts that do not divide evenly: the largest share counts.
    let uneven = Plan::new(&spec("deepseek-v3"), Assumptions { devices: 96, ..eight });
    assert_eq!(uneven.weight_bytes_per_device(), p.total() - p.routed_experts / 256 * 253);
}

#[test]
fn the_largest_config_does_not_overflow() {
    let config = serde_json::json!({"model_type": "deepseek_v3", "vocab_size": 1 << 24, "hidden_size": 1 << 17,
        "num_hidden_layers": 1 << 10, "first_k_dense_replace": 1, "num_attention_heads": 8, "q_lora_rank": 1 << 20,
        "kv_lora_rank": 1 << 14, "qk_nope_head_dim": 1 << 12, "qk_rope_head_dim": 1 << 12, "v_head_dim": 1 << 12,
        "intermediate_size": 1 << 20, "moe_intermediate_size": 1 << 17, "n_routed_experts": 1 << 12,
        "n_shared_experts": 8, "num_experts_per_tok": 1 << 12, "n_group": 1, "topk_group": 1,
        "norm_topk_prob": true, "routed_scaling_factor": 1e6, "rms_norm_eps": 1e-6, "rope_theta": 1e15,
        "max_position_embeddings": 1 << 26});
    let spec = ModelSpec::parse(&serde_json::to_vec(&config).unwrap()).unwrap_or_else(|e| panic!("{e}"));
    let plan = Plan::new(&spec, BF16);
    assert!(plan.parameters.total() > 1 << 57 && plan.weight_bytes() > 1 << 58);
    assert!(!plan.to_string().is_empty());
}

#[test]
fn the_table() {
    insta::assert_snapshot!(Plan::new(&spec("deepseek-v2-lite"), BF16));
}
