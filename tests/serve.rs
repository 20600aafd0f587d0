//! The life of `strait serve`: loading, answering as its options and its checkpoint say, stopping.

mod common;

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::{MODEL, Server, copy_of, golden, path, strait};
use serde_json::{Value, json};

/// A checkpoint whose tokenizer arrives when the test says so.
struct Slow {
    dir: tempfile::TempDir,
    tokenizer: Vec<u8>,
}

impl Slow {
    fn new() -> Self {
        let dir = copy_of(MODEL);
        let file = dir.path().join("tokenizer.json");
        let tokenizer = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
        Self { dir, tokenizer }
    }

    fn arrive(&self) {
        let mut pipe = OpenOptions::new().write(true).open(self.dir.path().join("tokenizer.json")).unwrap();
        pipe.write_all(&self.tokenizer).unwrap();
    }
}

#[test]
fn the_port_answers_while_the_model_loads() {
    let slow = Slow::new();
    let server = Server::spawn(&["--model", path(&slow.dir), "--served-model-name", "late"]);
    let request = json!({"model": "late", "prompt": [5, 6], "max_tokens": 1});
    for _ in 0..3 {
        let (status, health) = server.get("/health");
        assert_eq!(status, 503, "{health}");
        assert_eq!(serde_json::from_str::<Value>(&health).unwrap()["status"], "loading");
        let (status, answer) = server.post("/v1/completions", &request);
        assert_eq!((status, &answer["error"]["code"]), (503, &json!("model_loading")), "{answer}");
        assert_eq!(server.get("/metrics").0, 200);
    }
    slow.arrive();
    server.wait_until("loaded", || server.get("/health").0 == 200);
    server.ask("/v1/completions", &request);
    let log = server.log();
    for expected in
        ["config", "tokenizer", "weights", "ms", "KV pool", "deepseek_v3", "try: curl", "serving late"]
    {
        assert!(log.contains(expected), "{expected}: {log}");
    }
}

#[test]
fn a_signal_while_loading_ends_in_good_order() {
    for signal in ["TERM", "INT"] {
        let slow = Slow::new();
        let mut server = Server::spawn(&["--model", path(&slow.dir)]);
        server.signal(signal);
        assert_eq!(server.end().0, Some(0), "SIG{signal}");
    }
}

/// So many bytes that they do not fit between server and client: it runs until it is read.
fn long_stream() -> Value {
    json!({
        "prompt": [5, 6, 7], "max_tokens": 1800, "n": 8, "logprobs": 20, "ignore_eos": true, "stream": true,
        "stream_options": {"include_usage": true},
    })
}

#[test]
fn sigterm_lets_a_running_stream_finish() {
    let mut server = Server::start(&["--model", &golden(MODEL)]);
    let request = long_stream();
    let mut stream = server.stream("/v1/completions", &request);
    stream.next().unwrap();
    server.signal("TERM");
    server.wait_until("draining", || server.get("/ready").0 == 503);
    let (status, answer) = server.post("/v1/completions", &json!({"prompt": [5], "max_tokens": 1}));
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("shutting_down")), "{answer}");
    let usage = stream.last().unwrap()["usage"].clone();
    assert_eq!(usage["completion_tokens"], 8 * 1800);
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn killed_under_load_it_serves_again_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let ready = |server: &Server| server.wait_until("loaded", || server.get("/ready").0 == 200);
    let mut server = Server::spawn_at(directory.path(), 0, &[]);
    ready(&server);
    let question = json!({"messages": [{"role": "user", "content": "What is 12 + 30?"}], "temperature": 0});
    let answered = server.ask("/v1/chat/completions", &question)["choices"].clone();
    let load = json!({"prompt": [5, 6, 7], "max_tokens": 200, "ignore_eos": true, "stream": true, "n": 16});
    let mut streams: Vec<_> = (0..4).map(|_| server.stream("/v1/completions", &load)).collect();
    streams.iter_mut().for_each(|stream| drop(stream.next().unwrap()));
    server.signal("KILL");
    assert_eq!(server.end().0, None, "killed");
    let start = Instant::now();
    let port = server.url.rsplit(':').next().unwrap().parse().unwrap();
    let again = Server::spawn_at(directory.path(), port, &[]);
    ready(&again);
    assert_eq!(again.ask("/v1/chat/completions", &question)["choices"], answered);
    println!("killed, started, answered: {:.0?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(20));
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "a server writes no files");
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut server = Server::start(&["--model", &golden(MODEL), "--grace-period", "3600"]);
    let request = long_stream();
    let mut stream = server.stream("/v1/completions", &request);
    stream.next().unwrap();
    server.signal("TERM");
    server.wait_until("draining", || server.get("/ready").0 == 503);
    server.signal("TERM");
    assert_eq!(server.end().0, Some(1));
}

