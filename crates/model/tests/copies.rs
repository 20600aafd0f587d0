//! A sequence that goes on in copies of another's blocks computes what the other would, to the last bit,
//! and neither sees what the other writes.

mod golden;

use engine::runner::{ModelRunner, Outcome};
use golden::{Golden, Shape, StepData};
use kernels::{Cpu, Precision};
use model::forward::Model;

const SHAPE: Shape = Shape { step_tokens: 400, block_len: 16 };
/// Two full blocks, and 13 tokens in a third.
const PROMPT: usize = 45;

/// A sequence, and the blocks that it lies in.
type Row<'a> = (&'a [u32], [u32; 4]);

const ORIGINAL: [u32; 4] = [1, 2, 3, 4];
/// The first block shared, a full and a partly filled one copied.
const COPY: [u32; 4] = [1, 12, 13, 14];
const COPIES: [(u32, u32); 2] = [(3, 13), (2, 12)];

/// Computes the prompt in [`ORIGINAL`], then decodes `rows` side by side, from `copies` made in the first
/// step. Logits of each row, of all its steps.
fn decode(model: &mut Model<Cpu>, prompt: &[u32], rows: &[Row<'_>], copies: &[(u32, u32)]) -> Vec<Vec<f32>> {
    let limits = model.step_limits().clone();
    let mut outcome = Outcome::default();
    let mut forward = |step: &StepData| {
        ModelRunner::launch(model, &mut step.batch(), &mut |_| ()).unwrap();
        ModelRunner::collect(model, &mut outcome).unwrap();
        outcome.logits.chunks(limits.vocab_size).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    let table = |blocks: [u32; 4]| [&blocks[..], &vec![0; limits.table_width() - 4]].concat();
    let mut step = StepData::default();
    step.push(&limits, 0, prompt, 0..prompt.len(), &table(ORIGINAL), false);
    forward(&step);
    let mut decoded = vec![Vec::new(); rows.len()];
    for p in prompt.len()..rows[0].0.len() {
        let mut step = StepData::default();
        if p == prompt.len() {
            step.copies = copies.to_vec();
        }
        for (r, &(sequence, blocks)) in rows.iter().enumerate() {
            step.push(&limits, r, sequence, p..p + 1, &table(blocks), false);
        }
        let logits = forward(&step);
        decoded.iter_mut().zip(logits).for_each(|(all, row)| all.extend(row));
    }
    decoded
}

#[test]
fn a_copy_goes_on_as_the_original_does() {
    for (name, precision) in [("v3-fp8", Precision::Bf16), ("v2lite-bf16", Precision::F32)] {
        let golden = Golden::open(name);
        // Both go on past the end of the block that they part in.
        let (a, ids) = (&golden.ids(3)[..PROMPT + 12], golden.ids(3));
        let b = &[&ids[..PROMPT], &ids[100..112]].concat()[..];
        let prompt = &ids[..PROMPT];
        // A fresh cache each time: what is not copied is not there.
        let run = |rows: &[Row<'_>], copies: &[(u32, u32)]| {
            decode(&mut golden.model(Cpu::new(2, precision), precision, SHAPE), prompt, rows, copies)
        };
        let want_a = run(&[(a, ORIGINAL)], &[]).remove(0);
        let want_b = run(&[(b, ORIGINAL)], &[]).remove(0);
        assert!(want_a != want_b);
        assert!(run(&[(a, COPY)], &COPIES) == [want_a.clone()], "{name}: a copy alone");
        let both = [want_a.clone(), want_b.clone()];
        assert!(run(&[(a, ORIGINAL), (b, COPY)], &COPIES) == both, "{name}: the original first");
        assert!(run(&[(a, COPY), (b, ORIGINAL)], &COPIES) == both, "{name}: the copy first");
        assert!(run(&[(a, COPY)], &COPIES[..1]) != [want_a], "{name}: half of it is not enough");
    }
}
