//! Answers of the real engine on a model without weights.

mod common;

use common::{Server, VOCAB_SIZE, tokenizer};
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

async fn answer(server: &Server, path: &str, body: &Value) -> Value {
    let reply = server.post(path, body).await;
    assert_eq!(reply.status, 200, "{body}: {reply:?}");
    reply.json()
}

fn with(mut body: Value, fields: &Value) -> Value {
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn chat(fields: Value) -> Value {
    with(json!({"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 12}), &fields)
}

fn completion(fields: Value) -> Value {
    with(json!({"prompt": [3, 4, 5], "max_tokens": 12}), &fields)
}

fn extend(list: &mut Value, more: &Value) {
    if let Some(more) = more.as_array() {
        match list.as_array_mut() {
            Some(list) => list.extend(more.iter().cloned()),
            None => *list = Value::from(more.clone()),
        }
    }
}

/// Joins the chunks of a stream into what the whole answer's choices should be.
fn fold(events: &[Value], n: usize, chat: bool) -> Vec<Value> {
    let mut choices: Vec<Value> = (0..n).map(|i| json!({"index": i, "text": ""})).collect();
    let mut finished = vec![false; n];
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        let index = choice["index"].as_u64().unwrap() as usize;
        let whole = &mut choices[index];
        assert!(!finished[index], "something follows the finish: {choice}");
        let text = if chat { &choice["delta"]["content"] } else { &choice["text"] };
        let joined = whole["text"].as_str().unwrap().to_owned() + text.as_str().unwrap_or("");
        whole["text"] = json!(joined);
        extend(&mut whole["token_ids"], &choice["token_ids"]);
        extend(&mut whole["prompt_token_ids"], &choice["prompt_token_ids"]);
        if choice["logprobs"].is_object() {
            for (key, more) in choice["logprobs"].as_object().unwrap() {
                extend(&mut whole["logprobs"][key], more);
            }
        }
        if choice["finish_reason"].is_string() {
            finished[index] = true;
            assert!(!chat || choice["delta"] == json!({}), "{choice}");
            whole["finish_reason"] = choice["finish_reason"].clone();
            whole["stop_reason"] = choice["stop_reason"].clone();
        } else if chat && choice["delta"]["role"].is_null() {
            assert_ne!(text, "", "an empty chunk: {choice}");
        }
    }
    assert!(finished.into_iter().all(|finished| finished));
    choices
}

/// A whole answer's choices, in the shape of [`fold`].
fn flat(answer: &Value, chat: bool) -> Vec<Value> {
    let flat = |choice: &Value| {
        let text = if chat { &choice["message"]["content"] } else { &choice["text"] };
        let mut flat = json!({"index": choice["index"], "text": text});
        for key in ["token_ids", "prompt_token_ids"] {
            extend(&mut flat[key], &choice[key]);
        }
        if let Some(lists) = choice["logprobs"].as_object() {
            lists.iter().for_each(|(key, list)| extend(&mut flat["logprobs"][key], list));
        }
        flat["finish_reason"] = choice["finish_reason"].clone();
        flat["stop_reason"] = choice["stop_reason"].clone();
        flat
    };
    answer["choices"].as_array().unwrap().iter().map(flat).collect()
}

async fn check_streamed_is_whole(server: &Server, path: &str, body: &Value) {
    let is_chat = path == CHAT;
    let whole = answer(server, path, body).await;
    let stream = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = server.post(path, &with(body.clone(), &stream)).await.events();
    let (last, chunks) = events.split_last().unwrap();
    let n = whole["choices"].as_array().unwrap().len();
    assert_eq!(fold(chunks, n, is_chat), flat(&whole, is_chat), "{body}");
    // The second request finds the first one's blocks.
    let counted = |usage: &Value| with(usage.clone(), &json!({"prompt_tokens_details": null}));
    assert_eq!(last["choices"], json!([]), "{body}");
    assert_eq!(counted(&last["usage"]), counted(&whole["usage"]), "{body}");
    for chunk in chunks {
        assert_eq!(chunk["usage"], json!(null));
        assert!(chunk.as_object().unwrap().contains_key("usage"));
        for key in ["id", "created", "model", "system_fingerprint", "object"] {
            assert_eq!(chunk[key], last[key], "{key}");
        }
    }
    if is_chat {
        let first = |i: usize| &chunks[i]["choices"][0];
        for i in 0..n {
            assert_eq!(first(i)["delta"], json!({"role": "assistant", "content": ""}));
        }
    }
    let usage = &whole["usage"];
    let count = |key: &str| usage[key].as_u64().unwrap();
    assert_eq!(count("prompt_tokens") + count("completion_tokens"), count("total_tokens"));
    assert!(usage["prompt_tokens_details"]["cached_tokens"].is_u64());
}

#[tokio::test]
async fn streamed_equals_whole() {
    let server = Server::fake().await;
    for fields in [
        json!({}),
        json!({"temperature": 1, "seed": 7, "n": 3}),
        json!({"temperature": 1.5, "seed": -7, "top_p": 0.9, "top_k": 50, "min_p": 0.01}),
        json!({"logprobs": true, "top_logprobs": 3, "return_token_ids": true}),
        json!({"logprobs": true, "return_tokens_as_token_ids": true, "skip_special_tokens": false}),
        json!({"stop_token_ids": (0..VOCAB_SIZE / 8).collect::<Vec<_>>(), "return_token_ids": true}),
        json!({"stop": ["e", "a", " "], "min_tokens": 3, "max_tokens": 40, "return_token_ids": true}),
        json!({"ignore_eos": true, "logit_bias": {"1": 100}, "max_completion_tokens": 4}),
        json!({"presence_penalty": 1, "frequency_penalty": 1, "repetition_penalty": 1.2}),
        json!({"truncate_prompt_tokens": 3, "return_token_ids": true, "n": 2}),
        json!({"bad_words": ["e", "the", "a b"], "allowed_token_ids": (100..400).collect::<Vec<_>>(), "n": 2}),
    ] {
        check_streamed_is_whole(&server, CHAT, &chat(fields)).await;
    }
    for fields in [
        json!({}),
        json!({"prompt": ["a b", "hello"], "n": 2, "temperature": 1, "seed": 3, "return_token_ids": true}),
        json!({"echo": true}),
        json!({"echo": true, "logprobs": 2, "prompt": [[3, 4, 5], [6, 7]], "return_token_ids": true}),
        json!({"echo": true, "logprobs": 0, "max_tokens": 0}),
        json!({"echo": true, "max_tokens": 0}),
        json!({"logprobs": 5, "stop": ["t", "1"], "include_stop_str_in_output": true, "max_tokens": 60}),
        json!({"max_tokens": 249}),
    ] {
        check_streamed_is_whole(&server, COMPLETIONS, &completion(fields)).await;
    }
    server.until_metric("vllm:num_requests_running", 0.0).await;
    assert_eq!(server.metric("vllm:kv_cache_usage_perc").await, 0.0);
    assert_eq!(server.metric("vllm:request_success_total{finished_reason=\"abort\"").await, 0.0);
    assert_eq!(server.metric("vllm:request_success_total{finished_reason=\"error\"").await, 0.0);
}

#[tokio::test]
async fn shapes() {
    let server = Server::fake().await;
    let reply = answer(&server, CHAT, &chat(json!({"model": "alias"}))).await;
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        keys(&reply),
        ["id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier"]
    );
    assert_eq!((&reply["object"], &reply["model"]), (&json!("chat.completion"), &json!("alias")));
    assert!(reply["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &reply["choices"][0];
    assert_eq!(keys(choice), ["index", "message", "logprobs", "finish_reason", "stop_reason"]);
    assert_eq!(keys(&choice["message"]), ["role", "content", "refusal"]);
    assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&json!("length"), &json!(null)));

    let reply = answer(&server, COMPLETIONS, &completion(json!({}))).await;
    assert_eq!(keys(&reply), ["id", "object", "created", "model", "choices", "usage", "system_fingerprint"]);
    assert_eq!((&reply["object"], &reply["model"]), (&json!("text_completion"), &json!("org/fake")));
    assert_eq!(keys(&reply["choices"][0]), ["index", "text", "logprobs", "finish_reason", "stop_reason"]);
    assert_eq!(reply["usage"]["prompt_tokens"], 3);
    assert_eq!(reply["usage"]["completion_tokens"], 12);
}

#[tokio::test]
async fn chat_logprobs() {
    let server = Server::fake().await;
    let fields =
        json!({"logprobs": true, "top_logprobs": 4, "return_token_ids": true, "skip_special_tokens": false});
    let reply = answer(&server, CHAT, &chat(fields)).await;
    let choice = &reply["choices"][0];
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), choice["token_ids"].as_array().unwrap().len());
    let mut text = Vec::new();
    for entry in content {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 4);
        // Greedy: the best is the chosen one.
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&entry["token"], &entry["logprob"]));
        assert!(top.is_sorted_by(|a, b| a["logprob"].as_f64() >= b["logprob"].as_f64()));
        text.extend(entry["bytes"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8));
    }
    let content = choice["message"]["content"].as_str().unwrap();
    assert_eq!(String::from_utf8_lossy(&text), content, "the tokens' bytes are the text's");
    let reply = answer(&server, CHAT, &chat(json!({"logprobs": true}))).await;
    assert_eq!(reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
    assert_eq!(reply["choices"][0]["logprobs"]["refusal"], json!(null));
}

