//! `POST /tokenize` and `POST /detokenize`.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::Parsed;
use crate::chat::Ending;
use crate::error::{Error, Result};
use crate::fields::{Fields, missing, to_ids};
use crate::message::{Message, take_messages};
use crate::tools::Tools;

#[derive(Debug, Clone, PartialEq)]
pub enum TokenizeInput {
    Text(String),
    Chat { messages: Vec<Message>, ending: Ending, chat_template_kwargs: Map<String, Value>, tools: Tools },
}

#[derive(Debug, Clone, PartialEq)]
pub struct TokenizeRequest {
    pub model: Option<String>,
    pub input: TokenizeInput,
    pub add_special_tokens: bool,
    pub return_token_strs: bool,
}

impl TokenizeRequest {
    pub fn parse(body: &[u8]) -> Result<Parsed<Self>> {
        let mut fields = Fields::root(body)?;
        let model = fields.string("model")?;
        let prompt = fields.string("prompt")?;
        let chat = prompt.is_none();
        if chat {
            crate::unserved::refuse_in_chat(&mut fields)?;
        }
        let input = match prompt {
            Some(_) if fields.take("messages").is_some() => {
                return Err(Error::value(
                    "messages",
                    "`prompt` and `messages` exclude each other. Give one of them.",
                ));
            }
            Some(text) => TokenizeInput::Text(text),
            None => {
                let mut chat_template_kwargs = crate::chat::take_template_kwargs(&mut fields)?;
                crate::chat::take_thinking(&mut fields, &mut chat_template_kwargs)?;
                let messages = take_messages(&mut fields)?;
                TokenizeInput::Chat {
                    ending: Ending::take(&mut fields, &messages)?,
                    messages,
                    chat_template_kwargs,
                    tools: Tools::take(&mut fields)?,
                }
            }
        };
        let request = Self {
            model,
            input,
            add_special_tokens: fields.bool("add_special_tokens")?.unwrap_or(!chat),
            return_token_strs: fields.bool("return_token_strs")?.unwrap_or(false),
        };
        Ok(Parsed { request, ignored: fields.rest() })
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TokenizeAnswer {
    pub tokens: Vec<u32>,
    pub count: usize,
    pub max_model_len: usize,
    #[schema(required)]
    pub token_strs: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct DetokenizeRequest {
    pub model: Option<String>,
    pub tokens: Vec<u32>,
}

impl DetokenizeRequest {
    /// Reads a body for a model whose token ids are below `vocab_size`.
    pub fn parse(body: &[u8], vocab_size: usize) -> Result<Parsed<Self>> {
        let mut fields = Fields::root(body)?;
        let model = fields.string("model")?;
        let Some(list) = fields.list("tokens")? else {
            return Err(missing("tokens", "an array of token ids"));
        };
        let tokens = to_ids("tokens", &list, vocab_size)?;
        Ok(Parsed { request: Self { model, tokens }, ignored: fields.rest() })
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct DetokenizeAnswer {
    pub prompt: String,
}
