// From a row of logits to a token, one block a draw: what crates/sampler does. Weights are f32 by the same polynomial, to
// the bit; masses are f64, of 16 lanes a tile of 512. (Sums may differ from the CPU's in the last bit of an f64: it packs
// what top-k leaves before it tiles, and adds what lies above a cut by top-p in another order.)
#include "dev.h"
#include "step.h"

#define SHARED_FIXED_BYTES 512
#include "select.h"

// Words of `Draws` as sample.rs lays them out: counts, then draws, then lists.
#define N_DRAWS 0
#define SAMPLED_VOCAB 1
#define DRAWS_AT 4
#define DRAW_WORDS 20
// Of a draw. Lists: first word and length.
#define DRAW_OUTPUT 0
#define DRAW_AFTER 1 // a draw of the step before, or NONE
#define DRAW_SCALE 2 // log2(e) / temperature; 0 is greedy
#define DRAW_TOP_K 3 // 0 is off
#define DRAW_TOP_P 4
#define DRAW_MIN_P 5
#define DRAW_REPETITION 6
#define DRAW_FREQUENCY 7
#define DRAW_PRESENCE 8
#define DRAW_ADJUSTS 9
#define DRAW_UNIFORM 10
#define DRAW_BANNED 12
#define DRAW_COUNTS 14
#define DRAW_BIASES 16
#define DRAW_MASK 18 // first word, or NONE

#define NONE 0xffffffffu
#define INFINITE bits_f(0x7f800000u)
#define LARGEST bits_f(0x7f7fffffu)
#define BIAS_MAX 100.0f
#define TILE 512
#define LANES 16
// Behind the fixed part of shared memory, when no search is under way: the lanes' sums, 8 bytes a thread; the weights of a
// tile; the masses of all tiles.
#define TILE_WEIGHTS_AT (8 * THREADS)
#define MASSES_AT (TILE_WEIGHTS_AT + 4 * TILE)

// logits: f32 [outputs, vocab]; words: as above; ids: u32 [2, most] (step.h); adjusted: f32 [most, vocab]
#define SAMPLE_FIELDS(F)                                                                                               \
    F(const void *, logits)                                                                                            \
    F(const void *, words)                                                                                             \
    F(const void *, step)                                                                                              \
    F(void *, ids)                                                                                                     \
    F(void *, adjusted)                                                                                                \
    F(int, vocab)                                                                                                      \
    F(int, most)
PARAMS(SampleParams, SAMPLE_FIELDS)

DEV float float_of(const u32 *draw, int word) { return bits_f(ldg_u(draw + word)); }

// ---- masks, penalties, bias

struct Adjusting {
    const u32 *words, *draw;
    float *row;
    int n;
};

// The row, masked. False if a logit of it, or of what pads it, is no number.
DEV bool copy_masked(const Adjusting &a, const float *from, int vocab, const Shared &s) {
    u32 mask = ldg_u(a.draw + DRAW_MASK);
    bool numbers = true;
    for (int at = tid(); at < vocab; at += 4 * THREADS) {
        float x[4];
#pragma unroll
        for (int j = 0; j < 4; j++) x[j] = at + j * THREADS < vocab ? ldg_f(from + at + j * THREADS) : 0.0f;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int id = at + j * THREADS;
            numbers = numbers && x[j] < INFINITE;
            if (id >= a.n) continue;
            bool allowed = mask == NONE || (ldg_u(a.words + mask + id / 32) >> (id % 32) & 1);
            stg_f(a.row + id, allowed ? x[j] : MINUS_INFINITY);
        }
    }
    if (tid() == 0) sts_u(s.found, 0);
    bar_sync();
    if (!numbers) atoms_add(s.found, 1);
    bar_sync();
    return lds_u(s.found) == 0;
}

DEV void ban(const Adjusting &a) {
    u32 at = ldg_u(a.draw + DRAW_BANNED), n = ldg_u(a.draw + DRAW_BANNED + 1);
    for (u32 i = (u32)tid(); i < n; i += THREADS) {
        u32 id = ldg_u(a.words + at + i);
        if (id < (u32)a.n) stg_f(a.row + id, MINUS_INFINITY);
    }
    bar_sync();
}

