// Attention with expanded keys and values for any sizes, layout and precision: a token and head at a time, in f32.
// expanded: [keys of a chunk], each [heads, nope + v] and then the rotary key, in the precision of products.
#include "dev.h"
#include "online.h"
#include "page.h"
#include "step.h"
#include "weights.h"

#include "prefill.h"

#define THREADS 128
#define WARPS (THREADS / 32)
#define EXPANDED 8 // keys of a block of expand
#define KEYS ONLINE_KEYS

template <bool F32> DEV float number(const void *numbers, u64 at) {
    return F32 ? ldg_f((const float *)numbers + at) : bf16_f(ldg_u16((const u16 *)numbers + at));
}

// Row `col` of the head's W_K, W_UV below it.
DEV float expand_weight(const ExpandParams &p, int head, int col, int c) {
    bool is_key = col < p.nope;
    int rows = is_key ? p.nope : p.v, units = div_up(p.rank, UNIT_COLS);
    const u8 *w = (const u8 *)(is_key ? p.w_k : p.w_uv) + head * (is_key ? p.k_bytes : p.v_bytes);
    const float *scales = (const float *)(is_key ? p.k_scales : p.v_scales) +
                          (u64)head * (2 * div_up(rows, PANEL_ROWS) * div_up(p.rank, SCALE_COLS));
    return weight_f(is_key ? p.k_kind : p.v_kind, w, scales, is_key ? col : col - p.nope, c, p.rank, units);
}

// A block: EXPANDED keys, a share of the columns. Shared memory: latents [EXPANDED, width].
template <bool F32, int CACHE> DEV void expand(const ExpandParams &p) {
    int width = p.rank + p.rope, first = cta_x() * EXPANDED, n = min_i(EXPANDED, p.keys - first);
    for (int i = tid(); i < EXPANDED * width; i += THREADS) {
        int key = i / width, col = i % width, position = p.first + first + key;
        float x = 0.0f;
        if (key < n) {
            u32 slot = step_block(p.step, p.row, position, p.block_len) * p.block_len + (u32)(position % p.block_len);
            x = cached<CACHE>(p.layer, slot, col, p.rank, p.rope, p.tiled);
        }
        sts_f(smem_base() + 4 * i, x);
    }
    bar_sync();
    int head_cols = p.nope + p.v, cols = p.heads * head_cols + p.rope;
    for (int col = cta_y() * THREADS + tid(); col < cols; col += ncta_y() * THREADS) {
        float sum[EXPANDED] = {};
        int head = min_i(col / head_cols, p.heads), in_head = col - head * head_cols;
        if (head == p.heads) {
            for (int key = 0; key < EXPANDED; key++) sum[key] = lds_f(smem_base() + 4 * (key * width + p.rank + in_head));
        } else {
            bool rounds = (in_head < p.nope ? p.k_kind : p.v_kind) != WEIGHT_F32;
            for (int c = 0; c < p.rank; c++) {
                float w = expand_weight(p, head, in_head, c);
                for (int key = 0; key < EXPANDED; key++) {
                    float x = lds_f(smem_base() + 4 * (key * width + c));
                    sum[key] = fma_f(w, rounds ? round_bf16(x) : x, sum[key]);
                }
            }
        }
        for (int key = 0; key < n; key++) {
            u64 at = (u64)(first + key) * (u64)cols + (u64)col;
            if (F32) stg_f((float *)p.expanded + at, sum[key]);
            else stg_u16((u16 *)p.expanded + at, f_bf16(sum[key]));
        }
    }
}

KERNEL(THREADS, 4, smxx_bf16_expand_any, ExpandParams) { expand<false, CACHE_BF16>(p); }
KERNEL(THREADS, 4, smxx_f32_expand_any, ExpandParams) { expand<true, CACHE_F32>(p); }
KERNEL(THREADS, 4, smxx_bf16_expand_any_fp8, ExpandParams) { expand<false, CACHE_FP8>(p); }
KERNEL(THREADS, 4, smxx_f32_expand_any_fp8, ExpandParams) { expand<true, CACHE_FP8>(p); }

// Shared memory: q [nope + rope], scores [KEYS], weights [KEYS], sum [v] (each column is one thread's).
template <bool F32> DEV void attend(const AttendParams &p) {
    int token = p.token + cta_x(), head = cta_y(), position = p.position + cta_x();
    int n = min_i(p.keys, position + 1 - p.first); // keys of the chunk that the token sees
    if (n <= 0) return;
    int width = p.nope + p.rope;
    u32 q = smem_base(), scores = q + 4 * width, weights = scores + 4 * KEYS, sum = weights + 4 * KEYS;
    const float *from = (const float *)p.q + (u64)token * p.stride + head * width;
    const float *cos_sin = (const float *)p.angles + (u64)position * p.rope;
    for (int i = tid(); i < width; i += THREADS) {
        int col = i - p.nope;
        float x = ldg_f(from + i);
        if (col >= 0) {
            float y = ldg_f(from + p.nope + (col ^ 1)) * ldg_f(cos_sin + (col | 1));
            x = fma_f(x, ldg_f(cos_sin + (col & ~1)), col & 1 ? y : -y);
        }
        sts_f(q + 4 * i, F32 ? x : round_bf16(x));
    }
    float *out = (float *)p.out + ((u64)token * p.heads + head) * (u64)p.v;
    float *stats = (float *)p.stats + ((u64)cta_x() * p.heads + head) * 2;
    bool fresh = p.first == 0;
    OnlineSoftmax online = {fresh ? MINUS_INFINITY : ldg_f(stats), fresh ? 0.0f : ldg_f(stats + 1)};
    for (int col = tid(); col < p.v; col += THREADS) sts_f(sum + 4 * col, fresh ? 0.0f : ldg_f(out + col));
    bar_sync();

    int head_cols = p.nope + p.v, cols = p.heads * head_cols + p.rope;
    for (int first = 0; first < n; first += KEYS) {
        int there = min_i(KEYS, n - first);
        for (int i = warp(); i < there; i += WARPS) {
            u64 row = (u64)(first + i) * (u64)cols;
            float dot = 0.0f;
            for (int c = lane(); c < width; c += 32) {
                int at = c < p.nope ? head * head_cols + c : p.heads * head_cols + c - p.nope;
                dot = fma_f(lds_f(q + 4 * c), number<F32>(p.expanded, row + (u64)at), dot);
            }
            dot = warp_sum(dot);
            if (lane() == 0) sts_f(scores + 4 * i, dot * p.scale);
        }
        bar_sync();
        float shrink = online.take(scores, weights, there);
        bar_sync();
        for (int col = tid(); col < p.v; col += THREADS) {
            float x = lds_f(sum + 4 * col) * shrink;
            for (int i = 0; i < there; i++) {
                u64 at = (u64)(first + i) * (u64)cols + (u64)(head * head_cols + p.nope + col);
                x = fma_f(lds_f(weights + 4 * i), number<F32>(p.expanded, at), x);
            }
            sts_f(sum + 4 * col, x);
        }
        bar_sync();
    }
    bool done = position < p.first + p.keys;
    for (int col = tid(); col < p.v; col += THREADS) stg_f(out + col, done ? lds_f(sum + 4 * col) / online.total : lds_f(sum + 4 * col));
    if (!done && tid() == 0) {
        stg_f(stats, online.max);
        stg_f(stats + 1, online.total);
    }
}

KERNEL(THREADS, 4, smxx_bf16_prefill_any, AttendParams) { attend<false>(p); }
KERNEL(THREADS, 4, smxx_f32_prefill_any, AttendParams) { attend<true>(p); }
