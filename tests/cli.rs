//! What is asked for, and what is refused: options, errors and exit codes, `plan` and `run`.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use common::{MODEL, Server, command, copy_of, golden, path, root, strait};
use serde_json::{Value, json};

#[test]
fn help_and_version() {
    for args in [
        &["--help"][..],
        &["serve", "--help"],
        &["run", "--help"],
        &["plan", "--help"],
        &["bench", "--help"],
        &["bench", "clients", "--help"],
        &["doctor", "--help"],
        &["--version"],
    ] {
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
        (&["serve", "--device", "gpu"], "device"),
        (&["serve", "--device", "cuda:"], "for one of several GPUs, cuda:1"),
        (&["doctor", "--device", "cuda:first"], "device"),
        (&["serve", "--quantize", "q8_0"], "quantize"),
        (&["serve", "--dtype", "f64"], "dtype"),
        (&["serve", "--kv-cache-dtype", "int8"], "kv-cache-dtype: no cache is held in \"int8\""),
        (&["serve", "--kv-cache-memory", "lots"], "kv-cache-memory"),
        (&["serve", "--memory-utilization", "1.5"], "memory-utilization"),
        (&["serve", "--max-num-seqs", "0"], "max-num-seqs"),
        (&["serve", "--log-level", "chatty"], "log-level"),
        (&["serve", "--config", "nowhere.toml"], "nowhere.toml"),
        (&["run", "--temperature", "9", "hello"], "temperature"),
        (&["plan"], "MODEL"),
        (&["plan", &model, "--bandwidth", "0"], "bandwidth"),
        (&["bench", "--batches", "0"], "batches"),
        (&["bench", "-p", "5", "clients"], "clients"),
        (&["bench", "clients", "-c", "1,0"], "clients"),
        (&["bench", "clients", "-p", "4095", "-n", "2"], "the context of demo is 4096"),
        (&["bench", "clients", "--vocab", "99999"], "vocab"),
        (&["bench", "clients", "--timeout", "nan"], "timeout"),
        (&["bench", "clients", "--threads", "0"], "threads"),
        (&["bench", "clients", "--url", "https://localhost:1"], "url"),
        (&["bench", "chat", "--url", "http://localhost:1", "--max-queue", "1"], "max-queue"),
        (&["bench", "chat", "-t", "100"], "turns"),
        (&["bench", "shared", "-s", "4096"], "shared"),
        (&["bench", "added", "-r", "0"], "requests"),
        (&[], "Usage"),
    ] {
        let (code, _, err) = strait(args);
        assert_eq!(code, Some(2), "{args:?}: {err}");
        assert!(err.contains(expected), "{args:?}: {err}");
    }
}

/// No machine has a GPU of that number, and where there is no driver the reason is another.
#[test]
fn a_gpu_that_is_not_there_ends_with_1_and_one_line() {
    let model = golden(MODEL);
    for command in
        [&["serve", "--port", "0", "--log-level", "error"][..], &["serve", "--dry-run"], &["run", "hello"]]
    {
        let (code, out, err) = strait(&[command, &["--model", &model, "--device", "cuda:999"]].concat());
        assert_eq!((code, out.as_str()), (Some(1), ""), "{command:?}: {err}");
        let errors: Vec<&str> = err.lines().filter(|line| line.starts_with("error: ")).collect();
        let [error] = errors[..] else { panic!("{command:?}: {err}") };
        assert!(error.contains("cuda:999") && error.contains("NVIDIA driver"), "{command:?}: {error}");
        assert!(!err.contains("panicked"), "{command:?}: {err}");
    }
}

