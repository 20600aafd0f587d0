//! On the emulator, against the definitions in `ops`.

#[path = "../../../tests/noise/mod.rs"]
mod noise;

use super::super::sim::mutants::{Module, Mutant, all_are_found};
use super::super::sim::{Emulator, Mode};
use super::super::{CudaArena, CudaBackend, Device};
use crate::backend::{Backend, MlaDims, Rope, View, Workspace};
use crate::cache::CacheFormat;
use crate::dtype::{DType, Precision};
use crate::matrix::{BlockScales, Matrix};
use crate::ops::{
    AbsorbQuery, CopyBlocks, Embed, LatentWrite, RmsNorm, copy_blocks_reference, rms_norm_reference,
    rotate_pairs,
};
use crate::step::{Step, StepLimits};
use half::bf16;
pub(in crate::cuda) use noise::noise;

pub(in crate::cuda) type Cuda = CudaBackend<Emulator>;

/// The largest difference, as a part of the largest expected value.
pub(in crate::cuda) fn error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    let differences = got.iter().zip(want).map(|(g, w)| (g - w).abs() / largest);
    // NaN is larger than all.
    differences.fold(0.0, |m, d| if d <= m { m } else { d })
}

/// Rows of `(tokens already cached, new tokens, whether the row takes attend_expanded)` in shuffled blocks.
#[derive(Clone)]
pub(in crate::cuda) struct Steps {
    pub(in crate::cuda) limits: StepLimits,
    pub(in crate::cuda) tokens: Vec<u32>,
    pub(in crate::cuda) positions: Vec<u32>,
    pub(in crate::cuda) slots: Vec<u32>,
    row_start: Vec<u32>,
    kv_len: Vec<u32>,
    expanded: Vec<bool>,
    tables: Vec<u32>,
    pub(in crate::cuda) copies: Vec<(u32, u32)>,
}

impl Steps {
    pub(in crate::cuda) fn new(rows: &[(usize, usize, bool)], block_len: usize) -> Self {
        let context_len = rows.iter().map(|(cached, new, _)| cached + new).max().unwrap() + 3;
        let width = context_len.div_ceil(block_len);
        let lent = rows.len() * width;
        let n_tokens = rows.iter().map(|(_, new, _)| new).sum();
        let limits = StepLimits {
            tokens: n_tokens,
            rows: rows.len(),
            outputs: n_tokens,
            vocab_size: 50,
            context_len,
            block_len,
            n_blocks: lent + 2,
        };
        // Blocks in falling order: a row's blocks are never neighbours in memory order.
        Self { limits, ..Self::empty((1..=lent as u32).rev().collect()) }.with(rows)
    }

    fn empty(tables: Vec<u32>) -> Self {
        Self {
            limits: StepLimits {
                tokens: 0,
                rows: 0,
                outputs: 0,
                vocab_size: 0,
                context_len: 0,
                block_len: 0,
                n_blocks: 0,
            },
            tokens: vec![],
            positions: vec![],
            slots: vec![],
            row_start: vec![0],
            kv_len: vec![],
            expanded: vec![],
            tables,
            copies: vec![],
        }
    }

    /// Another step in the same blocks: as many rows.
    pub(in crate::cuda) fn with(&self, rows: &[(usize, usize, bool)]) -> Self {
        let Self { limits, tables, .. } = self.clone();
        let (block_len, width) = (limits.block_len, limits.table_width());
        let mut s = Self { limits, ..Self::empty(tables) };
        for (r, &(cached, new, expanded)) in rows.iter().enumerate() {
            for p in cached..cached + new {
                let block = s.tables[r * width + p / block_len];
                s.positions.push(p as u32);
                s.slots.push(block * block_len as u32 + (p % block_len) as u32);
            }
            s.row_start.push(s.positions.len() as u32);
            s.kv_len.push((cached + new) as u32);
            s.expanded.push(expanded);
        }
        s.tokens = (0..s.positions.len() as u32).map(|t| t * 7 % 50).collect();
        s
    }

    pub(in crate::cuda) fn step(&self) -> Step<'_> {
        Step {
            copies: &self.copies,
            tokens: &self.tokens,
            positions: &self.positions,
            slots: &self.slots,
            row_start: &self.row_start,
            kv_len: &self.kv_len,
            expanded: &self.expanded,
            tables: &self.tables,
            outputs: &[],
        }
    }
}

pub(in crate::cuda) fn rope(width: usize) -> Rope {
    Rope { inv_freq: (0..width / 2).map(|i| 0.7f32.powi(i as i32)).collect(), scale: 1.1 }
}

