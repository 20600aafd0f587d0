//! Taking typed, range-checked fields out of a JSON object.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{Code, Error, Result};

/// A value's kind, for error texts.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a fractional number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// `path` has the wrong type: it holds `value` and should be `wanted`.
pub(crate) fn wrong_type(path: &str, value: &Value, wanted: &str) -> Error {
    Error::at(Code::InvalidType, path, format!("`{path}` must be {wanted}, but is {}.", kind(value)))
}

pub(crate) fn missing(path: &str, wanted: &str) -> Error {
    Error::at(Code::MissingRequiredParameter, path, format!("`{path}` is missing; it must be {wanted}."))
}

/// A word that is none of those that are known.
pub(crate) fn not_one_of(path: &str, word: &str, known: &str) -> Error {
    Error::value(path, format!("`{path}` is {:?}; it must be {known}.", shown(word)))
}

/// A word that the API knows, perhaps, and this server does not serve.
pub(crate) fn unserved(path: &str, word: &str, remedy: &str) -> Error {
    let message = format!("`{path}` is {:?}, which is not supported. {remedy}", shown(word));
    Error::at(Code::UnsupportedParameter, path, message)
}

/// As much of a client's word as an error repeats.
fn shown(word: &str) -> String {
    word.chars().take(64).collect()
}

pub(crate) fn to_string(path: &str, value: Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(path, &other, "a string")),
    }
}

/// An integer of `range`; `4.0` is one, `4.5` is not.
pub(crate) fn to_int(path: &str, value: &Value, range: RangeInclusive<i64>) -> Result<i64> {
    let Value::Number(number) = value else {
        return Err(wrong_type(path, value, "an integer"));
    };
    let int = match number.as_i64() {
        Some(int) => Some(int),
        None => match number.as_f64() {
            Some(float) if float.fract() != 0.0 => {
                return Err(wrong_type(path, value, "an integer"));
            }
            // Beyond 2^53 a float no longer names one integer.
            Some(float) if number.is_f64() && float.abs() <= 9_007_199_254_740_992.0 => Some(float as i64),
            _ => None,
        },
    };
    match int {
        Some(int) if range.contains(&int) => Ok(int),
        // What was read is not what was sent, to the last digit.
        None if number.is_f64() => {
            Err(Error::value(path, format!("`{path}` is out of range; {}.", int_range(&range))))
        }
        _ => Err(Error::value(path, format!("`{path}` is {number}; {}.", int_range(&range)))),
    }
}

fn int_range(range: &RangeInclusive<i64>) -> String {
    match (*range.start(), *range.end()) {
        (i64::MIN, i64::MAX) => "it must fit in 64 bits".into(),
        (low, i64::MAX) => format!("it must be at least {low}"),
        (low, high) => format!("it must be from {low} to {high}"),
    }
}

/// Bounds of a number; the lower one may be excluded.
pub(crate) struct Bounds {
    low: f64,
    above_low: bool,
    high: f64,
}

impl Bounds {
    pub(crate) const fn from(low: f64, high: f64) -> Self {
        Self { low, above_low: false, high }
    }

    pub(crate) const fn above(low: f64, high: f64) -> Self {
        Self { low, above_low: true, high }
    }
}

pub(crate) fn to_number(path: &str, value: &Value, bounds: &Bounds) -> Result<f64> {
    let Some(number) = value.as_f64() else {
        return Err(wrong_type(path, value, "a number"));
    };
    let high_enough = if bounds.above_low { number > bounds.low } else { number >= bounds.low };
    if high_enough && number <= bounds.high {
        return Ok(number);
    }
    let low = if bounds.above_low { "greater than" } else { "at least" };
    Err(Error::value(
        path,
        format!("`{path}` is {value}; it must be {low} {} and at most {}.", bounds.low, bounds.high),
    ))
}

/// A list of token ids below `vocab_size`.
pub(crate) fn to_ids(path: &str, items: &[Value], vocab_size: usize) -> Result<Vec<u32>> {
    let last = vocab_size.saturating_sub(1) as i64;
    let id = |(i, item)| to_int(&format!("{path}[{i}]"), item, 0..=last).map(|id| id as u32);
    items.iter().enumerate().map(id).collect()
}

/// An object whose fields are taken out one by one. `null` equals absent.
pub(crate) struct Fields {
    map: Map<String, Value>,
    path: String,
}

impl Fields {
    pub(crate) fn root(body: &[u8]) -> Result<Self> {
        Ok(Self { map: crate::json::object(body)?, path: String::new() })
    }

    /// The object at `path`.
    pub(crate) fn at(path: &str, value: Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { map, path: path.to_owned() }),
            other => Err(wrong_type(path, &other, "an object")),
        }
    }

    pub(crate) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// What [`Fields::take`] would give.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        #[cfg(test)]
        crate::schema::tests::note(&self.path(key));
        self.map.swap_remove(key).filter(|value| !value.is_null())
    }

    pub(crate) fn bool(&mut self, key: &str) -> Result<Option<bool>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong_type(&self.path(key), &other, "true or false")),
        }
    }

    pub(crate) fn string(&mut self, key: &str) -> Result<Option<String>> {
        self.take(key).map(|value| to_string(&self.path(key), value)).transpose()
    }

    pub(crate) fn required(&mut self, key: &str) -> Result<String> {
        self.string(key)?.ok_or_else(|| missing(&self.path(key), "a string"))
    }

    pub(crate) fn int(&mut self, key: &str, range: RangeInclusive<i64>) -> Result<Option<i64>> {
        self.take(key).map(|value| to_int(&self.path(key), &value, range)).transpose()
    }

    pub(crate) fn number(&mut self, key: &str, bounds: Bounds) -> Result<Option<f32>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let number = to_number(&self.path(key), &value, &bounds)?;
        // A bound that is excluded stays excluded when the number is rounded to f32.
        let least = if bounds.above_low { f32::MIN_POSITIVE } else { f32::NEG_INFINITY };
        Ok(Some((number as f32).max(least)))
    }

    pub(crate) fn list(&mut self, key: &str) -> Result<Option<Vec<Value>>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(wrong_type(&self.path(key), &other, "an array")),
        }
    }

    pub(crate) fn object(&mut self, key: &str) -> Result<Option<Map<String, Value>>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(wrong_type(&self.path(key), &other, "an object")),
        }
    }

    /// Names of the fields that nobody took.
    pub(crate) fn rest(self) -> Vec<String> {
        self.map.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key).collect()
    }
}
