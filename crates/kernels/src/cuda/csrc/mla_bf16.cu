// Attention in latent space on tensor cores: bf16, latent rows of 512 + 64 numbers in tiled pages (page.h). A block takes
// an item (a part of a token's keys) and a group of 16 MT heads at a time: all of them share each key, which is read once.
// Pages of fp8 are copied as they are, and each tile is widened in shared memory to what a page of bf16 would have been.
//
// Keys come in tiles of KEYS, through STAGES tiles of shared memory, copied ahead also across the items that a block
// takes one after another. Of a tile, warp w scores keys 8w.. (while there are any), then all warps agree on the maximum
// and the weights, and warp w adds up columns 64w.. of the values. Online softmax: Milakov & Gimelshein, arXiv 1805.02867.
#include "dev.h"
#include "page.h"
#include "step.h"

#include "mla.h"

#define WARPS 8
#define THREADS (32 * WARPS)
#define RANK 512
#define WIDTH 576
#define K_STEPS (WIDTH / 16)
#define FP8_ROW (RANK / GROUP_COLS * 4 + (WIDTH - RANK) * 2 + RANK)

// Steps of 16 columns of the query that a thread holds in registers: with one tile of heads all, else none.
template <int MT> constexpr int HELD = MT == 1 ? K_STEPS : 0;

// Places in shared memory. MT: tiles of 16 heads.
template <int MT, int STAGES, int KEYS, bool FP8> struct Places {
    static constexpr int TILE = KEYS * WIDTH * 2;
    static constexpr int STAGE = FP8 ? KEYS * FP8_ROW : TILE;
    static constexpr int QUERY = MT == 1 ? 0 : 16 * MT * WIDTH * 2;
    static constexpr int WEIGHTS_ROW = KEYS * 2 + 16; // 16 more, so that 8 rows lie in different banks
    static constexpr int WEIGHTS = 16 * MT * WEIGHTS_ROW;
    static constexpr int SCORERS = KEYS / 8; // warps that have keys to score

    DEV_MEMBER static u32 stage(int i) { return smem_base() + (u32)(i * STAGE); }
    // Stage i as it is attended to: where it lies, or widened.
    DEV_MEMBER static u32 tile(int i) { return stage(FP8 ? STAGES : i); }
    DEV_MEMBER static u32 query() { return stage(STAGES) + (FP8 ? TILE : 0); }
    DEV_MEMBER static u32 weights() { return query() + QUERY; }
    // f32 [SCORERS, 16 MT] each: what a warp found for a head
    DEV_MEMBER static u32 maxima() { return weights() + WEIGHTS; }
    DEV_MEMBER static u32 sums() { return maxima() + SCORERS * 16 * MT * 4; }
};

// Address of a 16-byte chunk of a row in a tile of `rows` rows, swizzled as pages are.
template <int ROWS> DEV u32 tile_chunk(int row, int chunk) {
    return (u32)((chunk >> 3) * ROWS * 128 + row * 128 + (((chunk & 7) ^ (row & 7)) * 16));
}

// Items of this pass, times groups of heads: unit u is group u % groups of item u / groups.
struct Units {
    int first_item, n, groups;
};

