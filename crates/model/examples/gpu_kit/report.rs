//! What the kit finds: a record a case, printed as a line and kept in a JSON file that is whole after each.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::fs;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Passed,
    Failed,
    /// Nothing to pass: a number.
    Measured,
    /// What it needs is not on this machine.
    Absent,
}

/// By name, in the order in which they are shown.
pub(crate) type Numbers = Map<String, Value>;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) step: String,
    pub(crate) case: String,
    pub(crate) outcome: Outcome,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) detail: String,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) numbers: Numbers,
}

/// What a case that passed has to say.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) detail: String,
    pub(crate) numbers: Numbers,
}

impl Found {
    pub(crate) fn says(detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &str, number: f64) -> Self {
        self.numbers.insert(name.into(), number.into());
        self
    }
}

/// Begins each line of a step's process that is a record.
const MARK: &str = "@record ";

/// Hands a record to the process that started this one.
pub(crate) fn emit(step: &str, case: &str, outcome: Outcome, found: Found) {
    let Found { detail, numbers } = found;
    let record = Record { step: step.into(), case: case.into(), outcome, detail, numbers };
    let text = serde_json::to_string(&record).expect("strings and numbers");
    let mut out = std::io::stdout().lock();
    // Whoever reads this may have ended; there is nobody else to tell.
    let _ = writeln!(out, "{MARK}{text}").and_then(|()| out.flush());
}

/// A record of another process.
pub(crate) fn parse(line: &str) -> Option<Record> {
    serde_json::from_str(line.strip_prefix(MARK)?).ok()
}

/// Runs a case; an error or a panic fails it.
pub(crate) fn case(step: &str, name: &str, outcome: Outcome, run: impl FnOnce() -> Result<Found, String>) {
    let done = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(text.unwrap_or_else(|| "a panic".into()))
    });
    match done {
        Ok(found) => emit(step, name, outcome, found),
        Err(what) => emit(step, name, Outcome::Failed, Found::says(what)),
    }
}

/// Of the JSON file.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    kit: &'static str,
    device: &'a str,
    quick: bool,
    /// Unix time.
    started: u64,
    seconds: f64,
    failed: usize,
    steps: &'a [Step],
    records: &'a [Record],
}

#[derive(Serialize)]
struct Step {
    step: String,
    seconds: f64,
}

pub(crate) struct Report {
    path: PathBuf,
    device: String,
    quick: bool,
    clock: Instant,
    started: u64,
    steps: Vec<Step>,
    records: Vec<Record>,
}

impl Report {
    pub(crate) fn new(path: PathBuf, device: &str, quick: bool) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let (steps, records) = (Vec::new(), Vec::new());
        Self { path, device: device.into(), quick, clock: Instant::now(), started, steps, records }
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.clock.elapsed().as_secs_f64()
    }

    pub(crate) fn begin(&mut self, step: &str) {
        say(format_args!("\n== {step} (after {:.1} s)", self.seconds()));
    }

    pub(crate) fn end(&mut self, step: &str, seconds: f64) {
        say(format_args!("== {step}: {seconds:.1} s"));
        self.steps.push(Step { step: step.into(), seconds });
        self.save();
    }

    pub(crate) fn add(&mut self, record: Record) {
        say(format_args!("{}", line(&record)));
        self.records.push(record);
        self.save();
    }

    pub(crate) fn failed(&self) -> usize {
        self.records.iter().filter(|r| r.outcome == Outcome::Failed).count()
    }

    /// A number that an earlier case has found.
    pub(crate) fn number(&self, step: &str, case: &str, name: &str) -> Option<f64> {
        self.records.iter().find(|r| r.step == step && r.case == case)?.numbers.get(name)?.as_f64()
    }

    /// A reader finds the file before or the file after, never half of one. A run whose file cannot be written is still
    /// worth what it prints.
    fn save(&self) {
        let document = Document {
            schema: 1,
            kit: env!("CARGO_PKG_VERSION"),
            device: &self.device,
            quick: self.quick,
            started: self.started,
            seconds: self.seconds(),
            failed: self.failed(),
            steps: &self.steps,
            records: &self.records,
        };
        let text = serde_json::to_string_pretty(&document).expect("strings and numbers");
        let beside = self.path.with_extension("part");
        if let Err(e) = fs::write(&beside, text).and_then(|()| fs::rename(&beside, &self.path)) {
            eprintln!("{}: {e}", self.path.display());
        }
    }

    pub(crate) fn conclude(&self) {
        say(format_args!(
            "\n{} cases in {:.1} s, {} failed",
            self.records.len(),
            self.seconds(),
            self.failed()
        ));
        for record in self.records.iter().filter(|r| r.outcome == Outcome::Failed) {
            say(format_args!("{}", line(record)));
        }
        say(format_args!("all of it: {}", self.path.display()));
    }
}

/// A line on stdout. Whoever reads it may be gone: the run goes on for the sake of the file.
fn say(text: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn line(record: &Record) -> String {
    let Record { step, case, outcome, detail, numbers } = record;
    let outcome = match outcome {
        Outcome::Passed => "pass",
        Outcome::Failed => "FAIL",
        Outcome::Measured => "    ",
        Outcome::Absent => "none",
    };
    let numbers: String = numbers
        .iter()
        .map(|(name, n)| format!("  {name} {}", n.as_f64().map_or("none".into(), short)))
        .collect();
    format!("{outcome} {step:<11} {case:<34}{numbers}  {detail}").trim_end().to_owned()
}

/// Four digits.
fn short(n: f64) -> String {
    match n.abs() {
        0.0 => "0".into(),
        size if !(1e-3..1e7).contains(&size) => format!("{n:.2e}"),
        size if size >= 100.0 => format!("{n:.0}"),
        size if size >= 10.0 => format!("{n:.1}"),
        _ => format!("{n:.3}"),
    }
}
