// Where a latent row lies in a layer of the arena. Rows one after another in general ("plain"); where width is a multiple
// of 64, blocks of 64 rows and elements bf16 ("tiled"), a page of 64 rows is width / 64 column tiles of 64 rows x 128 B, in
// which 16-byte chunk c of row r lies at chunk c ^ (r % 8): what ldmatrix reads without conflicts, wgmma takes as its
// 128-byte swizzle, and one bulk copy brings whole.
//
// Of fp8 (cache.rs), plain, a row is f32 scales [rank / 128, rounded up], bf16 rotary numbers [rope], e4m3 numbers [rank], and
// what fills the last word. Tiled (rank a multiple of 128, rope of 64), a page of 64 rows is as many bytes: numbers [rank / 16],
// each 64 rows x 16 B, so that threads side by side widen rows side by side; rotary column tiles as above; scales [64, rank / 128].
#pragma once

#include "fp8.h"

#define PAGE_ROWS 64
#define TILE_BYTES 8192

// Byte offset of the 16-byte chunk that holds columns 8 chunk .. 8 chunk + 7.
DEV u32 page_chunk(int row, int chunk) {
    return (u32)(chunk >> 3) * TILE_BYTES + (u32)row * 128 + (u32)(((chunk & 7) ^ (row & 7)) * 16);
}
// Byte offset of a number in a layer.
DEV u64 tiled_at(u32 slot, int col, int width) {
    return (u64)(slot / PAGE_ROWS) * (u64)(PAGE_ROWS * width * 2) + page_chunk((int)(slot % PAGE_ROWS), col >> 3) +
           (u32)(col & 7) * 2;
}
DEV u64 plain_at(u32 slot, int col, int width, int size) { return ((u64)slot * (u64)width + (u64)col) * (u64)size; }

// Columns that share a scale.
#define GROUP_COLS 128

// Place of a column among 16.
DEV int fp8_place(int col) { return (col & 12) | ((col & 1) << 1) | ((col >> 1) & 1); }

DEV int fp8_row_bytes(int rank, int rope) { return (4 * div_up(rank, GROUP_COLS) + 2 * rope + rank + 3) & ~3; }

// Byte offsets in a layer of fp8.
struct Fp8Layer {
    int rank, rope, tiled;

    DEV_MEMBER u64 row(u32 slot) const { return (u64)slot * (u64)fp8_row_bytes(rank, rope); }
    DEV_MEMBER u64 page(u32 slot) const { return row(slot / PAGE_ROWS * PAGE_ROWS); }
    DEV_MEMBER u64 scale(u32 slot, int group) const {
        int groups = div_up(rank, GROUP_COLS);
        if (!tiled) return row(slot) + 4 * (u32)group;
        return page(slot) + PAGE_ROWS * (u32)(rank + 2 * rope) + 4 * (slot % PAGE_ROWS * (u32)groups + (u32)group);
    }
    DEV_MEMBER u64 rotary(u32 slot, int col) const {
        if (!tiled) return row(slot) + 4 * (u32)div_up(rank, GROUP_COLS) + 2 * (u32)col;
        return page(slot) + PAGE_ROWS * (u32)rank + page_chunk((int)(slot % PAGE_ROWS), col >> 3) + 2 * (u32)(col & 7);
    }
    DEV_MEMBER u64 number(u32 slot, int col) const {
        if (!tiled) return row(slot) + 4 * (u32)div_up(rank, GROUP_COLS) + 2 * (u32)rope + (u32)col;
        return page(slot) + (u32)(col >> 4) * (PAGE_ROWS * 16) + slot % PAGE_ROWS * 16 + (u32)fp8_place(col & 15);
    }
};

// 16 numbers of a group in two chunks of bf16, where bytes 1 and 2 of each word have changed places: see fp8_place.
DEV void widen_chunks(const v4 &x, u32 scale, v4 &lo, v4 &hi) {
    u32 both = (scale & 0xffff0000u) | (scale >> 16); // exact in bf16, a power of two or NaN
    widen_fp8(x.x, lo.x, lo.y);
    widen_fp8(x.y, lo.z, lo.w);
    widen_fp8(x.z, hi.x, hi.y);
    widen_fp8(x.w, hi.z, hi.w);
    lo = {mul_bf16x2(lo.x, both), mul_bf16x2(lo.y, both), mul_bf16x2(lo.z, both), mul_bf16x2(lo.w, both)};
    hi = {mul_bf16x2(hi.x, both), mul_bf16x2(hi.y, both), mul_bf16x2(hi.z, both), mul_bf16x2(hi.w, both)};
}

#define CACHE_F32 0
#define CACHE_BF16 1
#define CACHE_FP8 2

// Number `col` of a row of a layer.
template <int CACHE> DEV float cached(const void *layer, u32 slot, int col, int rank, int rope, int tiled) {
    const u8 *from = (const u8 *)layer;
    int width = rank + rope;
    if (CACHE == CACHE_F32) return ldg_f(from + plain_at(slot, col, width, 4));
    if (CACHE == CACHE_BF16) return bf16_f(ldg_u16(from + (tiled ? tiled_at(slot, col, width) : plain_at(slot, col, width, 2))));
    Fp8Layer at = {rank, rope, tiled};
    if (col >= rank) return bf16_f(ldg_u16(from + at.rotary(slot, col - rank)));
    return fp8_f(ldg_u8(from + at.number(slot, col))) * ldg_f(from + at.scale(slot, col / GROUP_COLS));
}
