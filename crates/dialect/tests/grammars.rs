//! What a model may say under a dialect's grammar is what the parser understands.

mod samples;

use std::sync::Arc;

use dialect::{Choice, Dialect, Family, Opening, Part, Tool};
use engine::grammar::Grammar;
use grammar::{Compiler, Limits, Piece, Vocabulary};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use samples::{SAMPLES, arguments_are_objects, dialect, parse, tools};
use serde_json::{Value, json};

const EOS: u32 = 256;

/// Bytes, EOS and the dialect's tags; `spelled`: these are no tokens.
fn vocabulary(dialect: Dialect, spelled: bool) -> Vocabulary {
    let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    tokens.push(b"<eos>".to_vec());
    let mut control = vec![EOS];
    for tag in dialect.tags().filter(|_| !spelled) {
        control.push(tokens.len() as u32);
        tokens.push(tag.as_bytes().to_vec());
    }
    Vocabulary { tokens, control, eos: vec![EOS] }
}

/// Tags as tokens, the rest as bytes.
fn ids(vocabulary: &Vocabulary, text: &str) -> Vec<u32> {
    let (mut ids, mut at) = (Vec::new(), 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        let tag =
            (EOS as usize + 1..vocabulary.tokens.len()).find(|&id| rest.starts_with(&vocabulary.tokens[id]));
        let id = tag.unwrap_or(rest[0] as usize);
        ids.push(id as u32);
        at += vocabulary.tokens[id].len();
    }
    ids
}

struct Under {
    vocabulary: Vocabulary,
    grammar: Arc<dyn Grammar>,
}

impl Under {
    fn new(dialect: Dialect, spelled: bool, piece: &Piece) -> Self {
        let vocabulary = vocabulary(dialect, spelled);
        let own = vocabulary.clone();
        let compiler = Arc::new(Compiler::new(move || own, Limits::default(), |_| ()));
        let grammar = compiler.compile(piece).unwrap_or_else(|why| panic!("{why}: {piece:?}"));
        Self { vocabulary, grammar }
    }

    fn allowed(&self, matcher: &mut dyn engine::grammar::Matcher) -> Vec<u32> {
        let n = self.vocabulary.tokens.len();
        let mut words = vec![0; n.div_ceil(32)];
        matcher.mask(&mut words).unwrap();
        (0..n as u32).filter(|id| words[*id as usize / 32] >> (id % 32) & 1 == 1).collect()
    }

    fn accepts(&self, text: &str) -> Result<(), usize> {
        let mut matcher = self.grammar.begin();
        let ids = ids(&self.vocabulary, text);
        for (at, &id) in ids.iter().enumerate() {
            if !self.allowed(&mut *matcher).contains(&id) {
                return Err(at);
            }
            matcher.advance(id).unwrap();
        }
        if self.allowed(&mut *matcher).contains(&EOS) { Ok(()) } else { Err(ids.len()) }
    }

    fn random(&self, random: &mut StdRng) -> Option<String> {
        let mut matcher = self.grammar.begin();
        let mut text = Vec::new();
        for _ in 0..600 {
            let allowed = self.allowed(&mut *matcher);
            let hurried = |id: &u32| *id >= EOS || b"\"}]</".contains(&(*id as u8));
            let ends: Vec<u32> = allowed.iter().copied().filter(hurried).collect();
            let from = if !ends.is_empty() && random.random_bool(0.7) { &ends } else { &allowed };
            let id = *from.choose(random).expect("something may follow");
            if id == EOS {
                return String::from_utf8(text).ok();
            }
            text.extend_from_slice(&self.vocabulary.tokens[id as usize]);
            matcher.advance(id).unwrap();
        }
        None
    }
}

fn grammar(
    family: Family,
    opening: Opening,
    choice: &Choice,
    parallel: bool,
    answer: Option<Piece>,
) -> Option<Piece> {
    dialect(family).grammar(opening, &tools(), choice, parallel, answer).unwrap()
}

#[test]
fn regular_samples_are_allowed() {
    for sample in SAMPLES.iter().filter(|sample| sample.regular) {
        for spelled in [false, true] {
            let piece = grammar(sample.family, sample.opening, &Choice::Auto, true, None).unwrap();
            let under = Under::new(dialect(sample.family), spelled, &piece);
            assert_eq!(under.accepts(sample.text), Ok(()), "{:?} {spelled} {:?}", sample.family, sample.text);
        }
    }
}

