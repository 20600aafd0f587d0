//! Requests of `/v1/messages`: bad ones with code and parameter, good ones with what they mean; the shape of errors.

use openai::anthropic::{MessagesRequest, count_body, error_body};
use openai::{ChatRequest, Code, Constraint, Error, ToolChoice};
use serde_json::{Value, json};

const TYPE: &str = "invalid_type";
const VALUE: &str = "invalid_value";
const MISSING: &str = "missing_required_parameter";
const UNSERVED: &str = "unsupported_parameter";

fn check(body: &str, code: &str, param: &str) {
    let error = MessagesRequest::parse(body.as_bytes()).err();
    let error = error.unwrap_or_else(|| panic!("accepted: {body}"));
    assert_eq!((error.code.as_str(), error.param.as_deref()), (code, Some(param)), "{body}: {error}");
    assert!(error.message.ends_with('.') && error.message.len() > 20, "{body}: {error}");
}

fn parse(fields: &str) -> ChatRequest {
    let body = format!(r#"{{"max_tokens":2000,"messages":[{{"role":"user","content":"hi"}}]{fields}}}"#);
    let parsed = MessagesRequest::parse(body.as_bytes()).unwrap_or_else(|e| panic!("{body}: {e}"));
    assert_eq!(parsed.ignored, Vec::<String>::new(), "{body}");
    parsed.request.chat
}

#[test]
fn bad_fields() {
    let cases = [
        (r#""max_tokens":0"#, VALUE, "max_tokens"),
        (r#""max_tokens":1.5"#, TYPE, "max_tokens"),
        (r#""max_tokens":null"#, MISSING, "max_tokens"),
        (r#""max_tokens":5,"model":5"#, TYPE, "model"),
        (r#""max_tokens":5,"temperature":1.5"#, VALUE, "temperature"),
        (r#""max_tokens":5,"temperature":"1""#, TYPE, "temperature"),
        (r#""max_tokens":5,"top_p":1.1"#, VALUE, "top_p"),
        (r#""max_tokens":5,"top_k":-1"#, VALUE, "top_k"),
        (r#""max_tokens":5,"stream":1"#, TYPE, "stream"),
        (r#""max_tokens":5,"stop_sequences":"a""#, TYPE, "stop_sequences"),
        (r#""max_tokens":5,"stop_sequences":["a",""]"#, VALUE, "stop_sequences[1]"),
        (r#""max_tokens":5,"stop_sequences":[1]"#, TYPE, "stop_sequences[0]"),
        (r#""max_tokens":5,"stop":["a"]"#, UNSERVED, "stop"),
        (r#""max_tokens":5,"container":"c""#, UNSERVED, "container"),
        (r#""max_tokens":5,"mcp_servers":[{}]"#, UNSERVED, "mcp_servers"),
        (r#""max_tokens":5,"speed":"fast""#, UNSERVED, "speed"),
        (r#""max_tokens":5,"inference_geo":"us""#, UNSERVED, "inference_geo"),
        (r#""max_tokens":5,"context_management":{"edits":[{"type":"x"}]}"#, UNSERVED, "context_management"),
        (r#""max_tokens":5,"metadata":"x""#, TYPE, "metadata"),
        (r#""max_tokens":5,"metadata":{"user_id":5}"#, TYPE, "metadata.user_id"),
        (r#""max_tokens":5,"service_tier":5"#, TYPE, "service_tier"),
        (r#""max_tokens":5,"cache_control":"x""#, TYPE, "cache_control"),
        (r#""max_tokens":5,"thinking":true"#, TYPE, "thinking"),
        (r#""max_tokens":5,"thinking":{}"#, MISSING, "thinking.type"),
        (r#""max_tokens":5,"thinking":{"type":"on"}"#, VALUE, "thinking.type"),
        (r#""max_tokens":5,"thinking":{"type":"between_tools"}"#, UNSERVED, "thinking.type"),
        (r#""max_tokens":5,"thinking":{"type":"enabled"}"#, MISSING, "thinking.budget_tokens"),
        (
            r#""max_tokens":5,"thinking":{"type":"enabled","budget_tokens":10}"#,
            VALUE,
            "thinking.budget_tokens",
        ),
        (
            r#""max_tokens":1024,"thinking":{"type":"enabled","budget_tokens":1024}"#,
            VALUE,
            "thinking.budget_tokens",
        ),
        (r#""max_tokens":5,"thinking":{"type":"adaptive","display":"all"}"#, VALUE, "thinking.display"),
        (r#""max_tokens":5,"output_config":{"effort":"most"}"#, VALUE, "output_config.effort"),
        (r#""max_tokens":5,"output_config":{"format":{"type":"text"}}"#, VALUE, "output_config.format.type"),
        (
            r#""max_tokens":5,"output_config":{"format":{"type":"json_schema"}}"#,
            MISSING,
            "output_config.format.schema",
        ),
        (r#""max_tokens":5,"output_format":{}"#, UNSERVED, "output_format"),
        (r#""max_tokens":5,"tools":[{"name":"f"}]"#, MISSING, "tools[0].input_schema"),
        (r#""max_tokens":5,"tools":[{"input_schema":{}}]"#, MISSING, "tools[0].name"),
        (r#""max_tokens":5,"tools":[{"name":"a b","input_schema":{}}]"#, VALUE, "tools[0].name"),
        (
            r#""max_tokens":5,"tools":[{"name":"f","input_schema":{"type":"array"}}]"#,
            "invalid_schema",
            "tools[0].input_schema.type",
        ),
        (
            r#""max_tokens":5,"tools":[{"type":"web_search_20250305","name":"web_search"}]"#,
            UNSERVED,
            "tools[0].type",
        ),
        (r#""max_tokens":5,"tool_choice":"auto""#, TYPE, "tool_choice"),
        (r#""max_tokens":5,"tool_choice":{"type":"some"}"#, VALUE, "tool_choice.type"),
        (r#""max_tokens":5,"tool_choice":{"type":"tool"}"#, MISSING, "tool_choice.name"),
        (r#""max_tokens":5,"tool_choice":{"type":"any"}"#, VALUE, "tool_choice"),
        (
            r#""max_tokens":5,"tools":[{"name":"f","input_schema":{}}],"tool_choice":{"type":"tool","name":"g"}"#,
            VALUE,
            "tool_choice",
        ),
        (
            r#""max_tokens":5,"tool_choice":{"type":"auto","disable_parallel_tool_use":1}"#,
            TYPE,
            "tool_choice.disable_parallel_tool_use",
        ),
        (r#""max_tokens":5,"system":5"#, TYPE, "system"),
        (r#""max_tokens":5,"system":["a"]"#, TYPE, "system[0]"),
        (r#""max_tokens":5,"system":[{"type":"image"}]"#, UNSERVED, "system[0].type"),
    ];
    for (fields, code, param) in cases {
        check(&format!(r#"{{"messages":[{{"role":"user","content":"hi"}}],{fields}}}"#), code, param);
    }
}

/// All that the official client can send: of the wrong type, each is complained of.
#[test]
fn every_field_is_known() {
    let names = "cache_control container diagnostics inference_geo max_tokens mcp_servers messages metadata model \
         output_config output_format service_tier speed stop_sequences stream system temperature thinking tool_choice \
         tools top_k top_p user_profile_id workspace_id context_management";
    for name in names.split_whitespace() {
        let mut body = json!({"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]});
        body[name] = json!([[5]]);
        let param = MessagesRequest::parse(body.to_string().as_bytes()).err().and_then(|error| error.param);
        assert!(param.as_ref().is_some_and(|param| param.starts_with(name)), "{name}: {param:?}");
    }
}

#[test]
fn bad_messages() {
    let cases = [
        ("null", MISSING, "messages"),
        ("[]", VALUE, "messages"),
        (r#"["hi"]"#, TYPE, "messages[0]"),
        (r#"[{"content":"a"}]"#, MISSING, "messages[0].role"),
        (r#"[{"role":"tool","content":"a"}]"#, VALUE, "messages[0].role"),
        (r#"[{"role":"user"}]"#, MISSING, "messages[0].content"),
        (r#"[{"role":"user","content":7}]"#, TYPE, "messages[0].content"),
        (r#"[{"role":"user","content":[]}]"#, VALUE, "messages[0].content"),
        (r#"[{"role":"user","content":["a"]}]"#, TYPE, "messages[0].content[0]"),
        (r#"[{"role":"user","content":[{"text":"a"}]}]"#, MISSING, "messages[0].content[0].type"),
        (r#"[{"role":"user","content":[{"type":"text"}]}]"#, MISSING, "messages[0].content[0].text"),
        (r#"[{"role":"user","content":[{"type":"image"}]}]"#, UNSERVED, "messages[0].content[0].type"),
        (
            r#"[{"role":"user","content":[{"type":"text","text":"a"},{"type":"document"}]}]"#,
            UNSERVED,
            "messages[0].content[1].type",
        ),
        (
            r#"[{"role":"user","content":[{"type":"text","text":"a","cache_control":1}]}]"#,
            TYPE,
            "messages[0].content[0].cache_control",
        ),
        (
            r#"[{"role":"user","content":[{"type":"tool_use","id":"a"}]}]"#,
            UNSERVED,
            "messages[0].content[0].type",
        ),
        (
            r#"[{"role":"user","content":[{"type":"tool_result"}]}]"#,
            MISSING,
            "messages[0].content[0].tool_use_id",
        ),
        (
            r#"[{"role":"user","content":[{"type":"tool_result","tool_use_id":"a","content":[{"type":"image"}]}]}]"#,
            UNSERVED,
            "messages[0].content[0].content[0].type",
        ),
        (
            r#"[{"role":"user","content":[{"type":"tool_result","tool_use_id":"a","is_error":"no"}]}]"#,
            TYPE,
            "messages[0].content[0].is_error",
        ),
        (
            r#"[{"role":"assistant","content":[{"type":"tool_use","id":"a","name":"f"}]}]"#,
            MISSING,
            "messages[0].content[0].input",
        ),
        (
            r#"[{"role":"assistant","content":[{"type":"tool_use","id":"a","name":"f","input":"{}"}]}]"#,
            TYPE,
            "messages[0].content[0].input",
        ),
        (
            r#"[{"role":"assistant","content":[{"type":"redacted_thinking","data":"x"}]}]"#,
            UNSERVED,
            "messages[0].content[0].type",
        ),
        (
            r#"[{"role":"assistant","content":[{"type":"tool_result","tool_use_id":"a"}]}]"#,
            UNSERVED,
            "messages[0].content[0].type",
        ),
        (r#"[{"role":"system","content":[{"type":"image"}]}]"#, UNSERVED, "messages[0].content[0].type"),
        (r#"[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]"#, VALUE, "messages"),
    ];
    for (messages, code, param) in cases {
        check(&format!(r#"{{"max_tokens":5,"messages":{messages}}}"#), code, param);
    }
    let many = vec![r#"{"role":"user","content":"a"}"#; 4097].join(",");
    check(&format!(r#"{{"max_tokens":5,"messages":[{many}]}}"#), VALUE, "messages");
}

#[test]
fn messages_as_templates_see_them() {
    let body = json!({
        "max_tokens": 5,
        "system": [{"type":"text","text":"s"},{"type":"text","text":"t","cache_control":{"type":"ephemeral"}}],
        "messages": [
            {"role":"user","content":"a"},
            {"role":"assistant","content":[
                {"type":"thinking","thinking":"h","signature":"x"},{"type":"text","text":"b"},{"type":"text","text":"c"},
                {"type":"tool_use","id":"1","name":"f","input":{"x":1}},{"type":"tool_use","id":"2","name":"g","input":{}}]},
            {"role":"user","content":[
                {"type":"tool_result","tool_use_id":"1","content":"7"},
                {"type":"tool_result","tool_use_id":"2","content":[{"type":"text","text":"no "},{"type":"text","text":"g"}],
                    "is_error":true},
                {"type":"text","text":"d"},{"type":"text","text":"e"},
                {"type":"tool_result","tool_use_id":"3"}]},
            {"role":"assistant","content":[]},
            {"role":"system","content":"u"},
            {"role":"user","content":[{"type":"text","text":"f"}]},
        ],
    });
    let parsed = MessagesRequest::parse(body.to_string().as_bytes()).unwrap();
    assert_eq!(
        json!(parsed.request.chat.messages),
        json!([
            {"role":"system","content":"st"},
            {"role":"user","content":"a"},
            {"role":"assistant","content":"bc","reasoning_content":"h","tool_calls":[
                {"id":"1","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}},
                {"id":"2","type":"function","function":{"name":"g","arguments":"{}"}}]},
            {"role":"tool","content":"7","tool_call_id":"1"},
            {"role":"tool","content":"Error: no g","tool_call_id":"2"},
            {"role":"user","content":"de"},
            {"role":"tool","content":"","tool_call_id":"3"},
            {"role":"assistant","content":""},
            {"role":"system","content":"u"},
            {"role":"user","content":"f"},
        ])
    );
}

#[test]
fn what_is_asked_arrives() {
    let chat = parse(
        r#","model":"m","temperature":0.5,"top_p":0.9,"top_k":5,"stop_sequences":["x"],"stream":true,
        "tools":[{"name":"f","description":"d","strict":true,"cache_control":{"type":"ephemeral"},
            "input_schema":{"type":"object","properties":{"a":{}}}},{"type":"custom","name":"g","input_schema":{}}],
        "tool_choice":{"type":"any","disable_parallel_tool_use":true}"#,
    );
    let generation = &chat.generation;
    assert_eq!(
        (generation.model.as_deref(), generation.max_tokens, generation.n),
        (Some("m"), Some(2000), 1)
    );
    assert_eq!((generation.temperature, generation.top_p, generation.top_k), (Some(0.5), Some(0.9), Some(5)));
    assert_eq!(generation.stop, ["x"]);
    assert!(generation.stream.is_some() && generation.skip_special_tokens && chat.include_reasoning);
    assert_eq!((&chat.tools.choice, chat.tools.parallel), (&ToolChoice::Required, false));
    assert_eq!(chat.tools.list[0].parameters, Some(json!({"type":"object","properties":{"a":{}}})));
    assert_eq!(chat.tools.list[1].parameters, Some(json!({"type":"object"})));
    let tool = |choice: &str| {
        let tools = r#","tools":[{"name":"f","input_schema":{}}],"tool_choice":"#;
        parse(&format!("{tools}{choice}")).tools.choice
    };
    assert_eq!(tool(r#"{"type":"auto"}"#), ToolChoice::Auto);
    assert_eq!(tool(r#"{"type":"none"}"#), ToolChoice::None);
    assert_eq!(tool(r#"{"type":"tool","name":"f"}"#), ToolChoice::Named("f".into()));
    let schema = parse(r#","output_config":{"format":{"type":"json_schema","schema":{"type":"string"}}}"#);
    let constrained = schema.generation.constrained.unwrap();
    assert_eq!(constrained.constraint, Constraint::JsonSchema(json!({"type":"string"})));
    assert_eq!(constrained.param, "output_config.format.schema");
}

#[test]
fn thinking_is_told_to_the_template() {
    let kwargs = |fields: &str| Value::Object(parse(fields).chat_template_kwargs);
    let (on, off) =
        (json!({"thinking":true,"enable_thinking":true}), json!({"thinking":false,"enable_thinking":false}));
    for (fields, expected) in [
        ("", json!({})),
        (r#","thinking":{"type":"enabled","budget_tokens":1024}"#, on.clone()),
        (r#","thinking":{"type":"adaptive"}"#, on),
        (r#","thinking":{"type":"disabled"}"#, off),
        (r#","output_config":{"effort":"max"}"#, json!({"reasoning_effort":"xhigh"})),
    ] {
        assert_eq!(kwargs(fields), expected, "{fields}");
    }
    assert!(!parse(r#","thinking":{"type":"adaptive","display":"omitted"}"#).include_reasoning);
}

#[test]
fn what_asks_for_nothing_is_accepted() {
    let harmless = r#","metadata":{"user_id":"u"},"service_tier":"auto","cache_control":{"type":"ephemeral"},
        "system":null,"tools":[],"tool_choice":{"type":"auto"},"stop_sequences":[],"mcp_servers":[],"speed":"standard",
        "context_management":{"edits":[]}"#;
    assert_eq!(parse(harmless), parse(""));
}

#[test]
fn counting_needs_no_length() {
    let body =
        br#"{"model":"m","messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;
    let chat = MessagesRequest::parse_count(body).unwrap().request.chat;
    assert_eq!((chat.messages.len(), chat.generation.max_tokens), (2, None));
    assert_eq!(count_body(7), json!({"input_tokens":7}));
}

#[test]
fn errors_have_anthropics_shape() {
    for (code, kind) in [
        (Code::InvalidJson, "invalid_request_error"),
        (Code::MethodNotAllowed, "invalid_request_error"),
        (Code::InvalidApiKey, "authentication_error"),
        (Code::ModelNotFound, "not_found_error"),
        (Code::RequestExpired, "timeout_error"),
        (Code::RequestTooLarge, "request_too_large"),
        (Code::UrlTooLong, "request_too_large"),
        (Code::HeadersTooLarge, "request_too_large"),
        (Code::RateLimitExceeded, "rate_limit_error"),
        (Code::ServerOverloaded, "rate_limit_error"),
        (Code::InternalError, "api_error"),
        (Code::ModelLoading, "overloaded_error"),
    ] {
        let body = error_body(&Error::new(code, "What happened."));
        assert_eq!(body, json!({"type":"error","error":{"type":kind,"message":"What happened."}}));
    }
}
