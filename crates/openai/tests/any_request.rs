//! Requests of any shape: each is understood or refused, and what was ignored is told.

use openai::anthropic::MessagesRequest;
use openai::responses::ResponsesRequest;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Words that mean something to one of the routes, as keys and as values.
const WORDS: &[&str] = &[
    "arguments",
    "assistant",
    "budget_tokens",
    "call_id",
    "content",
    "disabled",
    "effort",
    "enabled",
    "format",
    "function",
    "function_call",
    "function_call_output",
    "id",
    "include",
    "input",
    "input_schema",
    "input_text",
    "instructions",
    "json_schema",
    "max_tokens",
    "message",
    "messages",
    "metadata",
    "name",
    "output",
    "output_text",
    "parameters",
    "reasoning",
    "reasoning_text",
    "role",
    "schema",
    "stream",
    "summary",
    "system",
    "text",
    "thinking",
    "tool",
    "tool_choice",
    "tool_result",
    "tool_use",
    "tool_use_id",
    "tools",
    "type",
    "user",
];

fn word() -> impl Strategy<Value = String> {
    prop::sample::select(WORDS).prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2_i64..3000).prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(word(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_shape_gives_an_answer(fields in prop::collection::vec((word(), value()), 0..4)) {
        let mut body = json!({"input": "hi", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]});
        let given: Map<String, Value> = fields.into_iter().collect();
        body.as_object_mut().unwrap().extend(given);
        let for_messages = body.to_string();
        body.as_object_mut().unwrap().retain(|key, _| !["max_tokens", "messages"].contains(&key.as_str()));
        let for_responses = body.to_string();
        if let Ok(parsed) = MessagesRequest::parse(for_messages.as_bytes()) {
            prop_assert!(!parsed.request.chat.messages.is_empty());
        }
        if let Ok(parsed) = ResponsesRequest::parse(for_responses.as_bytes(), 100) {
            let chat = parsed.request.chat;
            let said = chat.messages.iter().all(|m| m.content.is_some() || !m.tool_calls.is_empty());
            prop_assert!(said && !chat.messages.is_empty());
        }
    }
}
