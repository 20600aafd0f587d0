//! Bad requests, each with the code and the parameter that its error must name.

use openai::{ChatRequest, CompletionRequest, DetokenizeRequest, Error, TokenizeRequest};

const VOCAB_SIZE: usize = 100;

fn check(body: &[u8], error: Option<Error>, code: &str, param: Option<&str>) {
    let body = String::from_utf8_lossy(&body[..body.len().min(300)]);
    let error = error.unwrap_or_else(|| panic!("accepted: {body}"));
    assert_eq!((error.code.as_str(), error.param.as_deref()), (code, param), "{body}: {error}");
    assert!(error.message.ends_with('.') && error.message.len() > 20, "{body}: {error}");
}

fn chat(body: &str) -> Option<Error> {
    ChatRequest::parse(body.as_bytes(), VOCAB_SIZE).err()
}

fn completion(body: &str) -> Option<Error> {
    CompletionRequest::parse(body.as_bytes(), VOCAB_SIZE).err()
}

const TYPE: &str = "invalid_type";
const VALUE: &str = "invalid_value";
const MISSING: &str = "missing_required_parameter";
const PARAMETER: &str = "unsupported_parameter";
const UNSUPPORTED: &str = "unsupported_value";

/// Fields that chat and completions share: (fields, code, param).
const COMMON: &[(&str, &str, &str)] = &[
    (r#""model":7"#, TYPE, "model"),
    (r#""temperature":"0.7""#, TYPE, "temperature"),
    (r#""temperature":true"#, TYPE, "temperature"),
    (r#""temperature":[1]"#, TYPE, "temperature"),
    (r#""temperature":-0.1"#, VALUE, "temperature"),
    (r#""temperature":2.01"#, VALUE, "temperature"),
    (r#""temperature":1e300"#, VALUE, "temperature"),
    (r#""top_p":0"#, VALUE, "top_p"),
    (r#""top_p":1.0001"#, VALUE, "top_p"),
    (r#""top_p":-1"#, VALUE, "top_p"),
    (r#""top_p":"1""#, TYPE, "top_p"),
    (r#""top_k":-2"#, VALUE, "top_k"),
    (r#""top_k":1.5"#, TYPE, "top_k"),
    (r#""top_k":"1""#, TYPE, "top_k"),
    (r#""top_k":99999999999999999999"#, VALUE, "top_k"),
    (r#""min_p":1.1"#, VALUE, "min_p"),
    (r#""min_p":-0.1"#, VALUE, "min_p"),
    (r#""presence_penalty":2.1"#, VALUE, "presence_penalty"),
    (r#""presence_penalty":"0""#, TYPE, "presence_penalty"),
    (r#""frequency_penalty":-2.1"#, VALUE, "frequency_penalty"),
    (r#""repetition_penalty":0"#, VALUE, "repetition_penalty"),
    (r#""repetition_penalty":2.5"#, VALUE, "repetition_penalty"),
    (r#""logit_bias":[1]"#, TYPE, "logit_bias"),
    (r#""logit_bias":{"a":1}"#, VALUE, "logit_bias"),
    (r#""logit_bias":{"-1":1}"#, VALUE, "logit_bias"),
    (r#""logit_bias":{"+1":1}"#, VALUE, "logit_bias"),
    (r#""logit_bias":{"01":1}"#, VALUE, "logit_bias"),
    (r#""logit_bias":{"":1}"#, VALUE, "logit_bias"),
    (r#""logit_bias":{"100":1}"#, VALUE, "logit_bias"),
    (r#""logit_bias":{"99999999999":1}"#, VALUE, "logit_bias"),
    (r#""logit_bias":{"5":101}"#, VALUE, "logit_bias.5"),
    (r#""logit_bias":{"5":"1"}"#, TYPE, "logit_bias.5"),
    (r#""logit_bias":{"5":null}"#, TYPE, "logit_bias.5"),
    (r#""seed":1.5"#, TYPE, "seed"),
    (r#""seed":"1""#, TYPE, "seed"),
    (r#""seed":9223372036854775808"#, VALUE, "seed"),
    (r#""seed":1e30"#, VALUE, "seed"),
    (r#""n":0"#, VALUE, "n"),
    (r#""n":-1"#, VALUE, "n"),
    (r#""n":129"#, VALUE, "n"),
    (r#""n":true"#, TYPE, "n"),
    (r#""n":"1""#, TYPE, "n"),
    (r#""stop":"""#, VALUE, "stop"),
    (r#""stop":["a",""]"#, VALUE, "stop[1]"),
    (r#""stop":["a",1]"#, TYPE, "stop[1]"),
    (r#""stop":["a",null]"#, TYPE, "stop[1]"),
    (r#""stop":5"#, TYPE, "stop"),
    (r#""stop":{"a":1}"#, TYPE, "stop"),
    (r#""stop_token_ids":[100]"#, VALUE, "stop_token_ids[0]"),
    (r#""stop_token_ids":[1,-1]"#, VALUE, "stop_token_ids[1]"),
    (r#""stop_token_ids":["1"]"#, TYPE, "stop_token_ids[0]"),
    (r#""stop_token_ids":1"#, TYPE, "stop_token_ids"),
    (r#""include_stop_str_in_output":1"#, TYPE, "include_stop_str_in_output"),
    (r#""ignore_eos":"true""#, TYPE, "ignore_eos"),
    (r#""skip_special_tokens":0"#, TYPE, "skip_special_tokens"),
    (r#""add_special_tokens":0"#, TYPE, "add_special_tokens"),
    (r#""stream":"true""#, TYPE, "stream"),
    (r#""stream":1"#, TYPE, "stream"),
    (r#""stream_options":{"include_usage":true}"#, VALUE, "stream_options"),
    (r#""stream":false,"stream_options":{}"#, VALUE, "stream_options"),
    (r#""stream":true,"stream_options":[]"#, TYPE, "stream_options"),
    (r#""stream":true,"stream_options":{"include_usage":1}"#, TYPE, "stream_options.include_usage"),
    (
        r#""stream":true,"stream_options":{"continuous_usage_stats":"x"}"#,
        TYPE,
        "stream_options.continuous_usage_stats",
    ),
    (r#""max_tokens":1.5"#, TYPE, "max_tokens"),
    (r#""max_tokens":"5""#, TYPE, "max_tokens"),
    (r#""max_tokens":0"#, VALUE, "max_tokens"),
    (r#""max_tokens":-5"#, VALUE, "max_tokens"),
    (r#""max_tokens":1e19"#, VALUE, "max_tokens"),
    (r#""max_tokens":18446744073709551616"#, VALUE, "max_tokens"),
    (r#""min_tokens":-1"#, VALUE, "min_tokens"),
    (r#""min_tokens":5,"max_tokens":4"#, VALUE, "min_tokens"),
    (r#""min_tokens":"1""#, TYPE, "min_tokens"),
    (r#""return_token_ids":1"#, TYPE, "return_token_ids"),
    (r#""return_tokens_as_token_ids":"no""#, TYPE, "return_tokens_as_token_ids"),
    (r#""user":7"#, TYPE, "user"),
    (r#""store":"yes""#, TYPE, "store"),
    (r#""service_tier":1"#, TYPE, "service_tier"),
    (r#""safety_identifier":1"#, TYPE, "safety_identifier"),
    (r#""prompt_cache_key":1"#, TYPE, "prompt_cache_key"),
    (r#""verbosity":3"#, TYPE, "verbosity"),
    (r#""metadata":[]"#, TYPE, "metadata"),
    (r#""metadata":{"a":1}"#, TYPE, "metadata"),
    (r#""bad_words":"x""#, TYPE, "bad_words"),
    (r#""bad_words":["x",1]"#, TYPE, "bad_words[1]"),
    (r#""bad_words":["x",""]"#, VALUE, "bad_words[1]"),
    (r#""allowed_token_ids":1"#, TYPE, "allowed_token_ids"),
    (r#""allowed_token_ids":[]"#, VALUE, "allowed_token_ids"),
    (r#""allowed_token_ids":[1,100]"#, VALUE, "allowed_token_ids[1]"),
    (r#""allowed_token_ids":[1,"2"]"#, TYPE, "allowed_token_ids[1]"),
    (r#""allowed_token_ids":[1,99,1]"#, VALUE, "allowed_token_ids[2]"),
    (r#""prompt_logprobs":-1"#, VALUE, "prompt_logprobs"),
    (r#""prompt_logprobs":21"#, VALUE, "prompt_logprobs"),
    (r#""prompt_logprobs":true"#, TYPE, "prompt_logprobs"),
    (r#""prompt_logprobs":0,"stream":true"#, VALUE, "prompt_logprobs"),
    (r#""truncate_prompt_tokens":0"#, VALUE, "truncate_prompt_tokens"),
    (r#""truncate_prompt_tokens":-2"#, VALUE, "truncate_prompt_tokens"),
    (r#""truncate_prompt_tokens":1.5"#, TYPE, "truncate_prompt_tokens"),
    (r#""cache_salt":5"#, TYPE, "cache_salt"),
    (r#""cache_salt":"""#, VALUE, "cache_salt"),
    (r#""priority":2147483648"#, VALUE, "priority"),
    (r#""priority":0.5"#, TYPE, "priority"),
    (r#""priority":"0""#, TYPE, "priority"),
    (r#""logits_processors":["x"]"#, PARAMETER, "logits_processors"),
    (r#""use_beam_search":true"#, PARAMETER, "use_beam_search"),
    (r#""prompt_embeds":"x""#, PARAMETER, "prompt_embeds"),
    (r#""spaces_between_special_tokens":false"#, PARAMETER, "spaces_between_special_tokens"),
];

#[test]
fn a_number_is_shown_as_it_was_sent_or_not_at_all() {
    for (priority, expected) in [
        ("2147483648", "`priority` is 2147483648; it must be from -2147483648 to 2147483647."),
        ("18446744073709551615", "`priority` is 18446744073709551615; "),
        ("18446744073709551616", "`priority` is out of range; it must be from -2147483648 to 2147483647."),
        ("-1e300", "`priority` is out of range; "),
    ] {
        let error = completion(&format!(r#"{{"prompt":"hi","priority":{priority}}}"#)).unwrap();
        assert!(error.message.starts_with(expected), "{error:?}");
    }
}

#[test]
fn shared_fields() {
    for (fields, code, param) in COMMON {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"hi"}}],{fields}}}"#);
        check(body.as_bytes(), chat(&body), code, Some(param));
        let body = format!(r#"{{"prompt":"hi",{fields}}}"#);
        check(body.as_bytes(), completion(&body), code, Some(param));
    }
}

#[test]
fn chat_fields() {
    let cases = [
        (r#""max_completion_tokens":0"#, VALUE, "max_completion_tokens"),
        (r#""max_completion_tokens":2.5"#, TYPE, "max_completion_tokens"),
        (r#""max_tokens":9,"max_completion_tokens":2,"min_tokens":3"#, VALUE, "min_tokens"),
        (r#""logprobs":5"#, TYPE, "logprobs"),
        (r#""top_logprobs":5"#, VALUE, "top_logprobs"),
        (r#""logprobs":false,"top_logprobs":5"#, VALUE, "top_logprobs"),
        (r#""logprobs":true,"top_logprobs":21"#, VALUE, "top_logprobs"),
        (r#""logprobs":true,"top_logprobs":-1"#, VALUE, "top_logprobs"),
        (r#""logprobs":true,"top_logprobs":true"#, TYPE, "top_logprobs"),
        (r#""best_of":3"#, PARAMETER, "best_of"),
        (r#""parallel_tool_calls":1"#, TYPE, "parallel_tool_calls"),
        (r#""functions":[{"name":"f"}]"#, PARAMETER, "functions"),
        (r#""function_call":{"name":"f"}"#, PARAMETER, "function_call"),
        (r#""audio":{"voice":"a"}"#, PARAMETER, "audio"),
        (r#""modalities":["text","audio"]"#, PARAMETER, "modalities"),
        (r#""prediction":{"type":"content"}"#, PARAMETER, "prediction"),
        (r#""web_search_options":{}"#, PARAMETER, "web_search_options"),
        (r#""chat_template":"x""#, PARAMETER, "chat_template"),
        (r#""continue_final_message":true"#, VALUE, "continue_final_message"),
        (r#""continue_final_message":1"#, TYPE, "continue_final_message"),
        (r#""continue_final_message":true,"add_generation_prompt":true"#, VALUE, "continue_final_message"),
        (r#""echo":true"#, PARAMETER, "echo"),
        (r#""add_generation_prompt":"no""#, TYPE, "add_generation_prompt"),
        (r#""chat_template_kwargs":[]"#, TYPE, "chat_template_kwargs"),
        (r#""chat_template_kwargs":{"messages":[]}"#, VALUE, "chat_template_kwargs.messages"),
        (r#""chat_template_kwargs":{"bos_token":"x"}"#, VALUE, "chat_template_kwargs.bos_token"),
    ];
    for (fields, code, param) in cases {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"hi"}}],{fields}}}"#);
        check(body.as_bytes(), chat(&body), code, Some(param));
    }
}

#[test]
fn messages() {
    let cases = [
        ("null", MISSING, "messages"),
        ("[]", VALUE, "messages"),
        (r#""hi""#, TYPE, "messages"),
        (r#"{"role":"user"}"#, TYPE, "messages"),
        (r#"["hi"]"#, TYPE, "messages[0]"),
        ("[null]", TYPE, "messages[0]"),
        (r#"[{"content":"x"}]"#, MISSING, "messages[0].role"),
        (r#"[{"role":7,"content":"x"}]"#, TYPE, "messages[0].role"),
        (r#"[{"role":"robot","content":"x"}]"#, VALUE, "messages[0].role"),
        (r#"[{"role":"User","content":"x"}]"#, VALUE, "messages[0].role"),
        (r#"[{"role":"function","content":"x"}]"#, UNSUPPORTED, "messages[0].role"),
        (r#"[{"role":"user"}]"#, MISSING, "messages[0].content"),
        (r#"[{"role":"user","content":null}]"#, MISSING, "messages[0].content"),
        (r#"[{"role":"assistant"}]"#, MISSING, "messages[0].content"),
        (r#"[{"role":"assistant","tool_calls":[]}]"#, MISSING, "messages[0].content"),
        (r#"[{"role":"user","content":7}]"#, TYPE, "messages[0].content"),
        (r#"[{"role":"user","content":{"text":"x"}}]"#, TYPE, "messages[0].content"),
        (r#"[{"role":"user","content":[]}]"#, VALUE, "messages[0].content"),
        (r#"[{"role":"user","content":["x"]}]"#, TYPE, "messages[0].content[0]"),
        (r#"[{"role":"user","content":[{}]}]"#, MISSING, "messages[0].content[0].type"),
        (r#"[{"role":"user","content":[{"type":1}]}]"#, TYPE, "messages[0].content[0].type"),
        (r#"[{"role":"user","content":[{"type":"text"}]}]"#, MISSING, "messages[0].content[0].text"),
        (r#"[{"role":"user","content":[{"type":"text","text":5}]}]"#, TYPE, "messages[0].content[0].text"),
        (
            r#"[{"role":"user","content":"a"},{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"x"}}]}]"#,
            UNSUPPORTED,
            "messages[1].content[1].type",
        ),
        (
            r#"[{"role":"user","content":[{"type":"input_audio"}]}]"#,
            UNSUPPORTED,
            "messages[0].content[0].type",
        ),
        (
            r#"[{"role":"user","content":[{"type":"refusal","refusal":"x"}]}]"#,
            UNSUPPORTED,
            "messages[0].content[0].type",
        ),
        (r#"[{"role":"user","content":"x","name":1}]"#, TYPE, "messages[0].name"),
        (r#"[{"role":"tool","content":"x"}]"#, MISSING, "messages[0].tool_call_id"),
        (r#"[{"role":"tool","content":"x","tool_call_id":1}]"#, TYPE, "messages[0].tool_call_id"),
        (r#"[{"role":"user","content":"x","tool_calls":[{}]}]"#, VALUE, "messages[0].tool_calls"),
        (r#"[{"role":"assistant","tool_calls":{}}]"#, TYPE, "messages[0].tool_calls"),
        (r#"[{"role":"assistant","tool_calls":[{}]}]"#, MISSING, "messages[0].tool_calls[0].id"),
        (
            r#"[{"role":"assistant","tool_calls":[{"id":"a"}]}]"#,
            MISSING,
            "messages[0].tool_calls[0].function",
        ),
        (
            r#"[{"role":"assistant","tool_calls":[{"id":"a","type":"custom"}]}]"#,
            UNSUPPORTED,
            "messages[0].tool_calls[0].type",
        ),
        (
            r#"[{"role":"assistant","tool_calls":[{"id":"a","function":{"arguments":"{}"}}]}]"#,
            MISSING,
            "messages[0].tool_calls[0].function.name",
        ),
        (
            r#"[{"role":"assistant","tool_calls":[{"id":"a","function":{"name":"f","arguments":{}}}]}]"#,
            TYPE,
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            r#"[{"role":"assistant","content":"x","function_call":{}}]"#,
            UNSUPPORTED,
            "messages[0].function_call",
        ),
        (r#"[{"role":"assistant","content":"x","audio":{}}]"#, UNSUPPORTED, "messages[0].audio"),
    ];
    for (messages, code, param) in cases {
        let body = format!(r#"{{"messages":{messages}}}"#);
        check(body.as_bytes(), chat(&body), code, Some(param));
    }
}

#[test]
fn completion_fields() {
    let cases = [
        ("{}", MISSING, "prompt"),
        (r#"{"prompt":null}"#, MISSING, "prompt"),
        (r#"{"prompt":7}"#, TYPE, "prompt"),
        (r#"{"prompt":{}}"#, TYPE, "prompt"),
        (r#"{"prompt":true}"#, TYPE, "prompt"),
        (r#"{"prompt":[]}"#, VALUE, "prompt"),
        (r#"{"prompt":[[]]}"#, VALUE, "prompt[0]"),
        (r#"{"prompt":[[1],[]]}"#, VALUE, "prompt[1]"),
        (r#"{"prompt":[null]}"#, TYPE, "prompt[0]"),
        (r#"{"prompt":[1,"a"]}"#, TYPE, "prompt[1]"),
        (r#"{"prompt":["a",1]}"#, TYPE, "prompt[1]"),
        (r#"{"prompt":["a",[1]]}"#, TYPE, "prompt[1]"),
        (r#"{"prompt":[[1],"a"]}"#, TYPE, "prompt[1]"),
        (r#"{"prompt":[1,[2]]}"#, TYPE, "prompt[1]"),
        (r#"{"prompt":[1,-2]}"#, VALUE, "prompt[1]"),
        (r#"{"prompt":[1,100]}"#, VALUE, "prompt[1]"),
        (r#"{"prompt":[1,2.5]}"#, TYPE, "prompt[1]"),
        (r#"{"prompt":[1,true]}"#, TYPE, "prompt[1]"),
        (r#"{"prompt":[1,99999999999999999999999]}"#, VALUE, "prompt[1]"),
        (r#"{"prompt":[[1],[2,100]]}"#, VALUE, "prompt[1][1]"),
        (r#"{"prompt":[[1],[2,[3]]]}"#, TYPE, "prompt[1][1]"),
        (r#"{"prompt":"a","logprobs":true}"#, TYPE, "logprobs"),
        (r#"{"prompt":"a","logprobs":21}"#, VALUE, "logprobs"),
        (r#"{"prompt":"a","logprobs":-1}"#, VALUE, "logprobs"),
        (r#"{"prompt":"a","echo":"yes"}"#, TYPE, "echo"),
        (r#"{"prompt":"a","echo":false,"max_tokens":0}"#, VALUE, "max_tokens"),
        (r#"{"prompt":"a","echo":true,"max_tokens":-1}"#, VALUE, "max_tokens"),
        (r#"{"prompt":"a","min_tokens":17}"#, VALUE, "min_tokens"),
        (r#"{"prompt":"a","n":2,"best_of":1}"#, VALUE, "best_of"),
        (r#"{"prompt":"a","n":2,"best_of":3,"stream":true}"#, VALUE, "best_of"),
        (r#"{"prompt":"a","best_of":2.5}"#, TYPE, "best_of"),
        (
            r#"{"prompt":[[1],[1],[1],[1],[1],[1],[1],[1],[1],[1],[1],[1],[1]],"best_of":20}"#,
            VALUE,
            "best_of",
        ),
        (r#"{"prompt":"a","best_of":21}"#, VALUE, "best_of"),
        (r#"{"prompt":["a","b","c"],"n":100}"#, VALUE, "n"),
        (r#"{"prompt":"a","suffix":"b"}"#, PARAMETER, "suffix"),
        (r#"{"prompt":"a","max_completion_tokens":5}"#, PARAMETER, "max_completion_tokens"),
        (r#"{"prompt":"a","top_logprobs":5}"#, PARAMETER, "top_logprobs"),
        (r#"{"prompt":"a","reasoning_effort":"low"}"#, PARAMETER, "reasoning_effort"),
        (r#"{"messages":[]}"#, PARAMETER, "messages"),
    ];
    for (body, code, param) in cases {
        check(body.as_bytes(), completion(body), code, Some(param));
    }
}

#[test]
fn bodies_that_are_not_a_json_object() {
    let nested =
        |levels: usize| format!(r#"{{"prompt":"a","x":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
    assert_eq!(completion(&nested(127)), None, "128 levels are allowed");
    let deep = [nested(128), nested(500_000)];
    let cases: [&[u8]; 17] = [
        b"",
        b"hello",
        b"{",
        b"[]",
        b"\"prompt\"",
        b"null",
        b"{\"prompt\":\"a\"} {}",
        b"{\"prompt\":\"a\",}",
        b"{'prompt':'a'}",
        b"{\"prompt\":\"a\",\"temperature\":NaN}",
        b"{\"prompt\":\"a\",\"temperature\":Infinity}",
        b"{\"prompt\":\"a\",\"temperature\":1e999}",
        b"{\"prompt\":\"a\",\"prompt\":\"b\"}",
        b"{\"prompt\":\"\\ud800\"}",
        b"{\"prompt\":\"\xff\xfe\"}",
        deep[0].as_bytes(),
        deep[1].as_bytes(),
    ];
    for body in cases {
        let error = CompletionRequest::parse(body, VOCAB_SIZE).err();
        check(body, error, "invalid_json", None);
    }
    let inner = r#"{"prompt":"a","metadata":{"k":"1","k":"2"}}"#;
    check(inner.as_bytes(), completion(inner), "invalid_json", None);
}

#[test]
fn lists_that_are_too_long() {
    let repeat = |item: &str, n: usize| vec![item; n].join(",");
    let biases: Vec<_> = (0..1025).map(|i| format!(r#""{i}":1"#)).collect();
    let pairs: Vec<_> = (0..17).map(|i| format!(r#""{i}":"x""#)).collect();
    let cases = [
        (format!(r#""stop":[{}]"#, repeat(r#""a""#, 65)), "stop"),
        (format!(r#""stop":"{}""#, "a".repeat(1025)), "stop"),
        (format!(r#""stop_token_ids":[{}]"#, repeat("1", 257)), "stop_token_ids"),
        (format!(r#""cache_salt":"{}""#, "é".repeat(1025)), "cache_salt"),
        (format!(r#""logit_bias":{{{}}}"#, biases.join(",")), "logit_bias"),
        (format!(r#""metadata":{{{}}}"#, pairs.join(",")), "metadata"),
        (format!(r#""metadata":{{"a":"{}"}}"#, "x".repeat(513)), "metadata"),
        (format!(r#""metadata":{{"{}":"a"}}"#, "x".repeat(65)), "metadata"),
    ];
    for (fields, param) in cases {
        let body = format!(r#"{{"prompt":"a",{fields}}}"#);
        let error = CompletionRequest::parse(body.as_bytes(), 2000).err();
        check(body.as_bytes(), error, VALUE, Some(param));
    }
    let body = format!(r#"{{"prompt":[{}]}}"#, repeat(r#""a""#, 257));
    check(body.as_bytes(), completion(&body), VALUE, Some("prompt"));
    let body = format!(r#"{{"messages":[{}]}}"#, repeat(r#"{"role":"user","content":"a"}"#, 4097));
    check(body.as_bytes(), chat(&body), VALUE, Some("messages"));
}

#[test]
fn tokenize_and_detokenize() {
    let cases = [
        ("{}", MISSING, "messages"),
        (r#"{"prompt":7}"#, TYPE, "prompt"),
        (r#"{"prompt":"a","messages":[]}"#, VALUE, "messages"),
        (r#"{"messages":[]}"#, VALUE, "messages"),
        (r#"{"messages":[{"role":"user","content":"a"}],"tools":[{}]}"#, MISSING, "tools[0].type"),
        (r#"{"prompt":"a","add_special_tokens":1}"#, TYPE, "add_special_tokens"),
        (r#"{"prompt":"a","return_token_strs":1}"#, TYPE, "return_token_strs"),
    ];
    for (body, code, param) in cases {
        check(body.as_bytes(), TokenizeRequest::parse(body.as_bytes()).err(), code, Some(param));
    }
    let cases = [
        ("{}", MISSING, "tokens"),
        (r#"{"tokens":"a"}"#, TYPE, "tokens"),
        (r#"{"tokens":[100]}"#, VALUE, "tokens[0]"),
        (r#"{"tokens":[1,-1]}"#, VALUE, "tokens[1]"),
        (r#"{"tokens":[1,1.5]}"#, TYPE, "tokens[1]"),
    ];
    for (body, code, param) in cases {
        let error = DetokenizeRequest::parse(body.as_bytes(), VOCAB_SIZE).err();
        check(body.as_bytes(), error, code, Some(param));
    }
}
