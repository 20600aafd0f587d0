//! What the server is told: options at start, the model once it is loaded.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dialect::Dialect;
use engine::request::Request;
use engine::{Busy, EngineHandle, Events, Snapshot};
use grammar::Compiler;
use openai::{Code, Error};
use text::{ChatTemplate, Tokenizer};
use tokio::sync::{Notify, watch};

use crate::auth::ApiKeys;
use crate::constrain;
use crate::errors::{engine_dead, shutting_down};
use crate::limit::RateLimit;
use crate::metrics::Metrics;
use crate::waiting::Waiting;
use crate::watchdog::Pulse;

/// Unknown field names that are remembered.
const IGNORED_MAX: usize = 256;

/// Settings of the front end. All limits are bounds on what one client can cost.
#[derive(Debug, Clone)]
pub struct Options {
    /// Names that the model is served under; the first is the label of the metrics.
    pub names: Vec<String>,
    /// Empty: open to all.
    pub api_keys: ApiKeys,
    /// Requests a minute of one key, or of one address where there are no keys. `None`: no bound.
    pub rate_limit: Option<NonZeroU32>,
    /// Of connections open at a time. Who comes then waits to be accepted.
    pub connections_max: usize,
    /// Origins allowed beside localhost; `*` allows any.
    pub cors_origins: Vec<String>,
    pub body_bytes_max: usize,
    /// For the headers, and again for the body.
    pub read_timeout: Duration,
    /// How long a client may leave an answer unread before it is cut.
    pub stall_timeout: Duration,
    /// Silence in a stream before a comment is sent.
    pub keep_alive: Duration,
    /// How long running requests may go on after the stop signal.
    pub grace: Duration,
    /// A request's whole life, from its submission to the engine on. `None`: no bound.
    pub request_timeout: Option<Duration>,
    /// How long a step of the engine may take before the engine counts as dead.
    pub step_timeout: Duration,
    /// Time for the last errors to reach their clients, after the grace period or the engine's death.
    pub last_words: Duration,
    /// Of a schema, an expression or a grammar that clients ask for.
    pub grammar_bytes_max: usize,
    /// For compiling one.
    pub grammar_timeout: Duration,
    /// How the model writes tool calls: one of [`dialect::Dialect::names`]. `None`: its chat template tells.
    pub tool_format: Option<String>,
    /// Reasoning is told apart from the answer's text.
    pub separate_reasoning: bool,
    /// The engine keeps a prefix cache: its series are there.
    pub prefix_cache: bool,
    pub build: Build,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            names: vec!["demo".into()],
            api_keys: ApiKeys::default(),
            rate_limit: None,
            connections_max: 4096,
            cors_origins: Vec::new(),
            body_bytes_max: 16 << 20,
            read_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(15),
            grace: Duration::from_secs(30),
            request_timeout: None,
            step_timeout: Duration::from_secs(300),
            last_words: Duration::from_secs(2),
            grammar_bytes_max: 64 << 10,
            grammar_timeout: Duration::from_secs(1),
            tool_format: None,
            separate_reasoning: true,
            prefix_cache: true,
            build: Build::default(),
        }
    }
}

impl Options {
    /// What a client's grammar may cost.
    pub(crate) fn grammar_limits(&self) -> grammar::Limits {
        grammar::Limits {
            source_bytes_max: self.grammar_bytes_max,
            time_max: self.grammar_timeout,
            ..grammar::Limits::default()
        }
    }
}

/// Identity of the program.
#[derive(Debug, Clone, Default)]
pub struct Build {
    pub version: String,
    pub commit: String,
    /// Profile and target, as a person would name the build.
    pub build: String,
}

/// The engine as the server sees it; tests put a scripted one here.
pub trait Engine: Send + Sync {
    /// Queues a request without waiting. It has one stream of events a choice.
    fn submit(&self, request: Request) -> Result<Vec<Events>, Busy>;
    fn snapshot(&self) -> Snapshot;
}

impl Engine for EngineHandle {
    fn submit(&self, request: Request) -> Result<Vec<Events>, Busy> {
        EngineHandle::submit(self, request)
    }

    fn snapshot(&self) -> Snapshot {
        EngineHandle::snapshot(self)
    }
}

