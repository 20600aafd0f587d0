//! What Python's `tokenizers` and `transformers` answer for five small tokenizers and their chat templates.

mod fixture;

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Map, Value};
use text::{ChatInput, ChatTemplate, Detokenizer, Tokenizer, encode_chat};

use fixture::{NAMES, config, golden, ids, template, tokenizer};

#[test]
fn text_becomes_the_same_ids() {
    for case in golden("encode.json") {
        let tokenizer = tokenizer(case["tokenizer"].as_str().unwrap());
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["ids_with_bos"]), "{text:?}");
        assert_eq!(tokenizer.decode(&expected, false), case["decoded"], "{text:?}");
        assert_eq!(tokenizer.decode(&expected, true), case["decoded_skip_special"], "{text:?}");
    }
}

#[test]
fn conversations_become_the_same_text_and_ids() {
    const OURS: [&str; 7] =
        ["name", "tokenizer", "messages", "tools", "add_generation_prompt", "expected", "ids"];
    for case in golden("chat.json") {
        let name = case["tokenizer"].as_str().unwrap();
        let kwargs: Map<String, Value> = case.as_object().unwrap().clone();
        let kwargs = kwargs.into_iter().filter(|(key, _)| !OURS.contains(&key.as_str())).collect();
        let input = ChatInput {
            messages: case["messages"].as_array().unwrap(),
            tools: case.get("tools").map(|tools| tools.as_array().unwrap().as_slice()),
            add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
            continue_final_message: false,
            kwargs: &kwargs,
        };
        let template = template(name);
        assert_eq!(template.render(&input).unwrap().text, case["expected"], "{}", case["name"]);
        let encoded = encode_chat(&tokenizer(name), &template, &input).unwrap().ids;
        assert_eq!(encoded, ids(&case["ids"]), "{}", case["name"]);
    }
}

#[test]
fn streams_come_in_the_same_pieces() {
    for case in golden("stream.json") {
        let mut detokenizer = Detokenizer::new(tokenizer(case["tokenizer"].as_str().unwrap()), true);
        let pieces: Vec<String> = ids(&case["ids"]).into_iter().map(|id| detokenizer.push(id)).collect();
        assert_eq!(Value::from(pieces), case["pieces"], "{}", case["name"]);
        assert_eq!(detokenizer.finish(), case["tail"], "{}", case["name"]);
    }
}

#[test]
fn special_tokens_are_known() {
    for (name, bos, eos, size) in [
        ("v2", Some(510), Some(511), 512),
        ("v3", Some(0), Some(1), 512),
        ("r1", Some(0), Some(1), 512),
        ("glm", None, Some(495), 512),
        ("kimi", Some(500), Some(501), 512),
    ] {
        let tokenizer = tokenizer(name);
        assert_eq!(
            (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.vocab_size()),
            (bos, eos, size),
            "{name}"
        );
        assert!(tokenizer.is_special(eos.unwrap()) && !tokenizer.is_special(100), "{name}");
    }
    let r1 = tokenizer("r1");
    assert_eq!(r1.token_text(510), "<think>");
    assert!(!r1.is_special(510));
    assert_eq!(r1.token_bytes(175), [0xf0]);
    assert_eq!(r1.special_tokens()["pad_token"], "<｜▁pad▁｜>");
}

/// Whether tokenizer.json's post-processor and tokenizer_config.json agree or not.
#[test]
fn there_is_one_bos_or_none() {
    for (name, asked, expected) in [
        ("v3", Some(true), vec![0]),
        ("v3", Some(false), vec![]),
        ("v3", None, vec![0]),
        ("v2", Some(true), vec![510]),
        ("v2", Some(false), vec![]),
        ("v2", None, vec![]),
    ] {
        let mut config: Value = serde_json::from_slice(&config(name)).unwrap();
        match asked {
            Some(asked) => config["add_bos_token"] = asked.into(),
            None => drop(config.as_object_mut().unwrap().remove("add_bos_token")),
        }
        let file = fixture::read(&format!("{name}/tokenizer.json"));
        let tokenizer = Tokenizer::from_bytes(&file, Some(config.to_string().as_bytes())).unwrap();
        assert_eq!(tokenizer.encode("", true).unwrap(), expected, "{name} {asked:?}");
        // A template that writes BOS, and one that does not.
        for source in ["{{ bos_token }}", ""] {
            let template = ChatTemplate::new(source, tokenizer.special_tokens()).unwrap();
            let kwargs = Map::new();
            let input = ChatInput {
                messages: &[],
                tools: None,
                add_generation_prompt: false,
                continue_final_message: false,
                kwargs: &kwargs,
            };
            let encoded = encode_chat(&tokenizer, &template, &input).unwrap().ids;
            let written =
                if source.is_empty() { expected.clone() } else { vec![tokenizer.bos_id().unwrap()] };
            assert_eq!(encoded, written, "{name} {asked:?} {source}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any ids, those of no token included, in pieces and at once.
    #[test]
    fn pieces_are_the_whole(stream in prop::collection::vec(0u32..530, 0..60), skip: bool) {
        for name in NAMES {
            let tokenizer = tokenizer(name);
            let whole = tokenizer.decode(&stream, skip);
            let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer), skip);
            let mut text: String = stream.iter().map(|&id| detokenizer.push(id)).collect();
            text += &detokenizer.finish();
            prop_assert_eq!(text, whole);
        }
    }

    #[test]
    fn plain_text_survives(text in any::<String>()) {
        for name in NAMES {
            let tokenizer = tokenizer(name);
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text, false).unwrap(), false), &text[..]);
        }
    }
}

#[test]
fn a_megabyte_survives() {
    let tokenizer = tokenizer("r1");
    for unit in [" ", "a", "7", "世", "\n", "ab, 12 \n", "<｜User｜>", "</think", "é!"] {
        let text = unit.repeat((1 << 20) / unit.len()) + "x";
        let encoded = tokenizer.encode(&text, true).unwrap();
        assert!(tokenizer.decode(&encoded[1..], false) == text, "{unit:?}");
    }
}
