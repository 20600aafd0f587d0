// The router: scores of all experts, and which of them a token goes to (ops/route.rs says how). Two kernels, because the
// products want many blocks (V3 has 7 MB of router weights a layer) and a choice wants all scores of a token.
#include "dev.h"
#include "step.h"

#define THREADS 128
#define WARPS (THREADS / 32)

// ---- products

// x: f32 [tokens], rows `stride` apart; weight: f32 [experts, hidden]; logits: f32 [tokens, experts]
// aligned: rows of x and weight begin at 16 bytes and are whole fours
#define ROUTE_LOGITS_FIELDS(F)                                                                                         \
    F(const void *, x)                                                                                                 \
    F(const void *, weight)                                                                                            \
    F(void *, logits)                                                                                                  \
    F(const void *, step)                                                                                              \
    F(u64, stride)                                                                                                     \
    F(int, experts)                                                                                                    \
    F(int, hidden)                                                                                                     \
    F(int, aligned)
PARAMS(RouteLogitsParams, ROUTE_LOGITS_FIELDS)

DEV v4 load4(const float *row, int col, int width, bool aligned) {
    if (aligned) return ldg_v4(row + col);
    u32 x[4];
    for (int i = 0; i < 4; i++) x[i] = col + i < width ? ldg_u(row + col + i) : 0;
    return {x[0], x[1], x[2], x[3]};
}

// A warp: EXPERTS of them for TOKENS, with loads of AHEAD steps under way. A lane sums fours of columns 128 apart, then the lanes' sums are added: in the same
// order whatever the tile.
template <int EXPERTS, int TOKENS, int AHEAD> DEV void route_logits(const RouteLogitsParams &p) {
    int n = step_tokens(p.step), token = cta_y() * TOKENS, expert = (cta_x() * WARPS + warp()) * EXPERTS;
    if (token >= n || expert >= p.experts) return;
    const float *x[TOKENS], *w[EXPERTS];
#pragma unroll
    for (int t = 0; t < TOKENS; t++) x[t] = (const float *)p.x + (u64)min_i(token + t, n - 1) * p.stride;
#pragma unroll
    for (int e = 0; e < EXPERTS; e++) {
        w[e] = (const float *)p.weight + (u64)min_i(expert + e, p.experts - 1) * (u64)p.hidden;
    }
    float sum[EXPERTS][TOKENS] = {};
#pragma unroll AHEAD
    for (int col = 4 * lane(); col < p.hidden; col += 128) {
        v4 a[EXPERTS];
#pragma unroll
        for (int e = 0; e < EXPERTS; e++) a[e] = load4(w[e], col, p.hidden, p.aligned);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            v4 b = load4(x[t], col, p.hidden, p.aligned);
#pragma unroll
            for (int e = 0; e < EXPERTS; e++) {
                float s = fma_f(bits_f(a[e].x), bits_f(b.x), sum[e][t]);
                s = fma_f(bits_f(a[e].y), bits_f(b.y), s);
                s = fma_f(bits_f(a[e].z), bits_f(b.z), s);
                sum[e][t] = fma_f(bits_f(a[e].w), bits_f(b.w), s);
            }
        }
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
#pragma unroll
        for (int e = 0; e < EXPERTS; e++) {
            float s = warp_sum(sum[e][t]);
            bool there = token + t < n && expert + e < p.experts;
            if (lane() == 0 && there) stg_f((float *)p.logits + (u64)(token + t) * p.experts + expert + e, s);
        }
    }
}

KERNEL(THREADS, 4, smxx_f32_route_logits, RouteLogitsParams) { route_logits<1, 4, 4>(p); }
KERNEL(THREADS, 4, smxx_f32_route_logits_many, RouteLogitsParams) { route_logits<4, 8, 1>(p); }

// ---- choice

// logits: f32 [tokens, experts]; bias: f32 [experts] or null; ids: u32 [tokens, top_k]; weights: f32 [tokens, top_k]
#define ROUTE_CHOOSE_FIELDS(F)                                                                                         \
    F(const void *, logits)                                                                                            \
    F(const void *, bias)                                                                                              \
    F(void *, ids)                                                                                                     \
    F(void *, weights)                                                                                                 \
    F(const void *, step)                                                                                              \
    F(int, experts)                                                                                                    \
    F(int, top_k)                                                                                                      \
    F(int, sigmoid)                                                                                                    \
    F(int, groups)                                                                                                     \
    F(int, top_groups)                                                                                                 \
    F(int, normalise)                                                                                                  \
    F(float, scale)
