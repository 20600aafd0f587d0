// Products of f32 weights, row-major, of any shape and alignment. A warp has 4 rows of W and 8 of x; its lanes take turns
// along the columns, and their sums are added at last.
#include "dev.h"
#include "gemm.h"

#define F32_ROWS 4
#define F32_TOKENS 8

// Row i of the warp's in W: of gate and up two each.
DEV int f32_row(const ProductParams &p, int first, int i) {
    return p.finish == FINISH_GATED ? first / 2 + i % 2 + i / 2 * p.rows : first + i;
}

KERNEL(256, 2, smxx_f32_product, ProductParams) {
    ProductTile tile = product_tile(p, F32_TOKENS);
    if (product_empty(p, tile, F32_TOKENS)) return;
    bool gated = p.finish == FINISH_GATED;
    int first = (tile.block * 8 + warp()) * F32_ROWS;
    const float *w[F32_ROWS], *x[F32_TOKENS];
#pragma unroll
    for (int i = 0; i < F32_ROWS; i++) {
        int result = gated ? first / 2 + i % 2 : first + i;
        const u8 *matrix = (const u8 *)p.w + (u64)tile.matrix * p.w_bytes;
        w[i] = result < p.rows ? (const float *)matrix + (u64)f32_row(p, first, i) * (u64)p.cols : 0;
    }
#pragma unroll
    for (int t = 0; t < F32_TOKENS; t++) x[t] = product_has(p, tile, t) ? (const float *)p.x + product_x(p, tile, t) : 0;
    float sum[F32_ROWS][F32_TOKENS] = {};
    for (int col = lane(); col < p.cols; col += 32) {
        float row[F32_ROWS];
#pragma unroll
        for (int i = 0; i < F32_ROWS; i++) row[i] = w[i] ? ldg_f(w[i] + col) : 0.0f;
#pragma unroll
        for (int t = 0; t < F32_TOKENS; t++) {
            float value = x[t] ? ldg_f(x[t] + col) : 0.0f;
#pragma unroll
            for (int i = 0; i < F32_ROWS; i++) sum[i][t] = fma_f(row[i], value, sum[i][t]);
        }
    }
#pragma unroll
    for (int t = 0; t < F32_TOKENS; t++) {
#pragma unroll
        for (int i = 0; i < F32_ROWS; i++) sum[i][t] = warp_sum(sum[i][t]);
        if (!x[t] || lane() != t) continue;
        float *out = (float *)p.out + product_out(p, tile, t);
#pragma unroll
        for (int i = 0; i < F32_ROWS; i++) {
            if (!w[i] || (gated && i >= 2)) continue;
            if (gated) stg_f(out + first / 2 + i, silu(sum[i][t]) * sum[(i + 2) % F32_ROWS][t]);
            else finish_f32(p, out + first + i, sum[i][t]);
        }
    }
}
