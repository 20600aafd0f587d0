//! What is done to a request: fields of wrong types, hostile grammars, bytes that are no JSON.

use serde_json::{Value, json};

use crate::dice::Dice;
use crate::good::{CHAT, COMPLETIONS, MESSAGES, RESPONSES};

/// A request on its way.
pub(crate) struct Sent {
    pub(crate) route: &'static str,
    pub(crate) body: Vec<u8>,
    /// Beside a plain `Content-Type: application/json`; or instead.
    pub(crate) headers: Vec<(&'static str, &'static str)>,
}

/// What a client has sent in one go, whatever the server does meanwhile.
const REFUSED_BYTES_MAX: usize = 16 << 10;

/// Text that stands for what serde_json does not write.
const RAW: [(&str, &str); 4] =
    [("\"@nan\"", "NaN"), ("\"@huge\"", "1e999"), ("\"@half\"", r#""\ud800""#), ("\"@minus\"", "-0.0e-0")];

/// One thing to a tree of JSON.
pub(crate) fn mutate(route: &str, body: &mut Value, dice: &mut Dice) {
    match dice.below(12) {
        0 => constrain(route, body, dice),
        1 | 2 => {
            let (name, value) = hostile_field(dice);
            body[name] = value;
        }
        3 => body[*dice.of(&NAMES)] = nasty(dice),
        4 => remove(node(body, dice), dice),
        5 => {
            let place = node(body, dice);
            let inner = place.take();
            *place = if dice.one_in(2) { json!([inner]) } else { json!({"a": inner}) };
        }
        6 => repeat(node(body, dice), dice),
        _ => *node(body, dice) = nasty(dice),
    }
    if !body.is_object() {
        *body = json!({"prompt": body.take()});
    }
}

/// Any value of the tree but the whole.
fn node<'a>(mut place: &'a mut Value, dice: &mut Dice) -> &'a mut Value {
    loop {
        let n = match &*place {
            Value::Array(list) => list.len(),
            Value::Object(map) => map.len(),
            _ => 0,
        };
        if n == 0 {
            return place;
        }
        let at = dice.below(n);
        place = match place {
            Value::Array(list) => &mut list[at],
            Value::Object(map) => map.values_mut().nth(at).expect("it has so many"),
            _ => unreachable!("it has none"),
        };
        if dice.one_in(3) {
            return place;
        }
    }
}

fn remove(place: &mut Value, dice: &mut Dice) {
    match place {
        Value::Array(list) if !list.is_empty() => drop(list.swap_remove(dice.below(list.len()))),
        Value::Object(map) if !map.is_empty() => {
            let name = map.keys().nth(dice.below(map.len())).cloned().expect("it has so many");
            map.swap_remove(&name);
        }
        other => *other = Value::Null,
    }
}

/// Counts that are too large, and some that are not.
fn repeat(place: &mut Value, dice: &mut Dice) {
    let n = *dice.of(&[2, 3, 65, 129, 257, 1025, 4097]);
    *place = match place.take() {
        Value::Array(list) if !list.is_empty() => list.iter().cycle().take(n).cloned().collect(),
        Value::String(text) if text.len() < 100 => text.repeat(n).into(),
        Value::Object(mut map) if map.len() < 100 => {
            map.extend((0..n).map(|i| (i.to_string(), json!(i))));
            map.into()
        }
        other => json!(vec![other; n]),
    };
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(json!(1), |inner, i| if i % 2 == 0 { json!([inner]) } else { json!({"a": inner}) })
}

const ODD_TEXTS: [&str; 22] = [
    "",
    "\0",
    "a\0b",
    "\u{FEFF}",
    "\u{202E}abc\u{200D}",
    "e\u{301}\u{301}\u{301}",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "\u{10FFFF}\u{E000}\u{FFFD}",
    "<｜User｜>",
    "<｜begin▁of▁sentence｜><｜end▁of▁sentence｜>",
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}",
    "</think>",
    "<think><think><tool_call>{\"name\":",
    "{{ 7*7 }}{% for x in range(99999999) %}x{% endfor %}",
    "../../etc/passwd",
    "0.7",
    "true",
    "data:image/png;base64,AAAA",
    "@nan",
    "@huge",
    "@half",
    "@minus",
];

fn nasty(dice: &mut Dice) -> Value {
    match dice.below(14) {
        0 => Value::Null,
        1 => json!(dice.one_in(2)),
        2 => json!(*dice.of(&[i64::MIN, -1, 0, 1, 2, 767, 768, 1 << 31, 1 << 53, i64::MAX])),
        3 => json!(u64::MAX),
        4 => json!(*dice.of(&[-1.5, -0.0, 1e-320, 0.5, 1.5, 768.0, 1e19, 1e300])),
        5 => json!([]),
        6 => json!({}),
        7 => json!([[]]),
        8 => nested(*dice.of(&[3, 100, 126, 140])),
        9 => json!(dice.of(&ODD_TEXTS).repeat(*dice.of(&[1, 50, 3000]))),
        10 => json!(vec![*dice.of(&[0, 1, 767, 768, -1]); *dice.of(&[1, 257, 5000])]),
        11 => json!([dice.of(&ODD_TEXTS), 1, null, {}]),
        _ => json!(dice.of(&ODD_TEXTS)),
    }
}

