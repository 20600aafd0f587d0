//! Processes of one case each.

use crate::Options;
use crate::report::{Outcome, Record, parse};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Last lines of what a process that failed has said.
const SAID_LINES: usize = 6;

pub(crate) struct Limits {
    /// Of the step.
    pub(crate) ends: Instant,
    /// Of the whole run.
    pub(crate) all_end: Instant,
}

struct Child {
    step: &'static str,
    case: String,
    process: std::process::Child,
    lines: Receiver<Line>,
}

enum Line {
    Out(String),
    Err(String),
}

/// One case in a process of its own. Its records as they come; one more if it does not begin or end well.
pub(crate) fn run(
    step: &'static str,
    case: &str,
    options: &Options,
    limits: &Limits,
    mut keep: impl FnMut(Record),
) {
    match Child::start(step, case, options) {
        Ok(child) => child.wait(limits).for_each(keep),
        Err(why) => keep(failed(step, case, why)),
    }
}

fn failed(step: &str, case: &str, detail: String) -> Record {
    let (step, case) = (step.to_owned(), case.to_owned());
    Record { step, case, outcome: Outcome::Failed, detail, numbers: Default::default() }
}

/// This program's arguments for one case.
pub(crate) fn arguments(step: &str, case: &str, options: &Options) -> Vec<String> {
    let device = if options.sim { "sim" } else { "cuda" };
    let mut args = ["--device", device, "--case", step, case].map(str::to_owned).to_vec();
    if options.quick {
        args.push("--quick".into());
    }
    if let Some(file) = &options.torch {
        args.extend(["--torch".into(), file.clone()]);
    }
    for (name, number) in [("--bandwidth", options.bandwidth), ("--flops", options.flops)] {
        args.extend([name.to_owned(), number.to_string()]);
    }
    args
}

/// Sends lines until the pipe ends; what is no text is shown as well as it can be.
fn read(from: impl Read + Send + 'static, to: mpsc::Sender<Line>, wrap: fn(String) -> Line) {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut bytes = Vec::new();
        while from.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            if to.send(wrap(line)).is_err() {
                return;
            }
        }
    });
}

impl Child {
    fn start(step: &'static str, case: &str, options: &Options) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut command = Command::new(&program);
        command.args(arguments(step, case, options));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().map_err(|e| format!("{}: {e}", program.display()))?;
        let (to, lines) = mpsc::channel();
        read(process.stdout.take().ok_or("no stdout")?, to.clone(), Line::Out);
        read(process.stderr.take().ok_or("no stderr")?, to, Line::Err);
        Ok(Self { step, case: case.into(), process, lines })
    }

    fn wait(mut self, limits: &Limits) -> impl Iterator<Item = Record> {
        let until = limits.ends.min(limits.all_end);
        let mut said = VecDeque::new();
        let mut ended = false;
        std::iter::from_fn(move || {
            while !ended {
                let left = until.saturating_duration_since(Instant::now());
                match self.lines.recv_timeout(left) {
                    Ok(Line::Out(line)) => match parse(&line) {
                        Some(record) => return Some(record),
                        None => keep(&mut said, line),
                    },
                    Ok(Line::Err(line)) => keep(&mut said, line),
                    Err(RecvTimeoutError::Timeout) => {
                        ended = true;
                        let _ = self.process.kill();
                        let _ = self.process.wait();
                        return Some(self.failed("cut: its time is over", &said));
                    }
                    // Both pipes have ended.
                    Err(RecvTimeoutError::Disconnected) => {
                        ended = true;
                        let why = match wait_until(&mut self.process, until) {
                            Some(status) if status.success() => return None,
                            Some(status) => status.to_string(),
                            None => "cut: it does not end".into(),
                        };
                        return Some(self.failed(&why, &said));
                    }
                }
            }
            None
        })
    }

    fn failed(&self, why: &str, said: &VecDeque<String>) -> Record {
        let said: Vec<&str> = said.iter().map(String::as_str).collect();
        let detail = format!("{why}; {}", said.join(" | "));
        failed(self.step, &self.case, detail.trim_end_matches("; ").to_owned())
    }
}

fn keep(said: &mut VecDeque<String>, line: String) {
    if said.len() == SAID_LINES {
        said.pop_front();
    }
    said.push_back(line);
}

/// `None`: it had to be killed.
fn wait_until(process: &mut std::process::Child, until: Instant) -> Option<ExitStatus> {
    loop {
        match process.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ = process.kill();
                let _ = process.wait();
                return None;
            }
        }
    }
}
