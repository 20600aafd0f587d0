//! The fewest tokens of a text of some length.

mod fixture;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use text::{ChatInput, TextError, Tokenizer, encode_chat, encode_chat_within};

use fixture::{NAMES, template, tokenizer};

proptest! {
    #[test]
    fn no_text_has_fewer_tokens(text in "([a-z ]{0,40}|\\PC{0,9}|<\\|user\\|>|<｜User｜>|\\s{0,20}|0{0,40}){0,8}") {
        for name in NAMES {
            let tokenizer = tokenizer(name);
            let least = tokenizer.tokens_min(text.len());
            prop_assert!(least <= tokenizer.encode(&text, false).unwrap().len(), "{name}");
            prop_assert!(text.is_empty() || least > 0, "{name}");
        }
    }
}

/// A text of the longest token alone meets the bound.
#[test]
fn the_bound_is_met() {
    let tokenizer = tokenizer("v3");
    let longest =
        (0..tokenizer.vocab_size() as u32).max_by_key(|&id| tokenizer.token_bytes(id).len()).unwrap();
    let text = tokenizer.decode(&[longest; 7], false);
    assert_eq!(tokenizer.tokens_min(text.len()), 7);
    assert_eq!(tokenizer.encode(&text, false).unwrap(), [longest; 7]);
}

#[test]
fn where_text_can_shrink_there_is_no_bound() {
    let check = |change: fn(&mut Value)| {
        let mut file: Value = serde_json::from_slice(&fixture::read("r1/tokenizer.json")).unwrap();
        change(&mut file);
        Tokenizer::from_bytes(file.to_string().as_bytes(), None).unwrap().tokens_min(1 << 30)
    };
    assert_ne!(check(|_| ()), 0);
    assert_ne!(check(|file| file["normalizer"] = json!({"type": "Sequence", "normalizers": []})), 0);
    assert_eq!(check(|file| file["normalizer"] = json!({"type": "NFC"})), 0);
    assert_eq!(check(|file| file["added_tokens"][3]["rstrip"] = json!(true)), 0);
    assert_eq!(check(|file| file["pre_tokenizer"]["pretokenizers"][0]["behavior"] = json!("Removed")), 0);
    let no_token_of_7f = |file: &mut Value| {
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        let id = vocab.remove("\u{121}").unwrap();
        vocab.insert("\u{121}\u{121}\u{121}".into(), id);
    };
    assert_eq!(check(no_token_of_7f), 0);
}

#[test]
fn a_conversation_beyond_the_bound_is_not_encoded() {
    let (tokenizer, template, kwargs) = (tokenizer("v3"), template("v3"), Map::new());
    // Words that spell a control token: letters of it are masked by longer ones.
    let messages = [json!({"role": "user", "content": "<｜User｜> and more ".repeat(50)})];
    let input = ChatInput {
        messages: &messages,
        tools: None,
        add_generation_prompt: true,
        continue_final_message: false,
        kwargs: &kwargs,
    };
    let whole = encode_chat(&tokenizer, &template, &input).unwrap();
    assert_eq!(encode_chat_within(&tokenizer, &template, &input, whole.ids.len()).unwrap(), whole);
    let error = encode_chat_within(&tokenizer, &template, &input, 5).unwrap_err();
    let TextError::TooManyTokens { at_least } = error else { panic!("{error}") };
    assert!((6..=whole.ids.len()).contains(&at_least), "{at_least}");
}
