//! One sequence's times, as the metrics want them.

use std::time::{Duration, Instant};

use crate::app::App;
use crate::metrics::Finished;
use crate::waiting::Place;

/// One sequence's times. It is counted once: when it finishes, or when dropped.
pub(crate) struct SequenceTimer {
    app: App,
    /// The prompt's place in the queue: its first choice has it.
    place: Option<Place>,
    prompt_len: usize,
    submitted: Instant,
    started: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
    generated: usize,
    counted: bool,
}

impl SequenceTimer {
    pub(crate) fn new(app: &App, place: Option<Place>, prompt_len: usize, submitted: Instant) -> Self {
        Self {
            app: app.clone(),
            place,
            prompt_len,
            submitted,
            started: None,
            first: None,
            last: None,
            generated: 0,
            counted: false,
        }
    }

    pub(crate) fn started(&mut self) {
        let now = Instant::now();
        self.started = Some(now);
        let metrics = self.app.metrics();
        metrics.queue.observe(seconds(now - self.submitted));
        if self.place.take().is_some() {
            metrics.prompt_tokens.inc_by(self.prompt_len as u64);
        }
    }

    pub(crate) fn token(&mut self) {
        let now = Instant::now();
        let metrics = self.app.metrics();
        metrics.generation_tokens.inc();
        match self.last {
            None => {
                self.first = Some(now);
                metrics.first_token.observe(seconds(now - self.submitted));
                metrics.prefill.observe(seconds(now - self.started.unwrap_or(self.submitted)));
            }
            Some(last) => metrics.between_tokens.observe(seconds(now - last)),
        }
        self.last = Some(now);
        self.generated += 1;
    }

    pub(crate) fn finish(&mut self, reason: Finished) {
        if std::mem::replace(&mut self.counted, true) {
            return;
        }
        let metrics = self.app.metrics();
        metrics.count_end(reason);
        metrics.whole.observe(seconds(self.submitted.elapsed()));
        metrics.request_prompt_tokens.observe(self.prompt_len as f64);
        metrics.request_generation_tokens.observe(self.generated as f64);
        let (Some(started), Some(first), Some(last)) = (self.started, self.first, self.last) else {
            return;
        };
        metrics.inference.observe(seconds(last - started));
        metrics.decode.observe(seconds(last - first));
        if self.generated > 1 {
            let gaps = (self.generated - 1) as f64;
            metrics.per_output_token.observe(seconds(last - first) / gaps);
        }
    }
}

impl Drop for SequenceTimer {
    fn drop(&mut self) {
        self.finish(if self.app.engine_lives() { Finished::Abort } else { Finished::Error });
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
