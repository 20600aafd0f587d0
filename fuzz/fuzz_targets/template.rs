//! Any template over a fixed conversation, and the demo's over any: a text, or an error, within the limits; and what is
//! typed never becomes a control token.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use text::{ChatInput, ChatTemplate, Tokenizer, encode_chat};

static DEMO: LazyLock<(Tokenizer, ChatTemplate)> = LazyLock::new(|| {
    let file = include_bytes!("../../crates/strait/demo/tokenizer.json");
    let config = include_bytes!("../../crates/strait/demo/tokenizer_config.json");
    let tokenizer = Tokenizer::from_bytes(file, Some(config)).expect("the demo has a tokenizer");
    let template = ChatTemplate::from_config(config).expect("it is sound").expect("the demo has a template");
    (tokenizer, template)
});

fn input<'a>(messages: &'a [Value], kwargs: &'a Map<String, Value>) -> ChatInput<'a> {
    ChatInput { messages, tools: None, add_generation_prompt: true, continue_final_message: false, kwargs }
}

fn n_control(messages: &[Value]) -> usize {
    let (tokenizer, template) = &*DEMO;
    let encoded = encode_chat(tokenizer, template, &input(messages, &Map::new())).expect("it renders");
    encoded.ids.iter().filter(|&&id| tokenizer.is_control(id)).count()
}

fuzz_target!(|data: (&str, Vec<&str>)| {
    let (source, contents) = data;
    if let Ok(template) = ChatTemplate::new(source, DEMO.0.special_tokens()) {
        let messages = [json!({"role": "user", "content": "hi"}), json!({"role": "assistant", "content": "ho"})];
        let kwargs = json!({"a": [1, 2.5, "x", null], "f": {"k": true}});
        let _ = template.render(&input(&messages, kwargs.as_object().expect("it is one")));
    }
    if !contents.is_empty() && contents.len() < 20 {
        let said = |text: &str| json!({"role": "user", "content": text});
        let typed: Vec<Value> = contents.iter().map(|text| said(text)).collect();
        assert_eq!(n_control(&typed), n_control(&vec![said("x"); typed.len()]));
    }
});
