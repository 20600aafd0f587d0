use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as Jinja};
use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value};

use crate::tokenizer::{read_config, special_tokens};
use crate::{SpecialTokens, TextError, python_json};

/// Steps of a rendering; the longest conversations take some hundred thousand.
const FUEL: u64 = 20_000_000;
/// Bytes of rendered text.
const RENDERED_MAX: usize = 32 << 20;

/// A checkpoint's chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: SpecialTokens,
    /// All of them together: a place to look for letters that are taken.
    pub(crate) source: String,
}

/// A conversation to render.
#[derive(Debug, Clone, Copy)]
pub struct ChatInput<'a> {
    /// Objects with `role`, `content` and what else the template reads.
    pub messages: &'a [Value],
    /// Shown to the template whole.
    pub tools: Option<&'a [Value]>,
    /// Whether the text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Whether the text ends where the last message's does, for the model to go on with it.
    pub continue_final_message: bool,
    /// Further template variables.
    pub kwargs: &'a Map<String, Value>,
}

/// A conversation as the model is to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The whole text.
    pub text: String,
}

/// Variables the server provides.
const RESERVED: [&str; 3] = ["messages", "tools", "add_generation_prompt"];
/// Names of the templates within the environment.
const DEFAULT: &str = "default";
const WITH_TOOLS: &str = "tool_use";

impl ChatTemplate {
    /// From the template's own text, as in `chat_template.jinja`.
    pub fn new(source: &str, special_tokens: &SpecialTokens) -> Result<Self, TextError> {
        Self::from_named(&[(DEFAULT.to_owned(), source.to_owned())], special_tokens)
    }

    /// From the `chat_template` of tokenizer_config.json: a text, or a list of `{name, template}`, of which `default`
    /// is used, and `tool_use` when there are tools. `None` if the checkpoint has no template.
    pub fn from_config(tokenizer_config_json: &[u8]) -> Result<Option<Self>, TextError> {
        let config = read_config(Some(tokenizer_config_json))?;
        let special_tokens = special_tokens(&config);
        let named = match config.get("chat_template") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(source)) => return Self::new(source, &special_tokens).map(Some),
            Some(Value::Array(list)) => list.iter().map(named_template).collect::<Option<Vec<_>>>(),
            Some(_) => None,
        };
        let named = named.filter(|list| list.iter().any(|(name, _)| name == DEFAULT)).ok_or_else(|| {
            let why = "`chat_template` must be a string, or a list of {\"name\", \"template\"} with one named \
                       `default`.";
            TextError::Config(why.to_owned())
        })?;
        Self::from_named(&named, &special_tokens).map(Some)
    }

    /// The template's own text, all of it.
    pub fn source(&self) -> &str {
        &self.source
    }

    fn from_named(named: &[(String, String)], special_tokens: &SpecialTokens) -> Result<Self, TextError> {
        let mut environment = environment();
        for (name, source) in named {
            environment
                .add_template_owned(name.clone(), source.clone())
                .map_err(|error| TextError::Template(describe(&error)))?;
        }
        let source = named.iter().map(|(_, source)| source.as_str()).collect();
        Ok(Self { environment, special_tokens: special_tokens.clone(), source })
    }

    /// The text that the model would read.
    pub fn render(&self, input: &ChatInput) -> Result<Rendered, TextError> {
        let name = if input.tools.is_some() && self.environment.get_template(WITH_TOOLS).is_ok() {
            WITH_TOOLS
        } else {
            DEFAULT
        };
        let template =
            self.environment.get_template(name).map_err(|error| TextError::Template(describe(&error)))?;
        let mut output = Bounded::default();
        let result = template.render_captured_to(self.variables(input)?, &mut output);
        if output.overflowed {
            return Err(TextError::TooLong { limit: RENDERED_MAX });
        }
        result.map_err(|error| render_error(&error))?;
        let text = String::from_utf8(output.bytes).map_err(|error| TextError::Render(error.to_string()))?;
        Ok(Rendered { text })
    }

    fn variables(&self, input: &ChatInput) -> Result<Jinja, TextError> {
        let is_ours = |key: &str| RESERVED.contains(&key) || self.special_tokens.contains_key(key);
        if let Some(key) = input.kwargs.keys().find(|key| is_ours(key)) {
            return Err(TextError::Reserved(key.clone()));
        }
        let ours = [
            ("messages", Jinja::from(Serde(input.messages))),
            ("tools", Jinja::from(Serde(input.tools))),
            ("add_generation_prompt", input.add_generation_prompt.into()),
        ];
        let ours = ours.into_iter().map(|(name, value)| (name.to_owned(), value));
        let tokens =
            self.special_tokens.iter().map(|(name, text)| (name.clone(), Jinja::from(text.as_str())));
        let extra = input.kwargs.iter().map(|(name, value)| (name.clone(), Jinja::from(Serde(value))));
        Ok(Jinja::from_pairs(ours.chain(tokens).chain(extra)))
    }
}

fn named_template(entry: &Value) -> Option<(String, String)> {
    let text = |key| entry.get(key)?.as_str().map(str::to_owned);
    Some((text("name")?, text("template")?))
}

/// Jinja as the templates' authors had it: transformers' settings, Python's methods.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("Jinja's own delimiters"));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", python_json::tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment
}

/// The words of `raise_exception`, kept apart from what minijinja adds to them.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(words: String) -> Result<Jinja, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(words)))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    use std::fmt::Write;
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now: `{format}` is no format of dates"))
    })?;
    Ok(text)
}

fn render_error(error: &Error) -> TextError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TextError::TooManySteps;
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(Raised(words)) = cause.downcast_ref() {
            return TextError::Raised(words.clone());
        }
        source = cause.source();
    }
    TextError::Render(describe(error))
}

fn describe(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    error.line().map_or(what.clone(), |line| format!("{what} (line {line})"))
}

/// Takes text up to a size.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    overflowed: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > RENDERED_MAX {
            self.overflowed = true;
            return Err(io::Error::other("too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
