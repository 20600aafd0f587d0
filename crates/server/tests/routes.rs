//! Routes, transport and refusals.

mod common;

use common::{EOS, Server, VOCAB_SIZE, options, post, scripted};
use engine::testing::FakeRunner;
use serde_json::json;
use server::Options;
use std::time::Duration;

#[tokio::test]
async fn models_by_name() {
    let server = Server::fake().await;
    let list = server.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|m| m["id"].clone()).collect();
    assert_eq!(ids, ["org/fake", "alias"]);
    for path in ["/v1/models/org/fake", "/v1/models/org%2Ffake"] {
        let reply = server.get(path).await;
        assert_eq!((reply.status, &reply.json()["id"]), (200, &json!("org/fake")), "{path}");
        assert_eq!(reply.json()["max_model_len"], 252);
        assert_eq!(reply.json()["parent"], json!(null));
    }
    for path in ["/v1/models/none", "/v1/models/%ff"] {
        let reply = server.get(path).await;
        assert_eq!((reply.status, reply.error().0.as_str()), (404, "model_not_found"), "{path}");
    }
}

#[tokio::test]
async fn paths_and_methods() {
    let server = Server::fake().await;
    let cases = [
        ("GET", "/", 404, "unknown_url"),
        ("POST", "/v1/completions/", 404, "unknown_url"),
        ("POST", "/chat/completions", 404, "unknown_url"),
        ("POST", "/v1/embeddings", 404, "unsupported_endpoint"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("BREW", "/tokenize", 405, "method_not_allowed"),
    ];
    for (method, path, status, code) in cases {
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let reply = server.send(&request).await;
        assert_eq!((reply.status, reply.error().0.as_str()), (status, code), "{method} {path}");
        assert_eq!(reply.header("allow").is_some(), status == 405, "{method} {path}: {reply:?}");
        assert!(reply.header("x-request-id").is_some());
    }
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let server = Server::fake().await;
    for path in ["/health", "/ready", "/version", "/v1/models", "/v1/models/alias", "/metrics"] {
        let get = server.get(path).await;
        let head =
            server.send(&format!("HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
        assert_eq!((get.status, head.status, head.body.as_str()), (200, 200, ""), "{path}");
        assert_eq!(get.header("content-type"), head.header("content-type"), "{path}");
    }
}

#[tokio::test]
async fn bodies_that_are_refused() {
    let server = Server::with(
        Options { body_bytes_max: 1000, ..options() },
        Box::new(common::SharedScript(std::sync::Arc::new(common::Scripted::new(|_, _| ())))),
    )
    .await;
    let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    let cases = [
        (
            format!("{head}Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{{}}"),
            415,
            "unsupported_media_type",
        ),
        (
            format!("{head}Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{{}}"),
            415,
            "unsupported_media_type",
        ),
        // Refused by its announced length: the body never comes.
        (format!("{head}Content-Length: 1001\r\n\r\n"), 413, "request_too_large"),
        (format!("{head}Content-Length: 99999999999999999\r\n\r\n"), 413, "request_too_large"),
        (
            format!("{head}Transfer-Encoding: chunked\r\n\r\n3e9\r\n{}\r\n0\r\n\r\n", "x".repeat(1001)),
            413,
            "request_too_large",
        ),
        (format!("{head}Content-Length: 0\r\n\r\n"), 400, "invalid_json"),
        (format!("{head}Content-Length: 2\r\n\r\n[]"), 400, "invalid_json"),
        (
            format!("{head}Content-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n\r\n{{}}"),
            400,
            "missing_required_parameter",
        ),
        (
            format!("{head}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"),
            400,
            "missing_required_parameter",
        ),
    ];
    for (request, status, code) in cases {
        let reply = server.send(&request).await;
        assert_eq!((reply.status, reply.error().0.as_str()), (status, code), "{request}");
    }
    // What comes next is the rest of the body, not a request: the client is told, and the connection ends.
    let reply = server.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n").await;
    assert_eq!((reply.status, reply.header("connection")), (413, Some("close")));
}

#[tokio::test]
async fn bad_requests_name_the_field() {
    let bounds = engine::Options { max_waiting: 4, max_waiting_tokens: 9, ..Default::default() };
    let server = Server::running(options(), FakeRunner::new(common::model_limits()), bounds).await;
    let long = "a b ".repeat(300);
    let very_long = "a b ".repeat(30_000);
    let bans: serde_json::Map<_, _> = (0..VOCAB_SIZE).map(|id| (id.to_string(), json!(-100))).collect();
    let mut all_but_eos = bans.clone();
    all_but_eos.remove(&EOS.to_string());
    let cases = [
        ("/v1/completions", json!({"prompt": "a", "model": "other"}), 404, "model_not_found", Some("model")),
        ("/v1/completions", json!({"prompt": [1, 544]}), 400, "invalid_value", Some("prompt[1]")),
        (
            "/v1/completions",
            json!({"prompt": [1], "max_tokens": 252}),
            400,
            "context_length_exceeded",
            Some("prompt"),
        ),
        ("/v1/completions", json!({"prompt": vec![1; 252]}), 400, "context_length_exceeded", Some("prompt")),
        ("/v1/completions", json!({"prompt": long}), 400, "context_length_exceeded", Some("prompt")),
        ("/v1/completions", json!({"prompt": very_long}), 400, "context_length_exceeded", Some("prompt")),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": very_long}]}),
            400,
            "context_length_exceeded",
            Some("messages"),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": long}], "stream": true}),
            400,
            "context_length_exceeded",
            Some("messages"),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "min_tokens": 251}),
            400,
            "invalid_value",
            Some("min_tokens"),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [], "stream": true}),
            400,
            "invalid_value",
            Some("messages"),
        ),
        ("/v1/completions", json!({"prompt": vec![[3]; 5]}), 400, "invalid_value", Some("prompt")),
        ("/v1/completions", json!({"prompt": vec![[3; 5]; 2]}), 400, "invalid_value", Some("prompt")),
        (
            "/v1/completions",
            json!({"prompt": [3], "logit_bias": bans}),
            400,
            "invalid_value",
            Some("logit_bias"),
        ),
        (
            "/v1/completions",
            json!({"prompt": [3], "logit_bias": all_but_eos, "min_tokens": 1}),
            400,
            "invalid_value",
            Some("logit_bias"),
        ),
        ("/detokenize", json!({"tokens": [544]}), 400, "invalid_value", Some("tokens[0]")),
    ];
    for (path, body, status, code, param) in cases {
        let reply = server.post(path, &body).await;
        let (found, at) = reply.error();
        assert_eq!((reply.status, found.as_str(), at.as_deref()), (status, code, param), "{body}");
        if code == "context_length_exceeded" {
            assert!(reply.body.contains("maximum context length is 252 tokens"), "{}", reply.body);
            let uncounted = body.to_string().contains(&very_long);
            assert_eq!(reply.body.contains("at least"), uncounted, "{}", reply.body);
        }
    }
    let eos_alone = json!({"prompt": [3], "logit_bias": all_but_eos});
    assert_eq!(
        server.post("/v1/completions", &eos_alone).await.json()["choices"][0]["finish_reason"],
        "stop"
    );
    assert_eq!(server.metric("vllm:num_requests_waiting").await, 0.0);
}

