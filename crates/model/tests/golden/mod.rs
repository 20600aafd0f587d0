//! Reference checkpoints under `tests/goldens`, and a small stand-in for the engine: block tables and steps.

#![allow(dead_code)] // each test target uses a part of it

use engine::runner::Batch;
use kernels::{Backend, Precision, Step, StepLimits};
use model::checkpoint::Checkpoint;
use model::forward::{Model, Place};
use model::spec::ModelSpec;
use model::tensors;
use safetensors::SafeTensors;
use serde_json::Value;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Those of the repository; `GOLDENS_DIR` names another directory of the same layout.
fn goldens() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
    std::env::var_os("GOLDENS_DIR").map_or_else(own, PathBuf::from)
}

pub(crate) struct Golden {
    pub(crate) name: String,
    dir: PathBuf,
    pub(crate) json: Value,
    tensors: Vec<u8>,
}

#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) step_tokens: usize,
    pub(crate) block_len: usize,
}

impl Golden {
    /// All in the directory that are of a family that is served.
    pub(crate) fn all() -> Vec<Self> {
        let mut names: Vec<String> = std::fs::read_dir(goldens())
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().join("golden.json").is_file())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.retain(|name| !["v32", "glm5"].iter().any(|refused| name.starts_with(refused)));
        names.sort();
        assert!(names.len() >= 7, "goldens are missing: {names:?}");
        names.iter().map(|name| Self::open(name)).collect()
    }

    pub(crate) fn open(name: &str) -> Self {
        let dir = goldens().join(name);
        let read =
            |file: &str| std::fs::read(dir.join(file)).unwrap_or_else(|e| panic!("{name}/{file}: {e}"));
        let json = serde_json::from_slice(&read("golden.json")).unwrap();
        Self { name: name.to_owned(), json, tensors: read("golden.safetensors"), dir }
    }

    pub(crate) fn ids(&self, prompt: usize) -> Vec<u32> {
        ids(&self.json["prompts"][prompt]["ids"])
    }

    pub(crate) fn greedy(&self, prompt: usize) -> Vec<u32> {
        ids(&self.json["prompts"][prompt]["greedy"]["ids"])
    }

    pub(crate) fn f32s(&self, name: &str) -> Vec<f32> {
        let all = SafeTensors::deserialize(&self.tensors).unwrap();
        let data = all.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).data().to_vec();
        data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    pub(crate) fn u32s(&self, name: &str) -> Vec<u32> {
        self.f32s(name).iter().map(|v| v.to_bits()).collect()
    }

    pub(crate) fn spec(&self) -> ModelSpec {
        ModelSpec::parse(&std::fs::read(self.dir.join("config.json")).unwrap()).unwrap()
    }

    pub(crate) fn model<B: Backend>(&self, backend: B, precision: Precision, shape: Shape) -> Model<B> {
        self.model_of(self.spec(), backend, precision, shape)
    }

    /// With a spec that a test has changed.
    pub(crate) fn model_of<B: Backend>(
        &self,
        spec: ModelSpec,
        backend: B,
        precision: Precision,
        shape: Shape,
    ) -> Model<B> {
        let limits = StepLimits {
            tokens: shape.step_tokens,
            rows: 8,
            outputs: shape.step_tokens,
            vocab_size: spec.vocab_size,
            context_len: 400,
            block_len: shape.block_len,
            n_blocks: 5 * 400usize.div_ceil(shape.block_len) + 1,
        };
        self.model_within(limits, spec, backend, precision)
    }

    pub(crate) fn model_within<B: Backend>(
        &self,
        limits: StepLimits,
        spec: ModelSpec,
        backend: B,
        precision: Precision,
    ) -> Model<B> {
        let checkpoint = Checkpoint::open(&self.dir).unwrap();
        let checked = tensors::check(&spec, &checkpoint).unwrap();
        Model::load(spec, &checked, backend, precision, |_| Ok(limits), &mut |_| ()).unwrap()
    }
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// One step, and which sequence each of its tokens belongs to.
#[derive(Default)]
pub(crate) struct StepData {
    pub(crate) copies: Vec<(u32, u32)>,
    tokens: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    row_start: Vec<u32>,
    kv_len: Vec<u32>,
    expanded: Vec<bool>,
    tables: Vec<u32>,
    outputs: Vec<u32>,
    pub(crate) owners: Vec<usize>,
}