PARAMS(RouteChooseParams, ROUTE_CHOOSE_FIELDS)

#define NO_EXPERT 0xffffffffu

// NaN is smallest.
DEV u32 score_order(float x) { return x != x ? 0 : order_of(x); }

// A warp's shared memory: scores and orders of all experts, of which lane l has l, l + 32, ... to itself; of all groups.
struct Choice {
    u32 scores, orders, groups;
};

DEV void score(const RouteChooseParams &p, int token, const Choice &at) {
    const float *logits = (const float *)p.logits + (u64)token * p.experts;
    float max = MINUS_INFINITY, sum = 0.0f;
    if (!p.sigmoid) {
        for (int e = lane(); e < p.experts; e += 32) max = max_f(max, ldg_f(logits + e));
        max = warp_max(max);
        for (int e = lane(); e < p.experts; e += 32) sum += exp_f(ldg_f(logits + e) - max);
        sum = warp_sum(sum);
    }
    for (int e = lane(); e < p.experts; e += 32) {
        float x = ldg_f(logits + e);
        x = p.sigmoid ? 1.0f / (1.0f + exp_f(-x)) : exp_f(x - max) / sum;
        sts_f(at.scores + 4 * e, x);
        sts_u(at.orders + 4 * e, score_order(x + (p.bias ? ldg_f((const float *)p.bias + e) : 0.0f)));
    }
}

// Experts of all but the best groups go behind the others. A lane has groups l, l + 32, ...
DEV void limit_groups(const RouteChooseParams &p, const Choice &at) {
    int size = p.experts / p.groups;
    for (int g = lane(); g < p.groups; g += 32) {
        u32 first = order_of(MINUS_INFINITY), second = first;
        for (int e = g * size; e < (g + 1) * size; e++) {
            u32 x = lds_u(at.orders + 4 * e);
            if (x > first) second = first, first = x;
            else if (x > second) second = x;
        }
        float value = from_order(first);
        sts_f(at.groups + 4 * g, p.sigmoid && size > 1 ? value + from_order(second) : value);
    }
    warp_sync();
    for (int g = lane(); g < p.groups; g += 32) {
        float own = lds_f(at.groups + 4 * g);
        int better = 0;
        for (int i = 0; i < p.groups; i++) {
            float other = lds_f(at.groups + 4 * i);
            better += other > own || (other == own && i < g);
        }
        if (better < p.top_groups) continue;
        for (int e = g * size; e < (g + 1) * size; e++) sts_u(at.orders + 4 * e, order_of(MINUS_INFINITY));
    }
}

// Best of this lane's experts, the lowest of equals.
DEV void own_best(const RouteChooseParams &p, const Choice &at, u32 &order, u32 &expert) {
    order = 0, expert = NO_EXPERT;
    for (int e = lane(); e < p.experts; e += 32) {
        u32 x = lds_u(at.orders + 4 * e);
        if (expert == NO_EXPERT || x > order) order = x, expert = (u32)e;
    }
}

KERNEL(THREADS, 8, smxx_f32_route_choose, RouteChooseParams) {
    int token = cta_x() * WARPS + warp();
    if (token >= step_tokens(p.step)) return;
    Choice at;
    at.scores = smem_base() + 4 * warp() * (2 * p.experts + p.groups);
    at.orders = at.scores + 4 * p.experts, at.groups = at.orders + 4 * p.experts;
    score(p, token, at);
    warp_sync();
    if (p.groups > 1) {
        limit_groups(p, at);
        warp_sync();
    }
    u32 order, expert, chosen = 0;
    own_best(p, at, order, expert);
    float weight = 0.0f, sum = 0.0f;
    for (int k = 0; k < p.top_k; k++) {
        u32 best = warp_max_u(order);
        u32 id = warp_min_u(expert != NO_EXPERT && order == best ? expert : NO_EXPERT);
        float x = lds_f(at.scores + 4 * id);
        sum += x;
        if (lane() == k) chosen = id, weight = x;
        if (id == expert) { // this lane's: it looks again
            sts_u(at.orders + 4 * id, order_of(MINUS_INFINITY));
            own_best(p, at, order, expert);
        }
    }
    float factor = p.normalise ? p.scale / (sum + 1e-20f) : p.scale;
    if (lane() >= p.top_k) return;
    u64 to = (u64)token * p.top_k + lane();
    stg_u((u32 *)p.ids + to, chosen);
    stg_f((float *)p.weights + to, weight * factor);
}