#[tokio::test]
async fn keys() {
    let keys = ["secret-1", "secret-2"].into_iter().collect();
    let server = scripted(Options { api_keys: keys, ..options() }, |_, _| ()).await;
    let get = |path: &str, authorization: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}\r\n")
    };
    let cases = [
        ("/v1/models", "", 401),
        ("/v1/models", "Authorization: Bearer wrong\r\n", 401),
        ("/v1/models", "Authorization: Basic secret-1\r\n", 401),
        ("/v1/models", "Authorization: Bearer\r\n", 401),
        ("/v1/nothing", "", 401),
        ("/v1/models", "Authorization: Bearer secret-1\r\n", 200),
        ("/v1/models", "Authorization: bearer secret-2\r\n", 200),
        ("/health", "", 200),
        ("/metrics", "", 200),
        ("/version", "", 200),
    ];
    for (path, authorization, status) in cases {
        let reply = server.send(&get(path, authorization)).await;
        assert_eq!(reply.status, status, "{path} {authorization}");
        if status == 401 {
            assert_eq!(reply.error().0, "invalid_api_key");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        }
    }
}

#[tokio::test]
async fn request_ids() {
    let server = Server::fake().await;
    let with = |id: &str| {
        format!("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: {id}\r\n\r\n")
    };
    let reply = server.send(&with("my-id:7.A_b")).await;
    assert_eq!(reply.header("x-request-id"), Some("my-id:7.A_b"));
    for bad in ["<script>", "a b", &"x".repeat(129)] {
        let reply = server.send(&with(bad)).await;
        let id = reply.header("x-request-id").unwrap();
        assert!(id != bad && !id.is_empty(), "{id}");
    }
}

