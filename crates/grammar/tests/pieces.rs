//! Which texts pieces allow.

mod common;

use common::{CALL, THINK_END, check, compile, follow, ids};
use grammar::{Piece, Refused};
use serde_json::json;

fn free(without: &[&str]) -> Piece {
    Piece::Free { without: without.iter().map(|tag| (*tag).to_owned()).collect() }
}

fn object() -> Piece {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false});
    Piece::Json { schema, lenient: false }
}

fn repeat(piece: Piece, min: usize, max: Option<usize>) -> Piece {
    Piece::Repeat { piece: Box::new(piece), min, max }
}

#[test]
fn texts_and_tags() {
    check(&Piece::text("a\"b\\x41\nä/"), &["a\"b\\x41\nä/"], &["", "a", "a\"b\\x41\nä/ "]);
    check(
        &Piece::OneOf(vec![Piece::text("no"), Piece::text("not"), Piece::text("yes")]),
        &["no", "not", "yes"],
        &["", "n", "yesno"],
    );
    check(&Piece::Seq(vec![Piece::tag(CALL), Piece::text("x")]), &["<|call|>x"], &["x", "<|call|>"]);
    // A control token's letters are not the token.
    let spelled: Vec<u32> = CALL.bytes().map(u32::from).chain([u32::from(b'x')]).collect();
    let grammar = compile(&Piece::Seq(vec![Piece::tag(CALL), Piece::text("x")])).unwrap();
    assert_eq!(follow(&*grammar, &spelled), (0, false));
    check(&Piece::tag("<not one>"), &["<not one>"], &["<not"]);
}

