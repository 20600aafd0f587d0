//! An engine stepped by hand, and clients that keep account of what they hear.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use engine::request::{End, Event, FinishReason, Logprobs, Request, Sampling, Token};
use engine::testing::{FakeRunner, fill_noise_in_units};
use engine::{Busy, Engine, EngineHandle, Events, Options, Snapshot, connect};

pub(crate) use engine::runner::{Limits, ModelRunner};

pub(crate) struct Rig {
    pub(crate) handle: EngineHandle,
    /// Until it dies.
    engine: Option<Engine<FakeRunner>>,
    /// What the engine takes for the time.
    pub(crate) now: Instant,
}

impl Rig {
    pub(crate) fn new(runner: FakeRunner) -> Self {
        Self::with_options(runner, Options::default())
    }

    pub(crate) fn with_options(runner: FakeRunner, options: Options) -> Self {
        let (handle, inbox) = connect(runner.limits(), options);
        Self { handle, engine: Some(Engine::new(runner, inbox)), now: Instant::now() }
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

    /// One step, unless there is nothing to do. False, too, once the engine is dead: of a panic that
    /// the fake was told to have, or since it was told to shut down.
    pub(crate) fn step(&mut self) -> bool {
        let Snapshot { running, waiting, .. } = self.handle.snapshot();
        running + waiting > 0 && advance(&mut self.engine, self.now)
    }

    /// Lets go of the last handle, and steps until the engine ends by itself.
    pub(crate) fn abandon(self, mut after_step: impl FnMut()) {
        let Self { handle, mut engine, now } = self;
        drop(handle);
        while advance(&mut engine, now) {
            after_step();
        }
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

/// Receives and steps; false if the engine has ended, and then it is gone.
fn advance(engine: &mut Option<Engine<FakeRunner>>, now: Instant) -> bool {
    let Some(running) = engine else { return false };
    let work = AssertUnwindSafe(|| {
        let lives = running.receive();
        if lives {
            running.step(now);
            running.check_pool();
        }
        lives
    });
    let lives = catch_unwind(work).unwrap_or_else(|panic| {
        let told = panic.downcast_ref::<String>().is_some_and(|text| text.contains("as told"));
        if told { false } else { resume_unwind(panic) }
    });
    if !lives {
        *engine = None;
    }
    lives
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

    /// Takes one event, if there is one.
    pub(crate) fn listen_once(&mut self) {
        if let Some(event) = self.events.try_recv() {
            self.hear(event);
        }
    }

    /// Everything, of a stream that has ended and is closed.
    pub(crate) fn end(mut self) -> Heard {
        self.listen();
        assert!(self.heard.end.is_some(), "no end was heard: {:?}", self.heard);
        let closed = self.events.poll_recv(&mut Context::from_waker(Waker::noop()));
        assert_eq!(closed, Poll::Ready(None), "after the end");
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
    let in_unit = |position: usize| {
        let begin = position - position % limits.prefill_unit;
        let end = begin.saturating_add(limits.prefill_unit);
        end <= request.prompt.len()
            && !request.drawn.iter().any(|drawn| drawn.start < end && begin < drawn.end)
    };
    while tokens.len() < limits.context_len && tokens.len() < request.prompt.len() + request.max_new_tokens {
        fill_noise_in_units(&tokens, in_unit, &mut row);
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