#[tokio::test]
async fn a_prompt_that_is_only_scored_may_fill_the_context() {
    let server = Server::fake().await;
    let scored = |len| json!({"prompt": vec![7; len], "max_tokens": 0, "echo": true, "logprobs": 0});
    let reply = server.post("/v1/completions", &scored(252)).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.json()["usage"]["total_tokens"], 252);
    let reply = server.post("/v1/completions", &scored(253)).await;
    assert_eq!(reply.status, 400, "{reply:?}");
    assert!(reply.body.contains("253 tokens (253 in the prompt, 0 in the completion)"), "{}", reply.body);
}

#[tokio::test]
async fn echo_scores_the_prompt() {
    let server = Server::fake().await;
    let fields = json!({"logprobs": 2, "return_token_ids": true, "return_tokens_as_token_ids": true,
        "ignore_eos": true});
    let generated = answer(&server, COMPLETIONS, &completion(fields)).await;
    let first = &generated["choices"][0];
    let mut prompt = vec![json!(3), json!(4), json!(5)];
    prompt.extend(first["token_ids"].as_array().unwrap().iter().cloned());
    let scored = json!({"prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 2,
        "return_tokens_as_token_ids": true});
    let scored = answer(&server, COMPLETIONS, &scored).await;
    let choice = &scored["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &scored["usage"]["completion_tokens"]),
        (&json!("length"), &json!(0))
    );
    let lists = &choice["logprobs"];
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(lists[key].as_array().unwrap().len(), 15, "{key}");
    }
    assert_eq!((&lists["token_logprobs"][0], &lists["top_logprobs"][0]), (&json!(null), &json!(null)));
    assert_eq!(lists["text_offset"][0], 0);
    // The score of a greedy answer is what it was generated with.
    for key in ["tokens", "token_logprobs", "top_logprobs"] {
        assert_eq!(
            lists[key].as_array().unwrap()[3..],
            first["logprobs"][key].as_array().unwrap()[..],
            "{key}"
        );
    }
    for (top, chosen) in
        std::iter::zip(lists["top_logprobs"].as_array().unwrap(), lists["token_logprobs"].as_array().unwrap())
            .skip(1)
    {
        assert!((2..=3).contains(&top.as_object().unwrap().len()));
        assert!(top.as_object().unwrap().values().any(|logprob| logprob == chosen));
    }
}

