//! Requests of `/v1/responses`: bad ones with code and parameter, good ones with what they mean.

use openai::responses::ResponsesRequest;
use openai::{Constraint, ToolChoice};
use serde_json::{Value, json};

const VOCAB_SIZE: usize = 100;

const TYPE: &str = "invalid_type";
const VALUE: &str = "invalid_value";
const MISSING: &str = "missing_required_parameter";
const UNSERVED: &str = "unsupported_parameter";

fn check(body: &str, code: &str, param: &str) {
    let error = ResponsesRequest::parse(body.as_bytes(), VOCAB_SIZE).err();
    let error = error.unwrap_or_else(|| panic!("accepted: {body}"));
    assert_eq!((error.code.as_str(), error.param.as_deref()), (code, Some(param)), "{body}: {error}");
    assert!(error.message.ends_with('.') && error.message.len() > 20, "{body}: {error}");
}

fn parse(fields: &str) -> ResponsesRequest {
    let body = format!(r#"{{"input":"hi"{fields}}}"#);
    let parsed =
        ResponsesRequest::parse(body.as_bytes(), VOCAB_SIZE).unwrap_or_else(|e| panic!("{body}: {e}"));
    assert_eq!(parsed.ignored, Vec::<String>::new(), "{body}");
    parsed.request
}

fn messages(input: &Value) -> Value {
    let body = json!({"input": input}).to_string();
    let parsed =
        ResponsesRequest::parse(body.as_bytes(), VOCAB_SIZE).unwrap_or_else(|e| panic!("{body}: {e}"));
    json!(parsed.request.chat.messages)
}

#[test]
fn bad_fields() {
    let cases = [
        (r#""previous_response_id":"resp_1""#, UNSERVED, "previous_response_id"),
        (r#""conversation":"conv_1""#, UNSERVED, "conversation"),
        (r#""background":true"#, UNSERVED, "background"),
        (r#""prompt":{"id":"p"}"#, UNSERVED, "prompt"),
        (r#""truncation":"auto""#, UNSERVED, "truncation"),
        (r#""context_management":[{"type":"compaction"}]"#, UNSERVED, "context_management"),
        (r#""moderation":{"model":"m"}"#, UNSERVED, "moderation"),
        (r#""prompt_cache_options":{"prewarm":true}"#, UNSERVED, "prompt_cache_options"),
        (r#""messages":[]"#, UNSERVED, "messages"),
        (r#""max_tokens":5"#, UNSERVED, "max_tokens"),
        (r#""response_format":{"type":"json_object"}"#, UNSERVED, "response_format"),
        (r#""reasoning_effort":"low""#, UNSERVED, "reasoning_effort"),
        (r#""logprobs":true"#, UNSERVED, "logprobs"),
        (r#""n":2"#, UNSERVED, "n"),
        (r#""prompt_logprobs":1"#, UNSERVED, "prompt_logprobs"),
        (r#""instructions":["a"]"#, TYPE, "instructions"),
        (r#""max_output_tokens":0"#, VALUE, "max_output_tokens"),
        (r#""max_output_tokens":"5""#, TYPE, "max_output_tokens"),
        (r#""max_tool_calls":0"#, VALUE, "max_tool_calls"),
        (r#""temperature":2.5"#, VALUE, "temperature"),
        (r#""top_p":0"#, VALUE, "top_p"),
        (r#""metadata":{"a":1}"#, TYPE, "metadata"),
        (r#""stream":"yes""#, TYPE, "stream"),
        (r#""stream_options":{}"#, VALUE, "stream_options"),
        (
            r#""stream":true,"stream_options":{"include_obfuscation":1}"#,
            TYPE,
            "stream_options.include_obfuscation",
        ),
        (r#""top_logprobs":21"#, VALUE, "top_logprobs"),
        (r#""include":"x""#, TYPE, "include"),
        (r#""include":[1]"#, TYPE, "include[0]"),
        (r#""include":["message.output_text.logprobs","file_search_call.results"]"#, UNSERVED, "include[1]"),
        (r#""text":"json""#, TYPE, "text"),
        (r#""text":{"verbosity":3}"#, TYPE, "text.verbosity"),
        (r#""text":{"format":{}}"#, MISSING, "text.format.type"),
        (r#""text":{"format":{"type":"xml"}}"#, VALUE, "text.format.type"),
        (r#""text":{"format":{"type":"json_schema","schema":{}}}"#, MISSING, "text.format.name"),
        (r#""text":{"format":{"type":"json_schema","name":"a"}}"#, MISSING, "text.format.schema"),
        (r#""text":{"format":{"type":"json_schema","name":"a","schema":[]}}"#, TYPE, "text.format.schema"),
        (
            r#""text":{"format":{"type":"json_object"}},"structured_outputs":{"regex":"a"}"#,
            VALUE,
            "text.format",
        ),
        (r#""reasoning":"low""#, TYPE, "reasoning"),
        (r#""reasoning":{"effort":"much"}"#, VALUE, "reasoning.effort"),
        (r#""reasoning":{"summary":"detailed"}"#, UNSERVED, "reasoning.summary"),
        (r#""reasoning":{"mode":"pro"}"#, UNSERVED, "reasoning.mode"),
        (r#""tools":{}"#, TYPE, "tools"),
        (r#""tools":[{"name":"f"}]"#, MISSING, "tools[0].type"),
        (r#""tools":[{"type":"web_search"}]"#, UNSERVED, "tools[0].type"),
        (
            r#""tools":[{"type":"function","name":"f"},{"type":"custom","name":"g"}]"#,
            UNSERVED,
            "tools[1].type",
        ),
        (r#""tools":[{"type":"function","function":{"name":"f"}}]"#, MISSING, "tools[0].name"),
        (r#""tools":[{"type":"function","name":"a b"}]"#, VALUE, "tools[0].name"),
        (r#""tools":[{"type":"function","name":"f","parameters":"x"}]"#, TYPE, "tools[0].parameters"),
        (r#""tools":[{"type":"function","name":"f"},{"type":"function","name":"f"}]"#, VALUE, "tools[1]"),
        (r#""tool_choice":"required""#, VALUE, "tool_choice"),
        (r#""tool_choice":"any""#, VALUE, "tool_choice"),
        (r#""tool_choice":{"type":"file_search"}"#, UNSERVED, "tool_choice.type"),
        (r#""tool_choice":{"type":"function"}"#, MISSING, "tool_choice.name"),
        (
            r#""tools":[{"type":"function","name":"f"}],"tool_choice":{"type":"function","name":"g"}"#,
            VALUE,
            "tool_choice",
        ),
        (
            r#""tools":[{"type":"function","name":"f"}],"tool_choice":"required","text":{"format":{"type":"json_object"}}"#,
            VALUE,
            "text.format.type",
        ),
        (r#""parallel_tool_calls":1"#, TYPE, "parallel_tool_calls"),
        (r#""chat_template_kwargs":{"tools":[]}"#, VALUE, "chat_template_kwargs.tools"),
        (r#""include_reasoning":"no""#, TYPE, "include_reasoning"),
    ];
    for (fields, code, param) in cases {
        check(&format!(r#"{{"input":"hi",{fields}}}"#), code, param);
    }
}

/// All that the official client can send: of the wrong type, each is complained of.
#[test]
fn every_field_is_known() {
    let names = "access_programs background background_options chat_template_kwargs context_management conversation image \
         include include_reasoning input instructions max_output_tokens max_tool_calls metadata model moderation \
         parallel_tool_calls previous_response_id prompt prompt_cache_key prompt_cache_options prompt_cache_retention \
         reasoning safety_identifier service_tier store stream stream_options temperature text tool_choice tools \
         top_logprobs top_p truncation user";
    for name in names.split_whitespace() {
        let mut body = json!({"input": "hi", "stream": true});
        body[name] = json!([[5]]);
        let error = ResponsesRequest::parse(body.to_string().as_bytes(), VOCAB_SIZE).err();
        let param = error.and_then(|error| error.param);
        assert!(param.as_ref().is_some_and(|param| param.starts_with(name)), "{name}: {param:?}");
    }
}

#[test]
fn bad_items() {
    let cases = [
        ("null", MISSING, "input"),
        ("5", TYPE, "input"),
        ("[]", VALUE, "input"),
        (r#"["hi"]"#, TYPE, "input[0]"),
        ("[{}]", MISSING, "input[0].type"),
        (r#"[{"type":5}]"#, TYPE, "input[0].type"),
        (r#"[{"type":"item_reference","id":"x"}]"#, UNSERVED, "input[0].type"),
        (r#"[{"role":"user","content":"a"},{"type":"web_search_call","id":"x"}]"#, UNSERVED, "input[1].type"),
        (r#"[{"type":"message","content":"a"}]"#, MISSING, "input[0].role"),
        (r#"[{"role":"tool","content":"a"}]"#, VALUE, "input[0].role"),
        (r#"[{"role":"user"}]"#, MISSING, "input[0].content"),
        (r#"[{"role":"user","content":5}]"#, TYPE, "input[0].content"),
        (r#"[{"role":"user","content":[]}]"#, VALUE, "input[0].content"),
        (r#"[{"role":"user","content":["a"]}]"#, TYPE, "input[0].content[0]"),
        (r#"[{"role":"user","content":[{"text":"a"}]}]"#, MISSING, "input[0].content[0].type"),
        (r#"[{"role":"user","content":[{"type":"input_image"}]}]"#, UNSERVED, "input[0].content[0].type"),
        (
            r#"[{"role":"user","content":[{"type":"input_text","text":"a"},{"type":"input_file"}]}]"#,
            UNSERVED,
            "input[0].content[1].type",
        ),
        (
            r#"[{"role":"user","content":[{"type":"output_text","text":"a"}]}]"#,
            UNSERVED,
            "input[0].content[0].type",
        ),
        (r#"[{"role":"user","content":[{"type":"input_text"}]}]"#, MISSING, "input[0].content[0].text"),
        (r#"[{"role":"user","content":"a","status":1}]"#, TYPE, "input[0].status"),
        (r#"[{"type":"function_call","name":"f","arguments":"{}"}]"#, MISSING, "input[0].call_id"),
        (r#"[{"type":"function_call","call_id":"c","arguments":"{}"}]"#, MISSING, "input[0].name"),
        (r#"[{"type":"function_call","call_id":"c","name":"f","arguments":{}}]"#, TYPE, "input[0].arguments"),
        (r#"[{"type":"function_call_output","output":"a"}]"#, MISSING, "input[0].call_id"),
        (r#"[{"type":"function_call_output","call_id":"c"}]"#, MISSING, "input[0].output"),
        (
            r#"[{"type":"function_call_output","call_id":"c","output":[{"type":"input_image"}]}]"#,
            UNSERVED,
            "input[0].output[0].type",
        ),
        (r#"[{"type":"reasoning","summary":[]}]"#, VALUE, "input"),
        (r#"[{"type":"reasoning","content":"a"}]"#, TYPE, "input[0].content"),
        (r#"[{"type":"reasoning","content":[{"type":"text"}]}]"#, UNSERVED, "input[0].content[0].type"),
        (
            r#"[{"type":"reasoning","summary":[],"encrypted_content":"x"}]"#,
            UNSERVED,
            "input[0].encrypted_content",
        ),
    ];
    for (input, code, param) in cases {
        check(&format!(r#"{{"input":{input}}}"#), code, param);
    }
    let many = vec![r#"{"role":"user","content":"a"}"#; 4097].join(",");
    check(&format!(r#"{{"input":[{many}]}}"#), VALUE, "input");
}

#[test]
fn items_as_templates_see_them() {
    let call =
        |id: &str| json!({"type":"function_call","id":"fc_1","call_id":id,"name":"f","arguments":"{}"});
    let seen = |id: &str| json!({"id":id,"type":"function","function":{"name":"f","arguments":"{}"}});
    let reasoning = |text: &str| json!({"type":"reasoning","id":"rs_1","summary":[],"content":[{"type":"reasoning_text","text":text}]});
    let said = json!({"type":"message","role":"assistant","id":"msg_1","status":"completed","content":[
        {"type":"output_text","text":"a","annotations":[],"logprobs":[]},{"type":"refusal","refusal":"b"}]});
    let result = |id: &str| json!({"type":"function_call_output","call_id":id,"output":"7"});
    let told = |id: &str| json!({"role":"tool","content":"7","tool_call_id":id});
    let cases = [
        (json!("hi"), json!([{"role":"user","content":"hi"}])),
        (
            json!([{"role":"developer","content":"d"},
                {"type":"message","role":"user","content":[{"type":"input_text","text":"x"},{"type":"input_text","text":"y"}]}]),
            json!([{"role":"system","content":"d"},{"role":"user","content":"xy"}]),
        ),
        // One turn: what was thought, what was said, and two calls, then their results.
        (
            json!([reasoning("h"), said, call("1"), call("2"), result("1"), result("2")]),
            json!([{"role":"assistant","content":"ab","reasoning_content":"h","tool_calls":[seen("1"),seen("2")]},
                told("1"), told("2")]),
        ),
        (
            json!([call("1"), reasoning("h"), call("2"), said, call("3")]),
            json!([
                {"role":"assistant","content":null,"tool_calls":[seen("1")]},
                {"role":"assistant","content":null,"reasoning_content":"h","tool_calls":[seen("2")]},
                {"role":"assistant","content":"ab","tool_calls":[seen("3")]},
            ]),
        ),
        (
            json!([said, said, reasoning("h"), reasoning("m")]),
            json!([{"role":"assistant","content":"ab"},{"role":"assistant","content":"ab"},
                {"role":"assistant","content":"","reasoning_content":"hm"}]),
        ),
        (
            json!([{"type":"reasoning","summary":[{"type":"summary_text","text":"s"}],"encrypted_content":"x"},
                {"type":"reasoning","summary":[]}, said]),
            json!([{"role":"assistant","content":"ab","reasoning_content":"s"}]),
        ),
        (
            json!([{"type":"function_call_output","call_id":"1","output":[{"type":"input_text","text":"7"}]}]),
            json!([told("1")]),
        ),
    ];
    for (input, expected) in cases {
        assert_eq!(messages(&input), expected, "{input}");
    }
}

#[test]
fn what_is_asked_arrives() {
    let chat = parse(
        r#","model":"m","instructions":"i","max_output_tokens":9,"temperature":0.7,"top_p":0.9,"seed":3,
        "stream":true,"top_logprobs":2,"reasoning":{"effort":"none","summary":"auto"},"include_reasoning":false,
        "tools":[{"type":"function","name":"f","description":"d","strict":true}],
        "tool_choice":{"type":"function","name":"f"},"parallel_tool_calls":false"#,
    )
    .chat;
    assert_eq!(json!(chat.messages), json!([{"role":"system","content":"i"},{"role":"user","content":"hi"}]));
    let generation = &chat.generation;
    assert_eq!((generation.model.as_deref(), generation.max_tokens, generation.n), (Some("m"), Some(9), 1));
    assert_eq!((generation.temperature, generation.top_p, generation.seed), (Some(0.7), Some(0.9), Some(3)));
    assert!(
        generation.stream.is_some()
            && !chat.include_reasoning
            && chat.ending == openai::Ending::GenerationPrompt
    );
    assert_eq!(chat.logprobs, Some(2));
    assert_eq!(chat.chat_template_kwargs["thinking"], false);
    assert_eq!(chat.chat_template_kwargs["reasoning_effort"], "none");
    assert_eq!(chat.tools.choice, ToolChoice::Named("f".into()));
    assert!(chat.tools.list[0].strict && !chat.tools.parallel);
    let format =
        |format: &str| parse(&format!(r#","text":{{"format":{format}}}"#)).chat.generation.constrained;
    assert_eq!(format(r#"{"type":"text"}"#), None);
    assert_eq!(format(r#"{"type":"json_object"}"#).unwrap().constraint, Constraint::JsonObject);
    let schema =
        format(r#"{"type":"json_schema","name":"a","schema":{"type":"string"},"strict":true}"#).unwrap();
    assert_eq!(schema.constraint, Constraint::JsonSchema(json!({"type":"string"})));
    assert_eq!(schema.param, "text.format.schema");
    assert_eq!(parse(r#","include":["message.output_text.logprobs"]"#).chat.logprobs, Some(0));
    assert_eq!(parse(r#","top_logprobs":0"#).chat.logprobs, None);
}

#[test]
fn what_asks_for_nothing_is_accepted() {
    let harmless = r#","background":false,"truncation":"disabled","store":true,"user":null,"tools":[],
        "tool_choice":"auto","include":["reasoning.encrypted_content"],"reasoning":{"summary":"auto","context":"auto"},
        "text":{"format":{"type":"text"}},"service_tier":"auto","prompt_cache_key":"k","safety_identifier":"s",
        "previous_response_id":null,"context_management":[],"n":1"#;
    assert_eq!(parse(harmless), parse(""));
}

#[test]
fn the_answer_repeats_the_request() {
    let plain = json!({"background":false,"instructions":null,"max_output_tokens":null,"max_tool_calls":null,
        "metadata":{},"parallel_tool_calls":true,"previous_response_id":null,
        "reasoning":{"effort":null,"summary":null},"service_tier":"default","store":false,"temperature":null,
        "text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_logprobs":0,"top_p":null,
        "truncation":"disabled","user":null});
    assert_eq!(Value::Object(parse("").echo), plain);
    let echo = parse(
        r#","temperature":0.1,"metadata":{"a":"b"},"user":"u","text":{"verbosity":"low"},"tool_choice":"none",
        "tools":[{"type":"function","name":"f","parameters":{"type":"object"}}],"max_tool_calls":3,
        "reasoning":{"effort":"high"},"parallel_tool_calls":false"#,
    )
    .echo;
    let expected = [
        ("temperature", json!(0.1)),
        ("metadata", json!({"a":"b"})),
        ("user", json!("u")),
        ("text", json!({"format":{"type":"text"},"verbosity":"low"})),
        ("tool_choice", json!("none")),
        ("max_tool_calls", json!(3)),
        ("parallel_tool_calls", json!(false)),
        ("reasoning", json!({"effort":"high","summary":null})),
        (
            "tools",
            json!([{"type":"function","name":"f","description":null,"parameters":{"type":"object"},"strict":false}]),
        ),
    ];
    for (key, value) in expected {
        assert_eq!(echo[key], value, "{key}");
    }
}
