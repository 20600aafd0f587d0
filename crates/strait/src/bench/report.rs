//! What a scenario found, as a table or as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::answer::Answer;
use super::times::{Spread, Times, Unit};

/// What became of one request: an answer, or why there is none.
pub(crate) type Outcome = Result<Answer, String>;

/// Different failures that are told apart.
const FAILURES_TOLD: usize = 8;

/// Requests that belong together.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub name: String,
    /// At once.
    pub clients: usize,
    pub requests: usize,
    pub errors: usize,
    pub prompt_tokens: usize,
    /// Of the prompts, reused instead of computed; absent where the server does not tell.
    pub cached_tokens: Option<usize>,
    /// Of the prompts, computed.
    pub computed_tokens: Option<usize>,
    /// The share of the prompts that was not.
    pub saved: Option<f64>,
    pub output_tokens: usize,
    /// From the first request to the last answer; absent where other requests ran meanwhile.
    pub seconds: Option<f64>,
    pub output_tokens_per_second: Option<f64>,
    pub ttft_ms: Option<Spread>,
    pub inter_token_ms: Option<Spread>,
    pub e2e_ms: Option<Spread>,
    /// Why requests failed, and how many.
    pub failures: BTreeMap<String, usize>,
}

impl Row {
    pub(crate) fn new(
        name: impl Into<String>,
        clients: usize,
        outcomes: &[&Outcome],
        took: Option<Duration>,
    ) -> Self {
        let answers: Vec<&Answer> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
        let spread = |times: Times| times.spread(Unit::Milliseconds);
        let output_tokens = answers.iter().map(|answer| answer.tokens).sum();
        let prompt_tokens: usize = answers.iter().map(|answer| answer.prompt_tokens).sum();
        let cached_tokens: Option<usize> = answers.iter().map(|answer| answer.cached_tokens).sum();
        let cached_tokens = cached_tokens.filter(|_| !answers.is_empty());
        let seconds = took.map(|took| took.as_secs_f64());
        Self {
            name: name.into(),
            clients,
            requests: outcomes.len(),
            errors: outcomes.len() - answers.len(),
            prompt_tokens,
            cached_tokens,
            computed_tokens: cached_tokens.map(|cached| prompt_tokens.saturating_sub(cached)),
            saved: cached_tokens.map(|cached| cached as f64 / prompt_tokens.max(1) as f64),
            output_tokens,
            seconds,
            output_tokens_per_second: seconds.map(|seconds| output_tokens as f64 / seconds),
            ttft_ms: spread(answers.iter().map(|answer| answer.first).collect()),
            inter_token_ms: spread(answers.iter().flat_map(|answer| answer.gaps.iter().copied()).collect()),
            e2e_ms: spread(answers.iter().map(|answer| answer.whole).collect()),
            failures: counted(outcomes.iter().filter_map(|outcome| outcome.as_ref().err())),
        }
    }
}

fn counted<'a>(failures: impl Iterator<Item = &'a String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for failure in failures {
        let told = counts.len() < FAILURES_TOLD || counts.contains_key(failure);
        let name = if told { failure.as_str() } else { "other failures" };
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    counts
}

/// What one run of a scenario found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub scenario: &'static str,
    pub model: String,
    /// Its address, or `in this process`.
    pub server: String,
    pub seed: u64,
    /// What was asked for, in words.
    pub load: String,
    pub rows: Vec<Row>,
    /// Over all rows, where they are parts of one run.
    pub total: Option<Row>,
    #[serde(skip)]
    pub columns: &'static [Column],
}

/// What a prefix cache saves.
pub(crate) const REUSE: &[Column] = &[
    Column::Requests,
    Column::Errors,
    Column::PromptTokens,
    Column::ComputedTokens,
    Column::Saved,
    Column::TtftP50,
    Column::TtftP99,
    Column::OutputRate,
];

/// A number of a row, as the table shows it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column {
    Requests,
    Errors,
    PromptTokens,
    ComputedTokens,
    Saved,
    OutputRate,
    TtftP50,
    TtftP99,
    InterTokenP50,
    InterTokenP99,
    WholeP50,
}

