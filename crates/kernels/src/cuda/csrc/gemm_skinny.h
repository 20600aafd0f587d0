// Products for few tokens: decoding is bound by the bytes of W.
//
// A block is 8 warps: `segments` of the columns times 8 / segments groups of PANELS row panels. Each warp streams its own
// part of W and x through its own ring in shared memory (no barrier in the loop): a lane copies the very 16 bytes of W that
// it will feed to mma, in the order in which they lie. Shared memory, and not registers, because what is under way then
// costs no registers: 96 KB a block, two blocks an SM, of which all but one stage of each ring is in flight: 80 KB at PANELS
// = 4 and 8 tokens (64 KB of it weights), where 3.35 TB/s x 600 ns / 132 SMs = 15 KB is the least that keeps HBM busy.
//
// A block reads all of x besides its panels of W. With few panels that would be most of what it reads: so 4 where there
// are enough panels for all SMs, 1 where there are not.
//
// Weights do not depend on what the launch before has written: their first copies start before anything else is read.
//
// No split of the columns over blocks: the shapes of these models have 128 panels and more, and partial sums of 64 tokens
// would move as many bytes as the weights.
#pragma once

#include "gemm.h"

#define SKINNY_WARPS 8
#define SKINNY_WARP_BYTES 12288

template <int NT, int PANELS, bool FP8, bool X_F32> struct Skinny {
    static constexpr int W_UNIT = FP8 ? 512 : 1024;
    static constexpr int X_UNIT = X_F32 ? 1024 : 512; // of 8 rows
    static constexpr int X_COPIES = X_F32 ? 2 * NT : NT;
    static constexpr u32 NO_ROW = 0xffffffffu;
    static constexpr int STAGE = PANELS * W_UNIT + NT * X_UNIT;
    static constexpr int STAGES = SKINNY_WARP_BYTES / STAGE < 8 ? SKINNY_WARP_BYTES / STAGE : 8;
    static_assert(STAGES >= 2, "a ring of one stage");
    static_assert(PANELS * NT * 512 <= SKINNY_WARP_BYTES, "sums must fit into the ring");

    const u8 *w;              // the lane's part of the warp's first panel
    u64 pitch;                // from panel to panel
    int panels;               // that there are, at most PANELS
    u32 x[X_COPIES];          // what the lane copies of the rows: 16-byte pieces before it, or NO_ROW
    u32 ring;

    // Starts copying the weights of unit u.
    DEV_MEMBER void copy_weights(int u, u32 stage) const {
        for (int i = 0; i < PANELS; i++) {
            const u8 *from = w + (u64)i * pitch + (u64)u * W_UNIT;
            u32 to = stage + i * W_UNIT + lane() * 16;
            cp16(to, from, i < panels);
            if (!FP8) cp16(to + 512, from + 512, i < panels);
        }
    }

    // Starts copying the rows' part of unit u.
    DEV_MEMBER void copy_rows(const ProductParams &p, int u, u32 stage) const {
        stage += PANELS * W_UNIT;
        for (int i = 0; i < X_COPIES; i++) {
            const v4 *from = (const v4 *)p.x + ((u64)x[i] + (u32)(u * (X_F32 ? 8 : 4)));
            if (X_F32) {
                // 8 lanes a row: whole lines. Chunk c of row r lies at c ^ 2 (r % 4): 4 rows x 32 bytes in all banks.
                int row = 4 * i + (lane() >> 3), chunk = lane() & 7;
                u32 to = stage + row * 128 + ((chunk ^ ((row & 3) * 2)) * 16);
                cp16(to, from, x[i] != NO_ROW && u * UNIT_COLS + chunk * 4 < p.cols);
            } else {
                cp16(stage + i * X_UNIT + lane() * 16, from, x[i] != NO_ROW);
            }
        }
    }

    // B of both mma for rows 8 i .. of the tile.
    DEV_MEMBER void operand(u32 stage, int i, u32 (&b)[4]) const {
        stage += PANELS * W_UNIT + i * X_UNIT;
        if (!X_F32) {
            v4 x = lds_v4(stage + lane() * 16);
            b[0] = x.x, b[1] = x.y, b[2] = x.z, b[3] = x.w;
            return;
        }
        int row = lane() >> 2, c = lane() & 3;
        for (int j = 0; j < 4; j++) {
            int chunk = (2 * j + (c >> 1)) ^ ((row & 3) * 2);
            v2 x = lds_v2(stage + row * 128 + chunk * 16 + (c & 1) * 8);
            b[j] = pack_bf16(bits_f(x.x), bits_f(x.y));
        }
    }

    // A of both mma for panel i.
    DEV_MEMBER void weights(u32 stage, int i, u32 (&a)[2][4]) const {
        u32 at = stage + i * W_UNIT + lane() * 16;
        v4 x = lds_v4(at);
        if (FP8) {
            widen_fp8(x.x, a[0][0], a[0][1]);
            widen_fp8(x.y, a[0][2], a[0][3]);
            widen_fp8(x.z, a[1][0], a[1][1]);
            widen_fp8(x.w, a[1][2], a[1][3]);
            return;
        }
        v4 y = lds_v4(at + 512);
        a[0][0] = x.x, a[0][1] = x.y, a[0][2] = x.z, a[0][3] = x.w;
        a[1][0] = y.x, a[1][1] = y.y, a[1][2] = y.z, a[1][3] = y.w;
    }

    DEV_MEMBER void multiply(u32 stage, float (&d)[PANELS][NT][4]) const {
        u32 b[NT][4];
#pragma unroll
        for (int t = 0; t < NT; t++) operand(stage, t, b[t]);
#pragma unroll
        for (int i = 0; i < PANELS; i++) {
            u32 a[2][4];
            weights(stage, i, a);
#pragma unroll
            for (int t = 0; t < NT; t++) mma_bf16(d[i][t], a[0], b[t][0], b[t][1]);
#pragma unroll
            for (int t = 0; t < NT; t++) mma_bf16(d[i][t], a[1], b[t][2], b[t][3]);
        }
    }

    // sum += scale * d, d = 0: the 128 columns that end with unit u.
    DEV_MEMBER void scale(const ProductParams &p, const float *scales, int u, float (&d)[PANELS][NT][4],
                   float (&sum)[PANELS][NT][4]) const {
        int blocks = div_up(p.cols, SCALE_COLS);
#pragma unroll
        for (int i = 0; i < PANELS; i++) {
            const float *at = scales + 2 * i * blocks + u / 4;
            float s[2] = {i < panels ? ldg_f(at) : 0.0f, i < panels ? ldg_f(at + blocks) : 0.0f};
#pragma unroll
            for (int t = 0; t < NT; t++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    sum[i][t][j] = fma_f(s[j >> 1], d[i][t][j], sum[i][t][j]);
                    d[i][t][j] = 0.0f;
                }
        }
    }

    // Finds the lane's part of the rows.
    DEV_MEMBER void find_rows(const ProductParams &p, const ProductTile &tile) {
        for (int i = 0; i < X_COPIES; i++) {
            int row = X_F32 ? 4 * i + (lane() >> 3) : 8 * i + (lane() >> 2);
            x[i] = NO_ROW;
            if (!product_has(p, tile, row)) continue;
            x[i] = (u32)(product_x(p, tile, row) / (X_F32 ? 4 : 8)) + (X_F32 ? lane() & 7 : lane() & 3);
        }
    }

    // `tile_rows`: that the tile of a dense product may have, whose rows are not known yet.
    DEV_MEMBER void run(const ProductParams &p, ProductTile tile, int tile_rows) {
        int groups = SKINNY_WARPS / p.segments, segment = warp() / groups;
        int block_panel = tile.block * groups * PANELS, first_panel = block_panel + warp() % groups * PANELS;
        pitch = (u64)p.units * W_UNIT;
        panels = max_i(0, min_i(PANELS, p.panels - first_panel));
        w = (const u8 *)p.w + (u64)tile.matrix * p.w_bytes + (u64)first_panel * pitch + lane() * 16;
        const float *scales = 0;
        if (FP8) scales = (const float *)p.scales + ((u64)tile.matrix * p.panels + first_panel) * 2 * div_up(p.cols, SCALE_COLS);
        ring = smem_base() + warp() * SKINNY_WARP_BYTES;
        int unit = product_segment(segment, p.segments, p.units, FP8 ? 4 : 1);
        int end = product_segment(segment + 1, p.segments, p.units, FP8 ? 4 : 1);
        for (int s = 0; s < STAGES - 1; s++)
            if (unit + s < end) copy_weights(unit + s, ring + s * STAGE);
        if (!p.tiles) {
            grid_dep_wait();
            tile.n = product_rows(p, tile, tile_rows);
            if (product_empty(p, tile, tile_rows)) {
                cp_commit();
                cp_wait<0>();
                return;
            }
        }
        find_rows(p, tile);
        for (int s = 0; s < STAGES - 1; s++) {
            if (unit + s < end) copy_rows(p, unit + s, ring + s * STAGE);
            cp_commit();
        }
        float d[PANELS][NT][4] = {}, sum[PANELS][NT][4] = {};
        u32 stage = 0, refill = STAGES - 1;
        for (; unit < end; unit++) {
            cp_wait<STAGES - 2>();
            warp_sync(); // all lanes' copies are there, and all have read the stage that is refilled
            if (unit + STAGES - 1 < end) {
                copy_weights(unit + STAGES - 1, ring + refill * STAGE);
                copy_rows(p, unit + STAGES - 1, ring + refill * STAGE);
            }
            cp_commit();
            multiply(ring + stage * STAGE, d);
            if (FP8 && ((unit & 3) == 3 || unit + 1 == end)) scale(p, scales, unit, d, sum);
            refill = stage;
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        add_segments(p, tile, block_panel, FP8 ? sum : d);
    }

    // Sums of the segments, through the rings, in their order.
    DEV_MEMBER void add_segments(const ProductParams &p, const ProductTile &tile, int block_panel,
                          const float (&d)[PANELS][NT][4]) const {
        int groups = SKINNY_WARPS / p.segments;
        warp_sync();
#pragma unroll
        for (int i = 0; i < PANELS; i++)
#pragma unroll
            for (int t = 0; t < NT; t++) {
                v4 bits = {f_bits(d[i][t][0]), f_bits(d[i][t][1]), f_bits(d[i][t][2]), f_bits(d[i][t][3])};
                sts_v4(ring + (i * NT + t) * 512 + lane() * 16, bits);
            }
        bar_sync();
        for (int f = warp(); f < groups * PANELS * NT; f += SKINNY_WARPS) {
            int group = f / (PANELS * NT), in_group = f % (PANELS * NT);
            float sum[4] = {};
            for (int s = 0; s < p.segments; s++) {
                u32 at = smem_base() + (s * groups + group) * SKINNY_WARP_BYTES + in_group * 512 + lane() * 16;
                v4 part = lds_v4(at);
                sum[0] += bits_f(part.x), sum[1] += bits_f(part.y), sum[2] += bits_f(part.z), sum[3] += bits_f(part.w);
            }
            product_finish(p, tile, block_panel + group * PANELS + in_group / NT, in_group % NT * 8, sum);
        }
    }
};

// As few columns of B as the rows of the tile need.
template <int NT_MAX, int PANELS, bool FP8, bool X_F32> DEV void skinny(const ProductParams &p) {
    constexpr int ROWS = NT_MAX * 8;
    ProductTile tile = product_dense(ROWS);
    int eights = p.eights;
    if (p.tiles) {
        grid_dep_wait();
        tile = product_expert(p);
        eights = div_up(tile.n, 8);
        if (eights == 0) return;
    }
    if (eights <= 1) Skinny<1, PANELS, FP8, X_F32>().run(p, tile, ROWS);
    else if (eights <= 2) Skinny<2, PANELS, FP8, X_F32>().run(p, tile, ROWS);
    else if constexpr (NT_MAX > 2) Skinny<NT_MAX, PANELS, FP8, X_F32>().run(p, tile, ROWS);
}
