//! The server that is measured: one in this process, or one that runs already.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Args;
use hyper::body::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use super::client::{Address, Client};
use super::local::Local;
use super::prompt::{Draw, Kind, Prompt};
use super::report::{Column, Report, Row};
use super::{print_json, within};
use crate::failure::Failure;
use crate::flags::{ModelFlags, ServerFlags};
use crate::keys::Secret;
use crate::model_dir::ModelFiles;
use crate::settings::{ModelSettings, ServerSettings};
use crate::{logging, print, serve};

/// Of prompts for a server whose vocabulary is not known: every model has so many tokens.
const VOCAB_SIZE: usize = 1000;

/// Whom to drive.
#[derive(Debug, Args)]
pub(crate) struct TargetFlags {
    /// Drive the server that runs at this address, ours or another, instead of starting one here (on a free
    /// port, unless --port names it)
    #[arg(long, value_name = "http://HOST:PORT")]
    url: Option<String>,
    /// Prompts of words, not of token ids, for servers that take no ids or do not tell those of their answers
    #[arg(long)]
    text: bool,
    /// Token ids of prompts are below it [default: the model's vocabulary; 1000 with --url]
    #[arg(long, value_name = "N")]
    vocab: Option<usize>,
    /// The same number draws the same prompts [default: 1; with --url the time, since that server may have
    /// cached the prompts of an earlier run]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Seconds that a request may take; then it has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
    timeout: f64,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    server: ServerFlags,
}

/// A server that is ready, and what its clients need to know.
pub(crate) struct Target {
    runtime: Runtime,
    address: Arc<Address>,
    model: String,
    /// Prompt and answer together; `None`: the server does not tell.
    context_len: Option<usize>,
    kind: Kind,
    seed: u64,
    json: bool,
    /// Its address, or that it is ours.
    place: String,
    /// Runs for as long as it is measured.
    _local: Option<Local>,
}

/// What is read of `GET /v1/models`.
#[derive(Debug, Deserialize)]
struct Models {
    data: Vec<Served>,
}

#[derive(Debug, Deserialize)]
struct Served {
    id: String,
    max_model_len: Option<usize>,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    prompt: &'a Prompt,
    max_tokens: usize,
    temperature: f32,
    ignore_eos: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<Value>,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    return_token_ids: Option<bool>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

impl Target {
    /// Starts the server if it is ours, and asks it what it serves.
    pub(crate) fn open(flags: &TargetFlags) -> Result<Self, Failure> {
        let patience = within("timeout", flags.timeout, 0.001, 86_400.0).map(Duration::from_secs_f64)?;
        flags.vocab.map(|n| within("vocab", n, 1, u32::MAX as usize)).transpose()?;
        let (local, vocab_size) = match &flags.url {
            Some(_) => (None, flags.nothing_to_start().map(|()| VOCAB_SIZE)?),
            None => flags.start().map(|(local, vocab_size)| (Some(local), vocab_size))?,
        };
        let url = local.as_ref().map(|local| &local.url).or(flags.url.as_ref()).map_or("", String::as_str);
        let key = flags.server.api_key.first().map(Secret::reveal);
        let address =
            Address::parse(url, key, patience).map_err(|what| Failure::Usage(format!("url: {what}")))?;
        let address = Arc::new(address);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let served =
            runtime.block_on(served(&address)).with_context(|| format!("asking {url} what it serves"))?;
        let vocab_size = flags.vocab.unwrap_or(vocab_size) as u32;
        Ok(Self {
            runtime,
            address,
            model: served.id,
            context_len: served.max_model_len,
            kind: if flags.text { Kind::Words } else { Kind::Ids { vocab_size } },
            seed: flags.seed.unwrap_or_else(|| if local.is_some() { 1 } else { unix_seconds() }),
            json: flags.json,
            place: flags.url.clone().unwrap_or_else(|| "in this process".into()),
            _local: local,
        })
    }

    /// Refuses what can never be answered; `option` is the flag that asks for most of it.
    pub(crate) fn check_room(&self, option: &str, tokens: usize) -> Result<(), Failure> {
        match self.context_len {
            Some(context_len) if tokens > context_len => Err(Failure::Usage(format!(
                "{option}: prompts and answers come to {tokens} tokens; the context of {} is {context_len}; give less",
                self.model
            ))),
            _ => Ok(()),
        }
    }

    /// `n` clients, connected.
    pub(crate) fn clients(&self, n: usize) -> Vec<Client> {
        self.runtime.block_on(async {
            let mut clients: Vec<Client> = (0..n).map(|_| Client::new(self.address.clone())).collect();
            for client in &mut clients {
                client.connect().await;
            }
            clients
        })
    }

    /// Runs all at once, on this thread: what each came to, in their order, and how long it took.
    pub(crate) fn together<T: Send + 'static>(
        &self,
        tasks: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
    ) -> anyhow::Result<(Vec<T>, Duration)> {
        self.runtime.block_on(async {
            // None of them runs before the first await.
            let tasks: Vec<_> = tasks.into_iter().map(tokio::spawn).collect();
            let start = Instant::now();
            let mut done = Vec::with_capacity(tasks.len());
            for task in tasks {
                done.push(task.await.context("a client panicked")?);
            }
            Ok((done, start.elapsed()))
        })
    }