#[tokio::test]
async fn a_stop_string_cuts_the_text_at_its_first_match() {
    let server = Server::fake().await;
    // Plain letters only: a random model would write broken characters.
    let vocabulary = tokenizer();
    let broken = (0..VOCAB_SIZE as u32).filter(|&id| {
        let bytes = vocabulary.token_bytes(id);
        bytes.is_empty() || !bytes.is_ascii() || vocabulary.is_special(id)
    });
    let bans: serde_json::Map<_, _> = broken.map(|id| (id.to_string(), json!(-100))).collect();
    let long = json!({"max_tokens": 80, "ignore_eos": true, "return_token_ids": true, "logit_bias": bans});
    let whole = answer(&server, COMPLETIONS, &completion(long.clone())).await;
    let text = whole["choices"][0]["text"].as_str().unwrap();
    let letters: Vec<char> = text.chars().collect();
    assert!(letters.len() > 30, "{text}");
    for start in [5, 11, 20] {
        let stop: String = letters[start..start + 4].iter().collect();
        let at = text.find(&stop).unwrap();
        let asked = with(long.clone(), &json!({"stop": [stop, "never there"]}));
        let cut = answer(&server, COMPLETIONS, &completion(asked.clone())).await;
        let choice = &cut["choices"][0];
        assert_eq!((choice["text"].as_str().unwrap(), &choice["stop_reason"]), (&text[..at], &json!(stop)));
        assert_eq!(choice["finish_reason"], "stop");
        let n_tokens = choice["token_ids"].as_array().unwrap().len();
        assert_eq!(cut["usage"]["completion_tokens"], n_tokens);
        let late = with(asked.clone(), &json!({"min_tokens": 60}));
        let late = answer(&server, COMPLETIONS, &completion(late)).await;
        assert!(late["usage"]["completion_tokens"].as_u64().unwrap() > 60, "stopped before min_tokens");
        let kept = with(asked, &json!({"include_stop_str_in_output": true}));
        let kept = answer(&server, COMPLETIONS, &completion(kept)).await;
        assert_eq!(kept["choices"][0]["text"], text[..at + stop.len()]);
    }
}

