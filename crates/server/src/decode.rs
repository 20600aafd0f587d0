//! One choice: engine events in, deltas out. Whole answers and streams both come from here.

use std::collections::VecDeque;
use std::sync::Arc;

use engine::Events;
use engine::request::{End, Event, FinishReason, Logprobs, Token};
use openai::StopReason;
use text::{Detokenizer, StopOutcome, StopStrings, Tokenizer};

use crate::metrics::Finished;
use crate::speech::{Speaker, Speech};
use crate::timer::SequenceTimer;

/// A token with what answers tell about it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ScoredToken {
    pub(crate) id: u32,
    /// Code points before it in the choice's text, its stop string included.
    pub(crate) text_offset: usize,
    pub(crate) logprobs: Option<Logprobs>,
}

/// A piece of a choice. Its pieces, [joined](Delta::join), are the whole choice.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Delta {
    /// What the model says, in order; no piece is empty but a call without arguments.
    pub(crate) said: Vec<Said>,
    /// The prompt's tokens, if they are wanted.
    pub(crate) prompt: Vec<ScoredToken>,
    /// Generated tokens, EOS and stop ids included.
    pub(crate) tokens: Vec<ScoredToken>,
    /// In the last piece, which has no text.
    pub(crate) finish: Option<Finish>,
}

/// A piece of what a model says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Said {
    Text(String),
    /// Where it is told apart.
    Reasoning(String),
    /// A call, or more of its arguments: pieces of one JSON text.
    Call {
        /// Among the calls of the choice.
        index: usize,
        /// Id and name, in its first piece.
        opened: Option<(String, String)>,
        arguments: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finish {
    pub(crate) reason: FinishReason,
    pub(crate) stop: Option<StopReason>,
    /// It ended with a call.
    pub(crate) called: bool,
}

impl Finish {
    /// An answer that was cut, or broken off by what the client asked to stop at, is told so even if it has calls: the
    /// last may lack its end.
    pub(crate) fn as_str(&self) -> &'static str {
        match self.reason {
            FinishReason::Stop if self.called && self.stop.is_none() => "tool_calls",
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

impl Delta {
    /// Of its tokens, which have log probabilities.
    pub(crate) fn mean_logprob(&self) -> f64 {
        let chosen = self.tokens.iter().filter_map(|token| token.logprobs.as_ref());
        let sum: f64 = chosen.map(|logprobs| f64::from(logprobs.chosen)).sum();
        sum / self.tokens.len().max(1) as f64
    }

    pub(crate) fn join(&mut self, next: Self) {
        next.said.into_iter().for_each(|said| self.say(said));
        self.prompt.extend(next.prompt);
        self.tokens.extend(next.tokens);
        self.finish = next.finish.or(self.finish.take());
    }

    /// Adds a piece, to the last one if it goes on with that.
    pub(crate) fn say(&mut self, said: Said) {
        match (self.said.last_mut(), &said) {
            (_, Said::Text(text) | Said::Reasoning(text)) if text.is_empty() => {}
            (Some(Said::Text(last)), Said::Text(text))
            | (Some(Said::Reasoning(last)), Said::Reasoning(text)) => last.push_str(text),
            (
                Some(Said::Call { index: last, arguments, .. }),
                Said::Call { index, opened: None, arguments: more },
            ) if last == index => {
                arguments.push_str(more);
            }
            _ => self.said.push(said),
        }
    }

    /// The text alone, without reasoning and calls.
    pub(crate) fn text(&self) -> String {
        let text = |said: &Said| if let Said::Text(text) = said { Some(text.clone()) } else { None };
        self.said.iter().filter_map(text).collect()
    }
}

/// What a choice tells.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Update {
    Started {
        cached_tokens: usize,
    },
    Delta(Delta),
    /// Of the tokens told, so many were reasoning; before the last piece.
    Reasoned {
        tokens: usize,
    },
}

/// Why a choice ended without being complete.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Broken {
    Rejected(String),
    Expired,
    Stuck,
    Failed(String),
}

/// How the text of a choice is made and ended.
#[derive(Clone)]
pub(crate) struct DecodeOptions {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) skip_special_tokens: bool,
    pub(crate) stop: Vec<String>,
    /// End the answer and stay out of its text.
    pub(crate) eos_ids: Vec<u32>,
    pub(crate) stop_token_ids: Vec<u32>,
    /// What stopped the answer stays in its text; an EOS never does.
    pub(crate) include_stop: bool,
    /// Text of so many tokens is not searched for stop strings.
    pub(crate) min_tokens: usize,
    /// Its tokens are told.
    pub(crate) prompt: Option<Arc<Vec<u32>>>,
    /// And its text stands before the answer.
    pub(crate) echo: bool,
    /// Reasoning and calls are told apart from the text.
    pub(crate) speech: Option<Arc<Speech>>,
}

