//! Tools for models whose template does not show any.

use std::fmt::Write as _;

use serde_json::Value;

/// A text for the system: the tools, and how to call them as [`crate::Family::Hermes`] does.
pub fn tools_prompt(tools: &[Value]) -> String {
    let mut text =
        "You may call functions. These exist, one a line, each with the JSON schema of its arguments:\n"
            .to_owned();
    for tool in tools {
        let function = tool.get("function").unwrap_or(tool);
        let _ = writeln!(text, "{function}"); // into a string
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
    fn tools_are_shown_one_a_line() {
        let tool = serde_json::json!({"type": "function", "function": {"name": "f", "parameters": {}}});
        let text = tools_prompt(&[tool.clone(), tool]);
        assert_eq!(text.matches("\n{\"name\":\"f\",\"parameters\":{}}").count(), 2, "{text}");
    }
}
