//! Tools, constraints on the answer, and reasoning: what is understood, and what is refused by which name.

use openai::{ChatRequest, CompletionRequest, Constraint, Error, ToolChoice};
use serde_json::json;

const VOCAB_SIZE: usize = 100;

fn chat(fields: &str) -> Result<ChatRequest, Error> {
    let body = format!(r#"{{"messages":[{{"role":"user","content":"hi"}}],{fields}}}"#);
    ChatRequest::parse(body.as_bytes(), VOCAB_SIZE).map(|parsed| parsed.request)
}

fn completion(fields: &str) -> Result<CompletionRequest, Error> {
    let body = format!(r#"{{"prompt":"hi",{fields}}}"#);
    CompletionRequest::parse(body.as_bytes(), VOCAB_SIZE).map(|parsed| parsed.request)
}

fn check(fields: &str, error: Option<Error>, code: &str, param: &str) {
    let error = error.unwrap_or_else(|| panic!("accepted: {fields}"));
    assert_eq!((error.code.as_str(), error.param.as_deref()), (code, Some(param)), "{fields}: {error}");
    assert!(error.message.ends_with('.') && error.message.len() > 20, "{fields}: {error}");
}

const TYPE: &str = "invalid_type";
const VALUE: &str = "invalid_value";
const MISSING: &str = "missing_required_parameter";
const PARAMETER: &str = "unsupported_parameter";
const UNSUPPORTED: &str = "unsupported_value";
const SCHEMA: &str = "invalid_schema";

/// In chat and in completions.
const FORMS: &[(&str, &str, &str)] = &[
    (r#""response_format":"json""#, TYPE, "response_format"),
    (r#""response_format":{}"#, MISSING, "response_format.type"),
    (r#""response_format":{"type":5}"#, TYPE, "response_format.type"),
    (r#""response_format":{"type":"xml"}"#, VALUE, "response_format.type"),
    (r#""response_format":{"type":"json_schema"}"#, MISSING, "response_format.json_schema"),
    (r#""response_format":{"type":"json_schema","json_schema":[]}"#, TYPE, "response_format.json_schema"),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"schema":{}}}"#,
        MISSING,
        "response_format.json_schema.name",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"a b","schema":{}}}"#,
        VALUE,
        "response_format.json_schema.name",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"a"}}"#,
        MISSING,
        "response_format.json_schema.schema",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"a","schema":"{}"}}"#,
        TYPE,
        "response_format.json_schema.schema",
    ),
    (
        r#""response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{},"strict":1}}"#,
        TYPE,
        "response_format.json_schema.strict",
    ),
    (r#""structured_outputs":[]"#, TYPE, "structured_outputs"),
    (r#""structured_outputs":{}"#, VALUE, "structured_outputs"),
    (r#""structured_outputs":{"json_object":false}"#, VALUE, "structured_outputs"),
    (r#""structured_outputs":{"json_object":1}"#, TYPE, "structured_outputs.json_object"),
    (r#""structured_outputs":{"json":{},"regex":"a"}"#, VALUE, "structured_outputs"),
    (r#""structured_outputs":{"yaml":"a"}"#, PARAMETER, "structured_outputs.yaml"),
    (r#""structured_outputs":{"regex":5}"#, TYPE, "structured_outputs.regex"),
    (r#""structured_outputs":{"choice":[]}"#, VALUE, "structured_outputs.choice"),
    (r#""structured_outputs":{"choice":["a","a"]}"#, VALUE, "structured_outputs.choice[1]"),
    (r#""structured_outputs":{"choice":["a",""]}"#, VALUE, "structured_outputs.choice[1]"),
    (r#""structured_outputs":{"choice":["a",5]}"#, TYPE, "structured_outputs.choice[1]"),
    (r#""structured_outputs":{"choice":"a"}"#, TYPE, "structured_outputs.choice"),
    (r#""structured_outputs":{"json":"{"}"#, SCHEMA, "structured_outputs.json"),
    (r#""guided_json":"{\"a\":1,\"a\":2}""#, SCHEMA, "guided_json"),
    (r#""guided_json":5"#, TYPE, "guided_json"),
    (r#""guided_regex":["a"]"#, TYPE, "guided_regex"),
    (r#""guided_choice":{}"#, TYPE, "guided_choice"),
    (r#""guided_grammar":1"#, TYPE, "guided_grammar"),
    (r#""guided_regex":"a","guided_choice":["a"]"#, VALUE, "guided_choice"),
    (r#""response_format":{"type":"json_object"},"guided_regex":"a""#, VALUE, "guided_regex"),
    (r#""structural_tag":{}"#, PARAMETER, "structural_tag"),
];

#[test]
fn forms_are_refused_by_name() {
    for (fields, code, param) in FORMS {
        check(fields, chat(fields).err(), code, param);
        check(fields, completion(fields).err(), code, param);
    }
}

#[test]
fn tools_are_refused_by_name() {
    let f = r#"{"type":"function","function":{"name":"f"}}"#;
    let cases = [
        (r#""tools":{}"#.to_owned(), TYPE, "tools"),
        (r#""tools":[1]"#.to_owned(), TYPE, "tools[0]"),
        (r#""tools":[{}]"#.to_owned(), MISSING, "tools[0].type"),
        (r#""tools":[{"type":"custom","custom":{"name":"x"}}]"#.to_owned(), UNSUPPORTED, "tools[0].type"),
        (r#""tools":[{"type":"function"}]"#.to_owned(), MISSING, "tools[0].function"),
        (r#""tools":[{"type":"function","function":{}}]"#.to_owned(), MISSING, "tools[0].function.name"),
        (
            r#""tools":[{"type":"function","function":{"name":""}}]"#.to_owned(),
            VALUE,
            "tools[0].function.name",
        ),
        (
            r#""tools":[{"type":"function","function":{"name":"é"}}]"#.to_owned(),
            VALUE,
            "tools[0].function.name",
        ),
        (r#""tools":[{"type":"function","function":{"name":7}}]"#.to_owned(), TYPE, "tools[0].function.name"),
        (
            format!(r#""tools":[{{"type":"function","function":{{"name":"{}"}}}}]"#, "x".repeat(65)),
            VALUE,
            "tools[0].function.name",
        ),
        (format!(r#""tools":[{f},{f}]"#), VALUE, "tools[1]"),
        (format!(r#""tools":[{}]"#, vec![f; 129].join(",")), VALUE, "tools"),
        (
            r#""tools":[{"type":"function","function":{"name":"f","parameters":"{}"}}]"#.to_owned(),
            TYPE,
            "tools[0].function.parameters",
        ),
        (
            r#""tools":[{"type":"function","function":{"name":"f","parameters":{"type":"string"}}}]"#
                .to_owned(),
            SCHEMA,
            "tools[0].function.parameters.type",
        ),
        (
            r#""tools":[{"type":"function","function":{"name":"f","strict":"yes"}}]"#.to_owned(),
            TYPE,
            "tools[0].function.strict",
        ),
        (r#""tool_choice":"required""#.to_owned(), VALUE, "tool_choice"),
        (r#""tool_choice":"always""#.to_owned(), VALUE, "tool_choice"),
        (r#""tool_choice":5"#.to_owned(), TYPE, "tool_choice"),
        (r#""tool_choice":{"type":"function"}"#.to_owned(), MISSING, "tool_choice.function"),
        (r#""tool_choice":{"type":"custom"}"#.to_owned(), UNSUPPORTED, "tool_choice.type"),
        (
            r#""tool_choice":{"type":"function","function":{}}"#.to_owned(),
            MISSING,
            "tool_choice.function.name",
        ),
        (r#""tool_choice":{"type":"function","function":{"name":"f"}}"#.to_owned(), VALUE, "tool_choice"),
        (
            format!(r#""tools":[{f}],"tool_choice":{{"type":"function","function":{{"name":"g"}}}}"#),
            VALUE,
            "tool_choice",
        ),
        (
            format!(r#""tools":[{f}],"tool_choice":"required","response_format":{{"type":"json_object"}}"#),
            VALUE,
            "response_format.type",
        ),
        (r#""reasoning_effort":"extreme""#.to_owned(), VALUE, "reasoning_effort"),
        (r#""reasoning_effort":3"#.to_owned(), TYPE, "reasoning_effort"),
        (r#""include_reasoning":"no""#.to_owned(), TYPE, "include_reasoning"),
    ];
    for (fields, code, param) in cases {
        check(&fields, chat(&fields).err(), code, param);
    }
    for field in [r#""tools":[{}]"#, r#""tool_choice":"required""#, r#""reasoning_effort":"low""#] {
        let name = field.split('"').nth(1).unwrap();
        check(field, completion(field).err(), PARAMETER, name);
    }
}

#[test]
fn constraints_in_all_their_spellings() {
    let check = |fields: &str, expected: Constraint, param: &str| {
        for constrained in
            [chat(fields).unwrap().generation.constrained, completion(fields).unwrap().generation.constrained]
        {
            let constrained = constrained.unwrap();
            assert_eq!(
                (constrained.constraint, constrained.param.as_str()),
                (expected.clone(), param),
                "{fields}"
            );
        }
    };
    let schema = || Constraint::JsonSchema(json!({"type": "integer"}));
    check(
        r#""response_format":{"type":"json_schema","json_schema":{"name":"a","description":"d","strict":true,"schema":{"type":"integer"}}}"#,
        schema(),
        "response_format.json_schema.schema",
    );
    check(r#""response_format":{"type":"json_object"}"#, Constraint::JsonObject, "response_format.type");
    check(r#""structured_outputs":{"json":{"type":"integer"}}"#, schema(), "structured_outputs.json");
    check(r#""structured_outputs":{"json":"{\"type\":\"integer\"}"}"#, schema(), "structured_outputs.json");
    check(r#""guided_json":{"type":"integer"}"#, schema(), "guided_json");
    check(
        r#""structured_outputs":{"json_object":true}"#,
        Constraint::JsonObject,
        "structured_outputs.json_object",
    );
    check(
        r#""structured_outputs":{"json_object":false,"regex":"a|b","json":null}"#,
        Constraint::Regex("a|b".into()),
        "structured_outputs.regex",
    );
    check(r#""guided_choice":["a","b"]"#, Constraint::Choice(vec!["a".into(), "b".into()]), "guided_choice");
    check(r#""guided_grammar":"start: x""#, Constraint::Grammar("start: x".into()), "guided_grammar");
    assert_eq!(chat(r#""response_format":{"type":"text"}"#).unwrap().generation.constrained, None);
}

#[test]
fn tools_and_choices() {
    let f = r#""tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"properties":{}},"strict":true}}]"#;
    let check = |fields: &str, expected: ToolChoice| {
        assert_eq!(chat(fields).unwrap().tools.choice, expected, "{fields}")
    };
    check(f, ToolChoice::Auto);
    check(&format!(r#"{f},"tool_choice":"none""#), ToolChoice::None);
    check(&format!(r#"{f},"tool_choice":"required""#), ToolChoice::Required);
    check(
        &format!(r#"{f},"tool_choice":{{"type":"function","function":{{"name":"f"}}}}"#),
        ToolChoice::Named("f".into()),
    );
    check(r#""tools":[]"#, ToolChoice::None);
    check(r#""tool_choice":"auto""#, ToolChoice::None);
    let request = chat(&format!(r#"{f},"parallel_tool_calls":false"#)).unwrap();
    assert!(!request.tools.parallel);
    let shown = json!({"type": "function", "function": {"name": "f", "description": "d",
        "parameters": {"type": "object", "properties": {}}, "strict": true}});
    assert_eq!(request.tools.list[0].to_value(), shown);
}

/// Both names of the switch mean the same, and what the client says itself stays.
#[test]
fn thinking_becomes_template_variables() {
    let check = |fields: &str, expected: serde_json::Value| {
        assert_eq!(json!(chat(fields).unwrap().chat_template_kwargs), expected, "{fields}");
    };
    check(r#""temperature":1"#, json!({}));
    check(
        r#""reasoning_effort":"none""#,
        json!({"reasoning_effort": "none", "thinking": false, "enable_thinking": false}),
    );
    check(
        r#""reasoning_effort":"high""#,
        json!({"reasoning_effort": "high", "thinking": true, "enable_thinking": true}),
    );
    check(r#""chat_template_kwargs":{"thinking":true}"#, json!({"thinking": true, "enable_thinking": true}));
    check(
        r#""chat_template_kwargs":{"enable_thinking":false}"#,
        json!({"enable_thinking": false, "thinking": false}),
    );
    check(
        r#""chat_template_kwargs":{"enable_thinking":false,"reasoning_effort":"x"},"reasoning_effort":"low""#,
        json!({"enable_thinking": false, "reasoning_effort": "x", "thinking": false}),
    );
}