DEV void penalise_one(const Adjusting &a, u32 id, u32 count) {
    if (id >= (u32)a.n) return;
    float x = ldg_f(a.row + id), repetition = float_of(a.draw, DRAW_REPETITION);
    float presence = count > 0 ? float_of(a.draw, DRAW_PRESENCE) : 0.0f;
    float penalty = float_of(a.draw, DRAW_FREQUENCY) * (float)count + presence;
    x = x > 0.0f ? min_f(x / repetition, LARGEST) : x * repetition;
    stg_f(a.row + id, x - penalty);
}

// `after`: a token that counts once more, or an id that is none.
DEV void penalise(const Adjusting &a, u32 after, const Shared &s) {
    u32 at = ldg_u(a.draw + DRAW_COUNTS), n = ldg_u(a.draw + DRAW_COUNTS + 1);
    if (tid() == 0) sts_u(s.found, 0);
    bar_sync();
    for (u32 i = (u32)tid(); i < n; i += THREADS) {
        v2 pair = ldg_v2(a.words + at + 2 * i);
        bool counted = pair.x == after;
        if (counted) atoms_add(s.found, 1);
        penalise_one(a, pair.x, pair.y + (counted ? 1 : 0));
    }
    bar_sync();
    if (tid() == 0 && lds_u(s.found) == 0) penalise_one(a, after, 1);
    bar_sync();
}

DEV bool forces(const Adjusting &a, u32 id, float bias) {
    return bias >= BIAS_MAX && id < (u32)a.n && ldg_f(a.row + id) > MINUS_INFINITY;
}

// Leaves the tokens that a bias forces. Their bits lie where the bins do.
DEV void keep_forced(const Adjusting &a, u32 at, u32 n, const Shared &s) {
    for (int i = tid(); i < div_up(a.n, 32); i += THREADS) sts_u(s.bins + 4 * i, 0);
    bar_sync();
    for (u32 i = (u32)tid(); i < n; i += THREADS) {
        v2 pair = ldg_v2(a.words + at + 2 * i);
        // Each id is listed once, so that the sum of the bits is all of them.
        if (forces(a, pair.x, bits_f(pair.y))) atoms_add(s.bins + pair.x / 32 * 4, 1u << pair.x % 32);
    }
    bar_sync();
    for (int id = tid(); id < a.n; id += THREADS) {
        if (!(lds_u(s.bins + id / 32 * 4) >> (id % 32) & 1)) stg_f(a.row + id, MINUS_INFINITY);
    }
    bar_sync();
}

DEV void add_biases(const Adjusting &a, const Shared &s) {
    u32 at = ldg_u(a.draw + DRAW_BIASES), n = ldg_u(a.draw + DRAW_BIASES + 1);
    if (tid() == 0) sts_u(s.found, 0);
    bar_sync();
    for (u32 i = (u32)tid(); i < n; i += THREADS) {
        v2 pair = ldg_v2(a.words + at + 2 * i);
        float bias = bits_f(pair.y);
        if (pair.x >= (u32)a.n) continue;
        stg_f(a.row + pair.x, bias <= -BIAS_MAX ? MINUS_INFINITY : ldg_f(a.row + pair.x) + bias);
        if (forces(a, pair.x, bias)) atoms_add(s.found, 1);
    }
    bar_sync();
    if (lds_u(s.found) > 0) keep_forced(a, at, n, s);
}

DEV bool adjust(const SampleParams &p, const Adjusting &a, const float *logits, const Shared &s) {
    if (!copy_masked(a, logits, p.vocab, s)) return false;
    u32 after = ldg_u(a.draw + DRAW_AFTER);
    if (after != NONE) after = step_id_before(p.step, p.ids, p.most, after);
    ban(a);
    penalise(a, after, s);
    add_biases(a, s);
    return true;
}

// ---- the best

