//! How far the weights are: a bar on a terminal, now and then a line elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines of a log.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// What is done sooner needs no bar.
const BAR_AFTER: Duration = Duration::from_millis(300);

/// Hears bytes as they are packed.
pub(crate) struct Progress<'a> {
    total: usize,
    done: usize,
    /// On a terminal, once it takes long enough to be looked at.
    bar: Option<ProgressBar>,
    /// When to show or say something next.
    show_at: Instant,
    /// Hears the share that is done, from 0 to 1.
    tell: &'a dyn Fn(f32),
}

impl<'a> Progress<'a> {
    pub(crate) fn new(total: usize, tell: &'a dyn Fn(f32)) -> Self {
        let wait = if stderr().is_terminal() { BAR_AFTER } else { LINE_EVERY };
        Self { total: total.max(1), done: 0, bar: None, show_at: Instant::now() + wait, tell }
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        self.done = (self.done + bytes).min(self.total);
        let share = self.done as f32 / self.total as f32;
        (self.tell)(share);
        if let Some(bar) = &self.bar {
            bar.set_position(self.done as u64);
            return;
        }
        if Instant::now() < self.show_at {
            return;
        }
        if stderr().is_terminal() {
            self.bar = Some(bar(self.total));
        } else {
            tracing::info!("weights: {:.0} %", share * 100.0);
            self.show_at = Instant::now() + LINE_EVERY;
        }
    }
}

fn bar(total: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("weights {bar:40} {binary_bytes}/{binary_total_bytes} {eta}");
    ProgressBar::new(total as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
