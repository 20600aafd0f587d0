//! The schemas of requests and the parsers say the same.

mod values;

use std::cell::RefCell;
use std::collections::BTreeSet;

use jsonschema::Validator;
use serde_json::{Value, json};

use crate::anthropic::{self, MessagesRequest};
use crate::responses::{self, ResponsesRequest};
use crate::{
    ChatRequest, CompletionRequest, DetokenizeRequest, End, Error, Finish, Parsed, Part, Result, StopReason,
    TokenizeRequest, Usage,
};
use values::Sampler;

const VOCAB_SIZE: usize = 2000;

thread_local! {
    static TAKEN: RefCell<BTreeSet<String>> = RefCell::default();
}

/// Hears of each field that a parser asks for.
pub(crate) fn note(path: &str) {
    TAKEN.with_borrow_mut(|taken| taken.insert(without_indices(path)));
}

/// `a[3].b` becomes `a[].b`.
fn without_indices(path: &str) -> String {
    let mut parts = path.split('[');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + "[" + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// What a body is understood as, as text, and the names that are ignored.
type Parse = fn(&[u8]) -> Result<(String, Vec<String>)>;

/// Gives a body the fields beside which others may stand.
type Company = fn(&mut Value);

/// Each request by the name of its schema, how it is read, and what its fields want of each other.
const REQUESTS: &[(&str, Parse, Company)] = &[
    ("ChatRequest", |body| read(ChatRequest::parse(body, VOCAB_SIZE)), chat_company),
    ("CompletionRequest", |body| read(CompletionRequest::parse(body, VOCAB_SIZE)), completion_company),
    ("ResponsesRequest", |body| read(ResponsesRequest::parse(body, VOCAB_SIZE)), responses_company),
    ("MessagesRequest", |body| read(MessagesRequest::parse(body)), messages_company),
    ("CountTokensRequest", |body| read(MessagesRequest::parse_count(body)), messages_company),
    ("TokenizeRequest", |body| read(TokenizeRequest::parse(body)), chat_company),
    ("DetokenizeRequest", |body| read(DetokenizeRequest::parse(body, VOCAB_SIZE)), |_| ()),
];

fn read<T: std::fmt::Debug>(parsed: Result<Parsed<T>>) -> Result<(String, Vec<String>)> {
    parsed.map(|parsed| (format!("{:?}", parsed.request), parsed.ignored))
}

/// Fields that stand only beside others.
fn chat_company(body: &mut Value) {
    stream_company(body);
    if !body["top_logprobs"].is_null() && body["logprobs"].is_null() {
        body["logprobs"] = true.into();
    }
    if !body["tool_choice"].is_null() && body["tools"].is_null() {
        body["tools"] = json!([{"type": "function", "function": {"name": "a"}}]);
    }
    if body["continue_final_message"] == true {
        body["messages"] = json!([{"role": "assistant", "content": "a"}]);
    }
    for message in body.get_mut("messages").and_then(Value::as_array_mut).into_iter().flatten() {
        let says = |key: &str| message.get(key).is_some_and(|v| !v.is_null() && *v != json!([]));
        if message.get("role") == Some(&json!("assistant"))
            && !["content", "refusal", "tool_calls"].into_iter().any(says)
        {
            let call = json!({"id": "a", "function": {"name": "a", "arguments": "{}"}});
            let place = if message.get("tool_calls").is_none() { "tool_calls" } else { "content" };
            message[place] = if place == "content" { "a".into() } else { json!([call]) };
        }
    }
}

fn completion_company(body: &mut Value) {
    stream_company(body);
    if body["max_tokens"] == 0 {
        body["echo"] = true.into();
    }
}

fn responses_company(body: &mut Value) {
    stream_company(body);
    if !body["tool_choice"].is_null() && body["tools"].is_null() {
        body["tools"] = json!([{"type": "function", "name": "a"}]);
    }
    for item in body.get_mut("input").and_then(Value::as_array_mut).into_iter().flatten() {
        if item.get("encrypted_content").is_some_and(Value::is_string) {
            item["content"] = json!([{"type": "reasoning_text", "text": "a"}]);
        }
    }
    // Items that say nothing are no input.
    if let Some(items) = body.get_mut("input").and_then(Value::as_array_mut)
        && items.iter().any(|item| item.get("type") == Some(&json!("reasoning")))
    {
        items.push(json!({"role": "user", "content": "a"}));
    }
}

fn messages_company(body: &mut Value) {
    if !body["tool_choice"].is_null() && body["tools"].is_null() {
        body["tools"] = json!([{"name": "a", "input_schema": {}}]);
    }
    if let (Some(budget), true) = (body["thinking"]["budget_tokens"].as_i64(), body["max_tokens"].is_number())
    {
        body["max_tokens"] = (budget + 1).into();
    }
    // An answer is asked for, not begun.
    if let Some(messages) = body.get_mut("messages").and_then(Value::as_array_mut)
        && messages.last().is_some_and(|last| last.get("role") == Some(&json!("assistant")))
    {
        messages.push(json!({"role": "user", "content": "a"}));
    }
}

fn stream_company(body: &mut Value) {
    if !body["stream_options"].is_null() && body["stream"].is_null() {
        body["stream"] = true.into();
    }
}

/// Where a body lacks what would decide, another field is named.
const ELSEWHERE: &[(&str, &str)] = &[("prompt", "messages"), ("input[].role", "input[].type")];

/// Asked for of a block that the parser makes of a text itself.
const MADE: [&str; 2] = ["messages[].content.text", "messages[].content.type"];

struct Request {
    schemas: Value,
    name: &'static str,
    parse: Parse,
    company: Company,
}

impl Request {
    fn all() -> impl Iterator<Item = Self> {
        let schemas = serde_json::to_value(super::schemas()).unwrap();
        REQUESTS.iter().map(move |&(name, parse, company)| Self {
            schemas: schemas.clone(),
            name,
            parse,
            company,
        })
    }

    fn validator(&self) -> Validator {
        let root = format!("#/components/schemas/{}", self.name);
        jsonschema::validator_for(&json!({"$ref": root, "components": {"schemas": self.schemas}})).unwrap()
    }

    fn sampler(&self) -> Sampler<'_> {
        Sampler { schemas: &self.schemas }
    }

    /// Bodies that differ from a plain one in one field.
    fn bodies(&self) -> impl Iterator<Item = (String, Value)> {
        let variants = self.sampler().variants("", &self.schemas[self.name]).into_iter();
        variants.map(|(path, mut body)| {
            (self.company)(&mut body);
            (path, body)
        })
    }
}

