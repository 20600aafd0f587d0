//! What was typed: on the command line, in `STRAIT_*`, or in the configuration file. Nothing is
//! checked here; see [`crate::settings`].
//!
//! A key of the configuration file is the flag's long name, so each option is described once.

use clap::builder::{BoolishValueParser, Resettable};
use clap::{Arg, Args, Command};
use serde::{Deserialize, Serialize};

use crate::keys::Secret;

/// What to load and how; shared by all that run a model.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelFlags {
    /// `demo` (built in), or a directory with config.json, tokenizer.json and safetensors [default: demo]
    #[arg(long, env = "STRAIT_MODEL", value_name = "demo|DIR")]
    pub model: Option<String>,
    /// Where to compute; auto is the CPU until the CUDA backend has run on hardware [default: auto]
    #[arg(long, env = "STRAIT_DEVICE", value_name = "auto|cpu|cuda|cuda:N")]
    pub device: Option<String>,
    /// What weights are held in, and the KV pool if --kv-cache-dtype is auto; auto is what the checkpoint is stored in
    /// [default: auto]
    #[arg(long, env = "STRAIT_DTYPE", value_name = "auto|bf16|f32")]
    pub dtype: Option<String>,
    /// Quantize weights while loading [default: none, the only choice so far]
    #[arg(long, env = "STRAIT_QUANTIZE", value_name = "none")]
    pub quantize: Option<String>,
    /// Threads to compute with [default: the physical cores]
    #[arg(long, env = "STRAIT_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// Longest sequence, prompt and answer together, in tokens [default: the checkpoint's]
    #[arg(long, env = "STRAIT_MAX_MODEL_LEN", value_name = "N")]
    pub max_model_len: Option<usize>,
    /// End with an error where the context would have to shrink to fit the KV memory
    #[arg(long, env = "STRAIT_STRICT_CONTEXT", value_parser = BoolishValueParser::new())]
    pub strict_context: bool,
    /// Memory of the KV pool [default: what --max-num-seqs full sequences need, within --memory-utilization]
    #[arg(long, env = "STRAIT_KV_CACHE_MEMORY", value_name = "SIZE")]
    pub kv_cache_memory: Option<String>,
    /// Share of the available memory that weights, buffers and KV pool may take together [default: 0.7, on a GPU 0.9]
    #[arg(long, env = "STRAIT_MEMORY_UTILIZATION", value_name = "0..1")]
    pub memory_utilization: Option<f64>,
    /// What the KV pool is held in; auto is as the weights, which bf16 and f32 only confirm; fp8 takes 0.57 times the
    /// memory of bf16 and costs accuracy [default: auto]
    #[arg(long, env = "STRAIT_KV_CACHE_DTYPE", value_name = "auto|bf16|f32|fp8")]
    pub kv_cache_dtype: Option<String>,
    /// Tokens of a KV block [default: 64]
    #[arg(long, env = "STRAIT_BLOCK_SIZE", value_name = "N")]
    pub block_size: Option<usize>,
    /// Tokens computed in one step, over all sequences [default: 512, on a GPU 2048]
    #[arg(long, env = "STRAIT_MAX_NUM_BATCHED_TOKENS", value_name = "N")]
    pub max_num_batched_tokens: Option<usize>,
}

