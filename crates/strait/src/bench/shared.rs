//! `strait bench shared`: many clients whose prompts begin alike, as under one system prompt.

use clap::Args;
use hyper::body::Bytes;

use super::client::Client;
use super::report::{Outcome, REUSE, Row};
use super::target::{Target, TargetFlags, bar};
use super::{CLIENTS_MAX, TOKENS_MAX, within};
use crate::failure::Failure;

/// Measure prompts that begin alike: what a prefix cache saves among clients
///
/// All clients send one request at once, and when all are answered another: prompts of the same first tokens, each
/// with an end of its own. `saved` is the share of prompt tokens that the server took from its cache.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  strait bench shared --model ./checkpoint -c 16 --shared 4096")]
pub(crate) struct Flags {
    /// Tokens that all prompts begin with
    #[arg(short, long, value_name = "N", default_value_t = 4096)]
    shared: usize,
    /// Clients at once
    #[arg(short, long, value_name = "N", default_value_t = 16)]
    clients: usize,
    /// Tokens of each prompt's own end
    #[arg(short, long, value_name = "N", default_value_t = 64)]
    prompt: usize,
    /// Tokens of an answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 16)]
    answer: usize,
    /// Requests of each client, all clients at once
    #[arg(short, long, value_name = "N", default_value_t = 2)]
    waves: usize,
    #[command(flatten)]
    target: TargetFlags,
}

pub(crate) fn main(flags: &Flags) -> Result<(), Failure> {
    within("shared", flags.shared, 1, TOKENS_MAX)?;
    within("clients", flags.clients, 1, CLIENTS_MAX)?;
    within("prompt", flags.prompt, 1, TOKENS_MAX)?;
    within("answer", flags.answer, 1, TOKENS_MAX)?;
    within("waves", flags.waves, 1, 1000)?;
    let target = Target::open(&flags.target)?;
    target.check_room("shared", flags.shared + flags.prompt + flags.answer)?;
    let beginning = target.draw(u64::MAX).prompt(flags.shared);
    let asking = target.asking(flags.answer);
    let bar = bar(flags.waves * flags.clients);
    let mut clients = target.clients(flags.clients);
    let mut rows = Vec::new();
    for wave in 1..=flags.waves {
        let body = |number: usize| {
            let mut prompt = beginning.clone();
            target.draw(((wave as u64) << 32) + number as u64).extend(&mut prompt, flags.prompt);
            asking.body(&prompt)
        };
        let requests = clients.into_iter().enumerate().map(|(number, client)| {
            let bar = bar.clone();
            ask(client, body(number), move || bar.inc(1))
        });
        let (done, took) = target.together(requests.collect::<Vec<_>>())?;
        let outcomes: Vec<&Outcome> = done.iter().map(|(_, outcome)| outcome).collect();
        rows.push(Row::new(format!("wave {wave}"), flags.clients, &outcomes, Some(took)));
        clients = done.into_iter().map(|(client, _)| client).collect();
    }
    bar.finish_and_clear();
    let Flags { shared, prompt, answer, .. } = flags;
    let unit = target.unit();
    let load = format!(
        "prompts of {shared} {unit} that all share and {prompt} of their own, answers of {answer} tokens"
    );
    target.print("shared", load, REUSE, rows, None)
}

async fn ask(mut client: Client, body: Bytes, tell: impl Fn()) -> (Client, Outcome) {
    let outcome = client.complete(body).await;
    tell();
    (client, outcome)
}
