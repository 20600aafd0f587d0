//! `strait plan`: memory and speed by arithmetic, from a `config.json` alone.

use std::path::Path;

use clap::Args;
use kernels::{Cpu, DType, Precision};
use model::plan::{Assumptions, Plan};
use model::spec::ModelSpec;

use crate::failure::Failure;
use crate::model_dir::{ModelFiles, read_config, read_optional};
use crate::settings::{ModelSource, cache_format};
use crate::{machine, print, size};

/// Far more than caches hold.
const PROBE_BYTES: usize = 512 << 20;

/// Tell what a model would need and what it could do here, without its weights
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  strait plan ./config.json --memory 80GiB --bandwidth 3350 --dtype bf16
  strait plan ./config.json --memory 141GB --bandwidth 4800 --dtype fp8 --devices 8")]
pub(crate) struct Flags {
    /// `demo`, a directory with a config.json, or the config.json itself
    model: String,
    /// Memory for weights and KV pool [default: what is available here]
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Memory bandwidth in GB/s [default: measured here]
    #[arg(long, value_name = "GB/s")]
    bandwidth: Option<f64>,
    /// What weights are held in; auto is what the config says, fp8 are weights of 8 bits with a scale for each 128 x 128
    /// [default: auto]
    #[arg(long, value_name = "auto|bf16|f32|fp8")]
    dtype: Option<String>,
    /// What the KV cache is held in; auto is as the weights, bf16 beside weights of fp8 [default: auto]
    #[arg(long, value_name = "auto|bf16|f32|fp8")]
    kv_cache_dtype: Option<String>,
    /// Devices with that memory and bandwidth each, the experts divided among them [default: 1]
    #[arg(long, value_name = "N")]
    devices: Option<u64>,
    /// Longest sequence, in tokens [default: the checkpoint's]
    #[arg(long, value_name = "N")]
    max_model_len: Option<usize>,
}

pub(crate) fn main(flags: &Flags) -> Result<(), Failure> {
    let dtype = flags.dtype.as_deref().unwrap_or("auto");
    let weights = weights(dtype)?;
    let kv_dtype = flags.kv_cache_dtype.as_deref().unwrap_or("auto");
    let kv_dtype = crate::settings::kv_dtype(kv_dtype).map_err(|what| usage("kv-cache-dtype", &what))?;
    let memory = flags.memory.as_deref().map(size::parse).transpose();
    let memory_bytes = memory.map_err(|what| usage("memory", &what))?.or_else(machine::available_memory);
    if flags.bandwidth.is_some_and(|gb| !(gb > 0.0 && gb < 1e9)) {
        return Err(usage("bandwidth", "give gigabytes a second, above 0"));
    }
    if flags.max_model_len.is_some_and(|len| len < 2) {
        return Err(usage("max-model-len", "give a number of tokens, 2 or more"));
    }
    let devices = flags.devices.unwrap_or(1);
    if !(1..=1024).contains(&devices) {
        return Err(usage("devices", "give a number from 1 to 1024"));
    }
    let spec = ModelSpec::parse(&config(&flags.model)?)?;
    let (weight_bytes, precision) = weights.unwrap_or_else(|| {
        let precision = stored(&spec);
        (precision.size() as f64, precision)
    });
    let cache = (cache_format(kv_dtype, precision)?, precision);
    let bandwidth = match flags.bandwidth {
        Some(gb) => gb * 1e9,
        None => Cpu::new(machine::default_threads(), Precision::Bf16).read_bandwidth(PROBE_BYTES)?,
    };
    let assumptions = Assumptions {
        weight_bytes,
        cache,
        devices,
        memory_bytes,
        bandwidth_bytes: Some(bandwidth),
        context_len: flags.max_model_len.unwrap_or(spec.context_len),
    };
    print(&Plan::new(&spec, assumptions).to_string())
}

fn usage(option: &str, what: &str) -> Failure {
    Failure::Usage(format!("{option}: {what}"))
}

/// Bytes of a weight and the precision that it is computed in; `None`: auto.
fn weights(dtype: &str) -> Result<Option<(f64, Precision)>, Failure> {
    /// A byte, and 4 for each block of 128 x 128.
    const FP8: f64 = 1.0 + 4.0 / (128.0 * 128.0);
    if dtype == "fp8" {
        return Ok(Some((FP8, Precision::Bf16)));
    }
    let given = crate::settings::precision(dtype).map_err(|what| usage("dtype", &what))?;
    Ok(given.map(|precision| (precision.size() as f64, precision)))
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
