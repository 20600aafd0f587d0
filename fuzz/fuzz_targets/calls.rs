//! Answers in every family's notation of calls: the same parts wherever they are cut.
#![no_main]

use dialect::{Dialect, Family, Opening, Parser, Part, Tool};
use libfuzzer_sys::fuzz_target;

const FAMILIES: [Family; 6] = [
    Family::DeepSeekV3,
    Family::DeepSeekV31,
    Family::DeepSeekV32,
    Family::KimiK2,
    Family::Glm,
    Family::Hermes,
];

fn parse(family: Family, opening: Opening, pieces: &[&str]) -> Vec<Part> {
    let dialect = Dialect { family, reasons: true, shows_tools: true };
    let tool = Tool { name: "f".to_owned(), parameters: None, strict: false };
    let mut parser = Parser::new(dialect, opening, vec![tool], true);
    let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    parts.extend(parser.finish());
    joined(parts)
}

/// Pieces of one kind that follow each other are one text.
fn joined(parts: Vec<Part>) -> Vec<Part> {
    let mut whole: Vec<Part> = Vec::new();
    for part in parts {
        match (whole.last_mut(), part) {
            (Some(Part::Content(text)), Part::Content(more))
            | (Some(Part::Reasoning(text)), Part::Reasoning(more))
            | (Some(Part::Arguments(text)), Part::Arguments(more)) => text.push_str(&more),
            (_, part) => whole.push(part),
        }
    }
    whole
}

fuzz_target!(|input: (u8, usize, &str)| {
    let (choice, at, text) = input;
    let family = FAMILIES[usize::from(choice) % FAMILIES.len()];
    let opening = [Opening::Bare, Opening::Thinking, Opening::Thought][usize::from(choice) / 6 % 3];
    let places: Vec<usize> = (0..=text.len()).filter(|&at| text.is_char_boundary(at)).collect();
    let (before, after) = text.split_at(places[at % places.len()]);
    assert_eq!(parse(family, opening, &[before, after]), parse(family, opening, &[text]));
});
