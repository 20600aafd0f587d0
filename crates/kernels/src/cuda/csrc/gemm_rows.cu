// Activations on their way into a product of bf16 weights: rounded, in operand order (gemm.h), padded with zeros.
#include "dev.h"
#include "gemm.h"

// x: f32 [tokens, stride], of a head `group` on; out: bf16 [tokens, heads, 32 units]; row_of as in ProductParams
#define ROUND_FIELDS(F)                                                                                                \
    F(const void *, x)                                                                                                 \
    F(void *, out)                                                                                                     \
    F(const void *, step)                                                                                              \
    F(const void *, row_of)                                                                                            \
    F(int, stride)                                                                                                     \
    F(int, group)                                                                                                      \
    F(int, heads)                                                                                                      \
    F(int, cols)                                                                                                       \
    F(int, units)
PARAMS(RoundParams, ROUND_FIELDS)

// Grid: 16-byte pieces of a token, tokens.
KERNEL(256, 1, smxx_bf16_round, RoundParams) {
    int token = cta_y(), piece = cta_x() * 256 + tid();
    if (token >= step_tokens(p.step)) return;
    if (p.row_of && row_expanded(ldg_u((const u32 *)p.row_of + token))) return;
    int pieces = p.units * 4, head = piece / pieces;
    if (head >= p.heads) return;
    int first = piece % pieces / 4 * UNIT_COLS + (piece & 3) * 2;
    const float *x = (const float *)p.x + (u64)token * (u64)p.stride + (u64)head * (u64)p.group;
    bool aligned = ((u64)x & 7) == 0;
    u32 pair[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int col = first + i * 8;
        v2 x2 = {0, 0};
        if (aligned && col + 1 < p.cols) {
            x2 = ldg_v2(x + col);
        } else {
            if (col < p.cols) x2.x = ldg_u(x + col);
            if (col + 1 < p.cols) x2.y = ldg_u(x + col + 1);
        }
        pair[i] = pack_bf16(bits_f(x2.x), bits_f(x2.y));
    }
    stg_v4((v4 *)p.out + (u64)token * (u64)(p.heads * pieces) + (u64)piece, {pair[0], pair[1], pair[2], pair[3]});
}

// x: f32 [tokens, cols]; outputs: which tokens; out: [outputs, cols] f32, or bf16 [outputs, 32 units] where there are units
#define NORM_OUTPUTS_FIELDS(F)                                                                                         \
    F(const void *, x)                                                                                                 \
    F(const void *, norm)                                                                                              \
    F(void *, out)                                                                                                     \
    F(const void *, step)                                                                                              \
    F(const void *, outputs)                                                                                           \
    F(int, cols)                                                                                                       \
    F(int, units)                                                                                                      \
    F(float, eps)
PARAMS(NormOutputsParams, NORM_OUTPUTS_FIELDS)

// rms_norm of the rows whose logits are wanted; a block a row. Shared: 32 bytes.
KERNEL(256, 1, smxx_f32_norm_outputs, NormOutputsParams) {
    int output = cta_x();
    if (output >= step_outputs(p.step)) return;
    const float *x = (const float *)p.x + (u64)ldg_u((const u32 *)p.outputs + output) * (u64)p.cols;
    float squares = 0.0f;
    for (int col = tid(); col < p.cols; col += 256) {
        float v = ldg_f(x + col);
        squares = fma_f(v, v, squares);
    }
    squares = warp_sum(squares);
    if (lane() == 0) sts_f(smem_base() + warp() * 4, squares);
    bar_sync();
    float sum = 0.0f;
    for (int i = 0; i < 8; i++) sum += lds_f(smem_base() + i * 4);
    float scale = rsqrt_f(sum / (float)p.cols + p.eps);
    int width = p.units ? p.units * UNIT_COLS : p.cols;
    for (int col = tid(); col < width; col += 256) {
        float v = col < p.cols ? ldg_f(x + col) * scale * ldg_f((const float *)p.norm + col) : 0.0f;
        u64 row = (u64)output * (u64)width;
        if (p.units) stg_u16((u16 *)p.out + row + operand_at(col), f_bf16(v));
        else stg_f((float *)p.out + row + col, v);
    }
}
