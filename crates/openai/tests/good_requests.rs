//! Requests that must be understood, and the shapes of errors.

use openai::{
    ChatRequest, Code, CompletionRequest, Ending, Error, Generation, Prompt, PromptScore, PromptScores,
    StreamOptions, Truncation,
};
use proptest::prelude::*;
use serde_json::json;

const VOCAB_SIZE: usize = 100;

fn chat(fields: &str) -> ChatRequest {
    let body = format!(r#"{{"messages":[{{"role":"user","content":"hi"}}]{fields}}}"#);
    ChatRequest::parse(body.as_bytes(), VOCAB_SIZE).unwrap().request
}

fn completion(body: &str) -> CompletionRequest {
    CompletionRequest::parse(body.as_bytes(), VOCAB_SIZE).unwrap().request
}

#[test]
fn defaults_are_the_documented_ones() {
    let plain = Generation { n: 1, skip_special_tokens: true, ..Generation::default() };
    let request = chat("");
    assert_eq!(request.generation, plain);
    assert_eq!(request.ending, Ending::GenerationPrompt);
    let request = completion(r#"{"prompt":"a"}"#);
    assert_eq!(request.generation, Generation { max_tokens: Some(16), ..plain });
    assert!(request.max_tokens_defaulted && request.add_special_tokens && !request.echo);
}

#[test]
fn null_equals_absent() {
    let nulls = r#","temperature":null,"stop":null,"stream":null,"stream_options":null,
        "tools":null,"logit_bias":null,"max_tokens":null,"n":null,"metadata":null,"unheard_of":null"#;
    assert_eq!(chat(nulls), chat(""));
}

#[test]
fn every_served_field_arrives() {
    let request = completion(
        r#"{"prompt":"a","model":"m","max_tokens":7,"min_tokens":3,"temperature":0.5,"top_p":0.9,
        "top_k":5,"min_p":0.1,"presence_penalty":1,"frequency_penalty":-1,"repetition_penalty":1.5,
        "logit_bias":{"3":-100,"0":1.5},"seed":-9223372036854775808,"n":2,"best_of":2,"stop":["x","y"],
        "stop_token_ids":[99,0],"include_stop_str_in_output":true,"ignore_eos":true,
        "skip_special_tokens":false,"stream":true,
        "stream_options":{"include_usage":true,"continuous_usage_stats":true},
        "return_token_ids":true,"return_tokens_as_token_ids":true,"logprobs":20,"echo":true,
        "add_special_tokens":false,"priority":-2147483648,"cache_salt":"é","bad_words":["é"," "],
        "allowed_token_ids":[99,0],"truncate_prompt_tokens":-1}"#,
    );
    let expected = Generation {
        model: Some("m".into()),
        max_tokens: Some(7),
        min_tokens: 3,
        temperature: Some(0.5),
        top_p: Some(0.9),
        top_k: Some(5),
        min_p: 0.1,
        presence_penalty: 1.0,
        frequency_penalty: -1.0,
        repetition_penalty: Some(1.5),
        logit_bias: vec![(3, -100.0), (0, 1.5)],
        seed: Some(i64::MIN),
        n: 2,
        stop: vec!["x".into(), "y".into()],
        stop_token_ids: vec![99, 0],
        include_stop_str_in_output: true,
        ignore_eos: true,
        skip_special_tokens: false,
        stream: Some(StreamOptions { include_usage: true, continuous_usage_stats: true }),
        return_token_ids: true,
        return_tokens_as_token_ids: true,
        priority: i32::MIN,
        cache_salt: Some("é".into()),
        bad_words: vec!["é".into(), " ".into()],
        allowed_token_ids: Some(vec![99, 0]),
        truncate_prompt_tokens: Some(Truncation::Fit),
        prompt_logprobs: None,
        constrained: None,
    };
    assert_eq!(request.generation, expected);
    assert_eq!((request.logprobs, request.echo), (Some(20), true));
    assert!(!request.add_special_tokens && !request.max_tokens_defaulted);
    let request =
        completion(r#"{"prompt":"a","n":2,"best_of":20,"prompt_logprobs":20,"truncate_prompt_tokens":7}"#);
    assert_eq!((request.generation.n, request.best_of), (2, 20));
    let Generation { prompt_logprobs, truncate_prompt_tokens, .. } = request.generation;
    assert_eq!((prompt_logprobs, truncate_prompt_tokens), (Some(20), Some(Truncation::Last(7))));
    assert_eq!(completion(r#"{"prompt":"a","n":128}"#).best_of, 128);
}

#[test]
fn prompts_in_four_shapes() {
    let text = |s: &str| Prompt::Text(s.into());
    let cases = [
        (r#""""#, vec![text("")]),
        (r#"["a","b"]"#, vec![text("a"), text("b")]),
        ("[1,2.0,99]", vec![Prompt::Ids(vec![1, 2, 99])]),
        ("[[1],[2,3]]", vec![Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]),
    ];
    for (prompt, expected) in cases {
        assert_eq!(completion(&format!(r#"{{"prompt":{prompt}}}"#)).prompts, expected, "{prompt}");
    }
}

#[test]
fn what_asks_for_nothing_is_accepted() {
    let harmless = r#","tools":[],"tool_choice":"none","response_format":{"type":"text"},"priority":0,
        "modalities":["text"],"use_beam_search":false,"bad_words":[],"functions":[],"user":"u",
        "metadata":{"a":"b"},"store":true,"service_tier":"auto","parallel_tool_calls":true"#;
    assert_eq!(chat(harmless), chat(""));
    assert_eq!(chat(r#","top_k":-1"#).generation.top_k, Some(0));
    assert_eq!(
        chat(&format!(r#","cache_salt":"{}""#, "é".repeat(1024))).generation.cache_salt.unwrap().len(),
        2048
    );
    assert_eq!(chat(r#","stop":[]"#).generation.stop, Vec::<String>::new());
    assert_eq!(chat(r#","max_tokens":5,"max_completion_tokens":9"#).generation.max_tokens, Some(9));
    assert_eq!(chat(r#","logprobs":true"#).logprobs, Some(0));
    // Bounds that are excluded stay so in f32.
    assert!(chat(r#","top_p":1e-60"#).generation.top_p.unwrap() > 0.0);
}

#[test]
fn unknown_fields_are_reported_by_name() {
    let body = r#"{"prompt":"a","made_up":1,"other":{"a":[]},"nothing":null}"#;
    let mut ignored = CompletionRequest::parse(body.as_bytes(), VOCAB_SIZE).unwrap().ignored;
    ignored.sort();
    assert_eq!(ignored, ["made_up", "other"]);
}

#[test]
fn messages_as_templates_see_them() {
    let body = r#"{"messages":[
        {"role":"developer","content":"be brief"},
        {"role":"user","name":"ann","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
        {"role":"assistant","content":null,"reasoning_content":"hm","tool_calls":[
            {"id":"c1","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}}]},
        {"role":"tool","tool_call_id":"c1","content":"7"},
        {"role":"assistant","content":[{"type":"refusal","refusal":"no"}]}]}"#;
    let request = ChatRequest::parse(body.as_bytes(), VOCAB_SIZE).unwrap().request;
    assert_eq!(
        serde_json::to_value(&request.messages).unwrap(),
        json!([
            {"role":"system","content":"be brief"},
            {"role":"user","content":"ab","name":"ann"},
            {"role":"assistant","content":null,"reasoning_content":"hm","tool_calls":[
                {"id":"c1","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}}]},
            {"role":"tool","content":"7","tool_call_id":"c1"},
            {"role":"assistant","content":"no"},
        ])
    );
}

#[test]
fn errors_have_four_keys() {
    let error = Error::new(Code::ServerOverloaded, "The queue is full.");
    assert_eq!(
        serde_json::to_value(&error).unwrap(),
        json!({"error":{"message":"The queue is full.","type":"rate_limit_error","param":null,
            "code":"server_overloaded"}})
    );
    let error = Error::context_length("messages", 100, 90, 20);
    assert_eq!((error.code.status(), error.param.as_deref()), (400, Some("messages")));
    assert!(error.message.contains(
        "maximum context length is 100 tokens. However, you requested 110 tokens \
         (90 in the messages, 20 in the completion)"
    ));
}

#[test]
fn scores_of_a_prompt_are_named_by_id() {
    let score = |rank, text: &str| PromptScore { logprob: -0.5, rank, decoded_token: text.into() };
    let scores = PromptScores(vec![(12, score(3, "b")), (7, score(1, "\u{e9}"))]);
    assert_eq!(
        serde_json::to_string(&scores).unwrap(),
        r#"{"12":{"logprob":-0.5,"rank":3,"decoded_token":"b"},"7":{"logprob":-0.5,"rank":1,"decoded_token":"é"}}"#
    );
}

proptest! {
    #[test]
    fn any_bytes_give_an_answer(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = ChatRequest::parse(&body, VOCAB_SIZE);
        let _ = CompletionRequest::parse(&body, VOCAB_SIZE);
    }

    #[test]
    fn no_accepted_number_is_out_of_range(text in "-?[0-9]{1,25}(\\.[0-9]{1,5})?(e[0-9]{1,3})?") {
        let body = format!(r#"{{"prompt":"a","temperature":{text},"top_p":{text},"n":{text},"seed":{text}}}"#);
        if let Ok(parsed) = CompletionRequest::parse(body.as_bytes(), VOCAB_SIZE) {
            let g = parsed.request.generation;
            prop_assert!((0.0..=2.0).contains(&g.temperature.unwrap()));
            prop_assert!(g.top_p.unwrap() > 0.0 && g.top_p.unwrap() <= 1.0);
            prop_assert!((1..=128).contains(&g.n));
        }
    }
}
