//! `strait plan`: memory and speed by arithmetic, from a `config.json` alone.

use std::path::Path;

use clap::Args;
use kernels::{Cpu, DType, Precision};
use model::plan::{Assumptions, Plan};
use model::spec::ModelSpec;

use crate::failure::Failure;
use crate::model_dir::{ModelFiles, read_config, read_optional};
use crate::settings::ModelSource;
use crate::{machine, print, size};

/// Far more than caches hold.
const PROBE_BYTES: usize = 512 << 20;

/// Tell what a model would need and what it could do here, without its weights
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  strait plan ./config.json --memory 80GiB --bandwidth 3350 --dtype bf16")]
pub(crate) struct Flags {
    /// `demo`, a directory with a config.json, or the config.json itself
    model: String,
    /// Memory for weights and KV pool [default: what is available here]
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Memory bandwidth in GB/s [default: measured here]
    #[arg(long, value_name = "GB/s")]
    bandwidth: Option<f64>,
    /// What weights and KV cache are held in; auto is what the config says [default: auto]
    #[arg(long, value_name = "auto|bf16|f32")]
    dtype: Option<String>,
    /// Longest sequence, in tokens [default: the checkpoint's]
    #[arg(long, value_name = "N")]
    max_model_len: Option<usize>,
}

pub(crate) fn main(flags: &Flags) -> Result<(), Failure> {
    let dtype = flags.dtype.as_deref().unwrap_or("auto");
    let given = given_precision(dtype)?;
    let memory = flags.memory.as_deref().map(size::parse).transpose();
    let memory_bytes = memory.map_err(|what| usage("memory", &what))?.or_else(machine::available_memory);
    if flags.bandwidth.is_some_and(|gb| !(gb > 0.0 && gb < 1e9)) {
        return Err(usage("bandwidth", "give gigabytes a second, above 0"));
    }
    if flags.max_model_len.is_some_and(|len| len < 2) {
        return Err(usage("max-model-len", "give a number of tokens, 2 or more"));
    }
    let spec = ModelSpec::parse(&config(&flags.model)?)?;
    let element = given.unwrap_or_else(|| stored(&spec)).size() as f64;
    let bandwidth = match flags.bandwidth {
        Some(gb) => gb * 1e9,
        None => Cpu::new(machine::default_threads(), Precision::Bf16).read_bandwidth(PROBE_BYTES)?,
    };
    let assumptions = Assumptions {
        weight_bytes: element,
        kv_bytes: element,
        memory_bytes,
        bandwidth_bytes: Some(bandwidth),
        context_len: flags.max_model_len.unwrap_or(spec.context_len),
    };
    print(&Plan::new(&spec, assumptions).to_string())
}

fn usage(option: &str, what: &str) -> Failure {
    Failure::Usage(format!("{option}: {what}"))
}

/// `None`: auto.
fn given_precision(text: &str) -> Result<Option<Precision>, Failure> {
    crate::settings::precision(text).map_err(|what| usage("dtype", &what))
}

fn config(model: &str) -> anyhow::Result<Vec<u8>> {
    match ModelSource::of(model) {
        ModelSource::Demo => Ok(ModelFiles::open(&ModelSource::Demo)?.config),
        ModelSource::Directory(path) => read_config_at(&path),
    }
}

fn read_config_at(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.is_file() && path.extension().is_some_and(|end| end == "json") {
        return Ok(read_optional(path)?.unwrap_or_default());
    }
    read_config(path)
}

/// What `serve` would compute in, as far as the config tells.
fn stored(spec: &ModelSpec) -> Precision {
    match spec.checkpoint_dtype {
        Some(DType::F32 | DType::F16) => Precision::F32,
        Some(DType::Bf16 | DType::F8E4M3) | None => Precision::Bf16,
    }
}
