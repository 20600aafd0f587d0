//! `GET /openapi.json`, the document of all routes, and `GET /docs`, a page over it.

mod operations;

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use utoipa::ToSchema;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{OperationBuilder, ParameterBuilder, ParameterIn, PathItem, Paths};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{Components, ComponentsBuilder, Object, OneOfBuilder, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{
    Content, InfoBuilder, License, OpenApi, OpenApiBuilder, Ref, RefOr, Required, Response as Described,
    ResponseBuilder,
};

use crate::app::{App, Options};
use operations::{Body, OPERATIONS, Operation, STATUSES};

const PAGE: &str = include_str!("docs/page.html");
/// The page holds all it needs, and asks this server alone.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                           connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const BEARER: &str = "bearer";
const X_API_KEY: &str = "x-api-key";

/// Answers with the document, which is written once.
pub(crate) fn document(
    app: &App,
) -> impl Fn() -> std::future::Ready<Response> + Clone + Send + Sync + 'static {
    let text = build(app.options()).to_json().map(bytes::Bytes::from).map_err(|error| error.to_string());
    move || {
        std::future::ready(match &text {
            Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text.clone()).into_response(),
            Err(error) => crate::errors::ApiError::from(crate::errors::internal(error)).into_response(),
        })
    }
}

pub(crate) async fn page() -> Response {
    let headers: [(HeaderName, HeaderValue); 2] = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY)),
    ];
    (headers, PAGE).into_response()
}

fn build(options: &Options) -> OpenApi {
    let info = InfoBuilder::new()
        .title("strait")
        .version(&options.build.version)
        .license(Some(License::new("Apache-2.0")))
        .description(Some(
            "Serves one language model behind OpenAI's API. Fields that are not named here are ignored. `null` equals \
             absent. Sizes and ids of tokens are bounded by the model too: its vocabulary and its context.",
        ));
    let mut paths = Paths::new();
    for operation in OPERATIONS {
        let item = PathItem::new(operation.method(), describe(operation, !options.api_keys.is_empty()));
        paths.paths.insert(operation.path.to_owned(), item);
    }
    OpenApiBuilder::new().info(info.build()).paths(paths).components(Some(components())).build()
}

fn describe(operation: &Operation, has_keys: bool) -> utoipa::openapi::path::Operation {
    let mut described = OperationBuilder::new()
        .operation_id(Some(operation.id))
        .tag(operation.tag)
        .summary(Some(operation.summary));
    if let Some(answer) = operation.answer {
        described = described.response("200", success(answer));
    }
    if let Some(name) = operation.request {
        let body =
            RequestBodyBuilder::new().required(Some(Required::True)).content("application/json", json(name));
        described = described.request_body(Some(body.build()));
    }
    if operation.path.contains("{id}") {
        let id = ParameterBuilder::new().name("id").parameter_in(ParameterIn::Path).required(Required::True);
        let id = id.description(Some("A `/` in it may be sent as `%2F`."));
        described = described.parameter(id.schema(Some(Object::with_type(Type::String))).build());
    }
    for status in operation.statuses() {
        let name = response_name(operation, status);
        described = described.response(status.to_string(), Ref::from_response_name(name));
    }
    for requirement in operation.keys(has_keys) {
        described = described.security(requirement);
    }
    described.build()
}

fn success(answer: Body) -> Described {
    let response = ResponseBuilder::new().header("X-Request-Id", request_id());
    match answer {
        Body::Json(name) => response.description("The answer.").content("application/json", json(name)),
        Body::JsonOrEvents(whole, events) => {
            let event =
                events.iter().fold(OneOfBuilder::new(), |all, name| all.item(Ref::from_schema_name(*name)));
            let event =
                event.description(Some("The data of one event. Errors after the beginning are events too."));
            response
                .description("The answer: whole, or with `stream`: true as events.")
                .content("application/json", json(whole))
                .content("text/event-stream", Content::new(Some(event)))
        }
        Body::Text(media_type) => response
            .description("The text.")
            .content(media_type, Content::new(Some(Object::with_type(Type::String)))),
    }
    .build()
}

fn json(name: &str) -> Content {
    Content::new(Some(Ref::from_schema_name(name)))
}

fn request_id() -> utoipa::openapi::Header {
    let text = "The caller's own `X-Request-Id`, if it is plain, else a new one.";
    HeaderBuilder::new().schema(Some(Object::with_type(Type::String))).description(Some(text)).build()
}

fn response_name(operation: &Operation, status: u16) -> String {
    match (operation.answer, operation.error_schema()) {
        (Some(Body::Json("Status")), _) => "StatusUnavailable".to_owned(),
        (_, schema) => format!("{schema}{status}"),
    }
}

fn components() -> Components {
    let mut components = ComponentsBuilder::new().schemas_from_iter(openai::schema::schemas());
    components = components.schema_from::<Status>().schema_from::<Version>();
    for schema in ["Error", "MessagesError"] {
        for (status, text) in STATUSES {
            components = components.response(format!("{schema}{status}"), failure(*status, text, schema));
        }
    }
    let unavailable = failure(503, "Not now: loading, draining, full, or the engine is dead.", "Status");
    let bearer = Http::new(HttpAuthScheme::Bearer);
    let x_api_key = ApiKey::Header(ApiKeyValue::new(X_API_KEY));
    components
        .response("StatusUnavailable", unavailable)
        .security_scheme(BEARER, SecurityScheme::Http(bearer))
        .security_scheme(X_API_KEY, SecurityScheme::ApiKey(x_api_key))
        .build()
}

fn failure(status: u16, text: &str, schema: &str) -> RefOr<Described> {
    let mut response = ResponseBuilder::new().description(text).header("X-Request-Id", request_id());
    if matches!(status, 429 | 503) {
        let seconds = HeaderBuilder::new().schema(Some(Object::with_type(Type::Integer)));
        response = response.header("Retry-After", seconds.description(Some("Seconds.")).build());
    }
    RefOr::T(response.content("application/json", json(schema)).build())
}

impl Operation {
    /// Who may call: anybody where the server has no keys.
    fn keys(&self, has_keys: bool) -> Vec<SecurityRequirement> {
        let scheme = |name: &str| SecurityRequirement::new(name, [""; 0]);
        let mut all = match self.tag {
            operations::OPEN => return Vec::new(),
            operations::ANTHROPIC => vec![scheme(BEARER), scheme(X_API_KEY)],
            _ => vec![scheme(BEARER)],
        };
        if !has_keys {
            all.push(SecurityRequirement::default());
        }
        all
    }
}

/// What `/health` and `/ready` answer.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct Status {
    #[schema(inline)]
    status: StatusWord,
    /// Share of the model that is loaded.
    #[schema(minimum = 0, maximum = 1)]
    progress: Option<f32>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "only its schema is used")]
enum StatusWord {
    Ok,
    Ready,
    Loading,
    Draining,
    Full,
    EngineDead,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct Version {
    version: String,
    commit: String,
    /// Profile and target.
    build: String,
    /// Null until the model is loaded.
    #[schema(required)]
    device: Option<String>,
}
