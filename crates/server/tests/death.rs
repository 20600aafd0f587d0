//! An engine that can serve nobody any more: all hear of it, and the server ends.

mod common;

use std::time::Duration;

use common::{Gate, PATIENCE, Reply, Server, model_limits, options, post, read_reply};
use engine::testing::FakeRunner;
use serde_json::{Value, json};
use server::{EngineFault, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

const PATH: &str = "/v1/completions";

fn asked(stream: bool) -> Value {
    json!({"prompt": [3], "max_tokens": 100, "stream": stream, "ignore_eos": true})
}

/// A server whose second step waits at the gate, and panics behind it; and a stream that has had its first
/// token.
async fn at_the_gate() -> (Server, Gate, TcpStream, Vec<u8>) {
    let gate = Gate::default();
    let at_gate = gate.clone();
    let runner = FakeRunner::new(model_limits()).edit(move |tokens, _| {
        if tokens.len() > 1 {
            at_gate.pass();
            panic!("the fake model panics, as told");
        }
    });
    let patient = Options { last_words: PATIENCE, read_timeout: PATIENCE, ..options() };
    let server = Server::running(patient, runner, engine::Options::default()).await;
    let mut stream = server.begin(PATH, &asked(true)).await;
    let mut head = Vec::new();
    while !head.windows(6).any(|bytes| bytes == b"data: ") {
        assert_ne!(timeout(PATIENCE, stream.read_buf(&mut head)).await.unwrap().unwrap(), 0);
    }
    (server, gate, stream, head)
}

/// A request without its last byte: as long as somebody has an answer to come, the port is open.
async fn hold_open(server: &Server) -> TcpStream {
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let request = post(PATH, &asked(false).to_string());
    client.write_all(&request.as_bytes()[..request.len() - 1]).await.unwrap();
    client
}

async fn end_of(mut stream: TcpStream, mut head: Vec<u8>) -> Reply {
    timeout(PATIENCE, stream.read_to_end(&mut head)).await.expect("it ends").unwrap();
    common::parse_reply(&String::from_utf8(head).unwrap())
}

fn assert_dead(reply: &Reply) {
    assert_eq!((reply.status, reply.error().0.as_str()), (503, "engine_dead"), "{reply:?}");
    assert!(reply.header("retry-after").is_some());
}

#[tokio::test]
async fn a_dead_engine_ends_everything() {
    let (server, gate, stream, head) = at_the_gate().await;
    let mut whole = server.begin(PATH, &asked(false)).await;
    server.until_metric("vllm:num_requests_waiting", 1.0).await;
    let mut slow = hold_open(&server).await;
    gate.open();
    let events = end_of(stream, head).await.events();
    assert_eq!(events.last().unwrap()["error"]["code"], "engine_dead", "{events:?}");
    assert_dead(&read_reply(&mut whole).await);
    for path in ["/health", "/ready"] {
        let reply = server.get(path).await;
        assert_eq!((reply.status, &reply.json()["status"]), (503, &json!("engine_dead")), "{path}");
    }
    assert_dead(&server.post(PATH, &asked(true)).await);
    assert_eq!(server.metric("vllm:request_success_total{finished_reason=\"error\"").await, 2.0);
    assert_eq!(server.metric("vllm:request_success_total{finished_reason=\"abort\"").await, 0.0);
    slow.write_all(b"}").await.unwrap();
    assert_dead(&read_reply(&mut slow).await);
    let ended = timeout(PATIENCE, server.task).await.expect("run returns").unwrap();
    assert_eq!(ended, Err(EngineFault::Dead));
}

#[tokio::test]
async fn a_stuck_engine_ends_everything() {
    let gate = Gate::default();
    let at_gate = gate.clone();
    let runner = FakeRunner::new(model_limits()).edit(move |tokens, _| {
        if tokens.len() > 1 {
            at_gate.pass();
        }
    });
    let step_timeout = Duration::from_millis(500);
    let impatient = Options { step_timeout, last_words: PATIENCE, read_timeout: PATIENCE, ..options() };
    let server = Server::running(impatient, runner, engine::Options::default()).await;
    let slow = hold_open(&server).await;
    let mut stream = server.begin(PATH, &asked(true)).await;
    let whole = server.post(PATH, &asked(false)).await;
    assert_dead(&whole);
    let stream = read_reply(&mut stream).await;
    match stream.status {
        200 => assert_eq!(stream.events().last().unwrap()["error"]["code"], "engine_dead"),
        _ => assert_dead(&stream), // even its first token came too late
    }
    assert_eq!(server.get("/health").await.status, 503);
    assert!(server.metric("vllm:request_success_total{finished_reason=\"error\"").await >= 1.0);
    assert_eq!(server.metric("vllm:request_success_total{finished_reason=\"abort\"").await, 0.0);
    drop(slow);
    let ended = timeout(PATIENCE, server.task).await.expect("run does not wait for the engine").unwrap();
    assert_eq!(ended, Err(EngineFault::Stuck(step_timeout)));
    gate.open();
}

#[tokio::test]
async fn a_first_step_may_be_the_one_that_is_stuck() {
    let gate = Gate::default();
    let at_gate = gate.clone();
    let runner = FakeRunner::new(model_limits()).edit(move |_, _| at_gate.pass());
    let impatient = Options { step_timeout: Duration::from_millis(300), ..options() };
    let server = Server::running(impatient, runner, engine::Options::default()).await;
    assert_dead(&server.post(PATH, &asked(false)).await);
    assert!(matches!(server.task.await.unwrap(), Err(EngineFault::Stuck(_))));
    gate.open();
}

#[tokio::test]
async fn a_client_that_reads_slowly_does_not_make_the_engine_stuck() {
    let step_timeout = Duration::from_secs(1);
    let patient = Options { step_timeout, stall_timeout: PATIENCE, ..options() };
    let runner = FakeRunner::new(model_limits());
    let server = Server::running(patient, runner, engine::Options::default()).await;
    // More than the sockets between server and client hold.
    let long = json!({"prompt": [3], "max_tokens": 200, "n": 96, "stream": true, "ignore_eos": true, "logprobs": 20});
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(server.address).await.unwrap();
    client.write_all(post(PATH, &long.to_string()).as_bytes()).await.unwrap();
    timeout(PATIENCE, client.readable()).await.unwrap().unwrap();
    for gauge in ["vllm:num_requests_waiting", "vllm:num_requests_running"] {
        server.until_metric(gauge, 0.0).await;
    }
    tokio::time::sleep(2 * step_timeout).await;
    assert_eq!(server.get("/health").await.status, 200);
    assert!(!server.task.is_finished());
    let mut answer = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut answer)).await.expect("it can still be read").unwrap();
    let events = common::parse_reply(&String::from_utf8(answer).unwrap()).events();
    let ended = events.iter().filter(|event| event["choices"][0]["finish_reason"] == "length");
    assert_eq!(ended.count(), 96);
}
