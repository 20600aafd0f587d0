//! `strait`: the command line. The only code that reads flags, files and the environment, and the
//! only one that knows every crate.

mod bench;
mod device;
mod doctor;
mod failure;
mod flags;
mod keys;
mod load;
mod logging;
mod machine;
mod memory;
mod model_dir;
mod options_file;
mod plan;
mod progress;
mod run;
mod serve;
mod settings;
mod size;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  strait serve                                  the built-in demo on http://127.0.0.1:8000
  strait serve --model ./DeepSeek-V2-Lite       a checkpoint in Hugging Face's layout
  strait serve --model DIR --dry-run            what it would take, without loading it
  strait run 'What is 3 + 4?'                   one answer, in the terminal
  strait plan ./DeepSeek-V3/config.json         KV bytes a token, sessions that fit, speed
  strait bench --model DIR                      tokens a second here, beside the machine's limits
  strait doctor                                 what this machine can compute on";

/// Serves language models with multi-head latent attention behind the OpenAI API.
#[derive(Debug, Parser)]
#[command(name = "strait", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Flags>),
    Run(run::Flags),
    Plan(plan::Flags),
    Bench(bench::Flags),
    Doctor(doctor::Flags),
}

fn main() -> ExitCode {
    let matches = flags::without_empty_variables(Cli::command()).get_matches();
    let command = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()).command;
    let done = refuse_unknown_variables().and_then(|()| match command {
        Command::Serve(flags) => serve::main(*flags),
        Command::Run(flags) => run::main(flags),
        Command::Plan(flags) => plan::main(&flags),
        Command::Bench(flags) => bench::main(&flags),
        Command::Doctor(flags) => doctor::main(&flags),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.exit_code()
        }
    }
}

/// A misspelt `STRAIT_*` would silently do nothing.
fn refuse_unknown_variables() -> Result<(), Failure> {
    let cli = Cli::command();
    let arguments = cli.get_subcommands().flat_map(|command| command.get_arguments());
    let known: BTreeSet<String> =
        arguments.filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned)).collect();
    // Kubernetes sets these for each pod beside a Service named `strait`.
    let of_kubernetes = |name: &str| name.starts_with("STRAIT_SERVICE_") || name.starts_with("STRAIT_PORT_");
    let set = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut ours = set.filter(|name| name.starts_with("STRAIT_") && !of_kubernetes(name));
    match ours.find(|name| !known.contains(name)) {
        None => Ok(()),
        Some(name) => {
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            Err(Failure::Usage(format!("{name} is set, but there is no such option; there are {known}")))
        }
    }
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
