//! Requests that share an engine: its cache, its queue, its time.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use common::{
    Gate, Reply, Scripted, Server, SharedScript, model_limits, options, post, read_reply, scripted, started,
    tokens,
};
use engine::request::{End, Event};
use engine::runner::Limits;
use engine::testing::FakeRunner;
use engine::{Busy, Options as EngineOptions};
use serde_json::{Value, json};
use server::Options;

const PATH: &str = "/v1/completions";

/// 21 tokens: five whole blocks of four, and one.
fn prompt() -> Vec<u32> {
    (10..31).collect()
}

fn cached(usage: &Value) -> u64 {
    usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

/// Sends requests, each as key and salt, and compares the tokens that they find in the cache.
async fn check_salts(keys: &[&str], asked: &[(&str, Option<&str>, u64)]) {
    let api_keys = keys.iter().collect();
    let runner = FakeRunner::new(model_limits());
    let server = Server::running(Options { api_keys, ..options() }, runner, EngineOptions::default()).await;
    for (i, (key, salt, expected)) in asked.iter().enumerate() {
        let body = json!({"prompt": prompt(), "max_tokens": 2, "cache_salt": salt});
        let key = format!("Authorization: Bearer {key}\r\nHost: x");
        let reply = server.send(&post(PATH, &body.to_string()).replace("Host: x", &key)).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(cached(&reply.json()["usage"]), *expected, "request {i}");
    }
}

#[tokio::test]
async fn keys_and_salts_part_the_cache() {
    let (a, b) = (Some("a"), Some("b"));
    check_salts(&[], &[("", None, 0), ("", None, 20), ("", a, 0), ("", a, 20), ("", b, 0), ("", None, 20)])
        .await;
    let asked = [
        ("one", None, 0),
        ("two", None, 0),
        ("one", None, 20),
        ("two", None, 20),
        ("one", a, 0),
        ("two", a, 0),
        ("one", a, 20),
        ("one", b, 0),
        ("one", None, 20),
    ];
    check_salts(&["one", "two"], &asked).await;
}

#[tokio::test]
async fn cached_tokens_count_each_prompt_once() {
    let server = Server::fake().await;
    let ask = json!({"prompt": [prompt(), prompt()], "max_tokens": 2, "n": 3, "temperature": 1});
    // The second prompt waits for what the first one computes.
    assert_eq!(cached(&server.post(PATH, &ask).await.json()["usage"]), 20);
    assert_eq!(cached(&server.post(PATH, &ask).await.json()["usage"]), 40);
    let mut streamed = ask.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let events = server.post(PATH, &streamed).await.events();
    assert_eq!(cached(&events.last().unwrap()["usage"]), 40);
    assert_eq!(server.metric("vllm:prompt_tokens_total").await, 3.0 * 42.0);
    assert_eq!(server.metric("vllm:prefix_cache_hits_total").await, 100.0);
    assert_eq!(server.metric("vllm:prefix_cache_queries_total").await, 3.0 * 42.0);
    assert!(server.metric("strait:prefix_cache_blocks").await >= 5.0);
    assert_eq!(server.metric("vllm:kv_cache_usage_perc").await, 0.0);
}

#[tokio::test]
async fn a_server_without_a_cache_computes_again() {
    let off = EngineOptions { prefix_cache: false, ..Default::default() };
    let server = Server::running(options(), FakeRunner::new(model_limits()), off).await;
    let ask = json!({"prompt": prompt(), "max_tokens": 2});
    let answers = [server.post(PATH, &ask).await.json(), server.post(PATH, &ask).await.json()];
    assert_eq!(answers[0]["choices"], answers[1]["choices"]);
    assert_eq!(answers.map(|answer| cached(&answer["usage"])), [0, 0]);
}

#[tokio::test]
async fn a_choice_does_not_depend_on_how_many_there_are() {
    let server = Server::fake().await;
    let ask = |n: usize| json!({"prompt": prompt(), "max_tokens": 9, "n": n, "temperature": 2, "seed": 4});
    let four = server.post(PATH, &ask(4)).await.json()["choices"].as_array().unwrap().clone();
    let texts: std::collections::HashSet<&str> = four.iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 4, "each draws from a stream of its own");
    for (i, choice) in four.iter().enumerate() {
        let alone = json!({"prompt": prompt(), "max_tokens": 9, "temperature": 2, "seed": 4 + i});
        assert_eq!(server.post(PATH, &alone).await.json()["choices"][0]["text"], choice["text"], "{i}");
    }
    for n in 1..4 {
        let fewer = server.post(PATH, &ask(n)).await.json()["choices"].as_array().unwrap().clone();
        assert_eq!(fewer, four[..n], "{n}");
    }
}