/// Turns tokens into text, pure and step by step.
struct Decoder {
    options: DecodeOptions,
    detokenizer: Detokenizer,
    stops: StopStrings,
    /// The search has begun, in this piece of text.
    searching: bool,
    speaker: Option<Speaker>,
    /// Tokens that were drawn before the reasoning ended, with that one.
    n_reasoning: usize,
    /// Code points decoded so far, those held back included.
    n_chars: usize,
    n_tokens: usize,
    /// Not yet told: tokens whose text is held back, and text that is free to go.
    pending: Delta,
    stopped: Option<Option<StopReason>>,
}

impl Decoder {
    fn new(options: DecodeOptions) -> Self {
        let tokenizer = options.tokenizer.clone();
        let shown = options.speech.as_ref().map(|speech| speech.shown.clone()).unwrap_or_default();
        Self {
            detokenizer: Detokenizer::new(tokenizer, options.skip_special_tokens).showing(shown),
            speaker: options.speech.as_deref().map(Speaker::new),
            n_reasoning: 0,
            stops: StopStrings::new(options.stop.clone(), options.include_stop),
            searching: false,
            options,
            n_chars: 0,
            n_tokens: 0,
            pending: Delta::default(),
            stopped: None,
        }
    }

    /// Tells the prompt, if it is wanted. `scores` belong to its second token and those after.
    fn prompt(&mut self, scores: Vec<Logprobs>) {
        let Some(prompt) = self.options.prompt.clone() else { return };
        let mut scores = scores.into_iter().map(Some);
        for (i, &id) in prompt.iter().enumerate() {
            let logprobs = if i == 0 { None } else { scores.next().flatten() };
            self.pending.prompt.push(ScoredToken { id, text_offset: self.n_chars, logprobs });
            if !self.options.echo {
                continue;
            }
            let text = self.detokenizer.push(id);
            self.n_chars += text.chars().count();
            self.pending.say(Said::Text(text));
        }
    }

    fn token(&mut self, token: Token) {
        let Token { id, logprobs } = token;
        self.n_tokens += 1;
        if self.speaker.as_ref().is_some_and(Speaker::is_reasoning) {
            self.n_reasoning += 1;
        }
        self.pending.tokens.push(ScoredToken { id, text_offset: self.n_chars, logprobs });
        let eos = self.options.eos_ids.contains(&id);
        if eos || self.options.stop_token_ids.contains(&id) {
            self.stopped = Some((!eos).then_some(StopReason::Id(id)));
            if eos || !self.options.include_stop {
                return;
            }
        }
        let text = self.detokenizer.push(id);
        self.text(&text);
    }

    /// Takes decoded text, up to the first stop string.
    fn text(&mut self, text: &str) {
        self.n_chars += text.chars().count();
        match &mut self.speaker {
            Some(speaker) => {
                let said = speaker.push(text);
                self.said(said);
            }
            None => self.said(vec![Said::Text(text.to_owned())]),
        }
    }

    /// Stop strings are looked for in the answer's text alone, not in reasoning and not in calls.
    fn said(&mut self, said: Vec<Said>) {
        for said in said {
            match said {
                _ if self.stopped_by_text() => return,
                Said::Text(text) if self.n_tokens > self.options.min_tokens => {
                    let outcome = self.stops.push(&text);
                    self.searched(outcome);
                    self.searching = true;
                }
                said => {
                    self.release();
                    self.pending.say(said);
                }
            }
        }
    }

    /// What is held back of the text is no stop string: something else follows.
    fn release(&mut self) {
        if std::mem::take(&mut self.searching) {
            let outcome = self.stops.finish();
            self.searched(outcome);
            self.stops = StopStrings::new(self.options.stop.clone(), self.options.include_stop);
        }
    }

    fn searched(&mut self, outcome: StopOutcome) {
        self.pending.say(Said::Text(outcome.text));
        if let Some(stop) = outcome.matched.and_then(|stop| self.options.stop.get(stop)) {
            self.stopped = Some(Some(StopReason::Text(stop.clone())));
        }
    }

