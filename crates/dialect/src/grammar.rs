//! What an answer may be, calls and reasoning included, for constrained decoding.

use grammar::Piece;
use serde_json::Value;

use crate::arguments::{Kind, Property, object, properties, resolved};
use crate::{Choice, Dialect, Family, Opening, THINK, THINK_END, Tool};

impl Dialect {
    /// What the whole answer may be; `None` where nothing is enforced. `answer`: what the text beside reasoning and calls
    /// is to be. An error says what of a tool's schema cannot be enforced.
    pub fn grammar(
        &self,
        opening: Opening,
        tools: &[Tool],
        choice: &Choice,
        parallel: bool,
        answer: Option<Piece>,
    ) -> Result<Option<Piece>, String> {
        let named: Vec<&Tool> = match choice {
            Choice::None => Vec::new(),
            Choice::Named(name) => tools.iter().filter(|tool| tool.name == *name).collect(),
            Choice::Auto | Choice::Required => tools.iter().collect(),
        };
        let several = parallel && !matches!(choice, Choice::Named(_));
        if named.is_empty() {
            return Ok(answer.map(|answer| self.after_reasoning(opening, answer)));
        }
        let body = match (choice, answer) {
            (Choice::Auto, None) => {
                let without = self.family.beginnings();
                let calls = self.family.calls(&named, true, several)?;
                Piece::Seq(vec![Piece::Free { without }, repeat(calls, 0, Some(1))])
            }
            (Choice::Auto, Some(answer)) => {
                Piece::OneOf(vec![answer, self.family.calls(&named, true, several)?])
            }
            _ => self.family.calls(&named, false, several)?,
        };
        Ok(Some(self.after_reasoning(opening, body)))
    }

    fn after_reasoning(&self, opening: Opening, body: Piece) -> Piece {
        let thought = || {
            let text = Piece::Free { without: vec![THINK_END.to_owned()] };
            vec![text, Piece::tag(THINK_END), repeat(Piece::text("\n"), 0, Some(2))]
        };
        match opening {
            _ if !self.reasons => body,
            Opening::Thought => body,
            Opening::Thinking => Piece::Seq(thought().into_iter().chain([body]).collect()),
            Opening::Bare => {
                let opened = [Piece::tag(THINK)].into_iter().chain(thought()).chain([body.clone()]).collect();
                Piece::OneOf(vec![body, Piece::Seq(opened)])
            }
        }
    }
}

fn repeat(piece: Piece, min: usize, max: Option<usize>) -> Piece {
    Piece::Repeat { piece: Box::new(piece), min, max }
}

fn perhaps(text: &str) -> Piece {
    repeat(Piece::text(text), 0, Some(1))
}

/// A tag of DeepSeek-V3.2: one token within letters.
fn dsml(before: &str, after: &str) -> [Piece; 3] {
    [Piece::text(before), Piece::tag("｜DSML｜"), Piece::text(after)]
}

impl Family {
    /// What begins a call, and so cannot stand in the text before.
    fn beginnings(self) -> Vec<String> {
        crate::calls::Marks::of(self).beginnings().map(str::to_owned).collect()
    }

    /// One call or several. `lenient`: tools that are not strict are enforced as far as that is possible.
    fn calls(self, tools: &[&Tool], lenient: bool, several: bool) -> Result<Piece, String> {
        let call = |tool: &&Tool| {
            let piece = self.call(tool, lenient && !tool.strict);
            piece.map_err(|why| format!("the schema of the tool {:?} cannot be enforced: {why}", tool.name))
        };
        let call = Piece::OneOf(tools.iter().map(call).collect::<Result<_, _>>()?);
        let (open, between, close) = match self {
            Self::DeepSeekV3 => (
                vec![Piece::tag("<｜tool▁calls▁begin｜>")],
                vec![Piece::text("\n")],
                vec![Piece::tag("<｜tool▁calls▁end｜>")],
            ),
            Self::DeepSeekV31 => {
                (vec![Piece::tag("<｜tool▁calls▁begin｜>")], vec![], vec![Piece::tag("<｜tool▁calls▁end｜>")])
            }
            Self::DeepSeekV32 => {
                (dsml("<", "function_calls>\n").to_vec(), vec![], dsml("</", "function_calls>").to_vec())
            }
            Self::KimiK2 => (
                vec![Piece::tag("<|tool_calls_section_begin|>")],
                vec![],
                vec![Piece::tag("<|tool_calls_section_end|>")],
            ),
            Self::Glm | Self::Hermes => (vec![], vec![perhaps("\n")], vec![]),
        };
        let more = Piece::Seq(between.into_iter().chain([call.clone()]).collect());
        let more = repeat(more, 0, if several { None } else { Some(0) });
        Ok(Piece::Seq(open.into_iter().chain([call, more]).chain(close).collect()))
    }

