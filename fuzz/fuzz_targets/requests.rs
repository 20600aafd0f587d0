//! Bodies of every route: understood, or refused with a text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use openai::anthropic::MessagesRequest;
use openai::responses::ResponsesRequest;
use openai::{ChatRequest, CompletionRequest, DetokenizeRequest, Parsed, Result, TokenizeRequest};

const VOCAB_SIZE: usize = 768;

fn check<T>(parsed: Result<Parsed<T>>) {
    if let Err(error) = parsed {
        assert!(error.message.ends_with('.') && (400..500).contains(&error.code.status()), "{error:?}");
    }
}

fuzz_target!(|body: &[u8]| {
    check(ChatRequest::parse(body, VOCAB_SIZE));
    check(CompletionRequest::parse(body, VOCAB_SIZE));
    check(ResponsesRequest::parse(body, VOCAB_SIZE));
    check(MessagesRequest::parse(body));
    check(MessagesRequest::parse_count(body));
    check(TokenizeRequest::parse(body));
    check(DetokenizeRequest::parse(body, VOCAB_SIZE));
});
