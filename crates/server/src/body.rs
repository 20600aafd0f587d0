//! Reading a request's body within the limits.

use axum::extract::Request;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use openai::{Code, Error};

use crate::app::App;
use crate::connection::Liveness;

/// The whole body, or why it is not read.
pub(crate) async fn read(app: &App, request: Request) -> Result<Bytes, Error> {
    check_headers(request.headers())?;
    let limit = app.options().body_bytes_max;
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large(limit));
    }
    let liveness = request.extensions().get::<Liveness>().cloned();
    let seconds = app.options().read_timeout;
    let collect = Limited::new(request.into_body(), limit).collect();
    let body = match tokio::time::timeout(seconds, collect).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large(limit)),
        Ok(Err(_)) => {
            return Err(Error::new(
                Code::InvalidJson,
                "The request body ended before it was complete. Send it whole.",
            ));
        }
        Err(_) => {
            return Err(Error::new(
                Code::RequestTimeout,
                format!(
                    "The request body did not arrive within {} s. Send it faster.",
                    seconds.as_secs_f32()
                ),
            ));
        }
    };
    if let Some(liveness) = liveness {
        liveness.request_complete();
    }
    Ok(body)
}

fn too_large(limit: usize) -> Error {
    Error::new(
        Code::RequestTooLarge,
        format!("The request body is larger than {limit} bytes, this server's limit. Shorten it."),
    )
}

/// A header that comes twice is judged by each of its values: nobody knows which one a proxy went by.
fn check_headers(headers: &HeaderMap) -> Result<(), Error> {
    let all = |name, fits: fn(&str) -> bool| {
        headers.get_all(name).iter().all(|value| value.to_str().is_ok_and(|value| fits(value.trim())))
    };
    let is_json =
        |kind: &str| kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("application/json");
    if !all(header::CONTENT_TYPE, is_json) {
        return Err(unsupported("Content-Type", "application/json"));
    }
    if !all(header::CONTENT_ENCODING, |coding| coding.eq_ignore_ascii_case("identity")) {
        return Err(unsupported("Content-Encoding", "identity, or leave the header out"));
    }
    Ok(())
}

fn unsupported(header: &str, wanted: &str) -> Error {
    Error::new(
        Code::UnsupportedMediaType,
        format!("The header `{header}` names something that is not read here. Use {wanted}."),
    )
}
