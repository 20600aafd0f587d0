//! Many clients for a while: nothing leaks, nothing fails that was not asked to, and who stays hears what
//! it would hear alone. 30 seconds; `SOAK_SECONDS=600` and release mode make it a real one.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::Server;
use serde_json::{Value, json};

const CLIENTS: usize = 64;
/// Distinct requests; their answers are taken one by one beforehand.
const REQUESTS: usize = 48;
/// Of ten clients, so many leave before the end.
const LEAVING: usize = 3;

/// A pool of about 2,700 tokens, where 32 sequences would like 20,000.
const SHAPE: [&str; 8] =
    ["--max-model-len", "1024", "--kv-cache-memory", "2MiB", "--max-num-seqs", "32", "--max-queue", "64"];

/// Prompts of 1 to 440 tokens, two thirds beginning with one of three shared prefixes; a quarter of the answers
/// are longer than the room that is kept for them.
fn request(index: usize) -> Value {
    let len = 1 + index * 97 % 440;
    let shared = if index.is_multiple_of(3) { 0 } else { 100 * (1 + index % 3) };
    let token =
        |i: usize| 20 + (i * 13 + i * i % 17 + if i < shared { index % 3 } else { 7 * index + 1 }) % 300;
    let prompt: Vec<usize> = (0..len).map(token).collect();
    let answer = if index % 4 == 1 { 550 } else { 1 + index * 31 % 60 };
    let sampling = [json!(0), json!(0.8)][index % 2].clone();
    json!({
        "prompt": prompt, "max_tokens": answer, "temperature": sampling, "seed": index,
        "ignore_eos": true, "stream": true, "return_token_ids": true, "priority": index % 2,
    })
}

/// The ids of a stream, at most `pieces` of it; the rest is not read.
fn ids(server: &Server, request: &Value, pieces: usize) -> Vec<u64> {
    let events = server.stream("/v1/completions", request).take(pieces);
    let pieces = events.map(|event| {
        assert!(event.get("error").is_none(), "{event}");
        event["choices"][0]["token_ids"].as_array().cloned().unwrap_or_default()
    });
    pieces.flatten().map(|id| id.as_u64().unwrap()).collect()
}

#[test]
fn nothing_leaks() {
    let seconds: u64 = std::env::var("SOAK_SECONDS").map_or(30, |text| text.parse().expect("whole seconds"));
    let server = Server::start(&SHAPE);
    let expected: Vec<Vec<u64>> = (0..REQUESTS).map(|i| ids(&server, &request(i), usize::MAX)).collect();
    let (start, length) = (Instant::now(), Duration::from_secs(seconds));
    let (turn, stayed, left) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let client = || {
        while start.elapsed() < length {
            let turn = turn.fetch_add(1, Relaxed);
            let index = turn * 7 % REQUESTS;
            if turn % 10 < LEAVING {
                let said = ids(&server, &request(index), turn % 13);
                assert!(expected[index].starts_with(&said), "request {index}, left early");
                left.fetch_add(1, Relaxed);
            } else {
                assert_eq!(ids(&server, &request(index), usize::MAX), expected[index], "request {index}");
                stayed.fetch_add(1, Relaxed);
            }
        }
    };
    let resident = || server.metric("process_resident_memory_bytes");
    let (warm, end) = std::thread::scope(|scope| {
        (0..CLIENTS).for_each(|_| drop(scope.spawn(client)));
        // Buffers have grown to their size, and the pool has been filled many times over.
        std::thread::sleep(length / 3);
        let warm = resident();
        std::thread::sleep((length * 29 / 30).saturating_sub(start.elapsed()));
        (warm, resident())
    });
    server.wait_until("idle", || server.metric("vllm:num_requests_running") == 0.0);
    for gauge in ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"] {
        assert_eq!(server.metric(gauge), 0.0, "{gauge}");
    }
    let count = |name: &str| server.metric(name);
    let (preempted, hits) = (count("vllm:num_preemptions_total"), count("vllm:prefix_cache_hits_total"));
    eprintln!(
        "{seconds} s, {CLIENTS} clients: {} answers, {} left early, {preempted} preemptions, {hits} cached tokens, \
         {} tokens said; resident {:.1} MiB after a third, {:.1} MiB at the end",
        stayed.load(Relaxed),
        left.load(Relaxed),
        count("vllm:generation_tokens_total"),
        warm / f64::from(1 << 20),
        end / f64::from(1 << 20),
    );
    assert!(preempted > 0.0 && hits > 0.0, "the pool was never short, or never shared");
    let errors = server.metric_with("vllm:request_success_total", "finished_reason=\"error\"");
    assert_eq!(errors, 0.0);
    assert!(end < 1.02 * warm + f64::from(1 << 20), "memory grows: {warm} bytes, then {end}");
    assert_eq!(ids(&server, &request(5), usize::MAX), expected[5], "and it answers as before");
}
