// Attention with expanded keys and values (prefill_expand.cu) on tensor cores, as FlashAttention-2 does it (Dao, 2023):
// a block has 16 queries a warp of one head, walks over tiles of keys, and keeps scores and sums in registers. A tile is
// brought while the one in front is computed.
#include "dev.h"
#include "page.h"

#include "prefill.h"

#define ROPE 64

// Of a head dimension: keys of a tile, warps of a block, and whether the queries stay in registers. If they do, their shared
// memory becomes that of every other tile.
template <int NOPE_, int V_, int KEYS_, int WARPS_, bool HELD_> struct Shape {
    static constexpr int NOPE = NOPE_, V = V_, KEYS = KEYS_, WARPS = WARPS_;
    static constexpr bool HELD = HELD_;
    static constexpr int QK = NOPE + ROPE, ROWS = 16 * WARPS, THREADS = 32 * WARPS;
    static constexpr int K_TILES = QK / 64, V_TILES = V / 64; // columns by 64: KEYS rows of 128 bytes each
    static constexpr int STAGE = (K_TILES + V_TILES) * KEYS * 128;
    static constexpr int Q_BYTES = K_TILES * ROWS * 128;
    static_assert(!HELD || Q_BYTES >= STAGE, "a stage takes the place of the queries");
    static_assert(KEYS * 8 % THREADS == 0 && PAGE_ROWS % KEYS == 0, "threads have whole rounds, pages whole tiles");
    static constexpr int STEPS = QK / 16;
};

// Byte offset in column tiles of `rows` rows, as in page.h.
DEV u32 tile_chunk(int rows, int row, int chunk) {
    return (u32)((chunk >> 3) * rows * 128 + row * 128 + (((chunk & 7) ^ (row & 7)) * 16));
}

template <class S> DEV u32 stage_at(int tile) {
    if (S::HELD) return smem_base() + (tile & 1 ? 0 : S::Q_BYTES);
    return smem_base() + S::Q_BYTES + (tile & 1) * S::STAGE;
}

template <class S> DEV void load_tile(const AttendParams &p, int head, int tile) {
    int page = tile * S::KEYS / PAGE_ROWS, row = tile * S::KEYS % PAGE_ROWS;
    const u8 *expanded = (const u8 *)p.expanded + ((u64)head * p.tiles + page) * (u64)((S::NOPE + S::V) * PAGE_ROWS * 2);
    const u8 *ropes = (const u8 *)p.ropes + (u64)page * TILE_BYTES + row * 128;
    const int pieces = S::KEYS * 8; // 16 bytes each, of a column tile
    u32 to = stage_at<S>(tile) + 16 * tid();
#pragma unroll
    for (int i = 0; i < S::STAGE / 16; i += S::THREADS) {
        int cols = i / pieces, piece = i % pieces + tid();
        const u8 *from = cols == S::K_TILES - 1 ? ropes : expanded + (cols - (cols >= S::K_TILES)) * TILE_BYTES + row * 128;
        cp16(to + 16 * i, from + 16 * piece, true);
    }
    cp_commit();
}

// Eight numbers of a query, rotated if they are in its rotary part.
DEV v4 load_query(const AttendParams &p, int token, int head, int chunk) {
    const float *from = (const float *)p.q + (u64)(p.token + token) * p.stride + head * (p.nope + ROPE) + 8 * chunk;
    v4 x = ldg_v4(from), y = ldg_v4(from + 4);
    u32 words[8] = {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w}, out[4];
    int col = 8 * chunk - p.nope;
    const float *cos_sin = (const float *)p.angles + (u64)(p.position + token) * ROPE + col;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float a = bits_f(words[2 * i]), b = bits_f(words[2 * i + 1]);
        if (col >= 0) {
            v2 angle = ldg_v2(cos_sin + 2 * i);
            float cos = bits_f(angle.x), sin = bits_f(angle.y), a_now = fma_f(a, cos, -(b * sin));
            b = fma_f(b, cos, a * sin);
            a = a_now;
        }
        out[i] = pack_bf16(a, b);
    }
    return {out[0], out[1], out[2], out[3]};
}

template <class S> DEV void load_queries(const AttendParams &p, int first, int head) {
    const int chunks = S::QK / 8;
    for (int i = tid(); i < S::ROWS * chunks; i += S::THREADS) {
        int row = i / chunks, chunk = i % chunks;
        v4 x = {0, 0, 0, 0};
        if (first + row < p.len) x = load_query(p, first + row, head, chunk);
        sts_v4(smem_base() + tile_chunk(S::ROWS, row, chunk), x);
    }
}

