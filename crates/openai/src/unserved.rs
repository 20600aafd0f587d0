//! Fields that the API knows and this server does not serve, and fields without effect here.

use serde_json::Value;

use crate::error::{Code, Error, Result};
use crate::fields::{Fields, wrong_type};

/// Field, and the JSON values that ask for nothing: those are accepted, any other is refused.
pub(crate) type Row = (&'static str, &'static [&'static str]);

pub(crate) const COMMON: &[Row] = &[
    ("detokenize", &["true"]),
    ("early_stopping", &["false"]),
    ("guided_decoding_backend", &[]),
    ("guided_whitespace_pattern", &[]),
    ("kv_transfer_params", &[]),
    ("length_penalty", &["1", "1.0"]),
    ("logits_processors", &["[]"]),
    ("prompt_embeds", &[]),
    ("spaces_between_special_tokens", &["true"]),
    ("structural_tag", &[]),
    ("use_beam_search", &["false"]),
    ("vllm_xargs", &["{}"]),
];

pub(crate) const CHAT: &[Row] = &[
    ("audio", &[]),
    ("best_of", &["1"]),
    ("chat_template", &[]),
    ("documents", &["[]"]),
    ("echo", &["false"]),
    ("function_call", &[r#""none""#, r#""auto""#]),
    ("functions", &["[]"]),
    ("mm_processor_kwargs", &["{}"]),
    ("modalities", &[r#"["text"]"#]),
    ("moderation", &[]),
    ("prediction", &[]),
    ("prompt_cache_options", &[]),
    ("suffix", &[r#""""#]),
    ("web_search_options", &[]),
];

pub(crate) const COMPLETION: &[Row] = &[
    ("audio", &[]),
    ("chat_template", &[]),
    ("function_call", &[r#""none""#, r#""auto""#]),
    ("functions", &["[]"]),
    ("modalities", &[r#"["text"]"#]),
    ("prediction", &[]),
    ("web_search_options", &[]),
    ("include_reasoning", &[]),
    ("max_completion_tokens", &[]),
    ("messages", &[]),
    ("parallel_tool_calls", &["true"]),
    ("reasoning_effort", &[]),
    ("suffix", &[r#""""#]),
    ("tool_choice", &[r#""none""#, r#""auto""#]),
    ("tools", &["[]"]),
    ("top_logprobs", &[]),
];

/// As [`Row`], and what to do instead; nothing said: to leave it out.
pub(crate) type AdvisedRow = (&'static str, &'static [&'static str], &'static str);

const NOTHING_IS_KEPT: &str = "Nothing is kept here: send the whole conversation as `input`.";

pub(crate) const RESPONSES: &[AdvisedRow] = &[
    ("access_programs", &[], ""),
    ("add_generation_prompt", &["true"], ""),
    ("audio", &[], ""),
    ("background", &["false"], ""),
    ("background_options", &[], ""),
    ("best_of", &["1"], ""),
    ("chat_template", &[], ""),
    ("context_management", &["[]"], ""),
    ("conversation", &[], NOTHING_IS_KEPT),
    ("echo", &["false"], ""),
    ("function_call", &[r#""none""#, r#""auto""#], "Use `tool_choice`."),
    ("functions", &["[]"], "Use `tools`."),
    ("image", &[], ""),
    ("logprobs", &["false"], "Use `include` with \"message.output_text.logprobs\"."),
    ("max_completion_tokens", &[], "Use `max_output_tokens` on this route."),
    ("max_tokens", &[], "Use `max_output_tokens` on this route."),
    ("messages", &[], "Use `input` on this route."),
    ("modalities", &[r#"["text"]"#], ""),
    ("moderation", &[], ""),
    ("n", &["1"], ""),
    ("prediction", &[], ""),
    ("previous_response_id", &[], NOTHING_IS_KEPT),
    ("prompt", &[], "Use `instructions` and `input`."),
    ("prompt_cache_options", &[], ""),
    ("prompt_logprobs", &[], ""),
    ("reasoning_effort", &[], "Use `reasoning.effort` on this route."),
    ("response_format", &[], "Use `text.format` on this route."),
    ("return_token_ids", &["false"], ""),
    ("suffix", &[r#""""#], ""),
    ("truncation", &[r#""disabled""#], ""),
    ("web_search_options", &[], ""),
];

pub(crate) const MESSAGES: &[AdvisedRow] = &[
    ("container", &[], ""),
    (
        "context_management",
        &[r#"{"edits":[]}"#, r#"{"edits":[{"type":"clear_thinking_20251015","keep":"all"}]}"#],
        "",
    ),
    ("diagnostics", &[], ""),
    ("inference_geo", &[], ""),
    ("max_completion_tokens", &[], "Use `max_tokens` on this route."),
    ("mcp_servers", &["[]"], ""),
    ("output_format", &[], "Use `output_config.format`."),
    ("speed", &[r#""standard""#], ""),
    ("stop", &[], "Use `stop_sequences` on this route."),
];

/// Strings that a local server has no use for.
const INERT_STRINGS: &[&str] =
    &["prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "user", "verbosity"];

/// Refuses what is not served under `/v1/chat/completions`.
pub(crate) fn refuse_in_chat(fields: &mut Fields) -> Result<()> {
    refuse(fields, COMMON)?;
    refuse(fields, CHAT)
}

/// Refuses what is not served under `/v1/completions`.
pub(crate) fn refuse_in_completion(fields: &mut Fields) -> Result<()> {
    refuse(fields, COMMON)?;
    refuse(fields, COMPLETION)
}

/// Refuses what is not served under `/v1/responses`.
pub(crate) fn refuse_in_responses(fields: &mut Fields) -> Result<()> {
    refuse(fields, COMMON)?;
    refuse_with_advice(fields, RESPONSES)
}

/// Refuses what is not served under `/v1/messages`.
pub(crate) fn refuse_in_messages(fields: &mut Fields) -> Result<()> {
    refuse_with_advice(fields, MESSAGES)
}

fn refuse(fields: &mut Fields, rows: &[Row]) -> Result<()> {
    for (name, harmless) in rows {
        if asks_for_something(fields, name, harmless) {
            return Err(unsupported(name, &remedy(name, harmless)));
        }
    }
    Ok(())
}

fn refuse_with_advice(fields: &mut Fields, rows: &[AdvisedRow]) -> Result<()> {
    for (name, harmless, advice) in rows {
        if asks_for_something(fields, name, harmless) {
            let advice = if advice.is_empty() { &remedy(name, harmless) } else { *advice };
            return Err(unsupported(name, advice));
        }
    }
    Ok(())
}

fn asks_for_something(fields: &mut Fields, name: &str, harmless: &[&str]) -> bool {
    let Some(value) = fields.take(name) else { return false };
    let same = |text: &&str| serde_json::from_str::<Value>(text).is_ok_and(|v| v == value);
    !harmless.iter().any(same)
}

fn remedy(name: &str, harmless: &[&str]) -> String {
    match (name, harmless) {
        ("max_completion_tokens", _) => "Use `max_tokens` on this route.".into(),
        ("messages", _) => "Use `prompt` on this route, or POST /v1/chat/completions.".into(),
        ("top_logprobs", _) => "Use `logprobs` with a number on this route.".into(),
        (_, []) => "Leave it out.".into(),
        (_, values) => format!("Leave it out or set it to {}.", values[0]),
    }
}

fn unsupported(name: &str, remedy: &str) -> Error {
    Error::at(Code::UnsupportedParameter, name, format!("`{name}` is not supported by this server. {remedy}"))
}

/// Checks the types of fields that have no effect here.
pub(crate) fn check_inert(fields: &mut Fields) -> Result<()> {
    for name in INERT_STRINGS {
        fields.string(name)?;
    }
    fields.bool("store")?;
    let Some(metadata) = fields.object("metadata")? else { return Ok(()) };
    if metadata.len() > 16 {
        return Err(Error::value(
            "metadata",
            format!("`metadata` has {} pairs; at most 16 are allowed.", metadata.len()),
        ));
    }
    for (key, value) in &metadata {
        let Value::String(text) = value else {
            return Err(wrong_type("metadata", value, "an object of strings"));
        };
        if key.chars().count() > 64 || text.chars().count() > 512 {
            return Err(Error::value(
                "metadata",
                "A pair in `metadata` is too long: keys have at most 64 characters, values 512.",
            ));
        }
    }
    Ok(())
}