impl StepData {
    /// A row more: the `range` of sequence `owner`'s tokens, whose blocks are `table`'s, `expanded` or in latent
    /// space. The logits of each are asked for.
    pub(crate) fn push(
        &mut self,
        limits: &StepLimits,
        owner: usize,
        sequence: &[u32],
        range: Range<usize>,
        table: &[u32],
        expanded: bool,
    ) {
        for p in range.clone() {
            let block = table[p / limits.block_len] as usize;
            self.tokens.push(sequence[p]);
            self.positions.push(p as u32);
            self.slots.push((block * limits.block_len + p % limits.block_len) as u32);
            self.outputs.push(self.outputs.len() as u32);
            self.owners.push(owner);
        }
        if self.row_start.is_empty() {
            self.row_start.push(0);
        }
        self.row_start.push(self.tokens.len() as u32);
        self.kv_len.push(range.end as u32);
        self.expanded.push(expanded);
        self.tables.extend(table);
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// As the engine would ask for it.
    pub(crate) fn batch(&self) -> Batch {
        Batch {
            copies: self.copies.clone(),
            tokens: self.tokens.clone(),
            positions: self.positions.clone(),
            slots: self.slots.clone(),
            row_start: self.row_start.clone(),
            kv_len: self.kv_len.clone(),
            expanded: self.expanded.clone(),
            tables: self.tables.clone(),
            table_width: self.tables.len() / self.kv_len.len(),
            outputs: self.outputs.clone(),
            reads: (0..self.outputs.len() as u32).collect(),
            draws: Default::default(),
        }
    }

    pub(crate) fn step(&self) -> Step<'_> {
        Step {
            copies: &self.copies,
            tokens: &self.tokens,
            positions: &self.positions,
            slots: &self.slots,
            row_start: &self.row_start,
            kv_len: &self.kv_len,
            expanded: &self.expanded,
            tables: &self.tables,
            outputs: &self.outputs,
        }
    }
}

/// How sequences are computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunks {
    /// Tokens of each at a time.
    pub(crate) len: usize,
    /// With keys and values expanded.
    pub(crate) expanded: bool,
}

pub(crate) const WHOLE: Chunks = Chunks { len: 400, expanded: false };
pub(crate) const WHOLE_EXPANDED: Chunks = Chunks { len: 400, expanded: true };

/// The steps that compute `sequences` in `chunks`, all in one batch; the logits of every token are asked for.
pub(crate) fn steps(limits: &StepLimits, sequences: &[Vec<u32>], chunks: Chunks) -> Vec<StepData> {
    let width = limits.table_width();
    // Blocks of a sequence lie far apart, in falling order.
    let table =
        |s: usize| (0..width).map(|i| (limits.n_blocks - 1 - (i * sequences.len() + s)) as u32).collect();
    let tables: Vec<Vec<u32>> = (0..sequences.len()).map(table).collect();
    let mut done = vec![0; sequences.len()];
    let mut steps = Vec::new();
    while (0..sequences.len()).any(|s| done[s] < sequences[s].len()) {
        let mut step = StepData::default();
        for s in 0..sequences.len() {
            let n = chunks.len.min(sequences[s].len() - done[s]).min(limits.tokens - step.n_tokens());
            if n == 0 {
                continue;
            }
            step.push(limits, s, &sequences[s], done[s]..done[s] + n, &tables[s], chunks.expanded);
            done[s] += n;
        }
        steps.push(step);
    }
    steps
}

/// Runs [`steps`] and returns the logits at every position of each sequence.
pub(crate) fn run<B: Backend>(model: &mut Model<B>, sequences: &[Vec<u32>], chunks: Chunks) -> Vec<Vec<f32>> {
    run_watched(model, sequences, chunks, |_, _| ())
}

