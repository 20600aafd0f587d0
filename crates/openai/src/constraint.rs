//! What an answer's text is to be: `response_format`, and vLLM's `structured_outputs` and `guided_…`.

use serde_json::Value;

use crate::error::{Code, Error, Result};
use crate::fields::{Fields, missing, to_string, wrong_type};
use crate::tools::check_name;

pub(crate) const CHOICES_MAX: usize = 1024;

#[derive(Debug, Clone, PartialEq)]
pub enum Constraint {
    /// A JSON object of any kind.
    JsonObject,
    /// JSON that validates.
    JsonSchema(Value),
    /// What matches the expression, whole.
    Regex(String),
    /// One of these.
    Choice(Vec<String>),
    /// In Lark's notation or in GBNF.
    Grammar(String),
}

/// A constraint, and the field that holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Constrained {
    pub constraint: Constraint,
    /// Path of the schema, the expression or the grammar.
    pub param: String,
}

impl Constrained {
    /// Takes all fields that constrain; at most one may.
    pub(crate) fn take(fields: &mut Fields) -> Result<Option<Self>> {
        let mut found: Vec<Self> = Vec::new();
        if let Some(format) = fields.take("response_format") {
            found.extend(to_format(Fields::at("response_format", format)?)?);
        }
        if let Some(outputs) = fields.take("structured_outputs") {
            found.push(to_outputs(Fields::at("structured_outputs", outputs)?)?);
        }
        for (alias, key) in GUIDED {
            if let Some(value) = fields.take(alias) {
                found.push(to_constraint(alias, key, value)?);
            }
        }
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(first), Some(second)) => {
                let message = format!(
                    "`{}` and `{}` both constrain the answer. Give one of them.",
                    first.param, second.param
                );
                Err(Error::value(&second.param, message))
            }
            (first, _) => Ok(first),
        }
    }
}

/// vLLM's older names, and what each is in `structured_outputs`.
const GUIDED: [(&str, &str); 4] = [
    ("guided_json", "json"),
    ("guided_regex", "regex"),
    ("guided_choice", "choice"),
    ("guided_grammar", "grammar"),
];

/// `{"type": "text" | "json_object" | "json_schema", …}`
fn to_format(mut format: Fields) -> Result<Option<Constrained>> {
    const TYPES: &str = "\"text\", \"json_object\" or \"json_schema\"";
    let path = format.path("type");
    let Some(kind) = format.string("type")? else { return Err(missing(&path, TYPES)) };
    match kind.as_str() {
        "text" => Ok(None),
        "json_object" => Ok(Some(Constrained { constraint: Constraint::JsonObject, param: path })),
        "json_schema" => {
            let path = format.path("json_schema");
            let schema =
                format.take("json_schema").ok_or_else(|| missing(&path, "an object with name and schema"))?;
            to_named_schema(Fields::at(&path, schema)?).map(Some)
        }
        _ => {
            let shown: String = kind.chars().take(32).collect();
            Err(Error::value(&path, format!("`{path}` is {shown:?}; it must be {TYPES}.")))
        }
    }
}

/// `{"name", "schema", "description"?, "strict"?}`: enforced, strict or not.
pub(crate) fn to_named_schema(mut fields: Fields) -> Result<Constrained> {
    let path = fields.path("name");
    let name = fields.string("name")?.ok_or_else(|| missing(&path, "a string"))?;
    check_name(&path, &name)?;
    fields.string("description")?;
    fields.bool("strict")?;
    let path = fields.path("schema");
    match fields.take("schema") {
        None => Err(missing(&path, "a JSON schema")),
        Some(schema) => to_schema(path, schema),
    }
}

fn to_schema(param: String, schema: Value) -> Result<Constrained> {
    match schema {
        Value::Object(_) | Value::Bool(_) => {
            Ok(Constrained { constraint: Constraint::JsonSchema(schema), param })
        }
        other => Err(wrong_type(&param, &other, "a JSON schema: an object, true or false")),
    }
}

/// Exactly one of the ways to constrain.
fn to_outputs(mut outputs: Fields) -> Result<Constrained> {
    const KEYS: [&str; 5] = ["json", "regex", "choice", "grammar", "json_object"];
    let path = outputs.path("");
    let path = path.trim_end_matches('.');
    let given = KEYS.into_iter().filter_map(|key| outputs.take(key).map(|value| (key, value)));
    let mut given = given.filter(|(key, value)| *key != "json_object" || *value != Value::Bool(false));
    let (first, second) = (given.next(), given.next());
    drop(given);
    if let Some(name) = outputs.rest().first() {
        let shown: String = name.chars().take(64).collect();
        let message = format!("`{path}` has a key {shown:?}; known are {}.", KEYS.join(", "));
        return Err(Error::at(Code::UnsupportedParameter, format!("{path}.{shown}"), message));
    }
    match (first, second) {
        (Some((key, value)), None) => to_constraint(&format!("{path}.{key}"), key, value),
        (None, _) => Err(Error::value(path, format!("`{path}` must have one of {}.", KEYS.join(", ")))),
        (Some((first, _)), Some((second, _))) => {
            Err(Error::value(path, format!("`{path}` has both `{first}` and `{second}`. Give one of them.")))
        }
    }
}

fn to_constraint(path: &str, key: &str, value: Value) -> Result<Constrained> {
    let constraint = match key {
        "json" => return to_schema(path.to_owned(), parsed(path, value)?),
        "json_object" if value == Value::Bool(true) => Constraint::JsonObject,
        "json_object" => return Err(wrong_type(path, &value, "true or false")),
        "regex" => Constraint::Regex(to_string(path, value)?),
        "grammar" => Constraint::Grammar(to_string(path, value)?),
        _ => Constraint::Choice(to_choices(path, value)?),
    };
    Ok(Constrained { constraint, param: path.to_owned() })
}

/// A schema may come as its JSON text.
fn parsed(path: &str, value: Value) -> Result<Value> {
    let Value::String(text) = value else { return Ok(value) };
    crate::json::value(&text).map_err(|why| {
        Error::at(Code::InvalidSchema, path, format!("`{path}` is a string that is not valid JSON: {why}."))
    })
}

fn to_choices(path: &str, value: Value) -> Result<Vec<String>> {
    let Value::Array(list) = value else { return Err(wrong_type(path, &value, "an array of strings")) };
    if !(1..=CHOICES_MAX).contains(&list.len()) {
        let message = format!("`{path}` has {} entries; 1 to {CHOICES_MAX} are allowed.", list.len());
        return Err(Error::value(path, message));
    }
    let mut choices: Vec<String> = Vec::with_capacity(list.len());
    let mut seen = std::collections::HashSet::new();
    for (i, item) in list.into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        let choice = match item {
            Value::String(choice) if choice.is_empty() => {
                return Err(Error::value(
                    &path,
                    format!("`{path}` is empty; a choice has at least one character."),
                ));
            }
            Value::String(choice) => choice,
            other => return Err(wrong_type(&path, &other, "a string")),
        };
        if !seen.insert(choice.clone()) {
            return Err(Error::value(&path, format!("`{path}` stands there twice. Give each choice once.")));
        }
        choices.push(choice);
    }
    Ok(choices)
}