pub(in crate::cuda) const ODD: MlaDims = MlaDims {
    n_heads: 3,
    kv_lora_rank: 22,
    qk_nope_head_dim: 10,
    qk_rope_head_dim: 6,
    v_head_dim: 18,
    softmax_scale: 0.3,
};

pub(in crate::cuda) fn workspace(limits: &StepLimits, mla: MlaDims) -> Workspace {
    let rope = rope(mla.qk_rope_head_dim);
    Workspace {
        limits: limits.clone(),
        mla,
        rope,
        hidden: 64,
        widest: 64,
        widest_mlp: 64,
        n_experts: 8,
        top_k: 2,
    }
}

/// A backend in the middle of a step.
pub(in crate::cuda) fn begin(
    mode: Mode,
    module: Option<&Module>,
    precision: Precision,
    steps: &Steps,
    mla: MlaDims,
) -> Cuda {
    let emulator = Emulator::new(mode, 80);
    module.into_iter().for_each(|module| emulator.replace(module));
    let mut b = CudaBackend::new(emulator, precision);
    b.reserve(workspace(&steps.limits, mla)).unwrap();
    b.begin_step(&steps.step()).unwrap();
    b
}

/// What a kernel leaves behind, or the emulator's message.
pub(in crate::cuda) fn outcome(b: &Cuda, buffer: &<Cuda as Backend>::Buffer) -> Result<Vec<f32>, String> {
    b.flush().map_err(|e| e.to_string())?;
    Ok(b.read(buffer, buffer.len))
}

// ---- embedding

fn embeds(matrix: Matrix<'_>, precision: Precision) {
    let steps = Steps::new(&[(0, 9, false)], 5);
    let [_, hidden] = matrix.shape();
    let rounded = matrix.to_f32();
    let mut b = begin(Mode::all()[0], None, precision, &steps, ODD);
    let table = b.pack(&[matrix.into()], precision).unwrap();
    let exact = table.kind() == super::super::gemm::Kind::Fp8;
    let mut out = b.buffer(9 * hidden).unwrap();
    b.embed(Embed { table: &table, out: &mut out }).unwrap();
    let round = |x: f32| if exact { x } else { precision.round(x) };
    let want: Vec<f32> = steps
        .tokens
        .iter()
        .flat_map(|&t| rounded[t as usize * hidden..][..hidden].iter().map(|x| round(*x)))
        .collect();
    assert_eq!(outcome(&b, &out), Ok(want));
}

#[test]
fn embedding_reads_each_kind_of_weight() {
    for hidden in [43, 64] {
        let values: Vec<u8> = noise(50 * hidden, 1).iter().flat_map(|v| v.to_le_bytes()).collect();
        let matrix = Matrix::new(DType::F32, &values, [50, hidden], None).unwrap();
        embeds(matrix, Precision::F32);
        embeds(matrix, Precision::Bf16);
    }
    let codes: Vec<u8> = (0..50 * 200).map(|i| (i * 37 % 127) as u8).collect();
    let scales: Vec<u8> = noise(7 * 2, 2).iter().flat_map(|v| v.to_le_bytes()).collect();
    let scales = BlockScales { bytes: &scales, block_rows: 8, block_cols: 128 };
    embeds(Matrix::new(DType::F8E4M3, &codes, [50, 200], Some(scales)).unwrap(), Precision::Bf16);
}

// ---- norm

/// Nine rows (of a bucket of 16) as a view into wider ones, whose other columns are NaN.
fn norm(
    mode: Mode,
    module: Option<&Module>,
    [width, offset, stride]: [usize; 3],
) -> Result<Vec<f32>, String> {
    let steps = Steps::new(&[(0, 9, false)], 5);
    let (x, weight) = (noise(9 * width, 3), noise(width, 4));
    let mut wide = vec![f32::NAN; offset + 8 * stride + width];
    for (t, row) in x.chunks(width).enumerate() {
        wide[offset + t * stride..][..width].copy_from_slice(row);
    }
    let mut b = begin(mode, module, Precision::F32, &steps, ODD);
    let (wide, gain) = (b.upload(&wide).unwrap(), b.upload(&weight).unwrap());
    let mut out = b.buffer(9 * width).unwrap();
    let op = RmsNorm { x: View::columns(&wide, offset, stride), weight: &gain, eps: 1e-5, out: &mut out };
    b.rms_norm(op).unwrap();
    let got = outcome(&b, &out)?;
    let mut want = vec![0.0; 9 * width];
    for (row, out) in x.chunks(width).zip(want.chunks_mut(width)) {
        rms_norm_reference(row, &weight, 1e-5, out);
    }
    let error = error(&got, &want);
    if error <= 2e-6 { Ok(got) } else { Err(format!("off by {error}")) }
}

