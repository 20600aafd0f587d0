//! Step `decode`: a whole model of DeepSeek-V2-Lite's shape, its weights noise made on the device, decoding at a depth.

use crate::noisy::Noisy;
use crate::report::{self, Found, Outcome};
use crate::{Open, Options};
use kernels::cuda::{CudaBackend, Device};
use kernels::{CacheFormat, DRAWN, Draw, Draws, Precision, Step, StepLimits};
use model::checkpoint::Checkpoint;
use model::forward::Model;
use model::plan::{Assumptions, Plan};
use model::spec::ModelSpec;
use model::tensors;
use serde_json::{Value, json};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

const STEP: &str = "decode";
const BLOCK_LEN: usize = 64;

type M<D> = Model<CudaBackend<Noisy<D>>>;

/// Numbers of layers: the few are there in case that time runs out.
pub(crate) fn cases(options: &Options) -> Vec<String> {
    let layers: &[usize] = match (options.sim, options.quick) {
        (true, _) => &[3],
        (false, true) => &[6],
        (false, false) => &[6, 27],
    };
    layers.iter().map(|n| format!("{n} layers")).collect()
}

struct Shape {
    spec: ModelSpec,
    batches: &'static [usize],
    depths: &'static [usize],
    limits: StepLimits,
    /// Bytes from which memory begins as noise.
    noisy: usize,
    steps: usize,
}

impl Shape {
    fn new(layers: usize, sim: bool) -> Result<Self, String> {
        let config = config(layers, sim);
        let spec = ModelSpec::parse(config.to_string().as_bytes()).map_err(|e| e.to_string())?;
        let (batches, depths): (&[usize], &[usize]) =
            if sim { (&[1, 4], &[20]) } else { (&[1, 16, 64], &[1024, 4096]) };
        let rows = batches.iter().copied().max().unwrap_or(1);
        let context_len = depths.iter().copied().max().unwrap_or(1).next_multiple_of(BLOCK_LEN);
        let limits = StepLimits {
            tokens: if sim { 32 } else { 1024 },
            rows,
            outputs: rows,
            vocab_size: spec.vocab_size,
            context_len,
            block_len: BLOCK_LEN,
            n_blocks: rows * context_len / BLOCK_LEN + 1,
        };
        let (noisy, steps) = if sim { (4096, 1) } else { (1 << 20, 30) };
        Ok(Self { spec, batches, depths, limits, noisy, steps })
    }
}

pub(crate) fn run<D: Device>(case: &str, options: &Options, open: Open<'_, D>) -> Result<(), String> {
    let layers = case.split(' ').next().and_then(|n| n.parse().ok()).ok_or("no number of layers")?;
    let shape = Shape::new(layers, options.sim)?;
    let clock = Instant::now();
    let mut model = load(&shape, open)?;
    let loaded = Found::says("weights are noise")
        .with("s", clock.elapsed().as_secs_f64())
        .with("weights GB", model.weight_bytes() as f64 / 1e9)
        .with("cache GB", model.arena_bytes() as f64 / 1e9);
    report::emit(STEP, &format!("{case}: load"), Outcome::Measured, loaded);
    for &depth in shape.depths {
        for row in 0..shape.limits.rows {
            prime(&mut model, row, depth).map_err(|e| e.to_string())?;
        }
        for &batch in shape.batches {
            let name = format!("{case}: x{batch} at {depth}");
            report::case(STEP, &name, Outcome::Measured, || {
                decode(&mut model, &shape, batch, depth, options)
            });
        }
    }
    Ok(())
}

