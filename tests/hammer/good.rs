//! Requests as clients should send them: the grammar from which mutations start.

use serde_json::{Map, Value, json};

use crate::dice::Dice;

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const COMPLETIONS: &str = "/v1/completions";
pub(crate) const RESPONSES: &str = "/v1/responses";
pub(crate) const MESSAGES: &str = "/v1/messages";
pub(crate) const COUNT: &str = "/v1/messages/count_tokens";
pub(crate) const TOKENIZE: &str = "/tokenize";
pub(crate) const DETOKENIZE: &str = "/detokenize";

/// What generates stands there twice.
pub(crate) const ROUTES: [&str; 11] = [
    CHAT,
    CHAT,
    COMPLETIONS,
    COMPLETIONS,
    RESPONSES,
    RESPONSES,
    MESSAGES,
    MESSAGES,
    COUNT,
    TOKENIZE,
    DETOKENIZE,
];

const TEXTS: [&str; 6] = ["hi", "Count to 4", "What is 2 + 3?", "got any jokes??", " ", "naïve café 🦀"];

pub(crate) fn request(route: &str, dice: &mut Dice) -> Value {
    let mut body = match route {
        CHAT => json!({"messages": chat_messages(dice), "max_tokens": 1 + dice.below(4)}),
        COMPLETIONS => json!({"prompt": prompt(dice), "max_tokens": 1 + dice.below(4)}),
        RESPONSES => json!({"input": input(dice), "max_output_tokens": 1 + dice.below(4)}),
        MESSAGES => json!({"messages": turns(dice), "max_tokens": 1 + dice.below(4)}),
        COUNT => json!({"messages": turns(dice)}),
        TOKENIZE if dice.one_in(2) => json!({"prompt": dice.of(&TEXTS)}),
        TOKENIZE => json!({"messages": chat_messages(dice)}),
        _ => json!({"tokens": ids(dice)}),
    };
    let fields: Vec<(String, Value)> = fields(route, dice).into_iter().collect();
    for _ in 0..dice.below(4) {
        let (name, value) = dice.of(&fields);
        body[name] = value.clone();
    }
    if route == CHAT && body.get("top_logprobs").is_some() {
        body["logprobs"] = true.into();
    }
    if dice.one_in(3) && ![COUNT, TOKENIZE, DETOKENIZE].contains(&route) {
        body["stream"] = true.into();
    }
    body
}

fn ids(dice: &mut Dice) -> Vec<usize> {
    (0..1 + dice.below(9)).map(|_| dice.below(768)).collect()
}

fn prompt(dice: &mut Dice) -> Value {
    match dice.below(4) {
        0 => json!(ids(dice)),
        1 => json!([ids(dice), ids(dice)]),
        2 => json!([dice.of(&TEXTS), dice.of(&TEXTS)]),
        _ => json!(dice.of(&TEXTS)),
    }
}

fn chat_messages(dice: &mut Dice) -> Vec<Value> {
    let mut messages = Vec::new();
    if dice.one_in(3) {
        messages.push(json!({"role": dice.of(&["system", "developer"]), "content": dice.of(&TEXTS)}));
    }
    if dice.one_in(4) {
        let call =
            json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
        messages.extend([
            json!({"role": "user", "content": dice.of(&TEXTS), "name": "n"}),
            json!({"role": "assistant", "content": null, "tool_calls": [call], "reasoning_content": "hm"}),
            json!({"role": "tool", "tool_call_id": "c", "content": dice.of(&TEXTS)}),
        ]);
    }
    let parts = json!([{"type": "text", "text": dice.of(&TEXTS)}, {"type": "text", "text": dice.of(&TEXTS)}]);
    let content = if dice.one_in(2) { parts } else { json!(dice.of(&TEXTS)) };
    messages.push(json!({"role": "user", "content": content}));
    messages
}

fn input(dice: &mut Dice) -> Value {
    if dice.one_in(3) {
        return json!(dice.of(&TEXTS));
    }
    json!([
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": dice.of(&TEXTS)}]},
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": dice.of(&TEXTS)},
        {"role": "user", "content": dice.of(&TEXTS)},
    ])
}

fn turns(dice: &mut Dice) -> Value {
    if dice.one_in(2) {
        return json!([{"role": "user", "content": dice.of(&TEXTS)}]);
    }
    json!([
        {"role": "user", "content": [{"type": "text", "text": dice.of(&TEXTS)}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
        ]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": dice.of(&TEXTS)}]},
    ])
}

/// Of one route, each with a value that is allowed.
fn fields(route: &str, dice: &mut Dice) -> Map<String, Value> {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let sampling = json!({
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 7, "n": 1 + dice.below(3),
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1, "min_tokens": 1,
        "logit_bias": {"5": -100, "6": 3}, "stop": ["x", "\n"], "stop_token_ids": [9], "bad_words": ["a"],
        "allowed_token_ids": [5, 6, 7], "cache_salt": "s", "priority": 0, "truncate_prompt_tokens": 5,
        "skip_special_tokens": false, "ignore_eos": true, "return_token_ids": true, "metadata": {"a": "b"},
        "user": "u", "store": true, "include_stop_str_in_output": true,
    });
    let tool = json!({"name": "f", "description": "does", "parameters": schema, "strict": true});
    let named = json!({"name": "n", "schema": schema});
    let own = match route {
        CHAT => json!({
            "top_logprobs": 2, "prompt_logprobs": 1, "chat_template_kwargs": {"thinking": true},
            "response_format": {"type": "json_schema", "json_schema": named}, "reasoning_effort": "low",
            "tools": [{"type": "function", "function": tool}], "structured_outputs": {"regex": "[a-c]{2,5}"},
            "add_generation_prompt": false, "parallel_tool_calls": false,
        }),
        COMPLETIONS => json!({
            "logprobs": 2, "prompt_logprobs": 1, "echo": true, "best_of": 3, "guided_choice": ["yes", "no"],
            "guided_grammar": "start: \"a\" | \"b\"", "add_special_tokens": false, "guided_json": schema,
        }),
        RESPONSES => json!({
            "temperature": 0.5, "top_p": 0.9, "top_logprobs": 2, "instructions": "Be short.",
            "tools": [with(&tool, "type", "function")], "reasoning": {"effort": "low"}, "store": false,
            "text": {"format": with(&named, "type", "json_schema")}, "metadata": {"a": "b"},
        }),
        MESSAGES | COUNT => json!({
            "temperature": 0.5, "top_p": 0.9, "top_k": 5, "system": "Be short.", "stop_sequences": ["x"],
            "tools": [{"name": "f", "input_schema": schema}], "tool_choice": {"type": "auto"},
            "metadata": {"user_id": "u"}, "thinking": {"type": "disabled"},
        }),
        TOKENIZE => json!({"return_token_strs": true, "add_special_tokens": false}),
        _ => json!({"model": "demo"}),
    };
    let mut fields = if [CHAT, COMPLETIONS].contains(&route) { sampling } else { json!({"model": "demo"}) };
    merge(&mut fields, own);
    match fields {
        Value::Object(map) => map,
        _ => unreachable!("written as an object"),
    }
}

fn merge(object: &mut Value, more: Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.extend(more);
    }
}

fn with(object: &Value, name: &str, value: &str) -> Value {
    let mut copy = object.clone();
    copy[name] = value.into();
    copy
}
