//! Series that only the engine knows, read from its counters when they are asked for.

use std::sync::{Arc, Mutex, PoisonError};

use engine::{STEP_TOKENS_BOUNDS, Snapshot};
use prometheus::Opts;
use prometheus::core::{Collector, Desc, Describer as _};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, Metric, MetricFamily, MetricType};

struct Row {
    name: &'static str,
    help: &'static str,
    value: Value,
}

enum Value {
    Gauge(fn(&Snapshot) -> f64),
    Counter(fn(&Snapshot) -> u64),
    StepTokens,
}

use Value::{Counter as Total, Gauge as Now};

/// Names that vLLM has, too, are its names.
const ROWS: &[Row] = &[
    row("vllm:num_requests_running", "Sequences that hold KV blocks.", Now(|now| now.running as f64)),
    row("vllm:num_requests_waiting", "Sequences accepted and not running.", Now(|now| now.waiting as f64)),
    row(
        "vllm:kv_cache_usage_perc",
        "Share of the KV blocks held by live requests, 0 to 1.",
        Now(|now| now.blocks_used as f64 / now.blocks_total.max(1) as f64),
    ),
    row(
        "vllm:num_preemptions_total",
        "Sequences that gave up their KV blocks to others, to go on later.",
        Total(|now| now.preempted),
    ),
    row("vllm:iteration_tokens_total", "Tokens computed in a step.", Value::StepTokens),
    row(
        "strait:recomputed_tokens_total",
        "Tokens computed again after a preemption.",
        Total(|now| now.recomputed_tokens),
    ),
    row(
        "strait:failed_steps_total",
        "Steps that failed and were tried again row by row.",
        Total(|now| now.steps_failed),
    ),
    row("strait:expired_requests_total", "Sequences ended by --request-timeout.", Total(|now| now.expired)),
];

const PREFIX_CACHE_ROWS: &[Row] = &[
    row(
        "vllm:prefix_cache_queries_total",
        "Tokens that were looked up in the prefix cache.",
        Total(|now| now.cache_queries),
    ),
    row(
        "vllm:prefix_cache_hits_total",
        "Tokens found in the prefix cache, in whole KV blocks.",
        Total(|now| now.cache_hits),
    ),
    row(
        "strait:prefix_cache_copied_tokens_total",
        "Tokens copied from the beginning of a cached KV block that goes on differently; they are no hits.",
        Total(|now| now.cache_copied),
    ),
    row("strait:prefix_cache_blocks", "KV blocks kept for reuse alone.", Now(|now| now.blocks_cached as f64)),
];

const fn row(name: &'static str, help: &'static str, value: Value) -> Row {
    Row { name, help, value }
}

/// A snapshot of the engine as Prometheus sees it.
#[derive(Clone)]
pub(crate) struct EngineSeries {
    series: Arc<Vec<(&'static Row, Desc)>>,
    latest: Arc<Mutex<Snapshot>>,
}

impl EngineSeries {
    /// A feature that is off has no series.
    pub(crate) fn new(model_name: &str, prefix_cache: bool) -> Self {
        let rows = ROWS.iter().chain(if prefix_cache { PREFIX_CACHE_ROWS } else { &[] });
        let describe = |row: &'static Row| {
            let opts = Opts::new(row.name, row.help).const_label("model_name", model_name);
            (row, opts.describe().expect("the name and labels are valid"))
        };
        Self { series: Arc::new(rows.map(describe).collect()), latest: Arc::default() }
    }

    pub(crate) fn set(&self, now: &Snapshot) {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone_from(now);
    }
}

impl Collector for EngineSeries {
    fn desc(&self) -> Vec<&Desc> {
        self.series.iter().map(|(_, desc)| desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let now = self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.series.iter().map(|(row, desc)| family(row, desc, &now)).collect()
    }
}

fn family(row: &Row, desc: &Desc, now: &Snapshot) -> MetricFamily {
    let mut metric = Metric::from_label(desc.const_label_pairs.clone());
    let kind = match row.value {
        Now(value) => {
            let mut gauge = Gauge::default();
            gauge.set_value(value(now));
            metric.set_gauge(gauge);
            MetricType::GAUGE
        }
        Total(value) => {
            let mut counter = Counter::default();
            counter.set_value(value(now) as f64);
            metric.set_counter(counter);
            MetricType::COUNTER
        }
        Value::StepTokens => {
            metric.set_histogram(step_tokens(now));
            MetricType::HISTOGRAM
        }
    };
    let mut family = MetricFamily::default();
    family.set_name(desc.fq_name.clone());
    family.set_help(desc.help.clone());
    family.set_field_type(kind);
    family.set_metric(vec![metric]);
    family
}

fn step_tokens(now: &Snapshot) -> Histogram {
    let mut histogram = Histogram::default();
    let mut cumulative = 0;
    let mut buckets = Vec::new();
    for (bound, count) in STEP_TOKENS_BOUNDS.iter().zip(&now.step_tokens) {
        cumulative += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound as f64);
        bucket.set_cumulative_count(cumulative);
        buckets.push(bucket);
    }
    histogram.set_bucket(buckets);
    histogram.set_sample_count(now.step_tokens.iter().sum());
    histogram.set_sample_sum(now.step_tokens_sum as f64);
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_series_is_read_from_its_own_counter() {
        let now = Snapshot {
            running: 1,
            waiting: 2,
            blocks_used: 3,
            blocks_total: 4,
            preempted: 5,
            recomputed_tokens: 6,
            steps_failed: 7,
            expired: 8,
            cache_queries: 9,
            cache_hits: 10,
            cache_copied: 11,
            blocks_cached: 12,
            step_tokens_sum: 13,
            ..Snapshot::default()
        };
        let value = |row: &Row| match row.value {
            Now(value) => value(&now),
            Total(value) => value(&now) as f64,
            Value::StepTokens => step_tokens(&now).get_sample_sum(),
        };
        let values: Vec<_> = ROWS.iter().chain(PREFIX_CACHE_ROWS).map(|row| (row.name, value(row))).collect();
        let expected = [
            ("vllm:num_requests_running", 1.0),
            ("vllm:num_requests_waiting", 2.0),
            ("vllm:kv_cache_usage_perc", 0.75),
            ("vllm:num_preemptions_total", 5.0),
            ("vllm:iteration_tokens_total", 13.0),
            ("strait:recomputed_tokens_total", 6.0),
            ("strait:failed_steps_total", 7.0),
            ("strait:expired_requests_total", 8.0),
            ("vllm:prefix_cache_queries_total", 9.0),
            ("vllm:prefix_cache_hits_total", 10.0),
            ("strait:prefix_cache_copied_tokens_total", 11.0),
            ("strait:prefix_cache_blocks", 12.0),
        ];
        assert_eq!(values, expected);
    }
}
