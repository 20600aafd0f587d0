//! Text to ids and back: for prompts, and as `POST /tokenize` and `POST /detokenize`.

use axum::Json;
use axum::extract::{Request, State};
use dialect::Dialect;
use openai::{
    Code, DetokenizeAnswer, DetokenizeRequest, Ending, Error, Message, TokenizeAnswer, TokenizeInput,
    TokenizeRequest, Tool, ToolChoice, Tools,
};
use serde_json::{Map, Value};
use text::{ChatInput, EncodedChat, TextError};

use crate::app::{App, ServedModel};
use crate::body;
use crate::errors::{ApiError, internal};

/// Bodies of more bytes are encoded off the threads that serve others.
const LONG_BODY: usize = 32 << 10;

/// Of the context, beyond which `/tokenize` refuses a text: some four contexts of plain text. What is read for
/// an answer has the context itself as its bound.
const BYTES_A_TOKEN_MAX: usize = 16;
/// It takes as much whatever the context: about a second's work.
const TEXT_BYTES: usize = 1 << 20;

/// Runs `work` here if the body was short, else on a thread that may take its time.
pub(crate) async fn off_thread<T: Send + 'static>(
    body_len: usize,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    if body_len <= LONG_BODY {
        return work();
    }
    let span = tracing::Span::current();
    let work = tokio::task::spawn_blocking(move || span.in_scope(work));
    work.await.unwrap_or_else(|error| Err(internal(&error.to_string())))
}

/// Ids of plain text.
pub(crate) fn encode_text(
    model: &ServedModel,
    text: &str,
    add_special_tokens: bool,
) -> Result<Vec<u32>, Error> {
    model.tokenizer.encode(text, add_special_tokens).map_err(|error| internal(&error.to_string()))
}

/// Ids of a conversation, as the checkpoint's template writes it. One that is surely longer than `tokens_max` is
/// refused at little cost.
pub(crate) fn encode_chat(
    model: &ServedModel,
    dialect: Dialect,
    messages: &[Message],
    tools: &Tools,
    ending: Ending,
    kwargs: &Map<String, Value>,
    tokens_max: usize,
) -> Result<EncodedChat, Error> {
    let template = model.chat_template.as_ref().ok_or_else(no_template)?;
    let messages: Result<Vec<Value>, _> = messages.iter().map(serde_json::to_value).collect();
    let mut messages = messages.map_err(|error| internal(&error.to_string()))?;
    let shown: Vec<Value> = tools.list.iter().map(Tool::to_value).collect();
    let mut tools = (tools.choice != ToolChoice::None).then_some(shown.as_slice());
    if !dialect.shows_tools {
        dialect::teach(&mut messages, tools.take().unwrap_or_default());
    }
    let input = ChatInput {
        messages: &messages,
        tools,
        add_generation_prompt: ending == Ending::GenerationPrompt,
        continue_final_message: ending == Ending::Open,
        kwargs,
    };
    let encoded = text::encode_chat_within(&model.tokenizer, template, &input, tokens_max);
    encoded.map_err(|error| match error {
        TextError::TooManyTokens { at_least } => {
            Error::prompt_length("messages", model.context_len, at_least)
        }
        TextError::Raised(_) | TextError::Render(_) | TextError::TooManySteps | TextError::TooLong { .. } => {
            Error::value("messages", error.to_string())
        }
        TextError::NotContinued => Error::value("continue_final_message", error.to_string()),
        TextError::Reserved(_) => Error::value("chat_template_kwargs", error.to_string()),
        fault => internal(&fault.to_string()),
    })
}

fn no_template() -> Error {
    Error::at(
        Code::UnsupportedValue,
        "messages",
        "This checkpoint has no chat template. Add one to its directory (chat_template.jinja or \
         tokenizer_config.json), or send a plain prompt to /v1/completions.",
    )
}

pub(crate) async fn tokenize(
    State(app): State<App>,
    request: Request,
) -> Result<Json<TokenizeAnswer>, ApiError> {
    app.ready_model()?;
    let body = body::read(&app, request).await?;
    let parsed = TokenizeRequest::parse(&body)?;
    app.note_ignored(&parsed.ignored);
    app.served_name(parsed.request.model.as_deref())?;
    let answer = off_thread(body.len(), move || {
        let model = app.model().ok_or_else(|| internal("the model is gone"))?;
        tokenize_with(model, app.dialect(), &parsed.request)
    });
    Ok(Json(answer.await?))
}

fn tokenize_with(
    model: &ServedModel,
    dialect: Dialect,
    request: &TokenizeRequest,
) -> Result<TokenizeAnswer, Error> {
    let special = request.add_special_tokens;
    let bytes_max = (model.context_len.saturating_mul(BYTES_A_TOKEN_MAX)).max(TEXT_BYTES);
    let tokens = match &request.input {
        TokenizeInput::Text(text) if text.len() > bytes_max => return Err(too_long("prompt", bytes_max)),
        TokenizeInput::Text(text) => encode_text(model, text, special)?,
        TokenizeInput::Chat { messages, ending, chat_template_kwargs, tools } => {
            encode_chat(
                model,
                dialect,
                messages,
                tools,
                *ending,
                chat_template_kwargs,
                model.tokenizer.tokens_min(bytes_max),
            )
            .map_err(|error| match error.code {
                Code::ContextLengthExceeded => too_long("messages", bytes_max),
                _ => error,
            })?
            .ids
        }
    };
    let text = |&id: &u32| model.tokenizer.token_text(id);
    Ok(TokenizeAnswer {
        count: tokens.len(),
        max_model_len: model.context_len,
        token_strs: request.return_token_strs.then(|| tokens.iter().map(text).collect()),
        tokens,
    })
}

fn too_long(param: &str, bytes_max: usize) -> Error {
    let message = format!(
        "`{param}` has more than {bytes_max} bytes of text, which is far beyond this model's context. Send it in parts."
    );
    Error::value(param, message)
}

pub(crate) async fn detokenize(
    State(app): State<App>,
    request: Request,
) -> Result<Json<DetokenizeAnswer>, ApiError> {
    let vocab_size = app.ready_model()?.vocab_size;
    let body = body::read(&app, request).await?;
    let parsed = DetokenizeRequest::parse(&body, vocab_size)?;
    app.note_ignored(&parsed.ignored);
    app.served_name(parsed.request.model.as_deref())?;
    let answer = off_thread(body.len(), move || {
        let model = app.model().ok_or_else(|| internal("the model is gone"))?;
        let prompt = model.tokenizer.decode(&parsed.request.tokens, false);
        Ok(DetokenizeAnswer { prompt })
    });
    Ok(Json(answer.await?))
}
