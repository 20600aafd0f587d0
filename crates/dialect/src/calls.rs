//! The marks that stand around calls, family by family.

use crate::Family;

/// How a call's name and arguments are written between its marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `TYPE sep NAME fence ARGS fence`
    Fenced,
    /// `NAME sep ARGS`
    Named,
    /// `functions.NAME:INDEX sep ARGS`
    Indexed,
    /// `{"name": NAME, "arguments": ARGS}`
    Object,
    /// `NAME <arg_key>K</arg_key> <arg_value>V</arg_value> …`
    Keyed,
    /// `name="NAME"> <parameter name="K" string="true">V</parameter> …`
    Attributed,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Marks {
    /// Around all calls, if there are such.
    pub(crate) section: Option<(&'static str, &'static str)>,
    /// Around one.
    pub(crate) call: (&'static str, &'static str),
    /// Between name and arguments.
    pub(crate) sep: &'static str,
    pub(crate) shape: Shape,
}

impl Marks {
    pub(crate) fn of(family: Family) -> Self {
        let deepseek = Some(("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"));
        let deepseek_call = ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>");
        match family {
            Family::DeepSeekV3 => {
                Self {
                    section: deepseek, call: deepseek_call, sep: "<｜tool▁sep｜>", shape: Shape::Fenced
                }
            }
            Family::DeepSeekV31 => {
                Self {
                    section: deepseek, call: deepseek_call, sep: "<｜tool▁sep｜>", shape: Shape::Named
                }
            }
            Family::DeepSeekV32 => Self {
                section: Some(("<｜DSML｜function_calls>", "</｜DSML｜function_calls>")),
                call: ("<｜DSML｜invoke", "</｜DSML｜invoke>"),
                sep: ">",
                shape: Shape::Attributed,
            },
            Family::KimiK2 => Self {
                section: Some(("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")),
                call: ("<|tool_call_begin|>", "<|tool_call_end|>"),
                sep: "<|tool_call_argument_begin|>",
                shape: Shape::Indexed,
            },
            Family::Glm => Self {
                section: None,
                call: ("<tool_call>", "</tool_call>"),
                sep: "<arg_key>",
                shape: Shape::Keyed,
            },
            Family::Hermes => {
                Self { section: None, call: ("<tool_call>", "</tool_call>"), sep: "", shape: Shape::Object }
            }
        }
    }

    /// What begins a call in the midst of text: the section, or a call without one.
    pub(crate) fn beginnings(&self) -> impl Iterator<Item = &'static str> {
        self.section.map(|(begin, _)| begin).into_iter().chain([self.call.0])
    }
}