/// Whatever is drawn: calls with arguments that validate, and where one must come, nothing else.
#[test]
fn what_is_allowed_is_understood() {
    let families = [
        Family::DeepSeekV3,
        Family::DeepSeekV31,
        Family::DeepSeekV32,
        Family::KimiK2,
        Family::Glm,
        Family::Hermes,
    ];
    let validator = jsonschema::validator_for(tools()[0].parameters.as_ref().unwrap()).unwrap();
    let named = Choice::Named("weather".into());
    for (at, family) in families.into_iter().enumerate() {
        for opening in [Opening::Thought, Opening::Thinking, Opening::Bare] {
            for (choice, parallel) in [(&Choice::Required, true), (&Choice::Required, false), (&named, true)]
            {
                let piece = grammar(family, opening, choice, parallel, None).unwrap();
                let under = Under::new(dialect(family), false, &piece);
                let mut n_ended = 0;
                for seed in 0..24 {
                    let mut random = StdRng::seed_from_u64(100 * at as u64 + seed);
                    let Some(text) = under.random(&mut random) else { continue };
                    let parts = parse(family, opening, &[&text]);
                    let calls: Vec<&String> = parts
                        .iter()
                        .filter_map(|p| if let Part::Call { name, .. } = p { Some(name) } else { None })
                        .collect();
                    let label = format!("{family:?} {choice:?} {text:?}: {parts:?}");
                    assert!(!parts.iter().any(|part| matches!(part, Part::Content(_))), "{label}");
                    assert!(arguments_are_objects(&parts), "{label}");
                    assert!(!calls.is_empty() && (calls.len() == 1 || parallel), "{label}");
                    if *choice == named {
                        assert!(calls.len() == 1 && calls[0] == "weather", "{label}");
                        let arguments = parts
                            .iter()
                            .find_map(|p| if let Part::Arguments(a) = p { Some(a) } else { None });
                        let value: Value = serde_json::from_str(arguments.unwrap()).unwrap();
                        assert!(validator.is_valid(&value), "{label}");
                    }
                    n_ended += 1;
                }
                assert!(n_ended >= 2, "{family:?} {opening:?} {choice:?}: {n_ended} came to an end");
            }
        }
    }
}

#[test]
fn an_answer_of_a_form_comes_after_the_reasoning() {
    let answer = || Some(Piece::Json { schema: json!({"enum": [1, 2]}), lenient: false });
    let check = |opening, choice: &Choice, good: &[&str], bad: &[&str]| {
        for family in [Family::Glm, Family::DeepSeekV31] {
            let piece = grammar(family, opening, choice, true, answer()).unwrap();
            let under = Under::new(dialect(family), false, &piece);
            good.iter().for_each(|text| assert_eq!(under.accepts(text), Ok(()), "{text:?}"));
            bad.iter().for_each(|text| assert!(under.accepts(text).is_err(), "{text:?}"));
        }
    };
    check(Opening::Thought, &Choice::None, &["1", "2"], &["", "3", "x", "<think></think>1"]);
    check(
        Opening::Thinking,
        &Choice::None,
        &["</think>1", "so\n</think>\n\n2"],
        &["1", "so", "so</think>", "so</think>so"],
    );
    check(Opening::Bare, &Choice::None, &["1", "<think>so</think>2"], &["so", "<think>so"]);
    check(Opening::Thought, &Choice::Auto, &["1"], &["so"]);
    assert_eq!(grammar(Family::Glm, Opening::Thinking, &Choice::None, true, None), None);
}

#[test]
fn schemas_that_tags_cannot_write_are_refused_where_they_must_hold() {
    let tool = |schema: Value, strict| Tool { name: "f".into(), parameters: Some(schema), strict };
    let check = |schema: Value, refused: bool| {
        for family in [Family::Glm, Family::DeepSeekV32] {
            let required = dialect(family).grammar(
                Opening::Thought,
                &[tool(schema.clone(), false)],
                &Choice::Required,
                true,
                None,
            );
            assert_eq!(required.is_err(), refused, "{schema}");
            let strict = dialect(family).grammar(
                Opening::Thought,
                &[tool(schema.clone(), true)],
                &Choice::Auto,
                true,
                None,
            );
            assert_eq!(strict.is_err(), refused, "{schema}");
            let auto = dialect(family).grammar(
                Opening::Thought,
                &[tool(schema.clone(), false)],
                &Choice::Auto,
                true,
                None,
            );
            Under::new(dialect(family), false, &auto.unwrap().unwrap());
        }
    };
    check(json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 5}}}), false);
    check(json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "^a"}}}), true);
    check(json!({"type": "object", "anyOf": [{"required": ["a"]}]}), true);
    check(
        json!({"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}),
        false,
    );
    check(json!({"type": "object", "required": ["b"]}), true);
    check(json!({"type": "object"}), false);
}
