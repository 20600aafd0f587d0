//! Answers of a form: schemas, tool calls and reasoning over HTTP, from a model that says anything.

mod common;

use std::sync::Arc;

use common::{
    EOS, Scripted, Server, SharedScript, finished, model, model_limits, options, started, tokenizer, tokens,
};
use engine::request::FinishReason;
use engine::runner::Limits;
use engine::testing::FakeRunner;
use serde_json::{Value, json};
use server::{Options, ServedModel};

const CHAT: &str = "/v1/chat/completions";
const SCHEMAS: &str = include_str!("../../../tests/schemas.json");

/// The real engine on noise, with room for long prompts.
async fn noise(options: Options) -> Server {
    let limits = Limits { context_len: 2_000, n_blocks: 4_000, step_tokens: 64, ..model_limits() };
    let context_len = limits.context_len;
    let server = Server::loading(options).await;
    let of_engine = engine::Options { sampled_vocab: tokenizer().vocab_size(), ..engine::Options::default() };
    let (handle, _) = engine::start(FakeRunner::new(limits), of_engine);
    server.app.set_model(ServedModel { context_len, max_waiting: 1_000, ..model(Box::new(handle)) });
    server
}

fn chat(fields: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hello"}], "temperature": 1});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

async fn choice(server: &Server, body: &Value) -> Value {
    let reply = server.post(CHAT, body).await;
    assert_eq!(reply.status, 200, "{body}: {reply:?}");
    reply.json()["choices"][0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_schemas_hold_whatever_the_model_wants() {
    let server = noise(options()).await;
    let schemas: Vec<Value> = serde_json::from_str(SCHEMAS).unwrap();
    let mut n_ended = 0;
    for (seed, schema) in schemas.iter().enumerate() {
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
        let body = chat(json!({"response_format": format, "seed": seed, "max_tokens": 400}));
        let choice = choice(&server, &body).await;
        let text = choice["message"]["content"].as_str().unwrap();
        if choice["finish_reason"] == "stop" {
            let value: Value = match serde_json::from_str(text) {
                Ok(value) => value,
                // JSON all the same: 1E999.
                Err(why) if why.to_string().contains("number out of range") => continue,
                Err(why) => panic!("{text}: {why}"),
            };
            let validator = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
            assert!(validator.is_valid(&value), "{text} of {schema}");
            n_ended += 1;
        } else {
            assert_eq!(choice["finish_reason"], "length", "{choice}");
        }
    }
    assert!(n_ended > 150, "{n_ended} came to an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_forms_hold_too() {
    let server = noise(options()).await;
    for seed in 0..5 {
        let text = async |fields: Value| {
            let mut body = chat(fields);
            body["seed"] = seed.into();
            let choice = choice(&server, &body).await;
            assert_eq!(choice["finish_reason"], "stop", "{choice}");
            choice["message"]["content"].as_str().unwrap().to_owned()
        };
        let one = text(json!({"structured_outputs": {"choice": ["yes", "no", "yes, but"]}})).await;
        assert!(["yes", "no", "yes, but"].contains(&one.as_str()), "{one}");
        let date = text(json!({"guided_regex": "[0-9]{4}-[0-9]{2}"})).await;
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        assert!(date.len() == 7 && digits(&date[..4]) && digits(&date[5..]), "{date}");
        let sum =
            text(json!({"structured_outputs": {"grammar": "start: N (\"+\" N){1,3}\nN: /[1-9]/"}})).await;
        assert!(sum.split('+').all(|part| part.len() == 1 && digits(part)), "{sum}");
    }
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 6},
        "days": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["city"], "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "weather", "description": "d", "parameters": parameters}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_come_where_they_must_and_validate() {
    let parameters = tools()[0]["function"]["parameters"].clone();
    let validator = jsonschema::validator_for(&parameters).unwrap();
    for format in
        [None, Some("deepseek-v3.1"), Some("deepseek-v3.2"), Some("kimi-k2"), Some("glm"), Some("hermes")]
    {
        let server = noise(Options { tool_format: format.map(str::to_owned), ..options() }).await;
        let named = json!({"type": "function", "function": {"name": "weather"}});
        for (seed, tool_choice) in (0..).zip([json!("required"), named.clone(), json!("required"), named]) {
            let only = tool_choice.is_object();
            let asked = json!({"tools": tools(), "tool_choice": tool_choice, "parallel_tool_calls": false, "seed": seed, "max_tokens": 600});
            let choice = choice(&server, &chat(asked)).await;
            if choice["finish_reason"] == "length" {
                continue; // a string that did not end
            }
            assert_eq!(choice["finish_reason"], "tool_calls", "{format:?}: {choice}");
            assert_eq!(choice["message"]["content"], Value::Null, "{choice}");
            let calls = choice["message"]["tool_calls"].as_array().unwrap();
            assert_eq!(calls.len(), 1, "{choice}");
            let (name, id) =
                (calls[0]["function"]["name"].as_str().unwrap(), calls[0]["id"].as_str().unwrap());
            assert!(name == "weather" || !only && name == "now", "{choice}");
            assert!(id.starts_with(if format == Some("kimi-k2") { "functions." } else { "call_" }), "{id}");
            let arguments = calls[0]["function"]["arguments"].as_str().unwrap();
            let arguments: Value =
                serde_json::from_str(arguments).unwrap_or_else(|why| panic!("{arguments}: {why}"));
            assert!(name != "weather" || validator.is_valid(&arguments), "{format:?}: {arguments}");
        }
    }
}

/// Joins a stream's deltas.
fn fold(events: &[Value]) -> Value {
    let mut message =
        json!({"content": "", "reasoning_content": "", "tool_calls": [], "finish_reason": null});
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        let delta = &choice["delta"];
        for key in ["content", "reasoning_content"] {
            let joined = message[key].as_str().unwrap().to_owned() + delta[key].as_str().unwrap_or("");
            message[key] = joined.into();
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let calls = message["tool_calls"].as_array_mut().unwrap();
            let index = call["index"].as_u64().unwrap() as usize;
            if index == calls.len() {
                assert_eq!(call["type"], "function", "{call}");
                calls.push(json!({"name": call["function"]["name"], "arguments": ""}));
            }
            assert_eq!(index + 1, calls.len(), "calls come in order: {call}");
            let last = calls.last_mut().unwrap();
            let joined = last["arguments"].as_str().unwrap().to_owned()
                + call["function"]["arguments"].as_str().unwrap();
            last["arguments"] = joined.into();
        }
        if choice["finish_reason"].is_string() {
            assert_eq!(*delta, json!({}), "{choice}");
            message["finish_reason"] = choice["finish_reason"].clone();
        }
    }
    message
}

fn flat(choice: &Value) -> Value {
    let message = &choice["message"];
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    let calls: Vec<Value> = calls.map(|call| call["function"].clone()).collect();
    json!({
        "content": message["content"].as_str().unwrap_or(""),
        "reasoning_content": message["reasoning_content"].as_str().unwrap_or(""),
        "tool_calls": calls,
        "finish_reason": choice["finish_reason"],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_as_whole() {
    let server = noise(options()).await;
    for (seed, fields) in (0..).zip([
        json!({"tools": tools(), "tool_choice": "required"}),
        json!({"tools": tools(), "tool_choice": "required", "stop": ["3"]}),
        json!({"tools": tools(), "max_tokens": 80}),
        json!({"response_format": {"type": "json_object"}, "max_tokens": 60}),
        json!({"structured_outputs": {"choice": ["abc", "abd"]}}),
    ]) {
        let mut body = chat(fields);
        body["seed"] = seed.into();
        body.as_object_mut().unwrap().entry("max_tokens").or_insert(json!(200));
        let whole = choice(&server, &body).await;
        body["stream"] = true.into();
        let reply = server.post(CHAT, &body).await;
        assert_eq!(fold(&reply.events()), flat(&whole), "{body}");
    }
}

/// A model that says this text, its control tokens as tokens, a token an event.
async fn saying(options: Options, text: &'static str) -> Server {
    let play = Scripted::new(move |_, script| {
        script.send(started());
        let ids = tokenizer().encode(text, false).unwrap();
        for id in ids {
            script.send(tokens(&[id]));
        }
        script.send(tokens(&[EOS]));
        script.send(finished(FinishReason::Stop));
    });
    let server = Server::loading(options).await;
    let engine = Box::new(SharedScript(Arc::new(play)));
    server.app.set_model(ServedModel { context_len: 2_000, ..model(engine) });
    server
}

const CALLS: &str = "I look.\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Köln\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";

#[tokio::test(flavor = "multi_thread")]
async fn a_model_s_own_calls_are_told_apart() {
    let server = saying(options(), CALLS).await;
    let body = chat(json!({"tools": tools(), "max_tokens": 200}));
    let whole = choice(&server, &body).await;
    assert_eq!(whole["message"]["content"], "I look.");
    let calls: Vec<_> = whole["message"]["tool_calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| call["function"].clone())
        .collect();
    assert_eq!(
        calls,
        [
            json!({"name": "weather", "arguments": "{\"city\": \"Köln\"}"}),
            json!({"name": "now", "arguments": "{}"})
        ]
    );
    assert_eq!(whole["finish_reason"], "tool_calls");
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    assert_eq!(fold(&server.post(CHAT, &streamed).await.events()), flat(&whole));
    server.until_metric("vllm:request_success_total{finished_reason=\"tool_calls\"", 2.0).await;

    // Without tools it is text, and special tokens are left out as ever.
    let whole = choice(&server, &chat(json!({"max_tokens": 200}))).await;
    let text = whole["message"]["content"].as_str().unwrap();
    assert!(text.starts_with("I look.\n\nfunctionweather\n```json\n"), "{text}");
    assert_eq!((&whole["finish_reason"], &whole["message"]["tool_calls"]), (&json!("stop"), &Value::Null));
    // With `none`, too.
    let whole =
        choice(&server, &chat(json!({"tools": tools(), "tool_choice": "none", "max_tokens": 200}))).await;
    assert_eq!(whole["message"]["content"], text);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_call_comes_back_as_it_was_said() {
    let text = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>nobody\n```json\n{}\n```<｜tool▁call▁end｜>";
    let server = saying(options(), text).await;
    let whole = choice(&server, &chat(json!({"tools": tools(), "max_tokens": 100}))).await;
    assert_eq!(whole["message"]["content"], text);
    assert_eq!(whole["finish_reason"], "stop");
}

/// This template knows no thinking, so the tags are only letters.
#[tokio::test(flavor = "multi_thread")]
async fn without_reasoning_its_tags_are_text() {
    let server = saying(options(), "<think>a</think>b").await;
    let whole = choice(&server, &chat(json!({"max_tokens": 100}))).await;
    assert_eq!(whole["message"]["content"], "<think>a</think>b");
    assert_eq!(whole["message"]["reasoning_content"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_enforced_is_refused_by_name_and_the_next_is_served() {
    let server = noise(options()).await;
    let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    let tool = |schema: Value, strict: bool| json!([{"type": "function", "function": {"name": "f", "parameters": schema, "strict": strict}}]);
    let big: Vec<String> = (0..9_000).map(|i| format!("value number {i}")).collect();
    let cases = [
        (schema(json!({"not": {}})), "invalid_schema", "response_format.json_schema.schema.not"),
        (
            schema(json!({"items": {"type": "tuple"}})),
            "invalid_schema",
            "response_format.json_schema.schema.items.type",
        ),
        (
            schema(json!({"$ref": "https://example.com/x"})),
            "invalid_schema",
            "response_format.json_schema.schema.$ref",
        ),
        (schema(json!({"$ref": "#"})), "invalid_schema", "response_format.json_schema.schema"),
        (schema(json!({"enum": big})), "invalid_schema", "response_format.json_schema.schema"),
        (schema(json!(false)), "invalid_schema", "response_format.json_schema.schema"),
        (json!({"guided_regex": "(a"}), "invalid_grammar", "guided_regex"),
        (json!({"guided_regex": "(?=a)"}), "invalid_grammar", "guided_regex"),
        (
            json!({"structured_outputs": {"grammar": "start: nowhere"}}),
            "invalid_grammar",
            "structured_outputs.grammar",
        ),
        (
            json!({"structured_outputs": {"grammar": "start: start"}}),
            "invalid_grammar",
            "structured_outputs.grammar",
        ),
        (json!({"guided_grammar": ""}), "invalid_grammar", "guided_grammar"),
        (json!({"guided_regex": "a", "ignore_eos": true}), "invalid_value", "ignore_eos"),
        (
            json!({"tools": tool(json!({"properties": {"a": {"not": {}}}}), true)}),
            "invalid_schema",
            "tools[0].function.parameters.properties.a.not",
        ),
        (
            json!({"tools": tool(json!({"properties": {"a": {"not": {}}}}), false), "tool_choice": "required"}),
            "invalid_schema",
            "tools[0].function.parameters.properties.a.not",
        ),
    ];
    for (fields, code, param) in cases {
        let reply = server.post(CHAT, &chat(fields.clone())).await;
        assert_eq!(reply.status, 400, "{fields}: {reply:?}");
        assert_eq!(reply.error(), (code.to_owned(), Some(param.to_owned())), "{reply:?}");
        let good = chat(json!({"guided_choice": ["ok"], "max_tokens": 5}));
        assert_eq!(choice(&server, &good).await["message"]["content"], "ok");
    }
    // As far as it can be enforced.
    let lenient = chat(
        json!({"tools": tool(json!({"properties": {"a": {"not": {}}}}), false), "max_tokens": 5, "min_tokens": 5}),
    );
    assert_eq!(choice(&server, &lenient).await["finish_reason"], "length");
    let look_around = json!({"properties": {"a": {"type": "string", "pattern": "^(?!x)"}}});
    let unheld = chat(json!({"tools": tool(look_around.clone(), false), "max_tokens": 5, "min_tokens": 5}));
    assert_eq!(choice(&server, &unheld).await["finish_reason"], "length");
    let strict = chat(json!({"tools": tool(look_around, true), "max_tokens": 5}));
    assert_eq!(server.post(CHAT, &strict).await.error().0, "invalid_schema");
    assert!(server.metric("strait:grammar_mask_seconds_count").await > 0.0);
}
