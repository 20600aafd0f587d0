//! Answers taken apart: what is in them, wherever they are cut.

mod samples;

use dialect::{Family, Opening, Parser, Part};
use proptest::prelude::*;
use samples::{SAMPLES, arguments_are_objects, dialect, joined, parse, shown, tools};

const FAMILIES: [Family; 6] = [
    Family::DeepSeekV3,
    Family::DeepSeekV31,
    Family::DeepSeekV32,
    Family::KimiK2,
    Family::Glm,
    Family::Hermes,
];

fn cuts(text: &str) -> impl Iterator<Item = usize> + Clone {
    (0..=text.len()).filter(|&at| text.is_char_boundary(at))
}

#[test]
fn samples_hold_what_they_hold() {
    for sample in SAMPLES {
        let parts = parse(sample.family, sample.opening, &[sample.text]);
        let found: Vec<String> = parts.iter().map(shown).collect();
        assert_eq!(found, sample.parts, "{:?} {:?}", sample.family, sample.text);
        assert!(!sample.regular || arguments_are_objects(&parts), "{parts:?}");
    }
}

#[test]
fn every_split_gives_the_same() {
    for sample in SAMPLES {
        let whole = parse(sample.family, sample.opening, &[sample.text]);
        let letters: Vec<String> = sample.text.chars().map(String::from).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        assert_eq!(parse(sample.family, sample.opening, &letters), whole, "letters of {:?}", sample.text);
        for at in cuts(sample.text) {
            let (a, b) = sample.text.split_at(at);
            assert_eq!(parse(sample.family, sample.opening, &[a, b]), whole, "{a:?} {b:?}");
        }
    }
}

/// An answer that is cut at its length still is what it began, and no text is lost or told twice.
#[test]
fn cut_answers_begin_whole_ones() {
    for sample in SAMPLES.iter().filter(|sample| sample.regular) {
        for at in cuts(sample.text) {
            let parts = parse(sample.family, sample.opening, &[&sample.text[..at]]);
            let calls =
                |parts: &[Part]| parts.iter().filter(|part| matches!(part, Part::Call { .. })).count();
            let whole = parse(sample.family, sample.opening, &[sample.text]);
            assert!(calls(&parts) <= calls(&whole), "{:?}", &sample.text[..at]);
        }
    }
}

/// What was told never waits for text that cannot change it.
#[test]
fn arguments_come_as_they_are_written() {
    let check = |family: Family, text: &str, told: &str| {
        let mut parser = Parser::new(dialect(family), Opening::Thought, tools(), true);
        let parts = joined(parser.push(text));
        assert_eq!(parts.last().map(shown).as_deref(), Some(told), "{text}");
    };
    check(Family::Hermes, "some te", "c:some te");
    check(Family::Hermes, "some <tool", "c:some");
    check(Family::Hermes, "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": \"xy", "a:{\"a\": \"xy");
    check(Family::Glm, "<tool_call>weather<arg_key>city</arg_key><arg_value>Ber", "a:{\"city\": \"Ber");
    check(Family::KimiK2, "<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{", "a:{");
}

#[test]
fn without_tools_calls_are_text() {
    let text = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
    let mut parser = Parser::new(dialect(Family::Hermes), Opening::Bare, Vec::new(), true);
    let parts = [parser.push(text), parser.finish()].concat();
    assert_eq!(joined(parts), [Part::Content(text.to_owned())]);
}

#[test]
fn reasoning_may_stay_in_the_text() {
    let mut parser = Parser::new(dialect(Family::Hermes), Opening::Thinking, tools(), false);
    let parts = [parser.push("why</think>so"), parser.finish()].concat();
    assert_eq!(joined(parts), [Part::Content("why</think>so".to_owned())]);
}

/// A megabyte of what never ends takes about as long as a megabyte of text.
#[test]
fn nothing_is_read_again_and_again() {
    let beginnings = [
        "<",
        "<tool_call>",
        "<tool_call>{",
        "<tool_call>{\"name\": \"now\", \"arguments\": {",
        "\n",
        "</think",
        "<|tool_call_begin|>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        "<tool_call>weather<arg_key>",
        "<tool_call>{\"a",
        "<tool_call>weather<arg_key>days</arg_key><arg_value>",
        "<｜DSML｜function_calls><｜DSML｜invoke name=\"",
        "{\"",
        "<think>",
    ];
    for family in FAMILIES {
        for opening in [Opening::Thinking, Opening::Bare] {
            for text in beginnings {
                let many = text.repeat(1_000_000 / text.len());
                let start = std::time::Instant::now();
                parse(family, opening, &[&many]);
                let mut parser = Parser::new(dialect(family), opening, tools(), true);
                let chunks = many.as_bytes().chunks(300 * text.len());
                let n: usize =
                    chunks.map(|chunk| parser.push(std::str::from_utf8(chunk).unwrap()).len()).sum();
                let took = start.elapsed();
                // Quadratic reading takes minutes.
                assert!(took.as_secs() < 20, "{family:?} {text:?} x {n}: {took:?}");
            }
        }
    }
}

/// Bits of tags, in any order.
fn tangle() -> impl Strategy<Value = Vec<String>> {
    let bits: Vec<String> = FAMILIES
        .into_iter()
        .flat_map(|family| dialect(family).tags().map(str::to_owned).collect::<Vec<_>>())
        .chain(
            [
                "now",
                "weather",
                "{",
                "}",
                "\"",
                "{}",
                "\n",
                " ",
                "{\"name\": \"now\", \"arguments\": ",
                "function",
                "```json",
                "```",
                "functions.now:0",
                "<",
                "x",
                "ä",
                "<｜DSML｜invoke name=\"now\">",
                "</｜DSML｜invoke>",
                "<｜DSML｜function_calls>",
                "<｜DSML｜parameter name=\"a\" string=\"true\">",
                "</｜DSML｜parameter>",
                "days",
                "city",
                "7",
            ]
            .map(str::to_owned),
        )
        .collect();
    prop::collection::vec(prop::sample::select(bits), 0..14)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn tangles_are_taken_apart_alike(bits in tangle(), at in prop::collection::vec(any::<prop::sample::Index>(), 0..4)) {
        let text = bits.concat();
        let places: Vec<usize> = cuts(&text).collect();
        let mut at: Vec<usize> = at.iter().map(|index| places[index.index(places.len())]).collect();
        at.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for to in at {
            pieces.push(&text[from..to]);
            from = to;
        }
        pieces.push(&text[from..]);
        let bits: Vec<&str> = bits.iter().map(String::as_str).collect();
        for family in FAMILIES {
            for opening in [Opening::Bare, Opening::Thinking, Opening::Thought] {
                let whole = parse(family, opening, &[&text]);
                prop_assert_eq!(&parse(family, opening, &pieces), &whole);
                prop_assert_eq!(&parse(family, opening, &bits), &whole);
            }
        }
    }
}
