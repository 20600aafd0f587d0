//! A row's numbers depend on nothing but the row: not on who else is in the step, on the order of the rows,
//! on where its prompt is cut, on the block length, on the cache that it goes on from. All comparisons are
//! of bits; no kernel that chooses its order of sums by the size of a batch is known, and one that comes
//! must say so in its file and here get a tolerance.
//!
//! What the numbers do depend on is the place of a token in its prompt: those of whole prefill units are
//! computed by another kernel than the rest, so the schedules here keep units whole, as the engine does.

mod golden;

use golden::{Golden, StepData};
use kernels::{Cpu, Isa, Precision, StepLimits};
use model::forward::{Model, prefill_unit};
use std::ops::Range;

/// Dense and MoE layers, softmax and sigmoid routing, with and without `q_lora_rank`.
const CASES: [(&str, Precision); 3] =
    [("v3-fp8", Precision::Bf16), ("v2lite-bf16", Precision::Bf16), ("v3-f32", Precision::F32)];

/// Lengths of sixteen prompts: two units and a rest that needs two parts of 512 keys, units without a rest,
/// one token less than a unit, blocks just full and just begun, single tokens.
const LENGTHS: [usize; 16] = [600, 1, 256, 64, 300, 7, 1, 255, 33, 16, 2, 512, 17, 100, 5, 65];
const CONTEXT: usize = 640;
const ALL: usize = usize::MAX;

fn limits(golden: &Golden, block_len: usize) -> StepLimits {
    StepLimits {
        tokens: 1200,
        rows: LENGTHS.len(),
        outputs: 1200,
        vocab_size: golden.spec().vocab_size,
        context_len: CONTEXT,
        block_len,
        n_blocks: (LENGTHS.len() + 1) * CONTEXT.div_ceil(block_len) + 1,
    }
}

fn model(golden: &Golden, precision: Precision, isa: Isa, block_len: usize) -> Model<Cpu> {
    let (spec, limits) = (golden.spec(), limits(golden, block_len));
    assert_eq!(prefill_unit(&spec, &limits), 256, "the lengths are chosen for this unit");
    golden.model_within(limits, spec, Cpu::with_isa(2, precision, isa), precision)
}

/// [`LENGTHS`] tokens of the golden's longest prompt, each from another place on.
fn prompts(golden: &Golden) -> Vec<Vec<u32>> {
    let ids = golden.ids(3);
    let prompt = |(s, &len): (usize, &usize)| ids.iter().copied().cycle().skip(17 * s).take(len).collect();
    LENGTHS.iter().enumerate().map(prompt).collect()
}

/// Blocks of the `s`th table, which lie apart and in falling order.
fn table(limits: &StepLimits, s: usize) -> Vec<u32> {
    let block = |i| (limits.n_blocks - 1 - (i * (LENGTHS.len() + 1) + s)) as u32;
    (0..limits.table_width()).map(block).collect()
}

/// How sixteen prompts are computed.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    block_len: usize,
    /// Prompts under way at a time.
    side_by_side: usize,
    /// Tokens of prompt `s` in a step: `chunks[s % chunks.len()]` where they are not of a whole unit.
    chunks: &'static [usize],
    /// Units of a prompt in a step.
    units: usize,
    /// Rows turn by one place with every step, instead of staying in order.
    turning: bool,
}

/// Each prompt on its own, in as few steps as there can be.
const ALONE: Schedule =
    Schedule { block_len: 16, side_by_side: 1, chunks: &[ALL], units: ALL, turning: false };

impl Schedule {
    /// The next tokens of prompt `s` that a step takes, of which `done` are computed.
    fn next(&self, unit: usize, s: usize, done: usize) -> Range<usize> {
        let len = LENGTHS[s];
        let whole = (len - done) / unit;
        let n = if done.is_multiple_of(unit) && whole > 0 {
            whole.min(self.units) * unit
        } else {
            (len - done).min(self.chunks[s % self.chunks.len()])
        };
        done..done + n
    }
}

/// Logits at every position of each prompt.
fn run(model: &mut Model<Cpu>, prompts: &[Vec<u32>], schedule: Schedule) -> Vec<Vec<f32>> {
    let limits = model.step_limits().clone();
    let unit = prefill_unit(model.spec(), &limits);
    let mut logits = vec![Vec::new(); prompts.len()];
    let mut done = vec![0; prompts.len()];
    let mut out = Vec::new();
    for n_step in 0.. {
        let waiting = (0..prompts.len()).filter(|&s| done[s] < LENGTHS[s]);
        let mut rows: Vec<usize> = waiting.take(schedule.side_by_side).collect();
        if rows.is_empty() {
            break;
        }
        if schedule.turning {
            let by = n_step % rows.len();
            rows.rotate_left(by);
        }
        let mut step = StepData::default();
        for s in rows {
            let range = schedule.next(unit, s, done[s]);
            if step.n_tokens() + range.len() <= limits.tokens {
                done[s] = range.end;
                step.push(&limits, s, &prompts[s], range, &table(&limits, s));
            }
        }
        model.forward(&step.step(), &mut out).unwrap();
        for (&s, row) in step.owners.iter().zip(out.chunks(limits.vocab_size)) {
            logits[s].extend_from_slice(row);
        }
    }
    logits
}