#[test]
fn parsers_accept_what_schemas_allow_and_nothing_else() {
    let mut wrong = Vec::new();
    for request in Request::all() {
        let (name, validator) = (request.name, request.validator());
        let (mut accepted, mut refused) = (0, 0);
        for (path, body) in request.bodies() {
            let shown: String = body.to_string().chars().take(300).collect();
            match ((request.parse)(body.to_string().as_bytes()), validator.is_valid(&body)) {
                (Ok((_, ignored)), true) if ignored.is_empty() => accepted += 1,
                (Ok((_, ignored)), true) => wrong.push(format!("{name}: {ignored:?} is ignored in {shown}")),
                (Ok(_), false) => {
                    wrong.push(format!("{name}: {path} is accepted, but not allowed in {shown}"))
                }
                (Err(error), false) if blames(&error, &path) => refused += 1,
                (Err(error), false) => wrong.push(format!("{name}: {path} is wrong: {error:?} in {shown}")),
                (Err(error), true) => wrong.push(format!("{name}: {path} is allowed: {error:?} in {shown}")),
            }
        }
        println!("{name}: {accepted} accepted, {refused} refused");
        assert!(accepted > 2 && refused > 2, "{name}: {accepted} {refused}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The error is a 400 that names the field at `path`, what is around it or what is in it.
fn blames(error: &Error, path: &str) -> bool {
    let param = without_indices(error.param.as_deref().unwrap_or("nothing"));
    let named =
        path.starts_with(&param) || param.starts_with(path) || ELSEWHERE.contains(&(path, param.as_str()));
    error.code.status() == 400 && named
}

#[test]
fn parsers_ask_for_what_schemas_name_and_nothing_else() {
    for request in Request::all() {
        TAKEN.take();
        for (_, body) in request.bodies() {
            let _ = (request.parse)(body.to_string().as_bytes()); // either way: what it asks for is noted
        }
        let mut named = BTreeSet::new();
        let root = &request.schemas[request.name];
        request.sampler().names("", root, &mut |name| {
            named.insert(name);
        });
        let mut taken = TAKEN.take();
        taken.retain(|name| !MADE.contains(&name.as_str()));
        assert_eq!(taken, named, "{}", request.name);
    }
}

#[test]
fn a_default_is_what_its_absence_means() {
    for request in Request::all() {
        let schema = &request.schemas[request.name];
        let plain = request.sampler().plain(schema);
        let read = |mut body: Value| {
            (request.company)(&mut body);
            (request.parse)(body.to_string().as_bytes()).unwrap().0
        };
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            if !property["default"].is_null() {
                let mut body = plain.clone();
                body[key] = property["default"].clone();
                assert_eq!(read(body), read(plain.clone()), "{}: {key}", request.name);
            }
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let schemas = serde_json::to_value(super::schemas()).unwrap();
    let text = schemas.to_string();
    let names = text.split(r##""#/components/schemas/"##).skip(1).map(|rest| rest.split('"').next().unwrap());
    for name in names {
        assert!(schemas.get(name).is_some(), "{name}");
    }
}

fn validator(name: &str) -> Validator {
    let schemas = serde_json::to_value(super::schemas()).unwrap();
    let root = format!("#/components/schemas/{name}");
    jsonschema::validator_for(&json!({"$ref": root, "components": {"schemas": schemas}})).unwrap()
}

#[track_caller]
fn assert_valid(validator: &Validator, value: &Value) {
    let errors: Vec<String> = validator.iter_errors(value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?} in {value}");
}

#[test]
fn answers_in_parts_are_as_described() {
    let call = Part::Call { id: "call_1".into(), name: "f".into() };
    let told = [Part::Reasoning("a".into()), Part::Text("b".into()), call, Part::Arguments("{}".into())];
    let fault = Error::new(crate::Code::EngineDead, "It is dead.");
    let end = |finish, stop| End { finish, stop, usage: Usage::default() };
    let stop = Some(StopReason::Text("c".into()));
    let ends = [end(Finish::ToolCalls, None), end(Finish::Length, None), end(Finish::Stop, stop)];
    for (parts, end) in
        [&told[..], &told[..2], &[]].into_iter().flat_map(|p| ends.clone().map(|end| (p, end)))
    {
        let echo = ResponsesRequest::parse(br#"{"input":"a"}"#, VOCAB_SIZE).unwrap().request.echo;
        let header = responses::Header { unique: "1".into(), created: 1, model: "m".into(), echo };
        let mut answer = responses::Events::new(header);
        let mut events = answer.start();
        events.extend(parts.iter().flat_map(|part| answer.push(part.clone())));
        events.extend(answer.finish(end.clone()));
        events.extend(answer.fail(&fault));
        let described = validator("ResponsesEvent");
        events.iter().for_each(|event| assert_valid(&described, &event.data));
        assert_valid(&validator("ResponsesAnswer"), &answer.whole());

        let header = anthropic::Header { unique: "1".into(), model: "m".into(), usage: Usage::default() };
        let mut answer = anthropic::Events::new(header);
        let mut events = answer.start();
        events.push(anthropic::ping());
        events.extend(parts.iter().flat_map(|part| answer.push(part.clone())));
        events.extend(answer.finish(end));
        events.extend(answer.fail(&fault));
        let described = validator("MessagesEvent");
        events.iter().for_each(|event| assert_valid(&described, &event.data));
        assert_valid(&validator("MessagesAnswer"), &answer.whole());
    }
    assert_valid(&validator("MessagesError"), &anthropic::error_body(&fault));
    assert_valid(&validator("TokenCount"), &anthropic::count_body(7));
}
