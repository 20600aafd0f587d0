//! From files to a model that can run: every phase logged with its time.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::{anyhow, ensure};
use engine::runner::ModelRunner;
use kernels::{CacheFormat, KernelError, Precision};
use model::checkpoint::Checkpoint;
use model::forward::{self, Model};
use model::spec::{GenerationConfig, ModelSpec};
use model::tensors::{self, Checked};
use model::weights::default_precision;
use sha2::{Digest as _, Sha256};
use text::{ChatTemplate, Tokenizer};

use crate::device::{FreeMemory, Opened, on_device};
use crate::memory::{MemoryPlan, MemoryPolicy};
use crate::model_dir::ModelFiles;
use crate::progress::Progress;
use crate::settings::{ModelSettings, cache_format};

/// Of the fingerprint's look at the weights.
const SAMPLED_TENSORS: usize = 64;
const SAMPLED_BYTES: usize = 4096;

type Digest = [u8; 32];

/// A model and all that answering with it takes.
pub(crate) struct Loaded {
    pub model: Box<dyn ModelRunner>,
    pub spec: ModelSpec,
    pub text: Text,
    /// Any of them ends an answer.
    pub eos_ids: Vec<u32>,
    pub generation: GenerationConfig,
    pub plan: MemoryPlan,
    pub fingerprint: String,
    /// `cpu (avx512-bf16)`
    pub device: String,
    pub policy: engine::Policy,
}

pub(crate) struct Text {
    pub tokenizer: Arc<Tokenizer>,
    /// `None`: the checkpoint has none.
    pub template: Option<Arc<ChatTemplate>>,
    /// Of the files it was made of.
    digest: Digest,
}

/// What can be said before a weight is packed.
struct Prepared<'a> {
    checked: Checked<'a>,
    precision: Precision,
    cache: CacheFormat,
    device: Opened,
    /// Which kernels attend.
    attention: &'static str,
}

/// `tell` hears the share of the weights that is done.
pub(crate) fn load(
    files: &ModelFiles,
    settings: &ModelSettings,
    tell: &dyn Fn(f32),
) -> anyhow::Result<Loaded> {
    let start = Instant::now();
    let (spec, generation) = both(files.spec(), files.generation())?;
    let eos_ids = spec.eos_ids(Some(&generation))?;
    spec.notes.iter().for_each(|note| tracing::warn!("config.json: {note}"));
    phase("config read", start);
    let (text, model) = thread::scope(|scope| {
        let text = scope.spawn(|| read_text(files, &spec));
        let model = weights(files, &spec, settings, tell);
        (text.join().unwrap_or_else(|_| Err(anyhow!("reading the tokenizer failed"))), model)
    });
    let (text, Packed { model, plan, device, program, policy, sample }) = both(text, model)?;
    let eos_ids = if eos_ids.is_empty() { text.tokenizer.eos_id().into_iter().collect() } else { eos_ids };
    if eos_ids.is_empty() {
        tracing::warn!("the checkpoint names no token that ends an answer; answers run to max_tokens");
    }
    let unit = forward::prefill_unit(&spec, &plan.limits);
    let unit = format!("prefill unit {unit}");
    let program = [env!("CARGO_PKG_VERSION"), plan.precision.name(), plan.kv_dtype(), &program, &unit];
    let fingerprint = fingerprint(files, &text.digest, &sample, &program);
    Ok(Loaded { model, spec, text, eos_ids, generation, plan, fingerprint, device, policy })
}

/// The plan alone: everything is checked, nothing is packed.
pub(crate) fn plan(files: &ModelFiles, settings: &ModelSettings) -> anyhow::Result<(ModelSpec, MemoryPlan)> {
    let (spec, _) = both(files.spec(), files.generation())?;
    let planned = open(files).and_then(|checkpoint| {
        let Prepared { precision, cache, device, .. } = prepare(&spec, &checkpoint, settings)?;
        let free = device.free_bytes();
        let policy = settings.memory.or(device.defaults());
        on_device!(device, |mut backend| policy.plan(&spec, &mut backend, (precision, cache), free))
    });
    let (plan, _) = both(planned, read_text(files, &spec))?;
    Ok((spec, plan))
}

/// A model on its device.
struct Packed {
    model: Box<dyn ModelRunner>,
    plan: MemoryPlan,
    /// `cpu (avx512-bf16)`
    device: String,
    /// That, and which of its kernels attend.
    program: String,
    policy: engine::Policy,
    /// Of the checkpoint's weights.
    sample: Digest,
}

