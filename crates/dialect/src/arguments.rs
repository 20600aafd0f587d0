//! Arguments that are written as tags, one a property: what a schema says of each.

use serde_json::{Map, Value, json};

use crate::Tool;

/// How a property's value is written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    /// As it is.
    Text,
    /// As JSON.
    Json,
    /// The schema says nothing of it: JSON if it is some, else text.
    Unknown,
}

/// A property of a tool's arguments.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Property {
    pub(crate) name: String,
    pub(crate) required: bool,
    /// With the definitions that it may refer to.
    pub(crate) schema: Value,
    pub(crate) kind: Kind,
}

/// References that lead to references are followed so far.
const REFS_MAX: usize = 16;

/// The properties of the arguments, in the schema's order; an error if there is more to the schema than properties.
pub(crate) fn properties(tool: &Tool) -> Result<Vec<Property>, String> {
    let Some(schema) = &tool.parameters else { return Ok(Vec::new()) };
    let root = schema.as_object().ok_or("the schema is no object")?;
    const COMBINED: [&str; 6] = ["anyOf", "oneOf", "allOf", "$ref", "patternProperties", "enum"];
    if let Some(keyword) = COMBINED.into_iter().find(|keyword| root.contains_key(*keyword)) {
        return Err(format!("`{keyword}` beside `properties` is not supported"));
    }
    let required: Vec<&str> = root
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let none = Map::new();
    let listed = root.get("properties").and_then(Value::as_object).unwrap_or(&none);
    if let Some(name) = required.iter().find(|name| !listed.contains_key(**name)) {
        return Err(format!("`required` names {name:?}, which is none of the `properties`"));
    }
    let property = |(name, schema): (&String, &Value)| Property {
        name: name.clone(),
        required: required.contains(&name.as_str()),
        kind: kind(schema, root),
        schema: with_definitions(schema, root),
    };
    Ok(listed.iter().map(property).collect())
}

/// How the value of a property is written.
pub(crate) fn kind_of(tool: &Tool, property: &str) -> Kind {
    let root = tool.parameters.as_ref().and_then(Value::as_object);
    let schema = root.and_then(|root| Some((root.get("properties")?.get(property)?, root)));
    schema.map_or(Kind::Unknown, |(schema, root)| kind(schema, root))
}

fn kind(schema: &Value, root: &Map<String, Value>) -> Kind {
    let Some(schema) = resolved(schema, root) else { return Kind::Unknown };
    let all_texts = |values: &Vec<Value>| values.iter().all(Value::is_string);
    let is_text = match (schema.get("type"), schema.get("enum"), schema.get("const")) {
        (Some(kind), _, _) => kind == "string",
        (None, Some(Value::Array(values)), _) => all_texts(values),
        (None, None, Some(value)) => value.is_string(),
        _ => return if schema.as_object().is_some_and(Map::is_empty) { Kind::Unknown } else { Kind::Json },
    };
    if is_text { Kind::Text } else { Kind::Json }
}

/// The schema that a local reference leads to.
pub(crate) fn resolved<'a>(mut schema: &'a Value, root: &'a Map<String, Value>) -> Option<&'a Value> {
    for _ in 0..REFS_MAX {
        let Some(target) = schema.get("$ref").and_then(Value::as_str) else { return Some(schema) };
        let mut path = target.strip_prefix("#/")?.split('/');
        let first = root.get(path.next()?)?;
        schema = path.try_fold(first, |at, key| at.get(key.replace("~1", "/").replace("~0", "~")))?;
    }
    None
}

fn with_definitions(schema: &Value, root: &Map<String, Value>) -> Value {
    let Value::Object(own) = schema else { return schema.clone() };
    let mut own = own.clone();
    for key in ["$defs", "definitions"] {
        if let Some(definitions) = root.get(key) {
            own.entry(key).or_insert_with(|| definitions.clone());
        }
    }
    Value::Object(own)
}

/// The schema of a tool's arguments, an object.
pub(crate) fn object(tool: &Tool) -> Value {
    tool.parameters
        .clone()
        .unwrap_or_else(|| json!({"type": "object", "properties": {}, "additionalProperties": false}))
}
