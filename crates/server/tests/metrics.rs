//! What `/metrics` tells.

mod common;

use common::{Server, options};
use serde_json::json;
use server::Options;

#[tokio::test]
async fn series_are_there_from_the_start() {
    let server = Server::loading(options()).await;
    let reply = server.get("/metrics").await;
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let expected = [
        ("num_preemptions_total", "counter"),
        ("prefix_cache_queries_total", "counter"),
        ("prefix_cache_hits_total", "counter"),
        ("num_requests_running", "gauge"),
        ("num_requests_waiting", "gauge"),
        ("kv_cache_usage_perc", "gauge"),
        ("prompt_tokens_total", "counter"),
        ("generation_tokens_total", "counter"),
        ("request_success_total", "counter"),
        ("time_to_first_token_seconds", "histogram"),
        ("inter_token_latency_seconds", "histogram"),
        ("request_time_per_output_token_seconds", "histogram"),
        ("e2e_request_latency_seconds", "histogram"),
        ("request_queue_time_seconds", "histogram"),
        ("request_prefill_time_seconds", "histogram"),
        ("request_decode_time_seconds", "histogram"),
        ("request_inference_time_seconds", "histogram"),
        ("request_prompt_tokens", "histogram"),
        ("request_generation_tokens", "histogram"),
        ("request_params_n", "histogram"),
        ("request_params_max_tokens", "histogram"),
        ("iteration_tokens_total", "histogram"),
    ];
    for (name, kind) in expected {
        assert!(reply.body.contains(&format!("# TYPE vllm:{name} {kind}\n")), "{name}");
        assert!(reply.body.contains(&format!("# HELP vllm:{name} ")), "{name}");
    }
    let lines: Vec<&str> =
        reply.body.lines().filter(|l| l.starts_with("vllm:") || l.starts_with("strait:")).collect();
    let own = lines.iter().filter(|line| line.starts_with("strait:") && !line.contains("_mask_seconds"));
    assert_eq!(own.count(), 5, "{lines:?}");
    assert!(reply.body.contains("# TYPE strait:grammar_mask_seconds histogram\n"));
    for line in lines {
        assert!(line.contains("model_name=\"org/fake\""), "{line}");
        assert!(line.ends_with(" 0"), "{line}");
    }
    for reason in ["stop", "length", "tool_calls", "abort", "error"] {
        assert_eq!(
            server.metric(&format!("vllm:request_success_total{{finished_reason=\"{reason}\"")).await,
            0.0
        );
    }
}

#[tokio::test]
async fn what_is_off_has_no_series() {
    let server = Server::loading(Options { prefix_cache: false, ..options() }).await;
    assert!(!server.get("/metrics").await.body.contains("prefix_cache"));
}

#[tokio::test]
async fn series_add_up() {
    let server = Server::fake().await;
    let body = json!({"prompt": [3, 4], "max_tokens": 5, "n": 2, "ignore_eos": true});
    assert_eq!(server.post("/v1/completions", &body).await.status, 200);
    assert_eq!(server.post("/nothing", &body).await.status, 404);
    for (start, value) in [
        ("vllm:generation_tokens_total", 10.0),
        ("vllm:prompt_tokens_total", 2.0),
        ("vllm:request_success_total{finished_reason=\"length\"", 2.0),
        ("vllm:time_to_first_token_seconds_count", 2.0),
        ("vllm:inter_token_latency_seconds_count", 8.0),
        ("vllm:e2e_request_latency_seconds_count", 2.0),
        ("vllm:request_params_n_sum", 2.0),
        ("vllm:request_params_max_tokens_sum", 5.0),
        ("vllm:iteration_tokens_total_sum", 10.0),
        (
            "vllm:http_requests_total{method=\"POST\",model_name=\"org/fake\",route=\"/v1/completions\",status=\"200\"}",
            1.0,
        ),
        (
            "vllm:http_requests_total{method=\"POST\",model_name=\"org/fake\",route=\"other\",status=\"404\"}",
            1.0,
        ),
        ("vllm:build_info{", 1.0),
        ("vllm:cache_config_info{", 1.0),
    ] {
        assert_eq!(server.metric(start).await, value, "{start}");
    }
}