/// Of any route: where a route does not know one, it says so, or lets it pass.
const NAMES: [&str; 44] = [
    "add_generation_prompt",
    "allowed_token_ids",
    "audio",
    "bad_words",
    "best_of",
    "chat_template_kwargs",
    "continue_final_message",
    "echo",
    "functions",
    "include",
    "input",
    "instructions",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_output_tokens",
    "messages",
    "metadata",
    "min_tokens",
    "modalities",
    "model",
    "n",
    "parallel_tool_calls",
    "previous_response_id",
    "priority",
    "prompt",
    "prompt_logprobs",
    "reasoning",
    "response_format",
    "seed",
    "stop",
    "stop_sequences",
    "stop_token_ids",
    "stream",
    "stream_options",
    "structured_outputs",
    "system",
    "temperature",
    "text",
    "thinking",
    "tool_choice",
    "tools",
    "top_logprobs",
    "truncate_prompt_tokens",
];

/// Values that are aimed at one field.
fn hostile_field(dice: &mut Dice) -> (&'static str, Value) {
    let id = *dice.of(&[768_i64, -1, 1 << 32, i64::MAX]);
    let fields = [
        ("n", json!(1_000_000)),
        ("n", json!(128)),
        ("best_of", json!(1_000_000_000)),
        ("top_logprobs", json!(769)),
        ("logprobs", json!(100_000)),
        ("prompt_logprobs", json!(20)),
        ("max_tokens", json!(i64::MAX)),
        ("min_tokens", json!(i64::MAX)),
        ("prompt", json!([5, id])),
        ("prompt", json!(vec![""; 256])),
        ("tokens", json!([id])),
        ("stop_token_ids", json!([id])),
        ("allowed_token_ids", json!([id])),
        ("logit_bias", json!({id.to_string(): 1})),
        ("logit_bias", (0..1025).map(|i| (i.to_string(), json!(1))).collect()),
        ("truncate_prompt_tokens", json!(i64::MAX)),
        ("chat_template", json!("{% for i in range(1000000000) %}{% endfor %}")),
        ("chat_template_kwargs", json!({"messages": [], "bos_token": "x"})),
        ("chat_template_kwargs", json!({"st": nested(90), "namespace": 1, "tojson": {}, "": ""})),
        ("chat_template_kwargs", json!({"thinking": "yes", "enable_thinking": nested(5)})),
        ("reasoning_effort", json!("maximum")),
        ("cache_salt", json!("s".repeat(1025))),
        ("messages", json!([{"role": "assistant", "content": "and", "tool_calls": []}])),
        ("messages", json!([{"role": "tool", "tool_call_id": "c", "content": ""}])),
        ("messages", json!([{"role": "system", "content": ""}])),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]),
        ),
        ("continue_final_message", json!(true)),
    ];
    dice.of(&fields).clone()
}

/// A form that cannot be, or costs much, where the route takes one.
fn constrain(route: &str, body: &mut Value, dice: &mut Dice) {
    let schema = hostile_schema(dice);
    let tool = json!({"name": "f", "parameters": schema, "strict": dice.one_in(2)});
    match (route, dice.below(4)) {
        (CHAT, 0) => {
            body["tools"] = json!([{"type": "function", "function": tool}]);
            body["tool_choice"] =
                dice.of(&[json!("auto"), json!("required"), json!("none"), json!({})]).clone();
        }
        (CHAT, 1) => {
            let named = json!({"name": "n", "schema": schema});
            body["response_format"] = json!({"type": "json_schema", "json_schema": named});
        }
        (CHAT | COMPLETIONS, 2) => body["guided_json"] = schema,
        (CHAT | COMPLETIONS, _) => {
            let (kind, source) = hostile_source(dice);
            body["structured_outputs"] = json!({kind: source});
        }
        (RESPONSES, 0 | 1) => {
            body["tools"] = json!([{"type": "function", "name": "f", "parameters": schema}]);
            body["tool_choice"] = json!("required");
        }
        (RESPONSES, _) => {
            body["text"] = json!({"format": {"type": "json_schema", "name": "n", "schema": schema}});
        }
        (MESSAGES, 0 | 1) => {
            body["output_config"] = json!({"format": {"type": "json_schema", "schema": schema}});
        }
        _ => {
            body["tools"] = json!([{"name": "f", "input_schema": schema}]);
            body["tool_choice"] = json!({"type": "any"});
        }
    }
}

