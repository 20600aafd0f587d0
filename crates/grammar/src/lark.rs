//! Pieces as grammars in llguidance's notation: a Lark text for what stands between the leaves, and one named grammar for
//! each leaf.

use std::fmt::Write as _;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};

use crate::schema::prepare;
use crate::{Limits, Piece, Refused, gbnf};

/// The control token that is written like this, if the tokenizer has one.
pub(crate) type TagIds<'a> = &'a dyn Fn(&str) -> Option<u32>;

/// The whole grammar of a piece.
pub(crate) fn grammar(piece: &Piece, tags: TagIds, limits: &Limits) -> Result<TopLevelGrammar, Refused> {
    let mut writer = Writer { tags, limits, lark: String::new(), leaves: Vec::new(), n_rules: 0 };
    if let Some(leaf) = writer.leaf(piece)? {
        return Ok(TopLevelGrammar::from_grammar(leaf));
    }
    let start = writer.expression(piece)?;
    let lark = format!("start: {start}\n{}", writer.lark);
    let mut grammars = vec![GrammarWithLexer::from_lark(lark)];
    grammars.append(&mut writer.leaves);
    Ok(TopLevelGrammar { grammars, max_tokens: None })
}

struct Writer<'a> {
    tags: TagIds<'a>,
    limits: &'a Limits,
    /// Rules so far.
    lark: String,
    leaves: Vec<GrammarWithLexer>,
    n_rules: usize,
}

