//! What of JSON Schema is enforced, and what is refused because it would not be.
//!
//! Keywords are those of drafts 4 to 2020-12. One that llguidance leaves out must not be ignored: whoever reads the answer
//! relies on it.

use serde_json::{Map, Value, json};

use crate::{Limits, Refused};

/// Keywords whose meaning nobody enforces, and what to do without.
const UNENFORCED: &[(&str, &str)] = &[
    ("not", "Say what is allowed instead."),
    ("if", "Use `anyOf`."),
    ("then", "Use `anyOf`."),
    ("else", "Use `anyOf`."),
    ("contains", "Use `prefixItems` or leave it out."),
    ("minContains", "Leave it out."),
    ("maxContains", "Leave it out."),
    ("uniqueItems", "Leave it out, and check the answer yourself."),
    ("propertyNames", "Use `patternProperties`."),
    ("dependentRequired", "Use `anyOf`."),
    ("dependentSchemas", "Use `anyOf`."),
    ("dependencies", "Use `anyOf`."),
    ("unevaluatedItems", "Use `items`."),
    ("unevaluatedProperties", "Use `additionalProperties`."),
    ("contentSchema", "Leave it out."),
    ("$dynamicRef", "Use `$ref`."),
    ("$recursiveRef", "Use `$ref`."),
];

/// Keywords that hold one schema, a list of schemas, or an object of schemas.
const ONE: &[&str] = &["items", "additionalItems", "additionalProperties"];
const LISTS: &[&str] = &["allOf", "anyOf", "oneOf", "prefixItems"];
const OBJECTS: &[&str] = &["properties", "patternProperties", "$defs", "definitions"];

const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];

macro_rules! time {
    () => {
        "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
    };
}

macro_rules! date {
    () => {
        concat!(
            "[0-9]{4}-(",
            "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|",
            "(0[469]|11)-(0[1-9]|[12][0-9]|30)|",
            "02-(0[1-9]|1[0-9]|2[0-8]))"
        )
    };
}

macro_rules! host {
    () => {
        "[A-Za-z0-9]{1,30}(-[A-Za-z0-9]{1,30})?(\\.[A-Za-z0-9]{1,30}(-[A-Za-z0-9]{1,30})?){0,3}"
    };
}

macro_rules! word {
    () => {
        "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
    };
}

/// Formats that are enforced as llguidance does; others are annotations, as the standard has it.
const FORMATS: &[&str] = &["duration", "ipv4", "ipv6", "uuid", "uri"];

/// Formats that we spell ourselves. Of RFC 3339's no leap day and no leap second, which are some only in the right year
/// and at the right minute of the right zone; of names and addresses no longer ones than every judge lets pass.
const SPELLED: &[(&str, &str)] = &[
    ("time", concat!("^", time!(), "$")),
    ("date", concat!("^", date!(), "$")),
    ("hostname", concat!("^", host!(), "$")),
    ("email", concat!("^", word!(), "{1,16}(\\.", word!(), "{1,15}){0,2}@", host!(), "$")),
    ("date-time", concat!("^", date!(), "[Tt]", time!(), "$")),
];

/// Entries of an `enum`.
const ENUM_MAX: usize = 2_000;
/// Counts and lengths beyond it cost too much to enforce.
const COUNT_MAX: u64 = 100_000;

/// Refuses what would not be enforced; `lenient`: only what is no schema.
pub fn check(schema: &Value, lenient: bool, limits: &Limits) -> Result<(), Refused> {
    prepare(schema, lenient, limits).map(drop)
}

/// The schema as it is compiled: with our way to write JSON, and without what is only an annotation.
pub(crate) fn prepare(schema: &Value, lenient: bool, limits: &Limits) -> Result<Value, Refused> {
    let mut schema = schema.clone();
    let mut walk = Walk { lenient, depth_max: limits.depth_max };
    walk.schema(&mut schema, &mut String::new(), 0)?;
    let mut schema = match schema {
        Value::Object(map) => map,
        // `true` and `false` can carry no options.
        Value::Bool(true) => Map::new(),
        _ => return Err(refused("", "it allows no value at all".to_owned())),
    };
    // One blank may follow a comma or a colon, as models are used to; no other white space, or one that likes blanks
    // would never come to an end.
    let style = json!({
        "whitespace_flexible": false,
        "item_separator": ", ?",
        "key_separator": ": ?",
        "lenient": lenient,
    });
    schema.insert("x-guidance".to_owned(), style);
    Ok(Value::Object(schema))
}

struct Walk {
    lenient: bool,
    depth_max: usize,
}

fn refused(path: &str, message: String) -> Refused {
    Refused::Schema { path: path.to_owned(), message }
}

