//! The end of two steps: tokens drawn from logits that the backend made itself, against the host's sampler, and their rows
//! of the embedding in the step after.

use super::{ODD, noise};
use kernels::sampler::{Scratch, draw_all, mask_words};
use kernels::*;

/// Rows of a step.
const ROWS: usize = 5;
const HIDDEN: usize = 32;

/// Draws of many kinds, of which all but the first few change their row; every row but one has several.
fn draws(vocab: usize, after: bool) -> Draws {
    let sampled_vocab = vocab - vocab / 50;
    let id = |i: usize| (i * 7919 % vocab) as u32;
    let counts: Vec<(u32, u32)> = (0..vocab.min(900)).map(|i| (id(i), i as u32 % 4)).collect();
    let biases: Vec<(u32, f32)> =
        (0..vocab.min(60)).map(|i| (id(i + 5), [-100.0, 2.5, -1.0][i % 3])).collect();
    let masks: Vec<u32> = (0..mask_words(vocab) as u32).map(|i| i.wrapping_mul(0x9e37_79b9) | 0x11).collect();
    let hot = || Draw { temperature: 0.9, ..Draw::default() };
    let penalties = || Draw {
        repetition_penalty: 1.2,
        frequency_penalty: 0.3,
        presence_penalty: 0.4,
        counts: 0..counts.len(),
        ..hot()
    };
    let kinds = [
        Draw::default(),
        hot(),
        Draw { top_k: 20, ..hot() },
        Draw { top_k: vocab / 3, top_p: 0.9, ..hot() },
        Draw { top_p: 0.95, temperature: 0.2, ..hot() },
        Draw { top_p: 0.5, ..hot() },
        Draw { min_p: 0.1, ..hot() },
        Draw { biases: 0..biases.len(), ..Draw::default() },
        Draw { banned: 0..4, ..penalties() },
        Draw { mask: Some(0), top_p: 0.9, ..penalties() },
    ];
    let draw = |(i, kind): (usize, &Draw)| Draw {
        output: (i % (ROWS - 1)) as u32,
        after: after.then_some((i * 3 % kinds.len()) as u32),
        uniform: (i as f64 * 0.37 + 0.11) % 1.0,
        ..kind.clone()
    };
    let draws = kinds.iter().enumerate().map(draw).collect();
    Draws { sampled_vocab, draws, banned: (0..4).map(id).collect(), counts, biases, masks }
}

/// Draws that were compared, or the first that went wrong.
pub(crate) fn check_draws<B: Backend>(b: &mut B, vocab: usize) -> std::result::Result<usize, String> {
    let said = |error: KernelError| error.to_string();
    let rows = ROWS as u32;
    let limits = StepLimits {
        tokens: ROWS,
        // As many draws are made.
        rows: 2 * ROWS,
        outputs: ROWS,
        vocab_size: vocab,
        context_len: 900,
        block_len: 1,
        n_blocks: ROWS + 1,
    };
    let rope = Rope { inv_freq: vec![0.5; ODD.mla.qk_rope_head_dim / 2], scale: 1.0 };
    let workspace = Workspace {
        limits: limits.clone(),
        mla: ODD.mla,
        rope,
        hidden: HIDDEN,
        widest: 64,
        widest_mlp: 64,
        n_experts: 8,
        top_k: 2,
    };
    b.reserve(workspace).map_err(said)?;
    let values = noise(vocab * HIDDEN, 5);
    let bytes = super::bytes(&values);
    let table = Matrix::new(DType::F32, &bytes, [vocab, HIDDEN], None).map_err(said)?;
    let table = b.pack(&[table.into()], Precision::F32).map_err(said)?;
    let norm = b.upload(&[0.7; HIDDEN]).map_err(said)?;
    let mut x = b.buffer(ROWS * HIDDEN).map_err(said)?;
    let mut tables = vec![0; ROWS * limits.table_width()];
    (0..ROWS).for_each(|row| tables[row * limits.table_width()] = row as u32 + 1);
    let mut before: Vec<Drawn> = Vec::new();
    for step in 0..3 {
        let drawn_tokens: Vec<u32> = (0..rows).map(|row| DRAWN | (row * 2)).collect();
        let known_tokens: Vec<u32> = (0..rows).map(|row| row * 9 % vocab as u32).collect();
        let tokens = if step == 0 { &known_tokens } else { &drawn_tokens };
        b.begin_step(&Step {
            copies: &[],
            tokens,
            positions: &[0; ROWS],
            slots: &Vec::from_iter(1..=rows),
            row_start: &Vec::from_iter(0..=rows),
            kv_len: &[1; ROWS],
            expanded: &[false; ROWS],
            tables: &tables,
            outputs: &Vec::from_iter(0..rows),
        })
        .map_err(said)?;
        b.embed(Embed { table: &table, out: &mut x }).map_err(said)?;
        b.lm_head(LmHead { x: &x, norm: &norm, eps: 1e-6, weight: &table }).map_err(said)?;
        let mut logits = Vec::new();
        b.read_logits(&Vec::from_iter(0..rows), &mut logits).map_err(said)?;
        for (row, &token) in tokens.iter().enumerate() {
            let known = if token & DRAWN == 0 { Ok(token) } else { before[(token & !DRAWN) as usize] };
            let id = known.unwrap_or(0) as usize;
            let embedded = &b.read(&x, ROWS * HIDDEN)[row * HIDDEN..][..HIDDEN];
            if *embedded != values[id * HIDDEN..][..HIDDEN] {
                return Err(format!("step {step}: row {row} is not that of token {id}"));
            }
        }
        let draws = draws(vocab, step > 0);
        b.sample(&draws).map_err(said)?;
        let (mut got, mut want) = (Vec::new(), Vec::new());
        b.collect(&mut got).map_err(said)?;
        draw_all(&draws, &logits, vocab, &before, &mut Scratch::default(), &mut want);
        if let Some(at) = (0..want.len()).find(|&at| got[at] != want[at]) {
            return Err(format!("step {step}, draw {at}: {:?}, not {:?}", got[at], want[at]));
        }
        before = got;
    }
    Ok(3 * before.len())
}
