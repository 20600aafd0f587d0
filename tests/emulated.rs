//! The whole binary on the CUDA backend, its kernels run on this host: what a client hears is what the CPU answers.

mod common;

use std::thread;

use common::{Server, strait};
use serde_json::{Value, json};

const QUESTIONS: [&str; 4] = ["What is 12 + 30?", "Reverse: red blue green", "Hello", "How does MLA work?"];

/// Greedy answers to all questions at once, so that they share steps; then one again, from the prefix cache. Each is asked
/// without log probabilities too: then steps are launched before it is known what the last one drew.
fn answers(device: &str, cache: &str) -> Vec<Value> {
    let args = ["--device", device, "--dtype", "f32", "--kv-cache-dtype", cache, "--max-model-len", "256"];
    let server = Server::start(&args);
    let ask = |question: &str| {
        let messages = [json!({"role": "user", "content": question})];
        let mut request = json!({"messages": messages, "temperature": 0, "max_tokens": 24});
        let ahead = server.ask("/v1/chat/completions", &request)["choices"][0].clone();
        request["logprobs"] = json!(true);
        let answer = server.ask("/v1/chat/completions", &request)["choices"][0].clone();
        assert_eq!(ahead["message"], answer["message"]);
        answer
    };
    let mut answers: Vec<Value> = thread::scope(|scope| {
        let asked: Vec<_> = QUESTIONS.iter().map(|question| scope.spawn(|| ask(question))).collect();
        asked.into_iter().map(|answer| answer.join().unwrap()).collect()
    });
    answers.push(ask(QUESTIONS[0]));
    answers
}

#[test]
fn bench_runs_on_the_device() {
    let args = ["bench", "--device", "sim", "-p", "16", "-n", "2", "-d", "0,16", "-b", "1,2", "--json"];
    let (code, out, err) = strait(&args);
    assert_eq!(code, Some(0), "{err}");
    let card: Value = serde_json::from_str(&out).unwrap();
    assert!(card["device"].as_str().unwrap().starts_with("cuda (emulator"), "{card}");
    let rows = card["decode"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["steps"].clone()).collect::<Value>(), json!([2, 2, 2, 2]));
    assert!(card["prefill"][0]["tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(card.get("read_bandwidth").is_none(), "nobody has measured it: {card}");
}

#[test]
fn answers_are_those_of_the_cpu() {
    same_answers("f32", 1e-3);
    // A latent number between two of e4m3 goes either way, as the norm before it was rounded.
    same_answers("fp8", 5e-2);
}

fn same_answers(cache: &str, tolerance: f64) {
    for (got, want) in answers("sim", cache).iter().zip(answers("cpu", cache)) {
        assert_eq!(got["message"], want["message"]);
        assert_eq!(got["finish_reason"], want["finish_reason"]);
        let scores = |choice: &Value| -> Vec<f64> {
            let tokens = choice["logprobs"]["content"].as_array().unwrap();
            tokens.iter().map(|token| token["logprob"].as_f64().unwrap()).collect()
        };
        let (got, want) = (scores(got), scores(&want));
        assert!(!got.is_empty() && got.len() == want.len());
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() < tolerance, "{got}, on the CPU {want}");
        }
    }
}
