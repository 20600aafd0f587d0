//! llama.cpp's notation for grammars, as Lark.
//!
//! Each character becomes a terminal of its own: GBNF means every way to read a text, and llguidance's lexer, given longer
//! terminals, would try the longest only.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::iter::Peekable;
use std::str::Chars;

/// Groups within groups.
const DEPTH_MAX: usize = 64;

/// Whether a text is in this notation: rules are defined by `::=`.
pub(crate) fn is_gbnf(source: &str) -> bool {
    source.contains("::=")
}

/// The same grammar in Lark; the rule `root` becomes `start`.
pub(crate) fn to_lark(source: &str) -> Result<String, String> {
    let mut reader =
        Reader { rest: source.chars().peekable(), line: 1, names: HashMap::new(), lark: String::new() };
    reader.rules()?;
    let undefined = reader.names.iter().find(|(_, rule)| !rule.defined);
    if let Some((name, _)) = undefined {
        return Err(format!("the rule {name:?} is used and not defined"));
    }
    match reader.names.get("root") {
        Some(root) => Ok(format!("start: r{}\n{}", root.number, reader.lark)),
        None => Err("there is no rule \"root\", where a GBNF grammar begins".to_owned()),
    }
}

struct Rule {
    number: usize,
    defined: bool,
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    line: usize,
    /// Names in Lark are numbers: what GBNF allows in a name, Lark does not.
    names: HashMap<String, Rule>,
    lark: String,
}