#[test]
fn logs_can_be_json() {
    let server = Server::start(&["--model", &golden(MODEL), "--log-format", "json"]);
    let log = server.log();
    assert!(log.lines().count() > 4, "{log}");
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(event["level"].is_string() && event["message"].is_string(), "{line}");
    }
}

#[test]
fn a_port_that_is_taken_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, _, err) = strait(&["serve", "--model", &golden(MODEL), "--port", &port]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{err}");
}

#[test]
fn names_and_keys() {
    let model = golden(MODEL);
    let server = Server::start(&[
        "--model",
        &model,
        "--served-model-name",
        "a",
        "--served-model-name",
        "b",
        "--api-key",
        "k",
    ]);
    let request = json!({"model": "b", "prompt": [5], "max_tokens": 1});
    let (status, answer) = server.post("/v1/completions", &request);
    assert_eq!((status, &answer["error"]["code"]), (401, &json!("invalid_api_key")), "{answer}");
    assert!(!server.log().contains("Bearer k"), "{}", server.log());
}

#[test]
fn options_of_the_server_reach_it() {
    let args = ["--host", "0.0.0.0", "--max-body-size", "1KiB", "--cors-origin", "https://a.example"];
    let server = Server::start(&[&["--model", &golden(MODEL)], &args[..]].concat());
    assert!(server.url.starts_with("http://0.0.0.0:"), "{}", server.url);
    let (status, answer) =
        server.post("/v1/completions", &json!({"prompt": "x".repeat(1 << 10), "max_tokens": 1}));
    assert_eq!((status, &answer["error"]["code"]), (413, &json!("request_too_large")), "{answer}");
    for (origin, allowed) in [("https://a.example", true), ("https://b.example", false)] {
        let headers = [("origin", origin), ("access-control-request-method", "POST")];
        let answer = server.preflight("/v1/completions", &headers);
        assert_eq!(answer.contains_key("access-control-allow-origin"), allowed, "{origin}: {answer:?}");
    }
}

#[test]
fn options_of_the_engine_reach_it() {
    let prompt: Vec<u32> = (5..205).collect();
    let cached = |server: &Server| {
        let ask = || server.ask("/v1/completions", &json!({"prompt": prompt, "max_tokens": 1}));
        [ask(), ask()].map(|answer| answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone())
    };
    let server = Server::start(&["--model", &golden(MODEL), "--block-size", "16"]);
    assert_eq!(cached(&server), [json!(0), json!(192)]);
    assert_eq!(server.metric("vllm:prefix_cache_hits_total"), 192.0);
    let options = ["--no-prefix-cache", "--max-queue-tokens", "300", "--request-timeout", "0.1"];
    let server = Server::start(&[&["--model", &golden(MODEL)], &options[..]].concat());
    assert_eq!(cached(&server), [json!(0), json!(0)]);
    assert!(!server.get("/metrics").1.contains("prefix_cache"));
    let (status, answer) = server.post("/v1/completions", &json!({"prompt": [prompt, prompt]}));
    assert_eq!(status, 400);
    assert!(answer["error"]["message"].as_str().unwrap().contains("--max-queue-tokens"), "{answer}");
    let long = json!({"prompt": [5], "max_tokens": 2000, "n": 32, "ignore_eos": true});
    let (status, answer) = server.post("/v1/completions", &long);
    assert_eq!((status, &answer["error"]["code"]), (408, &json!("request_timeout")), "{answer}");
}

#[test]
fn a_full_queue_is_told() {
    let model = golden(MODEL);
    let server = Server::start(&["--model", &model, "--max-num-seqs", "1", "--max-queue", "1"]);
    let long = json!({"prompt": [5], "max_tokens": 2000, "ignore_eos": true});
    let ask = || server.post("/v1/completions", &long);
    let mut answers: Vec<(u16, Value)> = thread::scope(|scope| {
        let crowd: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        crowd.into_iter().map(|one| one.join().unwrap()).collect()
    });
    // One runs, one waits, and the others find no place for as long as the first takes.
    let told = answers.extract_if(.., |(status, _)| *status == 429).collect::<Vec<_>>();
    assert!(!told.is_empty() && !answers.is_empty(), "{} were told, {} served", told.len(), answers.len());
    assert!(told.iter().all(|(_, answer)| answer["error"]["code"] == "server_overloaded"), "{told:?}");
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
}