// Copies tiles of all units of this block, in their order, ahead of those that use them. Few registers: they are scarce.
template <int KEYS, bool FP8> struct Reader {
    const MlaParams &p;
    Units units;
    const u32 *table = nullptr; // of the row
    int unit, position = 0, end = 0;
    u32 page = 0; // of the next tile

    DEV_MEMBER Reader(const MlaParams &p, const Units &units) : p(p), units(units), unit(cta_x()) { enter(); }
    DEV_MEMBER bool done() const { return unit >= units.n; }
    DEV_MEMBER void enter() {
        if (done()) return;
        const u32 *words = (const u32 *)p.step;
        MlaItem item = mla_item(p, units.first_item + unit / units.groups);
        table = words + ldg_u(words + STEP_TABLES_AT) + item.row * ldg_u(words + STEP_TABLE_WIDTH);
        position = item.from;
        end = item.end;
        find();
    }
    // Looks a page up long before it is copied.
    DEV_MEMBER void find() {
        u32 block = ldg_u(table + position / p.block_len);
        page = block * (u32)(p.block_len / PAGE_ROWS) + (u32)(position % p.block_len / PAGE_ROWS);
    }
    // Rows behind the item's end become zeros: what a page holds there may be NaN.
    DEV_MEMBER void copy_bf16(u32 to) const {
        // Each copy of all threads is 32 rows of a column of 64 numbers, so that every place is one base and a constant.
        const u8 *from = (const u8 *)p.layer + (u64)page * (PAGE_ROWS * WIDTH * 2) + position % PAGE_ROWS * 128 + tid() * 16;
        int valid = end - position - tid() / 8;
#pragma unroll
        for (int i = 0; i < KEYS * WIDTH / 8 / THREADS; i++) {
            cp16(to + (u32)(tid() * 16 + i * 4096), from + i * (TILE_BYTES / KEYS * 32), i * 32 % KEYS < valid);
        }
    }
    // As it lies in the page: columns of 16 numbers, the rotary tile, scales.
    DEV_MEMBER void copy_fp8(u32 to) const {
        const u8 *from = (const u8 *)p.layer + (u64)page * (PAGE_ROWS * FP8_ROW);
        int first = position % PAGE_ROWS, row = tid() % KEYS, valid = end - position;
        const u8 *numbers = from + (tid() / KEYS * PAGE_ROWS + first + row) * 16;
#pragma unroll
        for (int i = 0; i < KEYS * RANK / 16 / THREADS; i++) {
            cp16(to + (u32)(tid() * 16 + i * 4096), numbers + i * (THREADS / KEYS * PAGE_ROWS * 16), row < valid);
        }
        to += KEYS * RANK, from += PAGE_ROWS * RANK;
#pragma unroll
        for (int i = 0; i < KEYS * 8 / THREADS; i++) {
            cp16(to + (u32)(tid() * 16 + i * 4096), from + first * 128 + tid() * 16 + i * 4096, tid() / 8 + i * 32 < valid);
        }
        to += KEYS * 128, from += PAGE_ROWS * 128;
        if (tid() < KEYS) cp16(to + (u32)(tid() * 16), from + (first + tid()) * 16, tid() < valid);
    }
    DEV_MEMBER void copy(u32 to) {
        if (done()) return;
        if constexpr (FP8) copy_fp8(to);
        else copy_bf16(to);
        position += KEYS;
        if (position < end) return find();
        unit += ncta_x();
        enter();
    }
};

// A stage of fp8 as a tile of bf16: each thread 16 columns of a row at a time.
template <int KEYS> DEV void widen(u32 tile, u32 stage) {
    const int row = tid() % KEYS, first = tid() / KEYS;
    const v4 scales = lds_v4(stage + (u32)(KEYS * (RANK + 128) + row * 16));
    u32 lo_to = tile + tile_chunk<KEYS>(row, 2 * first), hi_to = tile + tile_chunk<KEYS>(row, 2 * first + 1);
#pragma unroll
    for (int i = 0; i < KEYS * RANK / 16 / THREADS; i++) {
        const int group = i * (THREADS / KEYS) * 16 / GROUP_COLS; // of all threads: they have half a group, or one
        u32 scale = group < 2 ? (group == 0 ? scales.x : scales.y) : (group == 2 ? scales.z : scales.w);
        v4 lo, hi;
        widen_chunks(lds_v4(stage + (u32)(tid() * 16 + i * 4096)), scale, lo, hi);
        sts_v4(lo_to + i * 8192, lo);
        sts_v4(hi_to + i * 8192, hi);
    }
#pragma unroll
    for (int i = 0; i < KEYS * 8 / THREADS; i++) {
        u32 at = (u32)(tid() * 16 + i * 4096);
        sts_v4(tile + KEYS * RANK * 2 + at, lds_v4(stage + KEYS * RANK + at));
    }
}

// The query of ROWS heads into shared memory; zeros behind the last head.
template <int ROWS> DEV void store_query(u32 to, const MlaParams &p, int token, int head) {
    const float *q = (const float *)p.q + ((u64)token * p.heads + head) * WIDTH;
    for (int i = tid(); i < ROWS * WIDTH / 8; i += THREADS) {
        int row = i / (WIDTH / 8), chunk = i % (WIDTH / 8);
        v4 x = {0, 0, 0, 0};
        if (head + row < p.heads) {
            v4 lo = ldg_v4(q + row * WIDTH + 8 * chunk), hi = ldg_v4(q + row * WIDTH + 8 * chunk + 4);
            x = {pack_bf16(bits_f(lo.x), bits_f(lo.y)), pack_bf16(bits_f(lo.z), bits_f(lo.w)),
                 pack_bf16(bits_f(hi.x), bits_f(hi.y)), pack_bf16(bits_f(hi.z), bits_f(hi.w))};
        }
        sts_v4(to + tile_chunk<ROWS>(row, chunk), x);
    }
}

// 16 heads of it as the A operand of one step of 16 columns.
template <int ROWS> DEV void query_step(u32 (&a)[4], u32 query, int m, int step) {
    ldsm4(a, query + tile_chunk<ROWS>(16 * m + lane() % 16, 2 * step + lane() / 16));
}

