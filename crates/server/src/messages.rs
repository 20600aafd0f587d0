//! Anthropic's `POST /v1/messages` and `POST /v1/messages/count_tokens`.

use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use openai::anthropic::{Events, Header, MessagesRequest, count_body, error_body};
use openai::{Error, Usage};
use serde_json::Value;

use crate::answers::Answers;
use crate::app::App;
use crate::auth::Caller;
use crate::blocks::{self, Blocks};
use crate::errors::ApiError;
use crate::{body, conversation};

/// The field that errors of the prompt's length name.
const PROMPT_PARAM: &str = "messages";

pub(crate) async fn answer(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    app.ready_model()?;
    let body = body::read(&app, request).await?;
    let model = app.ready_model()?;
    let parsed = MessagesRequest::parse(&body)?;
    app.note_ignored(&parsed.ignored);
    let chat = parsed.request.chat;
    let name = app.served_name(chat.generation.model.as_deref())?;
    let (chat, plan) = conversation::plan(&app, body.len(), chat, caller, PROMPT_PARAM).await?;
    let usage = Usage { prompt_tokens: plan.prompts[0].len(), ..Usage::default() };
    let unique = format!("{:032x}", rand::random::<u128>());
    let blocks = Blocks::Messages(Events::new(Header { unique, model: name, usage }));
    let answers = Answers::submit(&app, &*model.engine, plan)?;
    blocks::respond(&app, answers, blocks, PROMPT_PARAM, chat.generation.stream.is_some()).await
}

pub(crate) async fn count_tokens(State(app): State<App>, request: Request) -> Result<Json<Value>, ApiError> {
    app.ready_model()?;
    let body = body::read(&app, request).await?;
    let parsed = MessagesRequest::parse_count(&body)?;
    app.note_ignored(&parsed.ignored);
    let chat = parsed.request.chat;
    app.served_name(chat.generation.model.as_deref())?;
    let ids = conversation::ids(&app, body.len(), chat).await?;
    Ok(Json(count_body(ids.len())))
}

/// Whether errors at this path have Anthropic's shape.
pub(crate) fn is_here(path: &str) -> bool {
    path == "/v1/messages" || path.starts_with("/v1/messages/")
}

/// The same error as Anthropic's clients read it.
pub(crate) fn reshape(response: Response, error: &Error) -> Response {
    let (mut parts, _) = response.into_parts();
    let (fresh, body) = Json(error_body(error)).into_response().into_parts();
    parts.headers.extend(fresh.headers);
    parts.headers.remove(axum::http::header::CONTENT_LENGTH);
    Response::from_parts(parts, body)
}
