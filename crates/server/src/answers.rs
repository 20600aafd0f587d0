//! All choices of one request, merged; and the answer they add up to.

use std::pin::Pin;
use std::time::{Duration, Instant};

use axum::Json;
use axum::response::{IntoResponse, Response};
use futures::stream::{SelectAll, Stream, StreamExt, unfold};
use openai::{Answer, Code, Error, PromptLogprobs, Usage};
use serde::Serialize;
use tokio::time::timeout;

use crate::app::{App, Engine, unix_seconds};
use crate::decode::{Broken, Choice, Delta, Update};
use crate::errors::{ApiError, Retry, engine_dead, internal};
use crate::plan::Plan;
use crate::sse;
use crate::timer::SequenceTimer;
use crate::waiting::Place;

type Merged = SelectAll<Pin<Box<dyn Stream<Item = (usize, Result<Update, Broken>)> + Send>>>;

/// What one API route makes of the pieces of an answer.
pub(crate) trait Format: Send + Sync + 'static {
    type Choice: Serialize + Send;
    type Chunk: Serialize + Send;

    const OBJECT: &'static str;
    const CHUNK_OBJECT: &'static str;
    const ID_PREFIX: &'static str;
    /// The `service_tier` of answers, if they have the key.
    const SERVICE_TIER: Option<Option<&'static str>>;
    /// The field that errors of the prompt's length name.
    const PROMPT_PARAM: &'static str;

    /// Chunks that open a stream, before any text.
    fn opening(&self, n_choices: usize) -> Vec<Self::Chunk>;
    /// `first`: nothing has been told of this choice yet.
    fn chunk(&self, index: usize, first: bool, delta: Delta) -> Self::Chunk;
    fn whole(&self, index: usize, choice: Delta) -> Self::Choice;
    /// Of the whole answer, where its format has them there.
    fn prompt_token_ids(&self) -> Option<Vec<u32>>;
    /// The same, from one of its choices.
    fn prompt_logprobs(&self, choice: &Delta) -> Option<PromptLogprobs>;
}

/// A request's choices while the engine works on them. Dropping it cancels them all.
pub(crate) struct Answers {
    app: App,
    merged: Merged,
    /// Of all prompts.
    pub(crate) n_choices: usize,
    /// Of each prompt, and how many of these are told.
    best_of: usize,
    n: usize,
    usage: Usage,
}

impl Answers {
    /// Gives the plan's sequences to the engine: all of them, or none.
    pub(crate) fn submit(app: &App, engine: &dyn Engine, plan: Plan) -> Result<Self, ApiError> {
        let prompt_tokens = plan.prompts.iter().map(|prompt| prompt.len()).sum();
        let usage = Usage { prompt_tokens, total_tokens: prompt_tokens, ..Usage::default() };
        let submitted = Instant::now();
        let deadline = app.options().request_timeout.map(|timeout| submitted + timeout);
        let mut taken = Vec::new();
        for (mut request, decode) in plan.requests() {
            let prompt_len = request.prompt.len();
            request.deadline = deadline;
            let events = engine.submit(request).map_err(|busy| refused(app, &busy, prompt_len))?;
            taken.push((events, decode, prompt_len));
        }
        // Only now: what is refused in part is no sequence, and counts as none.
        let mut choices = Vec::new();
        for (events, decode, prompt_len) in taken {
            let mut place = Some(Place::take(app, prompt_len));
            for events in events {
                let timer = SequenceTimer::new(app, place.take(), prompt_len, submitted);
                choices.push(Choice::new(events, decode.clone(), timer));
            }
        }
        app.metrics().observe_params(plan.n, plan.max_tokens);
        let n_choices = choices.len();
        let stream = |(index, choice)| {
            let next = move |mut choice: Choice| async move {
                let update = choice.next().await?;
                Some(((index, update), choice))
            };
            Box::pin(unfold(choice, next)) as Pin<Box<dyn Stream<Item = _> + Send>>
        };
        let merged = choices.into_iter().enumerate().map(stream).collect();
        Ok(Self { app: app.clone(), merged, n_choices, best_of: plan.best_of, n: plan.n, usage })
    }

    /// The next piece of any choice; `None` when all are complete. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Result<(usize, Delta), Error>> {
        loop {
            match self.merged.next().await? {
                // Each prompt counts once, however many choices share it.
                (index, Ok(Update::Started { cached_tokens })) if index % self.best_of == 0 => {
                    self.usage.prompt_tokens_details.cached_tokens += cached_tokens;
                }
                (_, Ok(Update::Started { .. })) => {}
                (_, Ok(Update::Reasoned { tokens })) => {
                    self.usage.completion_tokens_details.reasoning_tokens += tokens;
                }
                (index, Ok(Update::Delta(delta))) => {
                    self.usage.completion_tokens += delta.tokens.len();
                    self.usage.total_tokens += delta.tokens.len();
                    return Some(Ok((index, delta)));
                }
                (_, Err(broken)) => return Some(Err(self.error(broken))),
            }
        }
    }

    fn error(&self, broken: Broken) -> Error {
        match broken {
            Broken::Rejected(reason) => rejected(&reason),
            Broken::Expired => expired(self.app.options().request_timeout.unwrap_or_default()),
            Broken::Stuck => stuck(),
            Broken::Failed(_) if !self.app.engine_lives() => engine_dead(),
            Broken::Failed(cause) => internal(&cause),
        }
    }

    /// Of what has been told so far.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }
}

