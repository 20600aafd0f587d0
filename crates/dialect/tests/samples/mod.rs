//! Texts as the families write them, and what is in them.

#![allow(dead_code)] // each test takes what it needs

use dialect::{Dialect, Family, Opening, Parser, Part, Tool};
use serde_json::{Value, json};

pub(crate) fn dialect(family: Family) -> Dialect {
    Dialect { family, reasons: true, shows_tools: true }
}

pub(crate) fn tools() -> Vec<Tool> {
    let weather = json!({"type": "object", "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "unit": {"$ref": "#/$defs/unit"},
    }, "required": ["city"], "additionalProperties": false, "$defs": {"unit": {"type": "string", "enum": ["C", "F"]}}});
    let tool = |name: &str, parameters| Tool { name: name.to_owned(), parameters, strict: true };
    vec![tool("weather", Some(weather)), tool("now", None)]
}

/// What was told, pieces of one kind put together.
pub(crate) fn joined(parts: Vec<Part>) -> Vec<Part> {
    let mut all: Vec<Part> = Vec::new();
    for part in parts {
        match (all.last_mut(), &part) {
            (Some(Part::Reasoning(last)), Part::Reasoning(text))
            | (Some(Part::Content(last)), Part::Content(text))
            | (Some(Part::Arguments(last)), Part::Arguments(text)) => last.push_str(text),
            _ => all.push(part),
        }
    }
    all
}

pub(crate) fn parse(family: Family, opening: Opening, pieces: &[&str]) -> Vec<Part> {
    let mut parser = Parser::new(dialect(family), opening, tools(), true);
    let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    parts.extend(parser.finish());
    joined(parts)
}

pub(crate) struct Sample {
    pub(crate) family: Family,
    pub(crate) opening: Opening,
    pub(crate) text: &'static str,
    /// `r:` reasoning, `c:` content, `call:NAME ID`, `a:` arguments.
    pub(crate) parts: &'static [&'static str],
    /// What a grammar with these tools allows.
    pub(crate) regular: bool,
}

pub(crate) fn shown(part: &Part) -> String {
    match part {
        Part::Reasoning(text) => format!("r:{text}"),
        Part::Content(text) => format!("c:{text}"),
        Part::Call { name, id: Some(id) } => format!("call:{name} {id}"),
        Part::Call { name, id: None } => format!("call:{name}"),
        Part::Arguments(text) => format!("a:{text}"),
    }
}

const fn good(
    family: Family,
    opening: Opening,
    text: &'static str,
    parts: &'static [&'static str],
) -> Sample {
    Sample { family, opening, text, parts, regular: true }
}

