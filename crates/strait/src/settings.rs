//! What was built and checked from the flags: after [`ModelSettings::build`] and
//! [`ServerSettings::build`] nobody looks at text again.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::anyhow;
use kernels::{CacheFormat, Precision};
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::device::DeviceChoice;
use crate::failure::Failure;
use crate::flags::{ModelFlags, ServerFlags};
use crate::memory::MemoryPolicy;
use crate::{keys, machine, size};

/// Which checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelSource {
    /// The one that is part of the program.
    Demo,
    Directory(PathBuf),
}

/// What to load and how.
#[derive(Debug, Clone)]
pub(crate) struct ModelSettings {
    pub source: ModelSource,
    pub device: DeviceChoice,
    /// `None`: as the checkpoint is stored.
    pub dtype: Option<Precision>,
    /// `None`: as the weights.
    pub kv_dtype: Option<KvDtype>,
    pub threads: usize,
    pub memory: MemoryPolicy,
}

/// How to serve it.
#[derive(Debug, Clone)]
pub(crate) struct ServerSettings {
    pub host: String,
    pub port: u16,
    /// Empty: the checkpoint's own name.
    pub names: Vec<String>,
    pub api_keys: server::ApiKeys,
    /// Requests a minute. `None`: no bound.
    pub rate_limit: Option<NonZeroU32>,
    pub connections_max: usize,
    pub cors_origins: Vec<String>,
    /// `None`: as the chat template does.
    pub tool_format: Option<String>,
    pub separate_reasoning: bool,
    pub grammar_bytes_max: usize,
    pub grammar_timeout: Duration,
    pub max_waiting: usize,
    pub max_waiting_tokens: usize,
    pub prefix_cache: bool,
    pub body_bytes_max: usize,
    pub read_timeout: Duration,
    pub stall_timeout: Duration,
    pub keep_alive: Duration,
    pub grace: Duration,
    /// `None`: no bound.
    pub request_timeout: Option<Duration>,
    pub step_timeout: Duration,
    pub log: LogSettings,
}

#[derive(Debug, Clone)]
pub(crate) struct LogSettings {
    pub json: bool,
    pub levels: Targets,
}

/// Everything that is wrong with the options, each as `option: what and what to do`.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    fn note<T>(&mut self, option: &str, checked: Result<T, String>) -> Option<T> {
        checked.map_err(|what| self.0.push(format!("{option}: {what}"))).ok()
    }

    fn none_or<T>(self, value: Option<T>) -> Result<T, Failure> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(Failure::Usage(self.0.join("\n"))),
        }
    }
}

impl ModelSettings {
    /// `sequences`: how many are computed together.
    pub(crate) fn build(flags: &ModelFlags, sequences: usize) -> Result<Self, Failure> {
        let mut wrong = Wrong::default();
        let text = |field: &'_ Option<String>| field.clone().unwrap_or_else(|| "auto".into());
        let device = wrong.note("device", text(&flags.device).parse());
        wrong.note("quantize", check_quantize(flags.quantize.as_deref().unwrap_or("none")));
        let dtype = wrong.note("dtype", precision(&text(&flags.dtype)));
        let kv_dtype = wrong.note("kv-cache-dtype", kv_dtype(&text(&flags.kv_cache_dtype)));
        let threads = wrong.note("threads", within(flags.threads, machine::default_threads(), 1, 1 << 10));
        let context_len = wrong.note("max-model-len", optional(flags.max_model_len, 2, 1 << 26));
        let kv_bytes =
            wrong.note("kv-cache-memory", flags.kv_cache_memory.as_deref().map(size::parse).transpose());
        let share = wrong.note("memory-utilization", flags.memory_utilization.map(share).transpose());
        let block_len = wrong.note("block-size", within(flags.block_size, 64, 1, 1 << 12));
        let step_tokens =
            wrong.note("max-num-batched-tokens", optional(flags.max_num_batched_tokens, 1, 1 << 16));
        let source = ModelSource::of(flags.model.as_deref().unwrap_or("demo"));
        let build = || {
            let (kv_bytes, share) = (kv_bytes?, share?);
            let (context_len, strict_context) = (context_len?, flags.strict_context);
            let (block_len, step_tokens) = (block_len?, step_tokens?);
            let memory = MemoryPolicy {
                kv_bytes,
                share,
                context_len,
                strict_context,
                sequences,
                step_tokens,
                block_len,
            };
            let (device, dtype, kv_dtype) = (device?, dtype?, kv_dtype?);
            Some(Self { source, device, dtype, kv_dtype, threads: threads?, memory })
        };
        let built = build();
        wrong.none_or(built)
    }
}

impl ModelSource {
    pub(crate) fn of(text: &str) -> Self {
        if text == "demo" { Self::Demo } else { Self::Directory(PathBuf::from(text)) }
    }
}