#[test]
fn norms_of_views() {
    for mode in Mode::all() {
        for view in [[1, 0, 1], [43, 11, 60], [64, 64, 200], [512, 0, 512], [515, 2, 517]] {
            norm(mode, None, view).unwrap_or_else(|e| panic!("{view:?} in {mode:?}: {e}"));
        }
        // The same bits whether a row begins at 16 bytes or not.
        let [aligned, others] = [[1032, 8, 1040], [1032, 3, 1035]].map(|view| norm(mode, None, view));
        assert_eq!(aligned, others);
    }
}

const fn mutant(from: &'static str, to: &'static str) -> Mutant {
    Mutant { file: "rows.cu", from, to }
}

#[test]
fn mistakes_in_norms_are_found() {
    let mutants = [
        mutant("    bar_sync();\n    sum = 0.0f;", "    sum = 0.0f;"),
        mutant("sum = warp_sum(sum);", ""),
        mutant("i < THREADS / 32; i++) sum", "i < 1; i++) sum"),
        mutant("sum / (float)width + eps", "sum / (float)(width + 1) + eps"),
        mutant("col + i < width ? ldg_f(row + col + i) : 0.0f", "ldg_f(row + col + i)"),
        mutant("if (col + i < width) stg_f", "stg_f"),
    ];
    all_are_found(&mutants, |module| {
        [[43, 11, 60], [515, 2, 517]]
            .iter()
            .try_for_each(|&view| norm(Mode::all()[0], module, view).map(|_| ()))
    });
}

// ---- latent rows

fn arena_bytes(b: &Cuda, arena: &CudaArena<Emulator>) -> Vec<u8> {
    b.flush().unwrap();
    let mut bytes = vec![0; Emulator::bytes(arena.held.get())];
    b.device.read(arena.held.get(), 0, &mut bytes).unwrap();
    bytes
}

/// Where number `col` of slot `slot` lies in a layer, in elements.
fn place(tiled: bool, width: usize, slot: usize, col: usize) -> usize {
    if !tiled {
        return slot * width + col;
    }
    let (row, chunk) = (slot % 64, (col / 8) % 8);
    slot / 64 * 64 * width + col / 64 * 4096 + row * 64 + (chunk ^ (row % 8)) * 8 + col % 8
}

fn writes_latents(precision: Precision, d: MlaDims, block_len: usize, tiled: bool) {
    let steps = Steps::new(&[(0, 9, true), (70, 3, false)], block_len);
    let (rank, width) = (d.kv_lora_rank, d.latent_width());
    let (n, offset, stride) = (12, 5, width + 7);
    let mut b = begin(Mode::all()[0], None, precision, &steps, d);
    let (wide, gain) = (noise(offset + n * stride, 5), noise(rank, 6));
    let (kv, norm) = (b.upload(&wide).unwrap(), b.upload(&gain).unwrap());
    let mut arena = b.arena(2, &steps.limits, &d).unwrap();
    assert_eq!(arena.tiled, tiled);
    let op = LatentWrite {
        kv: View::columns(&kv, offset, stride),
        norm: &norm,
        eps: 1e-6,
        dims: d,
        layer: 1,
        arena: &mut arena,
    };
    b.latent_write(op).unwrap();
    let got = arena_bytes(&b, &arena);
    let got: Vec<f32> = match precision {
        Precision::F32 => got.as_chunks().0.iter().map(|x| f32::from_ne_bytes(*x)).collect(),
        Precision::Bf16 => got.as_chunks().0.iter().map(|x| bf16::from_ne_bytes(*x).to_f32()).collect(),
    };
    let mut want = vec![0.0; got.len()];
    let layer = &mut want[got.len() / 2..];
    let Rope { inv_freq, scale } = rope(d.qk_rope_head_dim);
    for (t, (&slot, &position)) in steps.slots.iter().zip(&steps.positions).enumerate() {
        let mut row = wide[offset + t * stride..][..width].to_vec();
        rms_norm_reference(&row.clone()[..rank], &gain, 1e-6, &mut row[..rank]);
        let angles = inv_freq.iter().map(|f| position as f32 * f);
        let cos_sin: Vec<f32> = angles.flat_map(|a| [a.cos() * scale, a.sin() * scale]).collect();
        rotate_pairs(&mut row[rank..], &cos_sin);
        for (col, x) in row.iter().enumerate() {
            layer[place(tiled, width, slot as usize, col)] = precision.round(*x);
        }
    }
    let tolerance = if precision == Precision::F32 { 2e-6 } else { 4e-3 };
    let error = error(&got, &want);
    assert!(error <= tolerance, "{precision:?}, blocks of {block_len}: off by {error}");
    // Slots of others stay as they were.
    assert!(got.iter().zip(&want).all(|(g, w)| *w != 0.0 || g.abs() < 1e-5));
}

