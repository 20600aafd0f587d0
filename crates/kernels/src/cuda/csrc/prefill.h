// Attention with keys and values expanded from the latent rows, what its kernels share. For each row of the step that takes
// it, and each chunk of its context in order: first the chunk's keys and values are expanded, for all heads, then the row's
// new tokens attend to them. In between, a token's output holds its unfinished sum, and `stats` two numbers a head: the
// largest score so far and the sum of weights.
//
// Chunks and tiles of keys begin at multiples of their length, counted from the sequence's beginning: in which order a
// token's keys are summed depends on its position alone, not on how the prompt was cut into steps.
#pragma once

// Of one row of the step, keys first .. first + keys of its sequence.
// w_k: [heads, nope, rank], w_uv: [heads, v, rank] of weights.h; k_bytes, v_bytes: from one head to the next
// layer: of the arena (page.h); expanded: see the kernels; ropes: the rotary keys, all heads' (tiles only)
#define EXPAND_FIELDS(F)                                                                                               \
    F(const void *, w_k)                                                                                               \
    F(const void *, k_scales)                                                                                          \
    F(const void *, w_uv)                                                                                              \
    F(const void *, v_scales)                                                                                          \
    F(const void *, layer)                                                                                             \
    F(const void *, step)                                                                                              \
    F(void *, expanded)                                                                                                \
    F(void *, ropes)                                                                                                   \
    F(u64, k_bytes)                                                                                                    \
    F(u64, v_bytes)                                                                                                    \
    F(int, k_kind)                                                                                                     \
    F(int, v_kind)                                                                                                     \
    F(int, row)                                                                                                        \
    F(int, first)                                                                                                      \
    F(int, keys)                                                                                                       \
    F(int, heads)                                                                                                      \
    F(int, nope)                                                                                                       \
    F(int, rope)                                                                                                       \
    F(int, v)                                                                                                          \
    F(int, rank)                                                                                                       \
    F(int, block_len)                                                                                                  \
    F(int, tiled)                                                                                                      \
    F(int, tiles)
PARAMS(ExpandParams, EXPAND_FIELDS)

// q: f32, rows of all tokens of the step, `stride` apart, [heads, nope + rope]; angles: f32 [positions, rope / 2, 2]
// out: f32 [tokens of the step, heads, v]; stats: f32 [tokens of the row, heads, 2]
// token: first of the row in the step; len: its new tokens; position: of the first of them
// scale: of scores, times log2(e): weights are powers of two
#define ATTEND_FIELDS(F)                                                                                               \
    F(const void *, q)                                                                                                 \
    F(const void *, angles)                                                                                            \
    F(const void *, expanded)                                                                                          \
    F(const void *, ropes)                                                                                             \
    F(void *, out)                                                                                                     \
    F(void *, stats)                                                                                                   \
    F(u64, stride)                                                                                                     \
    F(int, token)                                                                                                      \
    F(int, len)                                                                                                        \
    F(int, position)                                                                                                   \
    F(int, first)                                                                                                      \
    F(int, keys)                                                                                                       \
    F(int, heads)                                                                                                      \
    F(int, nope)                                                                                                       \
    F(int, rope)                                                                                                       \
    F(int, v)                                                                                                          \
    F(int, tiles)                                                                                                      \
    F(float, scale)
PARAMS(AttendParams, ATTEND_FIELDS)