impl ServerSettings {
    pub(crate) fn build(flags: &ServerFlags) -> Result<Self, Failure> {
        let mut wrong = Wrong::default();
        let names = wrong.note("served-model-name", filled(&flags.served_model_name));
        let typed_keys = wrong.note("api-key", keys::typed(&flags.api_key));
        let filed_keys = wrong.note("api-key-file", keys::in_file(flags.api_key_file.as_deref()));
        let rate_limit = wrong.note("rate-limit", optional(flags.rate_limit, 1, 1 << 20));
        let connections_max = wrong.note("max-connections", within(flags.max_connections, 4096, 1, 1 << 20));
        let cors_origins = wrong.note("cors-origin", filled(&flags.cors_origin));
        let tool_format = wrong.note("tool-format", tool_format(flags.tool_format.as_deref()));
        let grammar = size::parse(flags.max_grammar_size.as_deref().unwrap_or("64KiB"));
        let grammar = wrong
            .note("max-grammar-size", grammar.and_then(|n| within(Some(n as usize), 0, 1 << 10, 1 << 26)));
        let grammar_timeout = wrong.note("grammar-timeout", seconds(flags.grammar_timeout, 1.0));
        let max_waiting = wrong.note("max-queue", within(flags.max_queue, 1024, 1, 1 << 20));
        let max_waiting_tokens = wrong.note("max-queue-tokens", optional(flags.max_queue_tokens, 1, 1 << 40));
        let body = size::parse(flags.max_body_size.as_deref().unwrap_or("16MiB"));
        let body =
            wrong.note("max-body-size", body.and_then(|n| within(Some(n as usize), 0, 1 << 10, 1 << 30)));
        let read_timeout = wrong.note("read-timeout", seconds(flags.read_timeout, 30.0));
        let stall_timeout = wrong.note("stall-timeout", seconds(flags.stall_timeout, 30.0));
        let keep_alive = wrong.note("keep-alive", seconds(flags.keep_alive, 15.0));
        let grace = wrong.note("grace-period", seconds(flags.grace_period, 30.0));
        let request_timeout =
            wrong.note("request-timeout", flags.request_timeout.map(|s| seconds(Some(s), s)).transpose());
        let step_timeout = wrong.note("step-timeout", seconds(flags.step_timeout, 300.0));
        let json = wrong.note("log-format", log_format(flags.log_format.as_deref().unwrap_or("text")));
        let levels = wrong.note("log-level", log_levels(flags.log_level.as_deref().unwrap_or("info")));
        let build = || {
            Some(Self {
                host: flags.host.clone().unwrap_or_else(|| "127.0.0.1".into()),
                port: flags.port.unwrap_or(8000),
                names: names?,
                api_keys: typed_keys?.iter().chain(&filed_keys?).map(keys::Secret::reveal).collect(),
                rate_limit: rate_limit?.and_then(|n| NonZeroU32::new(n as u32)),
                connections_max: connections_max?,
                cors_origins: cors_origins?,
                tool_format: tool_format?,
                separate_reasoning: !flags.no_separate_reasoning,
                grammar_bytes_max: grammar?,
                grammar_timeout: grammar_timeout?,
                max_waiting: max_waiting?,
                max_waiting_tokens: max_waiting_tokens?.unwrap_or(usize::MAX),
                prefix_cache: !flags.no_prefix_cache,
                body_bytes_max: body?,
                read_timeout: read_timeout?,
                stall_timeout: stall_timeout?,
                keep_alive: keep_alive?,
                grace: grace?,
                request_timeout: request_timeout?,
                step_timeout: step_timeout?,
                log: LogSettings { json: json?, levels: levels? },
            })
        };
        let built = build();
        wrong.none_or(built)
    }

    /// Of `--max-num-seqs`, which sizes the model's memory too.
    pub(crate) fn sequences(flags: &ServerFlags) -> Result<usize, Failure> {
        let mut wrong = Wrong::default();
        let n = wrong.note("max-num-seqs", within(flags.max_num_seqs, 64, 1, 1 << 12));
        wrong.none_or(n)
    }
}

fn tool_format(name: Option<&str>) -> Result<Option<String>, String> {
    let known: Vec<&str> = server::tool_formats().collect();
    match name {
        Some(name) if !known.contains(&name) => Err(format!("`{name}` is none of {}", known.join(", "))),
        name => Ok(name.map(str::to_owned)),
    }
}

fn check_quantize(text: &str) -> Result<(), String> {
    match text {
        "none" => Ok(()),
        other => Err(format!("{other:?}: weights are not quantized by this version; use none")),
    }
}

/// What the KV cache is held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KvDtype {
    Plain(Precision),
    Fp8,
}

/// `None`: auto.
pub(crate) fn kv_dtype(text: &str) -> Result<Option<KvDtype>, String> {
    match text {
        "fp8" => Ok(Some(KvDtype::Fp8)),
        _ => match precision(text) {
            Ok(plain) => Ok(plain.map(KvDtype::Plain)),
            Err(_) => Err(format!("no cache is held in {text:?}; use auto, bf16, f32 or fp8")),
        },
    }
}

