// Keys and values of all heads from the latent rows of a chunk, on tensor cores: bf16, tiled arena.
// expanded: [heads, tiles], each 64 keys: their nope columns, then their value columns, as the column tiles of page.h
// ropes: [tiles], each a column tile.
// Keys beyond the sequence have zeros for values: their weight is zero, and zero times what is there may be NaN.
#include "dev.h"
#include "page.h"
#include "step.h"
#include "weights.h"

#include "prefill.h"

#define THREADS 256
#define WARPS (THREADS / 32)
#define COLS 32 // of a warp's tile: two panels of the weight
#define SCALE_UNITS (SCALE_COLS / UNIT_COLS)

// The page of the block's keys.
template <bool CACHE8> DEV const u8 *key_page(const ExpandParams &p, int position) {
    u32 slot = step_block(p.step, p.row, position, p.block_len) * p.block_len + (u32)(position % p.block_len);
    int row_bytes = CACHE8 ? fp8_row_bytes(p.rank, p.rope) : (p.rank + p.rope) * 2;
    return (const u8 *)p.layer + (u64)(slot / PAGE_ROWS) * (u64)(PAGE_ROWS * row_bytes);
}

// The latent columns of the page's first n rows into shared memory, and zeros below them.
DEV void copy_page(const ExpandParams &p, const u8 *page, int n) {
    for (int i = tid(); i < p.rank * (PAGE_ROWS / 8); i += THREADS) {
        bool there = ((i >> 3) & (PAGE_ROWS - 1)) < n;
        cp16(smem_base() + 16 * i, page + 16 * i, there);
    }
    cp_commit();
}

// The same of fp8: a thread has a row, and 16 of its columns at a time.
DEV void widen_page(const ExpandParams &p, const u8 *page, int n) {
    int row = tid() % PAGE_ROWS;
    const u8 *scales = page + PAGE_ROWS * (p.rank + 2 * p.rope) + row * (p.rank / GROUP_COLS) * 4;
#pragma unroll 4
    for (int i = tid() / PAGE_ROWS; i < p.rank / 16; i += THREADS / PAGE_ROWS) {
        v4 lo = {0, 0, 0, 0}, hi = lo;
        if (row < n) {
            v4 x = ldg_v4(page + (i * PAGE_ROWS + row) * 16);
            widen_chunks(x, ldg_u(scales + i / (GROUP_COLS / 16) * 4), lo, hi);
        }
        sts_v4(smem_base() + page_chunk(row, 2 * i), lo);
        sts_v4(smem_base() + page_chunk(row, 2 * i + 1), hi);
    }
}

// The two panels' parts of a unit: as they lie, 16 bytes a lane for each half of bf16, or for all of fp8.
template <bool FP8> DEV void load_unit(v4 (&w)[2][2], const u8 *panels, int units, int unit) {
    const int bytes = FP8 ? 512 : 1024;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const u8 *from = panels + ((u64)i * units + unit) * bytes + lane() * 16;
        w[i][0] = ldg_v4_stream(from);
        if (!FP8) w[i][1] = ldg_v4_stream(from + 512);
    }
}

// Registers of the half's A operand: rows 0..7 and 8..15 of a panel, which are B operands of eight columns here.
template <bool FP8> DEV v4 operand(const v4 (&w)[2], int half) {
    if (!FP8) return w[half];
    v4 out;
    widen_fp8(half ? w[0].z : w[0].x, out.x, out.y);
    widen_fp8(half ? w[0].w : w[0].y, out.z, out.w);
    return out;
}