#[test]
fn doctor_tells_and_fails_only_for_what_was_asked() {
    let (code, out, err) = strait(&["doctor"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    for expected in
        ["cores", "instructions", "memory", "CUDA kernels", "NVRTC", "NVIDIA driver", "--device auto"]
    {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    let (code, out, err) = strait(&["doctor", "--device", "cpu"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("--device cpu is the CPU"), "{out}");
    let (code, out, err) = strait(&["doctor", "--device", "cuda:999"]);
    assert_eq!((code, err.lines().count()), (Some(1), 1), "{err}");
    assert!(out.contains("--device auto") && err.contains("NVIDIA driver"), "{out}{err}");
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
        // As they come from a composer of containers whose user has set nothing.
        (
            &[config, ("STRAIT_MAX_NUM_SEQS", ""), ("STRAIT_STRICT_CONTEXT", ""), ("STRAIT_CORS_ORIGIN", "")],
            &[],
            "3 sessions of 128 tokens",
        ),
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
        (("STRAIT_API_KEY", ""), "leave out --api-key and STRAIT_API_KEY"),
        (("STRAIT_API_KEY", "fine,secret key"), "api-key: key 2: a key is one word"),
        (("STRAIT_API_KEY_FILE", ""), "to serve all who ask, leave it out"),
        (("STRAIT_API_KEY_FILE", "no/such/file"), "api-key-file: no/such/file: cannot be read"),
        (("STRAIT_RATE_LIMIT", "0"), "rate-limit: 0 is out of range"),
        (("STRAIT_MAX_CONNECTIONS", "0"), "max-connections: 0 is out of range"),
    ] {
        let (code, text) = dry_run(&[variable], &[]);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(expected) && !text.contains("secret"), "{expected}: {text}");
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
        (
            |dir| {
                let mut tokenizer: Value =
                    serde_json::from_slice(&fs::read(dir.join("tokenizer.json")).unwrap()).unwrap();
                let added = tokenizer["added_tokens"].as_array_mut().unwrap();
                let mut one_more = added[0].clone();
                (one_more["id"], one_more["content"]) = (json!(512), json!("<one more>"));
                added.push(one_more);
                fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
            },
            vec!["tokenizer.json has 513 tokens", "vocab_size of 512"],
        ),
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
fn the_cache_is_held_as_the_weights_are_or_in_fp8() {
    let model = golden(MODEL);
    let (code, _, err) = strait(&["serve", "--dry-run", "--model", &model, "--kv-cache-dtype", "bf16"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("give --dtype bf16"), "{err}");
    let both = ["serve", "--dry-run", "--model", &model, "--kv-cache-dtype", "bf16", "--dtype", "bf16"];
    let (code, out, err) = strait(&both);
    assert_eq!(code, Some(0), "{err}");
    // 3 layers of a latent of 48 numbers, 2 B each: one copy, and nothing beside it.
    assert!(out.contains("288 B a token in bf16"), "{out}");
    // 32 of them a byte each and one scale, 16 rotary ones of 2 B.
    let (code, out, err) = strait(&["serve", "--dry-run", "--model", &model, "--kv-cache-dtype", "fp8"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("204 B a token in fp8"), "{out}");
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
        "2TiB",
        "--bandwidth",
        "3350",
        "--dtype",
        "bf16",
    ]);
    assert_eq!(code, Some(0), "{err}");
    for expected in ["671", "MHA", "GQA", "MQA", "MLA", "32768", "576", "sessions of 4096", "3350.0 GB/s"] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    let eight = ["--memory", "141GB", "--bandwidth", "4800", "--dtype", "fp8", "--devices", "8"];
    for (devices, expected) in
        [("8", "On each of 8 devices of 131.3 GiB, 92.1 GiB of weights"), ("1", "do not fit")]
    {
        let args = [&["plan", config.to_str().unwrap()], &eight[..7], &[devices]].concat();
        let (code, out, err) = strait(&args);
        assert_eq!(code, Some(0), "{err}");
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
    // This template opens `<think>`, and eight tokens do not close it: over HTTP that is told apart.
    let message = &answer["choices"][0]["message"];
    let said = message["reasoning_content"].as_str().unwrap();
    assert_eq!((said, &message["content"]), (spoken.trim_matches('\n'), &Value::Null));
}

/// The JSON that a bench prints.
fn bench(args: &[&str]) -> Value {
    let (code, out, err) = strait(&[&["bench"], args, &["--json"]].concat());
    assert_eq!(code, Some(0), "{args:?}: {err}");
    serde_json::from_str(&out).unwrap()
}

/// Rows of a scenario, as arrays of these fields.
fn check_rows(args: &[&str], fields: &[&str], expected: Value) {
    let report = bench(args);
    let row = |row: &Value| fields.iter().map(|field| row[*field].clone()).collect::<Value>();
    let total = report.get("total").filter(|total| !total.is_null());
    let rows: Vec<&Value> = report["rows"].as_array().unwrap().iter().chain(total).collect();
    assert_eq!(rows.iter().copied().map(row).collect::<Value>(), expected, "{report}");
    for row in rows {
        let cached = row["cached_tokens"].as_u64().unwrap();
        assert_eq!(row["computed_tokens"].as_u64().unwrap() + cached, row["prompt_tokens"].as_u64().unwrap());
        for times in ["ttft_ms", "inter_token_ms", "e2e_ms"] {
            let [p50, p99] = ["p50", "p99"].map(|p| row[times][p].as_f64().unwrap());
            assert!(0.0 <= p50 && p50 <= p99, "{times}: {row}");
        }
    }
}

#[test]
fn bench_drives_a_server_of_its_own() {
    let counts = ["name", "requests", "errors", "prompt_tokens", "output_tokens"];
    check_rows(
        &["clients", "-c", "1,3", "-r", "2", "-p", "20", "-n", "5"],
        &counts,
        json!([["1 client", 2, 0, 40, 10], ["3 clients", 6, 0, 120, 30]]),
    );
    // The answers of earlier turns are part of each prompt.
    check_rows(
        &["chat", "-c", "2", "-t", "3", "-p", "10", "-n", "4"],
        &counts,
        json!([
            ["turn 1", 2, 0, 20, 8],
            ["turn 2", 2, 0, 48, 8],
            ["turn 3", 2, 0, 76, 8],
            ["all turns", 6, 0, 144, 24],
        ]),
    );
    check_rows(
        &["shared", "-c", "3", "-s", "100", "-p", "10", "-n", "2"],
        &counts,
        json!([["wave 1", 3, 0, 330, 6], ["wave 2", 3, 0, 330, 6]]),
    );
    let added = bench(&["added", "-r", "20"]);
    for times in ["engine_us", "whole_us", "stream_us", "health_us"] {
        assert!(added[times]["p50"].as_f64().unwrap() > 0.0, "{added}");
    }
    let (code, out, err) = strait(&["bench", "clients", "-c", "2", "-r", "1", "-p", "20", "-n", "5"]);
    assert_eq!((code, err.as_str()), (Some(0), "loading demo\n"));
    assert!(out.contains("TTFT ms p50") && out.contains("2 clients"), "{out}");
}

#[test]
fn bench_drives_a_server_that_runs() {
    let server = Server::start(&["--model", &golden(MODEL), "--api-key", "secret"]);
    let url = format!("{}/v1/", server.url);
    let drive = ["clients", "--url", &url, "--api-key", "secret", "--vocab", "512", "-p", "20"];
    let report = bench(&[&drive[..], &["-c", "2", "-n", "6"]].concat());
    assert_eq!(report["server"], url);
    assert_eq!(report["rows"][0]["output_tokens"], 4 * 6, "{report}");
    // One request more, which is not counted, warms up.
    assert_eq!(server.metric("vllm:generation_tokens_total"), 5.0 * 6.0);
    assert_eq!(server.metric("vllm:prompt_tokens_total"), 5.0 * 20.0);
    let (code, _, err) = strait(&["bench", "clients", "--url", &server.url]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("invalid_api_key"), "{err}");
}

#[test]
fn bench_counts_and_names_what_failed() {
    let server = Server::start(&["--model", &golden(MODEL)]);
    let beyond = ["bench", "clients", "-c", "1,2", "--url", &server.url, "--vocab", "1000000000"];
    let (code, out, err) = strait(&beyond);
    assert_eq!(code, Some(1), "{err}");
    assert!(out.contains("2 clients: ") && out.contains("400 invalid_value: "), "{out}");
    assert!(err.contains("none of 6 requests was answered"), "{err}");
    // A word may be many tokens, so only the server knows when the context is full.
    let report =
        bench(&["chat", "--text", "-c", "1", "-t", "4", "-p", "60", "-n", "4", "--max-model-len", "300"]);
    let rows = report["rows"].as_array().unwrap();
    let errors: Vec<u64> = rows.iter().map(|row| row["errors"].as_u64().unwrap()).collect();
    assert_eq!(errors, [0, 1, 1, 1], "{report}");
    let failures = report["total"]["failures"].as_object().unwrap();
    let named =
        |name: &str| failures.iter().find(|(failure, _)| failure.contains(name)).map(|(_, n)| n.as_u64());
    assert_eq!(named("400 context_length_exceeded"), Some(Some(1)), "{report}");
    assert_eq!(named("not sent"), Some(Some(2)), "{report}");
    assert!(rows[1]["ttft_ms"].is_null(), "{report}");
}