fn weights(
    files: &ModelFiles,
    spec: &ModelSpec,
    settings: &ModelSettings,
    tell: &dyn Fn(f32),
) -> anyhow::Result<Packed> {
    let start = Instant::now();
    let checkpoint = open(files)?;
    let Prepared { checked, precision, cache, device, attention } = prepare(spec, &checkpoint, settings)?;
    checked.notes.iter().for_each(|note| tracing::warn!("weights: {note}"));
    phase("checkpoint checked", start);

    let start = Instant::now();
    let mut progress = Progress::new(checkpoint.bytes(), tell);
    let mut add = |bytes| progress.add(bytes);
    let (name, free) = (device.name(), device.free_bytes());
    let (memory, policy) = (settings.memory.or(device.defaults()), device.policy());
    let packed = on_device!(device, |backend| pack(
        backend,
        spec,
        &checked,
        &memory,
        (precision, cache),
        free,
        &mut add
    ));
    let (model, plan) = packed?;
    drop(progress);
    phase("weights packed", start);
    let device = format!("{name}, attention {attention}");
    Ok(Packed { model, plan, device: name, program: device, policy, sample: sample(&checkpoint) })
}

/// Plans the memory of which `free` bytes are available, then fills it.
fn pack<B: FreeMemory + 'static>(
    mut backend: B,
    spec: &ModelSpec,
    checked: &Checked<'_>,
    policy: &MemoryPolicy,
    (precision, cache): (Precision, CacheFormat),
    free: Option<u64>,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<(Box<dyn ModelRunner>, MemoryPlan)> {
    let mut plan = policy.plan(spec, &mut backend, (precision, cache), free)?;
    let mut unfit = None;
    let place = |backend: &mut B| {
        let activations = forward::activation_bytes(spec, plan.limits.tokens) as u64;
        let fits = backend
            .free_beside_weights()
            .map_or(Ok(()), |free| policy.fit_into(&mut plan, free, activations));
        unfit = fits.err();
        Ok(plan.limits.clone())
    };
    let loaded = Model::load(spec.clone(), checked, backend, precision, place, progress);
    if let Some(unfit) = unfit {
        return Err(unfit);
    }
    let model = loaded.map_err(|error| match error {
        KernelError::Memory { .. } => anyhow!("loading the model: {error}; {}", plan.remedy()),
        error => anyhow::Error::new(error).context("loading the weights"),
    })?;
    plan.weight_bytes = model.weight_bytes() as u64;
    plan.kv_bytes = model.arena_bytes() as u64;
    Ok((Box::new(model), plan))
}

fn open(files: &ModelFiles) -> anyhow::Result<Checkpoint> {
    Ok(files.checkpoint()?)
}

/// Checks every tensor, and opens the device.
fn prepare<'a>(
    spec: &ModelSpec,
    checkpoint: &'a Checkpoint,
    settings: &ModelSettings,
) -> anyhow::Result<Prepared<'a>> {
    let chosen = settings.device.resolve()?;
    tracing::info!("--device {} is {chosen}", settings.device);
    let checked = tensors::check(spec, checkpoint)?;
    let precision = settings.dtype.unwrap_or_else(|| default_precision(&checked));
    let cache = cache_format(settings.kv_dtype, precision)?;
    let device = chosen.device.open(settings.threads, precision)?.with_cache(cache);
    let attention = attention(&device, spec, (precision, cache), settings.memory.block_len);
    Ok(Prepared { checked, precision, cache, device, attention })
}

/// Which kernels attend; says so where they are the slow ones.
fn attention(
    device: &Opened,
    spec: &ModelSpec,
    (precision, cache): (Precision, CacheFormat),
    block_len: usize,
) -> &'static str {
    if matches!(device, Opened::Cpu(_)) {
        return "of the CPU";
    }
    let slow = "attention on the GPU takes its slow kernels";
    if !block_len.is_multiple_of(64) {
        tracing::warn!("block-size {block_len} is no multiple of 64: {slow}");
        return "for any rows";
    }
    if !cache.fills_pages(precision, &spec.mla) {
        let (rank, rope) = (spec.mla.kv_lora_rank, spec.mla.qk_rope_head_dim);
        let name = cache.name(precision);
        tracing::warn!("latent rows of {rank} + {rope} numbers in {name} fill no pages: {slow}");
        return "for any rows";
    }
    "by pages"
}

fn read_text(files: &ModelFiles, spec: &ModelSpec) -> anyhow::Result<Text> {
    let start = Instant::now();
    let files = files.text()?;
    let tokenizer = files.tokenizer()?;
    let (ids, rows) = (tokenizer.vocab_size(), spec.vocab_size);
    ensure!(
        ids <= rows,
        "tokenizer.json has {ids} tokens and config.json a vocab_size of {rows}: not of one checkpoint"
    );
    let template = files.template(&tokenizer)?;
    if template.is_none() {
        tracing::warn!("the checkpoint has no chat template; chat is refused, completions are served");
    }
    phase("tokenizer read", start);
    let digest = digest(files.bytes());
    Ok(Text { tokenizer: Arc::new(tokenizer), template: template.map(Arc::new), digest })
}

/// Both, or all that is wrong with either.
fn both<A, B, E: Into<anyhow::Error>, F: Into<anyhow::Error>>(
    a: Result<A, E>,
    b: Result<B, F>,
) -> anyhow::Result<(A, B)> {
    match (a.map_err(Into::into), b.map_err(Into::into)) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
        (Err(a), Err(b)) => Err(anyhow!("{a:#}\n{b:#}")),
    }
}