impl Reader<'_> {
    fn wrong<T>(&self, what: &str) -> Result<T, String> {
        Err(format!("line {}: {what}", self.line))
    }

    fn next(&mut self) -> Option<char> {
        let letter = self.rest.next();
        self.line += usize::from(letter == Some('\n'));
        letter
    }

    fn take_if(&mut self, letter: char) -> bool {
        let comes = self.rest.peek() == Some(&letter);
        if comes {
            self.next();
        }
        comes
    }

    /// Blanks and comments; newlines too, where a rule cannot end.
    fn skip(&mut self, newlines: bool) {
        while let Some(&letter) = self.rest.peek() {
            match letter {
                ' ' | '\t' | '\r' => drop(self.next()),
                '\n' if newlines => drop(self.next()),
                '#' => {
                    while self.rest.peek().is_some_and(|letter| *letter != '\n') {
                        self.next();
                    }
                }
                _ => return,
            }
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(&letter) = self.rest.peek()
            && (letter.is_ascii_alphanumeric() || letter == '-' || letter == '_')
        {
            name.push(letter);
            self.next();
        }
        name
    }

    fn number_of(&mut self, name: &str) -> usize {
        let next = self.names.len();
        self.names.entry(name.to_owned()).or_insert(Rule { number: next, defined: false }).number
    }

    fn rules(&mut self) -> Result<(), String> {
        loop {
            self.skip(true);
            if self.rest.peek().is_none() {
                return Ok(());
            }
            let name = self.name();
            self.skip(false);
            if name.is_empty() || !(self.take_if(':') && self.take_if(':') && self.take_if('=')) {
                return self.wrong("a rule must be written NAME ::= …");
            }
            let number = self.number_of(&name);
            let defined =
                self.names.get_mut(&name).is_some_and(|rule| std::mem::replace(&mut rule.defined, true));
            if defined {
                return self.wrong(&format!("the rule {name:?} is defined twice"));
            }
            let body = self.alternatives(0)?;
            let _ = writeln!(self.lark, "r{number}: {body}"); // into a string
            self.skip(false);
            if self.rest.peek().is_some_and(|letter| *letter != '\n') {
                return self.wrong("something follows that is no part of the rule");
            }
        }
    }

    /// `a b | c`, as far as it goes.
    fn alternatives(&mut self, depth: usize) -> Result<String, String> {
        if depth > DEPTH_MAX {
            return self.wrong(&format!("groups are nested deeper than {DEPTH_MAX} levels"));
        }
        let mut text = String::new();
        self.skip(true); // behind `::=`, `(` and `|` a rule goes on
        loop {
            let sequence = self.sequence(depth)?;
            text.push_str(if sequence.is_empty() { "\"\"" } else { &sequence });
            self.skip(depth > 0);
            if !self.take_if('|') {
                return Ok(text);
            }
            text.push_str(" | ");
            self.skip(true);
        }
    }

    fn sequence(&mut self, depth: usize) -> Result<String, String> {
        let mut items: Vec<String> = Vec::new();
        loop {
            self.skip(depth > 0);
            let Some(&letter) = self.rest.peek() else { break };
            let item = match letter {
                '"' => self.literal()?,
                '[' => self.class()?,
                '.' => {
                    self.next();
                    "/(?s:.)/".to_owned()
                }
                '(' => {
                    self.next();
                    let inner = self.alternatives(depth + 1)?;
                    self.skip(true);
                    if !self.take_if(')') {
                        return self.wrong("a group is not closed by `)`");
                    }
                    format!("({inner})")
                }
                letter if letter.is_ascii_alphanumeric() || letter == '_' || letter == '-' => {
                    let name = self.name();
                    format!("r{}", self.number_of(&name))
                }
                _ => break,
            };
            let times = self.times()?;
            items.push(format!("{item}{times}"));
        }
        Ok(items.join(" "))
    }

    /// `*`, `+`, `?`, `{m}`, `{m,}`, `{m,n}` or nothing.
    fn times(&mut self) -> Result<String, String> {
        self.skip(false);
        match self.rest.peek() {
            Some(&sign @ ('*' | '+' | '?')) => {
                self.next();
                Ok(sign.to_string())
            }
            Some('{') => {
                self.next();
                let mut inner = String::new();
                loop {
                    match self.next() {
                        Some('}') => break,
                        Some(letter) if letter.is_ascii_digit() || letter == ',' => inner.push(letter),
                        Some(' ') => {}
                        _ => return self.wrong("a repetition must be written {m}, {m,} or {m,n}"),
                    }
                }
                let (min, max) = inner.split_once(',').unwrap_or((&inner, &inner));
                if min.parse::<u32>().is_err() || !(max.is_empty() || max.parse::<u32>().is_ok()) {
                    return self.wrong("a repetition must be written {m}, {m,} or {m,n}");
                }
                Ok(format!("{{{min},{max}}}"))
            }
            _ => Ok(String::new()),
        }
    }

    /// A text: its characters one by one, as a group.
    fn literal(&mut self) -> Result<String, String> {
        self.next();
        let mut letters: Vec<String> = Vec::new();
        loop {
            match self.next() {
                None | Some('\n') => return self.wrong("a text is not closed by `\"`"),
                Some('"') => break,
                Some(letter) => {
                    let letter = self.unescaped(letter)?;
                    letters.push(crate::lark::literal(&letter.to_string()));
                }
            }
        }
        Ok(match &letters[..] {
            [] => "\"\"".to_owned(),
            [one] => one.clone(),
            _ => format!("({})", letters.join(" ")),
        })
    }

    /// `[a-z]`, `[^"\\]`
    fn class(&mut self) -> Result<String, String> {
        self.next();
        let mut class = String::from(if self.take_if('^') { "/[^" } else { "/[" });
        let mut empty = true;
        loop {
            match self.next() {
                None | Some('\n') => return self.wrong("a set of characters is not closed by `]`"),
                Some(']') => break,
                Some('-') if !empty && self.rest.peek() != Some(&']') => class.push('-'),
                Some(letter) => {
                    let letter = self.unescaped(letter)?;
                    let _ = write!(class, "\\u{{{:x}}}", letter as u32); // into a string
                    empty = false;
                }
            }
        }
        if empty {
            return self.wrong("a set of characters is empty");
        }
        class.push_str("]/");
        Ok(class)
    }

    /// The character that `letter` is, or begins to spell.
    fn unescaped(&mut self, letter: char) -> Result<char, String> {
        if letter != '\\' {
            return Ok(letter);
        }
        let digits = match self.next() {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some(letter) if letter.is_ascii_punctuation() => return Ok(letter),
            _ => return self.wrong("no escape of GBNF follows on `\\`"),
        };
        let code: String = (0..digits).filter_map(|_| self.next()).collect();
        let letter = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
        letter.map_or_else(|| self.wrong(&format!("{code:?} is no character's number")), Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_lark() {
        let check = |gbnf: &str, lark: &str| assert_eq!(to_lark(gbnf).as_deref(), Ok(lark), "{gbnf}");
        check("root ::= \"a\"", "start: r0\nr0: \"a\"\n");
        check(
            "root ::= \"ab\" x-1?\nx-1 ::= [^a-z\\\"]+ # c\n  ",
            "start: r0\nr0: (\"a\" \"b\") r1?\nr1: /[^\\u{61}-\\u{7a}\\u{22}]+/\n"
                .replace("]+/", "]/+")
                .as_str(),
        );
        check(
            "root ::= (\n \"a\" |\n . ){2, 3} |\n root{4}\n",
            "start: r0\nr0: (\"a\" | /(?s:.)/){2,3} | r0{4,4}\n",
        );
        check("\n# c\nroot ::= |\"\\u00e4\"", "start: r0\nr0: \"\" | \"ä\"\n");
        check("root ::= [a-]", "start: r0\nr0: /[\\u{61}\\u{2d}]/\n");
    }

    #[test]
    fn what_is_no_gbnf_is_refused_by_line() {
        let check = |gbnf: &str, part: &str| {
            let why = to_lark(gbnf).unwrap_err();
            assert!(why.contains(part), "{gbnf:?}: {why}");
        };
        check("x ::= \"a\"", "root");
        check("root ::= x", "\"x\" is used");
        check("root ::= \"a", "not closed");
        check("root ::= [a", "not closed");
        check("root ::= []", "empty");
        check("root ::= (\"a\"", "`)`");
        check("root ::= \"a\"\nroot ::= \"b\"", "line 2: the rule \"root\" is defined twice");
        check("root ::= \"a\" )", "no part");
        check("root ::= \"a\"{x}", "repetition");
        check("root ::= \"\\q\"", "escape");
        check("root ::= \"\\ud800\"", "no character");
        check("::= \"a\"", "NAME ::=");
        check(&format!("root ::= {}\"a\"", "(".repeat(100)), "nested deeper");
    }
}
