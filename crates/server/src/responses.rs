//! `POST /v1/responses`: nothing is kept between two requests.

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use openai::responses::{Events, Header, ResponsesRequest};
use openai::{Code, Error};

use crate::answers::Answers;
use crate::app::{App, unix_seconds};
use crate::auth::Caller;
use crate::blocks::{self, Blocks};
use crate::errors::ApiError;
use crate::logprobs::TokenNames;
use crate::{body, conversation};

/// The field that errors of the prompt's length name.
const PROMPT_PARAM: &str = "input";

pub(crate) async fn answer(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    app.ready_model()?;
    let body = body::read(&app, request).await?;
    let model = app.ready_model()?;
    let parsed = ResponsesRequest::parse(&body, model.vocab_size)?;
    app.note_ignored(&parsed.ignored);
    let ResponsesRequest { chat, mut echo } = parsed.request;
    let name = app.served_name(chat.generation.model.as_deref())?;
    let defaults = [("temperature", model.defaults.temperature), ("top_p", model.defaults.top_p)];
    for (key, default) in defaults {
        if echo.get(key).is_none_or(|value| value.is_null()) {
            echo.insert(key.to_owned(), plainly(default.unwrap_or(1.0)).into());
        }
    }
    let (chat, plan) = conversation::plan(&app, body.len(), chat, caller, PROMPT_PARAM).await?;
    let unique = format!("{:032x}", rand::random::<u128>());
    let events = Events::new(Header { unique, created: unix_seconds(), model: name, echo });
    let names =
        TokenNames { tokenizer: model.tokenizer.clone(), as_ids: chat.generation.return_tokens_as_token_ids };
    let blocks = Blocks::Responses(events, chat.logprobs.is_some().then_some(names));
    let answers = Answers::submit(&app, &*model.engine, plan)?;
    blocks::respond(&app, answers, blocks, PROMPT_PARAM, chat.generation.stream.is_some()).await
}

/// As a person wrote it: 0.3, not what f32 makes of it in f64.
fn plainly(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

/// There is none to be found.
pub(crate) async fn kept() -> ApiError {
    Error::new(
        Code::UnknownUrl,
        "This server keeps no responses. Send the whole conversation as `input` to POST /v1/responses.",
    )
    .into()
}
