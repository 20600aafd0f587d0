//! What the binary does before and after serving: options, errors, exit codes, loading, stopping.

mod common;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Server, command, copy_of, golden, root, strait};
use serde_json::{Value, json};

const MODEL: &str = "v3-tied-f32";

fn path(dir: &tempfile::TempDir) -> &str {
    dir.path().to_str().unwrap()
}

#[test]
fn help_and_version() {
    for args in
        [&["--help"][..], &["serve", "--help"], &["run", "--help"], &["plan", "--help"], &["--version"]]
    {
        let (code, out, err) = strait(args);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{args:?}");
        assert!(out.contains("strait"), "{out}");
    }
}

#[test]
fn usage_errors_end_with_2_and_name_the_option() {
    let model = golden(MODEL);
    for (args, expected) in [
        (&["serve", "--prot", "80"][..], "--prot"),
        (&["serve", "--port", "70000"], "--port"),
        (&["serve", "--device", "cuda"], "this build has no CUDA backend yet"),
        (&["serve", "--device", "cuda:0"], "this build has no CUDA backend yet"),
        (&["serve", "--quantize", "q8_0"], "quantize"),
        (&["serve", "--dtype", "f64"], "dtype"),
        (&["serve", "--kv-cache-dtype", "fp8"], "kv-cache-dtype"),
        (&["serve", "--kv-cache-memory", "lots"], "kv-cache-memory"),
        (&["serve", "--memory-utilization", "1.5"], "memory-utilization"),
        (&["serve", "--max-num-seqs", "0"], "max-num-seqs"),
        (&["serve", "--log-level", "chatty"], "log-level"),
        (&["serve", "--config", "nowhere.toml"], "nowhere.toml"),
        (&["run", "--temperature", "9", "hello"], "temperature"),
        (&["plan"], "MODEL"),
        (&["plan", &model, "--bandwidth", "0"], "bandwidth"),
        (&[], "Usage"),
    ] {
        let (code, _, err) = strait(args);
        assert_eq!(code, Some(2), "{args:?}: {err}");
        assert!(err.contains(expected), "{args:?}: {err}");
    }
}

#[test]
fn models_that_cannot_be_found_say_what_to_do() {
    let empty = tempfile::tempdir().unwrap();
    for (model, expected) in [
        ("deepseek-ai/DeepSeek-V2-Lite", "models are not downloaded by this version"),
        ("weights.gguf", "GGUF files are not served"),
        (path(&empty), "holds no config.json"),
        ("Cargo.toml", "give the directory"),
    ] {
        for args in [&["serve", "--port", "0", "--model", model][..], &["run", "--model", model, "hello"]] {
            let (code, out, err) = strait(args);
            assert_eq!((code, out.as_str()), (Some(1), ""), "{args:?}: {err}");
            assert!(err.contains(expected), "{args:?}: {err}");
        }
    }
}

#[test]
fn the_environment_and_the_file_are_options_too() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "max-model-len = 128\nmax-num-seqs = 3\nblock-size = 16\n").unwrap();
    let dry_run = |variables: &[(&str, &str)], flags: &[&str]| {
        let mut command = command(&["serve", "--dry-run", "--model", &golden(MODEL)]);
        let output = command.args(flags).envs(variables.iter().copied()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let config = ("STRAIT_CONFIG", file.path().to_str().unwrap());
    for (variables, flags, expected) in [
        (&[config][..], &[][..], "24 blocks of 16: 3 sessions of 128 tokens"),
        (&[config, ("STRAIT_MAX_NUM_SEQS", "2")], &[], "2 sessions of 128 tokens"),
        (&[config, ("STRAIT_MAX_NUM_SEQS", "2")], &["--max-num-seqs", "5"], "5 sessions of 128 tokens"),
        (&[config, ("STRAIT_STRICT_CONTEXT", "1")], &[], "3 sessions of 128 tokens"),
        // What Kubernetes sets beside a Service of this name is nobody's option.
        (&[config, ("STRAIT_SERVICE_HOST", "10.0.0.1")], &[], "3 sessions of 128 tokens"),
    ] {
        let (code, text) = dry_run(variables, flags);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains(expected), "{expected}: {text}");
    }
    for (variable, expected) in [
        (("STRAIT_MAX_NUM_SEQ", "2"), "STRAIT_MAX_NUM_SEQ is set, but there is no such option"),
        (("STRAIT_PORT", "tcp://10.0.0.1:8000"), "enableServiceLinks"),
        (("STRAIT_BLOCK_SIZE", "big"), "--block-size"),
    ] {
        let (code, text) = dry_run(&[variable], &[]);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(expected), "{expected}: {text}");
    }
    fs::write(file.path(), "max-model-length = 128\n").unwrap();
    let (code, text) = dry_run(&[config], &[]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("max-model-length"), "{text}");
}

type Damage = fn(&Path);

