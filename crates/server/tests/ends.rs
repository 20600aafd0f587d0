//! How requests end when something goes wrong: against an engine that does as it is told.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use common::{
    PATIENCE, Scripted, Server, SharedScript, events, finished, options, post, read_reply, scripted, started,
    tokens,
};
use engine::request::{End, Event, FinishReason};
use engine::testing::Script;
use serde_json::json;
use server::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATH: &str = "/v1/completions";

fn asked(stream: bool) -> serde_json::Value {
    json!({"prompt": [3], "max_tokens": 100, "stream": stream})
}

/// Sends a token every few milliseconds until the client is gone, then says so.
fn talk_until_cancelled(script: &Script, gone: &mpsc::Sender<()>) {
    script.send(started());
    for _ in 0..90 {
        if script.is_cancelled() {
            gone.send(()).unwrap();
            return;
        }
        script.send(tokens(&[300]));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Computes for long without a word.
fn brood_until_cancelled(script: &Script, gone: &mpsc::Sender<()>) {
    script.send(started());
    for _ in 0..500 {
        if script.is_cancelled() {
            gone.send(()).unwrap();
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test]
async fn a_full_queue_is_429() {
    let engine = Arc::new(Scripted::new(|_, script| {
        script.send(started());
        script.send(finished(FinishReason::Length));
    }));
    engine.room.store(2, Ordering::SeqCst);
    let server = Server::with(options(), Box::new(SharedScript(engine.clone()))).await;
    let reply = server.post(PATH, &json!({"prompt": [[3], [4], [5]], "stream": true})).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (429, "server_overloaded"));
    assert_eq!(reply.json()["error"]["type"], "rate_limit_error");
    assert!((1..=60).contains(&reply.header("retry-after").unwrap().parse::<u64>().unwrap()));
    engine.room.store(1, Ordering::SeqCst);
    assert_eq!(server.post(PATH, &asked(false)).await.status, 200);
}

#[tokio::test]
async fn a_refused_request_counts_as_no_sequence() {
    let engine = Arc::new(Scripted::new(|_, _| {}));
    engine.room.store(0, Ordering::SeqCst);
    let server = Server::with(options(), Box::new(SharedScript(engine))).await;
    for _ in 0..3 {
        assert_eq!(server.post(PATH, &asked(false)).await.status, 429);
    }
    for series in ["e2e_request_latency_seconds_count", "request_params_n_count"] {
        assert_eq!(server.metric(&format!("vllm:{series}{{")).await, 0.0, "{series}");
    }
    assert_eq!(server.metric("vllm:request_success_total{finished_reason=\"abort\"").await, 0.0);
}

#[tokio::test]
async fn a_fault_before_the_first_token_is_a_status() {
    let cases = [
        (End::Failed("secret cause".into()), 500, "internal_error", None),
        (End::Rejected("the pool is too small".into()), 400, "context_length_exceeded", Some("prompt")),
    ];
    for (end, status, code, param) in cases {
        let server = scripted(options(), move |_, script| {
            script.send(Event::End(end.clone()));
        })
        .await;
        for stream in [false, true] {
            let reply = server.post(PATH, &asked(stream)).await;
            let (found, at) = reply.error();
            assert_eq!((reply.status, found.as_str(), at.as_deref()), (status, code, param));
            assert!(!reply.body.contains("secret"), "{}", reply.body);
        }
        assert_eq!(server.metric("vllm:request_success_total{finished_reason=\"error\"").await, 2.0);
    }
}

#[tokio::test]
async fn a_fault_in_a_stream_is_its_last_event() {
    for dies in [false, true] {
        let server = scripted(options(), move |_, script| {
            script.send(started());
            script.send(tokens(&[300]));
            if !dies {
                script.send(Event::End(End::Failed("secret cause".into())));
            } // else the script is dropped, as when the engine's thread ends
        })
        .await;
        let events = server.post(PATH, &asked(true)).await.events();
        assert_eq!(events.len(), 2, "{events:?}");
        let error = &events[1]["error"];
        assert_eq!((&error["code"], &error["type"]), (&json!("internal_error"), &json!("server_error")));
        assert_eq!(server.post(PATH, &asked(false)).await.status, 500);
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels() {
    for stream in [true, false] {
        for talks in [true, false] {
            let (gone, heard) = mpsc::channel();
            let server = scripted(options(), move |_, script| match talks {
                true => talk_until_cancelled(&script, &gone),
                false => brood_until_cancelled(&script, &gone),
            })
            .await;
            let mut client = TcpStream::connect(server.address).await.unwrap();
            client.write_all(post(PATH, &asked(stream).to_string()).as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(client);
            let heard = tokio::task::spawn_blocking(move || heard.recv_timeout(Duration::from_secs(3)));
            heard.await.unwrap().unwrap_or_else(|_| panic!("not cancelled: {stream} {talks}"));
            server.until_metric("vllm:request_success_total{finished_reason=\"abort\"", 1.0).await;
        }
    }
}

#[tokio::test]
async fn a_client_that_only_stops_sending_is_answered() {
    for stream in [true, false] {
        let server = scripted(options(), |_, script| {
            script.send(started());
            std::thread::sleep(Duration::from_millis(300));
            script.send(tokens(&[300, 301]));
            script.send(finished(FinishReason::Length));
        })
        .await;
        let mut client = TcpStream::connect(server.address).await.unwrap();
        let request = post(PATH, &asked(stream).to_string()).replace("Connection: close\r\n", "");
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let reply = read_reply(&mut client).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(reply.body.contains("length"), "{reply:?}");
    }
}

#[tokio::test]
async fn a_body_that_ends_early_is_refused() {
    let server = Server::with(options(), Box::new(SharedScript(Arc::new(Scripted::new(|_, _| {}))))).await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let request = post(PATH, &asked(false).to_string());
    client.write_all(&request.as_bytes()[..request.len() - 5]).await.unwrap();
    client.shutdown().await.unwrap();
    let reply = read_reply(&mut client).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (400, "invalid_json"));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    let (gone, heard) = mpsc::channel();
    let slow = Options { stall_timeout: Duration::from_millis(200), ..options() };
    let server = scripted(slow, move |_, script| {
        script.send(started());
        // Much text: more than the buffers between here and the client hold.
        let logprobs = engine::request::Logprobs {
            chosen: -1.0,
            rank: 1,
            top: (0..20).map(|i| (300 + i, -1.0)).collect(),
        };
        for _ in 0..240 {
            let token = engine::request::Token { id: 300, logprobs: Some(logprobs.clone()) };
            script.send(Event::Tokens(vec![token; 200]));
            std::thread::sleep(Duration::from_millis(2));
        }
        for _ in 0..300 {
            if script.is_cancelled() {
                gone.send(()).unwrap();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    })
    .await;
    let body = json!({"prompt": [3], "max_tokens": 249, "stream": true, "logprobs": 20});
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(post(PATH, &body.to_string()).as_bytes()).await.unwrap();
    let heard = tokio::task::spawn_blocking(move || heard.recv_timeout(Duration::from_secs(5)));
    heard.await.unwrap().expect("cancelled");
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn silence_is_filled_with_comments() {
    let short = Options { keep_alive: Duration::from_millis(50), ..options() };
    let server = scripted(short, |_, script| {
        script.send(started());
        std::thread::sleep(Duration::from_millis(400));
        script.send(tokens(&[300]));
        script.send(finished(FinishReason::Length));
    })
    .await;
    let reply = server.post(PATH, &asked(true)).await;
    assert!(reply.body.matches(": keep-alive\n\n").count() >= 2, "{}", reply.body);
    assert_eq!(events(&reply.body).len(), 2);
}

#[tokio::test]
async fn a_connection_outlives_a_stream() {
    let server = scripted(options(), |_, script| {
        script.send(started());
        script.send(tokens(&[300]));
        script.send(finished(FinishReason::Length));
    })
    .await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let first = post(PATH, &asked(true).to_string()).replace("Connection: close\r\n", "");
    client.write_all(first.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"0\r\n\r\n") {
        assert_ne!(timeout(PATIENCE, client.read_buf(&mut text)).await.unwrap().unwrap(), 0);
    }
    client.write_all(post(PATH, &asked(false).to_string()).as_bytes()).await.unwrap();
    assert_eq!(read_reply(&mut client).await.status, 200);
}

#[tokio::test]
async fn a_special_token_ids_text_is_not_shown_and_unknown_ids_have_none() {
    let server = scripted(options(), |_, script| {
        script.send(started());
        script.send(tokens(&[0, 543, 300]));
        script.send(finished(FinishReason::Length));
    })
    .await;
    let reply = server.post(PATH, &json!({"prompt": [3], "return_token_ids": true})).await.json();
    let expected = String::from_utf8_lossy(&common::tokenizer().token_bytes(300)).into_owned();
    assert_eq!(reply["choices"][0]["text"], expected);
    assert_eq!(reply["choices"][0]["token_ids"], json!([0, 543, 300]));
}

#[tokio::test]
async fn draining_lets_running_requests_finish() {
    let mut server = scripted(options(), |_, script| {
        script.send(started());
        script.send(tokens(&[300]));
        std::thread::sleep(Duration::from_millis(400));
        script.send(tokens(&[301]));
        script.send(finished(FinishReason::Length));
    })
    .await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(post(PATH, &asked(true).to_string()).as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.stop();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let refused = server.post(PATH, &asked(false)).await;
    assert_eq!((refused.status, refused.error().0.as_str()), (503, "shutting_down"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(server.get("/ready").await.status, 503);
    assert_eq!(server.get("/health").await.status, 200);
    let reply = read_reply(&mut client).await;
    assert_eq!(reply.events().len(), 3, "{reply:?}");
    timeout(PATIENCE, server.task).await.expect("run returns").unwrap().unwrap();
}

#[tokio::test]
async fn what_outlasts_the_grace_period_ends_with_an_error() {
    let (gone, heard) = mpsc::channel();
    let short = Options { grace: Duration::from_millis(100), ..options() };
    let mut server = scripted(short, move |_, script| talk_until_cancelled(&script, &gone)).await;
    let mut streaming = TcpStream::connect(server.address).await.unwrap();
    streaming.write_all(post(PATH, &asked(true).to_string()).as_bytes()).await.unwrap();
    let mut whole = TcpStream::connect(server.address).await.unwrap();
    whole.write_all(post(PATH, &asked(false).to_string()).as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.stop();
    let events = read_reply(&mut streaming).await.events();
    assert_eq!(events.last().unwrap()["error"]["code"], "shutting_down");
    let reply = read_reply(&mut whole).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (503, "shutting_down"));
    timeout(PATIENCE, server.task).await.expect("run returns").unwrap().unwrap();
    heard.recv_timeout(PATIENCE).expect("cancelled");
}

#[tokio::test]
async fn what_is_asked_reaches_the_engine() {
    let engine = Arc::new(Scripted::new(|_, script| {
        script.send(Event::Started { cached_tokens: 64 });
        script.send(finished(FinishReason::Length));
    }));
    let server = Server::with(options(), Box::new(SharedScript(engine.clone()))).await;
    let body = json!({"prompt": [[3, 4], [5]], "n": 2, "max_tokens": 7, "min_tokens": 2, "temperature": 1e-6,
        "top_p": 0.5, "top_k": 100_000, "min_p": 0.25, "presence_penalty": 1, "frequency_penalty": -1,
        "repetition_penalty": 1.5, "logit_bias": {"9": -100}, "seed": -1, "stop_token_ids": [9, 1],
        "echo": true, "logprobs": 3});
    let reply = server.post(PATH, &body).await;
    assert_eq!(reply.status, 200);
    // Two prompts; what their second choices found in the cache does not count again.
    assert_eq!(reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"], 128);
    let requests = engine.requests.lock().unwrap().clone();
    assert_eq!(requests.len(), 2);
    for (request, prompt) in requests.into_iter().zip([vec![3, 4], vec![5]]) {
        let sampling = engine::request::Sampling {
            temperature: 0.0,
            top_p: 0.5,
            top_k: 0,
            min_p: 0.25,
            presence_penalty: 1.0,
            frequency_penalty: -1.0,
            repetition_penalty: 1.5,
            logit_bias: vec![(9, -100.0)],
            seed: Some(u64::MAX),
        };
        let expected = engine::request::Request {
            prompt,
            n: 2,
            max_new_tokens: 7,
            min_new_tokens: 2,
            stop_ids: vec![1, 9],
            sampling,
            logprobs: Some(3),
            prompt_logprobs: Some(3),
            ..Default::default()
        };
        assert_eq!(request, expected);
    }
}
