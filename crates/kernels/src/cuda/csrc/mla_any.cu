// Attention in latent space for any sizes, layout, precision and cache: an item and head at a time, in f32. And the combination
// of a token's items, for all.
#include "dev.h"
#include "online.h"
#include "page.h"
#include "step.h"

#include "mla.h"

#define THREADS 128
#define WARPS (THREADS / 32)
#define KEYS ONLINE_KEYS

template <int CACHE> DEV float latent(const MlaParams &p, u32 slot, int col) {
    return cached<CACHE>(p.layer, slot, col, p.rank, p.width - p.rank, p.tiled);
}

// Shared memory: q [width], sum [rank] (each column is one thread's), scores [KEYS], weights [KEYS], slots [KEYS].
template <bool F32, int CACHE> DEV void attend_item(const MlaParams &p, const MlaItem &item, int head, const MlaResult &result) {
    u32 q = smem_base(), sum = q + 4 * p.width, scores = sum + 4 * p.rank, weights = scores + 4 * KEYS,
        slots = weights + 4 * KEYS;
    const float *q_from = (const float *)p.q + ((u64)item.token * p.heads + head) * p.width;
    for (int col = tid(); col < p.width; col += THREADS) {
        float x = ldg_f(q_from + col);
        sts_f(q + 4 * col, F32 ? x : round_bf16(x));
    }
    for (int col = tid(); col < p.rank; col += THREADS) sts_f(sum + 4 * col, 0.0f);

    OnlineSoftmax online = {MINUS_INFINITY, 0.0f};
    for (int from = item.from; from < item.end; from += KEYS) {
        int n = min_i(KEYS, item.end - from);
        if (tid() < n) {
            u32 block = step_block(p.step, item.row, from + tid(), p.block_len);
            sts_u(slots + 4 * tid(), block * p.block_len + (u32)((from + tid()) % p.block_len));
        }
        bar_sync();
        for (int key = warp(); key < n; key += WARPS) {
            u32 slot = lds_u(slots + 4 * key);
            float dot = 0.0f;
            for (int col = lane(); col < p.width; col += 32) dot = fma_f(lds_f(q + 4 * col), latent<CACHE>(p, slot, col), dot);
            dot = warp_sum(dot);
            if (lane() == 0) sts_f(scores + 4 * key, dot * p.scale);
        }
        bar_sync();
        float shrink = online.take(scores, weights, n);
        bar_sync();
        for (int col = tid(); col < p.rank; col += THREADS) {
            float x = lds_f(sum + 4 * col) * shrink;
            for (int key = 0; key < n; key++) {
                x = fma_f(lds_f(weights + 4 * key), latent<CACHE>(p, lds_u(slots + 4 * key), col), x);
            }
            sts_f(sum + 4 * col, x);
        }
        bar_sync();
    }
    float *to = result.heads + (u64)head * p.rank;
    for (int col = tid(); col < p.rank; col += THREADS) stg_f(to + col, lds_f(sum + 4 * col) / online.total);
    if (result.lse && tid() == 0) stg_f(result.lse + head, online.max + lg2(online.total));
}

template <bool F32, int CACHE> DEV void attend_items(const MlaParams &p) {
    int first = mla_first_item(p, mla_pass_token(p, p.pass));
    int units = (mla_first_item(p, mla_pass_token(p, p.pass + 1)) - first) * p.heads;
    for (int unit = cta_x(); unit < units; unit += ncta_x()) {
        int in_pass = unit / p.heads;
        MlaItem item = mla_item(p, first + in_pass);
        attend_item<F32, CACHE>(p, item, unit % p.heads, mla_result(p, item.token, in_pass));
    }
}

KERNEL(THREADS, 1, smxx_bf16_mla_any, MlaParams) { attend_items<false, CACHE_BF16>(p); }
KERNEL(THREADS, 1, smxx_f32_mla_any, MlaParams) { attend_items<true, CACHE_F32>(p); }
KERNEL(THREADS, 1, smxx_bf16_mla_any_fp8, MlaParams) { attend_items<false, CACHE_FP8>(p); }
KERNEL(THREADS, 1, smxx_f32_mla_any_fp8, MlaParams) { attend_items<true, CACHE_FP8>(p); }

// A block for a token and head: the items' averages, weighted by their sums, in the order of keys.
KERNEL(THREADS, 8, smxx_f32_mla_combine, MlaParams) {
    int start = mla_pass_token(p, p.pass), token = start + cta_x(), head = cta_y();
    if (token >= mla_pass_token(p, p.pass + 1)) return;
    int first = mla_first_item(p, token), n = mla_first_item(p, token + 1) - first;
    if (n < 2) return; // no keys, or the result is there already
    int in_pass = first - mla_first_item(p, start);
    const float *lse = (const float *)p.lse + (u64)in_pass * p.heads + head;
    float max = MINUS_INFINITY, total = 0.0f;
    for (int i = 0; i < n; i++) max = max_f(max, ldg_f(lse + i * p.heads));
    for (int i = 0; i < n; i++) total += ex2(ldg_f(lse + i * p.heads) - max);
    float *out = (float *)p.out + ((u64)token * p.heads + head) * p.rank;
    for (int col = tid(); col < p.rank; col += THREADS) {
        const float *from = (const float *)p.partial + ((u64)in_pass * p.heads + head) * p.rank + col;
        float sum = 0.0f;
        for (int i = 0; i < n; i++) {
            sum = fma_f(ex2(ldg_f(lse + i * p.heads) - max), ldg_f(from + (u64)i * p.heads * p.rank), sum);
        }
        stg_f(out + col, sum / total);
    }
}
