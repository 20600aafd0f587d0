//! Step `model`: the reference checkpoints of `tests/goldens` through the whole forward pass: logits, and that a replayed
//! graph computes the same bits as launches one by one.

use crate::golden::{Chunks, Golden, Shape, WHOLE_EXPANDED, error_of, largest_error, run as forward};
use crate::random_model::{self, CASE};
use crate::report::{self, Found, Outcome};
use crate::{Open, Options};
use kernels::Precision;
use kernels::cuda::{CudaBackend, Device};
use model::forward::Model;

const STEP: &str = "model";
/// In f32; tests on the CPU and on the emulator hold 2e-4.
const TOLERANCE: f32 = 2e-3;
/// Tokens of a prompt on the emulator.
const FEW: usize = 12;
const SHAPE: Shape = Shape { step_tokens: 450, block_len: 64 };
const BY_33: Chunks = Chunks { len: 33, expanded: false };

/// Of `tests/goldens`, without looking there: one that is missing fails.
const GOLDENS: [&str; 7] =
    ["glm4lite-bf16", "kimik2-bf16", "v2-bf16", "v2lite-bf16", "v3-f32", "v3-fp8", "v3-tied-f32"];

pub(crate) fn cases(options: &Options) -> Vec<String> {
    if options.sim && options.quick {
        return vec![CASE.into(), "v2lite-bf16".into()];
    }
    [CASE].into_iter().chain(GOLDENS).map(str::to_owned).collect()
}

pub(crate) fn run<D: Device>(name: &str, options: &Options, open: Open<'_, D>) -> Result<(), String> {
    if name == CASE {
        random_model::run(options, open);
        return Ok(());
    }
    let golden = Golden::open(name);
    let quick = options.sim && options.quick;
    let case = |what: &str, run: &dyn Fn() -> Result<Found, String>| {
        report::case(STEP, &format!("{name} {what}"), Outcome::Passed, run);
    };
    if quick {
        case("f32, few tokens", &|| beginning(&golden, open));
    } else {
        for (what, chunks) in [("f32, by 33 tokens", BY_33), ("f32, expanded", WHOLE_EXPANDED)] {
            case(what, &|| {
                let error = error_of(&golden, &mut model(&golden, open, Precision::F32, true)?, chunks);
                within(error)
            });
        }
        case("bf16, next tokens", &|| agreement(&golden, open));
    }
    for precision in [Precision::F32, Precision::Bf16] {
        let what = format!("{}, graph or launches", precision.name());
        case(&what, &|| graphs(&golden, open, precision, if quick { 6 } else { 40 }));
    }
    Ok(())
}

fn model<D: Device>(
    golden: &Golden,
    open: Open<'_, D>,
    precision: Precision,
    graphs: bool,
) -> Result<Model<CudaBackend<D>>, String> {
    let backend = CudaBackend::new(open()?, precision);
    let backend = if graphs { backend } else { backend.without_graphs() };
    Ok(golden.model(backend, precision, SHAPE))
}

fn within(error: f32) -> Result<Found, String> {
    if error <= TOLERANCE {
        return Ok(Found::default().with("error", f64::from(error)));
    }
    Err(format!("a logit is {error} off, {TOLERANCE} allowed"))
}

/// Few tokens of a prompt whose logits are all known.
fn beginning<D: Device>(golden: &Golden, open: Open<'_, D>) -> Result<Found, String> {
    let prompt = (0..3).find(|&p| golden.ids(p).len() >= FEW).ok_or("only short prompts")?;
    let mut model = model(golden, open, Precision::F32, true)?;
    let sequence = golden.ids(prompt)[..FEW].to_vec();
    let got = forward(&mut model, &[sequence], Chunks { len: 5, expanded: false });
    let want = golden.f32s(&format!("prompt{prompt}.logits"));
    within(largest_error(&got[0], &want[..got[0].len()]))
}

/// The same steps by graphs, met twice so that they are replayed, and by launches.
fn graphs<D: Device>(
    golden: &Golden,
    open: Open<'_, D>,
    precision: Precision,
    tokens: usize,
) -> Result<Found, String> {
    let sequences = [golden.ids(1), golden.ids(2)].map(|ids| ids[..tokens.min(ids.len())].to_vec());
    let one_by_one = Chunks { len: 1, expanded: false };
    let mut logits = [true, false].into_iter().map(|graphs| {
        let mut model = model(golden, open, precision, graphs)?;
        Ok::<_, String>(forward(&mut model, &sequences, one_by_one).concat())
    });
    let (Some(by_graph), Some(by_launch)) = (logits.next(), logits.next()) else {
        return Err("no logits".into());
    };
    let (by_graph, by_launch) = (by_graph?, by_launch?);
    let differs = by_graph.iter().zip(&by_launch).position(|(a, b)| a.to_bits() != b.to_bits());
    match differs {
        None => Ok(Found::default().with("logits", by_graph.len() as f64)),
        Some(i) => Err(format!("[{i}]: {} by graph, {} by launches", by_graph[i], by_launch[i])),
    }
}

/// In bf16, where the reference's choice is clear, it is ours too.
fn agreement<D: Device>(golden: &Golden, open: Open<'_, D>) -> Result<Found, String> {
    let mut model = model(golden, open, Precision::Bf16, true)?;
    let vocab = model.spec().vocab_size;
    let sequences: Vec<Vec<u32>> =
        (0..4).map(|p| [golden.ids(p), golden.greedy(p)[..31].to_vec()].concat()).collect();
    let logits = forward(&mut model, &sequences, BY_33);
    let (mut clear, mut same) = (0, 0);
    for (p, logits) in logits.iter().enumerate() {
        let steps = golden.json["prompts"][p]["greedy"]["steps"].as_array().ok_or("no greedy steps")?;
        for (j, step) in steps.iter().enumerate() {
            if step["margin"].as_f64().is_none_or(|margin| margin <= 0.2) {
                continue;
            }
            let row = &logits[(golden.ids(p).len() - 1 + j) * vocab..][..vocab];
            let best = row.iter().copied().fold(f32::MIN, f32::max);
            clear += 1;
            same += usize::from(step["id"].as_u64().is_some_and(|id| row[id as usize] == best));
        }
    }
    let share = same as f64 / f64::from(clear.max(1));
    if golden.json["bf16_run"].is_null() || share > 0.95 {
        return Ok(Found::default().with("clear", f64::from(clear)).with("same", share));
    }
    Err(format!("{same} of {clear} clear choices are the reference's"))
}