struct Best {
    u32 order; // NONE where a logit is no number
    int id;    // the first one
};

// Of the first `n`; all `vocab` are looked at for what is no number.
DEV Best best_of(const float *row, int n, int vocab, const Shared &s) {
    float max = MINUS_INFINITY;
    int first = ALL_IDS;
    bool numbers = true;
    each(row, vocab, [&](int id, float x) {
        numbers = numbers && x < INFINITE;
        if (id < n && x > max) max = x, first = id;
    });
    u32 own = numbers ? order_of(max) : NONE, best = warp_max_u(own);
    if (lane() == 0) sts_u(s.warps + 4 * warp(), best);
    bar_sync();
    best = warp_max_u(lds_u(s.warps + 4 * lane()));
    u32 id = warp_min_u(own == best ? (u32)first : ALL_IDS);
    if (lane() == 0) sts_u(s.groups + 4 * warp(), id);
    bar_sync();
    return {best, (int)warp_min_u(lds_u(s.groups + 4 * lane()))};
}

// ---- the draw

// 2^y for y <= 0 as crates/sampler/src/lanes.rs rounds it; 0 below 2^-125.
DEV float power_of_two(float y) {
    float rounded = y + 12582912.0f, x = y - (rounded - 12582912.0f);
    float fraction = 0.0013300607f * x + 0.009669691f;
    fraction = fraction * x + 0.055505585f;
    fraction = fraction * x + 0.24022283f;
    fraction = fraction * x + 0.6931472f;
    fraction = fraction * x + 1.0f;
    return y >= -125.0f ? bits_f(f_bits(fraction) + (f_bits(rounded) << 23)) : 0.0f;
}

// What the tokens of each tile weigh: lane l sums l, l + 16, ... of it, then the lanes are added one after another.
template <class Weight> DEV void weigh_tiles(const float *row, int n, const Shared &s, Weight weight) {
    int tiles = div_up(n, TILE), l = tid() % LANES;
    u32 sums = s.bins + 8 * tid();
    for (int from = 0; from < tiles; from += THREADS / LANES) {
        int tile = from + tid() / LANES;
        double sum = 0.0;
#pragma unroll 8
        for (int id = tile * TILE + l; id < min_i((tile + 1) * TILE, n); id += LANES) {
            sum += (double)weight(id, ldg_f(row + id));
        }
        sts_d(sums, sum);
        warp_sync();
        if (l == 0 && tile < tiles) {
            double mass = 0.0;
            for (int i = 0; i < LANES; i++) mass += lds_d(sums + 8 * i);
            sts_d(s.bins + MASSES_AT + 8 * tile, mass);
        }
        warp_sync();
    }
}

// By one thread: the tile in which the share `uniform` of all lies, and what of the share is left there.
DEV void walk_tiles(int tiles, double uniform, const Shared &s) {
    double total = 0.0, m[8];
    auto load8 = [&](int from) {
#pragma unroll
        for (int j = 0; j < 8; j++) m[j] = from + j < tiles ? lds_d(s.bins + MASSES_AT + 8 * (from + j)) : 0.0;
    };
    for (int from = 0; from < tiles; from += 8) {
        load8(from);
#pragma unroll
        for (int j = 0; j < 8; j++) total += m[j];
    }
    double left = uniform * total;
    int tile = 0;
    bool there = false;
    for (int from = 0; from < tiles && !there; from += 8) {
        load8(from);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (there || m[j] == 0.0) continue;
            tile = from + j;
            there = left < m[j];
            if (!there) left -= m[j];
        }
    }
    sts_u(s.found, (u32)tile);
    sts_d(s.found + 8, left);
}

