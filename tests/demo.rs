//! The embedded model through the whole binary: what it knows, in a crowd, and after clients have left.

mod common;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use common::{Server, root};
use serde_json::{Value, json};

/// Prompts that the training has not seen, each with its answer; with tools or without.
fn held_out_with(tools: bool) -> Vec<Value> {
    let json = fs::read(root().join("tests/demo/heldout.json")).unwrap();
    let mut prompts: Vec<Value> = serde_json::from_slice(&json).unwrap();
    prompts.retain(|prompt| prompt.get("tools").is_some() == tools);
    prompts
}

fn held_out() -> Vec<Value> {
    let prompts = held_out_with(false);
    assert!(prompts.len() >= 100, "{} prompts show little", prompts.len());
    prompts
}

fn request(messages: &Value) -> Value {
    json!({"messages": messages, "temperature": 0, "max_tokens": 600})
}

fn answer(server: &Server, messages: &Value) -> String {
    let answer = server.ask("/v1/chat/completions", &request(messages));
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

fn streamed(server: &Server, messages: &Value) -> String {
    let mut request = request(messages);
    request["stream"] = json!(true);
    let events: Vec<Value> = server.stream("/v1/chat/completions", &request).collect();
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop", "{events:?}");
    events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
}

/// Runs `task` on each item, at most `width` at a time, and returns what they gave in order.
fn in_parallel<T: Sync, R: Send>(items: &[T], width: usize, task: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            match items.get(index) {
                Some(item) => done.push((index, task(item))),
                None => return done,
            }
        }
    };
    let mut done: Vec<(usize, R)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..width).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[test]
fn answers_held_out_prompts_exactly() {
    let server = Server::start(&[]);
    let prompts = held_out();
    let answers = in_parallel(&prompts, 16, |prompt| answer(&server, &prompt["messages"]));
    let wrong: Vec<String> = prompts
        .iter()
        .zip(&answers)
        .filter(|(prompt, answer)| prompt["expected"] != json!(answer))
        .map(|(prompt, answer)| format!("{}\n    answered {answer:?}", prompt))
        .collect();
    let right = 100.0 * (prompts.len() - wrong.len()) as f64 / prompts.len() as f64;
    eprintln!("{right:.1} % of {} held-out prompts answered exactly", prompts.len());
    assert!(right >= 95.0, "{right:.1} %\n{}", wrong.join("\n"));
}

/// The demo writes calls as DeepSeek-V3.1 does.
#[test]
fn calls_the_tools_that_it_was_taught() {
    let server = Server::start(&[]);
    let prompts = held_out_with(true);
    assert!(prompts.len() >= 30, "{} prompts show little", prompts.len());
    let said = |prompt: &Value| {
        let mut request = request(&prompt["messages"]);
        request["tools"] = prompt["tools"].clone();
        let choice = server.ask("/v1/chat/completions", &request)["choices"][0].clone();
        let calls = choice["message"]["tool_calls"].as_array().into_iter().flatten();
        let calls: Vec<String> = calls.map(written).collect();
        assert_eq!(choice["finish_reason"] == "tool_calls", !calls.is_empty(), "{choice}");
        let text = choice["message"]["content"].as_str().unwrap_or("");
        if calls.is_empty() {
            text.to_owned()
        } else {
            format!("{text}<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>", calls.concat())
        }
    };
    let answers = in_parallel(&prompts, 8, said);
    let wrong: Vec<String> = prompts
        .iter()
        .zip(&answers)
        .filter(|(prompt, said)| prompt["expected"] != json!(said))
        .map(|(prompt, said)| format!("{prompt}\n    said {said:?}"))
        .collect();
    let right = 100.0 * (prompts.len() - wrong.len()) as f64 / prompts.len() as f64;
    eprintln!("{right:.1} % of {} held-out prompts with tools answered exactly", prompts.len());
    assert!(right >= 90.0, "{right:.1} %\n{}", wrong.join("\n"));
}

/// A call as the demo wrote it.
fn written(call: &Value) -> String {
    let function = &call["function"];
    let (name, arguments) = (function["name"].as_str().unwrap(), function["arguments"].as_str().unwrap());
    format!("<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>")
}

#[test]
fn a_crowd_hears_what_each_would_alone() {
    let server = Server::start(&[]);
    let prompts: Vec<Value> = held_out().into_iter().step_by(6).take(32).collect();
    assert_eq!(prompts.len(), 32);
    let alone: Vec<String> = prompts.iter().map(|prompt| answer(&server, &prompt["messages"])).collect();
    let together = in_parallel(&prompts, 32, |prompt| streamed(&server, &prompt["messages"]));
    assert_eq!(together, alone);
}

/// Prompts long enough to be computed in several steps, among others that take their share of each:
/// the same tokens and the same log probabilities to the last bit.
#[test]
fn long_prompts_in_a_crowd_are_computed_as_alone() {
    let server = Server::start(&[]);
    let scored = |len: usize| {
        let prompt: Vec<usize> = (0..len).map(|i| 20 + i * 13 % 700).collect();
        let request = json!({
            "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": true, "logprobs": 5,
            "return_token_ids": true,
        });
        server.ask("/v1/completions", &request)["choices"].clone()
    };
    let lengths = [5, 100, 255, 256, 257, 341, 512, 700, 1000, 1300];
    let alone = lengths.map(scored);
    let crowd: Vec<usize> = (0..40).map(|i| i * 7 % lengths.len()).collect();
    let together = in_parallel(&crowd, 20, |&i| scored(lengths[i]));
    for (&i, together) in crowd.iter().zip(together) {
        assert_eq!(together, alone[i], "{} tokens", lengths[i]);
    }
}

#[test]
fn clients_that_leave_take_nothing_with_them() {
    let server = Server::start(&[]);
    let messages = &held_out()[0]["messages"];
    let before = answer(&server, messages);
    let mut endless = request(messages);
    (endless["stream"], endless["ignore_eos"]) = (json!(true), json!(true));
    let started = in_parallel(&[(); 100], 100, |()| {
        // Dropped after the first piece of text, long before the end.
        let mut stream = server.stream("/v1/chat/completions", &endless);
        stream.any(|event| {
            event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty())
        })
    });
    assert!(started.iter().all(|started| *started));
    let idle = || {
        ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
            .iter()
            .all(|gauge| server.metric(gauge) == 0.0)
    };
    server.wait_until("idle", idle);
    let aborted = server.metric_with("vllm:request_success_total", "finished_reason=\"abort\"");
    assert!(aborted >= 50.0, "only {aborted} of 100 were seen to leave");
    assert_eq!(answer(&server, messages), before);
}