// 64 keys x COLS columns: sums[keys / 16][cols / 8]. Shared memory: the page's latent columns.
template <bool FP8>
DEV void multiply(float (&sums)[4][4][4], const u8 *panels, const float *scales, int units) {
    v4 w[2][2];
    load_unit<FP8>(w, panels, units, 0);
    int row = (lane() & 7) + (lane() & 8), scale_cols = div_up(units, SCALE_UNITS);
    float part[4][4][4];
    for (int unit = 0; unit < units; unit++) {
        v4 now[2][2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            now[i][0] = w[i][0];
            if (!FP8) now[i][1] = w[i][1];
        }
        if (unit + 1 < units) load_unit<FP8>(w, panels, units, unit + 1);
        bool starts = FP8 && unit % SCALE_UNITS == 0;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            v4 b[2];
#pragma unroll
            for (int i = 0; i < 2; i++) b[i] = operand<FP8>(now[i], half);
            int chunk = (unit & 1) * 4 + half * 2 + (lane() >> 4);
            u32 at = smem_base() + (u32)(unit >> 1) * TILE_BYTES + row * 128 + ((chunk ^ (row & 7)) * 16);
#pragma unroll
            for (int m = 0; m < 4; m++) {
                u32 a[4];
                ldsm4(a, at + m * 16 * 128);
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    const v4 &x = b[n >> 1];
                    float(&sum)[4] = FP8 ? part[m][n] : sums[m][n];
                    if (starts && half == 0) sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
                    mma_bf16(sum, a, n & 1 ? x.y : x.x, n & 1 ? x.w : x.z);
                }
            }
        }
        if (FP8 && (unit % SCALE_UNITS == SCALE_UNITS - 1 || unit + 1 == units)) {
#pragma unroll
            for (int n = 0; n < 4; n++) {
                float scale = ldg_f(scales + n * scale_cols + unit / SCALE_UNITS);
#pragma unroll
                for (int m = 0; m < 4; m++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) sums[m][n][i] = fma_f(part[m][n][i], scale, sums[m][n][i]);
                }
            }
        }
    }
}

// The chunks from `first` on of 64 keys. Lanes side by side swap a word of two chunks, so that each has two of one, and a
// key's two chunks fill a sector.
DEV void store(const float (&sums)[4][4][4], u8 *out, int first) {
    int odd = lane() & 1;
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float *low = &sums[i >> 1][2 * pair][2 * (i & 1)], *high = &sums[i >> 1][2 * pair + 1][2 * (i & 1)];
            u32 own[2] = {pack_bf16(low[0], low[1]), pack_bf16(high[0], high[1])};
            u32 other = shfl_xor_u(odd ? own[0] : own[1], 1);
            u8 *to = out + page_chunk(8 * i + (lane() >> 2), first + 2 * pair + odd) + (lane() & 2) * 4;
            stg_v2(to, odd ? v2{other, own[1]} : v2{own[0], other});
        }
    }
}

template <bool FP8, bool CACHE8> DEV void expand(const ExpandParams &p) {
    int tile = cta_x(), head = cta_y(), n = min_i(PAGE_ROWS, p.keys - tile * PAGE_ROWS);
    const u8 *page = key_page<CACHE8>(p, p.first + tile * PAGE_ROWS);
    if constexpr (CACHE8) widen_page(p, page, n);
    else copy_page(p, page, n);
    if (head == 0) {
        const u8 *from = page + PAGE_ROWS * p.rank * (CACHE8 ? 1 : 2);
        u8 *to = (u8 *)p.ropes + (u64)tile * TILE_BYTES;
        for (int i = tid(); i < TILE_BYTES / 16; i += THREADS) stg_v4(to + 16 * i, ldg_v4(from + 16 * i));
    }
    cp_wait<0>();
    bar_sync();
    int cols = p.nope + p.v, units = p.rank / UNIT_COLS, scale_cols = div_up(p.rank, SCALE_COLS);
    u8 *out = (u8 *)p.expanded + ((u64)head * p.tiles + tile) * (u64)(cols * PAGE_ROWS * 2);
    for (int first = warp() * COLS; first < cols; first += WARPS * COLS) {
        bool is_key = first < p.nope;
        int in_matrix = is_key ? first : first - p.nope;
        const u8 *w = is_key ? (const u8 *)p.w_k + head * p.k_bytes : (const u8 *)p.w_uv + head * p.v_bytes;
        const float *scales = (const float *)(is_key ? p.k_scales : p.v_scales);
        if (FP8) scales += (u64)(head * ((is_key ? p.nope : p.v) / 8) + in_matrix / 8) * scale_cols;
        float sums[4][4][4] = {};
        multiply<FP8>(sums, w + weight_unit(in_matrix, 0, units) * (FP8 ? 512 : 1024), scales, units);
        store(sums, out, first >> 3);
    }
}

// The first is the weights' precision, a second one the cache's.
KERNEL(THREADS, 2, smxx_bf16_expand, ExpandParams) { expand<false, false>(p); }
KERNEL(THREADS, 1, smxx_fp8_expand, ExpandParams) { expand<true, false>(p); }
KERNEL(THREADS, 2, smxx_bf16_expand_fp8, ExpandParams) { expand<false, true>(p); }
KERNEL(THREADS, 1, smxx_fp8_expand_fp8, ExpandParams) { expand<true, true>(p); }