pub(crate) fn run_watched<B: Backend>(
    model: &mut Model<B>,
    sequences: &[Vec<u32>],
    chunks: Chunks,
    mut look: impl FnMut(Place, &Model<B>),
) -> Vec<Vec<f32>> {
    let limits = model.step_limits().clone();
    let mut logits = vec![Vec::new(); sequences.len()];
    for step in steps(&limits, sequences, chunks) {
        let mut out = Vec::new();
        model.forward_watched(&step.step(), &mut out, &mut look).unwrap();
        for (owner, row) in step.owners.iter().zip(out.chunks(limits.vocab_size)) {
            logits[*owner].extend_from_slice(row);
        }
    }
    logits
}

/// NaN anywhere is an infinite error.
pub(crate) fn largest_error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let error = |(g, w): (&f32, &f32)| if (g - w).is_nan() { f32::INFINITY } else { (g - w).abs() };
    got.iter().zip(want).map(error).fold(0.0, f32::max)
}

/// Largest error over all prompts: last positions, every position of prompts 0 to 2, and the steps of
/// prompt 1's greedy answer.
pub(crate) fn error_of<B: Backend>(golden: &Golden, model: &mut Model<B>, chunks: Chunks) -> f32 {
    let vocab = model.spec().vocab_size;
    let mut sequences: Vec<Vec<u32>> = (0..4).map(|p| golden.ids(p)).collect();
    let prompt1 = sequences[1].len();
    sequences[1].extend(&golden.greedy(1)[..31]);
    let logits = run(model, &sequences, chunks);
    let mut worst = 0f32;
    for (p, logits) in logits.iter().enumerate() {
        let n = golden.ids(p).len();
        let last = golden.f32s(&format!("prompt{p}.last_logits"));
        worst = worst.max(largest_error(&logits[(n - 1) * vocab..n * vocab], &last));
        if p < 3 {
            worst =
                worst.max(largest_error(&logits[..n * vocab], &golden.f32s(&format!("prompt{p}.logits"))));
        }
    }
    let steps = golden.f32s("prompt1.step_logits");
    worst.max(largest_error(&logits[1][(prompt1 - 1) * vocab..], &steps))
}

/// How near a model in bf16 comes to the reference's greedy answers, token by token, where those have a clear margin.
#[derive(Debug)]
pub(crate) struct Nearness {
    /// Errors of the top log probabilities, the largest of five a token.
    pub(crate) median: f32,
    pub(crate) p90: f32,
    /// Share of the tokens of which the top one is the same.
    pub(crate) same: f32,
}

impl Nearness {
    /// `None` where the golden says nothing about bf16.
    pub(crate) fn of<B: Backend>(golden: &Golden, model: impl FnOnce() -> Model<B>) -> Option<Self> {
        if golden.json["bf16_run"].is_null() {
            return None;
        }
        let mut model = model();
        let vocab = model.spec().vocab_size;
        let sequences: Vec<Vec<u32>> =
            (0..4).map(|p| [golden.ids(p), golden.greedy(p)[..31].to_vec()].concat()).collect();
        let logits = run(&mut model, &sequences, WHOLE_EXPANDED);
        let (mut errors, mut same) = (Vec::new(), 0);
        for (p, logits) in logits.iter().enumerate() {
            let steps = golden.json["prompts"][p]["greedy"]["steps"].as_array().unwrap();
            for (j, step) in steps.iter().enumerate() {
                let row = &logits[(golden.ids(p).len() - 1 + j) * vocab..][..vocab];
                let max = row.iter().copied().fold(f32::MIN, f32::max);
                let norm = max + row.iter().map(|l| (l - max).exp()).sum::<f32>().ln();
                let error = step["top20"].as_array().unwrap()[..5].iter().map(|pair| {
                    let id = pair[0].as_u64().unwrap() as usize;
                    (row[id] - norm - pair[1].as_f64().unwrap() as f32).abs()
                });
                if step["margin"].as_f64().unwrap() > 0.2 {
                    errors.push(error.fold(0.0, f32::max));
                    same += usize::from(row[step["id"].as_u64().unwrap() as usize] == max);
                }
            }
        }
        errors.sort_by(f32::total_cmp);
        let (median, p90) = (errors[errors.len() / 2], errors[errors.len() * 9 / 10]);
        Some(Self { median, p90, same: same as f32 / errors.len() as f32 })
    }
}
