// What is done row by row: embedding, norms, the latent rows, the rotary part of the query; and copies of blocks.
#include "dev.h"
#include "page.h"
#include "step.h"
#include "weights.h"

#define THREADS 128

// Columns col .. col + 3 of a row of `width`, zeros beyond it. `aligned`: all rows begin at 16 bytes and are whole.
DEV void load4(const float *row, int col, int width, bool aligned, float (&x)[4]) {
    if (aligned) {
        v4 words = ldg_v4(row + col);
        x[0] = bits_f(words.x), x[1] = bits_f(words.y), x[2] = bits_f(words.z), x[3] = bits_f(words.w);
        return;
    }
    for (int i = 0; i < 4; i++) x[i] = col + i < width ? ldg_f(row + col + i) : 0.0f;
}

DEV void store4(float *row, int col, int width, bool aligned, const float (&x)[4]) {
    if (aligned) {
        stg_v4(row + col, {f_bits(x[0]), f_bits(x[1]), f_bits(x[2]), f_bits(x[3])});
        return;
    }
    for (int i = 0; i < 4; i++) {
        if (col + i < width) stg_f(row + col + i, x[i]);
    }
}

// 1 / sqrt(mean of squares + eps), in every thread of the block. The same sum in the same order for aligned rows and
// others: each thread its fours of columns, then across the warp, then the warps one after another.
DEV float rms_scale(const float *row, int width, bool aligned, float eps) {
    float sum = 0.0f;
    for (int col = 4 * tid(); col < width; col += 4 * THREADS) {
        float x[4];
        load4(row, col, width, aligned, x);
        for (int i = 0; i < 4; i++) sum = fma_f(x[i], x[i], sum);
    }
    sum = warp_sum(sum);
    if (lane() == 0) sts_f(smem_base() + 4 * warp(), sum);
    bar_sync();
    sum = 0.0f;
    for (int i = 0; i < THREADS / 32; i++) sum += lds_f(smem_base() + 4 * i);
    return rsqrt_f(sum / (float)width + eps);
}

// Number `col` of a head's rotary part, `pairs` interleaved: cos_sin [rope / 2, 2] of the token's position.
DEV float rotated(const float *pairs, const float *cos_sin, int col) {
    float cos = ldg_f(cos_sin + (col & ~1)), sin = ldg_f(cos_sin + (col | 1));
    float x = ldg_f(pairs + col), y = ldg_f(pairs + (col ^ 1));
    return col & 1 ? fma_f(x, cos, y * sin) : fma_f(x, cos, -(y * sin));
}

// ---- embedding

// table: [vocab, cols] of weights.h; tokens: [tokens], with the top bit set a draw of the step before, whose id is in ids:
// [2, most], in the half that this step does not write; out: f32 [tokens, cols]
#define EMBED_FIELDS(F)                                                                                                \
    F(const void *, table)                                                                                             \
    F(const void *, scales)                                                                                            \
    F(void *, out)                                                                                                     \
    F(const void *, step)                                                                                              \
    F(const void *, tokens)                                                                                            \
    F(const void *, ids)                                                                                               \
    F(int, most)                                                                                                       \
    F(int, vocab)                                                                                                      \
    F(int, kind)                                                                                                       \
    F(int, cols)                                                                                                       \
    F(int, units)
PARAMS(EmbedParams, EMBED_FIELDS)

KERNEL(THREADS, 8, smxx_f32_embed, EmbedParams) {
    int token = cta_x();
    if (token >= step_tokens(p.step)) return;
    u32 word = ldg_u((const u32 *)p.tokens + token);
    if (word >> 31) {
        word = step_id_before(p.step, p.ids, p.most, word & 0x7fffffffu);
        if (word >= (u32)p.vocab) word = 0; // a draw that came to no token is nobody's, and the token behind it neither
    }
    int row = (int)word;
    float *out = (float *)p.out + (u64)token * p.cols;
    for (int col = tid(); col < p.cols; col += THREADS) {
        stg_f(out + col, weight_f(p.kind, p.table, p.scales, row, col, p.cols, p.units));
    }
}

// ---- norm

// x: f32 [tokens], rows `stride` apart; weight: f32 [width]; out: f32 [tokens, width]
#define RMS_NORM_FIELDS(F)                                                                                             \
    F(const void *, x)                                                                                                 \
    F(const void *, weight)                                                                                            \
    F(void *, out)                                                                                                     \
    F(const void *, step)                                                                                              \
    F(u64, stride)                                                                                                     \
    F(int, width)                                                                                                      \
    F(int, aligned)                                                                                                    \
    F(float, eps)
PARAMS(RmsNormParams, RMS_NORM_FIELDS)

