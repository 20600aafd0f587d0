//! Prometheus series, under the names that vLLM's dashboards and routers look for.

use engine::Snapshot;
use openai::Error;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use crate::app::{Build, ServedModel};
use crate::engine_series::EngineSeries;
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
const MASK_S: &[f64] = &[1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1];
const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0];

/// Why a sequence ended, as the label `finished_reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finished {
    Stop,
    Length,
    ToolCalls,
    Abort,
    Error,
}

impl Finished {
    const ALL: [Self; 5] = [Self::Stop, Self::Length, Self::ToolCalls, Self::Abort, Self::Error];

    fn label(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

pub(crate) struct Metrics {
    registry: Registry,
    model_name: String,
    engine: EngineSeries,
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
    grammar_masks: Histogram,
}

/// Makes series and registers them, all labelled with the model's name.
struct Maker<'a> {
    registry: &'a Registry,
    model_name: &'a str,
}

impl Maker<'_> {
    fn opts(&self, name: &str, help: &str) -> Opts {
        let name = if name.contains(':') { name.to_owned() } else { format!("vllm:{name}") };
        Opts::new(name, help).const_label("model_name", self.model_name)
    }

    /// Registers what was just made. Names are constants, tried by every test.
    fn register<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let made = made.expect("the name and labels are valid");
        self.registry.register(Box::new(made.clone())).expect("the name is new");
        made
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
    /// `prefix_cache`: the engine has one.
    pub(crate) fn new(model_name: &str, prefix_cache: bool) -> Self {
        let registry = Registry::new();
        let make = Maker { registry: &registry, model_name };
        let finished =
            make.counters("request_success_total", "Sequences ended, by reason.", &["finished_reason"]);
        for reason in Finished::ALL {
            finished.with_label_values(&[reason.label()]);
        }
        let engine = EngineSeries::new(model_name, prefix_cache);
        registry.register(Box::new(engine.clone())).expect("the names are new");
        #[cfg(target_os = "linux")]
        registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("the names are new");
        Self {
            engine,
            prompt_tokens: make.counter(
                "prompt_tokens_total",
                "Tokens of started prompts, each counted once for all its choices.",
            ),
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
            grammar_masks: make.histogram(
                "strait:grammar_mask_seconds",
                "To tell which tokens a grammar allows next, by token.",
                MASK_S,
            ),
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

    pub(crate) fn grammar_masks(&self) -> Histogram {
        self.grammar_masks.clone()
    }

    pub(crate) fn count_end(&self, reason: Finished) {
        self.finished.with_label_values(&[reason.label()]).inc();
    }

    /// The text of `/metrics`.
    pub(crate) fn render(&self, engine: Option<&Snapshot>) -> Result<String, Error> {
        if let Some(now) = engine {
            self.engine.set(now);
        }
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .map_err(|error| internal(&error.to_string()))?;
        String::from_utf8(text).map_err(|error| internal(&error.to_string()))
    }
}