impl Column {
    fn header(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Errors => "errors",
            Self::PromptTokens => "prompt tokens",
            Self::ComputedTokens => "computed",
            Self::Saved => "saved",
            Self::OutputRate => "tok/s",
            Self::TtftP50 => "TTFT ms p50",
            Self::InterTokenP50 => "inter-token ms p50",
            Self::TtftP99 | Self::InterTokenP99 => "p99",
            Self::WholeP50 => "e2e ms p50",
        }
    }

    /// `-`: not measured, or not told by the server.
    fn cell(self, row: &Row) -> String {
        let count = |n: Option<usize>| n.map(|n| n.to_string());
        let rate = |x: Option<f64>| x.map(|x| format!("{x:.1}"));
        let ms = |x: Option<f64>| x.map(|x| format!("{x:.2}"));
        let percent = |x: Option<f64>| x.map(|x| format!("{:.1} %", x * 100.0));
        let cell = match self {
            Self::Requests => count(Some(row.requests)),
            Self::Errors => count(Some(row.errors)),
            Self::PromptTokens => count(Some(row.prompt_tokens)),
            Self::ComputedTokens => count(row.computed_tokens),
            Self::Saved => percent(row.saved),
            Self::OutputRate => rate(row.output_tokens_per_second),
            Self::TtftP50 => ms(row.ttft_ms.map(|spread| spread.p50)),
            Self::TtftP99 => ms(row.ttft_ms.map(|spread| spread.p99)),
            Self::InterTokenP50 => ms(row.inter_token_ms.map(|spread| spread.p50)),
            Self::InterTokenP99 => ms(row.inter_token_ms.map(|spread| spread.p99)),
            Self::WholeP50 => ms(row.e2e_ms.map(|spread| spread.p50)),
        };
        cell.unwrap_or_else(|| "-".into())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {}: {} (seed {})\n", self.model, self.server, self.load, self.seed)?;
        let header = self.columns.iter().map(|column| column.header().to_owned());
        let cells = |row: &Row| {
            let cells = self.columns.iter().map(|column| column.cell(row));
            [row.name.clone()].into_iter().chain(cells).collect::<Vec<String>>()
        };
        let mut lines = vec![[String::new()].into_iter().chain(header).collect::<Vec<String>>()];
        lines.extend(self.rows.iter().chain(&self.total).map(cells));
        let widths: Vec<usize> = (0..=self.columns.len())
            .map(|i| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0))
            .collect();
        for line in &lines {
            write!(f, "{:<1$}", line[0], widths[0])?;
            line.iter().zip(&widths).skip(1).try_for_each(|(cell, width)| write!(f, "  {cell:>width$}"))?;
            writeln!(f)?;
        }
        for row in &self.rows {
            for (failure, count) in &row.failures {
                writeln!(f, "{}: {count} failed: {failure}", row.name)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(cached_tokens: Option<usize>) -> Outcome {
        let ms = Duration::from_millis;
        Ok(Answer {
            first: ms(10),
            gaps: vec![ms(2); 3],
            whole: ms(16),
            prompt_tokens: 100,
            cached_tokens,
            tokens: 4,
            ids: None,
            text: String::new(),
        })
    }

    fn row(outcomes: &[Outcome]) -> Row {
        Row::new("turn 1", 2, &outcomes.iter().collect::<Vec<_>>(), Some(Duration::from_secs(2)))
    }

    #[test]
    fn failures_are_counted_and_named() {
        let mut outcomes = vec![answer(Some(64)), answer(Some(0))];
        outcomes.extend((0..30).map(|i| Err(format!("failure {}", i % 10))));
        let row = row(&outcomes);
        assert_eq!((row.requests, row.errors), (32, 30));
        assert_eq!(row.failures.len(), FAILURES_TOLD + 1);
        assert_eq!((row.failures["failure 0"], row.failures["other failures"]), (3, 6));
        assert_eq!(row.failures.values().sum::<usize>(), row.errors);
        assert_eq!((row.prompt_tokens, row.computed_tokens), (200, Some(136)));
        assert_eq!((row.output_tokens, row.output_tokens_per_second), (8, Some(4.0)));
    }

    #[test]
    fn what_a_server_does_not_tell_is_no_zero() {
        let columns = [Column::ComputedTokens, Column::Saved, Column::TtftP50];
        let cells = |row: &Row| columns.map(|column| column.cell(row));
        assert_eq!(cells(&row(&[answer(Some(75)), answer(Some(75))])), ["50", "75.0 %", "10.00"]);
        assert_eq!(cells(&row(&[answer(Some(75)), answer(None)])), ["-", "-", "10.00"]);
        assert_eq!(cells(&row(&[Err("gone".into())])), ["-", "-", "-"]);
    }
}
