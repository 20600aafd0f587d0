//! How far the weights are: a bar on a terminal, now and then a line elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines of a log.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Hears bytes as they are packed.
pub(crate) struct Progress<'a> {
    total: usize,
    done: usize,
    bar: Option<ProgressBar>,
    line_at: Instant,
    /// Hears the share that is done, from 0 to 1.
    tell: &'a dyn Fn(f32),
}

impl<'a> Progress<'a> {
    pub(crate) fn new(total: usize, tell: &'a dyn Fn(f32)) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64);
            let style =
                ProgressStyle::with_template("weights {bar:40} {binary_bytes}/{binary_total_bytes} {eta}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { total: total.max(1), done: 0, bar, line_at: Instant::now() + LINE_EVERY, tell }
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        self.done = (self.done + bytes).min(self.total);
        let share = self.done as f32 / self.total as f32;
        (self.tell)(share);
        match &self.bar {
            Some(bar) => bar.set_position(self.done as u64),
            None if Instant::now() >= self.line_at => {
                tracing::info!("weights: {:.0} %", share * 100.0);
                self.line_at = Instant::now() + LINE_EVERY;
            }
            None => {}
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
