// Who goes to which expert, and the sum of what comes back. The products between are those of gemm.h.
#include "dev.h"
#include "step.h"

// A pair is a token and one of its `top_k` experts; a place is where a pair stands when all are sorted by expert, and by
// token within an expert. Tokens first_token .. first_token + most are looked at.
// ids: u32 [tokens, top_k]; tiles: {number of tiles} of 16 bytes, then {expert, first place, places, 0} each, at most
// `tile_rows` places; tokens: token of each place; places: of each pair, NO_PLACE where the id names no expert
#define LISTS_FIELDS(F)                                                                                                \
    F(const void *, ids)                                                                                               \
    F(void *, tiles)                                                                                                   \
    F(void *, tokens)                                                                                                  \
    F(void *, places)                                                                                                  \
    F(const void *, step)                                                                                              \
    F(int, first_token)                                                                                                \
    F(int, most)                                                                                                       \
    F(int, top_k)                                                                                                      \
    F(int, experts)                                                                                                    \
    F(int, tile_rows)
PARAMS(ListsParams, LISTS_FIELDS)

#define NO_PLACE 0xffffffffu
#define LISTS_WARPS 32
// Words from an expert's counts to the next one's, which begin in another bank.
#define LISTS_PITCH 33

// Where a block keeps, for each expert: pairs of each warp, then the places before them; all pairs; first place; first tile.
struct Lists {
    u32 counts, totals, firsts, tiles;
};

DEV Lists lists_shared(int experts) {
    u32 counts = smem_base(), totals = counts + 4 * LISTS_PITCH * experts, firsts = totals + 4 * experts;
    return {counts, totals, firsts, firsts + 4 * experts};
}

// Expert of pair i, and `experts` for none.
DEV u32 lists_id(const ListsParams &p, int i, int end) {
    u32 none = (u32)p.experts;
    if (i >= end) return none;
    u32 id = ldg_u((const u32 *)p.ids + (u64)p.first_token * (u64)p.top_k + i);
    return id < none ? id : none;
}

// Sum of x over the lanes up to this one.
DEV u32 lists_running(u32 x) {
    for (int d = 1; d < 32; d <<= 1) {
        u32 before = shfl_idx_u(x, lane() - d);
        if (lane() >= d) x += before;
    }
    return x;
}

// From the totals: first places and tiles. By one warp, 32 experts at a time.
DEV void lists_firsts(const ListsParams &p, const Lists &s) {
    u32 places = 0, all_tiles = 0;
    for (int from = 0; from < p.experts; from += 32) {
        int e = from + lane();
        u32 count = e < p.experts ? lds_u(s.totals + 4 * e) : 0;
        u32 own_tiles = (u32)div_up((int)count, p.tile_rows);
        u32 place = lists_running(count), tile = lists_running(own_tiles);
        if (e < p.experts) {
            sts_u(s.firsts + 4 * e, places + place - count);
            sts_u(s.tiles + 4 * e, all_tiles + tile - own_tiles);
        }
        places += shfl_idx_u(place, 31);
        all_tiles += shfl_idx_u(tile, 31);
    }
    if (lane() == 0) stg_u(p.tiles, all_tiles);
}

DEV void lists_tiles(const ListsParams &p, const Lists &s, int e) {
    u32 count = lds_u(s.totals + 4 * e), first = lds_u(s.firsts + 4 * e), tile = lds_u(s.tiles + 4 * e);
    u32 rows = (u32)p.tile_rows;
    for (u32 i = (u32)lane(); i * rows < count; i += 32) {
        u32 from = i * rows, n = count - from;
        stg_v4((v4 *)p.tiles + 1 + tile + i, {(u32)e, first + from, n < rows ? n : rows, 0});
    }
}

