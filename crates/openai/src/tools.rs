//! Tools that a model may call, and whether it shall.

use serde_json::{Map, Value};

use crate::error::{Code, Error, Result};
use crate::fields::{Fields, missing, wrong_type};

const TOOLS_MAX: usize = 128;
const NAME_CHARS_MAX: usize = 64;

/// A function that the client can call for the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// Schema of the arguments, an object; `None`: it takes none.
    pub parameters: Option<Value>,
    /// All of the schema is to be enforced.
    pub strict: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolChoice {
    /// Tools are not shown to the model.
    #[default]
    None,
    Auto,
    /// At least one call.
    Required,
    /// Exactly one call, of this one.
    Named(String),
}

/// What a chat request says of tools. `choice` is `None` where the list is empty.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tools {
    pub list: Vec<Tool>,
    pub choice: ToolChoice,
    /// More than one call may come at once.
    pub parallel: bool,
}

impl Tool {
    /// As chat templates see it, and the API writes it.
    pub fn to_value(&self) -> Value {
        let mut function = Map::new();
        function.insert("name".into(), self.name.as_str().into());
        if let Some(description) = &self.description {
            function.insert("description".into(), description.as_str().into());
        }
        let none = || serde_json::json!({"type": "object", "properties": {}});
        function.insert("parameters".into(), self.parameters.clone().unwrap_or_else(none));
        if self.strict {
            function.insert("strict".into(), true.into());
        }
        serde_json::json!({"type": "function", "function": function})
    }
}

impl Tools {
    pub(crate) fn take(fields: &mut Fields) -> Result<Self> {
        let list = fields.list("tools")?.unwrap_or_default();
        check_count(list.len())?;
        let tool = |(i, item)| to_tool(Fields::at(&format!("tools[{i}]"), item)?);
        let list = list.into_iter().enumerate().map(tool).collect::<Result<Vec<_>>>()?;
        let choice = match fields.take("tool_choice") {
            Some(Value::Object(choice)) => Some(to_named(Fields::at("tool_choice", Value::Object(choice))?)?),
            choice => to_choice(choice)?,
        };
        let parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        Self::new(list, choice, parallel)
    }

    /// Checks what list and choice say of each other.
    pub(crate) fn new(list: Vec<Tool>, choice: Option<ToolChoice>, parallel: bool) -> Result<Self> {
        for (i, tool) in list.iter().enumerate() {
            if list[..i].iter().any(|other| other.name == tool.name) {
                let path = format!("tools[{i}]");
                let message =
                    format!("`{path}` is the second tool named {:?}. Give each its own name.", tool.name);
                return Err(Error::value(&path, message));
            }
        }
        let choice = match choice {
            None if list.is_empty() => ToolChoice::None,
            None => ToolChoice::Auto,
            Some(ToolChoice::Auto | ToolChoice::None) if list.is_empty() => ToolChoice::None,
            Some(_) if list.is_empty() => {
                let message = "`tool_choice` asks for a call, but there are no `tools`. Give at least one.";
                return Err(Error::value("tool_choice", message));
            }
            Some(ToolChoice::Named(name)) if list.iter().all(|tool| tool.name != name) => {
                let message =
                    format!("`tool_choice` names {name:?}, which is none of the `tools`. Name one of them.");
                return Err(Error::value("tool_choice", message));
            }
            Some(choice) => choice,
        };
        Ok(Self { parallel: parallel || list.is_empty(), list, choice })
    }
}

pub(crate) fn check_count(n: usize) -> Result<()> {
    if n <= TOOLS_MAX {
        return Ok(());
    }
    Err(Error::value("tools", format!("`tools` has {n} entries; at most {TOOLS_MAX} are allowed.")))
}

fn to_tool(mut tool: Fields) -> Result<Tool> {
    check_type(&mut tool)?;
    let path = tool.path("function");
    let function =
        tool.take("function").ok_or_else(|| missing(&path, "an object with name and parameters"))?;
    to_function(&mut Fields::at(&path, function)?)
}

/// The `type` of a tool or a choice: only functions are known.
pub(crate) fn check_type(fields: &mut Fields) -> Result<()> {
    let path = fields.path("type");
    match fields.string("type")? {
        None => Err(missing(&path, "\"function\"")),
        Some(kind) if kind == "function" => Ok(()),
        Some(kind) => {
            let shown: String = kind.chars().take(32).collect();
            let message = format!("`{path}` is {shown:?}, which is not supported. Use \"function\".");
            Err(Error::at(Code::UnsupportedValue, path, message))
        }
    }
}

/// Name, description, schema: in an object of their own, or flat as /v1/responses has them.
pub(crate) fn to_function(fields: &mut Fields) -> Result<Tool> {
    let path = fields.path("name");
    let name = fields.string("name")?.ok_or_else(|| missing(&path, "a string"))?;
    check_name(&path, &name)?;
    let description = fields.string("description")?;
    let parameters = take_parameters(fields, "parameters")?;
    Ok(Tool { name, description, parameters, strict: fields.bool("strict")?.unwrap_or(false) })
}

/// Names of tools and of schemas: `[A-Za-z0-9_-]{1,64}`.
pub(crate) fn check_name(path: &str, name: &str) -> Result<()> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if plain && (1..=NAME_CHARS_MAX).contains(&name.len()) {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_CHARS_MAX).collect();
    Err(Error::value(
        path,
        format!("`{path}` is {shown:?}; a name has 1 to {NAME_CHARS_MAX} letters, digits, `_` or `-`."),
    ))
}

/// The schema of a function's arguments.
pub(crate) fn take_parameters(fields: &mut Fields, key: &str) -> Result<Option<Value>> {
    let path = fields.path(key);
    let Some(schema) = fields.object(key)? else { return Ok(None) };
    match schema.get("type") {
        None => {}
        Some(Value::String(kind)) if kind == "object" => {}
        Some(_) => {
            let path = format!("{path}.type");
            let message = format!("`{path}` must be \"object\": the arguments of a function are an object.");
            return Err(Error::at(Code::InvalidSchema, path, message));
        }
    }
    // Said outright, so that a schema without it allows objects alone.
    let mut typed = Map::from_iter([("type".to_owned(), Value::from("object"))]);
    typed.extend(schema);
    Ok(Some(Value::Object(typed)))
}

const CHOICES: &str = "\"none\", \"auto\", \"required\" or an object that names a function";

/// A choice in a word.
pub(crate) fn to_choice(value: Option<Value>) -> Result<Option<ToolChoice>> {
    let word = match value {
        None => return Ok(None),
        Some(Value::String(word)) => word,
        Some(other) => return Err(wrong_type("tool_choice", &other, CHOICES)),
    };
    match word.as_str() {
        "none" => Ok(Some(ToolChoice::None)),
        "auto" => Ok(Some(ToolChoice::Auto)),
        "required" => Ok(Some(ToolChoice::Required)),
        _ => {
            let shown: String = word.chars().take(32).collect();
            Err(Error::value("tool_choice", format!("`tool_choice` is {shown:?}; it must be {CHOICES}.")))
        }
    }
}

fn to_named(mut choice: Fields) -> Result<ToolChoice> {
    check_type(&mut choice)?;
    let path = choice.path("function");
    let function =
        choice.take("function").ok_or_else(|| missing(&path, "an object with the function's name"))?;
    let mut function = Fields::at(&path, function)?;
    let path = function.path("name");
    function.string("name")?.map(ToolChoice::Named).ok_or_else(|| missing(&path, "a string"))
}
