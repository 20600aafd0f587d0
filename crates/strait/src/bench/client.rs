//! A client of OpenAI's API with one connection, kept alive. It shares the machine with the server that it
//! measures, so it does little: one thread for all clients, and of each event a small typed parse.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::answer::{Answer, Hearing, described};
use super::sse::Lines;

/// Of an answer that is no stream.
const BODY_BYTES_MAX: usize = 16 << 20;

/// Where requests go, and how long one may take.
#[derive(Debug)]
pub(crate) struct Address {
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// As the header `Host` has it.
    authority: HeaderValue,
    /// Before `/v1`.
    prefix: String,
    authorization: Option<HeaderValue>,
    patience: Duration,
}

impl Address {
    /// `http://HOST:PORT`, perhaps with a path and the `/v1` that clients of the API are given.
    pub(crate) fn parse(url: &str, key: Option<&str>, patience: Duration) -> Result<Self, String> {
        let refused = || format!("{url:?} is no address; give http://HOST:PORT (https is not spoken)");
        let uri: Uri = url.parse().map_err(|_| refused())?;
        let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(refused());
        };
        let header = |text: &str| HeaderValue::from_str(text).map_err(|_| refused());
        let key = key.map(|key| HeaderValue::from_str(&format!("Bearer {key}")));
        let path = uri.path().trim_end_matches('/');
        Ok(Self {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: header(authority.as_str())?,
            prefix: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
            authorization: key
                .transpose()
                .map_err(|_| "the API key has characters that no header may have")?,
            patience,
        })
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        let path = format!("{}{path}", self.prefix);
        *request.uri_mut() = path.parse().map_err(|_| format!("{path} is no path"))?;
        let headers = request.headers_mut();
        headers.insert(HOST, self.authority.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let at =
            |error: &dyn std::fmt::Display| format!("cannot connect to {}:{}: {error}", self.host, self.port);
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|error| at(&error))?;
        stream.set_nodelay(true).map_err(|error| at(&error))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| at(&error))?;
        // Ends with the sender. Its errors are those of the request that waits.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// One client.
pub(crate) struct Client {
    address: Arc<Address>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// Not yet connected.
    pub(crate) fn new(address: Arc<Address>) -> Self {
        Self { address, connection: None }
    }

    /// Opens the connection before anything is measured. One that fails is tried again, and named, by the
    /// request.
    pub(crate) async fn connect(&mut self) {
        self.connection =
            timeout(self.address.patience, self.address.connect()).await.ok().and_then(Result::ok);
    }

    /// Asks for a completion. A failure is told in words.
    pub(crate) async fn complete(&mut self, body: Bytes) -> Result<Answer, String> {
        self.bounded(async |client| {
            let (sent, response) = client.send(Method::POST, "/v1/completions", body).await?;
            let hearing = Hearing::new(sent);
            let is_stream = response
                .headers()
                .get(CONTENT_TYPE)
                .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
            if is_stream {
                stream(response.into_body(), hearing).await
            } else {
                whole(response.into_body(), hearing).await
            }
        })
        .await
    }

    /// The body of a 200.
    pub(crate) async fn get(&mut self, path: &str) -> Result<Bytes, String> {
        self.bounded(async |client| {
            let (_, response) = client.send(Method::GET, path, Bytes::new()).await?;
            collect(response.into_body()).await
        })
        .await
    }

    /// Within the time that a request may take. After a failure the connection is not used again.
    async fn bounded<T>(
        &mut self,
        ask: impl AsyncFnOnce(&mut Self) -> Result<T, String>,
    ) -> Result<T, String> {
        let patience = self.address.patience;
        let asked = timeout(patience, ask(self)).await;
        let answer =
            asked.unwrap_or_else(|_| Err(format!("no whole answer within {} s", patience.as_secs_f64())));
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    /// When it was sent, and the head of the answer.
    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(Instant, Response<Incoming>), String> {
        let request = self.address.request(method, path, body)?;
        let sent = Instant::now();
        let response =
            self.connection().await?.send_request(request).await.map_err(|error| broken(&error))?;
        if response.status() == StatusCode::OK {
            return Ok((sent, response));
        }
        let status = response.status().as_u16();
        let body = collect(response.into_body()).await?;
        let error = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
        Err(format!("{status} {}", described(&error["error"])))
    }

    /// A server may close a connection that was idle.
    async fn connection(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, String> {
        let usable = match &mut self.connection {
            Some(connection) => connection.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            self.connection = Some(self.address.connect().await?);
        }
        self.connection.as_mut().ok_or_else(|| "there is no connection".into())
    }
}

async fn stream(mut body: Incoming, mut hearing: Hearing) -> Result<Answer, String> {
    let mut lines = Lines::default();
    // To its end, beyond [DONE]: only then is the connection free again.
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        let now = Instant::now();
        if let Some(data) = frame.data_ref() {
            lines.push(data, |event| hearing.event(event, now))?;
        }
    }
    hearing.finish()
}

async fn whole(body: Incoming, mut hearing: Hearing) -> Result<Answer, String> {
    let json = collect(body).await?;
    hearing.body(&json, Instant::now())?;
    hearing.finish()
}

async fn collect(body: Incoming) -> Result<Bytes, String> {
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    Ok(body.map_err(|error| format!("the answer broke off: {error}"))?.to_bytes())
}

/// With its cause, which says more than hyper's own words.
fn broken(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("the connection broke: {error}: {cause}"),
        None => format!("the connection broke: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse = |url| Address::parse(url, None, Duration::from_secs(1));
        for (url, host, port, prefix) in [
            ("http://127.0.0.1:8000", "127.0.0.1", 8000, ""),
            ("http://localhost:8000/v1/", "localhost", 8000, ""),
            ("http://[::1]:9/llm/v1", "::1", 9, "/llm"),
            ("http://example.org", "example.org", 80, ""),
        ] {
            let address = parse(url).unwrap();
            assert_eq!((address.host.as_str(), address.port, address.prefix.as_str()), (host, port, prefix));
        }
        for url in ["", "localhost:8000", "https://localhost:8000", "/v1", "http://"] {
            assert!(parse(url).unwrap_err().contains("give http://HOST:PORT"), "{url}");
        }
    }
}
