//! `strait bench chat`: conversations, of which each turn repeats all that was said before.

use clap::Args;

use super::client::Client;
use super::prompt::{Draw, Prompt};
use super::report::{Outcome, REUSE, Row};
use super::target::{Asking, Target, TargetFlags, bar};
use super::{CLIENTS_MAX, TOKENS_MAX, within};
use crate::failure::Failure;

/// Measure conversations: what a prefix cache saves, turn by turn
///
/// Each client holds one conversation; the prompt of a turn is all prompts and answers before it and a new message.
/// `saved` is the share of prompt tokens that the server took from its cache, as its `usage` tells.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  strait bench chat --model ./checkpoint\n  strait bench chat --turns 20 -c 1 -p 100 -n 100"
)]
pub(crate) struct Flags {
    /// Turns of a conversation
    #[arg(short, long, value_name = "N", default_value_t = 10)]
    turns: usize,
    /// Conversations at once
    #[arg(short, long, value_name = "N", default_value_t = 4)]
    clients: usize,
    /// Tokens of a message
    #[arg(short, long, value_name = "N", default_value_t = 64)]
    prompt: usize,
    /// Tokens of an answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64)]
    answer: usize,
    #[command(flatten)]
    target: TargetFlags,
}

pub(crate) fn main(flags: &Flags) -> Result<(), Failure> {
    within("turns", flags.turns, 1, 1000)?;
    within("clients", flags.clients, 1, CLIENTS_MAX)?;
    within("prompt", flags.prompt, 1, TOKENS_MAX)?;
    within("answer", flags.answer, 1, TOKENS_MAX)?;
    let target = Target::open(&flags.target)?;
    target.check_room("turns", flags.turns * (flags.prompt + flags.answer))?;
    let bar = bar(flags.clients * flags.turns);
    let conversations = target.clients(flags.clients).into_iter().zip(0..).map(|(client, number)| {
        let (asking, draw, bar) = (target.asking(flags.answer), target.draw(number), bar.clone());
        let (turns, len) = (flags.turns, flags.prompt);
        converse(client, asking, draw, turns, len, move || bar.inc(1))
    });
    let (conversations, took) = target.together(conversations.collect::<Vec<_>>())?;
    bar.finish_and_clear();
    let turn = |turn: usize| {
        let outcomes: Vec<&Outcome> = conversations.iter().map(|outcomes| &outcomes[turn]).collect();
        Row::new(format!("turn {}", turn + 1), flags.clients, &outcomes, None)
    };
    let all: Vec<&Outcome> = conversations.iter().flatten().collect();
    let total = Row::new("all turns", flags.clients, &all, Some(took));
    let Flags { turns, clients, prompt, answer, .. } = flags;
    let unit = target.unit();
    let load = format!(
        "{clients} clients, {turns} turns each, messages of {prompt} {unit}, answers of {answer} tokens"
    );
    target.print("chat", load, REUSE, (0..flags.turns).map(turn).collect(), Some(total))
}

/// What became of each turn.
async fn converse(
    mut client: Client,
    asking: Asking,
    mut draw: Draw,
    turns: usize,
    message_len: usize,
    tell: impl Fn(),
) -> Vec<Outcome> {
    let mut said: Prompt = draw.prompt(0);
    let mut outcomes = Vec::with_capacity(turns);
    for _ in 0..turns {
        draw.extend(&mut said, message_len);
        let outcome = client.complete(asking.body(&said)).await;
        let outcome = outcome.and_then(|answer| said.append(&answer).map(|()| answer));
        tell();
        let failed = outcome.is_err();
        outcomes.push(outcome);
        if failed {
            break;
        }
    }
    outcomes.resize_with(turns, || Err("not sent: an earlier turn had failed".into()));
    outcomes
}