#[test]
fn a_request_that_does_not_say_is_sampled_as_the_checkpoint_says() {
    let answers = |generation: &str| {
        let copy = copy_of(MODEL);
        fs::write(copy.path().join("generation_config.json"), generation).unwrap();
        let server = Server::start(&["--model", path(&copy)]);
        let mut request = json!({"prompt": [5, 6, 7], "max_tokens": 48, "ignore_eos": true, "seed": 1});
        let given = server.ask("/v1/completions", &request)["choices"][0]["text"].clone();
        request["temperature"] = json!(0);
        (given, server.ask("/v1/completions", &request)["choices"][0]["text"].clone())
    };
    for greedy in ["{\"do_sample\": false, \"temperature\": 0.9}", "{\"temperature\": 0.0}", "{\"top_k\": 1}"]
    {
        let (given, best) = answers(greedy);
        assert_eq!(given, best, "{greedy}");
    }
    let (given, best) = answers("{\"do_sample\": true, \"temperature\": 2.0}");
    assert_ne!(given, best);
}

#[test]
fn generation_config_says_which_tokens_end_an_answer() {
    let ask = |model: &str| {
        let server = Server::start(&["--model", model]);
        let request = json!({
            "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 4, "return_token_ids": true,
        });
        server.ask("/v1/chat/completions", &request)["choices"][0].clone()
    };
    let first = ask(&golden(MODEL))["token_ids"][0].clone();
    let copy = copy_of(MODEL);
    fs::write(copy.path().join("generation_config.json"), json!({"eos_token_id": [1, first]}).to_string())
        .unwrap();
    let choice = ask(path(&copy));
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("stop"), &json!("")),
        "{choice}"
    );
    let (code, spoken, err) = strait(&["run", "--model", path(&copy), "--temperature", "0", "Hi"]);
    assert_eq!((code, spoken.as_str()), (Some(0), "\n"), "{err}");
}

#[test]
fn without_configured_end_tokens_the_tokenizer_names_one() {
    let copy = copy_of(MODEL);
    fs::write(copy.path().join("generation_config.json"), "{}").unwrap();
    let config = fs::read_to_string(copy.path().join("config.json")).unwrap();
    let without = config.replace(",\n  \"eos_token_id\": 1", "");
    assert_ne!(config, without);
    fs::write(copy.path().join("config.json"), without).unwrap();
    let server = Server::start(&["--model", path(&copy)]);
    // Token 1 is the golden tokenizer's `eos_token`.
    let request = json!({"prompt": [5, 6, 7], "max_tokens": 3, "temperature": 0, "logit_bias": {"1": 100}});
    assert_eq!(server.ask("/v1/completions", &request)["choices"][0]["finish_reason"], "stop");
}

#[test]
fn a_template_of_its_own_goes_before_the_tokenizers() {
    let copy = copy_of(MODEL);
    fs::write(copy.path().join("chat_template.jinja"), "{{ messages[0]['content'] }}").unwrap();
    let server = Server::start(&["--model", path(&copy)]);
    let chat = server.ask("/tokenize", &json!({"messages": [{"role": "user", "content": "as it is"}]}));
    let plain = server.ask("/tokenize", &json!({"prompt": "as it is"}));
    assert_eq!(chat["tokens"], plain["tokens"]);
}

#[test]
fn a_client_that_reads_slowly_has_the_grace_period_to_read_its_answer() {
    let mut server = Server::start(&[]);
    // An answer far larger than what sockets hold.
    let body = json!({"prompt": "\u{12000} ".repeat(200_000), "return_token_strs": true}).to_string();
    let mut client = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
    let length = body.len();
    write!(client, "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}")
        .unwrap();
    let mut start = [0; 1024];
    let n = client.read(&mut start).unwrap();
    server.signal("TERM");
    // Longer than the last words after the grace period.
    thread::sleep(Duration::from_secs(4));
    let mut answer = start[..n].to_vec();
    client.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let whole: usize =
        head.split("content-length: ").nth(1).unwrap().lines().next().unwrap().trim().parse().unwrap();
    assert_eq!(answer.len() - end, whole);
    assert!(whole > 8 << 20, "{whole} bytes are no large answer");
    assert_eq!(server.end().0, Some(0));
}