#[test]
fn latent_rows_go_to_their_slots() {
    let tiles = MlaDims { kv_lora_rank: 122, ..ODD };
    for (d, block_len, tiled) in [(ODD, 5, false), (ODD, 64, false), (tiles, 64, true), (tiles, 128, true)] {
        writes_latents(Precision::Bf16, d, block_len, tiled);
        writes_latents(Precision::F32, d, block_len, false);
    }
}

/// Numbers and scales of a row of FP8, as `page.h` lays it out.
fn fp8_row(layer: &[u8], d: MlaDims, tiled: bool, slot: usize) -> (Vec<f32>, Vec<f32>) {
    let (rank, rope, groups) = (d.kv_lora_rank, d.qk_rope_head_dim, d.kv_lora_rank.div_ceil(128));
    let row_bytes = CacheFormat::Fp8.row_bytes(Precision::Bf16, &d);
    let (row, page) = (slot % 64, &layer[slot / 64 * 64 * row_bytes..]);
    let plain = &layer[slot * row_bytes..];
    let scale = |col: usize| {
        let at = if tiled {
            &page[64 * (rank + 2 * rope) + 4 * (row * groups + col / 128)..]
        } else {
            &plain[4 * (col / 128)..]
        };
        f32::from_ne_bytes(*at.first_chunk().unwrap())
    };
    let number = |col: usize| {
        let in_word = [0, 2, 1, 3][col % 4];
        let code = if tiled {
            page[col / 16 * 1024 + row * 16 + col % 16 / 4 * 4 + in_word]
        } else {
            plain[4 * groups + 2 * rope + col]
        };
        let mut number = [0.0];
        crate::dtype::decode(DType::F8E4M3, &[code], &mut number);
        number[0] * scale(col)
    };
    let rotary = |col: usize| {
        let at = if tiled {
            &page[64 * rank + 2 * place(true, rope, row, col)..]
        } else {
            &plain[4 * groups + 2 * col..]
        };
        bf16::from_ne_bytes(*at.first_chunk().unwrap()).to_f32()
    };
    let numbers = (0..rank).map(number).chain((0..rope).map(rotary)).collect();
    (numbers, (0..groups).map(|group| scale(128 * group)).collect())
}