impl Writer<'_> {
    fn leaf(&self, piece: &Piece) -> Result<Option<GrammarWithLexer>, Refused> {
        Ok(Some(match piece {
            Piece::Json { schema, lenient } => {
                self.check_len("schema", schema.to_string().len())?;
                GrammarWithLexer::from_json_schema(prepare(schema, *lenient, self.limits)?)
            }
            Piece::Regex(source) => {
                self.check_len("expression", source.len())?;
                GrammarWithLexer::from_regex(source)
            }
            Piece::Lark(source) => {
                self.check_len("grammar", source.len())?;
                let lark = if gbnf::is_gbnf(source) {
                    gbnf::to_lark(source).map_err(Refused::Grammar)?
                } else {
                    source.clone()
                };
                GrammarWithLexer::from_lark(lark)
            }
            _ => return Ok(None),
        }))
    }

    fn check_len(&self, what: &str, len: usize) -> Result<(), Refused> {
        let most = self.limits.source_bytes_max;
        if len <= most {
            return Ok(());
        }
        Err(Refused::Grammar(format!("the {what} has {len} bytes; at most {most} are compiled")))
    }

    /// The piece as one expression, which may name rules.
    fn expression(&mut self, piece: &Piece) -> Result<String, Refused> {
        if let Some(mut leaf) = self.leaf(piece)? {
            let name = format!("leaf{}", self.leaves.len());
            leaf.name = Some(name.clone());
            self.leaves.push(leaf);
            return Ok(format!("@{name}"));
        }
        Ok(match piece {
            Piece::Text(text) => literal(text),
            Piece::Tag(text) => self.tag(text),
            Piece::Free { without } => self.free(without),
            Piece::Seq(pieces) => self.sequence(pieces)?,
            Piece::OneOf(pieces) => self.one_of(pieces)?,
            Piece::Repeat { max: Some(0), .. } => literal(""),
            Piece::Repeat { piece, min, max } => {
                let inner = self.expression(piece)?;
                let rule = self.rule(&inner);
                format!("{rule}{{{min},{}}}", max.map_or_else(String::new, |max| max.to_string()))
            }
            Piece::Json { .. } | Piece::Regex(_) | Piece::Lark(_) => unreachable!("they are leaves"),
        })
    }

    /// Gives an expression a name.
    fn rule(&mut self, expression: &str) -> String {
        let name = format!("r{}", self.n_rules);
        self.n_rules += 1;
        let _ = writeln!(self.lark, "{name}: {expression}"); // into a string
        name
    }

    fn tag(&self, text: &str) -> String {
        (self.tags)(text).map_or_else(|| literal(text), |id| format!("<[{id}]>"))
    }

    /// Text up to where something else begins that no text of it holds: as long as it can be.
    fn free(&mut self, without: &[String]) -> String {
        self.free_ending_in(without, "")
    }

    fn free_ending_in(&mut self, without: &[String], letters: &str) -> String {
        let name = format!("FREE{}", self.n_rules);
        self.n_rules += 1;
        let mut body = format!("/(?s:.*){}/", escaped(letters));
        for tag in without {
            let _ = write!(body, " & ~/(?s:.*){}(?s:.*)/", escaped(tag));
        }
        let _ = writeln!(self.lark, "{name}: {body}");
        name
    }

    /// Text up to and with a tag that is spelled by letters: as short as it can be, so the tag is in it once.
    fn free_up_to(&mut self, tag: &str) -> String {
        let name = format!("r{}", self.n_rules);
        self.n_rules += 1;
        let _ = writeln!(self.lark, "{name}[lazy]: /(?s:.*){}/", escaped(tag));
        name
    }

    fn one_of(&mut self, pieces: &[Piece]) -> Result<String, Refused> {
        let texts: Option<Vec<&str>> = pieces
            .iter()
            .map(|piece| if let Piece::Text(text) = piece { Some(text.as_str()) } else { None })
            .collect();
        if let Some(texts) = texts {
            // One terminal: hundreds of them would be tried one by one.
            let name = format!("TEXT{}", self.n_rules);
            self.n_rules += 1;
            let texts: Vec<String> = texts.into_iter().map(literal).collect();
            let _ = writeln!(self.lark, "{name}: {}", texts.join(" | "));
            return Ok(name);
        }
        let expressions = pieces.iter().map(|piece| self.expression(piece)).collect::<Result<Vec<_>, _>>()?;
        let alternatives = expressions.join(" | ");
        Ok(self.rule(&alternatives))
    }

    fn sequence(&mut self, pieces: &[Piece]) -> Result<String, Refused> {
        let mut parts = Vec::with_capacity(pieces.len());
        for (at, piece) in pieces.iter().enumerate() {
            if let Piece::Free { without } = piece {
                parts.push(self.free_then(without, &pieces[at + 1..])?);
                break;
            }
            parts.push(self.expression(piece)?);
        }
        if parts.is_empty() {
            parts.push("\"\"".to_owned());
        }
        let sequence = parts.join(" ");
        Ok(self.rule(&sequence))
    }

    /// Free text and what follows on it, where that begins with letters or a control token.
    fn free_then_letters(&mut self, without: &[String], rest: &[Piece]) -> Result<String, Refused> {
        let (mut letters, mut n) = (String::new(), 0);
        while let Some(Piece::Text(text) | Piece::Tag(text)) = rest.get(n)
            && !(matches!(rest[n], Piece::Tag(_)) && (self.tags)(text).is_some())
        {
            letters.push_str(text);
            n += 1;
        }
        let control = matches!(rest.get(n), Some(Piece::Tag(_)));
        let text = match (letters.as_str(), control) {
            ("", _) => self.free(without),
            // The token behind them tells that they were the last letters.
            (letters, true) => self.free_ending_in(without, letters),
            (letters, false) => self.free_up_to(letters),
        };
        let others = self.sequence(&rest[n..])?;
        Ok(format!("{text} {others}"))
    }

    /// Free text and what follows on it. A tag that is spelled by letters and ends the text is one with it, as only a
    /// lexer that takes the shortest text finds it.
    fn free_then(&mut self, without: &[String], rest: &[Piece]) -> Result<String, Refused> {
        let Some((first, others)) = rest.split_first() else { return Ok(self.free(without)) };
        match first {
            Piece::Text(_) | Piece::Tag(_) => self.free_then_letters(without, rest),
            Piece::Seq(inner) => {
                let rest: Vec<Piece> = inner.iter().chain(others).cloned().collect();
                self.free_then(without, &rest)
            }
            Piece::OneOf(options) => {
                let each = |option: &Piece| -> Vec<Piece> {
                    std::iter::once(option).chain(others).cloned().collect()
                };
                let ways = options.iter().map(|option| self.free_then(without, &each(option)));
                let ways = ways.collect::<Result<Vec<_>, _>>()?;
                Ok(self.rule(&ways.join(" | ")))
            }
            Piece::Repeat { piece, min, max } => {
                let mut ways = Vec::new();
                if *min == 0 {
                    ways.push(self.free_then(without, others)?);
                }
                if *max != Some(0) {
                    let again = Piece::Repeat {
                        piece: piece.clone(),
                        min: min.saturating_sub(1),
                        max: max.map(|max| max - 1),
                    };
                    let rest: Vec<Piece> =
                        [(**piece).clone(), again].into_iter().chain(others.iter().cloned()).collect();
                    ways.push(self.free_then(without, &rest)?);
                }
                Ok(self.rule(&ways.join(" | ")))
            }
            _ => {
                let text = self.free(without);
                let rest = self.sequence(rest)?;
                Ok(format!("{text} {rest}"))
            }
        }
    }
}

/// A text as Lark writes one.
pub(crate) fn literal(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    json.replace("\\\\", "\\u005c")
}

/// A text within an expression between slashes.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for letter in text.chars() {
        match letter {
            '\n' => escaped.push_str("\\n"),
            letter if "\\/.+*?()|[]{}^$&~".contains(letter) => {
                escaped.push('\\');
                escaped.push(letter);
            }
            letter => escaped.push(letter),
        }
    }
    escaped
}
