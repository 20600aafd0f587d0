//! A server on a loopback port, engines to put behind it, and a client that speaks bytes.
#![allow(dead_code, unreachable_pub)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use engine::request::{End, Event, FinishReason, Request, Token};
use engine::testing::{FakeRunner, Script, limits, script};
use engine::{Busy, Events, Snapshot};
use serde_json::Value;
use server::{App, Engine, Options, ServedModel};
use text::{ChatTemplate, Tokenizer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Nothing in these tests takes so long.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const VOCAB_SIZE: usize = 544;

pub fn model_limits() -> engine::runner::Limits {
    engine::runner::Limits { vocab_size: VOCAB_SIZE, step_outputs: 300, ..limits() }
}

/// The golden tokenizer of the DeepSeek-V3 shape.
pub fn tokenizer() -> Arc<Tokenizer> {
    let config = golden("tokenizer_config.json");
    Arc::new(Tokenizer::from_bytes(&golden("tokenizer.json"), Some(&config)).expect("a golden"))
}

fn golden(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/tokenizer/v3");
    std::fs::read(folder.join(name)).expect("a golden")
}

pub fn model(engine: Box<dyn Engine>) -> ServedModel {
    let tokenizer = tokenizer();
    let template = ChatTemplate::from_config(&golden("tokenizer_config.json"));
    ServedModel {
        engine,
        chat_template: template.expect("a golden").map(Arc::new),
        tokenizer,
        eos_ids: vec![EOS],
        defaults: server::Defaults { temperature: Some(0.0), ..Default::default() },
        context_len: model_limits().context_len,
        vocab_size: VOCAB_SIZE,
        fingerprint: "fp_test".into(),
        max_waiting: 4,
        max_waiting_tokens: usize::MAX,
        device: "fake".into(),
        kv_cache: Default::default(),
    }
}

pub const EOS: u32 = 1;

pub struct Server {
    pub address: SocketAddr,
    pub app: App,
    stop: Option<oneshot::Sender<()>>,
    pub task: JoinHandle<Result<(), server::EngineFault>>,
}

impl Server {
    /// A server that is still loading.
    pub async fn loading(options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = App::new(options);
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move {
            let _ = stopped.await;
        };
        let task = tokio::spawn(server::run(listener, app.clone(), shutdown));
        Self { address, app, stop: Some(stop), task }
    }

    pub async fn with(options: Options, engine: Box<dyn Engine>) -> Self {
        let server = Self::loading(options).await;
        server.app.set_model(model(engine));
        server
    }

    /// The real engine on a model without weights.
    pub async fn fake() -> Self {
        let runner = FakeRunner::new(model_limits());
        Self::running(options(), runner, engine::Options::default()).await
    }

    /// The real engine on such a model.
    pub async fn running(options: Options, runner: FakeRunner, of_engine: engine::Options) -> Self {
        let server = Self::loading(options).await;
        let bounds = (of_engine.max_waiting, of_engine.max_waiting_tokens);
        let (handle, _) = engine::start(runner, of_engine);
        let (max_waiting, max_waiting_tokens) = bounds;
        server.app.set_model(ServedModel { max_waiting, max_waiting_tokens, ..model(Box::new(handle)) });
        server
    }

    pub fn stop(&mut self) {
        let _ = self.stop.take().expect("stopped once").send(());
    }

    pub async fn send(&self, request: &str) -> Reply {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        read_reply(&mut client).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(&post(path, &body.to_string())).await
    }

    /// Sends a request and leaves its answer to [`read_reply`].
    pub async fn begin(&self, path: &str, body: &Value) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        client.write_all(post(path, &body.to_string()).as_bytes()).await.unwrap();
        client
    }

    /// The value of a metric's line, found by its beginning.
    pub async fn metric(&self, start: &str) -> f64 {
        let text = self.get("/metrics").await.body;
        let line = text.lines().find(|line| line.starts_with(start));
        let line = line.unwrap_or_else(|| panic!("no {start} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until a metric has a value.
    pub async fn until_metric(&self, start: &str, value: f64) {
        let reached = async {
            while self.metric(start).await != value {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let reached = timeout(PATIENCE, reached).await;
        reached.unwrap_or_else(|_| panic!("{start} never became {value}"));
    }
}

pub fn options() -> Options {
    Options { names: vec!["org/fake".into(), "alias".into()], ..Options::default() }
}

pub fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// Code and parameter of an error whose object is well formed.
    pub fn error(&self) -> (String, Option<String>) {
        let error = self.json()["error"].clone();
        let keys: Vec<_> = error.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["message", "type", "param", "code"], "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"));
        (error["code"].as_str().unwrap().into(), error["param"].as_str().map(Into::into))
    }

    /// The JSON events of a stream that ends as it should.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), Some("text/event-stream"), "{self:?}");
        let events = events(&self.body);
        let body = self.body.strip_suffix("data: [DONE]\n\n");
        assert!(body.is_some_and(|body| !body.contains("[DONE]")), "{}", self.body);
        events
    }
}

pub fn events(body: &str) -> Vec<Value> {
    let lines = body.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    lines.filter(|line| *line != "[DONE]").map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Reads until the server closes.
pub async fn read_reply(client: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut bytes)).await.expect("an answer in time").unwrap();
    parse_reply(&String::from_utf8(bytes).unwrap())
}