/// `got` is the end of `want`, to the last bit.
fn check_same(got: &[f32], want: &[f32], vocab_size: usize, what: &dyn Fn() -> String) {
    let first = (want.len() - got.len()) / vocab_size;
    let rows = got.chunks(vocab_size).zip(want.chunks(vocab_size).skip(first));
    for (i, (got, want)) in rows.enumerate() {
        let same = got.iter().zip(want).all(|(g, w)| g.to_bits() == w.to_bits());
        assert!(same, "{}: other logits at position {}", what(), first + i);
    }
}

fn check(golden: &Golden, precision: Precision, isa: Isa, schedules: &[Schedule]) {
    let prompts = prompts(golden);
    let want = run(&mut model(golden, precision, isa, ALONE.block_len), &prompts, ALONE);
    for schedule in schedules {
        let got = run(&mut model(golden, precision, isa, schedule.block_len), &prompts, *schedule);
        for (s, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(got.len(), LENGTHS[s] * golden.spec().vocab_size);
            let what = || format!("{} {isa:?}, prompt {s}, {schedule:?}", golden.name);
            check_same(got, want, golden.spec().vocab_size, &what);
        }
    }
}

#[test]
fn neighbours_order_chunks_and_blocks() {
    let all = Schedule { side_by_side: 16, ..ALONE };
    let schedules = [
        Schedule { block_len: 64, ..ALONE },
        Schedule { block_len: 7, chunks: &[64], units: 1, ..ALONE },
        Schedule { chunks: &[7], ..ALONE },
        Schedule { side_by_side: 2, chunks: &[64], block_len: 7, ..ALONE },
        Schedule { side_by_side: 4, chunks: &[7, 64, ALL], block_len: 64, turning: true, ..ALONE },
        Schedule { turning: true, ..all },
        Schedule { chunks: &[1], units: 1, block_len: 64, ..all },
        // Decodes, chunks and units in one step.
        Schedule { chunks: &[1, 7, 64, ALL, 13], turning: true, block_len: 7, ..all },
        Schedule { chunks: &[64, 1, 1, 7], units: 1, ..all },
    ];
    for (name, precision) in CASES {
        check(&Golden::open(name), precision, Isa::detect(), &schedules);
    }
}

#[test]
fn on_every_instruction_set() {
    let mixed =
        Schedule { side_by_side: 16, chunks: &[64, 13, 7, ALL], turning: true, block_len: 7, units: 1 };
    for isa in Isa::all() {
        for precision in [Precision::Bf16, Precision::F32] {
            check(&Golden::open("v3-fp8"), precision, isa, &[mixed]);
        }
    }
}

/// A prompt that goes on from another's blocks, the last of them copied where it is not full.
#[test]
fn from_a_cached_prefix() {
    for (name, precision) in CASES {
        let golden = Golden::open(name);
        let prompts = prompts(&golden);
        for block_len in [7, 16, 64] {
            let mut model = model(&golden, precision, Isa::detect(), block_len);
            let want = run(&mut model, &prompts, Schedule { block_len, ..ALONE });
            // Two units and a rest, and one that is all rest.
            let cached =
                [(0, &[256, 512, 513, 520, 575, 576, 599][..]), (7, &[1, 6, 7, 16, 63, 64, 65, 128, 254])];
            for (s, lengths) in cached {
                for &len in lengths {
                    let got = resume(&mut model, &prompts[s], s, len);
                    let what = || format!("{name}, prompt {s} from {len} on, blocks of {block_len}");
                    check_same(&got, &want[s], golden.spec().vocab_size, &what);
                }
            }
        }
    }
}

/// Computes what `prompt` has from `cached` on, in a table that shares the blocks before with table `s`.
fn resume(model: &mut Model<Cpu>, prompt: &[u32], s: usize, cached: usize) -> Vec<f32> {
    let limits = model.step_limits().clone();
    let unit = prefill_unit(model.spec(), &limits);
    let (theirs, mut own) = (table(&limits, s), table(&limits, LENGTHS.len()));
    let shared = cached / limits.block_len;
    // Nothing of an earlier run is left in its own blocks.
    let mut noise = StepData::default();
    noise.push(&limits, 0, prompt, 0..prompt.len(), &own);
    model.prime(&noise.step()).unwrap();
    own[..shared].copy_from_slice(&theirs[..shared]);
    let (mut logits, mut out, mut done) = (Vec::new(), Vec::new(), cached);
    while done < prompt.len() {
        let mut step = StepData::default();
        if done == cached && !cached.is_multiple_of(limits.block_len) {
            step.copies.push((theirs[shared], own[shared]));
        }
        let range = ALONE.next(unit, s, done);
        done = range.end;
        step.push(&limits, 0, prompt, range, &own);
        model.forward(&step.step(), &mut out).unwrap();
        logits.extend_from_slice(&out);
    }
    logits
}