    fn stopped_by_text(&self) -> bool {
        matches!(self.stopped, Some(Some(StopReason::Text(_))))
    }

    /// What can be told now.
    fn take(&mut self) -> Option<Delta> {
        (!self.pending.said.is_empty()).then(|| std::mem::take(&mut self.pending))
    }

    /// The last pieces. Nothing may come after a stop string, so nothing held back is released.
    fn end(&mut self, reason: FinishReason) -> (Option<Delta>, Delta) {
        if !self.stopped_by_text() {
            let tail = self.detokenizer.finish();
            self.text(&tail);
        }
        if let Some(speaker) = &mut self.speaker {
            let said = speaker.finish();
            self.said(said);
        }
        if !self.stopped_by_text() {
            let outcome = self.stops.finish();
            self.searched(outcome);
        }
        let called = self.speaker.as_ref().is_some_and(Speaker::has_called);
        let last = self.take();
        let reason = if self.stopped.is_some() { FinishReason::Stop } else { reason };
        let mut finish = std::mem::take(&mut self.pending);
        finish.finish = Some(Finish { reason, stop: self.stopped.take().flatten(), called });
        (last, finish)
    }
}

/// A choice on its way. Dropping it cancels the engine's work.
pub(crate) struct Choice {
    events: Option<Events>,
    decoder: Decoder,
    timer: SequenceTimer,
    scores: Vec<Logprobs>,
    told_prompt: bool,
    ready: VecDeque<Update>,
}

impl Choice {
    pub(crate) fn new(events: Events, options: DecodeOptions, timer: SequenceTimer) -> Self {
        Self {
            events: Some(events),
            decoder: Decoder::new(options),
            timer,
            scores: Vec::new(),
            told_prompt: false,
            ready: VecDeque::new(),
        }
    }

    /// The next update; `None` after the one that finishes. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Result<Update, Broken>> {
        loop {
            if let Some(update) = self.ready.pop_front() {
                return Some(Ok(update));
            }
            let event = self.events.as_mut()?.recv().await;
            if let Err(broken) = self.take(event) {
                self.events = None;
                // As vLLM counts what its front end gives up.
                let expired = broken == Broken::Expired;
                self.timer.finish(if expired { Finished::Abort } else { Finished::Error });
                return Some(Err(broken));
            }
        }
    }

    fn take(&mut self, event: Option<Event>) -> Result<(), Broken> {
        match event {
            Some(Event::Started { cached_tokens }) => {
                self.timer.started();
                self.ready.push_back(Update::Started { cached_tokens });
            }
            Some(Event::Prompt(scores)) => self.scores.extend(scores),
            Some(Event::Tokens(tokens)) => self.tokens(tokens),
            Some(Event::End(End::Finished(reason))) => self.finish(reason),
            Some(Event::End(End::Rejected(reason))) => return Err(Broken::Rejected(reason)),
            Some(Event::End(End::Expired)) => return Err(Broken::Expired),
            Some(Event::End(End::Stuck)) => return Err(Broken::Stuck),
            Some(Event::End(End::Failed(cause))) => return Err(Broken::Failed(cause)),
            None => return Err(Broken::Failed("the engine left without an end".into())),
        }
        Ok(())
    }

    fn prompt(&mut self) {
        if !std::mem::replace(&mut self.told_prompt, true) {
            self.decoder.prompt(std::mem::take(&mut self.scores));
        }
    }

    fn tokens(&mut self, tokens: Vec<Token>) {
        self.prompt();
        for token in tokens {
            self.timer.token();
            self.decoder.token(token);
            if self.decoder.stopped_by_text() {
                // The engine knows no text: it is told to stop by hanging up.
                return self.finish(FinishReason::Stop);
            }
        }
        self.ready.extend(self.decoder.take().map(Update::Delta));
    }

    fn finish(&mut self, reason: FinishReason) {
        self.prompt();
        let (last, finish) = self.decoder.end(reason);
        self.timer.finish(match finish.finish.as_ref().map(Finish::as_str) {
            Some("stop") => Finished::Stop,
            Some("tool_calls") => Finished::ToolCalls,
            _ => Finished::Length,
        });
        self.ready.extend(last.map(Update::Delta));
        let tokens = self.decoder.n_reasoning;
        self.ready.extend((tokens > 0).then_some(Update::Reasoned { tokens }));
        self.ready.push_back(Update::Delta(finish));
        self.events = None;
    }
}
