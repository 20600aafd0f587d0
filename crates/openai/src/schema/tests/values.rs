//! Values on both sides of what a schema allows.

use serde_json::{Map, Value, json};

/// A value, and the path of the field in which it differs from the plainest one.
pub(super) type Variant = (String, Value);

pub(super) struct Sampler<'a> {
    /// By name.
    pub(super) schemas: &'a Value,
}

impl<'a> Sampler<'a> {
    pub(super) fn resolve(&self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(place) => &self.schemas[place.rsplit('/').next().unwrap()],
            None => schema,
        }
    }

    /// Paths of all named fields.
    pub(super) fn names(&self, path: &str, schema: &'a Value, names: &mut impl FnMut(String)) {
        let schema = self.resolve(schema);
        for branch in branches(schema) {
            self.names(path, branch, names);
        }
        for (key, property) in properties(schema) {
            let path = join(path, key);
            names(path.clone());
            self.names(&path, property, names);
        }
        if !schema["items"].is_null() {
            self.names(&format!("{path}[]"), &schema["items"], names);
        }
    }

    /// The plainest value.
    pub(super) fn plain(&self, schema: &'a Value) -> Value {
        let schema = self.resolve(schema);
        let least = |key: &str| schema[key].as_u64().unwrap_or(0) as usize;
        let chosen = [&schema["examples"][0], &schema["enum"][0]].into_iter().find(|value| !value.is_null());
        if let Some(value) = chosen {
            return value.clone();
        }
        if let Some(first) = branches(schema).next() {
            return self.plain(first);
        }
        match types(schema).next() {
            Some("string") => "a".repeat(least("minLength").max(1)).into(),
            Some("integer" | "number") if !schema["minimum"].is_null() => schema["minimum"].clone(),
            Some("integer" | "number") => 1.into(),
            Some("boolean") => true.into(),
            Some("array") => vec![self.plain(&schema["items"]); least("minItems")].into(),
            Some("object") => {
                let required =
                    schema["required"].as_array().into_iter().flatten().map(|key| key.as_str().unwrap());
                let pair = |key: &str| (key.to_owned(), self.plain(&schema["properties"][key]));
                Value::Object(required.map(pair).collect())
            }
            _ => Value::Null,
        }
    }

    /// Values at the bounds and beyond them, words of an enumeration and another, and a value of each wrong type.
    pub(super) fn variants(&self, path: &str, schema: &'a Value) -> Vec<Variant> {
        let schema = self.resolve(schema);
        let here = |value: Value| (path.to_owned(), value);
        let mut all: Vec<Variant> = vec![here(self.plain(schema))];
        let words = schema["enum"].as_array().cloned().unwrap_or_default();
        if !words.is_empty() {
            all.push(here("unheard of".into()));
        }
        all.extend(words.into_iter().map(here));
        all.extend(branches(schema).flat_map(|branch| self.variants(path, branch)));
        for type_ in types(schema) {
            match type_ {
                "string" => all.extend(texts(schema).map(here)),
                "integer" | "number" => all.extend(numbers(schema).map(here)),
                "boolean" => all.extend([true, false].map(|value| here(value.into()))),
                "array" => all.extend(self.lists(path, schema)),
                "object" => all.extend(self.objects(path, schema)),
                _ => {}
            }
        }
        all
    }

    fn lists(&self, path: &str, schema: &'a Value) -> Vec<Variant> {
        let items = &schema["items"];
        let varied = self.variants(&format!("{path}[]"), items).into_iter();
        let mut all: Vec<Variant> = varied.map(|(path, item)| (path, json!([item]))).collect();
        let plain = self.plain(items);
        for n in around(schema, "minItems", "maxItems") {
            let list: Vec<Value> = (0..n).map(|i| distinct(&plain, i)).collect();
            all.push((path.to_owned(), list.into()));
        }
        all
    }

    fn objects(&self, path: &str, schema: &'a Value) -> Vec<Variant> {
        let plain = self.plain(schema);
        let with = |key: &str, value: Value| {
            let mut object = plain.clone();
            object[key] = value;
            object
        };
        let mut all = Vec::new();
        for (key, property) in properties(schema) {
            let mut without = plain.clone();
            without.as_object_mut().unwrap().remove(key);
            all.push((join(path, key), without));
            let mut varied = self.variants(&join(path, key), property);
            let types = self.all_types(property);
            let wrong = [json!(null), json!(true), json!(7.5), json!("a"), json!([]), json!({})];
            let wrong = wrong.into_iter().filter(|value| !types.contains(&type_of(value)));
            varied.extend(wrong.map(|value| (join(path, key), value)));
            all.extend(varied.into_iter().map(|(path, value)| (path, with(key, value))));
        }
        let value = &schema["additionalProperties"];
        if value.is_object() && value != &json!({}) {
            let varied = self.variants(path, value).into_iter();
            all.extend(varied.map(|(path, value)| (path, json!({"7": value}))));
            let keys = texts(&schema["propertyNames"]).chain(["07".into(), "-1".into()]);
            all.extend(keys.map(|key| (path.to_owned(), json!({key.as_str().unwrap(): self.plain(value)}))));
            for n in around(schema, "minProperties", "maxProperties") {
                let map: Map<_, _> = (0..n).map(|i| (i.to_string(), self.plain(value))).collect();
                all.push((path.to_owned(), map.into()));
            }
        }
        all
    }

    fn all_types(&self, schema: &'a Value) -> Vec<&'a str> {
        let schema = self.resolve(schema);
        let words = schema["enum"].as_array().into_iter().flatten().map(|word| -> &'a str { type_of(word) });
        let own = types(schema).map(|type_| if type_ == "integer" { "number" } else { type_ });
        own.chain(words).chain(branches(schema).flat_map(|branch| self.all_types(branch))).collect()
    }
}

fn branches(schema: &Value) -> impl Iterator<Item = &Value> {
    schema["oneOf"].as_array().into_iter().flatten()
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten()
}

fn types(schema: &Value) -> impl Iterator<Item = &str> {
    let one = schema["type"].as_str();
    one.into_iter().chain(schema["type"].as_array().into_iter().flatten().filter_map(Value::as_str))
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Both bounds of a count, and one step beyond each.
fn around(schema: &Value, least: &str, most: &str) -> impl Iterator<Item = usize> {
    let least = schema[least].as_u64().into_iter().flat_map(|n| [n.saturating_sub(1), n]);
    let most = schema[most].as_u64().into_iter().flat_map(|n| [n, n + 1]);
    least.chain(most).map(|n| n as usize)
}

fn texts(schema: &Value) -> impl Iterator<Item = Value> {
    // The patterns here bound the length too.
    let counts = if schema["pattern"].is_string() { vec![0, 1, 64, 65] } else { Vec::new() };
    let other = schema["pattern"].is_string().then_some("ä b".into());
    let counts = around(schema, "minLength", "maxLength").chain(counts);
    counts.map(|n| "a".repeat(n).into()).chain(other)
}

fn numbers(schema: &Value) -> impl Iterator<Item = Value> {
    let step = if types(schema).any(|type_| type_ == "integer") { json!(1) } else { json!(0.01) };
    let at = |key: &str| schema[key].as_f64();
    let near = |bound: f64, side: f64| match step.as_i64() {
        Some(step) => json!(bound as i64 + side as i64 * step),
        None => json!(bound + side * 0.01),
    };
    let least = at("minimum").or(at("exclusiveMinimum"));
    let below = least.map(|bound| [near(bound, -1.0), near(bound, 0.0), near(bound, 1.0)]);
    let above = at("maximum").map(|bound| [near(bound, 0.0), near(bound, 1.0)]);
    below.into_iter().flatten().chain(above.into_iter().flatten()).chain([json!(1.5)])
}

/// The same value, but for its name or its text.
fn distinct(value: &Value, i: usize) -> Value {
    let mut value = value.clone();
    match &mut value {
        Value::String(text) if i > 0 => *text = format!("a{i}"),
        Value::Object(map) if map.contains_key("name") => map["name"] = format!("a{i}").into(),
        Value::Object(map) if map.contains_key("function") => map["function"] = distinct(&map["function"], i),
        _ => {}
    }
    value
}