// One unit's state in a thread: for heads g and g + 8 of each tile, with g = lane / 4.
template <int MT> struct Online {
    float max[MT][2], sum[MT][2]; // the sum is over this thread's keys
    float out[MT][8][4];          // columns 64 warp + 8 j + 2 (lane % 4), and the next

    DEV_MEMBER void clear() {
#pragma unroll
        for (int m = 0; m < MT; m++) {
            max[m][0] = max[m][1] = MINUS_INFINITY;
            sum[m][0] = sum[m][1] = 0.0f;
#pragma unroll
            for (int j = 0; j < 8; j++) out[m][j][0] = out[m][j][1] = out[m][j][2] = out[m][j][3] = 0.0f;
        }
    }
};

// Those of one step of 16 columns against 8 keys.
template <int MT, int STAGES, int KEYS, bool FP8>
DEV void score_step(float (&scores)[MT][4], const u32 (&query)[HELD<MT> + 1][4], int step, u32 b0, u32 b1) {
    using At = Places<MT, STAGES, KEYS, FP8>;
    if (step < HELD<MT>) return mma_bf16(scores[0], query[step], b0, b1);
#pragma unroll
    for (int m = 0; m < MT; m++) {
        u32 a[4];
        query_step<16 * MT>(a, At::query(), m, step);
        mma_bf16(scores[m], a, b0, b1);
    }
}

// scores[m]: heads of tile m against keys 8 warp .. 8 warp + 7, in two chains of products.
template <int MT, int STAGES, int KEYS, bool FP8>
DEV void score(float (&scores)[MT][4], const u32 (&query)[HELD<MT> + 1][4], u32 stage) {
    float odd[MT][4];
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int i = 0; i < 4; i++) scores[m][i] = odd[m][i] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < K_STEPS; step += 2) {
        u32 keys[4];
        ldsm4(keys, stage + tile_chunk<KEYS>(8 * warp() + lane() % 8, 2 * step + lane() / 8));
        score_step<MT, STAGES, KEYS, FP8>(scores, query, step, keys[0], keys[1]);
        score_step<MT, STAGES, KEYS, FP8>(odd, query, step + 1, keys[2], keys[3]);
    }
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int i = 0; i < 4; i++) scores[m][i] += odd[m][i];
    }
}

// Takes in one tile of which `n` keys count.
template <int MT, int STAGES, int KEYS, bool FP8>
DEV void attend_tile(Online<MT> &state, const u32 (&query)[HELD<MT> + 1][4], u32 stage, int n, float scale) {
    using At = Places<MT, STAGES, KEYS, FP8>;
    const int g = lane() / 4, c = 2 * (lane() % 4), key = 8 * warp() + c;
    const bool scores_keys = warp() < At::SCORERS;
    float s[MT][4];
    if (scores_keys) {
        score<MT, STAGES, KEYS, FP8>(s, query, stage);
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) s[m][i] = key + i % 2 < n ? s[m][i] * scale : MINUS_INFINITY;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float best = max_f(s[m][2 * half], s[m][2 * half + 1]);
                best = max_f(best, shfl_xor(best, 1));
                best = max_f(best, shfl_xor(best, 2));
                if (c == 0) sts_f(At::maxima() + (u32)(warp() * 16 * MT + 16 * m + g + 8 * half) * 4, best);
            }
        }
    }
    bar_sync();
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int head = 16 * m + g + 8 * half;
            float max = state.max[m][half];
#pragma unroll
            for (int w = 0; w < At::SCORERS; w++) max = max_f(max, lds_f(At::maxima() + (u32)(w * 16 * MT + head) * 4));
            float shrink = ex2(state.max[m][half] - max);
            state.max[m][half] = max;
            state.sum[m][half] *= shrink;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                state.out[m][j][2 * half] *= shrink;
                state.out[m][j][2 * half + 1] *= shrink;
            }
            if (scores_keys) {
                float lo = ex2(s[m][2 * half] - max), hi = ex2(s[m][2 * half + 1] - max);
                state.sum[m][half] += lo + hi;
                sts_u(At::weights() + (u32)(head * At::WEIGHTS_ROW + key * 2), pack_bf16(lo, hi));
            }
        }
    }
    bar_sync();
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        u32 w[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            ldsm4(w[m], At::weights() + (u32)((16 * m + lane() % 16) * At::WEIGHTS_ROW + (16 * step + lane() / 16 * 8) * 2));
        }
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            u32 values[4];
            ldsm4t(values, stage + tile_chunk<KEYS>(16 * step + lane() % 16, 8 * warp() + j + lane() / 16));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma_bf16(state.out[m][j], w[m], values[0], values[1]);
                mma_bf16(state.out[m][j + 1], w[m], values[2], values[3]);
            }
        }
    }
}