#[tokio::test]
async fn stop_ids_and_eos() {
    let server = Server::fake().await;
    // A bias of 100 makes the id the next token.
    let cases = [
        (json!({"logit_bias": {"1": 100}}), json!(null), "stop", 1),
        (json!({"logit_bias": {"300": 100}, "stop_token_ids": [300]}), json!(300), "stop", 1),
        (json!({"logit_bias": {"1": 100}, "stop_token_ids": [1]}), json!(null), "stop", 1),
        (json!({"logit_bias": {"1": 100}, "ignore_eos": true}), json!(null), "length", 12),
        (json!({"logit_bias": {"1": 100}, "ignore_eos": true, "stop_token_ids": [1]}), json!(1), "stop", 1),
        (json!({"logit_bias": {"1": 100}, "min_tokens": 4}), json!(null), "stop", 5),
    ];
    for (fields, stop, finish, n_tokens) in cases {
        let asked = with(fields, &json!({"return_token_ids": true}));
        let reply = answer(&server, COMPLETIONS, &completion(asked.clone())).await;
        let choice = &reply["choices"][0];
        assert_eq!((&choice["stop_reason"], &choice["finish_reason"]), (&stop, &json!(finish)), "{asked}");
        assert_eq!(choice["token_ids"].as_array().unwrap().len(), n_tokens, "{asked}");
        if n_tokens == 1 {
            assert_eq!(choice["text"], "", "{asked}");
        }
    }
    let asked =
        json!({"logit_bias": {"300": 100}, "stop_token_ids": [300], "include_stop_str_in_output": true});
    let reply = answer(&server, COMPLETIONS, &completion(asked)).await;
    let expected = String::from_utf8_lossy(&tokenizer().token_bytes(300)).into_owned();
    assert_eq!(reply["choices"][0]["text"], expected);
}