#[tokio::test]
async fn the_engine_is_told_what_past_answers_drew() {
    let engine = Arc::new(Scripted::new(|_, _| ()));
    let server = Server::with(options(), Box::new(SharedScript(engine.clone()))).await;
    let said = |role: &str, content: &str| json!({"role": role, "content": content});
    let messages = [said("user", "hi"), said("assistant", "hello there"), said("user", "bye")];
    server.post("/v1/chat/completions", &json!({"messages": messages})).await;
    server.post(PATH, &ask(&[3], 0)).await;
    let requests = engine.requests.lock().unwrap().clone();
    let [drawn] = &requests[0].drawn[..] else { panic!("{:?}", requests[0].drawn) };
    assert_eq!(common::tokenizer().decode(&requests[0].prompt[drawn.clone()], true), "hello there");
    assert!(requests[1].drawn.is_empty());
}

/// One place, whose first owner's second token waits at the gate: whatever comes meanwhile is queued.
struct Crowded {
    server: Server,
    gate: Gate,
    first: tokio::net::TcpStream,
    rows: mpsc::Receiver<Vec<engine::testing::Row>>,
}

impl Crowded {
    async fn new(bounds: EngineOptions) -> Self {
        let (gate, (sender, rows)) = (Gate::default(), mpsc::channel());
        let at_gate = gate.clone();
        let runner = FakeRunner::new(Limits { step_rows: 1, ..model_limits() }).report_to(sender);
        let runner = runner.edit(move |tokens, _| {
            if tokens.len() > 1 {
                at_gate.pass();
            }
        });
        let server = Server::running(options(), runner, bounds).await;
        let first = server.begin(PATH, &ask(&[10], 0)).await;
        server.until_metric("vllm:iteration_tokens_total_count", 2.0).await;
        Self { server, gate, first, rows }
    }

    async fn wait(&self, prompt: &[u32], priority: i32) -> tokio::net::TcpStream {
        let waiting = self.server.metric("vllm:num_requests_waiting").await;
        let client = self.server.begin(PATH, &ask(prompt, priority)).await;
        self.server.until_metric("vllm:num_requests_waiting", waiting + 1.0).await;
        client
    }

    /// All are served.
    async fn end(mut self, waiting: Vec<tokio::net::TcpStream>) -> Vec<u32> {
        self.gate.open();
        assert_eq!(read_reply(&mut self.first).await.status, 200);
        for mut client in waiting {
            assert_eq!(read_reply(&mut client).await.status, 200);
        }
        let mut order: Vec<u32> = self.rows.try_iter().flatten().map(|row| row.tokens[0]).collect();
        order.dedup();
        order
    }
}

fn ask(prompt: &[u32], priority: i32) -> Value {
    json!({"prompt": prompt, "max_tokens": 4, "priority": priority, "ignore_eos": true})
}

#[tokio::test]
async fn lower_priorities_run_earlier() {
    let crowded = Crowded::new(EngineOptions::default()).await;
    let mut waiting = Vec::new();
    for (prompt, priority) in [(11, 5), (12, 0), (13, -1), (14, i32::MIN), (15, 0), (16, i32::MAX)] {
        waiting.push(crowded.wait(&[prompt], priority).await);
    }
    assert_eq!(crowded.end(waiting).await, [10, 14, 13, 12, 15, 11, 16]);
}

fn assert_busy(reply: &Reply) {
    assert_eq!((reply.status, reply.error().0.as_str()), (429, "server_overloaded"), "{reply:?}");
    assert!((1..=60).contains(&reply.header("retry-after").unwrap().parse::<u64>().unwrap()));
}

