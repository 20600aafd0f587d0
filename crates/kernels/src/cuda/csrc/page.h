// Where a latent row lies in a layer of the arena. Rows one after another in general ("plain"); where width is a multiple
// of 64, blocks of 64 rows and elements bf16 ("tiled"), a page of 64 rows is width / 64 column tiles of 64 rows x 128 B, in
// which 16-byte chunk c of row r lies at chunk c ^ (r % 8): what ldmatrix reads without conflicts, wgmma takes as its
// 128-byte swizzle, and one bulk copy brings whole.
#pragma once

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
