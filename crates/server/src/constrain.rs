//! What clients ask an answer's text to be, as a grammar for the engine.

use engine::grammar::Constraint;
use grammar::{Compiler, Piece, Refused, Vocabulary};
use openai::{Code, Constrained, Error, Generation};
use serde_json::json;

use crate::app::{App, ServedModel};
use crate::errors::internal;

/// What knows the model's tokens, and tells `observe` how long masks take.
pub(crate) fn compiler(
    model: &ServedModel,
    limits: grammar::Limits,
    observe: impl Fn(std::time::Duration) + Send + Sync + 'static,
) -> Compiler {
    let (tokenizer, eos_ids) = (model.tokenizer.clone(), model.eos_ids.clone());
    let sampled = model.drawable() as u32;
    let vocabulary = move || Vocabulary {
        tokens: (0..sampled).map(|id| tokenizer.token_bytes(id)).collect(),
        control: (0..sampled).filter(|&id| tokenizer.is_control(id)).collect(),
        eos: eos_ids,
    };
    Compiler::new(vocabulary, limits, observe)
}

/// The text that a client asks for.
pub(crate) fn piece(constrained: &Constrained) -> Piece {
    use openai::Constraint::{Choice, Grammar, JsonObject, JsonSchema, Regex};
    match &constrained.constraint {
        JsonObject => Piece::Json { schema: json!({"type": "object"}), lenient: false },
        JsonSchema(schema) => Piece::Json { schema: schema.clone(), lenient: false },
        Regex(source) => Piece::Regex(source.clone()),
        Choice(choices) => Piece::OneOf(choices.iter().map(Piece::text).collect()),
        Grammar(source) => Piece::Lark(source.clone()),
    }
}

/// Refuses what would break a text off that must come to its own end.
pub(crate) fn check(generation: &Generation, param: &str) -> Result<(), Error> {
    if generation.ignore_eos {
        let message = format!(
            "`ignore_eos` would let the answer go on behind what `{param}` allows. Leave one of them out."
        );
        return Err(Error::value("ignore_eos", message));
    }
    Ok(())
}

/// Compiles on a thread that may take its time. `param`: the field that errors name.
pub(crate) async fn compile(app: &App, piece: Piece, param: String) -> Result<Constraint, Error> {
    let app = app.clone();
    let work = tokio::task::spawn_blocking(move || {
        let compiler = app.compiler().ok_or_else(|| internal("a model without a compiler"))?;
        compiler.compile(&piece).map(Constraint).map_err(|refused| to_error(refused, &param))
    });
    work.await.unwrap_or_else(|error| Err(internal(&error.to_string())))
}

pub(crate) fn to_error(refused: Refused, param: &str) -> Error {
    let (code, param, why) = match refused {
        Refused::Schema { path, message } => (Code::InvalidSchema, format!("{param}{path}"), message),
        Refused::Grammar(why) | Refused::Time(why) if is_schema(param) => {
            (Code::InvalidSchema, param.to_owned(), why)
        }
        Refused::Grammar(why) | Refused::Time(why) => (Code::InvalidGrammar, param.to_owned(), why),
    };
    let stop = if why.ends_with(['.', '!', '?']) { "" } else { "." };
    Error::at(code, &param, format!("`{param}` cannot be enforced: {why}{stop}"))
}

/// Errors of a schema and of a grammar have different codes.
fn is_schema(param: &str) -> bool {
    !["regex", "choice", "grammar"].iter().any(|kind| param.ends_with(kind))
}
