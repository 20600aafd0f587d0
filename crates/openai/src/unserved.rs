//! Fields that the API knows and this server does not serve, and fields without effect here.

use serde_json::Value;

use crate::error::{Code, Error, Result};
use crate::fields::{Fields, wrong_type};

/// Field, and the JSON values that ask for nothing: those are accepted, any other is refused.
type Row = (&'static str, &'static [&'static str]);

const COMMON: &[Row] = &[
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

const CHAT: &[Row] = &[
    ("audio", &[]),
    ("best_of", &["1"]),
    ("chat_template", &[]),
    ("continue_final_message", &["false"]),
    ("documents", &["[]"]),
    ("echo", &["false"]),
    ("function_call", &[r#""none""#, r#""auto""#]),
    ("functions", &["[]"]),
    ("mm_processor_kwargs", &["{}"]),
    ("modalities", &[r#"["text"]"#]),
    ("prediction", &[]),
    ("web_search_options", &[]),
];

const COMPLETION: &[Row] = &[
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

fn refuse(fields: &mut Fields, rows: &[Row]) -> Result<()> {
    for (name, harmless) in rows {
        let Some(value) = fields.take(name) else { continue };
        let same = |text: &&str| serde_json::from_str::<Value>(text).is_ok_and(|v| v == value);
        if !harmless.iter().any(same) {
            return Err(unsupported(name, harmless));
        }
    }
    Ok(())
}

fn unsupported(name: &str, harmless: &[&str]) -> Error {
    let remedy = match (name, harmless) {
        ("max_completion_tokens", _) => "Use `max_tokens` on this route.".into(),
        ("messages", _) => "Use `prompt` on this route, or POST /v1/chat/completions.".into(),
        ("top_logprobs", _) => "Use `logprobs` with a number on this route.".into(),
        (_, []) => "Leave it out.".into(),
        (_, values) => format!("Leave it out or set it to {}.", values[0]),
    };
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