fn phase(what: &str, start: Instant) {
    tracing::info!(ms = (start.elapsed().as_secs_f64() * 1e4).round() / 10.0, "{what}");
}

/// How the checkpoint's authors would draw: greedily where they say not to sample.
pub(crate) fn default_temperature(generation: &GenerationConfig) -> Option<f32> {
    if generation.do_sample == Some(false) { Some(0.0) } else { generation.temperature }
}

/// Changes when outputs could. `program`: all that decides how they are computed.
fn fingerprint(files: &ModelFiles, text: &Digest, weights: &Digest, program: &[&str]) -> String {
    let program = program.iter().map(|part| part.as_bytes());
    let configs = [Some(&files.config), files.generation.as_ref()].into_iter().flatten().map(Vec::as_slice);
    let all = digest(program.chain(configs).chain([text.as_slice(), weights.as_slice()]));
    let hex: String = all.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("fp_{hex}")
}

/// Over pieces of the weights: all of them would take as long as loading.
fn sample(checkpoint: &Checkpoint) -> Digest {
    let mut tensors: Vec<_> = checkpoint.tensors().collect();
    tensors.sort_by_key(|tensor| tensor.name);
    let step = tensors.len().div_ceil(SAMPLED_TENSORS).max(1);
    digest(tensors.iter().step_by(step).map(|tensor| &tensor.bytes[..tensor.bytes.len().min(SAMPLED_BYTES)]))
}

fn digest<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Digest {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::flags::ModelFlags;
    use crate::settings::ModelSource;

    fn loaded(golden: &str, dtype: &str) -> (Loaded, MemoryPlan) {
        loaded_with(golden, ModelFlags { dtype: Some(dtype.into()), ..ModelFlags::default() })
    }

    /// `flags` with what all tests have in common.
    fn loaded_with(golden: &str, flags: ModelFlags) -> (Loaded, MemoryPlan) {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(golden);
        let flags = ModelFlags {
            max_model_len: Some(256),
            threads: Some(1),
            max_num_batched_tokens: flags.max_num_batched_tokens.or(Some(512)),
            ..flags
        };
        let settings = ModelSettings::build(&flags, 2).unwrap();
        let files = ModelFiles::open(&ModelSource::Directory(dir)).unwrap();
        let (_, plan) = plan(&files, &settings).unwrap();
        (load(&files, &settings, &|_| ()).unwrap(), plan)
    }

    #[test]
    fn what_is_planned_is_what_is_taken() {
        for (golden, dtype, cache) in
            [("v3-f32", "f32", "auto"), ("v2-bf16", "auto", "fp8"), ("v3-tied-f32", "bf16", "bf16")]
        {
            let (dtype, kv_cache_dtype) = (Some(dtype.into()), Some(cache.into()));
            let (loaded, plan) =
                loaded_with(golden, ModelFlags { dtype, kv_cache_dtype, ..ModelFlags::default() });
            let (planned, taken) = (plan.weight_bytes as f64, loaded.plan.weight_bytes as f64);
            // Panels of such small matrices are padded by more than a tenth.
            assert!((0.85..=1.0).contains(&(planned / taken)), "{golden}: {planned} planned, {taken} taken");
            assert_eq!(plan.kv_bytes, loaded.plan.kv_bytes, "{golden}");
            assert_eq!(plan.limits, loaded.plan.limits, "{golden}");
        }
    }

    #[test]
    fn the_fingerprint_changes_when_outputs_could() {
        let fingerprint = |golden, dtype| loaded(golden, dtype).0.fingerprint;
        let of = fingerprint("v3-tied-f32", "f32");
        assert_eq!(of, fingerprint("v3-tied-f32", "auto"));
        assert_ne!(of, fingerprint("v3-tied-f32", "bf16"));
        assert_ne!(of, fingerprint("v3-f32", "f32"));
        // Beside one token of each of the two sequences there is room for a unit of 256, or not.
        let with = |flags| {
            loaded_with("v3-tied-f32", ModelFlags { dtype: Some("f32".into()), ..flags }).0.fingerprint
        };
        let in_steps =
            |tokens| with(ModelFlags { max_num_batched_tokens: Some(tokens), ..ModelFlags::default() });
        assert_ne!(of, with(ModelFlags { kv_cache_dtype: Some("fp8".into()), ..ModelFlags::default() }));
        assert_eq!(of, in_steps(258));
        assert_ne!(of, in_steps(257));
        assert_eq!(in_steps(100), in_steps(257));
    }

    #[test]
    fn answers_end_and_are_drawn_as_generation_config_says() {
        // GLM names three tokens there, one of them in config.json too.
        assert!(loaded("glm4lite-bf16", "auto").0.eos_ids.len() > 1);
        let says = |do_sample, temperature| {
            default_temperature(&GenerationConfig { do_sample, temperature, ..GenerationConfig::default() })
        };
        assert_eq!(says(Some(false), Some(0.6)), Some(0.0));
        assert_eq!(says(Some(true), Some(0.6)), Some(0.6));
        assert_eq!(says(None, None), None);
    }
}
