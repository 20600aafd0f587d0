//! Prometheus series, under the names that vLLM's dashboards and routers look for.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use engine::{STEP_TOKENS_BOUNDS, Snapshot};
use openai::Error;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, MetricFamily, MetricType};
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

use crate::app::{Build, ServedModel};
use crate::errors::internal;

const FIRST_TOKEN_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const BETWEEN_TOKENS_S: &[f64] = &[
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const WHOLE_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0,
    50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];
const TOKENS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5];
const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0];

/// Why a sequence ended, as the label `finished_reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finished {
    Stop,
    Length,
    Abort,
    Error,
}

impl Finished {
    const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    fn label(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

pub(crate) struct Metrics {
    registry: Registry,
    model_name: String,
    running: IntGauge,
    waiting: IntGauge,
    kv_cache_usage: Gauge,
    pub(crate) prompt_tokens: IntCounter,
    pub(crate) generation_tokens: IntCounter,
    finished: IntCounterVec,
    http: IntCounterVec,
    pub(crate) first_token: Histogram,
    pub(crate) between_tokens: Histogram,
    pub(crate) per_output_token: Histogram,
    pub(crate) whole: Histogram,
    pub(crate) queue: Histogram,
    pub(crate) prefill: Histogram,
    pub(crate) decode: Histogram,
    pub(crate) inference: Histogram,
    pub(crate) request_prompt_tokens: Histogram,
    pub(crate) request_generation_tokens: Histogram,
    params_n: Histogram,
    params_max_tokens: Histogram,
    steps: StepTokens,
    drain: Mutex<Drain>,
}

/// How fast sequences end.
struct Drain {
    latest: Instant,
    /// Between one end and the next, the recent ones weighing more.
    gap_s: f64,
}

/// Makes series and registers them, all labelled with the model's name.
struct Maker<'a> {
    registry: &'a Registry,
    model_name: &'a str,
}

impl Maker<'_> {
    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(format!("vllm:{name}"), help).const_label("model_name", self.model_name)
    }

    /// Registers what was just made. Names are constants, tried by every test.
    fn register<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let made = made.expect("the name and labels are valid");
        self.registry.register(Box::new(made.clone())).expect("the name is new");
        made
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::with_opts(self.opts(name, help)))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(self.opts(name, help)))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(self.opts(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::from(self.opts(name, help)).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts))
    }
}

impl Metrics {
    pub(crate) fn new(model_name: &str) -> Self {
        let registry = Registry::new();
        let make = Maker { registry: &registry, model_name };
        let finished =
            make.counters("request_success_total", "Sequences ended, by reason.", &["finished_reason"]);
        for reason in Finished::ALL {
            finished.with_label_values(&[reason.label()]);
        }
        let steps = StepTokens::new(&make);
        registry.register(Box::new(steps.clone())).expect("the name is new");
        #[cfg(target_os = "linux")]
        registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("the names are new");
        Self {
            running: make.gauge("num_requests_running", "Sequences that hold KV blocks."),
            waiting: make.gauge("num_requests_waiting", "Sequences accepted and not yet running."),
            kv_cache_usage: make.register(Gauge::with_opts(
                make.opts("kv_cache_usage_perc", "Share of the KV blocks held by live requests, 0 to 1."),
            )),
            prompt_tokens: make.counter("prompt_tokens_total", "Prompt tokens of started sequences."),
            generation_tokens: make.counter("generation_tokens_total", "Tokens generated."),
            finished,
            http: make.counters(
                "http_requests_total",
                "HTTP requests answered.",
                &["method", "route", "status"],
            ),
            first_token: make.histogram(
                "time_to_first_token_seconds",
                "From submission to the first token.",
                FIRST_TOKEN_S,
            ),
            between_tokens: make.histogram(
                "inter_token_latency_seconds",
                "From one token of a sequence to the next.",
                BETWEEN_TOKENS_S,
            ),
            per_output_token: make.histogram(
                "request_time_per_output_token_seconds",
                "Mean time a token after the first, by sequence.",
                BETWEEN_TOKENS_S,
            ),
            whole: make.histogram("e2e_request_latency_seconds", "From submission to the end.", WHOLE_S),
            queue: make.histogram("request_queue_time_seconds", "Time waiting to start.", WHOLE_S),
            prefill: make.histogram(
                "request_prefill_time_seconds",
                "From the start to the first token.",
                WHOLE_S,
            ),
            decode: make.histogram(
                "request_decode_time_seconds",
                "From the first token to the last.",
                WHOLE_S,
            ),
            inference: make.histogram(
                "request_inference_time_seconds",
                "From the start to the last token.",
                WHOLE_S,
            ),
            request_prompt_tokens: make.histogram(
                "request_prompt_tokens",
                "Prompt tokens, by sequence.",
                TOKENS,
            ),
            request_generation_tokens: make.histogram(
                "request_generation_tokens",
                "Generated tokens, by sequence.",
                TOKENS,
            ),
            params_n: make.histogram("request_params_n", "The parameter n, by request.", CHOICES),
            params_max_tokens: make.histogram(
                "request_params_max_tokens",
                "The parameter max_tokens, by request.",
                TOKENS,
            ),
            steps,
            drain: Mutex::new(Drain { latest: Instant::now(), gap_s: 0.0 }),
            model_name: model_name.to_owned(),
            registry,
        }
    }