    fn call(self, tool: &Tool, lenient: bool) -> Result<Piece, String> {
        let name = tool.name.as_str();
        let arguments = || Piece::Json { schema: object(tool), lenient };
        Ok(Piece::Seq(match self {
            Self::DeepSeekV3 => vec![
                Piece::tag("<｜tool▁call▁begin｜>"),
                Piece::text("function"),
                Piece::tag("<｜tool▁sep｜>"),
                Piece::text(format!("{name}\n```json\n")),
                arguments(),
                Piece::text("\n```"),
                Piece::tag("<｜tool▁call▁end｜>"),
            ],
            Self::DeepSeekV31 => vec![
                Piece::tag("<｜tool▁call▁begin｜>"),
                Piece::text(name),
                Piece::tag("<｜tool▁sep｜>"),
                arguments(),
                Piece::tag("<｜tool▁call▁end｜>"),
            ],
            Self::KimiK2 => vec![
                Piece::tag("<|tool_call_begin|>"),
                Piece::text(format!("functions.{name}:")),
                Piece::Regex("0|[1-9][0-9]{0,2}".to_owned()),
                Piece::tag("<|tool_call_argument_begin|>"),
                arguments(),
                Piece::tag("<|tool_call_end|>"),
            ],
            Self::Hermes => vec![
                Piece::tag("<tool_call>"),
                Piece::text(format!("\n{{\"name\": \"{name}\", \"arguments\": ")),
                arguments(),
                Piece::text("}\n"),
                Piece::tag("</tool_call>"),
            ],
            Self::Glm => {
                let mut call = vec![Piece::tag("<tool_call>"), Piece::text(name), perhaps("\n")];
                call.extend(self.tagged(tool, lenient)?);
                call.push(Piece::tag("</tool_call>"));
                call
            }
            Self::DeepSeekV32 => {
                let mut call = dsml("<", &format!("invoke name=\"{name}\">\n")).to_vec();
                call.extend(self.tagged(tool, lenient)?);
                call.extend(dsml("</", "invoke>\n"));
                call
            }
        }))
    }

    /// The arguments, one a property, in the schema's order.
    fn tagged(self, tool: &Tool, lenient: bool) -> Result<Vec<Piece>, String> {
        let properties = match properties(tool) {
            Ok(properties) => properties,
            Err(_) if lenient => return Ok(vec![repeat(self.any_argument(), 0, None)]),
            Err(why) => return Err(why),
        };
        let piece = |property: &Property| {
            let piece = self.argument(property, lenient)?;
            Ok(if property.required { piece } else { repeat(piece, 0, Some(1)) })
        };
        properties.iter().map(piece).collect()
    }

    fn argument(self, property: &Property, lenient: bool) -> Result<Piece, String> {
        let name = property.name.as_str();
        let is_text = property.kind == Kind::Text;
        let value = if is_text {
            text_value(&property.schema, lenient)
                .map_err(|why| format!("{why} of {name:?} is not supported here"))?
        } else {
            Piece::Json { schema: property.schema.clone(), lenient }
        };
        Ok(self.written(Piece::text(name), value, is_text))
    }

    /// Of a schema that cannot be taken apart.
    fn any_argument(self) -> Piece {
        let name = Piece::Regex(if self == Self::Glm { "[^<]{1,64}" } else { "[^\"]{1,64}" }.to_owned());
        self.written(name, Piece::Free { without: Vec::new() }, true)
    }

    fn written(self, name: Piece, value: Piece, is_text: bool) -> Piece {
        // Text ends where the tag behind it begins.
        let value = match value {
            Piece::Free { .. } if self == Self::Glm => {
                Piece::Free { without: vec!["</arg_value>".to_owned()] }
            }
            Piece::Free { .. } => Piece::Free { without: vec!["</｜DSML｜parameter>".to_owned()] },
            value => value,
        };
        Piece::Seq(if self == Self::Glm {
            vec![
                Piece::tag("<arg_key>"),
                name,
                Piece::tag("</arg_key>"),
                perhaps("\n"),
                Piece::tag("<arg_value>"),
                value,
                Piece::tag("</arg_value>"),
                perhaps("\n"),
            ]
        } else {
            let begin = dsml("<", "parameter name=\"").into_iter().chain([name]);
            let begin = begin.chain([Piece::text(format!("\" string=\"{is_text}\">")), value]);
            begin.chain(dsml("</", "parameter>\n")).collect()
        })
    }
}

/// A string that is written without quotes.
fn text_value(schema: &Value, lenient: bool) -> Result<Piece, &'static str> {
    let none = serde_json::Map::new();
    let Some(schema) = resolved(schema, schema.as_object().unwrap_or(&none)) else { return Err("`$ref`") };
    let text = |value: &Value| value.as_str().map(Piece::text);
    if let Some(Value::Array(values)) = schema.get("enum") {
        return Ok(Piece::OneOf(values.iter().filter_map(text).collect()));
    }
    if let Some(piece) = schema.get("const").and_then(text) {
        return Ok(piece);
    }
    const OTHERS: [&str; 5] = ["pattern", "format", "anyOf", "allOf", "oneOf"];
    let other = OTHERS.into_iter().find(|keyword| schema.get(*keyword).is_some());
    if other.is_some() && !lenient {
        return Err("`pattern`, `format` or a combination");
    }
    let count = |name: &str| schema.get(name).and_then(Value::as_u64);
    Ok(match (count("minLength"), count("maxLength")) {
        (None | Some(0), None) => Piece::Free { without: Vec::new() },
        // No `<`, so that no tag can be in it.
        (min, None) => Piece::Regex(format!("[^<]{{{},}}", min.unwrap_or(0))),
        (min, Some(max)) => Piece::Regex(format!("[^<]{{{},{max}}}", min.unwrap_or(0))),
    })
}
