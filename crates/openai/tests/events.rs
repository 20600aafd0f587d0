//! Answers of `/v1/responses` and `/v1/messages` as events, and the same whole.

use openai::{
    Code, CompletionTokensDetails, End, Error, Event, Finish, Part, PromptTokensDetails, StopReason,
    TokenLogprob, TopLogprob, Usage, anthropic, responses,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn responses() -> responses::Events {
    responses::Events::new(responses::Header {
        unique: "u1".into(),
        created: 1_700_000_000,
        model: "m".into(),
        echo: Map::from_iter([("temperature".to_owned(), json!(0.5))]),
    })
}

fn messages() -> anthropic::Events {
    let usage = Usage { prompt_tokens: 40, prompt_tokens_details: CACHED, ..Usage::default() };
    anthropic::Events::new(anthropic::Header { unique: "u1".into(), model: "m".into(), usage })
}

const CACHED: PromptTokensDetails = PromptTokensDetails { cached_tokens: 16 };

fn end(finish: Finish, stop: Option<StopReason>) -> End {
    let usage = Usage {
        prompt_tokens: 40,
        completion_tokens: 9,
        total_tokens: 49,
        prompt_tokens_details: CACHED,
        completion_tokens_details: CompletionTokensDetails { reasoning_tokens: 4 },
    };
    End { finish, stop, usage }
}

fn call(id: &str, name: &str) -> Part {
    Part::Call { id: id.into(), name: name.into() }
}

fn text(text: &str) -> Part {
    Part::Text(text.into())
}

fn all_kinds() -> Vec<Part> {
    vec![
        Part::Reasoning("h".into()),
        Part::Reasoning("m".into()),
        Part::Text(String::new()),
        text("a"),
        text("b"),
        call("call_1", "f"),
        Part::Arguments(r#"{"x""#.into()),
        Part::Arguments(":1}".into()),
        call("call_2", "g"),
        Part::Arguments("{}".into()),
        text("c"),
    ]
}

/// As they would be sent, a line an event; their names are in their data.
fn lines(events: &[Event]) -> String {
    let line = |event: &Event| {
        assert_eq!(event.data["type"], event.name);
        format!("{}\n", event.data)
    };
    events.iter().map(line).collect()
}

fn responses_stream(parts: Vec<Part>, end: End) -> Vec<Event> {
    let mut state = responses();
    let mut events = state.start();
    parts.into_iter().for_each(|part| events.extend(state.push(part)));
    events.extend(state.finish(end));
    assert_eq!(events.last().unwrap().data["response"], state.whole(), "the last event has the whole answer");
    events
}

fn messages_stream(parts: Vec<Part>, end: End) -> (Vec<Event>, Value) {
    let mut state = messages();
    let mut events = state.start();
    parts.into_iter().for_each(|part| events.extend(state.push(part)));
    events.extend(state.finish(end));
    (events, state.whole())
}

#[test]
fn responses_events() {
    let tool_calls = end(Finish::ToolCalls, None);
    insta::assert_snapshot!("responses_all_kinds", lines(&responses_stream(all_kinds(), tool_calls)));
    let cut = responses_stream(vec![text("a")], end(Finish::Length, None));
    insta::assert_snapshot!("responses_cut", lines(&cut));
    let empty = responses_stream(vec![], end(Finish::Stop, None));
    insta::assert_snapshot!("responses_empty", lines(&empty));
}

#[test]
fn responses_failure() {
    let mut state = responses();
    let mut events = state.start();
    events.extend(state.push(text("a")));
    events.extend(state.fail(&Error::at(Code::InvalidValue, "input", "What happened.")));
    insta::assert_snapshot!("responses_failure", lines(&events));
    let code = |code| responses().fail(&Error::new(code, "x"))[1].data["response"]["error"]["code"].clone();
    assert_eq!(code(Code::ServerOverloaded), "rate_limit_exceeded");
    assert_eq!(code(Code::RequestExpired), "server_error");
}

#[test]
fn responses_log_probabilities() {
    let scored = |token: &str| {
        let chosen = TopLogprob { token: token.into(), logprob: -0.5, bytes: token.into() };
        TokenLogprob { top_logprobs: vec![chosen.clone()], chosen }
    };
    let mut state = responses();
    let mut events = state.push(Part::Reasoning("h".into()));
    state.score(&[scored("a"), scored("b")]);
    events.extend(state.push(text("ab")));
    state.score(&[scored("c")]);
    events.extend(state.push(text("c")));
    state.score(&[scored("")]);
    events.extend(state.finish(end(Finish::Stop, None)));
    let tokens = |logprobs: &Value| -> Vec<String> {
        let logprobs = logprobs.as_array().into_iter().flatten();
        logprobs.map(|scored| scored["token"].as_str().unwrap().to_owned()).collect()
    };
    let delta = |event: &&Event| event.name == "response.output_text.delta";
    let told: Vec<_> = events.iter().filter(delta).map(|event| tokens(&event.data["logprobs"])).collect();
    assert_eq!(told, [vec!["a", "b"], vec!["c"], vec![""]]);
    let whole = state.whole();
    let logprobs = &whole["output"][1]["content"][0]["logprobs"];
    assert_eq!(tokens(logprobs), ["a", "b", "c", ""]);
    assert_eq!(
        logprobs[0],
        json!({"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[{"token":"a","logprob":-0.5,"bytes":[97]}]})
    );
    let done = events.iter().find(|event| event.name == "response.output_text.done").unwrap();
    assert_eq!(&done.data["logprobs"], logprobs);
}

#[test]
fn messages_events() {
    let (events, whole) = messages_stream(all_kinds(), end(Finish::ToolCalls, None));
    insta::assert_snapshot!("messages_all_kinds", format!("{}{whole}\n", lines(&events)));
    let stop = Some(StopReason::Text("x".into()));
    let (events, whole) = messages_stream(vec![text("a")], end(Finish::Stop, stop));
    insta::assert_snapshot!("messages_stop_sequence", format!("{}{whole}\n", lines(&events)));
    for (finish, stop, expected) in [
        (Finish::Stop, None, "end_turn"),
        (Finish::Stop, Some(StopReason::Id(3)), "end_turn"),
        (Finish::Length, None, "max_tokens"),
    ] {
        let (_, whole) = messages_stream(vec![], end(finish, stop));
        assert_eq!((&whole["stop_reason"], &whole["stop_sequence"]), (&json!(expected), &json!(null)));
        assert_eq!(whole["content"], json!([]));
    }
    assert_eq!(lines(&[anthropic::ping()]), "{\"type\":\"ping\"}\n");
    let error = Error::new(Code::InternalError, "What happened.");
    let failed = messages().fail(&error);
    assert_eq!((failed[0].name, &failed[0].data), ("error", &anthropic::error_body(&error)));
}

#[test]
fn input_that_was_cut_off_is_still_an_object() {
    let parts = vec![call("1", "f"), Part::Arguments(r#"{"a":[1,2],"b":"x"#.into())];
    let (_, whole) = messages_stream(parts, end(Finish::Length, None));
    assert_eq!(whole["content"][0]["input"], json!({"a":[1,2]}));
}

/// What a client makes of the events of `/v1/responses`, which are its only source.
fn output_of(events: &[Event]) -> Vec<Value> {
    let mut output: Vec<Value> = Vec::new();
    for (number, Event { name, data }) in events.iter().enumerate() {
        assert_eq!(data["sequence_number"], number);
        let item = data["output_index"].as_u64().map(|index| index as usize);
        let add = |text: &mut Value| {
            *text = (text.as_str().unwrap().to_owned() + data["delta"].as_str().unwrap()).into()
        };
        match *name {
            "response.output_item.added" => {
                assert_eq!(item, Some(output.len()));
                output.push(data["item"].clone());
            }
            "response.content_part.added" => {
                output[item.unwrap()]["content"].as_array_mut().unwrap().push(data["part"].clone());
            }
            "response.reasoning_text.delta" if output[item.unwrap()]["content"] == json!([]) => {
                output[item.unwrap()]["content"] = json!([{"type":"reasoning_text","text":data["delta"]}]);
            }
            "response.reasoning_text.delta" | "response.output_text.delta" => {
                add(&mut output[item.unwrap()]["content"][0]["text"]);
            }
            "response.function_call_arguments.delta" => add(&mut output[item.unwrap()]["arguments"]),
            "response.output_item.done" => {
                let built = &mut output[item.unwrap()];
                assert_eq!(built["status"], "in_progress");
                built["status"] = data["item"]["status"].clone();
                assert_eq!(built, &data["item"]);
            }
            _ => {}
        }
        if item.is_some_and(|item| item < output.len()) && data["item_id"].is_string() {
            assert_eq!(data["item_id"], output[item.unwrap()]["id"]);
        }
    }
    output
}

/// What a client makes of the events of `/v1/messages`.
fn message_of(events: &[Event]) -> Value {
    let mut message = Value::Null;
    let mut inputs = Vec::new();
    for Event { name, data } in events {
        let index = data["index"].as_u64().unwrap_or(0) as usize;
        match *name {
            "message_start" => message = data["message"].clone(),
            "content_block_start" => {
                assert_eq!(index, inputs.len());
                inputs.push(String::new());
                message["content"].as_array_mut().unwrap().push(data["content_block"].clone());
            }
            "content_block_delta" => {
                let block = &mut message["content"][index];
                for key in ["text", "thinking", "signature"] {
                    if let Some(delta) = data["delta"][key].as_str() {
                        block[key] = (block[key].as_str().unwrap().to_owned() + delta).into();
                    }
                }
                inputs[index] += data["delta"]["partial_json"].as_str().unwrap_or_default();
            }
            "content_block_stop" if !inputs[index].is_empty() => {
                message["content"][index]["input"] = serde_json::from_str(&inputs[index]).unwrap();
            }
            "message_delta" => {
                message["stop_reason"] = data["delta"]["stop_reason"].clone();
                message["stop_sequence"] = data["delta"]["stop_sequence"].clone();
                message["usage"] = data["usage"].clone();
            }
            _ => {}
        }
    }
    message
}

/// Parts as a model makes them, texts and arguments in pieces.
fn answer() -> impl Strategy<Value = Vec<Part>> {
    let pieces = |part: fn(String) -> Part| {
        prop::collection::vec(".{0,3}", 0..4).prop_map(move |texts| texts.into_iter().map(part).collect())
    };
    let call = (0_u32..9, any::<bool>(), 0_usize..20).prop_map(|(id, empty, cut)| {
        let arguments = if empty { String::new() } else { json!({"a": id, "b": "é\"}"}).to_string() };
        let cut = arguments.char_indices().map(|(i, _)| i).nth(cut).unwrap_or(0);
        let (head, tail) = arguments.split_at(cut);
        let call = Part::Call { id: format!("call_{id}"), name: "f".into() };
        vec![call, Part::Arguments(head.into()), Part::Arguments(tail.into())]
    });
    let block = prop_oneof![pieces(Part::Reasoning), pieces(Part::Text), call];
    prop::collection::vec(block, 0..5).prop_map(|blocks: Vec<Vec<Part>>| blocks.concat())
}

/// The same answer in as few parts as can be.
fn joined(parts: &[Part]) -> Vec<Part> {
    let mut whole: Vec<Part> = Vec::new();
    for part in parts.iter().cloned() {
        match (whole.last_mut(), part) {
            (_, Part::Text(text) | Part::Reasoning(text)) if text.is_empty() => {}
            (Some(Part::Text(all)), Part::Text(text))
            | (Some(Part::Reasoning(all)), Part::Reasoning(text))
            | (Some(Part::Arguments(all)), Part::Arguments(text)) => all.push_str(&text),
            (_, part) => whole.push(part),
        }
    }
    whole
}

fn finish() -> impl Strategy<Value = Finish> {
    prop_oneof![Just(Finish::Stop), Just(Finish::Length), Just(Finish::ToolCalls)]
}

proptest! {
    #[test]
    fn events_add_up_to_the_whole_answer(parts in answer(), finish in finish()) {
        let events = responses_stream(parts.clone(), end(finish, None));
        let response = &events.last().unwrap().data["response"];
        prop_assert_eq!(&Value::Array(output_of(&events)), &response["output"]);
        let at_once = responses_stream(joined(&parts), end(finish, None));
        prop_assert_eq!(&at_once.last().unwrap().data["response"], response);

        let (events, whole) = messages_stream(parts.clone(), end(finish, None));
        prop_assert_eq!(message_of(&events), whole.clone());
        prop_assert_eq!(messages_stream(joined(&parts), end(finish, None)).1, whole);
    }
}