#[tokio::test]
async fn cross_origin() {
    let server = Server::with(
        Options { cors_origins: vec!["https://app.example".into()], ..options() },
        Box::new(common::SharedScript(std::sync::Arc::new(common::Scripted::new(|_, _| ())))),
    )
    .await;
    for (origin, allowed) in
        [("http://localhost:3000", true), ("https://app.example", true), ("https://evil.example", false)]
    {
        let preflight = format!(
            "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: x\r\nOrigin: {origin}\r\nConnection: close\r\n\
             Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n\r\n"
        );
        let reply = server.send(&preflight).await;
        assert_eq!(reply.status, 200);
        let expected = allowed.then_some(origin);
        assert_eq!(reply.header("access-control-allow-origin"), expected, "{origin}");
        let names = reply.header("access-control-allow-headers").unwrap_or_default();
        for name in ["authorization", "content-type", "x-request-id"] {
            assert!(names.contains(name), "{names}");
        }
    }
}

#[tokio::test]
async fn loading_then_ready() {
    let server = Server::loading(options()).await;
    server.app.set_progress(0.5);
    for path in ["/health", "/ready"] {
        let reply = server.get(path).await;
        assert_eq!(reply.status, 503);
        assert_eq!(reply.json(), json!({"status": "loading", "progress": 0.5}));
    }
    let reply = server.post("/v1/completions", &json!({"prompt": "a"})).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (503, "model_loading"));
    assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    assert_eq!(server.get("/version").await.status, 200);
    assert!(server.get("/metrics").await.body.contains("vllm:num_requests_running"));

    let engine = common::Scripted::new(|_, _| ());
    server.app.set_model(common::model(Box::new(common::SharedScript(std::sync::Arc::new(engine)))));
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.get("/ready").await.status, 200);
}

#[tokio::test]
async fn a_slow_body_is_cut() {
    let short = Options { read_timeout: Duration::from_millis(100), ..options() };
    let server = scripted(short, |_, _| ()).await;
    let reply = server
        .send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\nConnection: close\r\n\r\n{")
        .await;
    assert_eq!((reply.status, reply.error().0.as_str()), (408, "request_timeout"));
    // Headers that never end: the connection is closed.
    let mut client = tokio::net::TcpStream::connect(server.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut client, b"GET / HTTP/1.1\r\nHost:").await.unwrap();
    let mut rest = Vec::new();
    let closed = tokio::io::AsyncReadExt::read_to_end(&mut client, &mut rest);
    tokio::time::timeout(common::PATIENCE, closed).await.expect("cut in time").unwrap();
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = Server::fake().await;
    let first = post("/detokenize", "{").replace("Connection: close\r\n", "");
    let second = "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let mut client = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let both = format!("{first}{second}");
    tokio::io::AsyncWriteExt::write_all(&mut client, both.as_bytes()).await.unwrap();
    let mut text = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut client, &mut text).await.unwrap();
    let statuses: Vec<_> = text.match_indices("HTTP/1.1 ").map(|(at, _)| &text[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["400", "200"]);
}

struct Panics;

impl server::Engine for Panics {
    fn submit(&self, _: engine::request::Request) -> Result<Vec<engine::Events>, engine::Busy> {
        panic!("secret cause")
    }

    fn snapshot(&self) -> engine::Snapshot {
        engine::Snapshot { alive: true, ..Default::default() }
    }
}

#[tokio::test]
async fn a_panic_is_a_500_for_its_request_alone() {
    let server = Server::with(options(), Box::new(Panics)).await;
    let reply = server.post("/v1/completions", &json!({"prompt": "a"})).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (500, "internal_error"));
    assert!(!reply.body.contains("secret") && reply.header("x-request-id").is_some());
    assert_eq!(server.get("/health").await.status, 200);
}