/// Of DeepSeek-V2-Lite's shape, or under the emulator of a tiny one.
pub(crate) fn config(layers: usize, sim: bool) -> Value {
    let pick = |real: usize, small: usize| if sim { small } else { real };
    json!({
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "hidden_act": "silu",
        "attention_bias": false, "vocab_size": pick(102_400, 128), "hidden_size": pick(2048, 64),
        "intermediate_size": pick(10_944, 96), "moe_intermediate_size": pick(1408, 32),
        "num_hidden_layers": layers, "first_k_dense_replace": 1,
        "num_attention_heads": pick(16, 2), "num_key_value_heads": pick(16, 2),
        "q_lora_rank": null, "kv_lora_rank": pick(512, 64), "qk_nope_head_dim": pick(128, 16),
        "qk_rope_head_dim": pick(64, 16), "v_head_dim": pick(128, 16),
        "n_routed_experts": pick(64, 8), "num_experts_per_tok": pick(6, 2), "n_shared_experts": 2,
        "n_group": 1, "topk_group": 1, "topk_method": "greedy", "scoring_func": "softmax",
        "norm_topk_prob": false, "routed_scaling_factor": 1.0, "moe_layer_freq": 1,
        "max_position_embeddings": 163_840, "rms_norm_eps": 1e-6, "rope_theta": 10_000,
        "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "bos_token_id": 0, "eos_token_id": 1,
    })
}

fn load<D: Device>(shape: &Shape, open: Open<'_, D>) -> Result<M<D>, String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    write(&shape.spec, folder.path()).map_err(|e| format!("{}: {e}", folder.path().display()))?;
    let checkpoint = Checkpoint::open(folder.path()).map_err(|e| e.to_string())?;
    let checked = tensors::check(&shape.spec, &checkpoint).map_err(|e| e.to_string())?;
    let device = Noisy::new(open()?, shape.noisy);
    device.set(true);
    let backend = CudaBackend::new(device, Precision::Bf16);
    let place = |b: &mut CudaBackend<Noisy<D>>| {
        b.device().set(false);
        Ok(shape.limits.clone())
    };
    Model::load(shape.spec.clone(), &checked, backend, Precision::Bf16, place, &mut |_| ())
        .map_err(|e| e.to_string())
}

/// A checkpoint that is mostly a hole in its file: what the device fills is not there. Norms are ones, routers noise.
fn write(spec: &ModelSpec, folder: &Path) -> io::Result<()> {
    let mut header = serde_json::Map::new();
    let (mut at, mut small) = (0u64, Vec::new());
    for tensor in tensors::expected(spec) {
        let numbers: usize = tensor.shape.iter().product();
        let end = at + 2 * numbers as u64;
        if tensor.shape.len() == 1 || tensor.name.ends_with(tensors::name::ROUTER) {
            small.push((at, numbers, tensor.shape.len() == 1));
        }
        let info = json!({ "dtype": "BF16", "shape": tensor.shape, "data_offsets": [at, end] });
        header.insert(tensor.name, info);
        at = end;
    }
    let mut text = Value::Object(header).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let file = File::create(folder.join("model.safetensors"))?;
    file.write_all_at(&(text.len() as u64).to_le_bytes(), 0)?;
    file.write_all_at(text.as_bytes(), 8)?;
    let data = 8 + text.len() as u64;
    file.set_len(data + at)?;
    let mut state = 1u64;
    for (at, numbers, is_norm) in small {
        let mut number = || {
            if is_norm {
                return 0x3f80u16;
            }
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Of either sign and of sizes from 2^-5 to 2^-4.
            ((state >> 48) as u16 & 0x807f) | 0x3d00
        };
        let bytes: Vec<u8> = (0..numbers).flat_map(|_| number().to_le_bytes()).collect();
        file.write_all_at(&bytes, data + at)?;
    }
    Ok(())
}

fn slot(limits: &StepLimits, row: usize, position: usize) -> u32 {
    (BLOCK_LEN + row * limits.context_len + position) as u32
}

fn table(limits: &StepLimits, row: usize) -> impl Iterator<Item = u32> {
    let width = limits.context_len / BLOCK_LEN;
    (0..width).map(move |i| (1 + row * width + i) as u32)
}

/// Made-up latent rows for a sequence of `depth` tokens.
fn prime<D: Device>(model: &mut M<D>, row: usize, depth: usize) -> kernels::Result<()> {
    let limits = model.step_limits().clone();
    for first in (0..depth).step_by(limits.tokens) {
        let positions: Vec<u32> = (first..depth.min(first + limits.tokens)).map(|p| p as u32).collect();
        let n = positions.len();
        let step = Step {
            copies: &[],
            tokens: &vec![0; n],
            slots: &positions.iter().map(|&p| slot(&limits, row, p as usize)).collect::<Vec<_>>(),
            row_start: &[0, n as u32],
            kv_len: &[(first + n) as u32],
            positions: &positions,
            expanded: &[true],
            tables: &table(&limits, row).collect::<Vec<_>>(),
            outputs: &[],
        };
        model.prime(&step)?;
    }
    Ok(())
}