#[test]
fn leaves() {
    check(
        &object(),
        &[r#"{"a":1}"#, r#"{"a": 12}"#],
        &["", "{}", r#"{"a":1.5}"#, r#"{"a":1} "#, r#"{ "a":1}"#, r#"{"a":  1}"#],
    );
    check(&Piece::Regex(r"[a-c]{2,3}/\d".into()), &["ab/1", "abc/9"], &["a/1", "ab/x", "ab/1 "]);
    check(&Piece::Lark("start: \"a\"+ end\nend: \"!\" | \"?\"".into()), &["a!", "aaa?"], &["!", "a"]);
    check(
        &Piece::Json { schema: json!({"type": "object"}), lenient: false },
        &["{}", r#"{"k":[1,{"x":null}]}"#],
        &["[]", "1"],
    );
}

/// As llama.cpp reads it: every way to take a text apart counts.
#[test]
fn gbnf() {
    let check_gbnf =
        |source: &str, good: &[&str], bad: &[&str]| check(&Piece::Lark(source.into()), good, bad);
    check_gbnf("root ::= [a-z]+ \"abc\"", &["abcabc", "xabc", "ababc"], &["abc", "ab", "xabd"]);
    check_gbnf("root ::= \"(\" root \")\" | \"\"", &["", "(())"], &["(", ")("]);
    let json = "root ::= object\nobject ::= \"{\" ws (pair (\",\" ws pair)*)? \"}\"\npair ::= string \":\" ws value\n\
                string ::= \"\\\"\" [^\"\\\\]* \"\\\"\"\nvalue ::= object | string | [0-9]{1,3} | \"true\"\nws ::= \" \"?";
    check_gbnf(json, &["{}", "{\"a\":1, \"b\": {\"ä\":true}}"], &["{\"a\"}", "{\"a\":1234}", "[]"]);
}

#[test]
fn free_text_up_to_a_tag() {
    // One that is a token, and one that is spelled.
    for tag in [THINK_END, "</thought>"] {
        let piece = Piece::Seq(vec![free(&[tag]), Piece::tag(tag), object()]);
        let text = |before: &str| format!("{before}{tag}{{\"a\":1}}");
        let good = [text(""), text("why </ </think </thin>\n\n"), text("ä{\"a\":1}")];
        let good: Vec<&str> = good.iter().map(String::as_str).collect();
        check(&piece, &good, &["", "{\"a\":1}", &format!("x{tag}"), &format!("{tag}{tag}{{\"a\":1}}")]);
    }
    // The letters of a token do not end it, nor may they stand in it.
    let piece = Piece::Seq(vec![free(&[THINK_END]), Piece::tag(THINK_END), object()]);
    let mut spelled: Vec<u32> = THINK_END.bytes().map(u32::from).collect();
    spelled.extend(ids("{\"a\":1}"));
    assert_eq!(follow(&*compile(&piece).unwrap(), &spelled), (7, false));
}

#[test]
fn text_then_perhaps_calls() {
    for tag in [CALL, "[call]"] {
        let call = Piece::Seq(vec![Piece::tag(tag), object(), Piece::text(";")]);
        let text = |parts: &[&str]| parts.join("").replace("@", tag);
        let (one, two) = (text(&["hi @{\"a\":1};"]), text(&["@{\"a\":1};@{\"a\":2};"]));
        let broken = [text(&["@"]), text(&["hi @{\"a\":1}"]), text(&["@{\"a\":1};more"])];
        let broken: Vec<&str> = broken.iter().map(String::as_str).collect();
        let piece = Piece::Seq(vec![free(&[tag]), repeat(call.clone(), 0, None)]);
        check(&piece, &["", "hi", &one, &two], &broken);
        let piece = Piece::Seq(vec![free(&[tag]), repeat(call.clone(), 0, Some(1))]);
        check(&piece, &["", "hi", &one], &[&two]);
        let piece = Piece::Seq(vec![repeat(call.clone(), 1, None)]);
        check(&piece, &[&two], &["", "hi", &one]);
        // Reasoning before it.
        let piece = Piece::Seq(vec![
            Piece::OneOf(vec![
                Piece::Seq(vec![]),
                Piece::Seq(vec![
                    Piece::tag("<think>"),
                    free(&[THINK_END]),
                    Piece::tag(THINK_END),
                    repeat(Piece::text("\n"), 0, Some(2)),
                ]),
            ]),
            repeat(call, 1, Some(1)),
        ]);
        check(
            &piece,
            &[&text(&["@{\"a\":1};"]), &text(&["<think>so</think>\n@{\"a\":1};"])],
            &["so", &one, &two],
        );
    }
}

/// As DeepSeek-V3.2 writes its tags.
#[test]
fn a_tag_of_letters_around_a_token() {
    for mark in [CALL, "[DSML]"] {
        let around = |before: &str, after: &str| [Piece::text(before), Piece::tag(mark), Piece::text(after)];
        let call = around("<", "calls>").into_iter().chain([object()]).chain(around("</", "calls>"));
        let piece = Piece::Seq(vec![free(&[]), repeat(Piece::Seq(call.collect()), 0, Some(1))]);
        let text = |text: &str| text.replace('@', mark);
        let good = [
            text(""),
            text("a < b <"),
            text("hi<@calls>{\"a\":1}</@calls>"),
            text("<<@calls>{\"a\":1}</@calls>"),
        ];
        let good: Vec<&str> = good.iter().map(String::as_str).collect();
        check(&piece, &good, &[&text("<@calls>"), &text("<@calls>{\"a\":1}</@calls>x")]);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let check = |piece: Piece, part: &str| match compile(&piece) {
        Ok(_) => panic!("{piece:?} was compiled"),
        Err(refused) => assert!(refused.to_string().contains(part), "{refused} of {piece:?}"),
    };
    check(Piece::Regex("(".into()), "");
    check(Piece::Regex("(?=a)b".into()), "");
    check(Piece::Regex("x".repeat(70_000)), "at most 65536");
    check(Piece::Lark("nostart: \"a\"".into()), "start");
    check(Piece::Lark("start: start \"a\"".into()), "");
    check(Piece::Lark("start: start".into()), "");
    check(Piece::Lark("start: <[9999999]>".into()), "");
    check(Piece::Lark("start: %json {\"not\": {}}".into()), "");
    check(Piece::Lark("(".repeat(30_000)), "");
    check(Piece::Json { schema: json!(false), lenient: false }, "no value");
    check(Piece::Json { schema: json!({"enum": []}), lenient: false }, "0 entries");
    check(Piece::Json { schema: json!({"minimum": 5, "maximum": 1, "type": "integer"}), lenient: false }, "");
}

#[test]
fn schemas_are_refused_by_path() {
    let check = |schema: serde_json::Value, path: &str| match compile(&Piece::Json {
        schema: schema.clone(),
        lenient: false,
    }) {
        Err(Refused::Schema { path: at, .. }) => assert_eq!(at, path, "{schema}"),
        Err(other) => panic!("{other:?} for {schema}"),
        Ok(_) => panic!("{schema} was compiled"),
    };
    check(json!({"not": {}}), ".not");
    check(json!({"properties": {"a": {"items": {"uniqueItems": true}}}}), ".properties.a.items.uniqueItems");
    check(json!({"anyOf": [{}, {"if": {}}]}), ".anyOf[1].if");
    check(json!({"type": "text"}), ".type");
    check(json!({"type": []}), ".type");
    check(json!({"$ref": "https://example.com/a.json"}), ".$ref");
    check(json!({"$ref": 5}), ".$ref");
    check(json!({"maxLength": -1}), ".maxLength");
    check(json!({"maxItems": 1e12}), ".maxItems");
    check(json!({"$defs": {"x": {"contains": {}}}}), ".$defs.x.contains");
    check(json!({"properties": []}), ".properties");
    check(json!({"allOf": {}}), ".allOf");
    check(json!({"items": 5}), ".items");
    let deep = (0..80).fold(json!({}), |inner, _| json!({"items": inner}));
    let path = ".items".repeat(65);
    check(deep, &path);
}