const fn odd(family: Family, text: &'static str, parts: &'static [&'static str]) -> Sample {
    Sample { family, opening: Opening::Thought, text, parts, regular: false }
}

use Family::{DeepSeekV3, DeepSeekV31, DeepSeekV32, Glm, Hermes, KimiK2};
use Opening::{Bare, Thinking, Thought};

pub(crate) const SAMPLES: &[Sample] = &[
    good(Hermes, Bare, "plain text\n", &["c:plain text\n"]),
    good(Hermes, Bare, "", &[]),
    good(Hermes, Bare, "<think>why\n</think>\nso", &["r:why", "c:so"]),
    good(Hermes, Thinking, "why </thi\n\n</think>\n\nso\n", &["r:why </thi\n", "c:so\n"]),
    good(Hermes, Thinking, "</think>so", &["c:so"]),
    odd(Hermes, "<think>x</think>y", &["c:<think>x</think>y"]),
    Sample {
        family: Hermes,
        opening: Bare,
        text: " \n<think>\n\nx</think>\n\n\ny",
        parts: &["r:\nx", "c:\ny"],
        regular: false,
    },
    Sample {
        family: Hermes,
        opening: Thinking,
        text: "never closed </think",
        parts: &["r:never closed </think"],
        regular: false,
    },
    // DeepSeek V3 and R1
    good(
        DeepSeekV3,
        Thinking,
        "hm</think>\n\nI look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Köln\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        &["r:hm", "c:I look.", "call:weather", "a:{\"city\": \"Köln\"}", "call:now", "a:{}"],
    ),
    odd(
        DeepSeekV3,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>nobody\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        &[
            "c:<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>nobody\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ],
    ),
    odd(
        DeepSeekV3,
        "x\n<｜tool▁calls▁begin｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n[1]\n```",
        &["c:x\n<｜tool▁calls▁begin｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n[1]\n```"],
    ),
    odd(DeepSeekV3, "<｜tool▁calls▁begin｜> oh no", &["c:<｜tool▁calls▁begin｜> oh no"]),
    odd(
        DeepSeekV3,
        "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>",
        &["c:<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>"],
    ),
    odd(
        DeepSeekV3,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{\"a\": \"}\\\"\", ",
        &["call:now", "a:{\"a\": \"}\\\"\", "],
    ),
    odd(
        DeepSeekV3,
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜> and more",
        &["call:now", "a:{}", "c:and more"],
    ),
    // V3.1
    good(
        DeepSeekV31,
        Thought,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"a<｜tool▁call\", \"days\": 3}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        &["call:weather", "a:{\"city\": \"a<｜tool▁call\", \"days\": 3}", "call:now", "a:{}"],
    ),
    odd(
        DeepSeekV31,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜> <｜tool▁calls▁end｜>\n bye",
        &["call:now", "a:{}", "c:bye"],
    ),
    // Kimi
    good(
        KimiK2,
        Bare,
        "ok<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{\"city\":\"x\"}<|tool_call_end|><|tool_call_begin|>functions.now:12<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        &[
            "c:ok",
            "call:weather functions.weather:0",
            "a:{\"city\":\"x\"}",
            "call:now functions.now:12",
            "a:{}",
        ],
    ),
    odd(
        KimiK2,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.no:0<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>.",
        &[
            "c:<|tool_calls_section_begin|><|tool_call_begin|>functions.no:0<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>.",
        ],
    ),
    // GLM
    good(
        Glm,
        Thought,
        "Well.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>\"x\"\n< y</arg_value>\n<arg_key>days</arg_key>\n<arg_value>7</arg_value>\n<arg_key>tags</arg_key>\n<arg_value>[\"a\"]</arg_value>\n<arg_key>unit</arg_key>\n<arg_value>C</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
        &[
            "c:Well.",
            "call:weather",
            "a:{\"city\": \"\\\"x\\\"\\n< y\", \"days\": 7, \"tags\": [\"a\"], \"unit\": \"C\"}",
            "call:now",
            "a:{}",
        ],
    ),
    good(
        Glm,
        Bare,
        "<think>so</think><tool_call>weather<arg_key>city</arg_key><arg_value>ä</arg_value></tool_call>",
        &["r:so", "call:weather", "a:{\"city\": \"ä\"}"],
    ),
    odd(
        Glm,
        "<tool_call>weather<arg_key>days</arg_key><arg_value>many</arg_value><arg_key>x</arg_key><arg_value> {\"a\":1} </arg_value></tool_call> ",
        &["call:weather", "a:{\"days\": \"many\", \"x\": {\"a\":1}}"],
    ),
    odd(
        Glm,
        "<tool_call>weather<arg_key>city</arg_key><arg_value>a</arg_val",
        &["call:weather", "a:{\"city\": \"a</arg_val"],
    ),
    odd(
        Glm,
        "<tool_call>weather<arg_key>city</arg_key>oops</tool_call>",
        &["call:weather", "a:{", "c:oops</tool_call>"],
    ),
    odd(
        Glm,
        "a <tool_call>what\n</tool_call> <tool_call>now</tool_call>",
        &["c:a <tool_call>what\n</tool_call>", "call:now", "a:{}"],
    ),
    odd(Glm, "<tool_call>no", &["c:<tool_call>no"]),
    // V3.2
    good(
        DeepSeekV32,
        Thought,
        "Let me see.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"city\" string=\"true\">a < b \"c\"</｜DSML｜parameter>\n<｜DSML｜parameter name=\"days\" string=\"false\">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        &[
            "c:Let me see.",
            "call:weather",
            "a:{\"city\": \"a < b \\\"c\\\"\", \"days\": 3}",
            "call:now",
            "a:{}",
        ],
    ),
    odd(
        DeepSeekV32,
        "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"days\">12</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>!",
        &["call:weather", "a:{\"days\": 12}", "c:!"],
    ),
    odd(
        DeepSeekV32,
        "<｜DSML｜function_calls>\n<｜DSML｜invoke nam=\"now\">",
        &["c:<｜DSML｜function_calls>\n<｜DSML｜invoke nam=\"now\">"],
    ),
    // Hermes
    odd(
        Hermes,
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"</tool_call>\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
        &["call:weather", "a:{\"city\": \"</tool_call>\"}", "call:now", "a:{}"],
    ),
    odd(
        Hermes,
        "<tool_call>{ \"name\" :\"now\",\"arguments\":{\"x\":[{}]} , \"id\": \"}\"}</tool_call>",
        &["call:now", "a:{\"x\":[{}]}"],
    ),
    odd(
        Hermes,
        "<tool_call>{\"arguments\": {\"x\": 1}, \"name\": \"now\"}</tool_call>\n",
        &["call:now", "a:{\"x\":1}"],
    ),
    odd(
        Hermes,
        "<tool_call>{\"name\": \"now\", \"arguments\": \"{\\\"x\\\": 2}\"}</tool_call>",
        &["call:now", "a:{\"x\": 2}"],
    ),
    odd(Hermes, "<tool_call>{\"name\": \"now\"}</tool_call>", &["call:now", "a:{}"]),
    odd(Hermes, "<tool_call>now()</tool_call> hm", &["c:<tool_call>now()</tool_call> hm"]),
    odd(
        Hermes,
        "<tool_call>{\"name\": \"now\", \"arguments\": [1]}</tool_call>",
        &["c:<tool_call>{\"name\": \"now\", \"arguments\": [1]}</tool_call>"],
    ),
    odd(
        Hermes,
        "<tool_call>{\"a\": <tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>",
        &["c:<tool_call>{\"a\":", "call:now", "a:{}"],
    ),
    odd(Hermes, "a <tool_ b <tool_call", &["c:a <tool_ b <tool_call"]),
];

pub(crate) fn arguments_are_objects(parts: &[Part]) -> bool {
    parts.iter().all(|part| match part {
        Part::Arguments(text) => serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object()),
        _ => true,
    })
}