/// A loaded model and all that answering for it takes.
pub struct ServedModel {
    pub engine: Box<dyn Engine>,
    pub tokenizer: Arc<Tokenizer>,
    /// `None`: the checkpoint has none, chat is refused.
    pub chat_template: Option<Arc<ChatTemplate>>,
    /// Ids that end an answer: of generation_config.json, config.json and the tokenizer.
    pub eos_ids: Vec<u32>,
    pub defaults: Defaults,
    /// Prompt and answer together, in tokens.
    pub context_len: usize,
    /// Rows of the output matrix; prompt ids are below it.
    pub vocab_size: usize,
    /// Changes when outputs could: a hash of build, checkpoint, dtype and device.
    pub fingerprint: String,
    /// Requests that may wait in the engine's queue.
    pub max_waiting: usize,
    /// Their prompt tokens.
    pub max_waiting_tokens: usize,
    pub device: String,
    pub kv_cache: KvCacheInfo,
}

impl ServedModel {
    /// Ids below it can be drawn: those that are tokens and have a row in the output matrix.
    pub(crate) fn drawable(&self) -> usize {
        self.tokenizer.vocab_size().min(self.vocab_size)
    }
}

/// Sampling of requests that do not say, from generation_config.json.
#[derive(Debug, Clone, Default)]
pub struct Defaults {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<usize>,
    pub repetition_penalty: Option<f32>,
}

/// Shape of the KV pool, for the metrics.
#[derive(Debug, Clone, Default)]
pub struct KvCacheInfo {
    pub block_len: usize,
    pub n_blocks: usize,
    pub dtype: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    /// New requests are refused, running ones go on.
    Draining,
    /// The grace period is over: what still runs ends with an error.
    Ending,
    /// The engine is dead or stuck: everything ends with an error. The last phase.
    Dead,
}

/// The server's state. Clones share it.
#[derive(Clone)]
pub struct App(Arc<State>);

struct State {
    options: Options,
    created: u64,
    model: OnceLock<ServedModel>,
    /// Share of the loading that is done, in thousandths.
    loaded: AtomicU32,
    phase: watch::Sender<Phase>,
    open_requests: AtomicUsize,
    idle: Notify,
    waiting: Waiting,
    rate_limit: Option<RateLimit>,
    metrics: Metrics,
    /// Of the model's tokens.
    compiler: OnceLock<Arc<Compiler>>,
    /// How the model writes what is not plain text.
    dialect: OnceLock<Dialect>,
    /// Unknown field names that the log has seen.
    ignored: Mutex<HashSet<String>>,
}

impl App {
    pub fn new(options: Options) -> Self {
        let name = options.names.first().map_or("", String::as_str);
        Self(Arc::new(State {
            metrics: Metrics::new(name, options.prefix_cache),
            rate_limit: options.rate_limit.map(RateLimit::new),
            options,
            created: unix_seconds(),
            model: OnceLock::new(),
            loaded: AtomicU32::new(0),
            phase: watch::Sender::new(Phase::Serving),
            open_requests: AtomicUsize::new(0),
            idle: Notify::new(),
            waiting: Waiting::new(),
            compiler: OnceLock::new(),
            dialect: OnceLock::new(),
            ignored: Mutex::default(),
        }))
    }

    /// Share of the loading that is done, from 0 to 1; `/health` tells it.
    pub fn set_progress(&self, share: f32) {
        self.0.loaded.store((share.clamp(0.0, 1.0) * 1000.0) as u32, Ordering::Relaxed);
    }