KERNEL(THREADS, 8, smxx_f32_rms_norm, RmsNormParams) {
    int token = cta_x();
    if (token >= step_tokens(p.step)) return;
    const float *row = (const float *)p.x + (u64)token * p.stride;
    float *out = (float *)p.out + (u64)token * p.width;
    float scale = rms_scale(row, p.width, p.aligned, p.eps);
    for (int col = 4 * tid(); col < p.width; col += 4 * THREADS) {
        float x[4], w[4];
        load4(row, col, p.width, p.aligned, x);
        load4((const float *)p.weight, col, p.width, p.aligned, w);
        for (int i = 0; i < 4; i++) x[i] = x[i] * scale * w[i];
        store4(out, col, p.width, p.aligned, x);
    }
}

// ---- latent rows

// kv: f32 [tokens], rows `stride` apart, [rank, rope]; norm: f32 [rank]; angles: f32 [positions, rope / 2, 2]; layer: of the
// arena (page.h); positions, slots: [tokens]
#define LATENT_WRITE_FIELDS(F)                                                                                         \
    F(const void *, kv)                                                                                                \
    F(const void *, norm)                                                                                              \
    F(const void *, angles)                                                                                            \
    F(void *, layer)                                                                                                   \
    F(const void *, step)                                                                                              \
    F(const void *, positions)                                                                                         \
    F(const void *, slots)                                                                                             \
    F(u64, stride)                                                                                                     \
    F(int, rank)                                                                                                       \
    F(int, rope)                                                                                                       \
    F(int, tiled)                                                                                                      \
    F(int, aligned)                                                                                                    \
    F(float, eps)
PARAMS(LatentWriteParams, LATENT_WRITE_FIELDS)

// A group's scale is the smallest power of two, from 2^-100 on, with which no number exceeds 448; 1 for zeros, NaN where a
// number is NaN or infinite. Here as the bits of an f32, of the bits of the largest number without its sign.
DEV u32 fp8_scale(u32 largest) {
    if (largest >= 0x7f800000u) return 0x7fc00000u;
    if (largest == 0) return 0x3f800000u;
    // 448 is 1.75 x 2^8: a mantissa beyond .75 needs the next exponent.
    int exponent = max_i((int)((largest + 0x1fffffu) >> 23) - 8, 27);
    return (u32)exponent << 23;
}

// The nearest e4m3 of x over its group's scale, ties to even.
DEV u32 fp8_code(float x, u32 scale) {
    u32 bits = f_bits(x * bits_f(0x7f000000u - scale)), magnitude = bits & 0x7fffffffu;
    // 2^14 more leaves the multiples of 2^-9 in the low bits, for numbers below 2^-6; others count exponents from -7.
    u32 small = f_bits(bits_f(magnitude) + 16384.0f) - f_bits(16384.0f);
    u32 large = ((magnitude + 0x7ffffu + ((magnitude >> 20) & 1)) >> 20) - (120u << 3);
    return ((magnitude < 0x3c800000u ? small : large) & 0x7f) | ((bits >> 24) & 0x80);
}

// A group of columns of fp8, by a warp: each lane four of them.
DEV void write_group(const LatentWriteParams &p, const float *row, float scale, u32 slot, int group) {
    int first = group * GROUP_COLS + 4 * lane();
    float x[4];
    u32 largest = 0;
    for (int i = 0; i < 4; i++) {
        int col = first + i;
        x[i] = col < p.rank ? ldg_f(row + col) * scale * ldg_f((const float *)p.norm + col) : 0.0f;
        largest = (u32)max_i((int)largest, (int)(f_bits(x[i]) & 0x7fffffffu));
    }
    for (int mask = 16; mask > 0; mask >>= 1) largest = (u32)max_i((int)largest, (int)shfl_xor_u(largest, mask));
    u32 of_group = fp8_scale(largest), word = 0;
    u8 *layer = (u8 *)p.layer;
    Fp8Layer at = {p.rank, p.rope, p.tiled};
    for (int i = 0; i < 4; i++) {
        u32 code = fp8_code(x[i], of_group);
        if (!p.tiled && first + i < p.rank) stg_u8(layer + at.number(slot, first + i), (u8)code);
        word |= code << (8 * fp8_place(i));
    }
    if (p.tiled) stg_u(layer + at.number(slot, first), word);
    if (lane() == 0) stg_u(layer + at.scale(slot, group), of_group);
}