fn hostile_schema(dice: &mut Dice) -> Value {
    let schemas = [
        json!({"type": "tuple"}),
        json!({"type": 5}),
        json!({"type": "string", "pattern": "("}),
        json!({"type": "string", "pattern": "a\0b"}),
        json!({"type": "string", "pattern": "((a*)*)*b{3,9999}"}),
        json!({"type": "string", "pattern": "(?=a)\\1"}),
        json!({"$ref": "#"}),
        json!({"$ref": "#/nowhere"}),
        json!({"$ref": "https://example.com/x"}),
        json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
        json!({"enum": (0..2000).collect::<Vec<_>>()}),
        json!({"enum": []}),
        json!({"type": "array", "minItems": 1_000_000_000}),
        json!({"type": "array", "minItems": 5, "maxItems": 2}),
        json!({"type": "array", "maxItems": 100_000, "items": {"type": "array", "maxItems": 100_000}}),
        json!({"type": "string", "minLength": 1_000_000}),
        json!({"type": "integer", "multipleOf": 0}),
        json!({"type": "number", "minimum": 1e308, "maximum": -1e308}),
        json!({"not": {}}),
        json!({"type": "object", "properties": {"\0": {"type": "string"}}, "required": ["\0"]}),
        json!({"allOf": vec![json!({"anyOf": [{"minLength": 1}, {"pattern": "a"}, {"pattern": "b"}]}); 9]}),
        json!({"properties": (0..500).map(|i| (i.to_string(), json!({}))).collect::<Value>()}),
        json!({"properties": {"a": nested(80)}}),
        json!(false),
        json!({}),
    ];
    dice.of(&schemas).clone()
}

fn hostile_source(dice: &mut Dice) -> (&'static str, Value) {
    let sources = [
        ("regex", json!("(a")),
        ("regex", json!("(a+)+(b+)+$")),
        ("regex", json!("a{1,100000}")),
        ("regex", json!("\0[^\0]*")),
        ("regex", json!("")),
        ("regex", json!("(?i)\\p{Greek}{1,99}|[\u{10000}-\u{10FFFF}]")),
        ("grammar", json!("start: start \"a\"")),
        ("grammar", json!("start: a\na: b\nb: a")),
        ("grammar", json!("start: \"a\" start")),
        ("grammar", json!("root ::= root root | \"a\"")),
        ("grammar", json!("root ::= (\"a\"{1,9999}){1,9999}")),
        ("grammar", json!("start: /(/")),
        ("grammar", json!("%ignore")),
        ("grammar", json!("(".repeat(5000))),
        ("choice", json!([])),
        ("choice", json!(["a", "a"])),
        ("choice", json!(["\0", "<｜User｜>", "👩‍👩‍👧‍👦"])),
        ("json", json!("{")),
        ("json", json!("[".repeat(3000))),
        ("json_object", json!("yes")),
    ];
    dice.of(&sources).clone()
}

/// The bytes and headers of a request, seldom as they should be.
pub(crate) fn encode(route: &'static str, body: &Value, dice: &mut Dice) -> Sent {
    let mut text = body.to_string();
    for (word, raw) in RAW {
        text = text.replace(word, raw);
    }
    let mut sent =
        Sent { route, body: text.into_bytes(), headers: vec![("content-type", "application/json")] };
    if dice.one_in(10) {
        garble(&mut sent, dice);
    }
    // A refused type is told before the body is read: a client that still sends a long one may not hear it.
    if sent.headers != [("content-type", "application/json")] {
        sent.body.truncate(REFUSED_BYTES_MAX);
    }
    sent
}

fn garble(sent: &mut Sent, dice: &mut Dice) {
    let body = &mut sent.body;
    match dice.below(9) {
        0 => body.truncate(dice.below(body.len() + 1)),
        1 => {
            for _ in 0..1 + dice.below(8) {
                let at = dice.below(body.len());
                body[at] = dice.below(256) as u8;
            }
        }
        2 => {
            let n = *dice.of(&[1, 10, 1000]);
            *body = dice.bytes(n);
        }
        3 => drop(body.splice(1..1, *br#""model":"a","model":"b","#)),
        4 => body.extend_from_slice(dice.of(&["{}", "\0", " \n", "]"]).as_bytes()),
        5 => *body = [b"{\"prompt\":", &*b"[".repeat(50_000)].concat(),
        6 => drop(body.splice(0..0, *b"\xEF\xBB\xBF")),
        7 => {
            let kinds =
                ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8", "?"];
            sent.headers = vec![("content-type", *dice.of(&kinds))];
        }
        _ => sent.headers.push(("content-encoding", *dice.of(&["gzip", "br", "identity", "?"]))),
    }
}
