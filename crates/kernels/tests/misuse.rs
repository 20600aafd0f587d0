//! Arguments of the right types that do not belong together are refused before unchecked code runs, and
//! numbers that are none stay where they belong.

use kernels::*;

const DIMS: MlaDims = MlaDims {
    n_heads: 2,
    kv_lora_rank: 5,
    qk_nope_head_dim: 4,
    qk_rope_head_dim: 2,
    v_head_dim: 3,
    softmax_scale: 0.5,
};

const LIMITS: StepLimits =
    StepLimits { tokens: 4, rows: 2, outputs: 4, vocab_size: 10, context_len: 8, block_len: 2, n_blocks: 5 };

const STEP: Step<'static> = Step {
    copies: &[],
    tokens: &[1, 2],
    positions: &[0, 1],
    slots: &[8, 9],
    row_start: &[0, 2],
    kv_len: &[2],
    expanded: &[false],
    tables: &[4, 3, 2, 1],
    outputs: &[1],
};

fn workspace(limits: StepLimits) -> Workspace {
    let rope = Rope { inv_freq: vec![1.0], scale: 1.0 };
    Workspace { limits, mla: DIMS, rope, hidden: 8, widest: 64, widest_mlp: 64, n_experts: 4, top_k: 2 }
}

fn reserved(precision: Precision) -> Cpu {
    let mut cpu = Cpu::new(2, precision);
    cpu.reserve(workspace(LIMITS)).unwrap();
    cpu
}