impl Walk {
    fn schema(&mut self, schema: &mut Value, path: &mut String, depth: usize) -> Result<(), Refused> {
        if depth > self.depth_max {
            return Err(refused(path, format!("it is nested deeper than {} levels", self.depth_max)));
        }
        let keywords = match schema {
            Value::Object(keywords) => keywords,
            Value::Bool(_) => return Ok(()),
            _ => return Err(refused(path, "a schema must be an object, true or false".to_owned())),
        };
        keywords.retain(|name, _| !name.starts_with("x-"));
        spell_format(keywords);
        self.check_unenforced(keywords, path)?;
        check_type(keywords, path)?;
        check_ref(keywords, path)?;
        check_counts(keywords, path)?;
        for (name, value) in keywords.iter_mut() {
            let name = name.as_str();
            let len = path.len();
            path.push('.');
            path.push_str(name);
            match value {
                Value::Array(list) if LISTS.contains(&name) || name == "items" => {
                    self.list(list, path, depth)?;
                }
                Value::Object(map) if OBJECTS.contains(&name) => {
                    for (key, value) in map.iter_mut() {
                        let len = path.len();
                        path.push('.');
                        path.extend(key.chars().take(64));
                        self.schema(value, path, depth + 1)?;
                        path.truncate(len);
                    }
                }
                value if ONE.contains(&name) => self.schema(value, path, depth + 1)?,
                _ if LISTS.contains(&name) => {
                    return Err(refused(path, "it must be a list of schemas".to_owned()));
                }
                _ if OBJECTS.contains(&name) => {
                    return Err(refused(path, "it must be an object of schemas".to_owned()));
                }
                _ => {}
            }
            path.truncate(len);
        }
        Ok(())
    }

    fn list(&mut self, list: &mut [Value], path: &mut String, depth: usize) -> Result<(), Refused> {
        for (i, value) in list.iter_mut().enumerate() {
            let len = path.len();
            path.push_str(&format!("[{i}]"));
            self.schema(value, path, depth + 1)?;
            path.truncate(len);
        }
        Ok(())
    }

    /// `uniqueItems: false` and the like ask for nothing.
    fn check_unenforced(&self, keywords: &mut Map<String, Value>, path: &str) -> Result<(), Refused> {
        for (name, remedy) in UNENFORCED {
            let asks = keywords.get(*name).is_some_and(|value| *value != Value::Bool(false));
            if asks && !self.lenient {
                return Err(refused(
                    &format!("{path}.{name}"),
                    format!("`{name}` is not supported. {remedy}"),
                ));
            }
            keywords.remove(*name);
        }
        Ok(())
    }
}

/// Exchanges the format for an expression, or leaves it out if it is an annotation.
fn spell_format(keywords: &mut Map<String, Value>) {
    let Some(Value::String(format)) = keywords.get("format") else { return drop(keywords.remove("format")) };
    let spelled =
        SPELLED.iter().find(|(name, _)| name == format).map(|(_, pattern)| json!({"pattern": pattern}));
    if spelled.is_none() && FORMATS.contains(&format.as_str()) {
        return;
    }
    keywords.remove("format");
    match (spelled, keywords.get_mut("allOf")) {
        (Some(pattern), Some(Value::Array(list))) => list.push(pattern),
        (Some(pattern), None) => drop(keywords.insert("allOf".to_owned(), Value::Array(vec![pattern]))),
        _ => {}
    }
}

fn check_type(keywords: &Map<String, Value>, path: &str) -> Result<(), Refused> {
    let known = |value: &Value| value.as_str().is_some_and(|name| TYPES.contains(&name));
    let fine = match keywords.get("type") {
        None => true,
        Some(Value::Array(list)) => !list.is_empty() && list.iter().all(known),
        Some(value) => known(value),
    };
    let wrong = || {
        refused(&format!("{path}.type"), format!("it must be one of {}, or a list of them", TYPES.join(", ")))
    };
    if fine { Ok(()) } else { Err(wrong()) }
}

/// Nothing is ever fetched.
fn check_ref(keywords: &Map<String, Value>, path: &str) -> Result<(), Refused> {
    let path = || format!("{path}.$ref");
    match keywords.get("$ref") {
        None => Ok(()),
        Some(Value::String(target)) if target.starts_with('#') => Ok(()),
        Some(Value::String(_)) => Err(refused(
            &path(),
            "it refers to another document; only `#…` within this one is followed".to_owned(),
        )),
        Some(_) => Err(refused(&path(), "it must be a string".to_owned())),
    }
}

fn check_counts(keywords: &Map<String, Value>, path: &str) -> Result<(), Refused> {
    const COUNTS: [&str; 6] =
        ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];
    for name in COUNTS {
        let Some(value) = keywords.get(name) else { continue };
        let whole = value
            .as_u64()
            .or_else(|| value.as_f64().filter(|n| n.fract() == 0.0 && *n >= 0.0).map(|n| n as u64));
        let path = format!("{path}.{name}");
        match whole {
            None => return Err(refused(&path, "it must be a whole number of 0 or more".to_owned())),
            Some(n) if n > COUNT_MAX => {
                return Err(refused(&path, format!("it is {value}; at most {COUNT_MAX} is supported")));
            }
            Some(_) => {}
        }
    }
    match keywords.get("enum") {
        Some(Value::Array(list)) if (1..=ENUM_MAX).contains(&list.len()) => Ok(()),
        None => Ok(()),
        Some(Value::Array(list)) => Err(refused(
            &format!("{path}.enum"),
            format!("it has {} entries; 1 to {ENUM_MAX} are supported", list.len()),
        )),
        Some(_) => Err(refused(&format!("{path}.enum"), "it must be a list".to_owned())),
    }
}
