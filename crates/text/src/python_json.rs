//! The filter `tojson` as Python's `json.dumps(value, ensure_ascii=False)`, which models were trained on.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde_json::Value as Json;

/// `value | tojson(indent=, separators=, sort_keys=)`.
pub(crate) fn tojson(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let refuse = |why: String| Error::new(ErrorKind::InvalidOperation, why);
    if value.is_undefined() {
        return Err(refuse("tojson of a value that is not defined".into()));
    }
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    if kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false) {
        return Err(refuse("tojson(ensure_ascii=true) is not supported".into()));
    }
    let mut dump = Dump {
        text: String::new(),
        indent: indent.map(|width| width.min(INDENT_MAX)),
        item_separator: if indent.is_some() { "," } else { ", " }.to_owned(),
        key_separator: ": ".to_owned(),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    if let Some(pair) = separators {
        let pair: [String; 2] = pair.try_into().map_err(|_| refuse("tojson: separators are two".into()))?;
        [dump.item_separator, dump.key_separator] = pair;
    }
    kwargs.assert_all_used()?;
    let json = serde_json::to_value(value).map_err(|error| refuse(format!("tojson: {error}")))?;
    dump.value(&json, 0);
    Ok(dump.text)
}

const INDENT_MAX: usize = 16;

struct Dump {
    text: String,
    indent: Option<usize>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

impl Dump {
    fn value(&mut self, value: &Json, depth: usize) {
        match value {
            Json::Null => self.text.push_str("null"),
            Json::Bool(flag) => self.text.push_str(if *flag { "true" } else { "false" }),
            Json::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(float) => self.text.push_str(&python_float(float)),
                None => self.text.push_str(&number.to_string()),
            },
            Json::String(text) => self.string(text),
            Json::Array(items) => self.block(['[', ']'], items.iter(), depth, |this, item| {
                this.value(item, depth + 1);
            }),
            Json::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.block(['{', '}'], entries.into_iter(), depth, |this, (key, value)| {
                    this.string(key);
                    this.text.push_str(&this.key_separator.clone());
                    this.value(value, depth + 1);
                });
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push_str(&Json::from(text).to_string());
    }

    fn block<T>(
        &mut self,
        [open, close]: [char; 2],
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        write: impl Fn(&mut Self, T),
    ) {
        let is_empty = items.len() == 0;
        self.text.push(open);
        for (i, item) in items.enumerate() {
            if i > 0 {
                self.text.push_str(&self.item_separator.clone());
            }
            self.new_line(depth + 1);
            write(self, item);
        }
        if !is_empty {
            self.new_line(depth);
        }
        self.text.push(close);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(width) = self.indent {
            self.text.push('\n');
            self.text.extend(std::iter::repeat_n(' ', width * depth));
        }
    }
}

/// Python's `repr` of a float: the shortest digits that read back the same, with an exponent below 1e-4 and from
/// 1e16 on.
fn python_float(float: f64) -> String {
    let shortest = format!("{float:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if (-4..16).contains(&exponent) => format!("{float:?}"),
        Ok(exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        Err(_) => shortest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (float, text) in [
            (1.0, "1.0"),
            (-0.5, "-0.5"),
            (0.1, "0.1"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (1e-7, "1e-07"),
            (123_456_789.25, "123456789.25"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
        ] {
            assert_eq!(python_float(float), text);
        }
    }
}
