//! `strait bench added`: what HTTP and the queue add to a request, beside a model that computes nothing.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use engine::EngineHandle;
use engine::request::{End, Event, Request};
use engine::runner::Limits;
use engine::testing::{FakeRunner, limits};
use hyper::body::Bytes;
use serde::Serialize;
use serde_json::json;
use server::{Defaults, KvCacheInfo, Options, ServedModel};
use tokio::runtime::Builder;

use super::client::{Address, Client};
use super::local::Local;
use super::target::bar;
use super::times::{Spread, Times, Unit};
use super::{REQUESTS_MAX, print_json, within};
use crate::failure::Failure;
use crate::model_dir::ModelFiles;
use crate::print;
use crate::settings::ModelSource;

/// Measure what HTTP and the queue add to one request
///
/// Requests of one token, one after the other, to a model that computes nothing: in turns straight to the engine and
/// over HTTP to a server with the same engine, all in this process. What is added is the difference of the
/// percentiles, the client's own share included.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  strait bench added -r 5000")]
pub(crate) struct Flags {
    /// Requests of each kind
    #[arg(short, long, value_name = "N", default_value_t = 3000)]
    requests: usize,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

const PROMPT: [u32; 8] = [5, 6, 7, 8, 9, 10, 11, 12];
/// Before it is counted.
const WARM_UP: usize = 100;
/// No request of one token takes so long.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize)]
struct Added {
    scenario: &'static str,
    requests: usize,
    /// Straight to the engine's handle, from another thread.
    engine_us: Spread,
    /// Over HTTP, answered at once.
    whole_us: Spread,
    /// Over HTTP, answered as a stream, to its end.
    stream_us: Spread,
    /// `GET /health`: HTTP without the engine.
    health_us: Spread,
    added_whole_us: Spread,
    added_stream_us: Spread,
}

pub(crate) fn main(flags: &Flags) -> Result<(), Failure> {
    within("requests", flags.requests, 1, REQUESTS_MAX)?;
    let files = ModelFiles::open(&ModelSource::Demo)?;
    let tokenizer = Arc::new(files.text()?.tokenizer()?);
    let limits = Limits { vocab_size: tokenizer.vocab_size(), ..limits() };
    // The thread ends when the handles are dropped, or with the process.
    let (engine, _) = engine::start(FakeRunner::new(limits.clone()), engine::Options::default());
    let served = ServedModel {
        engine: Box::new(engine.clone()),
        vocab_size: limits.vocab_size,
        tokenizer,
        chat_template: None,
        eos_ids: Vec::new(),
        defaults: Defaults { temperature: Some(0.0), ..Defaults::default() },
        context_len: limits.context_len,
        fingerprint: "fp_bench".into(),
        max_waiting: 1,
        max_waiting_tokens: usize::MAX,
        device: "none".into(),
        kv_cache: KvCacheInfo {
            block_len: limits.block_len,
            n_blocks: limits.n_blocks,
            dtype: "none".into(),
        },
    };
    let local = Local::start("127.0.0.1", 0, Options::default(), move |app, ready| {
        app.set_model(served);
        ready();
        Ok(())
    })?;
    let address = Address::parse(&local.url, None, PATIENCE).map_err(anyhow::Error::msg)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let added = runtime.block_on(measure(&engine, Client::new(Arc::new(address)), flags.requests))?;
    if flags.json { print_json(&added) } else { print(&added.to_string()) }
}

/// One request of each kind in turn, so that whatever else the machine does falls on all alike.
async fn measure(engine: &EngineHandle, mut client: Client, requests: usize) -> anyhow::Result<Added> {
    let body = |stream: bool| {
        let options = stream.then(|| json!({"include_usage": true}));
        let body = json!({"prompt": PROMPT, "max_tokens": 1, "stream": stream, "stream_options": options});
        Bytes::from(body.to_string())
    };
    let (whole_body, stream_body) = (body(false), body(true));
    let [mut direct, mut whole, mut stream, mut health] = [(); 4].map(|()| Times::default());
    let bar = bar(requests);
    for i in 0..WARM_UP + requests {
        let taken = [
            straight(engine).await?,
            client.complete(whole_body.clone()).await.map_err(anyhow::Error::msg)?.whole,
            client.complete(stream_body.clone()).await.map_err(anyhow::Error::msg)?.whole,
            asked_health(&mut client).await?,
        ];
        if i < WARM_UP {
            continue;
        }
        for (times, taken) in [&mut direct, &mut whole, &mut stream, &mut health].into_iter().zip(taken) {
            times.push(taken);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let spread = |times: Times| times.spread(Unit::Microseconds).context("nothing was measured");
    let [engine_us, whole_us, stream_us, health_us] =
        [spread(direct)?, spread(whole)?, spread(stream)?, spread(health)?];
    let over = |all: Spread| Spread { p50: all.p50 - engine_us.p50, p99: all.p99 - engine_us.p99 };
    Ok(Added {
        scenario: "added",
        requests,
        engine_us,
        whole_us,
        stream_us,
        health_us,
        added_whole_us: over(whole_us),
        added_stream_us: over(stream_us),
    })
}

/// The same request without HTTP, to its end.
async fn straight(engine: &EngineHandle) -> anyhow::Result<Duration> {
    let sent = Instant::now();
    let request = Request { prompt: PROMPT.to_vec(), max_new_tokens: 1, ..Request::default() };
    let mut events = engine.submit(request)?.pop().context("the engine gave no stream of events")?;
    while let Some(event) = events.recv().await {
        match event {
            Event::End(End::Finished(_)) => return Ok(sent.elapsed()),
            Event::End(end) => bail!("{end:?}"),
            _ => {}
        }
    }
    bail!("the engine told no end")
}

async fn asked_health(client: &mut Client) -> anyhow::Result<Duration> {
    let sent = Instant::now();
    client.get("/health").await.map_err(anyhow::Error::msg)?;
    Ok(sent.elapsed())
}

impl fmt::Display for Added {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} requests of one token, a model that computes nothing\n", self.requests)?;
        writeln!(f, "{:<36} {:>9} {:>9}", "", "p50 µs", "p99 µs")?;
        for (name, spread) in [
            ("straight to the engine", self.engine_us),
            ("over HTTP, whole", self.whole_us),
            ("over HTTP, streamed", self.stream_us),
            ("GET /health, without the engine", self.health_us),
            ("added by HTTP and queue, whole", self.added_whole_us),
            ("added by HTTP and queue, streamed", self.added_stream_us),
        ] {
            writeln!(f, "{name:<36} {:>9.1} {:>9.1}", spread.p50, spread.p99)?;
        }
        Ok(())
    }
}
