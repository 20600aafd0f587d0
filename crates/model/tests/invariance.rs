//! A row's numbers depend on nothing but the row: not on who else is in the step, on the order of the rows,
//! on where its prompt is cut, on the block length, on the cache that it goes on from. All comparisons are
//! of bits; no kernel that chooses its order of sums by the size of a batch is known, and one that comes
//! must say so in its file and here get a tolerance.
//!
//! What the numbers do depend on is which kernel attends for a token: with keys and values expanded where it
//! lies in a whole prefill unit of its prompt, in latent space elsewhere. Rows of either are cut anywhere.

mod golden;

use golden::{Golden, StepData};
use kernels::{Cpu, Isa, Precision, StepLimits};
use model::forward::Model;
use std::ops::Range;

/// Dense and MoE layers, softmax and sigmoid routing, with and without `q_lora_rank`.
const CASES: [(&str, Precision); 3] =
    [("v3-fp8", Precision::Bf16), ("v2lite-bf16", Precision::Bf16), ("v3-f32", Precision::F32)];

/// Lengths of sixteen prompts: two units and a rest that needs two parts of 512 keys, units without a rest,
/// one token less than a unit, blocks just full and just begun, single tokens.
const LENGTHS: [usize; 16] = [600, 1, 256, 64, 300, 7, 1, 255, 33, 16, 2, 512, 17, 100, 5, 65];
const LONGEST: usize = 640;
const ALL: usize = usize::MAX;

fn limits(golden: &Golden, schedule: Schedule) -> StepLimits {
    let Schedule { block_len, context_len, .. } = schedule;
    StepLimits {
        tokens: 1200,
        rows: LENGTHS.len(),
        outputs: 1200,
        vocab_size: golden.spec().vocab_size,
        context_len,
        block_len,
        n_blocks: (LENGTHS.len() + 1) * LONGEST.div_ceil(block_len) + 1,
    }
}

fn model(golden: &Golden, precision: Precision, isa: Isa, schedule: Schedule) -> Model<Cpu> {
    let backend = Cpu::with_isa(2, precision, isa);
    golden.model_within(limits(golden, schedule), golden.spec(), backend, precision)
}

/// [`LENGTHS`] tokens of the golden's longest prompt, each from another place on.
fn prompts(golden: &Golden) -> Vec<Vec<u32>> {
    let ids = golden.ids(3);
    let prompt = |(s, &len): (usize, &usize)| ids.iter().copied().cycle().skip(17 * s).take(len).collect();
    LENGTHS.iter().enumerate().map(prompt).collect()
}

/// Blocks of the `s`th table, which lie apart and in falling order, then padding.
fn table(limits: &StepLimits, s: usize) -> Vec<u32> {
    let block = |i| (limits.n_blocks - 1 - (i * (LENGTHS.len() + 1) + s)) as u32;
    let mut table: Vec<u32> = (0..LONGEST.div_ceil(limits.block_len)).map(block).collect();
    table.resize(limits.table_width(), 0);
    table
}

/// How sixteen prompts are computed.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    block_len: usize,
    context_len: usize,
    /// Prompts under way at a time.
    side_by_side: usize,
    /// Tokens of prompt `s` in a step, at most: `chunks[s % chunks.len()]`.
    chunks: &'static [usize],
    /// Whole units of a prompt are expanded.
    unit: usize,
    /// Rows turn by one place with every step, instead of staying in order.
    turning: bool,
}

/// Each prompt on its own, in as few steps as there can be.
const ALONE: Schedule = Schedule {
    block_len: 16,
    context_len: LONGEST,
    side_by_side: 1,
    chunks: &[ALL],
    unit: 256,
    turning: false,
};

impl Schedule {
    /// The next tokens of prompt `s` that a step takes, of which `done` are computed; whether they are expanded.
    fn next(&self, s: usize, done: usize) -> (Range<usize>, bool) {
        let units = LENGTHS[s] / self.unit * self.unit;
        let (expanded, end) = if done < units { (true, units) } else { (false, LENGTHS[s]) };
        (done..end.min(done.saturating_add(self.chunks[s % self.chunks.len()])), expanded)
    }
}