// A operand of k-step `step` of the warp's 16 queries.
template <class S> DEV void query_operand(u32 (&a)[4], int step) {
    int row = warp() * 16 + (lane() & 15), chunk = 2 * step + (lane() >> 4);
    ldsm4(a, smem_base() + tile_chunk(S::ROWS, row, chunk));
}

// s = q k^T, [16 queries, KEYS]
template <class S>
DEV void scores_of(float (&s)[S::KEYS / 8][4], const u32 (&held)[S::HELD ? S::STEPS : 1][4], u32 keys) {
#pragma unroll
    for (int n = 0; n < S::KEYS / 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
    int row = (lane() & 7) + ((lane() >> 1) & 8), half = (lane() >> 3) & 1;
#pragma unroll
    for (int step = 0; step < S::STEPS; step++) {
        u32 a[4];
        if (S::HELD) {
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = held[S::HELD ? step : 0][i];
        } else {
            query_operand<S>(a, step);
        }
#pragma unroll
        for (int n = 0; n < S::KEYS / 16; n++) {
            u32 b[4];
            ldsm4(b, keys + tile_chunk(S::KEYS, 16 * n + row, 2 * step + half));
            mma_bf16(s[2 * n], a, b[0], b[1]);
            mma_bf16(s[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// o += weights v; weights [16, KEYS] are still where the scores were.
template <class S> DEV void add_values(float (&o)[S::V / 8][4], const float (&s)[S::KEYS / 8][4], u32 values) {
    int row = lane() & 15, half = lane() >> 4;
#pragma unroll
    for (int step = 0; step < S::KEYS / 16; step++) {
        u32 a[4] = {pack_bf16(s[2 * step][0], s[2 * step][1]), pack_bf16(s[2 * step][2], s[2 * step][3]),
                    pack_bf16(s[2 * step + 1][0], s[2 * step + 1][1]), pack_bf16(s[2 * step + 1][2], s[2 * step + 1][3])};
#pragma unroll
        for (int n = 0; n < S::V / 16; n++) {
            u32 b[4];
            ldsm4t(b, values + tile_chunk(S::KEYS, 16 * step + row, 2 * n + half));
            mma_bf16(o[2 * n], a, b[0], b[1]);
            mma_bf16(o[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// Largest score so far and this lane's share of the sum of weights, for rows lane / 4 and lane / 4 + 8 of the warp.
struct Row2 {
    float max[2], sum[2];
};

// Scores become weights, sums shrink. `seen`: keys of the tile that each row sees.
template <class S>
DEV void soften(float (&s)[S::KEYS / 8][4], float (&o)[S::V / 8][4], Row2 &rows, const int (&seen)[2], float scale) {
    bool masks = min_i(seen[0], seen[1]) < S::KEYS;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float max = rows.max[r];
#pragma unroll
        for (int n = 0; n < S::KEYS / 8; n++) {
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; i++) {
                int key = 8 * n + 2 * (lane() & 3) + (i & 1);
                s[n][i] = masks && key >= seen[r] ? MINUS_INFINITY : s[n][i] * scale;
                max = max_f(max, s[n][i]);
            }
        }
        max = max_f(max, shfl_xor(max, 1));
        max = max_f(max, shfl_xor(max, 2));
        float shrink = ex2(rows.max[r] - max), sum = rows.sum[r] * shrink;
        rows.max[r] = max;
#pragma unroll
        for (int n = 0; n < S::KEYS / 8; n++) {
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; i++) {
                s[n][i] = ex2(s[n][i] - max);
                sum += s[n][i];
            }
        }
        rows.sum[r] = sum;
#pragma unroll
        for (int n = 0; n < S::V / 8; n++) {
            o[n][2 * r] *= shrink;
            o[n][2 * r + 1] *= shrink;
        }
    }
}

// Where a query's results are kept between chunks.
DEV float *out_of(const AttendParams &p, int token, int head) {
    return (float *)p.out + ((u64)(p.token + token) * p.heads + head) * (u64)p.v;
}
DEV float *stats_of(const AttendParams &p, int token, int head) {
    return (float *)p.stats + ((u64)token * p.heads + head) * 2;
}

// Goes on where the chunk in front left off. `from`: the warp's first query.
template <class S> DEV void resume(const AttendParams &p, float (&o)[S::V / 8][4], Row2 &rows, int from, int head) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int token = from + (lane() >> 2) + 8 * r;
        if (token >= p.len) continue;
        const float *out = out_of(p, token, head) + 2 * (lane() & 3);
        v2 stats = ldg_v2(stats_of(p, token, head));
        rows.max[r] = bits_f(stats.x);
        rows.sum[r] = (lane() & 3) == 0 ? bits_f(stats.y) : 0.0f;
#pragma unroll
        for (int n = 0; n < S::V / 8; n++) {
            v2 x = ldg_v2(out + 8 * n);
            o[n][2 * r] = bits_f(x.x), o[n][2 * r + 1] = bits_f(x.y);
        }
    }
}

// A query whose keys end in this chunk is done; one whose keys ended before is left alone.
template <class S> DEV void store(const AttendParams &p, const float (&o)[S::V / 8][4], const Row2 &rows, int from, int head) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = rows.sum[r] + shfl_xor(rows.sum[r], 1);
        sum += shfl_xor(sum, 2);
        int token = from + (lane() >> 2) + 8 * r, position = p.position + token;
        if (token >= p.len || position < p.first) continue;
        bool done = position < p.first + p.keys;
        float factor = done ? 1.0f / sum : 1.0f;
        float *out = out_of(p, token, head) + 2 * (lane() & 3);
#pragma unroll
        for (int n = 0; n < S::V / 8; n++) {
            stg_v2(out + 8 * n, {f_bits(o[n][2 * r] * factor), f_bits(o[n][2 * r + 1] * factor)});
        }
        if (!done && (lane() & 3) == 0) stg_v2(stats_of(p, token, head), {f_bits(rows.max[r]), f_bits(sum)});
    }
}

template <class S> DEV void attend(const AttendParams &p) {
    // The longest first.
    int head = cta_x(), first = (ncta_y() - 1 - cta_y()) * S::ROWS, from = first + warp() * 16;
    int last = p.position + min_i(first + S::ROWS, p.len) - 1; // of the positions
    int keys = min_i(last + 1 - p.first, p.keys);
    if (keys <= 0) return;
    int tiles = div_up(keys, S::KEYS);
    load_tile<S>(p, head, 0);
    load_queries<S>(p, first, head);
    u32 held[S::HELD ? S::STEPS : 1][4];
    if (S::HELD) {
        bar_sync();
#pragma unroll
        for (int step = 0; step < S::STEPS; step++) query_operand<S>(held[S::HELD ? step : 0], step);
    }
    float o[S::V / 8][4] = {};
    Row2 rows = {{MINUS_INFINITY, MINUS_INFINITY}, {0.0f, 0.0f}};
    if (p.first > 0) resume<S>(p, o, rows, from, head);
    for (int tile = 0; tile < tiles; tile++) {
        cp_wait<0>();
        bar_sync();
        if (tile + 1 < tiles) load_tile<S>(p, head, tile + 1);
        // Keys of the tile that the warp's first query sees.
        int seen = p.position + from + 1 - p.first - tile * S::KEYS;
        if (seen + 15 <= 0 || from >= p.len) continue; // none of its queries sees any, or it has none
        u32 at = stage_at<S>(tile);
        float s[S::KEYS / 8][4];
        scores_of<S>(s, held, at);
        soften<S>(s, o, rows, {seen + (lane() >> 2), seen + (lane() >> 2) + 8}, p.scale);
        add_values<S>(o, s, at + S::K_TILES * S::KEYS * 128);
    }
    store<S>(p, o, rows, from, head);
}

// DeepSeek-V2, V3, Kimi K2, Moonlight; then GLM-4.7-Flash, and the same where a block has less shared memory.
typedef Shape<128, 128, 64, 8, true> Shape128;
typedef Shape<192, 256, 32, 8, false> Shape192;
typedef Shape<192, 256, 32, 4, false> Shape192Small;

KERNEL(256, 1, smxx_bf16_prefill_128_128, AttendParams) { attend<Shape128>(p); }
KERNEL(256, 1, smxx_bf16_prefill_192_256, AttendParams) { attend<Shape192>(p); }
KERNEL(128, 1, smxx_bf16_prefill_192_256_small, AttendParams) { attend<Shape192Small>(p); }