/// Latent numbers that are exactly the norm's weights, as the numbers are of squares 1.
fn writes_fp8(module: Option<&Module>, d: MlaDims, block_len: usize, tiled: bool) -> Result<(), String> {
    let steps = Steps::new(&[(0, 9, true), (70, 3, false)], block_len);
    let (rank, width, n) = (d.kv_lora_rank, d.latent_width(), 12);
    let mut b = begin(Mode::all()[0], module, Precision::Bf16, &steps, d).with_cache(CacheFormat::Fp8);
    // Each group with ties, and as small as another hundredth and thousandth of it; one of zeros, one with a NaN.
    let shift = |col: usize| [0, 5, -20, 60, -105][col / 128 % 5] - [0, 7, 14][col % 3];
    let mut gain: Vec<f32> = noise(rank, 6)
        .iter()
        .enumerate()
        .map(|(col, x)| (x * 64.0).round() / 64.0 * 2f32.powi(shift(col)))
        .collect();
    if rank > 300 {
        gain[256..384].fill(0.0);
        gain[200] = f32::NAN;
    }
    let mut kv = noise(n * width, 5);
    for row in kv.chunks_mut(width) {
        row[..rank].iter_mut().for_each(|x| *x = x.signum());
    }
    let (kv_on, norm) = (b.upload(&kv).unwrap(), b.upload(&gain).unwrap());
    let mut arena = b.arena(2, &steps.limits, &d).unwrap();
    assert_eq!(arena.tiled, tiled);
    let view = View::dense(&kv_on, width);
    b.latent_write(LatentWrite { kv: view, norm: &norm, eps: 0.0, dims: d, layer: 1, arena: &mut arena })
        .unwrap();
    b.flush().map_err(|e| e.to_string())?;
    let bytes = arena_bytes(&b, &arena);
    let layer = &bytes[bytes.len() / 2..];
    let Rope { inv_freq, scale } = rope(d.qk_rope_head_dim);
    for slot in 0..steps.limits.slots() {
        let (got, scales) = fp8_row(layer, d, tiled, slot);
        let Some(t) = steps.slots.iter().position(|&s| s as usize == slot) else {
            if got.iter().all(|x| *x == 0.0) {
                continue;
            }
            return Err(format!("slot {slot} of nobody was written"));
        };
        let mut want: Vec<f32> = kv[t * width..][..width].to_vec();
        want.iter_mut().zip(&gain).for_each(|(x, gain)| *x *= gain);
        let angles = inv_freq.iter().map(|f| steps.positions[t] as f32 * f);
        let cos_sin: Vec<f32> = angles.flat_map(|a| [a.cos() * scale, a.sin() * scale]).collect();
        rotate_pairs(&mut want[rank..], &cos_sin);
        CacheFormat::Fp8.round(Precision::Bf16, &d, &mut want);
        if rank > 300 && scales[2] != 1.0 {
            return Err(format!("a scale of {} for zeros", scales[2]));
        }
        for (col, (g, w)) in got.iter().zip(&want).enumerate() {
            let same = if col < rank { g == w || (g.is_nan() && w.is_nan()) } else { (g - w).abs() <= 8e-3 };
            if !same {
                return Err(format!("token {t} column {col}: {g}, expected {w}"));
            }
        }
    }
    Ok(())
}

#[test]
fn latent_rows_in_fp8() {
    let pages = MlaDims { kv_lora_rank: 640, qk_rope_head_dim: 64, ..ODD };
    let odd = MlaDims { kv_lora_rank: 601, ..ODD };
    for (d, block_len, tiled) in
        [(ODD, 5, false), (odd, 64, false), (pages, 5, false), (pages, 64, true), (pages, 128, true)]
    {
        writes_fp8(None, d, block_len, tiled).unwrap_or_else(|e| panic!("{d:?}, blocks of {block_len}: {e}"));
    }
    let page = |from, to| Mutant { file: "page.h", from, to };
    let mutants = [
        mutant("if (largest >= 0x7f800000u) return 0x7fc00000u;", ""),
        mutant("if (largest == 0) return 0x3f800000u;", ""),
        mutant("(largest + 0x1fffffu)", "largest"),
        mutant("0x1fffffu) >> 23) - 8", "0x1fffffu) >> 23) - 7"),
        mutant("- 8, 27);", "- 8, 20);"),
        mutant("0x7ffffu + ((magnitude >> 20) & 1)", "0x7ffffu"),
        mutant("0x7ffffu + ((magnitude >> 20) & 1)", "0x80000u"),
        mutant("magnitude < 0x3c800000u ? small : large", "large"),
        mutant("| ((bits >> 24) & 0x80)", ""),
        page("return (col & 12) | ((col & 1) << 1) | ((col >> 1) & 1);", "return col;"),
        page("+ PAGE_ROWS * (u32)rank + page_chunk", "+ page_chunk"),
        page(
            "4 * (slot % PAGE_ROWS * (u32)groups + (u32)group)",
            "4 * (slot % PAGE_ROWS + PAGE_ROWS * (u32)group)",
        ),
        page("2 * rope + rank + 3) & ~3", "2 * rope + rank)"),
        mutant("(int)shfl_xor_u(largest, mask)", "0"),
        mutant("group * GROUP_COLS < p.rank", "(group + 1) * GROUP_COLS <= p.rank"),
        mutant("group += THREADS / 32) write_group", "group += 8) write_group"),
        mutant("tid() + (CACHE == CACHE_FP8 ? p.rank : 0)", "tid()"),
    ];
    all_are_found(&mutants, |module| {
        writes_fp8(module, odd, 5, false).and_then(|()| writes_fp8(module, pages, 64, true))
    });
}

// ---- the query's rotary part