// Adds up what the warps have summed, and writes averages and logarithms.
template <int MT, int STAGES, int KEYS, bool FP8>
DEV void write_unit(const Online<MT> &state, const MlaParams &p, const MlaResult &result, int first_head) {
    using At = Places<MT, STAGES, KEYS, FP8>;
    const int g = lane() / 4, c = 2 * (lane() % 4);
    if (warp() < At::SCORERS) {
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float sum = state.sum[m][half];
                sum += shfl_xor(sum, 1);
                sum += shfl_xor(sum, 2);
                if (c == 0) sts_f(At::sums() + (u32)(warp() * 16 * MT + 16 * m + g + 8 * half) * 4, sum);
            }
        }
    }
    bar_sync();
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int within = 16 * m + g + 8 * half, head = first_head + within;
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < At::SCORERS; w++) sum += lds_f(At::sums() + (u32)(w * 16 * MT + within) * 4);
            if (head >= p.heads) continue;
            float *to = result.heads + (u64)head * RANK + 64 * warp() + c;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float lo = state.out[m][j][2 * half] / sum, hi = state.out[m][j][2 * half + 1] / sum;
                stg_v2(to + 8 * j, {f_bits(lo), f_bits(hi)});
            }
            if (result.lse && warp() == 0 && c == 0) stg_f(result.lse + head, state.max[m][half] + lg2(sum));
        }
    }
}

template <int MT, int STAGES, int KEYS, bool FP8 = false> DEV void attend(const MlaParams &p) {
    using At = Places<MT, STAGES, KEYS, FP8>;
    int first = mla_first_item(p, mla_pass_token(p, p.pass));
    int items = mla_first_item(p, mla_pass_token(p, p.pass + 1)) - first;
    int groups = div_up(p.heads, 16 * MT);
    Units units = {first, items * groups, groups};
    Reader<KEYS, FP8> reader(p, units);
    for (int i = 0; i < STAGES - 1; i++) {
        reader.copy(At::stage(i));
        cp_commit();
    }
    int stage = 0, free = STAGES - 1;
    for (int unit = cta_x(); unit < units.n; unit += ncta_x()) {
        MlaItem item = mla_item(p, first + unit / groups);
        u32 query[HELD<MT> + 1][4];
        // To be held it passes through the stage that is filled next.
        u32 place = MT == 1 ? At::stage(free) : At::query();
        store_query<16 * MT>(place, p, item.token, unit % groups * 16 * MT);
        if constexpr (MT == 1) {
            bar_sync();
#pragma unroll
            for (int step = 0; step < K_STEPS; step++) query_step<16>(query[step], place, 0, step);
        }
        Online<MT> state;
        state.clear();
        for (int keys = item.end - item.from; keys > 0; keys -= KEYS) {
            cp_wait<STAGES - 2>();
            bar_sync(); // the tile is there for all, and nobody reads the one before any more
            reader.copy(At::stage(free));
            cp_commit();
            if constexpr (FP8) {
                widen<KEYS>(At::tile(stage), At::stage(stage));
                bar_sync(); // the tile is whole
            }
            attend_tile<MT, STAGES, KEYS, FP8>(state, query, At::tile(stage), keys, p.scale);
            free = stage;
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        int token = mla_item(p, first + unit / groups).token; // again: no register holds it through the loop
        write_unit<MT, STAGES, KEYS, FP8>(state, p, mla_result(p, token, unit / groups), unit % groups * 16 * MT);
    }
}

// m: heads together, k: keys of a tile, s: stages
KERNEL(THREADS, 1, smxx_bf16_mla_m16_k64_s3, MlaParams) { attend<1, 3, 64>(p); }
KERNEL(THREADS, 1, smxx_bf16_mla_m16_k64_s2, MlaParams) { attend<1, 2, 64>(p); }
KERNEL(THREADS, 1, smxx_bf16_mla_m16_k32_s2, MlaParams) { attend<1, 2, 32>(p); }
KERNEL(THREADS, 1, smxx_bf16_mla_m32_k64_s2, MlaParams) { attend<2, 2, 64>(p); }
KERNEL(THREADS, 1, smxx_bf16_mla_m32_k32_s3, MlaParams) { attend<2, 3, 32>(p); }
// of a cache in fp8
KERNEL(THREADS, 1, smxx_bf16_mla_m16_k64_s3_fp8, MlaParams) { attend<1, 3, 64, true>(p); }
KERNEL(THREADS, 1, smxx_bf16_mla_m16_k64_s2_fp8, MlaParams) { attend<1, 2, 64, true>(p); }
KERNEL(THREADS, 1, smxx_bf16_mla_m16_k32_s2_fp8, MlaParams) { attend<1, 2, 32, true>(p); }
KERNEL(THREADS, 1, smxx_bf16_mla_m32_k64_s2_fp8, MlaParams) { attend<2, 2, 64, true>(p); }
KERNEL(THREADS, 1, smxx_bf16_mla_m32_k32_s3_fp8, MlaParams) { attend<2, 3, 32, true>(p); }