    /// Opens the service. Only the first model counts.
    pub fn set_model(&self, model: ServedModel) {
        self.0.metrics.set_model(&self.0.options.build, &model);
        let masks = self.0.metrics.grammar_masks();
        let observe = move |took: Duration| masks.observe(took.as_secs_f64());
        let compiler = constrain::compiler(&model, self.0.options.grammar_limits(), observe);
        let template = model.chat_template.as_ref().map(|template| template.source());
        let named = self.0.options.tool_format.as_deref();
        let detected = Dialect::detect(template);
        let dialect = named.and_then(|name| detected.with_family(name)).unwrap_or(detected);
        tracing::info!(tool_format = dialect.family.name(), reasons = dialect.reasons, "answers are read");
        let _ = (self.0.compiler.set(Arc::new(compiler)), self.0.dialect.set(dialect)); // only the first counts
        if self.0.model.set(model).is_err() {
            tracing::warn!("a model is served already; the second one is ignored");
        }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(crate) fn rate_limit(&self) -> Option<&RateLimit> {
        self.0.rate_limit.as_ref()
    }

    /// Of the loaded model.
    pub(crate) fn compiler(&self) -> Option<&Arc<Compiler>> {
        self.0.compiler.get()
    }

    /// Of the loaded model.
    pub(crate) fn dialect(&self) -> Dialect {
        self.0.dialect.get().copied().unwrap_or_else(|| Dialect::detect(None))
    }

    pub(crate) fn waiting(&self) -> &Waiting {
        &self.0.waiting
    }

    /// Unix seconds of the start.
    pub(crate) fn created(&self) -> u64 {
        self.0.created
    }

    pub(crate) fn progress(&self) -> f32 {
        self.0.loaded.load(Ordering::Relaxed) as f32 / 1000.0
    }

    pub(crate) fn model(&self) -> Option<&ServedModel> {
        self.0.model.get()
    }

    /// The model, if a new request may be given to it now.
    pub(crate) fn ready_model(&self) -> Result<&ServedModel, Error> {
        match self.phase() {
            Phase::Serving => {}
            Phase::Draining | Phase::Ending => return Err(shutting_down()),
            Phase::Dead => return Err(engine_dead()),
        }
        let model = self.model().ok_or_else(|| {
            Error::new(
                Code::ModelLoading,
                "The model is still loading. Send the request again in a few seconds.",
            )
        })?;
        if !self.engine_lives() {
            return Err(engine_dead());
        }
        Ok(model)
    }

    /// As far as it is known; an engine that is not there yet is not dead.
    pub(crate) fn engine_lives(&self) -> bool {
        self.phase() != Phase::Dead && self.model().is_none_or(|model| model.engine.snapshot().alive)
    }

    /// For the watchdog.
    pub(crate) fn pulse(&self) -> Pulse {
        let Some(model) = self.model() else { return Pulse::Rests };
        let now = model.engine.snapshot();
        // Not who waits for an answer here: a client that reads slowly is no work for the engine.
        let works = now.in_step || now.running > 0 || now.waiting > 0;
        match (now.alive, works) {
            (false, _) => Pulse::Dead,
            (true, true) => Pulse::Works { steps: now.steps },
            (true, false) => Pulse::Rests,
        }
    }

    /// The name that `requested` is answered under.
    pub(crate) fn served_name(&self, requested: Option<&str>) -> Result<String, Error> {
        let names = &self.0.options.names;
        let Some(requested) = requested else {
            return Ok(names.first().cloned().unwrap_or_default());
        };
        if names.iter().any(|name| name == requested) {
            return Ok(requested.to_owned());
        }
        let shown: String = requested.chars().take(128).collect();
        Err(Error::at(
            Code::ModelNotFound,
            "model",
            format!("The model `{shown}` does not exist. Served here: {}.", names.join(", ")),
        ))
    }

    /// Logs each unknown field once, for as many names as the memory of them is bounded to.
    pub(crate) fn note_ignored(&self, names: &[String]) {
        let Ok(mut seen) = self.0.ignored.lock() else { return };
        for name in names {
            let name: String = name.chars().take(64).collect();
            if seen.len() < IGNORED_MAX && seen.insert(name.clone()) {
                tracing::warn!(name, "a request has a field that this server does not know; it is ignored");
            }
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.0.phase.borrow()
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.0.phase.send_if_modified(|now| *now != Phase::Dead && std::mem::replace(now, phase) != phase);
    }

    /// Returns when what runs must end, with what its clients hear.
    pub(crate) async fn ending(&self) -> Error {
        let mut phase = self.0.phase.subscribe();
        // The sender lives as long as `self`, so that waiting cannot fail.
        let ended = phase.wait_for(|phase| matches!(phase, Phase::Ending | Phase::Dead)).await;
        if ended.is_ok_and(|phase| *phase == Phase::Dead) { engine_dead() } else { shutting_down() }
    }

    /// Counts an HTTP request until the guard, held by its response's body, is dropped.
    pub(crate) fn open_request(&self) -> OpenRequest {
        self.0.open_requests.fetch_add(1, Ordering::SeqCst);
        OpenRequest(self.clone())
    }

    /// Returns when no request is open.
    pub(crate) async fn idle(&self) {
        loop {
            let changed = self.0.idle.notified();
            if self.0.open_requests.load(Ordering::SeqCst) == 0 {
                return;
            }
            changed.await;
        }
    }
}

pub(crate) struct OpenRequest(App);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let state = &self.0.0;
        if state.open_requests.fetch_sub(1, Ordering::SeqCst) == 1 {
            state.idle.notify_waiters();
        }
    }
}

pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
