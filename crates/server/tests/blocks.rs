//! `/v1/responses`, Anthropic's `/v1/messages`, and reasoning over HTTP.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Reply, Scripted, Server, SharedScript, finished, model, options, started, tokens};
use engine::request::FinishReason;
use serde_json::{Value, json};
use server::{Options, ServedModel};
use text::{ChatTemplate, Tokenizer};

/// A model of the R1 shape that says this text: its template opens `<think>`.
async fn saying(options: Options, text: &'static str) -> Server {
    let file = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/tokenizer/r1");
        std::fs::read(folder.join(name)).expect("a golden")
    };
    let config = file("tokenizer_config.json");
    let tokenizer = Arc::new(Tokenizer::from_bytes(&file("tokenizer.json"), Some(&config)).unwrap());
    let template = ChatTemplate::from_config(&config).unwrap().map(Arc::new);
    let eos = tokenizer.eos_id().unwrap();
    let speaker = tokenizer.clone();
    let play = Scripted::new(move |_, script| {
        script.send(started());
        for id in speaker.encode(text, false).unwrap() {
            script.send(tokens(&[id]));
        }
        script.send(tokens(&[eos]));
        script.send(finished(FinishReason::Stop));
    });
    let server = Server::loading(options).await;
    let engine = Box::new(SharedScript(Arc::new(play)));
    server.app.set_model(ServedModel {
        tokenizer,
        chat_template: template,
        eos_ids: vec![eos],
        context_len: 2_000,
        ..model(engine)
    });
    server
}

const TEXT: &str = "I add.\n</think>\n\nIt is 42, END of it.";
const CALL: &str = "look</think>Well.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";

fn chat(fields: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 300});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

async fn ok(server: &Server, path: &str, body: &Value) -> Reply {
    let reply = server.post(path, body).await;
    assert_eq!(reply.status, 200, "{body}: {reply:?}");
    reply
}

