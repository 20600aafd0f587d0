//! The engine as others see it: a handle that submits without waiting, and the inbox behind it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::counters::{Counters, Snapshot};
use crate::engine::Engine;
use crate::reply::{self, Events, Reply};
use crate::request::{End, Request};
use crate::runner::{Limits, ModelRunner};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Requests that may wait for room; more are refused as [`Busy::Full`]. At least 1.
    pub max_waiting: usize,
    /// Ids at or above it are never drawn: rows that pad the output matrix beyond the tokenizer.
    pub sampled_vocab: usize,
}

impl Default for Options {
    /// A queue of 1,024, and every row of the output matrix may be drawn.
    fn default() -> Self {
        Self { max_waiting: 1_024, sampled_vocab: usize::MAX }
    }
}

/// Why a request was not taken; trying again later may help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    #[error("{max_waiting} requests are waiting already; try again later")]
    Full { max_waiting: usize },
    #[error("the engine has stopped")]
    Stopped,
}

/// Puts `runner` on a thread of its own. The thread ends when it is told to
/// ([`EngineHandle::shutdown`]), or when all handles are gone and nothing runs.
///
/// # Panics
/// If the runner's limits let nothing run, `max_waiting` is 0, or no thread can be started.
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
    assert!(options.max_waiting > 0, "a queue of length 0 refuses every request");
    let max_waiting = options.max_waiting.min(Semaphore::MAX_PERMITS);
    let (sender, messages) = mpsc::channel();
    let counters = Arc::new(Counters::default());
    counters.alive.store(true, Relaxed);
    let limits = Arc::new(limits);
    let inbox = Inbox { life: Life(counters.clone()), messages, limits: limits.clone(), options };
    let room = Arc::new(Semaphore::new(max_waiting));
    (EngineHandle { sender, room, max_waiting, counters, limits }, inbox)
}

/// Submits requests; clones share one engine.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    sender: mpsc::Sender<Message>,
    /// A permit for each request that may wait: what bounds the channel above.
    room: Arc<Semaphore>,
    max_waiting: usize,
    counters: Arc<Counters>,
    limits: Arc<Limits>,
}

impl EngineHandle {
    /// Queues a request, never waiting. One that can never run hears `Rejected` at once.
    pub fn submit(&self, request: Request) -> Result<Events, Busy> {
        let (reply, events) = reply::channel(&request, &self.limits);
        if let Err(reason) = request.check(&self.limits) {
            let end = End::Rejected(reason);
            self.counters.count_end(&end);
            reply.finish(end);
            return Ok(events);
        }
        if !self.counters.alive.load(Relaxed) {
            return Err(Busy::Stopped);
        }
        let Ok(place) = self.room.clone().try_acquire_owned() else {
            return Err(Busy::Full { max_waiting: self.max_waiting });
        };
        let message = Message::Submit(Waiting { request, reply, _place: place });
        self.sender.send(message).map_err(|_| Busy::Stopped)?;
        Ok(events)
    }

    pub fn snapshot(&self) -> Snapshot {
        let waiting = self.max_waiting - self.room.available_permits();
        self.counters.snapshot(waiting as u64)
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

/// A request that has passed [`Request::check`] and holds no blocks yet.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) request: Request,
    pub(crate) reply: Reply,
    /// Its place in the queue, given back when dropped.
    _place: OwnedSemaphorePermit,
}

#[derive(Debug)]
pub(crate) enum Message {
    Submit(Waiting),
    Shutdown,
}

/// The engine's side of its handles.
#[derive(Debug)]
pub struct Inbox {
    /// Before `messages`: whoever hears `Failed` because the engine ended sees it dead.
    pub(crate) life: Life,
    pub(crate) messages: mpsc::Receiver<Message>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) options: Options,
}

/// Tells the handles when the engine is gone, be it by a panic.
#[derive(Debug)]
pub(crate) struct Life(pub(crate) Arc<Counters>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.alive.store(false, Relaxed);
        self.0.running.store(0, Relaxed);
        self.0.blocks_used.store(0, Relaxed);
    }
}