/// How to serve it.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerFlags {
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, env = "STRAIT_HOST", value_name = "HOST")]
    pub host: Option<String>,
    /// Port to listen on; 0 takes a free one and the log says which [default: 8000]
    #[arg(long, env = "STRAIT_PORT", value_name = "PORT", value_parser = port)]
    pub port: Option<u16>,
    /// Name that clients ask for; may be repeated [default: the directory's name]
    #[arg(long, env = "STRAIT_SERVED_MODEL_NAME", value_name = "NAME", value_delimiter = ',')]
    pub served_model_name: Vec<String>,
    /// How the model writes tool calls: deepseek-v3, deepseek-v3.1, deepseek-v3.2, kimi-k2, glm or hermes [default: as its
    /// chat template does]
    #[arg(long, env = "STRAIT_TOOL_FORMAT", value_name = "NAME")]
    pub tool_format: Option<String>,
    /// Leave `<think>` … `</think>` in the answer's text
    #[arg(long, env = "STRAIT_NO_SEPARATE_REASONING", value_parser = BoolishValueParser::new())]
    pub no_separate_reasoning: bool,
    /// Largest JSON schema, expression or grammar that a request may ask for [default: 64KiB]
    #[arg(long, env = "STRAIT_MAX_GRAMMAR_SIZE", value_name = "SIZE")]
    pub max_grammar_size: Option<String>,
    /// Seconds that compiling one may take [default: 1]
    #[arg(long, env = "STRAIT_GRAMMAR_TIMEOUT", value_name = "SECONDS")]
    pub grammar_timeout: Option<f64>,
    /// Key that clients must send; may be repeated. In the environment it is not seen by `ps`
    #[arg(long, env = "STRAIT_API_KEY", value_name = "KEY", value_delimiter = ',', hide_env_values = true)]
    pub api_key: Vec<Secret>,
    /// File of more keys, one a line; lines that begin with # are comments
    #[arg(long, env = "STRAIT_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<String>,
    /// Requests a minute of one key, or without keys of one address, of which all may come at once; more hear 429
    /// [default: no bound]
    #[arg(long, env = "STRAIT_RATE_LIMIT", value_name = "N")]
    pub rate_limit: Option<usize>,
    /// Connections open at a time; more wait to be accepted [default: 4096]
    #[arg(long, env = "STRAIT_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<usize>,
    /// Origin that browsers may call from, beside localhost; `*` is any; may be repeated
    #[arg(long, env = "STRAIT_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origin: Vec<String>,
    /// Sequences computed together [default: 64]
    #[arg(long, env = "STRAIT_MAX_NUM_SEQS", value_name = "N")]
    pub max_num_seqs: Option<usize>,
    /// Prompts that may wait for a place; more hear 429 [default: 1024]
    #[arg(long, env = "STRAIT_MAX_QUEUE", value_name = "N")]
    pub max_queue: Option<usize>,
    /// Tokens of all prompts that may wait; more hear 429, but one prompt may always wait [default: no bound]
    #[arg(long, env = "STRAIT_MAX_QUEUE_TOKENS", value_name = "N")]
    pub max_queue_tokens: Option<usize>,
    /// Do not keep computed prompts for requests that begin alike
    #[arg(long, env = "STRAIT_NO_PREFIX_CACHE", value_parser = BoolishValueParser::new())]
    pub no_prefix_cache: bool,
    /// Largest request body [default: 16MiB]
    #[arg(long, env = "STRAIT_MAX_BODY_SIZE", value_name = "SIZE")]
    pub max_body_size: Option<String>,
    /// Seconds that a client may take to send its request [default: 30]
    #[arg(long, env = "STRAIT_READ_TIMEOUT", value_name = "SECONDS")]
    pub read_timeout: Option<f64>,
    /// Seconds that a client may leave its answer unread [default: 30]
    #[arg(long, env = "STRAIT_STALL_TIMEOUT", value_name = "SECONDS")]
    pub stall_timeout: Option<f64>,
    /// Seconds of silence in a stream before a comment is sent [default: 15]
    #[arg(long, env = "STRAIT_KEEP_ALIVE", value_name = "SECONDS")]
    pub keep_alive: Option<f64>,
    /// Seconds that running requests may go on after SIGTERM [default: 30]
    #[arg(long, env = "STRAIT_GRACE_PERIOD", value_name = "SECONDS")]
    pub grace_period: Option<f64>,
    /// Seconds that a request may take, waiting included; then it ends with an error [default: no bound]
    #[arg(long, env = "STRAIT_REQUEST_TIMEOUT", value_name = "SECONDS")]
    pub request_timeout: Option<f64>,
    /// Seconds without progress after which the engine counts as dead, and the process ends [default: 300]
    #[arg(long, env = "STRAIT_STEP_TIMEOUT", value_name = "SECONDS")]
    pub step_timeout: Option<f64>,
    /// How log lines look [default: text]
    #[arg(long, env = "STRAIT_LOG_FORMAT", value_name = "text|json")]
    pub log_format: Option<String>,
    /// off, error, warn, info, debug, trace, or such as `info,server=debug` [default: info]
    #[arg(long, env = "STRAIT_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// An empty variable is one that is not set: composers of containers cannot leave one out. But without keys the
/// server is open to all, which nobody shall come by in this way.
pub(crate) fn without_empty_variables(command: Command) -> Command {
    let is_empty = |arg: &Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let opens = |arg: &Arg| arg.get_id() == "api_key" || arg.get_id() == "api_key_file";
    let reset = |arg: Arg| if is_empty(&arg) && !opens(&arg) { arg.env(Resettable::Reset) } else { arg };
    command.mut_args(reset).mut_subcommands(without_empty_variables)
}

/// Kubernetes gives each pod of a Service named `strait` a STRAIT_PORT that is no port.
fn port(text: &str) -> Result<u16, String> {
    if text.contains("://") {
        return Err(
            "looks like a Kubernetes service link; set `enableServiceLinks: false` on the pod, or give \
                    the Service another name"
                .into(),
        );
    }
    text.parse().map_err(|_| "give a number from 0 to 65535".into())
}
