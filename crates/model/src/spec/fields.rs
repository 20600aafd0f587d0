//! Typed reading of a JSON object that collects every problem instead of stopping at the first.

use crate::problems::Problems;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// The JSON object that `bytes` must be.
pub(super) fn json_object(subject: &str, bytes: &[u8]) -> Result<Map<String, Value>, Problems> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => {
            Err(Problems::one(subject, "file", format!("{}, a JSON object is needed", short(&other))))
        }
        Err(e) => Err(Problems::one(subject, "file", format!("not JSON ({e}); fetch the file again"))),
    }
}

/// A JSON object being read. A getter's `None` means that a problem has been recorded.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Before each key in messages: empty, or `rope_scaling.`
    prefix: String,
    problems: &'a mut Problems,
    notes: &'a mut Vec<String>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(
        object: &'a Map<String, Value>,
        problems: &'a mut Problems,
        notes: &'a mut Vec<String>,
    ) -> Self {
        Self { object, prefix: String::new(), problems, notes }
    }

    /// The object under `key`, if there is one; its problems land here.
    pub(super) fn nested(&mut self, key: &str) -> Option<Option<Fields<'_>>> {
        let object = self.optional(key, "must be an object or null", Value::as_object)?;
        Some(object.map(|object| Fields {
            object,
            prefix: format!("{}{key}.", self.prefix),
            problems: self.problems,
            notes: self.notes,
        }))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.object.keys().map(String::as_str)
    }

    /// Whether the key is there, be it null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    /// The value; null is the same as absent.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    /// Records that the value of `key` will not do, and why.
    pub(super) fn refuse(&mut self, key: &str, what: impl AsRef<str>) {
        let what = match self.object.get(key) {
            Some(value) => format!("{}, {}", short(value), what.as_ref()),
            None => format!("missing, {}", what.as_ref()),
        };
        self.problems.push(format!("{}{key}", self.prefix), what);
    }

    pub(super) fn problem_count(&self) -> usize {
        self.problems.count()
    }

    /// Something that its owner should know and that stops nothing.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Refuses any value of `key` but `served`; absent is fine.
    pub(super) fn only(&mut self, key: &str, served: impl Into<Value>) {
        let served = served.into();
        let same = |value: &Value| match (value.as_f64(), served.as_f64()) {
            (Some(a), Some(b)) => a == b,
            _ => *value == served,
        };
        if !self.value(key).is_none_or(same) {
            self.refuse(key, format!("only {served} is served"));
        }
    }

    /// `Some(None)` where the key is absent or null.
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        want: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Option<Option<T>> {
        let Some(value) = self.value(key) else { return Some(None) };
        let read = read(value);
        if read.is_none() {
            self.refuse(key, want);
        }
        read.map(Some)
    }

    fn required<T>(&mut self, key: &str, want: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.optional(key, want, read)?;
        if value.is_none() {
            self.refuse(key, want);
        }
        value
    }

    pub(super) fn integer_or_null(
        &mut self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Option<Option<usize>> {
        let want = format!("must be an integer from {} to {}", range.start(), range.end());
        self.optional(key, &want, |v| integer(v, &range))
    }

    pub(super) fn integer(&mut self, key: &str, range: RangeInclusive<usize>) -> Option<usize> {
        let want = format!("must be an integer from {} to {}", range.start(), range.end());
        self.required(key, &want, |v| integer(v, &range))
    }

    pub(super) fn number_or_null(&mut self, key: &str, range: RangeInclusive<f64>) -> Option<Option<f64>> {
        let want = format!("must be a number from {} to {}", range.start(), range.end());
        self.optional(key, &want, |v| v.as_f64().filter(|x| range.contains(x)))
    }

    pub(super) fn number(&mut self, key: &str, range: RangeInclusive<f64>) -> Option<f64> {
        let want = format!("must be a number from {} to {}", range.start(), range.end());
        self.required(key, &want, |v| v.as_f64().filter(|x| range.contains(x)))
    }

    pub(super) fn flag_or_null(&mut self, key: &str) -> Option<Option<bool>> {
        self.optional(key, "must be true or false", Value::as_bool)
    }

    pub(super) fn flag(&mut self, key: &str) -> Option<bool> {
        self.required(key, "must be true or false", Value::as_bool)
    }

    pub(super) fn text_or_null(&mut self, key: &str) -> Option<Option<&'a str>> {
        self.optional(key, "must be a string", Value::as_str)
    }

    /// One token id or a list of them; absent is none.
    pub(super) fn token_ids(&mut self, key: &str, vocab_size: usize) -> Option<Vec<u32>> {
        const IDS_MAX: usize = 64;
        let want =
            format!("must be one token id or at most {IDS_MAX} of them, each from 0 to {}", vocab_size - 1);
        let ids = self.optional(key, &want, |v| match v {
            Value::Array(ids) if ids.len() <= IDS_MAX => {
                ids.iter().map(|v| token_id(v, vocab_size)).collect()
            }
            one => token_id(one, vocab_size).map(|id| vec![id]),
        })?;
        Some(ids.unwrap_or_default())
    }

    pub(super) fn token_id(&mut self, key: &str, vocab_size: usize) -> Option<Option<u32>> {
        let want = format!("must be a token id from 0 to {}", vocab_size - 1);
        self.optional(key, &want, |v| token_id(v, vocab_size))
    }
}

fn token_id(value: &Value, vocab_size: usize) -> Option<u32> {
    integer(value, &(0..=vocab_size - 1)).and_then(|id| u32::try_from(id).ok())
}

fn integer(value: &Value, range: &RangeInclusive<usize>) -> Option<usize> {
    // 64.0 is not an integer here: a config that says so was not written by a config class.
    value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n))
}

/// A value as JSON, cut where it is long.
fn short(value: &Value) -> String {
    const CHARS_MAX: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