/// Damage to a checkpoint, and what the one message must name.
fn damages() -> Vec<(Damage, Vec<&'static str>)> {
    fn cut(path: &Path, keep: usize) {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..keep]).unwrap();
    }
    vec![
        (|dir| fs::write(dir.join("config.json"), "{").unwrap(), vec!["config.json"]),
        (|dir| fs::write(dir.join("config.json"), "[]").unwrap(), vec!["config.json"]),
        (
            |dir| {
                let config = fs::read_to_string(dir.join("config.json")).unwrap();
                let config = config.replace("\"kv_lora_rank\": 32", "\"kv_lora_rank\": -1");
                fs::write(dir.join("config.json"), config.replace("\"v_head_dim\": 16", "\"v_head_dim\": 0"))
                    .unwrap();
            },
            vec!["kv_lora_rank", "v_head_dim"],
        ),
        (|dir| fs::write(dir.join("generation_config.json"), "?").unwrap(), vec!["generation_config.json"]),
        (|dir| fs::write(dir.join("tokenizer.json"), "{}").unwrap(), vec!["tokenizer"]),
        (|dir| fs::remove_file(dir.join("tokenizer.json")).unwrap(), vec!["tokenizer.json"]),
        (|dir| fs::write(dir.join("tokenizer_config.json"), [0xff]).unwrap(), vec!["tokenizer_config"]),
        (|dir| fs::remove_file(dir.join("model.safetensors")).unwrap(), vec!["model.safetensors"]),
        (|dir| cut(&dir.join("model.safetensors"), 5_000), vec!["model.safetensors"]),
        (|dir| cut(&dir.join("model.safetensors"), 0), vec!["model.safetensors"]),
        (
            |dir| {
                let config = fs::read_to_string(dir.join("config.json")).unwrap();
                fs::write(
                    dir.join("config.json"),
                    config.replace("\"hidden_size\": 64", "\"hidden_size\": 96"),
                )
                .unwrap();
                fs::write(dir.join("tokenizer.json"), "no JSON").unwrap();
            },
            // Tokenizer and weights are read side by side: both are told.
            vec!["tokenizer", "model.embed_tokens.weight", "model.layers.1.mlp.gate.weight"],
        ),
    ]
}

#[test]
fn damaged_checkpoints_end_with_1_and_one_message() {
    for (number, (damage, expected)) in damages().into_iter().enumerate() {
        let copy = copy_of(MODEL);
        damage(copy.path());
        let serve = ["serve", "--port", "0", "--log-level", "error", "--model", path(&copy)];
        for args in [&serve[..], &["serve", "--dry-run", "--model", path(&copy)]] {
            let (code, out, err) = strait(args);
            assert_eq!((code, out.as_str()), (Some(1), ""), "{number}: {err}");
            assert_eq!(err.matches("error: ").count(), 1, "{number}: {err}");
            assert!(expected.iter().all(|name| err.contains(name)), "{number}: {err}");
            assert!(!err.contains("panicked"), "{number}: {err}");
        }
    }
}

#[test]
fn the_cache_is_held_as_the_weights_are() {
    let model = golden(MODEL);
    let (code, _, err) = strait(&["serve", "--dry-run", "--model", &model, "--kv-cache-dtype", "bf16"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("give --dtype bf16"), "{err}");
    let both = ["serve", "--dry-run", "--model", &model, "--kv-cache-dtype", "bf16", "--dtype", "bf16"];
    let (code, out, err) = strait(&both);
    assert_eq!(code, Some(0), "{err}");
    // 3 layers of a latent of 48 numbers, 2 B each: one copy, and nothing beside it.
    assert!(out.contains("288 B a token"), "{out}");
}

#[test]
fn a_context_beyond_the_pool_shrinks_or_is_an_error() {
    let model = golden(MODEL);
    let args = ["serve", "--dry-run", "--model", &model, "--kv-cache-memory", "368640"];
    let (code, out, err) = strait(&args);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("the context shrinks to 576 tokens") && out.contains("= 10 blocks"), "{out}");
    let (code, out, err) = strait(&[&args[..], &["--strict-context"]].concat());
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.contains("hold 576 tokens"), "{err}");

    let server = Server::start(&args[2..]);
    assert!(server.log().contains("the context shrinks to 576 tokens"), "{}", server.log());
    let models: Value = serde_json::from_str(&server.get("/v1/models").1).unwrap();
    assert_eq!(models["data"][0]["max_model_len"], 576, "{models}");
    let (status, answer) = server.post("/v1/completions", &json!({"prompt": vec![5; 577], "max_tokens": 1}));
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")), "{answer}");
}

#[test]
fn plan_needs_a_config_alone() {
    let config = root().join("crates/model/tests/configs/deepseek-v3.json");
    let (code, out, err) = strait(&[
        "plan",
        config.to_str().unwrap(),
        "--memory",
        "1TiB",
        "--bandwidth",
        "3350",
        "--dtype",
        "bf16",
    ]);
    assert_eq!(code, Some(0), "{err}");
    for expected in ["671", "MHA", "GQA", "MQA", "MLA", "32768", "576", "sessions of 4096", "3350.0 GB/s"] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    let (code, out, err) = strait(&["plan", "demo", "--bandwidth", "20"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("MLA"), "{out}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = command(&["plan", "demo", "--bandwidth", "20"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

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
fn a_full_queue_is_told() {
    let model = golden(MODEL);
    let server = Server::start(&["--model", &model, "--max-num-seqs", "1", "--max-queue", "1"]);
    // One runs, one waits, and the others find no place for as long as the first takes.
    let crowd = json!({"prompt": vec![[5]; 8], "max_tokens": 2000, "ignore_eos": true});
    let (status, answer) = server.post("/v1/completions", &crowd);
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("server_overloaded")), "{answer}");
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
fn run_answers_a_question_from_an_argument_or_a_pipe() {
    let model = golden(MODEL);
    let args = ["run", "--model", &model, "--temperature", "0", "--max-tokens", "8"];
    let (code, spoken, err) = strait(&[&args[..], &["Say something"]].concat());
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let mut child = command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"Say something\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), spoken);
    // The same text as over HTTP: one engine, one template.
    let server = Server::start(&["--model", &model]);
    let request = json!({
        "messages": [{"role": "user", "content": "Say something"}], "temperature": 0, "max_tokens": 8,
    });
    let answer = server.ask("/v1/chat/completions", &request);
    assert_eq!(answer["choices"][0]["message"]["content"].as_str().unwrap(), spoken.trim_end_matches('\n'));
}
