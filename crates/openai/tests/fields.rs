//! Every field of OpenAI's request types has a fate of its own: it is honoured, known to have no effect on a local server,
//! or refused by name. None of them is among those that nobody knows, which are only logged.

use std::fmt::Debug;

use openai::responses::ResponsesRequest;
use openai::{ChatRequest, CompletionRequest, Error, Parsed};
use serde_json::{Map, Value, json};

/// The names are those of the classes `…CreateParams…` in the official Python package of this version:
/// `openai/types/chat/completion_create_params.py`, `types/completion_create_params.py` and
/// `types/responses/response_create_params.py`.
const SDK: &str = "openai 2.54.0";

const VOCAB_SIZE: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// It changes what is asked of the model.
    Honoured,
    /// It does not; its type is checked.
    Inert,
    /// `unsupported_parameter`.
    Refused,
}
use Fate::{Honoured, Inert, Refused};

/// Name, fate, a value that asks for something, and the fields without which that value means nothing.
type Row = (&'static str, Fate, &'static str, &'static str);

const TOOL: &str = r#"{"tools":[{"type":"function","function":{"name":"f"}}]}"#;

const CHAT: [Row; 37] = [
    ("audio", Refused, r#"{"voice":"ash","format":"wav"}"#, "{}"),
    ("frequency_penalty", Honoured, "0.5", "{}"),
    ("function_call", Refused, r#"{"name":"f"}"#, "{}"),
    ("functions", Refused, r#"[{"name":"f"}]"#, "{}"),
    ("logit_bias", Honoured, r#"{"5":1}"#, "{}"),
    ("logprobs", Honoured, "true", "{}"),
    ("max_completion_tokens", Honoured, "5", "{}"),
    ("max_tokens", Honoured, "5", "{}"),
    ("messages", Honoured, r#"[{"role":"user","content":"another"}]"#, "{}"),
    ("metadata", Inert, r#"{"a":"b"}"#, "{}"),
    ("modalities", Refused, r#"["text","audio"]"#, "{}"),
    ("model", Honoured, r#""m""#, "{}"),
    ("moderation", Refused, r#"{"model":"m"}"#, "{}"),
    ("n", Honoured, "2", "{}"),
    ("parallel_tool_calls", Honoured, "false", TOOL),
    ("prediction", Refused, r#"{"type":"content","content":"a"}"#, "{}"),
    ("presence_penalty", Honoured, "0.5", "{}"),
    ("prompt_cache_key", Inert, r#""k""#, "{}"),
    ("prompt_cache_options", Refused, r#"{"mode":"explicit"}"#, "{}"),
    ("prompt_cache_retention", Inert, r#""24h""#, "{}"),
    ("reasoning_effort", Honoured, r#""low""#, "{}"),
    ("response_format", Honoured, r#"{"type":"json_object"}"#, "{}"),
    ("safety_identifier", Inert, r#""s""#, "{}"),
    ("seed", Honoured, "7", "{}"),
    ("service_tier", Inert, r#""flex""#, "{}"),
    ("stop", Honoured, r#"["a"]"#, "{}"),
    ("store", Inert, "true", "{}"),
    ("stream", Honoured, "true", "{}"),
    ("stream_options", Honoured, r#"{"include_usage":true}"#, r#"{"stream":true}"#),
    ("temperature", Honoured, "0.5", "{}"),
    ("tool_choice", Honoured, r#""required""#, TOOL),
    ("tools", Honoured, r#"[{"type":"function","function":{"name":"f"}}]"#, "{}"),
    ("top_logprobs", Honoured, "3", r#"{"logprobs":true}"#),
    ("top_p", Honoured, "0.5", "{}"),
    ("user", Inert, r#""u""#, "{}"),
    ("verbosity", Inert, r#""low""#, "{}"),
    ("web_search_options", Refused, r#"{"search_context_size":"low"}"#, "{}"),
];

const COMPLETIONS: [Row; 18] = [
    ("best_of", Honoured, "2", "{}"),
    ("echo", Honoured, "true", "{}"),
    ("frequency_penalty", Honoured, "0.5", "{}"),
    ("logit_bias", Honoured, r#"{"5":1}"#, "{}"),
    ("logprobs", Honoured, "3", "{}"),
    ("max_tokens", Honoured, "5", "{}"),
    ("model", Honoured, r#""m""#, "{}"),
    ("n", Honoured, "2", "{}"),
    ("presence_penalty", Honoured, "0.5", "{}"),
    ("prompt", Honoured, "[1,2]", "{}"),
    ("seed", Honoured, "7", "{}"),
    ("stop", Honoured, r#""a""#, "{}"),
    ("stream", Honoured, "true", "{}"),
    ("stream_options", Honoured, r#"{"include_usage":true}"#, r#"{"stream":true}"#),
    ("suffix", Refused, r#""a""#, "{}"),
    ("temperature", Honoured, "0.5", "{}"),
    ("top_p", Honoured, "0.5", "{}"),
    ("user", Inert, r#""u""#, "{}"),
];

const FLAT_TOOL: &str = r#"{"tools":[{"type":"function","name":"f"}]}"#;

const RESPONSES: [Row; 31] = [
    ("background", Refused, "true", "{}"),
    ("context_management", Refused, r#"[{"type":"compaction"}]"#, "{}"),
    ("conversation", Refused, r#""conv_1""#, "{}"),
    ("include", Honoured, r#"["message.output_text.logprobs"]"#, "{}"),
    ("input", Honoured, r#""another""#, "{}"),
    ("instructions", Honoured, r#""be short""#, "{}"),
    ("max_output_tokens", Honoured, "5", "{}"),
    // Of tools that the server runs, and it runs none.
    ("max_tool_calls", Inert, "2", "{}"),
    ("metadata", Inert, r#"{"a":"b"}"#, "{}"),
    ("model", Honoured, r#""m""#, "{}"),
    ("moderation", Refused, r#"{"model":"m"}"#, "{}"),
    ("parallel_tool_calls", Honoured, "false", FLAT_TOOL),
    ("previous_response_id", Refused, r#""resp_1""#, "{}"),
    ("prompt", Refused, r#"{"id":"p"}"#, "{}"),
    ("prompt_cache_key", Inert, r#""k""#, "{}"),
    ("prompt_cache_options", Refused, r#"{"mode":"explicit"}"#, "{}"),
    ("prompt_cache_retention", Inert, r#""24h""#, "{}"),
    ("reasoning", Honoured, r#"{"effort":"low"}"#, "{}"),
    ("safety_identifier", Inert, r#""s""#, "{}"),
    ("service_tier", Inert, r#""flex""#, "{}"),
    ("store", Inert, "true", "{}"),
    ("stream", Honoured, "true", "{}"),
    // Padding against traffic analysis, the only option on this route.
    ("stream_options", Inert, r#"{"include_obfuscation":true}"#, r#"{"stream":true}"#),
    ("temperature", Honoured, "0.5", "{}"),
    ("text", Honoured, r#"{"format":{"type":"json_object"}}"#, "{}"),
    ("tool_choice", Honoured, r#""required""#, FLAT_TOOL),
    ("tools", Honoured, r#"[{"type":"function","name":"f"}]"#, "{}"),
    ("top_logprobs", Honoured, "3", "{}"),
    ("top_p", Honoured, "0.5", "{}"),
    ("truncation", Refused, r#""auto""#, "{}"),
    ("user", Inert, r#""u""#, "{}"),
];

fn object(json: &str) -> Map<String, Value> {
    serde_json::from_str(json).unwrap()
}

/// `base` is a whole request. What `parse` gives is what reaches the model.
fn check<T: PartialEq + Debug>(rows: &[Row], base: &str, parse: fn(&[u8]) -> Result<Parsed<T>, Error>) {
    assert!(rows.iter().map(|row| row.0).is_sorted_by(|a, b| a < b), "each name once, in order");
    let ask = |fields: &Map<String, Value>| parse(json!(fields).to_string().as_bytes());
    for (name, fate, value, beside) in rows {
        let place = format!("`{name}` of {SDK}");
        let mut without = object(base);
        without.extend(object(beside));
        let plain = ask(&without).unwrap_or_else(|error| panic!("{place}, without it: {error}"));
        let with = |value: Value| {
            let mut fields = without.clone();
            fields.insert((*name).to_owned(), value);
            ask(&fields)
        };
        match (fate, with(serde_json::from_str(value).unwrap())) {
            (Refused, Err(error)) => {
                let told = (error.code.as_str(), error.param.as_deref());
                assert_eq!(told, ("unsupported_parameter", Some(*name)), "{place}: {error}");
                continue;
            }
            (Refused, Ok(_)) => panic!("{place} is accepted"),
            (_, Err(error)) => panic!("{place}: {error}"),
            (_, Ok(parsed)) => {
                assert_eq!(parsed.ignored, Vec::<String>::new(), "{place}");
                let changes = parsed.request != plain.request;
                assert_eq!(changes, *fate == Honoured, "{place} changes the request");
            }
        }
        let error = with(json!([[true]])).expect_err(&format!("{place} may have any type"));
        let param = error.param.clone().unwrap_or_default();
        assert!(param.starts_with(name), "{place}, with another type: {error:?}");
    }
}

#[test]
fn of_chat() {
    let base = r#"{"messages":[{"role":"user","content":"hi"}]}"#;
    check(&CHAT, base, |body| ChatRequest::parse(body, VOCAB_SIZE));
}

#[test]
fn of_completions() {
    check(&COMPLETIONS, r#"{"prompt":"hi"}"#, |body| CompletionRequest::parse(body, VOCAB_SIZE));
}

#[test]
fn of_responses() {
    check(&RESPONSES, r#"{"input":"hi"}"#, |body| {
        let parsed = ResponsesRequest::parse(body, VOCAB_SIZE)?;
        // The rest of it only repeats the request.
        Ok(Parsed { request: parsed.request.chat, ignored: parsed.ignored })
    });
}
