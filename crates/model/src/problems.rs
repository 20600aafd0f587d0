//! What is wrong with a config or a checkpoint, all of it at once.

use std::fmt;

/// Problems kept and shown; the rest are counted.
const KEPT_MAX: usize = 20;

/// One thing that is wrong: which key, tensor or file, its value, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub key: String,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.what)
    }
}

/// Everything that is wrong with `subject` (`config.json`, a directory).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    subject: String,
    kept: Vec<Problem>,
    not_kept: usize,
}

impl Problems {
    pub(crate) fn of(subject: impl Into<String>) -> Self {
        Self { subject: subject.into(), kept: Vec::new(), not_kept: 0 }
    }

    pub(crate) fn one(subject: impl Into<String>, key: impl Into<String>, what: impl Into<String>) -> Self {
        let mut problems = Self::of(subject);
        problems.push(key, what);
        problems
    }

    pub(crate) fn push(&mut self, key: impl Into<String>, what: impl Into<String>) {
        if self.kept.len() < KEPT_MAX {
            self.kept.push(Problem { key: key.into(), what: what.into() });
        } else {
            self.not_kept += 1;
        }
    }

    pub(crate) fn none_or<T>(self, value: T) -> Result<T, Self> {
        if self.kept.is_empty() { Ok(value) } else { Err(self) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.kept.len() + self.not_kept
    }

    /// The first of them; at most 20.
    pub fn first(&self) -> &[Problem] {
        &self.kept
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let ([problem], 0) = (self.kept.as_slice(), self.not_kept) {
            return write!(f, "{}: {problem}", self.subject);
        }
        write!(f, "{}: {} problems", self.subject, self.count())?;
        for problem in &self.kept {
            write!(f, "\n  {problem}")?;
        }
        match self.not_kept {
            0 => Ok(()),
            n => write!(f, "\n  and {n} more"),
        }
    }
}

impl std::error::Error for Problems {}