/// The engine did not take a request. Who is refused comes back when there is room for a quarter of the
/// queue, and at least for its own prompt: all the refused come back at about the same time.
fn refused(app: &App, busy: &engine::Busy, prompt_len: usize) -> ApiError {
    let (waiting, seconds) = match *busy {
        engine::Busy::Requests { max_waiting } => {
            let seconds = app.waiting().seconds_for_requests(max_waiting.div_ceil(4));
            let waiting = if max_waiting == 1 { "request is" } else { "requests are" };
            (format!("{max_waiting} {waiting} waiting already"), seconds)
        }
        engine::Busy::Tokens { max_waiting_tokens } => {
            let room = prompt_len.max(max_waiting_tokens / 4).min(max_waiting_tokens);
            let waiting = format!(
                "Prompts of {max_waiting_tokens} tokens may wait, and those waiting already leave too little of that"
            );
            (waiting, app.waiting().seconds_for_tokens(room))
        }
        engine::Busy::Stopped => return engine_dead().into(),
    };
    let message = format!("{waiting}. Send the request again after the time in the header `Retry-After`.");
    ApiError { error: Error::new(Code::ServerOverloaded, message), retry: Retry::AfterSeconds(seconds) }
}

/// The engine has checked what the edge could not: whether the KV pool can ever hold the request.
fn rejected(reason: &str) -> Error {
    let mut letters = reason.chars();
    let capital = letters.next().map(|first| first.to_uppercase().to_string());
    let message = format!("{}{}.", capital.unwrap_or_default(), letters.as_str());
    Error::new(Code::ContextLengthExceeded, message)
}

/// Seen only while an answer is drawn: what is excluded depends on what stands there already.
fn stuck() -> Error {
    Error::new(
        Code::InvalidValue,
        "No token was left to draw: the request's fields (a schema or grammar, `allowed_token_ids`, `bad_words`, \
         `logit_bias`, `min_tokens`) exclude all of them together, or are too much to follow. Loosen one of these.",
    )
}

fn expired(limit: Duration) -> Error {
    let seconds = limit.as_secs_f64();
    Error::new(
        Code::RequestExpired,
        format!(
            "The request was not complete after {seconds} s, this server's limit (--request-timeout). Ask for fewer \
             tokens, shorten the prompt, or send it when the server is less busy."
        ),
    )
}

/// What all chunks of an answer share.
pub(crate) struct Header {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) fingerprint: String,
}

impl Header {
    pub(crate) fn new<F: Format>(model: String, fingerprint: String) -> Self {
        let id = format!("{}-{:032x}", F::ID_PREFIX, rand::random::<u128>());
        Self { id, created: unix_seconds(), model, fingerprint }
    }

    pub(crate) fn answer<C>(
        &self,
        object: &'static str,
        service_tier: Option<Option<&'static str>>,
        choices: Vec<C>,
    ) -> Answer<'_, C> {
        Answer {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            choices,
            usage: None,
            system_fingerprint: &self.fingerprint,
            service_tier,
            prompt_token_ids: None,
            prompt_logprobs: None,
        }
    }
}

/// Answers a request that the engine has taken.
pub(crate) async fn respond<F: Format>(
    app: &App,
    mut answers: Answers,
    header: Header,
    format: F,
    stream: Option<openai::StreamOptions>,
) -> Result<Response, ApiError> {
    let Some(options) = stream else {
        return tokio::select! {
            answer = whole(answers, header, format) => answer,
            error = app.ending() => Err(error.into()),
        };
    };
    // The first piece decides the status. One that takes long is waited for inside the stream.
    let first = tokio::select! {
        first = timeout(app.options().keep_alive, answers.next()) => first,
        error = app.ending() => return Err(error.into()),
    };
    match first {
        Ok(Some(Err(error))) => Err(locate::<F>(error).into()),
        Ok(first) => Ok(sse::respond(app, first, answers, header, format, options)),
        Err(_) => Ok(sse::respond(app, None, answers, header, format, options)),
    }
}

/// An error of the engine about the length is one of the field that holds the prompt.
pub(crate) fn locate<F: Format>(error: Error) -> Error {
    locate_at(error, F::PROMPT_PARAM)
}

pub(crate) fn locate_at(mut error: Error, param: &str) -> Error {
    if error.code == Code::ContextLengthExceeded && error.param.is_none() {
        error.param = Some(param.to_owned());
    }
    error
}

/// Folds the pieces into one answer.
async fn whole<F: Format>(mut answers: Answers, header: Header, format: F) -> Result<Response, ApiError> {
    let mut choices = vec![Delta::default(); answers.n_choices];
    while let Some(piece) = answers.next().await {
        let (index, delta) = piece.map_err(locate::<F>)?;
        choices[index].join(delta);
    }
    let choices = best(choices, answers.best_of, answers.n);
    let prompt_logprobs = choices.first().and_then(|choice| format.prompt_logprobs(choice));
    let choices = choices.into_iter().enumerate();
    let choices = choices.map(|(index, choice)| format.whole(index, choice)).collect();
    let mut answer = header.answer(F::OBJECT, F::SERVICE_TIER, choices);
    answer.usage = Some(Some(answers.usage()));
    answer.prompt_token_ids = format.prompt_token_ids();
    answer.prompt_logprobs = prompt_logprobs;
    Ok(Json(answer).into_response())
}

/// Of each `best_of` choices, which have one prompt, the `n` whose tokens are the most probable, the best first. All as
/// they are where none is to be left out.
fn best(mut choices: Vec<Delta>, best_of: usize, n: usize) -> Vec<Delta> {
    if best_of == n {
        return choices;
    }
    let of_prompt = |choices: &mut [Delta]| {
        choices.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob())); // stable: the first of equals
        choices.iter_mut().take(n).map(std::mem::take).collect::<Vec<_>>()
    };
    choices.chunks_mut(best_of).flat_map(of_prompt).collect()
}
