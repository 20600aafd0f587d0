// How a matrix W [rows, cols] of weights lies on the device (gemm/pack.rs writes it).
//
// f32: row-major, as it is.
// bf16 and fp8: panels of 16 rows; a panel is a run of units of 32 columns; rows and columns are padded with zeros. A unit
// is the A operand of two mma.m16n8k16 (columns 0..15, then 16..31) with each lane's part in one piece, so that a warp
// fetches it with 16 bytes a lane, one piece after another, and nothing is rearranged:
//   bf16, 1024 bytes: the registers a[4] of the first mma, 16 bytes a lane, then those of the second
//   fp8, 512 bytes: 16 bytes a lane, eight for each mma. Of a word of four bytes, 0 and 2 are the even register's pair, 1
//   and 3 the odd one's: then no byte is moved to widen them. e4m3, but never its NaN: pack keeps such a matrix in bf16.
// fp8 has scales: f32 [2 panels, div_up(cols, 128)], one for 8 rows x 128 columns.
//
// Gate and up of a gated MLP (gated weights, bf16 and fp8) take turns by 8 rows: rows 0..7 of panel p are gate rows
// 8 p .. 8 p + 7, rows 8..15 the same rows of up. So a lane that has a gate value in d[0] has its up value in d[2].
// In f32 all rows of gate come first, then those of up.
#pragma once

#include "fp8.h"

#define WEIGHT_F32 0
#define WEIGHT_BF16 1
#define WEIGHT_FP8 2

#define PANEL_ROWS 16
#define UNIT_COLS 32
// Columns that share an fp8 scale.
#define SCALE_COLS 128

DEV int unit_lane(int row, int col) { return (row & 7) * 4 + ((col & 7) >> 1); }
// Register of the mma that holds (row, col), 0 to 3.
DEV int unit_reg(int row, int col) { return ((row >> 3) & 1) | ((col >> 2) & 2); }

// Byte offsets of element (row, col) from the matrix's first; `units` a panel.
DEV u64 weight_unit(int row, int col, int units) { return (u64)(row / PANEL_ROWS) * (u64)units + (u64)(col / UNIT_COLS); }
DEV u64 weight_at_bf16(int row, int col, int units) {
    int in_unit = ((col >> 4) & 1) * 512 + unit_lane(row, col) * 16 + unit_reg(row, col) * 4 + (col & 1) * 2;
    return weight_unit(row, col, units) * 1024 + (u64)in_unit;
}
DEV u64 weight_at_fp8(int row, int col, int units) {
    int reg = unit_reg(row, col);
    int in_unit = unit_lane(row, col) * 16 + ((col >> 4) & 1) * 8 + (reg >> 1) * 4 + (reg & 1) + (col & 1) * 2;
    return weight_unit(row, col, units) * 512 + (u64)in_unit;
}

// Element (row, col) of a matrix of any kind; `units` a panel, `cols` as they are without padding.
DEV float weight_f(int kind, const void *w, const void *scales, int row, int col, int cols, int units) {
    if (kind == WEIGHT_F32) return ldg_f((const float *)w + (u64)row * (u64)cols + (u64)col);
    if (kind == WEIGHT_BF16) return bf16_f(ldg_u16((const u8 *)w + weight_at_bf16(row, col, units)));
    int scale = (row >> 3) * div_up(cols, SCALE_COLS) + col / SCALE_COLS;
    return fp8_f(ldg_u8((const u8 *)w + weight_at_fp8(row, col, units))) * ldg_f((const float *)scales + scale);
}
