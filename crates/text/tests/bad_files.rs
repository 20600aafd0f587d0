//! Damaged tokenizers are refused in words.

mod fixture;

use serde_json::{Value, json};
use text::{TextError, Tokenizer};

fn error(change: impl FnOnce(&mut Value)) -> TextError {
    let mut file: Value = serde_json::from_slice(&fixture::read("r1/tokenizer.json")).unwrap();
    change(&mut file);
    Tokenizer::from_bytes(file.to_string().as_bytes(), None).err().expect("the file was accepted")
}

#[test]
fn damaged_tokenizers_are_refused() {
    let check = |part: &str, change: fn(&mut Value)| {
        let error = error(change).to_string();
        assert!(error.starts_with("tokenizer.json: ") && error.contains(part), "{part}: {error}");
    };
    check("WordPiece", |file| {
        file["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true})
    });
    check("decoder", |file| file["decoder"] = Value::Null);
    check("`</think>` has id 600", |file| file["added_tokens"][15]["id"] = 600.into());
    check("", |file| file["model"] = Value::Null);
    check("", |file| file["model"]["merges"] = json!([["no", "such"]]));
    check("", |file| file["pre_tokenizer"]["pretokenizers"][0]["pattern"] = json!({"Regex": "("}));
    check("", |file| file["post_processor"] = json!({"type": "none"}));
}

#[test]
fn files_that_are_no_json_are_refused() {
    let file = fixture::read("r1/tokenizer.json");
    for bytes in [&b""[..], b"{}", b"[]", b"null", b"\xff\xfe", &file[..file.len() / 2]] {
        assert!(matches!(Tokenizer::from_bytes(bytes, None), Err(TextError::Tokenizer(_))));
    }
    for config in [&b""[..], b"[1]", b"{"] {
        assert!(matches!(Tokenizer::from_bytes(&file, Some(config)), Err(TextError::Config(_))));
    }
    let config = br#"{"add_bos_token": true, "bos_token": "<nowhere>"}"#;
    let error = Tokenizer::from_bytes(&file, Some(config)).err().unwrap().to_string();
    assert!(error.contains("<nowhere>"), "{error}");
}

#[test]
fn ids_of_no_token_are_nothing() {
    let tokenizer = fixture::tokenizer("r1");
    for id in [512, 1 << 20, u32::MAX] {
        assert_eq!(tokenizer.decode(&[id, 67, id], false), "a");
        assert_eq!(tokenizer.token_bytes(id), b"");
        assert!(!tokenizer.is_special(id));
    }
}

/// SentencePiece's spelling: bytes without a token, and a space before the text that is not the text's.
#[test]
fn sentencepiece_round_trip() {
    let tokenizer = fixture::sentencepiece(&["▁", "a", "b", "▁a"], &[["▁", "a"]], &[]);
    for text in ["", "a b", " a", "世a", "b 😀"] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text, true).unwrap(), true), text);
    }
    assert_eq!(tokenizer.token_bytes(259), b" a");
    assert_eq!(tokenizer.token_bytes(0xe4), [0xe4]);
}

/// What would make the tokenizer's library panic, at start or only at the first text.
#[test]
fn files_that_contradict_themselves_are_refused() {
    let check = |part: &str, change: fn(&mut Value)| {
        let error = error(change).to_string();
        assert!(error.starts_with("tokenizer.json: ") && error.contains(part), "{part}: {error}");
    };
    check("contradict", |file| {
        let vocab = file["model"]["vocab"].as_object().unwrap();
        let longest = vocab.keys().max_by_key(|token| token.len()).unwrap().clone();
        file["model"]["merges"].as_array_mut().unwrap().push(json!([longest, longest]));
    });
    check("contradict", |file| file["model"]["continuing_subword_prefix"] = json!("####################"));
    check("contradict", |file| file["post_processor"]["special_tokens"] = json!({}));
    check("dropout", |file| file["model"]["dropout"] = json!(0.5));
    check("257 bytes", |file| file["added_tokens"][15]["content"] = format!("<{}>", "x".repeat(255)).into());
}

#[test]
fn sentencepiece_adds_no_spaces_round_typed_tokens() {
    let token = json!({"id": 257, "content": "<x>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    let tokenizer = fixture::sentencepiece(&["▁"], &[], &[token]);
    let template = text::ChatTemplate::new("{{ messages[0].content }}", tokenizer.special_tokens()).unwrap();
    let (messages, kwargs) = ([json!({"content": "a<x>a"})], serde_json::Map::new());
    let input = text::ChatInput {
        messages: &messages,
        tools: None,
        add_generation_prompt: false,
        continue_final_message: false,
        kwargs: &kwargs,
    };
    let ids = text::encode_chat(&tokenizer, &template, &input).unwrap().ids;
    assert_eq!(tokenizer.decode(&ids, false), "a<x>a");
    assert!(!ids.contains(&257));
}