/// The same step again and again: the last token of each of `batch` sequences.
fn decode<D: Device>(
    model: &mut M<D>,
    shape: &Shape,
    batch: usize,
    depth: usize,
    options: &Options,
) -> Result<Found, String> {
    let limits = &shape.limits;
    let rows: Vec<u32> = (0..batch as u32).collect();
    let step = Step {
        copies: &[],
        tokens: &rows.iter().map(|r| (r * 97 + 5) % limits.vocab_size as u32).collect::<Vec<_>>(),
        positions: &vec![depth as u32 - 1; batch],
        slots: &(0..batch).map(|row| slot(limits, row, depth - 1)).collect::<Vec<_>>(),
        row_start: &(0..=batch as u32).collect::<Vec<_>>(),
        kv_len: &vec![depth as u32; batch],
        expanded: &vec![false; batch],
        tables: &(0..batch).flat_map(|row| table(limits, row)).collect::<Vec<_>>(),
        outputs: &rows,
    };
    let said = |e: kernels::KernelError| e.to_string();
    let mut logits = Vec::new();
    // Met twice before it is timed: launched, captured and replayed once.
    for _ in 0..2 {
        model.forward(&step, &mut logits).map_err(said)?;
    }
    if let Some(i) = logits.iter().position(|l| !l.is_finite()) {
        return Err(format!("logit {i} is {}", logits[i]));
    }
    if logits.iter().all(|l| *l == logits[0]) {
        return Err(format!("all logits are {}", logits[0]));
    }
    let draw = |output| Draw { output, temperature: 0.8, top_p: 0.95, uniform: 0.5, ..Draw::default() };
    let draws = rows.iter().copied().map(draw).collect();
    let draws = Draws { sampled_vocab: limits.vocab_size, draws, ..Draws::default() };
    let mut drawn = Vec::new();
    let mut collect = |model: &mut M<D>| {
        model.collect(&mut drawn, &mut logits).map_err(said)?;
        match drawn.iter().find_map(|token| token.err()) {
            None => Ok(()),
            Some(why) => Err(why.to_string()),
        }
    };
    // As a server does it: each step is launched with the tokens of the one before, which the host does not know yet.
    let ahead = Step { tokens: &rows.iter().map(|row| DRAWN | row).collect::<Vec<_>>(), ..step };
    model.launch(&step, &draws, &[]).map_err(said)?;
    let mut ms = Vec::new();
    for _ in 0..shape.steps + 2 {
        let clock = Instant::now();
        model.launch(&ahead, &draws, &[]).map_err(said)?;
        collect(model)?;
        ms.push(1e3 * clock.elapsed().as_secs_f64());
    }
    collect(model)?;
    // The first two find the GPU at rest, and a graph to be captured.
    let mut ms = ms.split_off(2);
    ms.sort_by(f64::total_cmp);
    let median = ms[ms.len() / 2];
    // Step by step, each waited for.
    let clock = Instant::now();
    for _ in 0..shape.steps {
        model.launch(&step, &draws, &[]).map_err(said)?;
        collect(model)?;
    }
    let waited = 1e3 * clock.elapsed().as_secs_f64() / shape.steps as f64;
    let found = Found::default()
        .with("tok/s", 1e3 * batch as f64 / median)
        .with("ms", median)
        .with("ms waited for", waited);
    if options.bandwidth == 0.0 {
        return Ok(found);
    }
    let assumptions = Assumptions {
        weight_bytes: 2.0,
        cache: (CacheFormat::Plain, Precision::Bf16),
        memory_bytes: None,
        bandwidth_bytes: Some(options.bandwidth),
        context_len: depth,
        devices: 1,
    };
    let bytes = Plan::new(&shape.spec, assumptions).step_bytes(batch as u64, depth as u64);
    let least = 1e3 * bytes / options.bandwidth;
    Ok(found.with("GB a step", bytes / 1e9).with("least ms", least).with("share", least / median))
}