// By one thread: the place in the tile, 16 at a time.
DEV int walk_tile(double left, const Shared &s) {
    int last = 0;
    for (int from = 0; from < TILE && left >= 0.0; from += 16) {
        v4 ahead[4];
#pragma unroll
        for (int j = 0; j < 4; j++) ahead[j] = lds_v4(s.bins + TILE_WEIGHTS_AT + 4 * from + 16 * j);
#pragma unroll
        for (int j = 0; j < 16; j++) {
            v4 four = ahead[j / 4];
            float w = bits_f(j % 4 == 0 ? four.x : j % 4 == 1 ? four.y : j % 4 == 2 ? four.z : four.w);
            if (left < 0.0 || w == 0.0f) continue;
            last = from + j;
            left -= (double)w;
        }
    }
    return last;
}

// The token at the share `uniform` of what all weigh, in the order of the ids; rounding may end at the last. For thread 0.
template <class Weight> DEV u32 walk(const float *row, int n, double uniform, const Shared &s, Weight weight) {
    weigh_tiles(row, n, s, weight);
    bar_sync();
    if (tid() == 0) walk_tiles(div_up(n, TILE), uniform, s);
    bar_sync();
    int tile = (int)lds_u(s.found), id = tile * TILE + tid();
    if (tid() < TILE) sts_f(s.bins + TILE_WEIGHTS_AT + 4 * tid(), id < n ? weight(id, ldg_f(row + id)) : 0.0f);
    bar_sync();
    return tid() == 0 ? (u32)(tile * TILE + walk_tile(lds_d(s.found + 8), s)) : 0;
}

DEV u32 choose(const u32 *draw, const float *row, int n, u32 best, const Shared &s) {
    float scale = float_of(draw, DRAW_SCALE), top = from_order(best);
    float top_p = float_of(draw, DRAW_TOP_P), least = max_f(float_of(draw, DRAW_MIN_P), 0x1p-126f);
    u32 top_k = ldg_u(draw + DRAW_TOP_K);
    Cut by_k = {0, ALL_IDS}, by_p = {0, ALL_IDS};
    if (top_k > 0) by_k = cut_at<false>(s, row, n, (double)top_k, [](int, float x) { return order_of(x); });
    auto weight = [&](int id, float x) {
        return keeps(by_k, order_of(x), id) ? power_of_two((x - top) * scale) : 0.0f;
    };
    if (top_p < 1.0f) {
        by_p = cut_at<true>(s, row, n, (double)top_p, [&](int id, float x) { return f_bits(weight(id, x)); });
    }
    return walk(row, n, ldg_d(draw + DRAW_UNIFORM), s, [&](int id, float x) {
        float w = weight(id, x);
        return w >= least && keeps(by_p, f_bits(w), id) ? w : 0.0f;
    });
}

DEV u32 drawn(const SampleParams &p, const u32 *draw) {
    const u32 *words = (const u32 *)p.words;
    const float *row = (const float *)p.logits + (u64)ldg_u(draw + DRAW_OUTPUT) * (u64)p.vocab;
    Shared s = shared();
    int n = (int)ldg_u(words + SAMPLED_VOCAB), whole = p.vocab;
    if (ldg_u(draw + DRAW_ADJUSTS)) {
        float *adjusted = (float *)p.adjusted + (u64)cta_x() * (u64)p.vocab;
        if (!adjust(p, {words, draw, adjusted, n}, row, s)) return DRAWN_NOT_FINITE;
        row = adjusted, whole = n;
    }
    Best best = best_of(row, n, whole, s);
    if (best.order == NONE) return DRAWN_NOT_FINITE;
    if (best.order == order_of(MINUS_INFINITY)) return DRAWN_ALL_MASKED;
    if (ldg_u(draw + DRAW_SCALE) == 0) return (u32)best.id;
    return choose(draw, row, n, best.order, s);
}

// Grid: draws. Shared: SHARED_FIXED_BYTES and what lies behind, or a bit an id of the vocabulary where that is more.
KERNEL(THREADS, 1, smxx_f32_sample, SampleParams) {
    const u32 *words = (const u32 *)p.words;
    if (cta_x() >= (int)ldg_u(words + N_DRAWS)) return;
    u32 id = drawn(p, words + DRAWS_AT + DRAW_WORDS * cta_x());
    if (tid() == 0) stg_u(step_ids(p.step, p.ids, p.most) + cta_x(), id);
}
