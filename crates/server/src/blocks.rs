//! Answers that are told as a list of blocks: `POST /v1/responses` and Anthropic's `POST /v1/messages`.

use axum::Json;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use openai::{End, Error, Event, Finish, Part, anthropic, responses};
use serde_json::Value;
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use crate::answers::{Answers, locate_at};
use crate::app::App;
use crate::decode::{self, Delta, Said};
use crate::errors::ApiError;
use crate::logprobs::TokenNames;
use crate::sse::{Gone, Sink};

/// The events of one answer, and what it adds up to.
pub(crate) enum Blocks {
    /// With names for the tokens whose log probabilities are told.
    Responses(responses::Events, Option<TokenNames>),
    Messages(anthropic::Events),
}

impl Blocks {
    fn start(&mut self) -> Vec<Event> {
        match self {
            Self::Responses(events, _) => events.start(),
            Self::Messages(events) => events.start(),
        }
    }

    fn push(&mut self, delta: Delta) -> Vec<Event> {
        if let Self::Responses(events, Some(names)) = self {
            events.score(&names.chat(&delta.tokens).content);
        }
        let parts = delta.said.into_iter().flat_map(parts);
        match self {
            Self::Responses(events, _) => parts.flat_map(|part| events.push(part)).collect(),
            Self::Messages(events) => parts.flat_map(|part| events.push(part)).collect(),
        }
    }

    fn finish(&mut self, end: End) -> Vec<Event> {
        match self {
            Self::Responses(events, _) => events.finish(end),
            Self::Messages(events) => events.finish(end),
        }
    }

    fn fail(&mut self, error: &Error) -> Vec<Event> {
        match self {
            Self::Responses(events, _) => events.fail(error),
            Self::Messages(events) => events.fail(error),
        }
    }

    fn whole(&self) -> Value {
        match self {
            Self::Responses(events, _) => events.whole(),
            Self::Messages(events) => events.whole(),
        }
    }

    /// What a stream says while there is nothing to say.
    fn still_here(&self) -> Bytes {
        match self {
            Self::Responses(..) => Bytes::from_static(b": keep-alive\n\n"),
            Self::Messages(_) => named(&anthropic::ping()),
        }
    }
}

fn parts(said: Said) -> Vec<Part> {
    match said {
        Said::Text(text) => vec![Part::Text(text)],
        Said::Reasoning(text) => vec![Part::Reasoning(text)],
        Said::Call { opened, arguments, .. } => {
            let call = opened.map(|(id, name)| Part::Call { id, name });
            call.into_iter().chain([Part::Arguments(arguments)]).collect()
        }
    }
}

fn end(finish: decode::Finish, answers: &Answers) -> End {
    let how = match finish.as_str() {
        "tool_calls" => Finish::ToolCalls,
        "length" => Finish::Length,
        _ => Finish::Stop,
    };
    End { finish: how, stop: finish.stop, usage: answers.usage() }
}

/// Answers a request of one choice that the engine has taken. `param`: the field that errors of the prompt's length name.
pub(crate) async fn respond(
    app: &App,
    mut answers: Answers,
    blocks: Blocks,
    param: &'static str,
    stream: bool,
) -> Result<Response, ApiError> {
    if !stream {
        return tokio::select! {
            answer = whole(answers, blocks, param) => answer,
            error = app.ending() => Err(error.into()),
        };
    }
    // The first piece decides the status. One that takes long is waited for inside the stream.
    let first = tokio::select! {
        first = timeout(app.options().keep_alive, answers.next()) => first.ok().flatten().transpose(),
        error = app.ending() => return Err(error.into()),
    };
    let first = first.map_err(|error| locate_at(error, param))?;
    let (sink, response) = Sink::open(app);
    let writer = Writer { sink, blocks, param };
    let app = app.clone();
    let write = async move {
        if writer.write(&app, first, answers).await.is_err() {
            tracing::info!("the client left before its stream was complete");
        }
    };
    tokio::spawn(write.in_current_span());
    Ok(response)
}

async fn whole(mut answers: Answers, mut blocks: Blocks, param: &'static str) -> Result<Response, ApiError> {
    while let Some(piece) = answers.next().await {
        let (_, mut delta) = piece.map_err(|error| locate_at(error, param))?;
        let finish = delta.finish.take();
        blocks.push(delta);
        if let Some(finish) = finish {
            blocks.finish(end(finish, &answers));
        }
    }
    Ok(Json(blocks.whole()).into_response())
}

struct Writer {
    sink: Sink,
    blocks: Blocks,
    param: &'static str,
}

impl Writer {
    /// Writes the whole stream. On return `answers` is dropped, which cancels what is left of it.
    async fn write(
        mut self,
        app: &App,
        first: Option<(usize, Delta)>,
        mut answers: Answers,
    ) -> Result<(), Gone> {
        let events = self.blocks.start();
        self.send(events).await?;
        let mut piece = first;
        loop {
            if let Some((_, mut delta)) = piece.take() {
                let finish = delta.finish.take();
                let mut events = self.blocks.push(delta);
                events
                    .extend(finish.into_iter().flat_map(|finish| self.blocks.finish(end(finish, &answers))));
                self.send(events).await?;
            }
            tokio::select! {
                next = answers.next() => match next {
                    None => return Ok(()),
                    Some(Ok(next)) => piece = Some(next),
                    Some(Err(error)) => {
                        let error = locate_at(error, self.param);
                        return self.fail(&error).await;
                    }
                },
                () = self.sink.closed() => return Err(Gone),
                error = app.ending() => return self.fail(&error).await,
                () = sleep(app.options().keep_alive) => self.sink.send(self.blocks.still_here()).await?,
            }
        }
    }

    async fn fail(mut self, error: &Error) -> Result<(), Gone> {
        let events = self.blocks.fail(error);
        self.send(events).await
    }

    async fn send(&self, events: Vec<Event>) -> Result<(), Gone> {
        for event in events {
            self.sink.send(named(&event)).await?;
        }
        Ok(())
    }
}

/// One event: its name, a line of JSON, and an empty line.
fn named(event: &Event) -> Bytes {
    Bytes::from(format!("event: {}\ndata: {}\n\n", event.name, event.data))
}
