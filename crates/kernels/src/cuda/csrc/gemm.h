// Products of weights with activations: out[t] = W x[t] for the tokens of a step, for a head or expert each where there
// are many matrices. What all their kernels share: parameters, which tokens a block has, and where results go.
//
// The order of a sum is fixed by the weight's shape, whatever the kernel and the number of tokens: columns are cut into
// `segments` (product_segment); each is summed by the mma of one k-step after another, and the segments' sums are added in
// order. So a token's numbers do not depend on its neighbours.
#pragma once

#include "step.h"
#include "weights.h"

// x is f32 [rows, x_stride] or in operand order (operand_at): bf16, rows of `units` units.
// step, count: the step's indices and which of its counts bounds the rows of x; exact: that count, where the host knows it
// for good (one or two), or 0: a read less before x can be asked for; row_of: null, or row of each token:
// tokens of rows that take attend_expanded are left out.
// tiles: null, or what experts have to do (experts.cu): {number of tiles}, then {expert, first place, places} each; a
// place is a token's at one of its experts. tokens: token of a place, or null where x has a row a place. Where the step is
// one token, `tiles` is its `direct` ids instead, each a tile of one place; those not below `experts` name no expert.
// eights: eights of rows that a tile of a dense product has at most.
// rows: of a result, so half of the packed ones where gated; out_stride: from one token to the next.
#define PRODUCT_FIELDS(F)                                                                                              \
    F(const void *, w)                                                                                                 \
    F(const void *, scales)                                                                                            \
    F(const void *, x)                                                                                                 \
    F(void *, out)                                                                                                     \
    F(const void *, step)                                                                                              \
    F(const void *, row_of)                                                                                            \
    F(const void *, tiles)                                                                                             \
    F(const void *, tokens)                                                                                            \
    F(u64, w_bytes)                                                                                                    \
    F(int, count)                                                                                                      \
    F(int, exact)                                                                                                      \
    F(int, panels)                                                                                                     \
    F(int, units)                                                                                                      \
    F(int, segments)                                                                                                   \
    F(int, rows)                                                                                                       \
    F(int, cols)                                                                                                       \
    F(int, x_stride)                                                                                                   \
    F(int, x_group)                                                                                                    \
    F(int, out_stride)                                                                                                 \
    F(int, out_group)                                                                                                  \
    F(int, eights)                                                                                                     \
    F(int, finish)                                                                                                     \
    F(int, direct)                                                                                                     \
    F(int, experts)
PARAMS(ProductParams, PRODUCT_FIELDS)

// What becomes of a result.
#define FINISH_STORE 0
#define FINISH_ADD 1   // to the residual stream
#define FINISH_GATED 2 // silu(gate) * up: bf16 in operand order, or f32 where the weights are

// Operand order: the 32 numbers of a unit such that lane l of a warp finds its four registers of B (two m16n8k16) in the 16
// bytes 16 (l % 4) of row l / 4. In bf16 elements.
DEV int operand_at(int col) {
    int in_unit = ((col & 7) >> 1) * 8 + ((col >> 4) & 1) * 4 + ((col >> 3) & 1) * 2 + (col & 1);
    return (col & ~(UNIT_COLS - 1)) + in_unit;
}

// First unit of segment `segment`; `step` units (4 for fp8: columns with one scale) stay together.
DEV int product_segment(int segment, int segments, int units, int step) {
    int steps = div_up(units, step);
    return min_i(units, segment * steps / segments * step);
}

// The block's share of the work: columns of the result, `n` rows of x from the `first` on, and rows of W by `block`.
struct ProductTile {
    int matrix, block, first, n;
};

// Token tiles of one block of rows are neighbours in the grid: the second finds the weights in L2. `n` is not known yet.
DEV ProductTile product_dense(int tile_rows) { return {cta_z(), cta_y(), cta_x() * tile_rows, 0}; }

// Rows that a tile of a dense product has.
DEV int product_rows(const ProductParams &p, const ProductTile &tile, int tile_rows) {
    int n = p.exact ? p.exact : (int)ldg_u((const u32 *)p.step + p.count);
    return max_i(0, min_i(n - tile.first, tile_rows));
}

// Experts' tiles are in y, one for each that the host foresaw; those that are too many have no rows.
DEV ProductTile product_expert(const ProductParams &p) {
    if (p.direct) {
        u32 expert = ldg_u((const u32 *)p.tiles + cta_y());
        return {(int)expert, cta_x(), cta_y(), expert < (u32)p.experts ? 1 : 0};
    }
    if (cta_y() >= (int)ldg_u(p.tiles)) return {0, 0, 0, 0};
    v4 tile = ldg_v4((const v4 *)p.tiles + 1 + cta_y());
    return {(int)tile.x, cta_x(), (int)tile.y, (int)tile.z};
}

// Of either, with its rows.
DEV ProductTile product_tile(const ProductParams &p, int tile_rows) {
    if (p.tiles) return product_expert(p);
    ProductTile tile = product_dense(tile_rows);
    tile.n = product_rows(p, tile, tile_rows);
    return tile;
}

// Whether row i of the tile is there.
DEV bool product_has(const ProductParams &p, const ProductTile &tile, int i) {
    if (i >= tile.n) return false;
    return !p.row_of || !row_expanded(ldg_u((const u32 *)p.row_of + tile.first + i));
}

// No row of the tile is there; the same for all threads, which all ask.
DEV bool product_empty(const ProductParams &p, const ProductTile &tile, int tile_rows) {
    if (tile.n == 0 || !p.row_of) return tile.n == 0;
    u32 any = 0;
    for (int i = 0; i < tile_rows; i += 32) any |= vote_mask(product_has(p, tile, i + lane()));
    return any == 0;
}

// Row i of the tile in x, in elements from its beginning.
DEV u64 product_x(const ProductParams &p, const ProductTile &tile, int i) {
    int row = tile.first + i;
    if (p.tiles && p.tokens) row = (int)ldg_u((const u32 *)p.tokens + row);
    return (u64)row * (u64)p.x_stride + (u64)(p.tiles ? 0 : tile.matrix) * (u64)p.x_group;
}

DEV u64 product_out(const ProductParams &p, const ProductTile &tile, int i) {
    return (u64)(tile.first + i) * (u64)p.out_stride + (u64)(p.tiles ? 0 : tile.matrix) * (u64)p.out_group;
}

DEV void finish_f32(const ProductParams &p, float *out, float x) {
    stg_f(out, p.finish == FINISH_ADD ? ldg_f(out) + x : x);
}

// Takes one lane's results d (see mma_bf16) of panel `panel` and rows i.. (eight) of the tile.
DEV void product_finish(const ProductParams &p, const ProductTile &tile, int panel, int i, const float (&d)[4]) {
    int row = lane() >> 2;
    i += (lane() & 3) * 2;
    for (int j = 0; j < 2; j++) {
        if (!product_has(p, tile, i + j)) continue;
        u64 at = product_out(p, tile, i + j);
        if (p.finish == FINISH_GATED) {
            int middle = panel * 8 + row; // up to the end of the last unit: padding is zeros
            if (middle < p.out_stride) stg_u16((u16 *)p.out + at + operand_at(middle), f_bf16(silu(d[j]) * d[2 + j]));
            continue;
        }
        float *out = (float *)p.out + at + panel * PANEL_ROWS + row;
        if (panel * PANEL_ROWS + row < p.rows) finish_f32(p, out, d[j]);
        if (panel * PANEL_ROWS + row + 8 < p.rows) finish_f32(p, out + 8, d[2 + j]);
    }
}
