//! Which path is answered by what.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router, middleware};
use openai::{Code, Error, Model, ModelList};
use serde_json::json;
use tower_http::catch_panic::CatchPanicLayer;

use crate::app::{App, Phase};
use crate::errors::ApiError;
use crate::{auth, chat, completions, docs, envelope, limit, messages, responses, tokenize};

pub(crate) fn router(app: &App) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat::answer))
        .route("/v1/completions", post(completions::answer))
        .route("/v1/responses", post(responses::answer))
        .route("/v1/responses/{*id}", any(responses::kept))
        .route("/v1/messages", post(messages::answer))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/v1/embeddings", any(embeddings))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(docs::document(app)))
        .route("/docs", get(docs::page))
        .fallback(unknown_url)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(app.clone(), limit::count))
        .layer(middleware::from_fn_with_state(app.clone(), auth::check_key))
        .layer(middleware::from_fn(limit::bound_head))
        .layer(CatchPanicLayer::custom(envelope::panicked))
        .layer(middleware::from_fn_with_state(app.clone(), envelope::record))
        .layer(auth::cors(app))
        .layer(middleware::from_fn(envelope::identify))
        .with_state(app.clone())
}

async fn unknown_url(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(200).collect();
    let method = request.method();
    Error::new(
        Code::UnknownUrl,
        format!("There is nothing at {method} {path}. Look for a missing or doubled `/v1`."),
    )
    .into()
}

async fn wrong_method(request: Request) -> ApiError {
    Error::new(
        Code::MethodNotAllowed,
        format!(
            "{} is not allowed at {}. Use a method that the header `Allow` names.",
            request.method(),
            request.uri().path()
        ),
    )
    .into()
}

async fn embeddings(State(app): State<App>) -> ApiError {
    let name = app.options().names.first().map_or("The model", String::as_str);
    Error::new(
        Code::UnsupportedEndpoint,
        format!("{name} generates text; it has no embedding head. Use an embedding model."),
    )
    .into()
}

fn model_entry(app: &App, id: &str) -> Model {
    Model {
        id: id.to_owned(),
        object: "model",
        created: app.created(),
        owned_by: "strait",
        max_model_len: app.model().map_or(0, |model| model.context_len),
        root: app.options().names.first().cloned().unwrap_or_default(),
        parent: None,
    }
}

async fn models(State(app): State<App>) -> Json<ModelList> {
    let data = app.options().names.iter().map(|name| model_entry(&app, name)).collect();
    Json(ModelList { object: "list", data })
}

async fn model(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    // What is not UTF-8 names no model.
    let id = id.map_or_else(|_| char::REPLACEMENT_CHARACTER.to_string(), |Path(id)| id);
    let name = app.served_name(Some(&id))?;
    Ok(Json(model_entry(&app, &name)))
}

/// Alive: the engine runs, whether or not new requests are taken.
async fn health(State(app): State<App>) -> Response {
    if !app.engine_lives() {
        return unavailable("engine_dead");
    }
    match app.model() {
        None => loading(&app),
        Some(_) => Json(json!({"status": "ok"})).into_response(),
    }
}

/// Ready: a new request would be taken.
async fn ready(State(app): State<App>) -> Response {
    let Some(model) = app.model() else { return loading(&app) };
    if !app.engine_lives() {
        unavailable("engine_dead")
    } else if app.phase() != Phase::Serving {
        unavailable("draining")
    } else if app.waiting().is_full(model.max_waiting, model.max_waiting_tokens) {
        unavailable("full")
    } else {
        Json(json!({"status": "ready"})).into_response()
    }
}

fn unavailable(status: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": status}))).into_response()
}

fn loading(app: &App) -> Response {
    let body = json!({"status": "loading", "progress": app.progress()});
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], Json(body)).into_response()
}

async fn version(State(app): State<App>) -> Json<serde_json::Value> {
    let build = &app.options().build;
    let device = app.model().map(|model| model.device.as_str());
    Json(json!({
        "version": build.version,
        "commit": build.commit,
        "build": build.build,
        "device": device,
    }))
}

async fn metrics(State(app): State<App>) -> Result<Response, ApiError> {
    let snapshot = app.model().map(|model| model.engine.snapshot());
    let text = app.metrics().render(snapshot.as_ref())?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}