/// Logits at every position of each prompt.
fn run(model: &mut Model<Cpu>, prompts: &[Vec<u32>], schedule: Schedule) -> Vec<Vec<f32>> {
    let limits = model.step_limits().clone();
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
            let (range, expanded) = schedule.next(s, done[s]);
            if step.n_tokens() + range.len() <= limits.tokens {
                done[s] = range.end;
                step.push(&limits, s, &prompts[s], range, &table(&limits, s), expanded);
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

/// Each of `schedules` computes what `first` does.
fn check(golden: &Golden, precision: Precision, isa: Isa, first: Schedule, schedules: &[Schedule]) {
    let prompts = prompts(golden);
    let want = run(&mut model(golden, precision, isa, first), &prompts, first);
    for schedule in schedules {
        let got = run(&mut model(golden, precision, isa, *schedule), &prompts, *schedule);
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
        Schedule { side_by_side: 2, chunks: &[64], block_len: 7, ..ALONE },
        Schedule { side_by_side: 4, chunks: &[7, 64, ALL], block_len: 64, turning: true, ..ALONE },
        Schedule { turning: true, ..all },
        // Decodes, chunks and whole units in one step.
        Schedule { chunks: &[1, 7, 64, ALL, 13], turning: true, block_len: 7, ..all },
        Schedule { chunks: &[64, 255, 100, 7], ..all },
    ];
    for (name, precision) in CASES {
        check(&Golden::open(name), precision, Isa::detect(), ALONE, &schedules);
    }
}

/// Rows of any length in latent space, and rows of any length expanded: 600 tokens, or one.
#[test]
fn all_rows_by_one_kernel() {
    for unit in [1, ALL] {
        let whole = Schedule { unit, ..ALONE };
        let cut = Schedule { side_by_side: 16, ..whole };
        let schedules = [
            Schedule { chunks: &[1], ..cut },
            Schedule { chunks: &[63, 64, 65], turning: true, block_len: 7, ..cut },
            Schedule { chunks: &[255, 256, 257], turning: true, ..cut },
        ];
        for (name, precision) in CASES {
            check(&Golden::open(name), precision, Isa::detect(), whole, &schedules);
        }
    }
}

/// Whatever length a sequence might have: 600 tokens in latent space are in two parts.
#[test]
fn under_any_limit_of_context() {
    let first = Schedule { unit: ALL, context_len: 1024, ..ALONE };
    let schedules = [(1024, &[7]), (40_000, &[7]), (163_840, &[ALL])].map(|(context_len, chunks)| Schedule {
        context_len,
        chunks,
        ..first
    });
    for (name, precision) in CASES {
        check(&Golden::open(name), precision, Isa::detect(), first, &schedules);
    }
}

#[test]
fn on_every_instruction_set() {
    let all = Schedule { side_by_side: 16, turning: true, block_len: 7, ..ALONE };
    let mixed = [&[64, 13, 7, ALL], &[33, 255, 1, 100]].map(|chunks| Schedule { chunks, ..all });
    for isa in Isa::all() {
        for precision in [Precision::Bf16, Precision::F32] {
            check(&Golden::open("v3-fp8"), precision, isa, ALONE, &mixed);
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
            let alone = Schedule { block_len, ..ALONE };
            let mut model = model(&golden, precision, Isa::detect(), alone);
            let want = run(&mut model, &prompts, alone);
            // Two units and a rest, a unit, and one that is all rest.
            let cached = [
                (0, &[1, 64, 192, 255, 256, 257, 448, 511, 512, 513, 576, 599][..]),
                (2, &[1, 63, 192, 255]),
                (7, &[1, 6, 7, 16, 63, 64, 65, 128, 254]),
            ];
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
    let (theirs, mut own) = (table(&limits, s), table(&limits, LENGTHS.len()));
    let shared = cached / limits.block_len;
    // Nothing of an earlier run is left in its own blocks.
    let mut noise = StepData::default();
    noise.push(&limits, 0, prompt, 0..prompt.len(), &own, false);
    model.prime(&noise.step()).unwrap();
    own[..shared].copy_from_slice(&theirs[..shared]);
    let (mut logits, mut out, mut done) = (Vec::new(), Vec::new(), cached);
    while done < prompt.len() {
        let mut step = StepData::default();
        if done == cached && !cached.is_multiple_of(limits.block_len) {
            step.copies.push((theirs[shared], own[shared]));
        }
        let (range, expanded) = ALONE.next(s, done);
        done = range.end;
        step.push(&limits, 0, prompt, range, &own, expanded);
        model.forward(&step.step(), &mut out).unwrap();
        logits.extend_from_slice(&out);
    }
    logits
}
