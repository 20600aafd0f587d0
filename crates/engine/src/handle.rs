//! The engine as others see it: a handle that submits without waiting, and the inbox behind it.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use kv_cache::{Chain, Units};

use crate::counters::{Counters, Snapshot};
use crate::engine::Engine;
use crate::policy::Policy;
use crate::queue::{Full, Place, Queue};
use crate::reply::{self, Events, Reply};
use crate::request::{CHOICES_MAX, End, Request};
use crate::runner::{Limits, ModelRunner};
use crate::sampling::penalised;
use crate::sync::atomic::Ordering::SeqCst;
use crate::sync::mpsc;

#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Requests that may wait for room, beside those that need not wait; more are refused as
    /// [`Busy::Requests`].
    pub max_waiting: usize,
    /// Prompt tokens that may wait; more are refused as [`Busy::Tokens`]. A longer prompt waits alone.
    pub max_waiting_tokens: usize,
    /// Ids at or above it are never drawn: rows that pad the output matrix beyond the tokenizer.
    pub sampled_vocab: usize,
    /// Keep computed blocks for requests that begin alike.
    pub prefix_cache: bool,
    /// Names the weights in the names of cached blocks.
    pub model_identity: String,
    pub policy: Policy,
}

impl Default for Options {
    /// A queue of 1,024 requests of any length; every row of the output matrix may be drawn.
    fn default() -> Self {
        Self {
            max_waiting: 1_024,
            max_waiting_tokens: usize::MAX,
            sampled_vocab: usize::MAX,
            prefix_cache: true,
            model_identity: String::new(),
            policy: Policy::default(),
        }
    }
}

/// Why a request was not taken; trying again later may help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    #[error("as many requests as may wait ({max_waiting}) do so already; try again later")]
    Requests { max_waiting: usize },
    #[error("prompts waiting already leave too little room of {max_waiting_tokens} tokens; try again later")]
    Tokens { max_waiting_tokens: usize },
    #[error("the engine has stopped")]
    Stopped,
}

/// Puts `runner` on a thread of its own. The thread ends when it is told to
/// ([`EngineHandle::shutdown`]), or when all handles are gone and nothing runs.
///
/// # Panics
/// If the runner's limits let nothing run, or no thread can be started.
pub fn start<R: ModelRunner + 'static>(runner: R, options: Options) -> (EngineHandle, JoinHandle<()>) {
    let (handle, inbox) = connect(runner.limits(), options);
    let run = move || Engine::new(runner, inbox).run();
    let thread = thread::Builder::new().name("engine".into()).spawn(run);
    (handle, thread.expect("the system can start a thread"))
}

/// A handle and the inbox of an engine still to be built, for those who drive
/// [`Engine::step`] themselves.
///
/// # Panics
/// As [`start`].
pub fn connect(limits: Limits, options: Options) -> (EngineHandle, Inbox) {
    limits.assert_usable();
    let (sender, messages) = mpsc::channel();
    let counters = Arc::new(Counters::default());
    counters.alive.store(true, SeqCst);
    let queue = Queue::new(options.max_waiting, options.max_waiting_tokens, limits.places());
    let limits = Arc::new(limits);
    let handle = EngineHandle {
        sender,
        queue: queue.clone(),
        counters: counters.clone(),
        limits: limits.clone(),
        model_identity: options.model_identity.as_bytes().into(),
        caching: options.prefix_cache,
    };
    (handle, Inbox { life: Life(counters), messages, queue, limits, options })
}

/// Submits requests; clones share one engine.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    sender: mpsc::Sender<Message>,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    limits: Arc<Limits>,
    model_identity: Arc<[u8]>,
    caching: bool,
}

impl EngineHandle {
    /// Queues a request, never waiting. The answer has as many streams as the request has choices, in
    /// their order. A request that can never run hears `Rejected` at once.
    pub fn submit(&self, request: Request) -> Result<Vec<Events>, Busy> {
        let channels = (0..request.n.clamp(1, CHOICES_MAX)).map(|_| reply::channel(&request, &self.limits));
        let (replies, events): (Vec<Reply>, Vec<Events>) = channels.unzip();
        if let Err(reason) = request.check(&self.limits) {
            for reply in replies {
                let end = End::Rejected(reason.clone());
                self.counters.count_end(&end);
                reply.finish(end);
            }
            return Ok(events);
        }
        if !self.counters.alive.load(SeqCst) {
            return Err(Busy::Stopped);
        }
        let place = self.queue.enter(request.n, request.prompt.len()).map_err(|full| match full {
            Full::Requests(max_waiting) => Busy::Requests { max_waiting },
            Full::Tokens(max_waiting_tokens) => Busy::Tokens { max_waiting_tokens },
        })?;
        let (chain, penalised) = (self.chain(&request), penalised(&request));
        let arrival = Arrival { request, replies, chain, penalised, place };
        self.sender.send(Message::Submit(Box::new(arrival))).map_err(|_| Busy::Stopped)?;
        Ok(events)
    }

    /// Hashed here, so that the engine's thread need not.
    fn chain(&self, request: &Request) -> Chain {
        // What is only scored may be an answer: it is computed as if token by token, as answers are.
        let prompt_len = if request.max_new_tokens == 0 { 0 } else { request.prompt.len() };
        let units = Units::new(self.limits.prefill_unit, prompt_len, &request.drawn);
        let mut chain = Chain::new(&self.model_identity, &request.cache_salt, self.limits.block_len, units);
        if self.caching {
            chain.extend(&request.prompt);
        }
        chain
    }

    pub fn snapshot(&self) -> Snapshot {
        self.counters.snapshot(self.queue.choices() as u64)
    }

    /// Sizes of the model that is served.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Ends the engine after the step that runs now: whoever still waits for tokens hears
    /// `Failed`. To drain first, stop submitting until nothing runs or waits.
    pub fn shutdown(&self) {
        let _ = self.sender.send(Message::Shutdown); // an engine that is gone needs no telling
    }
}

/// A request that has passed [`Request::check`], on its way to the scheduler.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) request: Request,
    /// One a choice.
    pub(crate) replies: Vec<Reply>,
    pub(crate) chain: Chain,
    /// See [`penalised`].
    pub(crate) penalised: Arc<[u32]>,
    pub(crate) place: Place,
}

#[derive(Debug)]
pub(crate) enum Message {
    Submit(Box<Arrival>),
    Shutdown,
}

/// The engine's side of its handles.
#[derive(Debug)]
pub struct Inbox {
    /// Before `messages`: whoever hears `Failed` because the engine ended sees it dead.
    pub(crate) life: Life,
    pub(crate) messages: mpsc::Receiver<Message>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) options: Options,
}

/// Tells the handles when the engine is gone, be it by a panic.
#[derive(Debug)]
pub(crate) struct Life(pub(crate) Arc<Counters>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.alive.store(false, SeqCst);
        self.0.clear_gauges();
    }
}