#[tokio::test(flavor = "multi_thread")]
async fn reasoning_is_told_apart_and_stop_strings_do_not_look_into_it() {
    let server = saying(options(), TEXT).await;
    let ask = async |fields: Value| ok(&server, "/v1/chat/completions", &chat(fields)).await.json();
    let whole = ask(json!({})).await;
    let message = &whole["choices"][0]["message"];
    assert_eq!(
        (&message["reasoning_content"], &message["content"]),
        (&json!("I add."), &json!("It is 42, END of it."))
    );
    let reasoned = whole["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
    assert!(reasoned > 0 && reasoned < whole["usage"]["completion_tokens"].as_u64().unwrap());
    let stopped = ask(json!({"stop": ["add", " END"]})).await;
    let choice = &stopped["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["stop_reason"]),
        (&json!("It is 42,"), &json!(" END"))
    );
    assert_eq!(choice["message"]["reasoning_content"], "I add.");
    let hidden = ask(json!({"include_reasoning": false})).await;
    assert_eq!(hidden["choices"][0]["message"]["reasoning_content"], Value::Null);
    assert_eq!(hidden["choices"][0]["message"]["content"], "It is 42, END of it.");
    // The template closes it, so there is none.
    let off = ask(json!({"reasoning_effort": "none"})).await;
    assert!(
        off["choices"][0]["message"]["content"].as_str().unwrap().starts_with("I add.\n</think>"),
        "{off}"
    );

    let events = ok(&server, "/v1/chat/completions", &chat(json!({"stream": true}))).await.events();
    let deltas = || {
        events.iter().flat_map(|event| event["choices"].as_array().unwrap()).map(|choice| &choice["delta"])
    };
    let joined = |key: &str| deltas().filter_map(|delta| delta[key].as_str()).collect::<String>();
    assert_eq!(
        (joined("reasoning_content").as_str(), joined("content").as_str()),
        ("I add.", "It is 42, END of it.")
    );

    let inline = saying(Options { separate_reasoning: false, ..options() }, TEXT).await;
    let whole = ok(&inline, "/v1/chat/completions", &chat(json!({}))).await.json();
    assert_eq!(whole["choices"][0]["message"]["content"], TEXT);
}

/// The events of a stream that has names for them.
fn named(reply: &Reply) -> Vec<(String, Value)> {
    let event = |event: &str| {
        let (name, data) = event.split_once("\ndata: ").unwrap_or_else(|| panic!("{event:?}"));
        (name.strip_prefix("event: ").unwrap().to_owned(), serde_json::from_str(data).unwrap())
    };
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    reply.body.split_terminator("\n\n").filter(|part| !part.starts_with(':')).map(event).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_whole_and_streamed() {
    let server = saying(options(), CALL).await;
    let tool = json!({"type": "function", "name": "f", "parameters": {"type": "object"}});
    let mut body =
        json!({"input": "hi", "tools": [tool], "max_output_tokens": 300, "instructions": "Be short."});
    let whole = ok(&server, "/v1/responses", &body).await.json();
    let kinds: Vec<&str> =
        whole["output"].as_array().unwrap().iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call"], "{whole}");
    assert_eq!(
        (&whole["output"][2]["arguments"], &whole["status"]),
        (&json!("{\"a\": 1}"), &json!("completed"))
    );
    assert_eq!((&whole["instructions"], &whole["temperature"]), (&json!("Be short."), &json!(0.0)));
    body["stream"] = true.into();
    let events = named(&ok(&server, "/v1/responses", &body).await);
    let numbers: Vec<u64> =
        events.iter().map(|(_, data)| data["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    assert!(events.iter().all(|(name, data)| data["type"] == *name));
    let (last, data) = events.last().unwrap();
    assert_eq!((events[0].0.as_str(), last.as_str()), ("response.created", "response.completed"));
    let shape = |answer: &Value| {
        let items = answer["output"].as_array().unwrap().iter();
        items
            .map(|item| json!([item["type"], item["content"], item["arguments"], item["name"]]))
            .collect::<Vec<_>>()
    };
    assert_eq!((shape(&data["response"]), &data["response"]["usage"]), (shape(&whole), &whole["usage"]));

    let long = json!({"input": "x".repeat(50_000), "max_output_tokens": 5});
    let reply = server.post("/v1/responses", &long).await;
    assert_eq!(reply.error(), ("context_length_exceeded".to_owned(), Some("input".to_owned())), "{reply:?}");
    assert_eq!(server.get("/v1/responses/resp_1").await.status, 404);
    assert_eq!(server.post("/v1/responses", &json!({"input": []})).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_whole_streamed_and_their_errors() {
    let keyed = Options { api_keys: ["k"].into_iter().collect(), ..options() };
    let refused = saying(keyed, CALL).await.post("/v1/messages", &json!({})).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]["type"]),
        (401, &json!("authentication_error")),
        "{refused:?}"
    );

    let server = saying(options(), CALL).await;
    let tool = json!({"name": "f", "input_schema": {"type": "object"}});
    let mut body = json!({"model": "org/fake", "max_tokens": 300, "tools": [tool], "messages": [{"role": "user", "content": "hi"}]});
    let whole = ok(&server, "/v1/messages", &body).await.json();
    let kinds: Vec<&str> =
        whole["content"].as_array().unwrap().iter().map(|block| block["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["thinking", "text", "tool_use"], "{whole}");
    assert_eq!(
        (&whole["content"][2]["input"], &whole["stop_reason"]),
        (&json!({"a": 1}), &json!("tool_use"))
    );
    let counted = ok(&server, "/v1/messages/count_tokens", &body).await.json();
    assert_eq!(counted, json!({"input_tokens": whole["usage"]["input_tokens"]}));
    body["stream"] = true.into();
    let events = named(&ok(&server, "/v1/messages", &body).await);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        (names[0], names[names.len() - 2], names[names.len() - 1]),
        ("message_start", "message_delta", "message_stop")
    );
    let json: String = events.iter().filter_map(|(_, data)| data["delta"]["partial_json"].as_str()).collect();
    assert_eq!(json, "{\"a\": 1}");

    let check = async |body: Value, status: u16, kind: &str| {
        let reply = server.post("/v1/messages", &body).await;
        assert_eq!((reply.status, &reply.json()["type"]), (status, &json!("error")), "{reply:?}");
        assert_eq!(reply.json()["error"]["type"], kind, "{reply:?}");
    };
    check(json!({"model": "org/fake", "messages": []}), 400, "invalid_request_error").await;
    check(
        json!({"model": "other", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}]}),
        404,
        "not_found_error",
    )
    .await;
    check(
        json!({"model": "org/fake", "max_tokens": 5, "messages": [{"role": "user", "content": "x".repeat(50_000)}]}),
        400,
        "invalid_request_error",
    )
    .await;
    let wrong = server.get("/v1/messages").await;
    assert_eq!((wrong.status, &wrong.json()["type"]), (405, &json!("error")), "{wrong:?}");
}

/// What the template refuses is the client's to mend.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_message_is_continued_over_http() {
    let server = saying(options(), " and on").await;
    let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I go"}]);
    let body = json!({"messages": messages, "continue_final_message": true, "max_tokens": 50, "return_token_ids": true});
    let whole = ok(&server, "/v1/chat/completions", &body).await.json();
    assert_eq!(whole["choices"][0]["message"]["content"], " and on");
    let ids = json!({"tokens": whole["prompt_token_ids"]});
    let prompt = ok(&server, "/detokenize", &ids).await.json()["prompt"].as_str().unwrap().to_owned();
    assert!(prompt.ends_with("I go"), "{prompt}");
}
