//! The pieces of an answer as server-sent events.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures::stream::poll_fn;
use openai::{Error, StreamOptions, Usage};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use crate::answers::{Answers, Format, Header, locate};
use crate::app::App;
use crate::decode::Delta;
use crate::errors::internal;

/// Chunks that may wait for a slow client; when they do, only its own stream waits.
const CHUNKS_AHEAD: usize = 32;

type Piece = Result<(usize, Delta), Error>;

/// A response whose events a task writes as the pieces come.
pub(crate) fn respond<F: Format>(
    app: &App,
    first: Option<Piece>,
    answers: Answers,
    header: Header,
    format: F,
    options: StreamOptions,
) -> Response {
    let (sink, response) = Sink::open(app);
    let told = vec![false; answers.n_choices];
    let writer = Writer { sink, header, format, options, told };
    let app = app.clone();
    let write = async move {
        if writer.write(&app, first, answers).await.is_err() {
            tracing::info!("the client left before its stream was complete");
        }
    };
    tokio::spawn(write.in_current_span());
    response
}

/// The client does not read any more.
pub(crate) struct Gone;

/// Where the events of one stream go.
pub(crate) struct Sink {
    sender: mpsc::Sender<io::Result<Bytes>>,
    stall_timeout: Duration,
}

impl Sink {
    /// And the response that tells them.
    pub(crate) fn open(app: &App) -> (Self, Response) {
        let (sender, mut receiver) = mpsc::channel::<io::Result<Bytes>>(CHUNKS_AHEAD);
        let mut response = Response::new(Body::from_stream(poll_fn(move |cx| receiver.poll_recv(cx))));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        (Self { sender, stall_timeout: app.options().stall_timeout }, response)
    }

    /// Waits for room, for a bounded time.
    pub(crate) async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        match timeout(self.stall_timeout, self.sender.send(Ok(bytes))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }

    /// When the client has left.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }
}

struct Writer<F> {
    sink: Sink,
    header: Header,
    format: F,
    options: StreamOptions,
    /// Choices of which something has been told.
    told: Vec<bool>,
}

impl<F: Format> Writer<F> {
    /// Writes the whole stream. On return `answers` is dropped, which cancels what is left of it.
    async fn write(mut self, app: &App, first: Option<Piece>, mut answers: Answers) -> Result<(), Gone> {
        let mut prompt_ids = self.format.prompt_token_ids();
        for chunk in self.format.opening(answers.n_choices) {
            self.chunk(chunk, answers.usage(), prompt_ids.take()).await?;
        }
        let mut piece = first;
        loop {
            match piece {
                Some(Ok((index, delta))) => {
                    let first = !std::mem::replace(&mut self.told[index], true);
                    let chunk = self.format.chunk(index, first, delta);
                    self.chunk(chunk, answers.usage(), prompt_ids.take()).await?;
                }
                Some(Err(error)) => return self.fail(locate::<F>(error)).await,
                None => {}
            }
            tokio::select! {
                next = answers.next() => match next {
                    None => break,
                    next => piece = next,
                },
                () = self.sink.closed() => return Err(Gone),
                error = app.ending() => return self.fail(error).await,
                () = sleep(app.options().keep_alive) => {
                    self.sink.send(Bytes::from_static(b": keep-alive\n\n")).await?;
                    piece = None;
                }
            }
        }
        if self.options.include_usage {
            let mut last = self.header.answer(F::CHUNK_OBJECT, F::SERVICE_TIER, Vec::<F::Chunk>::new());
            last.usage = Some(Some(answers.usage()));
            self.sink.send(event(&last)).await?;
        }
        self.done().await
    }

    async fn chunk(
        &self,
        choice: F::Chunk,
        usage: Usage,
        prompt_token_ids: Option<Vec<u32>>,
    ) -> Result<(), Gone> {
        let mut chunk = self.header.answer(F::CHUNK_OBJECT, F::SERVICE_TIER, vec![choice]);
        chunk.usage = match self.options {
            StreamOptions { continuous_usage_stats: true, .. } => Some(Some(usage)),
            StreamOptions { include_usage: true, .. } => Some(None),
            _ => None,
        };
        chunk.prompt_token_ids = prompt_token_ids;
        self.sink.send(event(&chunk)).await
    }

    async fn fail(&self, error: Error) -> Result<(), Gone> {
        self.sink.send(event(&error)).await?;
        self.done().await
    }

    async fn done(&self) -> Result<(), Gone> {
        self.sink.send(Bytes::from_static(b"data: [DONE]\n\n")).await
    }
}

/// One event: a line of JSON and an empty line.
fn event(value: &impl Serialize) -> Bytes {
    let json = serde_json::to_string(value)
        .or_else(|error| serde_json::to_string(&internal(&error.to_string())))
        .unwrap_or_default();
    Bytes::from(format!("data: {json}\n\n"))
}
