//! Mistakes planted in the kernels' sources.

use crate::ops::*;
use crate::{check_with, device, rows_of};
use kernels::cuda::sim::Mode;
use kernels::cuda::sim::mutants::{Module, Mutant, all_are_found};
use std::panic::{AssertUnwindSafe, catch_unwind};

const fn mutant(file: &'static str, from: &'static str, to: &'static str) -> Mutant {
    Mutant { file, from, to }
}

/// Compiles the kernels once for each mistake: minutes.
#[test]
#[ignore = "minutes of compiling; run after a change of these kernels"]
fn mistakes_are_found() {
    let skinny = |from, to| mutant("gemm_skinny.h", from, to);
    let wide = |from, to| mutant("gemm_wide.cu", from, to);
    let shared = |from, to| mutant("gemm.h", from, to);
    let lists = |from, to| mutant("experts.cu", from, to);
    let mutants = [
        skinny("            warp_sync(); // all", "            // all"),
        skinny("cp_wait<STAGES - 2>", "cp_wait<STAGES - 1>"),
        skinny(
            "copy_weights(unit + STAGES - 1, ring + refill",
            "copy_weights(unit + STAGES - 1, ring + stage",
        ),
        skinny(
            "copy_rows(p, unit + STAGES - 1, ring + refill",
            "copy_rows(p, unit + STAGES - 1, ring + stage",
        ),
        skinny("                cp_wait<0>();\n", ""),
        skinny("if (p.tiles) {\n        grid", "if (false) {\n        grid"),
        skinny(
            "        bar_sync();
",
            "",
        ),
        skinny(
            "        warp_sync();
#pragma",
            "#pragma",
        ),
        skinny(" && u * UNIT_COLS + chunk * 4 < p.cols", ""),
        skinny("(c >> 1)) ^ ((row & 3) * 2)", "(c >> 1)) ^ ((row & 3) * 4)"),
        skinny("(unit & 3) == 3 || ", ""),
        skinny("fma_f(s[j >> 1]", "fma_f(s[j & 1]"),
        skinny(
            "FP8 ? 4 : 1);
        for",
            "1);
        for",
        ),
        skinny("i < panels ? ldg_f(at + blocks)", "true ? ldg_f(at + blocks)"),
        wide("        bar_sync(); // all", "        // all"),
        wide("cp_wait<WIDE_STAGES - 2>", "cp_wait<WIDE_STAGES - 1>"),
        wide("end = product_segment(segment + 1", "end = product_segment(segment + 2"),
        wide("panel < p.panels ? matrix", "true ? matrix"),
        wide("if (unit + 1 < end) continue;", "if (unit + 2 < end) continue;"),
        wide("(warp() >> 2) * 64 < tile.n", "(warp() >> 2) * 64 + 8 < tile.n"),
        shared("if (i >= tile.n) return false;", ""),
        shared("    return !p.row_of || !row", "    return true || !row"),
        shared("p.finish == FINISH_ADD ? ldg_f(out) + x : x", "x"),
        shared("row + 8 < p.rows", "row < p.rows"),
        shared("if (middle < p.out_stride) ", ""),
        lists("(1u << lane()) - 1", "(2u << lane()) - 1"),
        lists("sts_u(count, sum - own)", "sts_u(count, sum)"),
        lists("        warp_sync(); // all have read", "        // all have read"),
        lists("        warp_sync(); // the counts", "        // the counts"),
        lists("sts_u(count, at + (u32)popc(same))", "sts_u(count, at)"),
        lists("tile = lists_running(own_tiles)", "tile = own_tiles"),
        lists(
            "    if (warp() == 0) lists_firsts(p, s);\n    bar_sync();",
            "    if (warp() == 0) lists_firsts(p, s);",
        ),
    ];
    let same_bits = |module: Option<&Module>| {
        for (op, format, tokens) in [
            ("linear", Format::Bf16, 3),
            ("linear", Format::Bf16, 21),
            ("linear added", Format::Bf16, 66),
            ("linear", Format::Fp8, 9),
            ("absorb_output", Format::Bf16, 33),
            ("gated_mlp", Format::Bf16, 18),
            ("gated_mlp", Format::Bf16, 70),
            ("experts", Format::Bf16, 40),
            ("experts", Format::Bf16, 400),
            ("experts", Format::Fp8, 2),
        ] {
            for sizes in [EVEN, ODD] {
                for mode in [0, 4, 8].map(|i| Mode::all()[i]) {
                    let case = || check_with(module, op, sizes, format, tokens, mode);
                    catch_unwind(AssertUnwindSafe(case)).map_err(|_| format!("{op} {format:?} {mode:?}"))?;
                }
            }
        }
        // A token alone, and among those for which the wide kernel is there.
        let bits = |which: &[usize]| {
            let mut b = device(Mode::FAST, Format::Bf16);
            module.into_iter().for_each(|module| b.device().replace(module));
            run(&mut b, "linear", EVEN, Format::Bf16, which)
        };
        let all = catch_unwind(AssertUnwindSafe(|| bits(&(0..70).collect::<Vec<_>>())));
        let all = all.map_err(|_| "refused")?;
        let alone = catch_unwind(AssertUnwindSafe(|| bits(&[5]))).map_err(|_| "refused")?;
        if rows_of(&all, 70, 5) == alone { Ok(()) } else { Err("other bits".into()) }
    };
    all_are_found(&mutants, same_bits);
}