/// Ready for the ops of [`STEP`].
fn begun(precision: Precision) -> Cpu {
    let mut cpu = reserved(precision);
    cpu.begin_step(&STEP).unwrap();
    cpu
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A stack of ones.
fn ones(cpu: &mut Cpu, [stack, rows, cols]: [usize; 3]) -> PackedMatrices {
    let values = bytes(&vec![1.0; rows * cols]);
    let matrix = Matrix::new(DType::F32, &values, [rows, cols], None).unwrap();
    let precision = cpu.precision();
    cpu.pack(&vec![matrix.into(); stack], precision).unwrap()
}

fn check_refused(outcome: Result<()>, part: &str) {
    let text = outcome.expect_err(part).to_string();
    assert!(text.contains(part), "{text:?} should name {part:?}");
}

fn attend_latent(cpu: &mut Cpu, arena: &LatentArena, dims: MlaDims) -> Result<()> {
    let q = vec![0.0; 4 * dims.n_heads * dims.latent_width()];
    let mut out = vec![0.0; 4 * dims.n_heads * dims.kv_lora_rank];
    cpu.attend_latent(AttendLatent { q: &q, arena, layer: 0, out: &mut out, dims })
}

#[test]
fn a_cache_that_the_step_was_not_checked_against() {
    let mut cpu = begun(Precision::Bf16);
    let good = cpu.arena(1, &LIMITS, &DIMS).unwrap();
    attend_latent(&mut cpu, &good, DIMS).unwrap();
    let small = cpu.arena(1, &StepLimits { n_blocks: 2, ..LIMITS }, &DIMS).unwrap();
    check_refused(attend_latent(&mut cpu, &small, DIMS), "arena [1, 4, 7]");
    let f32s = Cpu::new(1, Precision::F32).arena(1, &LIMITS, &DIMS).unwrap();
    check_refused(attend_latent(&mut cpu, &f32s, DIMS), "in f32");
    let mut small = small;
    check_refused(cpu.copy_blocks(CopyBlocks { arena: &mut small }), "arena [1, 4, 7]");
}

#[test]
fn copies_of_blocks_that_cannot_be() {
    let mut cpu = reserved(Precision::F32);
    for (copies, what) in [
        (&[(1, 2), (5, 1)][..], "copied block is outside"),
        (&[(1, 5)], "copied block is outside"),
        (&[(0, 1)], "padding"),
        (&[(1, 0)], "padding"),
        (&[(2, 2)], "to itself"),
        (&[(1, 2), (1, 3), (1, 4)], "more copies"),
    ] {
        check_refused(cpu.begin_step(&Step { copies, ..STEP }), what);
    }
    cpu.begin_step(&Step { copies: &[(4, 3), (3, 1)], ..STEP }).unwrap();
}

#[test]
fn rows_that_no_attention_is_named_for() {
    let mut cpu = reserved(Precision::F32);
    for expanded in [&[][..], &[false, true]] {
        check_refused(cpu.begin_step(&Step { expanded, ..STEP }), "expanded does not fit");
    }
}

#[test]
fn dimensions_that_nothing_was_reserved_for() {
    let mut cpu = begun(Precision::F32);
    let more_heads = MlaDims { n_heads: 70, ..DIMS };
    let arena = cpu.arena(1, &LIMITS, &DIMS).unwrap();
    check_refused(attend_latent(&mut cpu, &arena, more_heads), "reserved for");
    let wider = MlaDims { qk_nope_head_dim: 9, v_head_dim: 20, ..DIMS };
    let (w_k, w_uv) = (ones(&mut cpu, [2, 9, 5]), ones(&mut cpu, [2, 20, 5]));
    let (q, mut out) = (vec![0.0; 2 * 2 * 11], vec![0.0; 2 * 2 * 20]);
    let q = View::dense(&q, 22);
    let (arena, out) = (&arena, &mut out);
    check_refused(
        cpu.attend_expanded(AttendExpanded { q, w_k: &w_k, w_uv: &w_uv, arena, layer: 0, out, dims: wider }),
        "reserved for",
    );
    let short = Rope { inv_freq: vec![], scale: 1.0 };
    check_refused(cpu.reserve(Workspace { rope: short, ..workspace(LIMITS) }), "rope of 0");
}

#[test]
fn a_gated_mlp_packed_as_plain_rows() {
    let mut cpu = begun(Precision::F32);
    // 10 rows are one panel: half of it would be no room at all.
    let (rows, down) = (ones(&mut cpu, [1, 10, 8]), ones(&mut cpu, [1, 8, 5]));
    let (x, mut out) = (vec![0.0; 2 * 8], vec![0.0; 2 * 8]);
    let x = View::dense(&x, 8);
    check_refused(cpu.gated_mlp(GatedMlp { gate_up: &rows, down: &down, x, out: &mut out }), "not packed");
    let (ids, weights) = (vec![0; 2], vec![1.0; 2]);
    let op =
        Experts { gate_up: &rows, down: &down, x, ids: &ids, weights: &weights, top_k: 1, out: &mut out };
    check_refused(cpu.experts(op), "not packed");

    let values = bytes(&[1.0; 8]);
    let m = |rows| Matrix::new(DType::F32, &values[..rows * 8], [rows, 2], None).unwrap();
    let mixed = [m(4).into(), Parts::GateUp { gate: m(2), up: m(2) }];
    check_refused(cpu.pack(&mixed, Precision::F32).map(drop), "gated");
}

#[test]
fn sizes_that_overflow() {
    let mut cpu = begun(Precision::F32);
    for bad in [
        StepLimits { block_len: 0, ..LIMITS },
        StepLimits { n_blocks: 1 << 32, ..LIMITS },
        // times the block length this is 0 modulo 2^64
        StepLimits { n_blocks: 1 << 63, ..LIMITS },
    ] {
        check_refused(cpu.arena(1, &bad, &DIMS).map(drop), "limits");
        check_refused(cpu.reserve(workspace(bad)), "limits");
    }
    let (w, x) = (ones(&mut cpu, [1, 8, 8]), vec![0.0; 16]);
    let (x, mut out) = (View::columns(&x, usize::MAX - 3, 8), vec![0.0; 16]);
    check_refused(cpu.linear(Linear { weight: &w, x, out: &mut out, accumulate: false }), "rows of 8 at");
}

/// A head of five bf16 numbers is read as six: those of the last token must not end with the memory.
#[test]
fn odd_heads_that_fill_the_operands() {
    let outcome = |widest: usize| {
        let mut cpu = Cpu::new(2, Precision::Bf16);
        // Room for one token of `widest` numbers and one pair more.
        let limits = StepLimits { tokens: 1, ..LIMITS };
        cpu.reserve(Workspace { widest, ..workspace(limits) }).unwrap();
        let step =
            Step { tokens: &[1], positions: &[0], slots: &[8], row_start: &[0, 1], kv_len: &[1], ..STEP };
        cpu.begin_step(&Step { outputs: &[0], ..step }).unwrap();
        let w_uv = ones(&mut cpu, [2, 3, 5]);
        let (latent, mut out) = (vec![1.0; 10], vec![0.0; 6]);
        cpu.absorb_output(AbsorbOutput { latent: &latent, w_uv: &w_uv, out: &mut out, dims: DIMS })
    };
    check_refused(outcome(8), "1 rows of 10 in 10");
    outcome(10).unwrap();
}

#[test]
fn ops_outside_a_step() {
    let mut cpu = reserved(Precision::F32);
    let (x, mut out) = (vec![0.0; 8], vec![0.0; 8]);
    let norm = vec![1.0; 8];
    let x = View::dense(&x, 8);
    check_refused(cpu.rms_norm(RmsNorm { x, weight: &norm, eps: 1e-6, out: &mut out }), "no step");
}

#[test]
fn a_step_without_outputs_has_no_logits() {
    let mut cpu = Cpu::new(2, Precision::F32);
    cpu.reserve(workspace(StepLimits { outputs: 0, ..LIMITS })).unwrap();
    cpu.begin_step(&Step { outputs: &[], ..STEP }).unwrap();
    let (x, norm, weight) = (vec![0.0; 16], vec![1.0; 8], ones(&mut cpu, [1, 10, 8]));
    cpu.lm_head(LmHead { x: &x, norm: &norm, eps: 1e-6, weight: &weight }).unwrap();
    let mut logits = vec![1.0];
    cpu.sample(&Draws::default()).unwrap();
    cpu.read_logits(&[], &mut logits).unwrap();
    assert!(logits.is_empty());
    check_refused(cpu.read_logits(&[0], &mut logits), "of 0");
}

/// In bf16 a row of odd width is followed by a number that the product reads too.
#[test]
fn a_row_of_nan_leaves_nothing_behind() {
    let mut cpu = begun(Precision::Bf16);
    let mut linear = |x: &[f32], cols: usize| {
        let (x, weight) = (x.to_vec(), ones(&mut cpu, [1, 3, cols]));
        let mut out = vec![0.0; 6];
        let x = View::dense(&x, cols);
        cpu.linear(Linear { weight: &weight, x, out: &mut out, accumulate: false }).unwrap();
        out
    };
    assert!(linear(&[f32::NAN; 8], 4).iter().all(|v| v.is_nan()));
    assert_eq!(linear(&[1.0; 6], 3), [3.0; 6]);
}

/// Its part of the keys is merged with the others like any part.
#[test]
fn nan_in_one_part_of_a_long_row_shows() {
    let tokens = 700;
    let limits = StepLimits { tokens, context_len: 1024, n_blocks: 513, ..LIMITS };
    for threads in [1, 16] {
        let mut cpu = Cpu::new(threads, Precision::F32);
        cpu.reserve(workspace(limits.clone())).unwrap();
        let all: Vec<u32> = (0..tokens as u32).collect();
        let slots: Vec<u32> = all.iter().map(|p| p + 2).collect();
        let step = Step {
            copies: &[],
            tokens: &vec![1; tokens],
            positions: &all,
            slots: &slots,
            row_start: &[0, tokens as u32],
            kv_len: &[tokens as u32],
            expanded: &[false],
            tables: &(1..=512).collect::<Vec<u32>>(),
            outputs: &[],
        };
        cpu.begin_step(&step).unwrap();
        let width = DIMS.latent_width();
        let mut kv = vec![1.0; tokens * width];
        kv[3 * width] = f32::NAN;
        let mut arena = cpu.arena(1, &limits, &DIMS).unwrap();
        let (kv, norm) = (View::dense(&kv, width), vec![1.0; DIMS.kv_lora_rank]);
        let write = LatentWrite { kv, norm: &norm, eps: 1e-6, dims: DIMS, layer: 0, arena: &mut arena };
        cpu.latent_write(write).unwrap();
        let q = vec![0.1; tokens * DIMS.n_heads * width];
        let mut out = vec![0.0; tokens * DIMS.n_heads * DIMS.kv_lora_rank];
        cpu.attend_latent(AttendLatent { q: &q, arena: &arena, layer: 0, out: &mut out, dims: DIMS })
            .unwrap();
        let seeing = &out[3 * DIMS.n_heads * DIMS.kv_lora_rank..];
        assert!(seeing.iter().all(|v| v.is_nan()));
    }
}