    /// What the lengths of prompts count.
    pub(crate) fn unit(&self) -> &'static str {
        match self.kind {
            Kind::Ids { .. } => "tokens",
            Kind::Words => "words",
        }
    }

    /// Prompts of a stream of their own.
    pub(crate) fn draw(&self, stream: u64) -> Draw {
        Draw::new(self.kind, self.seed, stream)
    }

    /// Makes bodies of requests; it can go to another task.
    pub(crate) fn asking(&self, max_tokens: usize) -> Asking {
        let return_token_ids = self.kind != Kind::Words;
        Asking { model: self.model.clone(), max_tokens, return_token_ids, schema: None }
    }

    pub(crate) fn print(
        &self,
        scenario: &'static str,
        load: String,
        columns: &'static [Column],
        rows: Vec<Row>,
        total: Option<Row>,
    ) -> Result<(), Failure> {
        let (model, server, seed) = (self.model.clone(), self.place.clone(), self.seed);
        let report = Report { scenario, model, server, seed, load, rows, total, columns };
        if self.json { print_json(&report) } else { print(&report.to_string()) }?;
        let (requests, errors) =
            report.rows.iter().fold((0, 0), |(r, e), row| (r + row.requests, e + row.errors));
        if errors == requests {
            return Err(Failure::Runtime(anyhow::anyhow!("none of {requests} requests was answered")));
        }
        Ok(())
    }
}

impl TargetFlags {
    /// What would be ignored is refused. The key is the client's too.
    fn nothing_to_start(&self) -> Result<(), Failure> {
        let server = ServerFlags { api_key: Vec::new(), ..self.server.clone() };
        match given(&self.model)?.into_iter().chain(given(&server)?).next() {
            Some(name) => {
                Err(Failure::Usage(format!("{name}: is of a server to start; leave it or --url out")))
            }
            None => Ok(()),
        }
    }

    /// The server, and the size of its vocabulary.
    fn start(&self) -> Result<(Local, usize), Failure> {
        let mut flags = self.server.clone();
        if flags.api_key_file.is_some() {
            return Err(Failure::Usage("api-key-file: a bench has one client; give --api-key".into()));
        }
        flags.port.get_or_insert(0);
        // What a bench prints is its result.
        flags.log_level.get_or_insert_with(|| "warn".into());
        let model = ModelSettings::build(&self.model, ServerSettings::sequences(&flags)?)?;
        let server = ServerSettings::build(&flags)?;
        logging::start(&server.log);
        let files = ModelFiles::open(&model.source)?;
        eprintln!("loading {}", files.name);
        let vocab_size = files.spec()?.vocab_size;
        if let Some(vocab) = self.vocab.filter(|vocab| *vocab > vocab_size) {
            return Err(Failure::Usage(format!(
                "vocab: {vocab}, but the model has {vocab_size} tokens; give at most that"
            )));
        }
        let names = if server.names.is_empty() { vec![files.name.clone()] } else { server.names.clone() };
        let options = serve::options(&server, &names);
        let (host, port) = (server.host.clone(), server.port);
        let open = move |app: &server::App, ready: &dyn Fn()| {
            serve::load_and_run(&files, &model, &server, app, |_| ready())
        };
        Ok((Local::start(&host, port, options, open)?, vocab_size))
    }
}

/// Names of the options that were typed or are in the environment.
fn given(flags: &impl Serialize) -> anyhow::Result<Vec<String>> {
    let fields = serde_json::to_value(flags)?;
    let is_given = |value: &serde_json::Value| match value {
        serde_json::Value::Null | serde_json::Value::Bool(false) => false,
        serde_json::Value::Array(items) => !items.is_empty(),
        _ => true,
    };
    let fields = fields.as_object().into_iter().flatten();
    Ok(fields.filter(|(_, value)| is_given(value)).map(|(name, _)| name.clone()).collect())
}

async fn served(address: &Arc<Address>) -> anyhow::Result<Served> {
    let json = Client::new(address.clone()).get("/v1/models").await.map_err(anyhow::Error::msg)?;
    let models: Models = serde_json::from_slice(&json).context("its list of models is not OpenAI's")?;
    models.data.into_iter().next().context("it serves no model")
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What the requests of a scenario have in common.
#[derive(Debug, Clone)]
pub(crate) struct Asking {
    model: String,
    max_tokens: usize,
    return_token_ids: bool,
    /// What answers must validate against.
    schema: Option<Value>,
}

impl Asking {
    /// The same, of answers that are JSON of this schema.
    pub(crate) fn with_schema(self, schema: Value) -> Self {
        Self { schema: Some(schema), ..self }
    }

    /// Streamed, greedy, and as long as was asked for whatever the model says, unless a schema lets it end.
    pub(crate) fn body(&self, prompt: &Prompt) -> Bytes {
        let body = Body {
            model: &self.model,
            prompt,
            max_tokens: self.max_tokens,
            temperature: 0.0,
            ignore_eos: self.schema.is_none(),
            response_format: self.schema.as_ref().map(
                |schema| json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}),
            ),
            stream: true,
            stream_options: StreamOptions { include_usage: true },
            return_token_ids: self.return_token_ids.then_some(true),
        };
        // Strings and numbers: nothing that could fail.
        Bytes::from(serde_json::to_vec(&body).unwrap_or_default())
    }
}

/// Of `total` requests, on a terminal.
pub(crate) fn bar(total: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("requests {bar:40} {pos}/{len} {eta}");
    ProgressBar::new(total as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
