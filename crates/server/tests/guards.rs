//! Who may ask, how often and how much; and clients that do not behave. After each of them a good one is served.

mod common;

use std::num::NonZeroU32;
use std::time::Duration;

use common::{PATIENCE, Reply, Server, options, post, read_reply};
use engine::testing::FakeRunner;
use serde_json::json;
use server::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATH: &str = "/v1/completions";

async fn server(change: impl FnOnce(&mut Options)) -> Server {
    let mut options = options();
    change(&mut options);
    Server::running(options, FakeRunner::new(common::model_limits()), engine::Options::default()).await
}

fn good() -> String {
    post(PATH, r#"{"prompt": [3], "max_tokens": 2}"#)
}

async fn check_good(server: &Server, after: &str) {
    let reply = server.send(&good()).await;
    assert_eq!(reply.status, 200, "after {after}: {reply:?}");
}

/// The request with one more header.
fn with(request: &str, header: &str) -> String {
    request.replacen("Host: x\r\n", &format!("Host: x\r\n{header}\r\n"), 1)
}

/// Every path that has a route, as its template is written, and a path that fits it.
fn routes() -> Vec<(&'static str, String)> {
    let source = include_str!("../src/routes.rs");
    let templates = source.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    templates.map(|template| (template, template.replace("{*id}", "some/thing"))).collect()
}

#[tokio::test]
async fn no_route_forgets_the_key() {
    let server = server(|options| options.api_keys = ["secret-1", "secret-2"].into_iter().collect()).await;
    let open = ["/health", "/ready", "/version", "/metrics", "/docs", "/openapi.json"];
    let routes = routes();
    assert!(
        routes.len() > 14 && routes.iter().any(|(_, path)| path == "/v1/models/some/thing"),
        "{routes:?}"
    );
    let unknown =
        ["/", "/v1", "/v2/models", "/nothing", "/health/", "/%68ealth", "//health", "/metrics/../v1/models"];
    let paths = routes.iter().map(|(_, path)| path.as_str()).chain(unknown);
    for path in paths.filter(|path| !open.contains(path)) {
        for method in ["GET", "POST", "HEAD", "PUT", "DELETE", "BREW"] {
            let ask = |key: &str| {
                format!(
                    "{method} {path} HTTP/1.1\r\nHost: x\r\n{key}Content-Length: 0\r\nConnection: close\r\n\r\n"
                )
            };
            let keyless = server.send(&ask("")).await;
            assert_eq!(keyless.status, 401, "{method} {path}");
            assert_eq!(keyless.header("www-authenticate"), Some("Bearer"), "{method} {path}");
            assert_eq!(
                server.send(&ask("Authorization: Bearer secret-3\r\n")).await.status,
                401,
                "{method} {path}"
            );
            assert_ne!(
                server.send(&ask("Authorization: Bearer secret-2\r\n")).await.status,
                401,
                "{method} {path}"
            );
        }
    }
    for path in open {
        assert_ne!(server.get(path).await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn anthropics_header_is_read_on_its_routes_alone() {
    let server = server(|options| options.api_keys = ["k"].into_iter().collect()).await;
    let body = r#"{"max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}"#;
    for (path, header, status) in [
        ("/v1/messages", "x-api-key: k", 200),
        ("/v1/messages/count_tokens", "X-Api-Key: k", 200),
        ("/v1/messages", "Authorization: Bearer k", 200),
        ("/v1/messages", "x-api-key: wrong\r\nAuthorization: Bearer k", 200),
        ("/v1/messages", "x-api-key: wrong", 401),
        ("/v1/messages", "x-api-key:", 401),
        ("/v1/chat/completions", "x-api-key: k", 401),
        ("/v1/messagesx", "x-api-key: k", 401),
    ] {
        let reply = server.send(&with(&post(path, body), header)).await;
        assert_eq!(reply.status, status, "{path} {header}: {reply:?}");
        if path == "/v1/messages" && status == 401 {
            assert_eq!(reply.json()["error"]["type"], "authentication_error");
            assert!(reply.body.contains("x-api-key"), "{}", reply.body);
        }
    }
}

#[tokio::test]
async fn each_key_has_its_own_limit() {
    let server = server(|options| {
        options.api_keys = ["a", "b"].into_iter().collect();
        options.rate_limit = NonZeroU32::new(2);
    })
    .await;
    // The body of a request that is over the limit never comes, and none of it is waited for.
    let bodiless =
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\nConnection: close\r\n\r\n";
    let get = "GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let unknown = "GET /v1/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for (request, key, status, remaining) in [
        (get, "wrong", 401, None),
        (get, "a", 200, Some("1")),
        (unknown, "a", 404, Some("0")),
        (bodiless, "a", 429, Some("0")),
        (get, "a", 429, Some("0")),
        (get, "b", 200, Some("1")),
    ] {
        let reply = server.send(&with(request, &format!("Authorization: Bearer {key}"))).await;
        assert_eq!(reply.status, status, "{request} {key}: {reply:?}");
        assert_eq!(reply.header("x-ratelimit-remaining-requests"), remaining, "{request} {key}");
        assert_eq!(reply.header("x-ratelimit-limit-requests"), remaining.map(|_| "2"), "{request} {key}");
        if let Some(reset) = reply.header("x-ratelimit-reset-requests") {
            let reset: u64 = reset.strip_suffix('s').unwrap().parse().unwrap();
            assert!((1..=90).contains(&reset), "{reset}");
        }
        if status == 429 {
            assert_eq!(reply.error().0, "rate_limit_exceeded");
            assert_eq!(reply.json()["error"]["type"], "rate_limit_error");
            let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=30).contains(&wait), "{wait}");
        }
    }
    // What is open to all is neither counted nor refused.
    for path in ["/health", "/ready", "/version", "/metrics"] {
        let reply = server.get(path).await;
        assert_eq!((reply.status, reply.header("x-ratelimit-limit-requests")), (200, None), "{path}");
    }
}

#[tokio::test]
async fn without_keys_each_address_has_its_limit() {
    let server = server(|options| options.rate_limit = NonZeroU32::new(1)).await;
    check_good(&server, "the start").await;
    let body = r#"{"max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}"#;
    let spoofed = with(&post("/v1/messages", body), "X-Forwarded-For: 10.9.8.7\r\nAuthorization: Bearer new");
    let reply = server.send(&spoofed).await;
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (429, &json!("rate_limit_error")));
    let other = tokio::net::TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = other.connect(server.address).await.unwrap();
    other.write_all(good().as_bytes()).await.unwrap();
    assert_eq!(read_reply(&mut other).await.status, 200);
}

#[tokio::test]
async fn connections_beyond_the_bound_wait() {
    let server = server(|options| options.connections_max = 2).await;
    let mut idle = vec![TcpStream::connect(server.address).await.unwrap()];
    // An answer on the second shows that both are taken.
    idle.push(TcpStream::connect(server.address).await.unwrap());
    idle[1].write_all(good().replace("Connection: close\r\n", "").as_bytes()).await.unwrap();
    assert_ne!(timeout(PATIENCE, idle[1].read(&mut [0; 4096])).await.unwrap().unwrap(), 0);
    let mut third = TcpStream::connect(server.address).await.unwrap();
    third.write_all(good().as_bytes()).await.unwrap();
    let early = timeout(Duration::from_millis(200), third.read(&mut [0; 1])).await;
    assert!(early.is_err(), "a third connection was taken");
    drop(idle.pop());
    assert_eq!(read_reply(&mut third).await.status, 200);
    check_good(&server, "a full house").await;
}

#[tokio::test]
async fn tokenize_refuses_what_is_far_beyond_the_context() {
    let server = server(|_| ()).await;
    let text = |n: usize| "a b ".repeat(n / 4);
    for (body, param) in [
        (json!({"prompt": text((1 << 20) + 4)}), "prompt"),
        (json!({"messages": [{"role": "user", "content": text(3 << 20)}]}), "messages"),
    ] {
        let reply = server.post("/tokenize", &body).await;
        assert_eq!((reply.status, reply.error()), (400, ("invalid_value".into(), Some(param.into()))));
        assert!(reply.body.contains("1048576 bytes"), "{}", reply.body);
        check_good(&server, param).await;
    }
    // More than the context is fine.
    let reply = server.post("/tokenize", &json!({"prompt": text(4000)})).await;
    assert!(reply.json()["count"].as_u64().unwrap() > 252, "{reply:?}");
}

/// What no error may tell of the program or the machine.
fn check_discreet(reply: &str) {
    for secret in [
        "crates/",
        "src/",
        ".rs",
        "/work",
        "/tmp",
        "/root",
        "::",
        "0x",
        "127.0.0.1",
        "panicked",
        "serde",
        "hyper",
    ] {
        assert!(!reply.contains(secret), "{secret} in {reply}");
    }
}

#[tokio::test]
async fn odd_requests_get_an_error_object() {
    let server = server(|options| options.body_bytes_max = 64 << 10).await;
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
    let many = |n: usize| (0..n).map(|i| format!("X-{i}: {}\r\n", "v".repeat(1000))).collect::<String>();
    let sized = |coding: &str| format!("{head}Content-Encoding: {coding}\r\nContent-Length: 2\r\n\r\n{{}}");
    let url = |n: usize| format!("GET /{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "u".repeat(n));
    let cases = [
        (url(8 << 10), 414, "request_too_large"),
        (url(60_000), 414, "request_too_large"),
        (
            format!("GET /health?{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "q".repeat(9000)),
            414,
            "request_too_large",
        ),
        (format!("{head}{}\r\n", many(70)), 431, "request_too_large"),
        (format!("{head}X: {}\r\n\r\n", "v".repeat(70_000)), 431, "request_too_large"),
        (format!("{head}Authorization: Bearer {}\r\n\r\n", "k".repeat(70_000)), 431, "request_too_large"),
        (sized("gzip"), 415, "unsupported_media_type"),
        (sized("br"), 415, "unsupported_media_type"),
        (sized("identity, gzip"), 415, "unsupported_media_type"),
        (sized("identity\r\nContent-Encoding: deflate"), 415, "unsupported_media_type"),
        (sized("\u{e9}"), 415, "unsupported_media_type"),
        // No end of it ever comes.
        (format!("{head}Transfer-Encoding: chunked\r\n\r\n{}", chunk.repeat(5)), 413, "request_too_large"),
        (format!("{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n"), 400, "invalid_json"),
        (format!("{head}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n"), 400, "invalid_json"),
        (format!("{head}Expect: 100-continue\r\nContent-Length: 70000\r\n\r\n"), 413, "request_too_large"),
        (format!("PATCH {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), 405, "method_not_allowed"),
        (format!("TRACE {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), 405, "method_not_allowed"),
        ("GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into(), 404, "unknown_url"),
        (post("/v1/chat/../../x", "{}"), 404, "unknown_url"),
    ];
    for (request, status, code) in cases {
        let shown: String = request.chars().take(120).collect();
        let reply = server.send(&request).await;
        // Nothing was asked to be sent before the answer.
        assert_eq!((reply.status, reply.error().0.as_str()), (status, code), "{shown}");
        assert!(reply.header("x-request-id").is_some(), "{shown}");
        check_discreet(&reply.body);
        check_good(&server, &shown).await;
    }
}

/// What is not HTTP has no error object: the library answers, or hangs up.
#[tokio::test]
async fn what_is_not_http_is_refused() {
    let server = server(|_| ()).await;
    let long = "x".repeat(300_000);
    for (request, status) in [
        ("nonsense\r\n\r\n".to_owned(), Some("400")),
        ("\u{16}\u{3}\u{1}\u{2}".repeat(50) + "\r\n\r\n", Some("400")),
        ("GET / HTTP/1.1\r\nbad header\r\n\r\n".into(), Some("400")),
        ("GET / HTTP/1.1\r\nA: b\0c\r\n\r\n".into(), Some("400")),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "u".repeat(70_000)), Some("414")),
        (format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n"), Some("431")),
        (format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(1000)), Some("431")),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), None),
    ] {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        let _ = client.write_all(request.as_bytes()).await; // it may hang up before the end
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, client.read_to_end(&mut answer)).await.expect("an end in time");
        let answer = String::from_utf8(answer).unwrap();
        let shown: String = request.chars().take(60).collect();
        if let Some(status) = status {
            assert_eq!(answer.split(' ').nth(1), Some(status), "{shown:?}: {answer:?}");
        }
        check_discreet(&answer);
        check_good(&server, &shown).await;
    }
}

/// Sends the head, then the body once the server asks for it.
async fn expecting(server: &Server, header: &str) -> (bool, Reply) {
    let body = r#"{"prompt": [3], "max_tokens": 2}"#;
    let head = post(PATH, body);
    let head = with(head.strip_suffix(body).unwrap(), &format!("Expect: 100-continue\r\n{header}"));
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, client.read_buf(&mut answer)).await.unwrap().unwrap();
    let asked = answer.starts_with(b"HTTP/1.1 100 Continue\r\n\r\n");
    if asked {
        client.write_all(body.as_bytes()).await.unwrap();
    }
    timeout(PATIENCE, client.read_to_end(&mut answer)).await.unwrap().unwrap();
    (asked, common::parse_reply(&String::from_utf8(answer).unwrap()))
}

#[tokio::test]
async fn a_body_is_asked_for_only_if_it_will_be_read() {
    let server = server(|options| {
        options.api_keys = ["k"].into_iter().collect();
        options.rate_limit = NonZeroU32::new(1);
    })
    .await;
    for (key, asked, status) in [("wrong", false, 401), ("k", true, 200), ("k", false, 429)] {
        let (was_asked, reply) = expecting(&server, &format!("Authorization: Bearer {key}")).await;
        assert_eq!((was_asked, reply.status), (asked, status), "{key}: {reply:?}");
    }
}

#[tokio::test]
async fn whoever_sends_on_after_a_refusal_can_read_it() {
    let server = server(|options| options.body_bytes_max = 1000).await;
    for head in ["Content-Length: 8000000", "Transfer-Encoding: chunked"] {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        let request = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let chunk = format!("3e80\r\n{}\r\n", "x".repeat(0x3e80));
        let (mut from, mut to) = client.split();
        let send = async {
            for _ in 0..500 {
                if to.write_all(chunk.as_bytes()).await.is_err() {
                    return; // hung up
                }
            }
        };
        let mut answer = Vec::new();
        let read = async {
            let _ = from.read_to_end(&mut answer).await;
        };
        timeout(PATIENCE, async { tokio::join!(send, read) }).await.expect("an end in time");
        let reply = common::parse_reply(&String::from_utf8(answer).unwrap());
        assert_eq!((reply.status, reply.error().0.as_str()), (413, "request_too_large"), "{head}");
        check_good(&server, head).await;
    }
}

#[tokio::test]
async fn whoever_is_slow_or_stops_sending_is_let_go() {
    let server = server(|options| options.read_timeout = Duration::from_millis(300)).await;
    let request = good();
    let body = request.find("\r\n\r\n").unwrap() + 4;
    for (cut, half_closed) in
        [(0, false), (0, true), (1, false), (20, true), (body - 2, false), (body, true), (body + 9, false)]
    {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(&request.as_bytes()[..cut]).await.unwrap();
        if half_closed {
            client.shutdown().await.unwrap();
        }
        let mut answer = Vec::new();
        timeout(PATIENCE, client.read_to_end(&mut answer)).await.expect("let go in time").unwrap();
        if cut >= body {
            let reply = common::parse_reply(&String::from_utf8(answer).unwrap());
            let code = if half_closed { "invalid_json" } else { "request_timeout" };
            assert_eq!(reply.error().0, code, "{cut}");
        }
        check_good(&server, &format!("{cut} bytes")).await;
    }
    // A byte now and then does not buy time.
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let dribble = async {
        for byte in request.as_bytes()[..40].iter() {
            if client.write_all(&[*byte]).await.is_err() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        false
    };
    assert!(dribble.await, "4 s of headers were waited for");
    // Nor does a connection that has been of use stay for nothing.
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(request.replace("Connection: close\r\n", "").as_bytes()).await.unwrap();
    assert_eq!(read_reply(&mut client).await.status, 200);
}

#[tokio::test]
async fn storms_of_clients_that_leave_cost_nothing_that_lasts() {
    let server = server(|_| ()).await;
    let stream = post(PATH, r#"{"prompt": [3], "max_tokens": 200, "stream": true}"#);
    let whole = post(PATH, r#"{"prompt": [3], "max_tokens": 200, "n": 4}"#);
    let body = whole.find("\r\n\r\n").unwrap() + 4;
    let expected = server.send(&good()).await.json()["choices"].clone();
    // What is sent, and whether the answer's beginning is waited for.
    let stages = [
        (&whole[..0], false),
        (&whole[..10], false),
        (&whole[..body - 1], false),
        (&whole[..body], false),
        (&whole[..body + 9], false),
        (&whole[..], false),
        (&stream[..], false),
        (&stream[..], true),
    ];
    for (stage, (sent, reads)) in stages.into_iter().enumerate() {
        let client = |reset: bool| async move {
            let mut client = TcpStream::connect(server.address).await.unwrap();
            client.write_all(sent.as_bytes()).await.unwrap();
            if reads {
                timeout(PATIENCE, client.read(&mut [0; 64])).await.expect("an answer").unwrap();
            }
            if reset {
                client.set_zero_linger().unwrap();
            }
        };
        for _ in 0..10 {
            let wave = (0..30).map(|i| client(i % 2 == 0));
            futures::future::join_all(wave).await;
        }
        server.until_metric("vllm:num_requests_running", 0.0).await;
        server.until_metric("vllm:num_requests_waiting", 0.0).await;
        server.until_metric("vllm:kv_cache_usage_perc", 0.0).await;
        let again = server.send(&good()).await.json();
        assert_eq!(again["choices"], expected, "after stage {stage}");
    }
}