#[test]
fn queries_of_latent_rows_are_rotated() {
    let steps = Steps::new(&[(2, 3, false), (0, 4, true), (7, 2, false)], 5);
    let (d, n) = (ODD, 9);
    let (width, stride) = (d.n_heads * d.qk_head_dim(), d.n_heads * d.qk_head_dim() + 5);
    let mut b = begin(Mode::all()[0], None, Precision::Bf16, &steps, d);
    let wide = noise(n * stride, 8);
    let q = b.upload(&wide).unwrap();
    let w_uk = vec![0; 4 * d.kv_lora_rank * d.qk_nope_head_dim];
    let w_uk = Matrix::new(DType::F32, &w_uk, [d.kv_lora_rank, d.qk_nope_head_dim], None).unwrap();
    let w_uk = b.pack(&[w_uk.into()], Precision::Bf16).unwrap();
    let mut out = b.upload(&vec![9.0; n * d.n_heads * d.latent_width()]).unwrap();
    let q = View::columns(&q, 5, stride);
    super::rotate_query(&b, &AbsorbQuery { q, w_uk: &w_uk, out: &mut out, dims: d }).unwrap();

    let mut want = vec![9.0; n * d.n_heads * d.latent_width()];
    let Rope { inv_freq, scale } = rope(d.qk_rope_head_dim);
    for (t, &position) in steps.positions.iter().enumerate().filter(|(t, _)| !(3..7).contains(t)) {
        let angles = inv_freq.iter().map(|f| position as f32 * f);
        let cos_sin: Vec<f32> = angles.flat_map(|a| [a.cos() * scale, a.sin() * scale]).collect();
        for h in 0..d.n_heads {
            let q = &wide[5 + t * stride..][..width][h * d.qk_head_dim()..][..d.qk_head_dim()];
            let out = &mut want[(t * d.n_heads + h) * d.latent_width()..][d.kv_lora_rank..];
            out[..d.qk_rope_head_dim].copy_from_slice(&q[d.qk_nope_head_dim..]);
            rotate_pairs(&mut out[..d.qk_rope_head_dim], &cos_sin);
        }
    }
    let error = error(&outcome(&b, &out).unwrap(), &want);
    assert!(error <= 1e-6, "off by {error}");
}

// ---- copies of blocks

fn copies(
    module: Option<&Module>,
    (precision, cache): (Precision, CacheFormat),
    width: usize,
    block_len: usize,
) -> Result<(), String> {
    let d = MlaDims { kv_lora_rank: width - 2, qk_rope_head_dim: 2, ..ODD };
    let mut steps = Steps::new(&[(0, 1, false); 4], block_len);
    steps.copies = vec![(1, 3), (3, 2), (2, 4), (1, 2)];
    for mode in Mode::all() {
        let mut b = begin(mode, module, precision, &steps, ODD).with_cache(cache);
        let mut arena = b.arena(3, &steps.limits, &d).unwrap();
        let block_bytes = block_len * cache.row_bytes(precision, &d);
        let mut want: Vec<u8> =
            noise(arena_bytes(&b, &arena).len(), 9).iter().map(|x| (x * 100.0) as i8 as u8).collect();
        b.device.write(arena.held.get(), 0, &want).unwrap();
        b.copy_blocks(CopyBlocks { arena: &mut arena }).unwrap();
        b.flush().map_err(|e| e.to_string())?;
        for layer in want.chunks_mut(steps.limits.n_blocks * block_bytes) {
            let mut floats: Vec<f32> = layer.iter().map(|x| f32::from(*x)).collect();
            copy_blocks_reference(&mut floats, block_bytes, &steps.copies);
            layer.iter_mut().zip(floats).for_each(|(x, f)| *x = f as u8);
        }
        if arena_bytes(&b, &arena) != want {
            return Err(format!("other bytes in {mode:?}"));
        }
    }
    Ok(())
}

#[test]
fn copies_of_copies_come_out_in_order() {
    let [bf16, f32, fp8] = [
        (Precision::Bf16, CacheFormat::Plain),
        (Precision::F32, CacheFormat::Plain),
        (Precision::Bf16, CacheFormat::Fp8),
    ];
    for (format, width, block_len) in
        [(bf16, 3, 1), (bf16, 28, 5), (f32, 28, 5), (bf16, 64, 64), (fp8, 28, 5), (fp8, 130, 64)]
    {
        copies(None, format, width, block_len).unwrap_or_else(|e| panic!("{width} x {block_len}: {e}"));
    }
    let mutants = [
        mutant("if (place >= p.block_bytes) return;", ""),
        mutant(
            "for (int i = 0; i < n; i++) {\n        v2 pair",
            "for (int i = n - 1; i >= 0; i--) {\n        v2 pair",
        ),
        mutant("+ cta_y() * p.layer_bytes", ""),
    ];
    all_are_found(&mutants, |module| copies(module, bf16, 28, 5));
}