/// How a cache asked for is stored beside weights that are computed in `precision`.
pub(crate) fn cache_format(asked: Option<KvDtype>, precision: Precision) -> anyhow::Result<CacheFormat> {
    match asked {
        Some(KvDtype::Fp8) => Ok(CacheFormat::Fp8),
        Some(KvDtype::Plain(kv)) if kv != precision => {
            let (kv, weights) = (kv.name(), precision.name());
            Err(anyhow!(
                "kv-cache-dtype: {kv}, but the weights are computed in {weights}, and a cache that is not fp8 is held in \
                 the same; leave it at auto, or give --dtype {kv}"
            ))
        }
        _ => Ok(CacheFormat::Plain),
    }
}

/// `None`: auto.
pub(crate) fn precision(text: &str) -> Result<Option<Precision>, String> {
    match text {
        "auto" => Ok(None),
        "bf16" => Ok(Some(Precision::Bf16)),
        "f32" => Ok(Some(Precision::F32)),
        other => Err(format!("{other:?} is not computed with; use auto, bf16 or f32")),
    }
}

fn within(typed: Option<usize>, default: usize, least: usize, most: usize) -> Result<usize, String> {
    match typed.unwrap_or(default) {
        n if (least..=most).contains(&n) => Ok(n),
        n => Err(format!("{n} is out of range; give a number from {least} to {most}")),
    }
}

fn optional(typed: Option<usize>, least: usize, most: usize) -> Result<Option<usize>, String> {
    typed.map(|n| within(Some(n), n, least, most)).transpose()
}

fn share(x: f64) -> Result<f64, String> {
    if x > 0.0 && x <= 1.0 { Ok(x) } else { Err(format!("{x} is no share; give a number above 0, up to 1")) }
}

fn seconds(typed: Option<f64>, default: f64) -> Result<Duration, String> {
    match typed.unwrap_or(default) {
        s if (0.001..=86_400.0).contains(&s) => Ok(Duration::from_secs_f64(s)),
        s => Err(format!("{s} is out of range; give seconds from 0.001 to 86400")),
    }
}

fn filled(list: &[String]) -> Result<Vec<String>, String> {
    if list.iter().any(|item| item.trim().is_empty()) { Err("is empty".into()) } else { Ok(list.to_vec()) }
}

/// Whether it is JSON.
fn log_format(text: &str) -> Result<bool, String> {
    match text {
        "text" => Ok(false),
        "json" => Ok(true),
        other => Err(format!("{other:?} is no format; use text or json")),
    }
}

fn log_levels(text: &str) -> Result<Targets, String> {
    // A word alone would pass as the name of a target.
    let is_level =
        |part: &str| part.contains('=') || (!part.is_empty() && LevelFilter::from_str(part).is_ok());
    let refused =
        || format!("{text:?} is no level; use off, error, warn, info, debug, trace or target=level");
    if !text.split(',').all(|part| is_level(part.trim())) {
        return Err(refused());
    }
    text.parse().map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model_flags(change: impl FnOnce(&mut ModelFlags)) -> Result<ModelSettings, Failure> {
        let mut flags = ModelFlags::default();
        change(&mut flags);
        ModelSettings::build(&flags, 4)
    }

    #[test]
    fn options_that_would_do_nothing_are_refused_all_at_once() {
        let wrong = model_flags(|flags| {
            flags.device = Some("cuda:one".into());
            flags.quantize = Some("q8_0".into());
            flags.dtype = Some("fp8".into());
            flags.threads = Some(0);
            flags.kv_cache_memory = Some("much".into());
            flags.memory_utilization = Some(f64::NAN);
            flags.block_size = Some(0);
        })
        .unwrap_err()
        .to_string();
        let named: Vec<&str> = wrong.lines().filter_map(|line| line.split(':').next()).collect();
        let expected =
            ["device", "quantize", "dtype", "threads", "kv-cache-memory", "memory-utilization", "block-size"];
        assert_eq!(named, expected, "{wrong}");
        assert!(wrong.contains("for one of several GPUs, cuda:1"), "{wrong}");
    }

    #[test]
    fn defaults_are_usable() {
        let settings = model_flags(|_| ()).unwrap();
        assert_eq!((settings.source, settings.device), (ModelSource::Demo, DeviceChoice::Auto));
        assert_eq!(settings.dtype, None);
        assert!(settings.threads >= 1 && settings.memory.block_len == 64);
        let server = ServerSettings::build(&ServerFlags::default()).unwrap();
        assert_eq!((server.host.as_str(), server.port, server.body_bytes_max), ("127.0.0.1", 8000, 16 << 20));
    }

    #[test]
    fn keys_come_from_both_places_and_are_never_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hidden-1\nhidden-2\n").unwrap();
        let flags = ServerFlags {
            api_key: vec![keys::Secret::from("hidden-3".to_owned())],
            api_key_file: file.path().to_str().map(str::to_owned),
            ..ServerFlags::default()
        };
        let settings = ServerSettings::build(&flags).unwrap();
        let shown = format!("{flags:?} {settings:?}");
        assert!(shown.contains("3 keys") && !shown.contains("hidden"), "{shown}");
    }

    #[test]
    fn log_levels_are_levels() {
        for (text, fine) in [("info", true), ("info,server=debug", true), ("chatty", false), ("", false)] {
            assert_eq!(log_levels(text).is_ok(), fine, "{text:?}");
        }
    }
}