#[tokio::test]
async fn text_equals_its_token_ids() {
    let server = Server::fake().await;
    let text = json!({"prompt": "hello world", "return_token_ids": true});
    let by_text = answer(&server, COMPLETIONS, &text).await;
    let ids = by_text["choices"][0]["prompt_token_ids"].clone();
    let by_ids = answer(&server, COMPLETIONS, &json!({"prompt": ids})).await;
    assert_eq!(by_text["choices"][0]["text"], by_ids["choices"][0]["text"]);
    let tokenized = answer(&server, "/tokenize", &json!({"prompt": "hello world"})).await;
    assert_eq!(tokenized["tokens"], ids);
    assert_eq!(tokenized["count"], ids.as_array().unwrap().len());
    let plain = answer(
        &server,
        "/tokenize",
        &json!({"prompt": "hello world", "add_special_tokens": false, "return_token_strs": true}),
    )
    .await;
    assert_eq!(plain["token_strs"].as_array().unwrap().len() as u64, plain["count"]);
    let back = answer(&server, "/detokenize", &json!({"tokens": plain["tokens"]})).await;
    assert_eq!(back["prompt"], "hello world");

    let messages = json!([{"role": "user", "content": "hello there"}]);
    let by_chat = answer(&server, CHAT, &chat(json!({"return_token_ids": true}))).await;
    let tokenized = answer(&server, "/tokenize", &json!({"messages": messages})).await;
    assert_eq!(by_chat["prompt_token_ids"], tokenized["tokens"]);
    assert_eq!(
        tokenized["tokens"].as_array().unwrap().iter().filter(|id| **id == json!(0)).count(),
        1,
        "one BOS"
    );
}

#[tokio::test]
async fn seeds_and_choices() {
    let server = Server::fake().await;
    let text = |reply: &Value, i: usize| reply["choices"][i]["text"].clone();
    let seeded = json!({"temperature": 2, "seed": 5, "n": 3});
    let three = answer(&server, COMPLETIONS, &completion(seeded.clone())).await;
    let again = answer(&server, COMPLETIONS, &completion(seeded)).await;
    assert_eq!(three["choices"], again["choices"]);
    let one = answer(&server, COMPLETIONS, &completion(json!({"temperature": 2, "seed": 5}))).await;
    assert_eq!(text(&one, 0), text(&three, 0));
    assert_ne!(text(&three, 0), text(&three, 1));
    let fresh = json!({"temperature": 2});
    let a = answer(&server, COMPLETIONS, &completion(fresh.clone())).await;
    let b = answer(&server, COMPLETIONS, &completion(fresh)).await;
    assert_ne!(text(&a, 0), text(&b, 0));
    let greedy = answer(&server, COMPLETIONS, &completion(json!({"n": 2, "prompt": [[3, 4, 5], [6]]}))).await;
    let indices: Vec<_> = (0..4).map(|i| greedy["choices"][i]["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    assert_eq!(text(&greedy, 0), text(&greedy, 1));
    assert_ne!(text(&greedy, 0), text(&greedy, 2));
    assert_eq!(greedy["usage"]["prompt_tokens"], 4);
    assert_eq!(greedy["usage"]["completion_tokens"], 48);
}

#[tokio::test]
async fn running_usage() {
    let server = Server::fake().await;
    let asked =
        json!({"stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let events = server.post(COMPLETIONS, &completion(asked)).await.events();
    let counts: Vec<_> = events.iter().map(|e| e["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert!(counts.is_sorted() && counts.first() < counts.last(), "{counts:?}");
    let plain = server.post(COMPLETIONS, &completion(json!({"stream": true}))).await.events();
    assert!(plain.iter().all(|event| !event.as_object().unwrap().contains_key("usage")));
}
