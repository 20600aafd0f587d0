//! An engine stepped by hand, and clients that keep account of what they hear.

use std::time::Instant;

use engine::request::{End, Event, FinishReason, Logprobs, Request, Sampling, Token};
use engine::testing::{FakeRunner, fill_noise_in_units};
use engine::{Busy, Engine, EngineHandle, Events, Options, connect};

pub(crate) use engine::runner::{Limits, ModelRunner};

pub(crate) struct Rig {
    pub(crate) handle: EngineHandle,
    engine: Engine<FakeRunner>,
    /// What the engine takes for the time.
    pub(crate) now: Instant,
}

impl Rig {
    pub(crate) fn new(runner: FakeRunner) -> Self {
        Self::with_options(runner, Options::default())
    }

    pub(crate) fn with_options(runner: FakeRunner, options: Options) -> Self {
        let (handle, inbox) = connect(runner.limits(), options);
        Self { handle, engine: Engine::new(runner, inbox), now: Instant::now() }
    }

    pub(crate) fn submit(&self, request: Request) -> Client {
        self.try_submit(request).expect("room in the queue")
    }

    pub(crate) fn try_submit(&self, request: Request) -> Result<Client, Busy> {
        self.handle.submit(request).map(|mut choices| Client::new(choices.pop().expect("one choice")))
    }

    /// One client a choice.
    pub(crate) fn submit_choices(&self, request: Request) -> Vec<Client> {
        self.handle.submit(request).expect("room in the queue").into_iter().map(Client::new).collect()
    }

    /// One step, unless there is nothing to do.
    pub(crate) fn step(&mut self) -> bool {
        let now = self.handle.snapshot();
        if now.running + now.waiting == 0 {
            return false;
        }
        assert!(self.engine.receive());
        self.engine.step(self.now);
        self.engine.check_pool();
        true
    }

    /// Steps until nothing is left to do, then sees the pool whole.
    pub(crate) fn finish(&mut self) {
        let mut steps_left = 100_000;
        while self.step() {
            steps_left -= 1;
            assert!(steps_left > 0, "the engine does not come to rest");
        }
        let now = self.handle.snapshot();
        assert_eq!((now.running, now.waiting, now.blocks_used), (0, 0, 0));
    }

    /// The whole answers to these requests, submitted together.
    pub(crate) fn answers(&mut self, requests: impl IntoIterator<Item = Request>) -> Vec<Heard> {
        let clients: Vec<Client> = requests.into_iter().map(|request| self.submit(request)).collect();
        self.finish();
        clients.into_iter().map(Client::end).collect()
    }
}

/// Everything one request's owner heard, which came in the order that the contract promises.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Heard {
    pub(crate) started: bool,
    pub(crate) scores: Vec<Logprobs>,
    pub(crate) tokens: Vec<Token>,
    pub(crate) end: Option<End>,
}

impl Heard {
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }

    fn hear(&mut self, event: Event) {
        assert_eq!(self.end, None, "{event:?} after the end");
        match event {
            Event::Started { .. } => {
                assert!(!self.started, "started twice");
                self.started = true;
            }
            Event::Prompt(scores) => {
                assert!(self.started && self.tokens.is_empty());
                self.scores.extend(scores);
            }
            Event::Tokens(tokens) => {
                assert!(self.started && !tokens.is_empty());
                self.tokens.extend(tokens);
            }
            Event::End(end) => {
                assert!(self.started || !matches!(end, End::Finished(_)));
                self.end = Some(end);
            }
        }
    }
}

pub(crate) struct Client {
    events: Events,
    heard: Heard,
    /// As `Started` told.
    pub(crate) cached_tokens: usize,
}

impl Client {
    pub(crate) fn new(events: Events) -> Self {
        Self { events, heard: Heard::default(), cached_tokens: 0 }
    }

    /// What was heard up to the last time.
    pub(crate) fn heard(&self) -> &Heard {
        &self.heard
    }

    fn hear(&mut self, event: Event) {
        if let Event::Started { cached_tokens } = event {
            self.cached_tokens = cached_tokens;
        }
        self.heard.hear(event);
    }

    /// What has been heard so far.
    pub(crate) fn listen(&mut self) -> &Heard {
        while let Some(event) = self.events.try_recv() {
            self.hear(event);
        }
        &self.heard
    }

    /// For an engine on its own thread: waits for the stream to close.
    pub(crate) fn wait(mut self) -> Heard {
        while let Some(event) = self.events.blocking_recv() {
            self.hear(event);
        }
        self.end()
    }

    pub(crate) fn end(mut self) -> Heard {
        self.listen();
        assert!(self.heard.end.is_some(), "no end was heard: {:?}", self.heard);
        self.heard
    }
}

/// A prompt of `len` tokens that no other `name` shares its first token with.
pub(crate) fn prompt(name: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| if i == 0 { name } else { (name * 31 + i * 7 + i * i) % 96 }).collect()
}

pub(crate) fn request(name: u32, prompt_len: usize, max_new_tokens: usize) -> Request {
    Request { prompt: prompt(name, prompt_len), max_new_tokens, ..Request::default() }
}

pub(crate) fn sampled(seed: u64) -> Sampling {
    Sampling { temperature: 0.7, top_p: 0.9, seed: Some(seed), ..Sampling::default() }
}

/// What the fake says greedily after `prompt`, without any engine: the answer and why it ends.
pub(crate) fn expected(request: &Request, limits: &Limits) -> Heard {
    let mut tokens = request.prompt.clone();
    let mut row = vec![0.0; limits.vocab_size];
    let mut reason = FinishReason::Length;
    let border = tokens.len() - tokens.len() % limits.prefill_unit;
    while tokens.len() < limits.context_len && tokens.len() < request.prompt.len() + request.max_new_tokens {
        fill_noise_in_units(&tokens, border, &mut row);
        let best = (0..limits.vocab_size).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
        tokens.push(best);
        if request.stop_ids.contains(&best) {
            reason = FinishReason::Stop;
            break;
        }
    }
    let tokens = tokens[request.prompt.len()..].iter().map(|&id| Token { id, logprobs: None }).collect();
    Heard { started: true, scores: Vec::new(), tokens, end: Some(End::Finished(reason)) }
}