    /// Adds the series that describe the model.
    pub(crate) fn set_model(&self, build: &Build, model: &ServedModel) {
        let make = Maker { registry: &self.registry, model_name: &self.model_name };
        let constant = |opts: Opts| make.register(IntGauge::with_opts(opts)).set(1);
        constant(
            make.opts("build_info", "The program and where it runs.")
                .const_label("version", &build.version)
                .const_label("commit", &build.commit)
                .const_label("device", &model.device),
        );
        constant(
            make.opts("cache_config_info", "Shape of the KV pool.")
                .const_label("block_size", model.kv_cache.block_len.to_string())
                .const_label("num_blocks", model.kv_cache.n_blocks.to_string())
                .const_label("cache_dtype", &model.kv_cache.dtype),
        );
    }

    pub(crate) fn count_http(&self, method: &str, route: &str, status: &str) {
        self.http.with_label_values(&[method, route, status]).inc();
    }

    /// Notes the parameters of an accepted request.
    pub(crate) fn observe_params(&self, n: usize, max_tokens: usize) {
        self.params_n.observe(n as f64);
        self.params_max_tokens.observe(max_tokens as f64);
    }

    /// Whole seconds until a queue of `waiting` is likely to have room, by how fast it drains.
    pub(crate) fn drain_seconds(&self, waiting: usize) -> u64 {
        let gap_s = self.drain.lock().map_or(0.0, |drain| drain.gap_s);
        // Room for a quarter of the queue: all the refused come back at about the same time.
        (gap_s * waiting as f64 / 4.0).ceil().clamp(1.0, 60.0) as u64
    }

    pub(crate) fn count_end(&self, reason: Finished) {
        self.finished.with_label_values(&[reason.label()]).inc();
        if let Ok(mut drain) = self.drain.lock() {
            let now = Instant::now();
            let gap_s = (now - drain.latest).as_secs_f64().min(60.0);
            *drain = Drain { latest: now, gap_s: 0.9 * drain.gap_s + 0.1 * gap_s };
        }
    }

    /// The text of `/metrics`.
    pub(crate) fn render(&self, engine: Option<&Snapshot>) -> Result<String, Error> {
        if let Some(now) = engine {
            self.running.set(now.running as i64);
            self.waiting.set(now.waiting as i64);
            self.kv_cache_usage.set(now.blocks_used as f64 / now.blocks_total.max(1) as f64);
            self.steps.set(now);
        }
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .map_err(|error| internal(&error.to_string()))?;
        String::from_utf8(text).map_err(|error| internal(&error.to_string()))
    }
}

/// The engine's own histogram of tokens a step, handed on.
#[derive(Clone)]
struct StepTokens {
    desc: Desc,
    latest: Arc<Mutex<Snapshot>>,
}

impl StepTokens {
    fn new(make: &Maker<'_>) -> Self {
        use prometheus::core::Describer;
        let opts = make.opts("iteration_tokens_total", "Tokens computed in a step.");
        let desc = opts.describe().expect("the name and labels are valid");
        Self { desc, latest: Default::default() }
    }

    fn set(&self, now: &Snapshot) {
        if let Ok(mut latest) = self.latest.lock() {
            latest.clone_from(now);
        }
    }
}

impl Collector for StepTokens {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let now = self.latest.lock().map(|latest| latest.clone()).unwrap_or_default();
        let mut histogram = proto::Histogram::default();
        let mut cumulative = 0;
        let mut buckets = Vec::new();
        for (bound, count) in STEP_TOKENS_BOUNDS.iter().zip(&now.step_tokens) {
            cumulative += count;
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*bound as f64);
            bucket.set_cumulative_count(cumulative);
            buckets.push(bucket);
        }
        histogram.set_bucket(buckets);
        histogram.set_sample_count(now.step_tokens.iter().sum());
        histogram.set_sample_sum(now.step_tokens_sum as f64);
        let mut metric = proto::Metric::from_label(self.desc.const_label_pairs.clone());
        metric.set_histogram(histogram);
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(vec![metric]);
        vec![family]
    }
}