// A counting sort by one block: each warp has a run of the pairs. Shared: see `Lists`, 144 bytes an expert.
KERNEL(1024, 1, smxx_u32_expert_lists, ListsParams) {
    int pairs = max_i(0, min_i(step_tokens(p.step) - p.first_token, p.most)) * p.top_k;
    Lists s = lists_shared(p.experts);
    int run = div_up(pairs, LISTS_WARPS * 32) * 32, begin = warp() * run, end = min_i(begin + run, pairs);
    for (int i = tid(); i < LISTS_PITCH * p.experts; i += LISTS_WARPS * 32) sts_u(s.counts + 4 * i, 0);
    bar_sync();
    for (int i = begin; i < end; i += 32) {
        u32 id = lists_id(p, i + lane(), end);
        if (id < (u32)p.experts) atoms_add(s.counts + 4 * (id * LISTS_PITCH + warp()), 1);
    }
    bar_sync();
    for (int e = warp(); e < p.experts; e += LISTS_WARPS) {
        u32 count = s.counts + 4 * (e * LISTS_PITCH + lane()), own = lds_u(count), sum = lists_running(own);
        sts_u(count, sum - own);
        if (lane() == 31) sts_u(s.totals + 4 * e, sum);
    }
    bar_sync();
    if (warp() == 0) lists_firsts(p, s);
    bar_sync();
    for (int e = warp(); e < p.experts; e += LISTS_WARPS) lists_tiles(p, s, e);
    for (int i = begin; i < end; i += 32) {
        u32 id = lists_id(p, i + lane(), end), same = match_mask(id), place = NO_PLACE;
        u32 rank = (u32)popc(same & ((1u << lane()) - 1)), count = s.counts + 4 * (id * LISTS_PITCH + warp()), at = 0;
        if (id < (u32)p.experts) {
            at = lds_u(count);
            place = lds_u(s.firsts + 4 * id) + at + rank;
            stg_u((u32 *)p.tokens + place, (u32)(p.first_token + (i + lane()) / p.top_k));
        }
        if (i + lane() < end) stg_u((u32 *)p.places + i + lane(), place);
        warp_sync(); // all have read their counts
        if (id < (u32)p.experts && rank == 0) sts_u(count, at + (u32)popc(same));
        warp_sync(); // the counts are new
    }
}

// y: f32 [places, hidden]; places: null where a pair is its own place; weights: f32 [tokens, top_k]
// out: f32 [tokens, hidden]
#define SUM_EXPERTS_FIELDS(F)                                                                                          \
    F(const void *, y)                                                                                                 \
    F(const void *, ids)                                                                                               \
    F(const void *, weights)                                                                                           \
    F(const void *, places)                                                                                            \
    F(void *, out)                                                                                                     \
    F(const void *, step)                                                                                              \
    F(int, first_token)                                                                                                \
    F(int, top_k)                                                                                                      \
    F(int, hidden)                                                                                                     \
    F(int, experts)
PARAMS(SumExpertsParams, SUM_EXPERTS_FIELDS)

// out[token] += its experts' y, by rising id. Grid: 256 columns, tokens from `first_token` on. Shared: {place, weight} for
// each expert of the token, 8 bytes.
KERNEL(256, 1, smxx_f32_sum_experts, SumExpertsParams) {
    int token = p.first_token + cta_y();
    if (token >= step_tokens(p.step)) return;
    const u32 *ids = (const u32 *)p.ids + (u64)token * (u64)p.top_k;
    for (int j = tid(); j < p.top_k; j += 256) {
        u32 id = ldg_u(ids + j);
        int rank = 0;
        for (int i = 0; i < p.top_k; i++) {
            u32 other = ldg_u(ids + i);
            rank += other < id || (other == id && i < j);
        }
        u32 place = (u32)(cta_y() * p.top_k + j);
        if (p.places) place = ldg_u((const u32 *)p.places + place);
        else if (id >= (u32)p.experts) place = NO_PLACE;
        u32 weight = ldg_u((const u32 *)p.weights + (u64)token * (u64)p.top_k + j);
        sts_v2(smem_base() + 8 * rank, {place, weight});
    }
    bar_sync();
    int col = cta_x() * 256 + tid();
    if (col >= p.hidden) return;
    float *out = (float *)p.out + (u64)token * (u64)p.hidden + col;
    float sum = ldg_f(out);
    for (int j = 0; j < p.top_k; j++) {
        v2 pair = lds_v2(smem_base() + 8 * j);
        if (pair.x == NO_PLACE) continue;
        sum = fma_f(bits_f(pair.y), ldg_f((const float *)p.y + (u64)pair.x * (u64)p.hidden + col), sum);
    }
    stg_f(out, sum);
}
