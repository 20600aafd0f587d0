//! Two hundred schemas: whatever a model would like to say, what it may say validates.

mod common;

use std::sync::Arc;

use common::{EOS, compiler, mask_of, vocabulary};
use engine::grammar::Grammar;
use grammar::Piece;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

const SCHEMAS: &str = include_str!("../../../tests/schemas.json");
/// Random text of so many tokens that has come to no end has none.
const TOKENS_MAX: usize = 400;

/// A text of random tokens, of which those that end something come more often; `None` if it came to no end.
fn random_text(grammar: &dyn Grammar, random: &mut StdRng) -> Option<Vec<u8>> {
    let words = vocabulary().tokens;
    let mut matcher = grammar.begin();
    let mut text = Vec::new();
    for _ in 0..TOKENS_MAX {
        let allowed = mask_of(&mut *matcher);
        assert!(!allowed.is_empty(), "nothing may follow on {:?}", String::from_utf8_lossy(&text));
        let enders: Vec<u32> = allowed
            .iter()
            .copied()
            .filter(|&id| id == EOS || b"\"}]".contains(&words[id as usize][0]))
            .collect();
        let from = if !enders.is_empty() && random.random_bool(0.4) { &enders } else { &allowed };
        let id = *from.choose(random)?;
        if id == EOS {
            return Some(text);
        }
        text.extend_from_slice(&words[id as usize]);
        matcher.advance(id).unwrap();
    }
    None
}

#[test]
fn what_is_allowed_validates() {
    let schemas: Vec<Value> = serde_json::from_str(SCHEMAS).unwrap();
    assert_eq!(schemas.len(), 200);
    let compiler = compiler();
    let (mut n, mut n_ended) = (0, 0);
    for (at, schema) in schemas.iter().enumerate() {
        let piece = Piece::Json { schema: schema.clone(), lenient: false };
        let grammar: Arc<dyn Grammar> =
            compiler.compile(&piece).unwrap_or_else(|why| panic!("schema {at}, {schema}: {why}"));
        let validator = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
        for seed in 0..6 {
            let Some(text) = random_text(&*grammar, &mut StdRng::seed_from_u64(seed)) else { continue };
            let text = String::from_utf8(text).unwrap();
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|why| panic!("{text:?} of schema {at}: {why}"));
            assert!(
                validator.is_valid(&value),
                "{text} of schema {at}, {schema}: {:?}",
                validator.validate(&value).err()
            );
            n_ended += 1;
        }
        n += 6;
    }
    assert!(n_ended * 10 >= n * 9, "only {n_ended} of {n} texts came to an end");
}

/// Schemas that are meant to cost much end soon, one way or the other, and the next one is served.
#[test]
fn hostile_schemas_end() {
    let refs = |n: usize| {
        let next =
            |i: usize| (format!("d{i}"), serde_json::json!({"$ref": format!("#/$defs/d{}", (i + 1) % n)}));
        serde_json::json!({"$defs": (0..n).map(next).collect::<serde_json::Map<_, _>>(), "$ref": "#/$defs/d0"})
    };
    let either = serde_json::json!({"anyOf": [{"minLength": 1}, {"maxLength": 9}, {"pattern": "a"}, {"pattern": "b"}]});
    let product = serde_json::json!({"type": "string", "allOf": vec![either; 12]});
    let doubling = |n: usize| {
        let twice = |i: usize| {
            let next = serde_json::json!({"$ref": format!("#/$defs/d{}", i + 1)});
            (format!("d{i}"), serde_json::json!({"allOf": [next.clone(), next]}))
        };
        let mut defs: serde_json::Map<_, _> = (0..n).map(twice).collect();
        defs.insert(format!("d{n}"), serde_json::json!({"type": "integer"}));
        serde_json::json!({"$defs": defs, "$ref": "#/$defs/d0"})
    };
    let wide = (0..2_000).map(|i| (format!("p{i}"), serde_json::json!({"type": "string"})));
    let hostile = [
        refs(1),
        refs(2),
        refs(500),
        product,
        doubling(30),
        serde_json::json!({"type": "object", "properties": wide.collect::<serde_json::Map<_, _>>()}),
        serde_json::json!({"$ref": "#/nowhere"}),
        serde_json::json!({"pattern": "((a*)*)*b{3,9999}", "type": "string"}),
        serde_json::json!({"pattern": "(", "type": "string"}),
        serde_json::json!({"pattern": "a\u{0}b", "type": "string"}),
        serde_json::json!({"pattern": 5, "type": "string"}),
        serde_json::json!({"type": "array", "minItems": 100_000}),
        serde_json::json!({"type": "array", "maxItems": 100_000, "items": {"type": "array", "maxItems": 100_000}}),
        serde_json::json!({"type": "string", "minLength": 100_000}),
        serde_json::json!({"enum": (0..2_000).collect::<Vec<_>>()}),
        serde_json::json!({"type": "integer", "multipleOf": 1e-300}),
        serde_json::json!({"type": "integer", "multipleOf": 0}),
        serde_json::json!({"type": "number", "minimum": 1e308, "maximum": -1e308}),
        serde_json::json!({"required": ["x"], "properties": {"x": false}, "type": "object"}),
        serde_json::json!({"x-guidance": {"lenient": true}, "not": {}}),
    ];
    let compiler = compiler();
    for schema in hostile {
        let start = std::time::Instant::now();
        let compiled = compiler.compile(&Piece::Json { schema: schema.clone(), lenient: false });
        let shown: String = schema.to_string().chars().take(60).collect();
        println!(
            "{:>6} ms {:?} {shown}",
            start.elapsed().as_millis(),
            compiled.as_ref().err().map(|e| e.to_string())
        );
        if let Ok(grammar) = compiled {
            let mut matcher = grammar.begin();
            for _ in 0..50 {
                let mut words = vec![0; vocabulary().tokens.len().div_ceil(32)];
                let Ok(()) = matcher.mask(&mut words) else { break };
                let Some(id) = (0..vocabulary().tokens.len() as u32)
                    .find(|id| words[*id as usize / 32] >> (id % 32) & 1 == 1)
                else {
                    break;
                };
                if id == EOS || matcher.advance(id).is_err() {
                    break;
                }
            }
            println!("       {} ms with 50 tokens", start.elapsed().as_millis());
        }
        let plain = Piece::Json { schema: serde_json::json!({"type": "boolean"}), lenient: false };
        assert!(compiler.compile(&plain).is_ok(), "after {shown}");
    }
}
