//! The input of a `tool_use` block: an object, where the model writes a text that may be cut off.

use serde_json::{Map, Value};

/// The object that the text is. Of one that was cut off: what is complete in it, up to the last comma or bracket.
pub(super) fn to_input(arguments: &str) -> Value {
    let object = |text: &str| serde_json::from_str::<Value>(text).ok().filter(Value::is_object);
    object(arguments).or_else(|| object(&closed(arguments))).unwrap_or_else(|| Value::Object(Map::new()))
}

/// A prefix of JSON up to its last comma or bracket, and the brackets that close what is open there.
fn closed(text: &str) -> String {
    let (mut open, mut end) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            // Brackets only change at an end, so that at the last of them they are as they were left.
            b'{' | b'[' => {
                open.push(if byte == b'{' { '}' } else { ']' });
                end = i + 1;
            }
            b'}' | b']' => {
                open.pop();
                end = i + 1;
            }
            b',' => end = i,
            _ => {}
        }
    }
    text[..end].chars().chain(open.into_iter().rev()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_text_that_was_cut_off_keeps_what_is_complete() {
        for (text, expected) in [
            ("", json!({})),
            ("{", json!({})),
            ("null", json!({})),
            ("[1,2", json!({})),
            (r#"{"a":1}"#, json!({"a":1})),
            (r#"{"a":12"#, json!({})),
            (r#"{"a":12,"b":"x, y"#, json!({"a":12})),
            (r#"{"a":"}\",{","b"#, json!({"a":"}\",{"})),
            (r#"{"a":[{"b":"ü"},{"c":2,"d"#, json!({"a":[{"b":"ü"},{"c":2}]})),
            (r#"{"a":[1,2],"#, json!({"a":[1,2]})),
        ] {
            assert_eq!(to_input(text), expected, "{text}");
        }
    }
}
