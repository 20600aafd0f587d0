//! `strait bench clients`: how many tokens a second, and how soon, for one client and for many.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use super::report::{Column, Outcome, Row};
use super::target::{Asking, Target, TargetFlags, bar};
use super::{CLIENTS_MAX, REQUESTS_MAX, TOKENS_MAX, within};
use crate::failure::Failure;

/// Measure throughput and latency over HTTP, by the number of clients
///
/// Each client sends its requests one after the other, all clients at once: streamed completions of prompts that
/// share nothing. TTFT is the time from the request to its first token, inter-token the time between tokens, e2e
/// the time to the end of the answer; tok/s counts the tokens of answers, over all clients.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  strait bench clients --model ./checkpoint -c 1,8,32,128 -p 256 -n 64\n  strait bench clients --url http://127.0.0.1:8080 -c 1,8   another server, same load"
)]
pub(crate) struct Flags {
    /// Clients at once
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', default_value = "1,8,32,128")]
    clients: Vec<usize>,
    /// Tokens of a prompt
    #[arg(short, long, value_name = "N", default_value_t = 256)]
    prompt: usize,
    /// Tokens of an answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64)]
    answer: usize,
    /// Requests of each client
    #[arg(short, long, value_name = "N", default_value_t = 2)]
    requests: usize,
    /// JSON schema: each load is measured again with answers that must validate, where prompts are the same
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    #[command(flatten)]
    target: TargetFlags,
}

const COLUMNS: &[Column] = &[
    Column::Requests,
    Column::Errors,
    Column::OutputRate,
    Column::TtftP50,
    Column::TtftP99,
    Column::InterTokenP50,
    Column::InterTokenP99,
    Column::WholeP50,
];

pub(crate) fn main(flags: &Flags) -> Result<(), Failure> {
    flags.clients.iter().try_for_each(|&n| within("clients", n, 1, CLIENTS_MAX).map(drop))?;
    within("prompt", flags.prompt, 1, TOKENS_MAX)?;
    within("answer", flags.answer, 1, TOKENS_MAX)?;
    within("requests", flags.requests, 1, REQUESTS_MAX)?;
    let schema = flags.schema.as_deref().map(read_schema).transpose()?;
    let target = Target::open(&flags.target)?;
    target.check_room("prompt", flags.prompt + flags.answer)?;
    let plain = target.asking(flags.answer);
    warm_up(&target, flags, &plain)?;
    let constrained = schema.map(|schema| plain.clone().with_schema(schema));
    constrained.iter().try_for_each(|asking| warm_up(&target, flags, asking))?;
    let mut rows = Vec::new();
    for (level, &n) in flags.clients.iter().enumerate() {
        rows.push(measure(&target, flags, level, n, &plain)?);
        if let Some(asking) = &constrained {
            let row = measure(&target, flags, level, n, asking)?;
            rows.push(Row { name: format!("{}, schema", row.name), ..row });
        }
    }
    let Flags { prompt, answer, requests, .. } = flags;
    let unit = target.unit();
    let load =
        format!("prompts of {prompt} {unit}, answers of {answer} tokens, {requests} requests a client");
    target.print("clients", load, COLUMNS, rows, None)
}

fn read_schema(file: &Path) -> Result<Value, Failure> {
    let usage = |why: String| Failure::Usage(format!("schema: {}: {why}", file.display()));
    let text = std::fs::read(file).map_err(|error| usage(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| usage(format!("it is not JSON: {error}")))
}

/// The first request pays for memory that is touched for the first time; it is not counted.
fn warm_up(target: &Target, flags: &Flags, asking: &Asking) -> Result<(), Failure> {
    let body = asking.body(&target.draw(u64::MAX).prompt(flags.prompt));
    let clients = target.clients(1).into_iter();
    target.together(clients.map(|mut client| {
        let body = body.clone();
        async move { client.complete(body).await }
    }))?;
    Ok(())
}

fn measure(target: &Target, flags: &Flags, level: usize, n: usize, asking: &Asking) -> Result<Row, Failure> {
    let bar = bar(n * flags.requests);
    let clients = target.clients(n).into_iter().enumerate().map(|(number, mut client)| {
        let mut draw = target.draw(((level as u64) << 32) + number as u64);
        let bodies: Vec<_> = (0..flags.requests).map(|_| asking.body(&draw.prompt(flags.prompt))).collect();
        let bar = bar.clone();
        async move {
            let mut outcomes = Vec::with_capacity(bodies.len());
            for body in bodies {
                outcomes.push(client.complete(body).await);
                bar.inc(1);
            }
            outcomes
        }
    });
    let (outcomes, took) = target.together(clients.collect::<Vec<_>>())?;
    bar.finish_and_clear();
    let outcomes: Vec<&Outcome> = outcomes.iter().flatten().collect();
    let name = if n == 1 { "1 client".into() } else { format!("{n} clients") };
    Ok(Row::new(name, n, &outcomes, Some(took)))
}