template <int CACHE> DEV void latent_write(const LatentWriteParams &p) {
    int token = cta_x(), width = p.rank + p.rope;
    if (token >= step_tokens(p.step)) return;
    const float *row = (const float *)p.kv + (u64)token * p.stride;
    u32 position = ldg_u((const u32 *)p.positions + token), slot = ldg_u((const u32 *)p.slots + token);
    const float *cos_sin = (const float *)p.angles + (u64)position * p.rope;
    float scale = rms_scale(row, p.rank, p.aligned, p.eps);
    if (CACHE == CACHE_FP8) {
        for (int group = warp(); group * GROUP_COLS < p.rank; group += THREADS / 32) write_group(p, row, scale, slot, group);
    }
    Fp8Layer at = {p.rank, p.rope, p.tiled};
    for (int col = tid() + (CACHE == CACHE_FP8 ? p.rank : 0); col < width; col += THREADS) {
        float x = col < p.rank ? ldg_f(row + col) * scale * ldg_f((const float *)p.norm + col)
                               : rotated(row + p.rank, cos_sin, col - p.rank);
        u8 *layer = (u8 *)p.layer;
        if (CACHE == CACHE_F32) stg_f(layer + plain_at(slot, col, width, 4), x);
        else if (CACHE == CACHE_FP8) stg_u16(layer + at.rotary(slot, col - p.rank), f_bf16(x));
        else stg_u16(layer + (p.tiled ? tiled_at(slot, col, width) : plain_at(slot, col, width, 2)), f_bf16(x));
    }
}

KERNEL(THREADS, 8, smxx_bf16_latent_write, LatentWriteParams) { latent_write<CACHE_BF16>(p); }
KERNEL(THREADS, 8, smxx_f32_latent_write, LatentWriteParams) { latent_write<CACHE_F32>(p); }
KERNEL(THREADS, 8, smxx_fp8_latent_write, LatentWriteParams) { latent_write<CACHE_FP8>(p); }

// ---- the query's rotary part

// q: f32 [tokens], rows `stride` apart, [heads, nope + rope]; out: f32 [tokens, heads, rank + rope], of which the end of
// each head is written
#define ROTATE_QUERY_FIELDS(F)                                                                                         \
    F(const void *, q)                                                                                                 \
    F(const void *, angles)                                                                                            \
    F(void *, out)                                                                                                     \
    F(const void *, step)                                                                                              \
    F(const void *, positions)                                                                                         \
    F(const void *, row_of)                                                                                            \
    F(u64, stride)                                                                                                     \
    F(int, heads)                                                                                                      \
    F(int, nope)                                                                                                       \
    F(int, rope)                                                                                                       \
    F(int, rank)
PARAMS(RotateQueryParams, ROTATE_QUERY_FIELDS)

KERNEL(THREADS, 8, smxx_f32_rotate_query, RotateQueryParams) {
    int token = cta_x();
    if (token >= step_tokens(p.step) || row_expanded(ldg_u((const u32 *)p.row_of + token))) return;
    const float *q = (const float *)p.q + (u64)token * p.stride;
    float *out = (float *)p.out + (u64)token * p.heads * (p.rank + p.rope);
    const float *cos_sin = (const float *)p.angles + (u64)ldg_u((const u32 *)p.positions + token) * p.rope;
    for (int i = tid(); i < p.heads * p.rope; i += THREADS) {
        int head = i / p.rope, col = i % p.rope;
        float x = rotated(q + head * (p.nope + p.rope) + p.nope, cos_sin, col);
        stg_f(out + head * (p.rank + p.rope) + p.rank + col, x);
    }
}

// ---- copies of blocks

// arena: [layers, blocks], each of `block_bytes`; copies: [copies, 2] from and to; `piece`: bytes that a thread moves at a
// time, 16, 4 or 2
#define COPY_BLOCKS_FIELDS(F)                                                                                          \
    F(void *, arena)                                                                                                   \
    F(const void *, step)                                                                                              \
    F(const void *, copies)                                                                                            \
    F(u64, layer_bytes)                                                                                                \
    F(u64, block_bytes)                                                                                                \
    F(int, piece)
PARAMS(CopyBlocksParams, COPY_BLOCKS_FIELDS)

// A thread has its place in a block to itself and walks the whole list: copies of copies come out in order.
KERNEL(THREADS, 8, smxx_u32_copy_blocks, CopyBlocksParams) {
    u64 place = ((u64)cta_x() * THREADS + tid()) * (u64)p.piece;
    if (place >= p.block_bytes) return;
    u8 *base = (u8 *)p.arena + cta_y() * p.layer_bytes + place;
    int n = (int)ldg_u((const u32 *)p.step + STEP_N_COPIES);
    for (int i = 0; i < n; i++) {
        v2 pair = ldg_v2((const u32 *)p.copies + 2 * i);
        u8 *from = base + pair.x * p.block_bytes, *to = base + pair.y * p.block_bytes;
        if (p.piece == 16) stg_v4(to, ldg_v4(from));
        else if (p.piece == 4) stg_u(to, ldg_u(from));
        else stg_u16(to, ldg_u16(from));
    }
}