pub fn parse_reply(text: &str) -> Reply {
    let text = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(text);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(key, value)| (key.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let chunked = headers.iter().any(|(key, value)| key == "transfer-encoding" && value == "chunked");
    let body = if chunked { unchunk(body) } else { body.to_owned() };
    Reply { status, headers, body }
}

fn unchunk(mut body: &str) -> String {
    let mut text = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").expect("a chunk's size");
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return text;
        }
        text.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
}

/// What a model's steps wait at until a test opens it.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub fn pass(&self) {
        let open = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(open, |open| !*open).unwrap());
    }
}

/// An engine that does what a test says, request by request.
pub struct Scripted {
    play: Box<dyn Fn(Request, Script) + Send + Sync>,
    pub requests: Arc<Mutex<Vec<Request>>>,
    /// Requests that are taken; the others hear `refusal`.
    pub room: AtomicUsize,
    pub refusal: Busy,
}

impl Scripted {
    /// `play` runs on a thread of its own, for each choice.
    pub fn new(play: impl Fn(Request, Script) + Send + Sync + 'static) -> Self {
        Self {
            play: Box::new(play),
            requests: Arc::default(),
            room: AtomicUsize::new(usize::MAX),
            refusal: Busy::Requests { max_waiting: 4 },
        }
    }
}

impl Engine for SharedScript {
    fn submit(&self, request: Request) -> Result<Vec<Events>, Busy> {
        if self.0.room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_err() {
            return Err(self.0.refusal.clone());
        }
        self.0.requests.lock().unwrap().push(request.clone());
        let choice = |_| {
            let (this, request) = (self.0.clone(), request.clone());
            let limits = engine::runner::Limits { context_len: 4_000, ..model_limits() };
            let (script, events) = script(&request, &limits);
            std::thread::spawn(move || (this.play)(request, script));
            events
        };
        Ok((0..request.n).map(choice).collect())
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot { alive: true, blocks_total: 1, ..Snapshot::default() }
    }
}

#[derive(Clone)]
pub struct SharedScript(pub Arc<Scripted>);

pub async fn scripted(options: Options, play: impl Fn(Request, Script) + Send + Sync + 'static) -> Server {
    Server::with(options, Box::new(SharedScript(Arc::new(Scripted::new(play))))).await
}

pub fn started() -> Event {
    Event::Started { cached_tokens: 0 }
}

pub fn tokens(ids: &[u32]) -> Event {
    Event::Tokens(ids.iter().map(|&id| Token { id, logprobs: None }).collect())
}

pub fn finished(reason: FinishReason) -> Event {
    Event::End(End::Finished(reason))
}
