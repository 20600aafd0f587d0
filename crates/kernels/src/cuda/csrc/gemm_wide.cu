// Products for many tokens: 128 rows x 128 tokens a block, x in operand order. A warp has 32 rows x 64 tokens: of each unit
// it reads 2 KB of weights and 4 KB of x from shared memory for 32 mma, so that both take about as long. Sums of a segment
// and of those before it: 128 registers, one block an SM.
#include "dev.h"
#include "gemm.h"

#define WIDE_PANELS 8
#define WIDE_ROWS 128
// A stage: two units of W, then two of x. One barrier for 64 mma of each warp.
#define WIDE_STAGES 3
#define WIDE_STAGE 32768
#define WIDE_UNIT 8192

// Starts copying stage s, four pieces a thread of each operand. `w` and `x`: the thread's first two pieces of a unit each.
DEV void wide_copy(const u8 *const (&w)[2], const u8 *const (&x)[2], int s, int units, u32 stage) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int unit = 2 * s + i / 2;
        u32 to = stage + i / 2 * WIDE_UNIT + (tid() + i % 2 * 256) * 16;
        cp16(to, w[i % 2] + (u64)unit * 1024, w[i % 2] && unit < units);
        cp16(to + 2 * WIDE_UNIT, x[i % 2] + (u64)unit * 64, x[i % 2] && unit < units);
    }
}

// `stage`: where the unit of W begins.
DEV void wide_multiply(u32 stage, float (&d)[2][8][4]) {
    u32 a[2][2][4];
    u32 at = stage + (warp() & 3) * 2048 + lane() * 16;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v4 x = lds_v4(at + i * 512);
        u32(&to)[4] = a[i >> 1][i & 1];
        to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
    }
    at = stage + 2 * WIDE_UNIT + (warp() >> 2) * 4096 + lane() * 16;
#pragma unroll
    for (int t = 0; t < 8; t++) {
        v4 b = lds_v4(at + t * 512);
#pragma unroll
        for (int i = 0; i < 2; i++) mma_bf16(d[i][t], a[i][0], b.x, b.y);
#pragma unroll
        for (int i = 0; i < 2; i++) mma_bf16(d[i][t], a[i][1], b.z, b.w);
    }
}

DEV void wide_add(float (&sum)[2][8][4], float (&d)[2][8][4]) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int t = 0; t < 8; t++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                sum[i][t][j] += d[i][t][j];
                d[i][t][j] = 0.0f;
            }
}

KERNEL(256, 1, smxx_bf16_product_wide, ProductParams) {
    grid_dep_wait();
    ProductTile tile = product_tile(p, WIDE_ROWS);
    if (product_empty(p, tile, WIDE_ROWS)) return;
    int first_panel = tile.block * WIDE_PANELS;
    const u8 *w[2], *x[2];
    for (int i = 0; i < 2; i++) {
        int piece = tid() + i * 256, panel = first_panel + piece / 64, row = piece / 4;
        const u8 *matrix = (const u8 *)p.w + (u64)tile.matrix * p.w_bytes;
        w[i] = panel < p.panels ? matrix + (u64)panel * (u64)p.units * 1024 + piece % 64 * 16 : 0;
        x[i] = 0;
        if (product_has(p, tile, row)) x[i] = (const u8 *)((const u16 *)p.x + product_x(p, tile, row)) + piece % 4 * 16;
    }
    int stages = div_up(p.units, 2);
    for (int s = 0; s < WIDE_STAGES - 1; s++) {
        if (s < stages) wide_copy(w, x, s, p.units, smem_base() + s * WIDE_STAGE);
        cp_commit();
    }
    float d[2][8][4] = {}, sum[2][8][4] = {};
    bool busy = (warp() >> 2) * 64 < tile.n; // half of the warps may have no rows
    int segment = 0, end = product_segment(1, p.segments, p.units, 1);
    u32 stage = 0, refill = WIDE_STAGES - 1;
    for (int s = 0; s < stages; s++) {
        cp_wait<WIDE_STAGES - 2>();
        bar_sync(); // all copies are there, and all have read the stage that is refilled
        if (s + WIDE_STAGES - 1 < stages) wide_copy(w, x, s + WIDE_STAGES - 1, p.units, smem_base() + refill * WIDE_STAGE);
        cp_commit();
        for (int unit = 2 * s; busy && unit < min_i(2 * s + 2, p.units); unit++) {
            wide_multiply(smem_base() + stage * WIDE_STAGE + (unit & 1) * WIDE_UNIT, d);
            if (unit + 1 < end) continue;
            wide_add(sum, d);
            segment++;
            end = product_segment(segment + 1, p.segments, p.units, 1);
        }
        refill = stage;
        stage = stage + 1 == WIDE_STAGES ? 0 : stage + 1;
    }
    if (!busy) return;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int t = 0; t < 8; t++)
            product_finish(p, tile, first_panel + (warp() & 3) * 2 + i, (warp() >> 2) * 64 + t * 8, sum[i][t]);
}