#[tokio::test]
async fn a_queue_is_full_by_requests() {
    let crowded = Crowded::new(EngineOptions { max_waiting: 2, ..Default::default() }).await;
    // Many choices of one prompt have one place.
    let many = json!({"prompt": [11], "n": 8, "max_tokens": 4});
    let many = crowded.server.begin(PATH, &many).await;
    crowded.server.until_metric("vllm:num_requests_waiting", 8.0).await;
    assert_eq!(crowded.server.get("/ready").await.status, 200);
    let other = crowded.wait(&[12], 0).await;
    assert_eq!(crowded.server.get("/ready").await.status, 503);
    assert_busy(&crowded.server.post(PATH, &ask(&[13], 0)).await);
    crowded.end(vec![many, other]).await;
}

#[tokio::test]
async fn a_queue_is_full_by_tokens() {
    let crowded = Crowded::new(EngineOptions { max_waiting_tokens: 10, ..Default::default() }).await;
    let waiting = crowded.wait(&[11; 6], 0).await;
    assert_busy(&crowded.server.post(PATH, &ask(&[12; 5], 0)).await);
    let small = crowded.wait(&[12; 4], 0).await;
    assert_eq!(crowded.server.get("/ready").await.status, 503);
    crowded.end(vec![waiting, small]).await;
}

#[tokio::test]
async fn each_bound_tells_itself() {
    let busy = [
        (Busy::Requests { max_waiting: 7 }, "7 requests are waiting already"),
        (Busy::Requests { max_waiting: 1 }, "1 request is waiting already"),
        (Busy::Tokens { max_waiting_tokens: 900 }, "Prompts of 900 tokens may wait"),
    ];
    for (refusal, expected) in busy {
        let mut engine = Scripted::new(|_, _| ());
        engine.refusal = refusal;
        engine.room.store(0, Ordering::SeqCst);
        let server = Server::with(options(), Box::new(SharedScript(Arc::new(engine)))).await;
        let reply = server.post(PATH, &ask(&[3], 0)).await;
        assert_busy(&reply);
        assert!(reply.body.contains(expected), "{}", reply.body);
    }
}

#[tokio::test]
async fn a_request_has_its_time() {
    let limited = Options { request_timeout: Some(Duration::from_millis(50)), ..options() };
    let slow = FakeRunner::new(model_limits()).delay(Duration::from_millis(5));
    let server = Server::running(limited, slow, EngineOptions::default()).await;
    let long = json!({"prompt": [3], "max_tokens": 240, "ignore_eos": true});
    let reply = server.post(PATH, &long).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (408, "request_timeout"));
    assert_eq!(reply.header("x-should-retry"), Some("false"));
    assert!(reply.body.contains("0.05 s") && reply.body.contains("--request-timeout"), "{}", reply.body);
    server.until_metric("strait:expired_requests_total", 1.0).await;
    assert_eq!(server.metric("vllm:request_success_total{finished_reason=\"abort\"").await, 1.0);
    assert_eq!(server.metric("vllm:num_requests_running").await, 0.0);
}

#[tokio::test]
async fn a_stream_that_takes_too_long_ends_with_an_error() {
    let server = scripted(options(), |_, script| {
        script.send(started());
        script.send(tokens(&[300]));
        script.send(Event::End(End::Expired));
    })
    .await;
    let ask = json!({"prompt": [3], "max_tokens": 9, "stream": true});
    let events = server.post(PATH, &ask).await.events();
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(events[1]["error"]["code"], "request_timeout");
}

#[tokio::test]
async fn without_a_limit_there_is_no_deadline() {
    for (limit, expected) in [(None, false), (Some(Duration::from_secs(60)), true)] {
        let engine = Arc::new(Scripted::new(|_, _| ()));
        let limited = Options { request_timeout: limit, ..options() };
        let server = Server::with(limited, Box::new(SharedScript(engine.clone()))).await;
        server.post(PATH, &ask(&[3], 0)).await;
        assert_eq!(engine.requests.lock().unwrap()[0].deadline.is_some(), expected);
    }
}
