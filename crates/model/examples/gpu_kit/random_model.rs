//! Case of step `model`: two layers of DeepSeek-V2-Lite's shape with random weights, on the CPU and on the device. What the
//! CPU answers is computed on the device too, token by token, and each choice must be the same where it is a clear one.

use crate::decode::config;
use crate::golden::StepData;
use crate::report::{self, Found, Outcome};
use crate::{Open, Options};
use kernels::cuda::{CudaBackend, Device};
use kernels::{Backend, Cpu, Precision, StepLimits};
use model::checkpoint::Checkpoint;
use model::forward::Model;
use model::spec::ModelSpec;
use model::tensors;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

pub(crate) const CASE: &str = "random, 2 layers";
const LAYERS: usize = 2;
/// Of the logits' size: an answer's row at the median, and the distance below which two choices are as good.
const ERROR: f32 = 2e-2;
const TIE: f32 = 0.1;

pub(crate) fn run<D: Device>(options: &Options, open: Open<'_, D>) {
    report::case("model", CASE, Outcome::Passed, || compare(options, open));
}

fn compare<D: Device>(options: &Options, open: Open<'_, D>) -> Result<Found, String> {
    let mut config = config(LAYERS, options.sim);
    if !options.sim {
        // Its ends are no part of what is compared here.
        config["vocab_size"] = json!(8192);
    }
    let spec = ModelSpec::parse(config.to_string().as_bytes()).map_err(|e| e.to_string())?;
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    write(&spec, folder.path()).map_err(|e| format!("{}: {e}", folder.path().display()))?;
    let (prompt, n) = if options.sim { (7, 6) } else { (130, 64) };
    let prompt: Vec<u32> = (0..prompt).map(|i| i * 97 % spec.vocab_size as u32).collect();

    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut on_cpu = load(&spec, folder.path(), Cpu::new(threads, Precision::Bf16))?;
    let (choices, want) = answer(&mut on_cpu, &prompt, n, None)?;
    drop(on_cpu);
    let mut on_device = load(&spec, folder.path(), CudaBackend::new(open()?, Precision::Bf16))?;
    let (_, got) = answer(&mut on_device, &prompt, n, Some(&choices))?;
    judge(&choices, &want, &got)
}

fn load<B: Backend>(spec: &ModelSpec, folder: &Path, backend: B) -> Result<Model<B>, String> {
    let checkpoint = Checkpoint::open(folder).map_err(|e| e.to_string())?;
    let checked = tensors::check(spec, &checkpoint).map_err(|e| e.to_string())?;
    let limits = StepLimits {
        tokens: 192,
        rows: 1,
        outputs: 192,
        vocab_size: spec.vocab_size,
        context_len: 256,
        block_len: 64,
        n_blocks: 5,
    };
    Model::load(spec.clone(), &checked, backend, Precision::Bf16, |_| Ok(limits), &mut |_| ())
        .map_err(|e| e.to_string())
}

/// bf16, each number by its place alone: norms of ones, matrices that keep what they multiply at its size.
fn write(spec: &ModelSpec, folder: &Path) -> io::Result<()> {
    let (mut header, mut end) = (Map::new(), 0);
    for tensor in tensors::expected(spec) {
        let bytes = 2 * tensor.shape.iter().product::<usize>();
        let info = json!({ "dtype": "BF16", "shape": tensor.shape, "data_offsets": [end, end + bytes] });
        header.insert(tensor.name, info);
        end += bytes;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(folder.join("model.safetensors"))?);
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(&text)?;
    for (seed, tensor) in tensors::expected(spec).enumerate() {
        let numbers = tensor.shape.iter().product::<usize>() as u64;
        let most = tensor.shape.get(1).map(|&cols| (3.0 / cols as f32).sqrt());
        for i in 0..numbers {
            let number = most.map_or(1.0, |most| most * noise(((seed as u64) << 40) | i));
            file.write_all(&((number.to_bits() >> 16) as u16).to_le_bytes())?;
        }
    }
    file.flush()
}

/// From -1 to 1; splitmix64's finisher.
fn noise(place: u64) -> f32 {
    let x = place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) as u32 as i32) as f32 / (1u64 << 31) as f32
}

/// `n` tokens after the prompt, those of `given` or else the likeliest; and the logits that each was chosen from.
fn answer<B: Backend>(
    model: &mut Model<B>,
    prompt: &[u32],
    n: usize,
    given: Option<&[u32]>,
) -> Result<(Vec<u32>, Vec<Vec<f32>>), String> {
    let limits = model.step_limits().clone();
    let table: Vec<u32> = (1..=limits.table_width() as u32).rev().collect();
    let mut sequence = prompt.to_vec();
    let (mut done, mut rows, mut logits) = (0, Vec::new(), Vec::new());
    for i in 0..n {
        let mut step = StepData::default();
        step.push(&limits, 0, &sequence, done..sequence.len(), &table, false);
        model.forward(&step.step(), &mut logits).map_err(|e| e.to_string())?;
        let last = logits[logits.len() - limits.vocab_size..].to_vec();
        done = sequence.len();
        sequence.push(given.map_or_else(|| best(&last) as u32, |given| given[i]));
        rows.push(last);
    }
    Ok((sequence.split_off(prompt.len()), rows))
}

fn best(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

fn rms(numbers: impl Iterator<Item = f32>) -> f32 {
    let (sum, n) = numbers.fold((0.0, 0.0), |(sum, n), x| (sum + x * x, n + 1.0));
    (sum / n).sqrt()
}

fn judge(choices: &[u32], want: &[Vec<f32>], got: &[Vec<f32>]) -> Result<Found, String> {
    let (mut errors, mut same) = (Vec::new(), 0);
    for (i, (want, got)) in want.iter().zip(got).enumerate() {
        if let Some(at) = (0..got.len()).find(|&at| !(want[at].is_finite() && got[at].is_finite())) {
            return Err(format!("token {i}: logit {at} is {} on the CPU, {} here", want[at], got[at]));
        }
        let size = rms(want.iter().copied());
        errors.push(rms(want.iter().zip(got).map(|(w, g)| w - g)) / size);
        let (ours, cpus) = (best(got), choices[i] as usize);
        if ours == cpus {
            same += 1;
        } else if want[cpus] - want[ours] > TIE * size {
            let of = [cpus, ours].map(|id| format!("{id} ({}, here {})", want[id], got[id]));
            return Err(format!("token {i}: the CPU chooses {}, the device {}", of[0], of[1]));
        }
    }
    errors.sort_by(f32::total_cmp);
    let (median, worst) = (errors[errors.len() / 2], errors[errors.len() - 1]);
    if median > ERROR {
        return Err(format!("logits are {median} of their size off at the median, {ERROR} allowed"));
    }
    Ok(Found::says(format!("{same} of {} choices are the CPU's", choices.len()))
        .with("median error", f64::from(median))
        .with("worst error", f64::from(worst)))
}
