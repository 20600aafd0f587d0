//! `strait bench`: a rate card of one checkpoint on this machine, and of a server under load.

mod added;
mod answer;
mod chat;
mod client;
mod clients;
mod local;
mod measure;
mod prompt;
mod report;
mod shared;
mod sse;
mod target;
mod times;

use clap::{Args, Subcommand};
use model::forward::Model;
use model::tensors;
use model::weights::default_precision;

use crate::device::{DeviceChoice, on_device};
use crate::failure::Failure;
use crate::model_dir::ModelFiles;
use crate::settings::{ModelSource, cache_format, kv_dtype, precision};
use crate::{machine, print};
use measure::{Cases, measure};

const EXAMPLES: &str = "\
Examples:
  strait bench --model ./checkpoint -p 512 -n 64 -d 0,2048,8192 -b 1,16
  strait bench clients --model ./checkpoint     over HTTP, 1 to 128 clients at once";

/// Measure prefill and decode, beside what memory and arithmetic allow here
///
/// In process, without HTTP: how many tokens a second the model computes, at each depth (tokens already
/// in the cache) and batch (sequences computed together), and what share that is of the memory bandwidth
/// and the arithmetic that this machine reaches, measured in the same run.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(crate) struct Flags {
    #[command(subcommand)]
    scenario: Option<Box<Scenario>>,
    /// `demo` (built in), or a directory with config.json and safetensors
    #[arg(long, env = "STRAIT_MODEL", value_name = "demo|DIR", default_value = "demo")]
    model: String,
    /// As for `serve`. What a GPU reaches at most is not measured here, so there are no shares of it
    #[arg(long, env = "STRAIT_DEVICE", value_name = "auto|cpu|cuda[:N]", default_value = "auto")]
    device: String,
    /// What weights are held in; auto is what the checkpoint is stored in
    #[arg(long, env = "STRAIT_DTYPE", value_name = "auto|bf16|f32", default_value = "auto")]
    dtype: String,
    /// What the cache is held in; auto is as the weights
    #[arg(long, env = "STRAIT_KV_CACHE_DTYPE", value_name = "auto|bf16|f32|fp8", default_value = "auto")]
    kv_cache_dtype: String,
    /// Threads to compute with [default: the physical cores]
    #[arg(long, env = "STRAIT_THREADS", value_name = "N")]
    threads: Option<usize>,
    /// Tokens of the prompt; 0 leaves prefill out
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Decode steps of each measurement, at most (a slow one ends after 8 seconds)
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    steps: usize,
    /// Tokens that are in the cache already
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', default_value = "0,2048,8192")]
    depths: Vec<usize>,
    /// Sequences decoded together
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', default_value = "1,4,8,16")]
    batches: Vec<usize>,
    /// Tokens computed in one prefill step
    #[arg(long, value_name = "N", default_value_t = 512)]
    chunk: usize,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// A server under load, over HTTP.
#[derive(Debug, Subcommand)]
enum Scenario {
    Clients(clients::Flags),
    Chat(chat::Flags),
    Shared(shared::Flags),
    Added(added::Flags),
}

/// Of all scenarios: each client takes two file descriptors where the server is in this process.
const CLIENTS_MAX: usize = 4096;
const TOKENS_MAX: usize = 1 << 20;
const REQUESTS_MAX: usize = 1 << 20;

/// More than anybody measures; keeps sizes far from overflow.
const MOST: usize = 1 << 20;

impl Flags {
    fn cases(&self) -> Result<Cases, Failure> {
        let usage = |option: &str, what: &str| Failure::Usage(format!("{option}: {what}"));
        if self.batches.iter().any(|b| !(1..=1024).contains(b)) {
            return Err(usage("batches", "give numbers from 1 to 1024"));
        }
        if self.depths.iter().chain([&self.prompt]).any(|&n| n > MOST) {
            return Err(usage("depths, prompt", "give at most 1048576 tokens"));
        }
        if !(1..=65536).contains(&self.chunk) {
            return Err(usage("chunk", "give a number from 1 to 65536"));
        }
        if !(1..=MOST).contains(&self.steps) {
            return Err(usage("steps", "give a number from 1 to 1048576"));
        }
        Ok(Cases {
            prompt: self.prompt,
            steps: self.steps,
            depths: self.depths.clone(),
            batches: self.batches.clone(),
            chunk: self.chunk,
        })
    }
}

pub(crate) fn main(flags: &Flags) -> Result<(), Failure> {
    match flags.scenario.as_deref() {
        None => rate_card(flags),
        Some(Scenario::Clients(flags)) => clients::main(flags),
        Some(Scenario::Chat(flags)) => chat::main(flags),
        Some(Scenario::Shared(flags)) => shared::main(flags),
        Some(Scenario::Added(flags)) => added::main(flags),
    }
}

fn rate_card(flags: &Flags) -> Result<(), Failure> {
    let mut cases = flags.cases()?;
    let given = precision(&flags.dtype).map_err(|what| Failure::Usage(format!("dtype: {what}")))?;
    let kv_dtype =
        kv_dtype(&flags.kv_cache_dtype).map_err(|what| Failure::Usage(format!("kv-cache-dtype: {what}")))?;
    let threads = flags.threads.unwrap_or_else(machine::default_threads);
    if !(1..=1024).contains(&threads) {
        return Err(Failure::Usage("threads: give a number from 1 to 1024".into()));
    }
    let device: DeviceChoice =
        flags.device.parse().map_err(|what| Failure::Usage(format!("device: {what}")))?;
    let files = ModelFiles::open(&ModelSource::of(&flags.model))?;
    let spec = files.spec()?;
    let checkpoint = files.checkpoint()?;
    let checked = tensors::check(&spec, &checkpoint)?;
    let precision = given.unwrap_or_else(|| default_precision(&checked));
    let cache = cache_format(kv_dtype, precision)?;
    for depth in cases.drop_deeper_than(spec.context_len) {
        eprintln!("depth {depth} is left out: the checkpoint's context is {} tokens", spec.context_len);
    }
    if cases.prompt == 0 && cases.depths.is_empty() {
        return Err(Failure::Usage("depths: nothing is left to measure; give smaller ones".into()));
    }
    let limits = cases.limits(&spec);
    eprintln!("loading {}", flags.model);
    let opened = device.resolve()?.device.open(threads, precision)?.with_cache(cache);
    let about = (opened.name(), (precision, cache));
    let card = on_device!(opened, |backend| {
        let place = |_: &mut _| Ok(limits);
        let mut model = Model::load(spec, &checked, backend, precision, place, &mut |_| ())
            .map_err(anyhow::Error::from)?;
        measure(&mut model, &flags.model, about, &cases, |what| eprintln!("measuring {what}"))?
    });
    if flags.json {
        return print_json(&card);
    }
    print(&format!("\n{card}"))
}

pub(crate) fn print_json(report: &impl serde::Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(report).map_err(anyhow::Error::from)?;
    print(&format!("{json}\n"))
}

pub(crate) fn within<T: PartialOrd + std::fmt::Display>(
    option: &str,
    n: T,
    least: T,
    most: T,
) -> Result<T, Failure> {
    if n >= least && n <= most {
        return Ok(n);
    }
    Err(Failure::Usage(format!("{option}: {n} is out of range; give a number from {least} to {most}")))
}
