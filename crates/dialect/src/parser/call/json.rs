//! JSON as it comes: where an object ends, and what stands at its beginning.

use serde_json::{Map, Value};

/// Follows brackets and strings.
pub(super) struct Scanner {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scanner {
    /// In front of an object.
    pub(super) fn new() -> Self {
        Self { depth: 0, in_string: false, escaped: false }
    }

    /// Within an object, behind one of its values.
    pub(super) fn inside() -> Self {
        Self { depth: 1, ..Self::new() }
    }

    /// Where the outermost object ends, if it does in this piece.
    pub(super) fn feed(&mut self, text: &str) -> Option<usize> {
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// What an object begins with.
pub(super) enum Head {
    /// Its name, and where its arguments begin.
    Found { name: String, arguments: usize },
    /// That cannot be told yet.
    More,
    /// Something else: it may be a call all the same, once all of it is there.
    Other,
    /// It is no object.
    None,
}

/// Looks for `{"name": NAME, "arguments": {`.
pub(super) fn head(text: &str) -> Head {
    let mut cursor = Cursor { text, at: 0 };
    let read = || -> Result<(String, usize), Head> {
        match cursor.next()? {
            b'{' => {}
            _ => return Err(Head::None),
        }
        cursor.expect_key(&["name"])?;
        let name = cursor.string()?;
        cursor.expect(b',')?;
        cursor.expect_key(&["arguments", "parameters"])?;
        match cursor.next()? {
            b'{' => Ok((name, cursor.at - 1)),
            _ => Err(Head::Other),
        }
    };
    let mut read = read;
    match read() {
        Ok((name, arguments)) => Head::Found { name, arguments },
        Err(head) => head,
    }
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl Cursor<'_> {
    /// The next byte that is no blank.
    fn next(&mut self) -> Result<u8, Head> {
        let rest = &self.text.as_bytes()[self.at..];
        let blanks = rest.len() - rest.trim_ascii_start().len();
        let byte = rest.get(blanks).copied().ok_or(Head::More)?;
        self.at += blanks + 1;
        Ok(byte)
    }

    fn expect(&mut self, byte: u8) -> Result<(), Head> {
        if self.next()? == byte { Ok(()) } else { Err(Head::Other) }
    }

    fn expect_key(&mut self, keys: &[&str]) -> Result<(), Head> {
        let key = self.string()?;
        if !keys.contains(&key.as_str()) {
            return Err(Head::Other);
        }
        self.expect(b':')
    }

    fn string(&mut self) -> Result<String, Head> {
        self.expect(b'"')?;
        let mut escaped = false;
        for (n, byte) in self.text.as_bytes()[self.at..].iter().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    let text = serde_json::from_str(&self.text[self.at - 1..self.at + n + 1]);
                    self.at += n + 1;
                    return text.map_err(|_| Head::Other);
                }
                _ => {}
            }
        }
        Err(Head::More)
    }
}

/// Name and arguments of a call that is whole; arguments may be JSON as a text.
pub(super) fn call(text: &str) -> Option<(String, String)> {
    let mut object: Map<String, Value> = serde_json::from_str(text.trim()).ok()?;
    let name = object.get("name")?.as_str()?.to_owned();
    let arguments = object.remove("arguments").or_else(|| object.remove("parameters"));
    let arguments = match arguments.unwrap_or_else(|| Value::Object(Map::new())) {
        Value::String(text) => serde_json::from_str::<Map<String, Value>>(&text).ok().map(|_| text)?,
        Value::Object(arguments) => Value::Object(arguments).to_string(),
        _ => return None,
    };
    Some((name, arguments))
}

/// A text as it stands within a JSON string, without the quotes. Pieces can be escaped each by itself.
pub(super) fn escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}
