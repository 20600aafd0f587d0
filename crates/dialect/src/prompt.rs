//! Tools for models whose template does not show any: told in words, as [`crate::Family::Hermes`] writes them.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// Rewrites a conversation so that it shows tools, past calls and what they returned as plain text.
pub fn teach(messages: &mut Vec<Value>, tools: &[Value]) {
    let mut taught: Vec<Value> = Vec::with_capacity(messages.len() + 1);
    for message in messages.drain(..) {
        match message["role"].as_str() {
            Some("tool") => {
                let result = format!("<tool_response>\n{}\n</tool_response>", text_of(&message));
                match taught.last_mut().filter(|last| is_results(last)) {
                    Some(last) => last["content"] = format!("{}\n{result}", text_of(last)).into(),
                    None => taught.push(json!({"role": "user", "content": result})),
                }
            }
            Some("assistant") => taught.push(with_calls_in_text(message)),
            _ => taught.push(message),
        }
    }
    if !tools.is_empty() {
        let text = tools_prompt(tools);
        match taught.first_mut().filter(|first| first["role"] == "system") {
            Some(first) => first["content"] = format!("{}\n\n{text}", text_of(first)).into(),
            None => taught.insert(0, json!({"role": "system", "content": text})),
        }
    }
    *messages = taught;
}

fn text_of(message: &Value) -> &str {
    message["content"].as_str().unwrap_or_default()
}

fn is_results(message: &Value) -> bool {
    message["role"] == "user" && text_of(message).starts_with("<tool_response>\n")
}

fn with_calls_in_text(mut message: Value) -> Value {
    let calls = message.as_object_mut().and_then(|fields| fields.remove("tool_calls"));
    let Some(Value::Array(calls)) = calls else { return message };
    let mut text = text_of(&message).to_owned();
    for call in calls {
        let function = &call["function"];
        let arguments = function["arguments"].as_str().unwrap_or("{}");
        let separator = if text.is_empty() { "" } else { "\n" };
        // Into a string.
        let _ = write!(
            text,
            "{separator}<tool_call>\n{{\"name\": {}, \"arguments\": {arguments}}}\n</tool_call>",
            function["name"]
        );
    }
    message["content"] = text.into();
    message
}

/// A text for the system: the tools, and how to call them.
fn tools_prompt(tools: &[Value]) -> String {
    let mut text =
        "You may call functions. These exist, one a line, each with the JSON schema of its arguments:\n"
            .to_owned();
    for tool in tools {
        let _ = writeln!(text, "{}", tool.get("function").unwrap_or(tool)); // into a string
    }
    text.push_str(
        "To call one, write nothing but this, a line of JSON between two tags, once for each call:\n\
         <tool_call>\n{\"name\": NAME, \"arguments\": {…}}\n</tool_call>\n\
         What it returns comes in the next message. If no function helps, answer in plain text.",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_become_text() {
        let mut messages = vec![
            json!({"role": "system", "content": "Be kind."}),
            json!({"role": "user", "content": "hi"}),
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
                {"id": "2", "function": {"name": "g", "arguments": "{}"}},
            ]}),
            json!({"role": "tool", "tool_call_id": "1", "content": "one"}),
            json!({"role": "tool", "tool_call_id": "2", "content": "two"}),
        ];
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
        teach(&mut messages, &[tool.clone(), tool]);
        let system = text_of(&messages[0]);
        assert!(system.starts_with("Be kind.\n\nYou may"), "{system}");
        assert_eq!(system.matches("\n{\"name\":\"f\",\"parameters\":{}}").count(), 2, "{system}");
        let calls = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\n\
                     <tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";
        assert_eq!(messages[2], json!({"role": "assistant", "content": calls}));
        let results = "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>";
        assert_eq!(messages[3..], [json!({"role": "user", "content": results})]);
    }

    #[test]
    fn a_system_message_is_made_where_there_is_none() {
        let mut messages = vec![json!({"role": "user", "content": "hi"})];
        teach(&mut messages, &[json!({"function": {"name": "f"}})]);
        assert_eq!((messages.len(), &messages[0]["role"]), (2, &json!("system")));
        teach(&mut messages, &[]);
        assert_eq!(messages.len(), 2);
    }
}
