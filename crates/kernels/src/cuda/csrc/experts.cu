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

// Expert of pair i, and `experts` for none.
DEV u32 lists_id(const ListsParams &p, int i, int pairs) {
    u32 none = (u32)p.experts;
    if (i >= pairs) return none;
    u32 id = ldg_u((const u32 *)p.ids + (u64)p.first_token * (u64)p.top_k + i);
    return id < none ? id : none;
}

// One block; experts take turns among its warps. Shared: {places, first place, first tile} for each expert, 12 bytes.
KERNEL(1024, 1, smxx_u32_expert_lists, ListsParams) {
    int pairs = max_i(0, min_i(step_tokens(p.step) - p.first_token, p.most)) * p.top_k;
    u32 counts = smem_base(), firsts = counts + 4 * p.experts, tiles = firsts + 4 * p.experts;
    for (int e = warp(); e < p.experts; e += LISTS_WARPS) {
        int count = 0;
        for (int i = 0; i < pairs; i += 32) count += popc(vote_mask(lists_id(p, i + lane(), pairs) == (u32)e));
        if (lane() == 0) sts_u(counts + 4 * e, (u32)count);
    }
    bar_sync();
    if (warp() == 0) { // running sums over the experts, 32 at a time
        u32 places = 0, all_tiles = 0;
        for (int from = 0; from < p.experts; from += 32) {
            int e = from + lane();
            u32 count = e < p.experts ? lds_u(counts + 4 * e) : 0;
            u32 own_tiles = (u32)div_up((int)count, p.tile_rows), place = count, tile = own_tiles;
            for (int d = 1; d < 32; d <<= 1) {
                u32 x = shfl_idx_u(place, lane() - d), y = shfl_idx_u(tile, lane() - d);
                if (lane() >= d) place += x, tile += y;
            }
            if (e < p.experts) {
                sts_u(firsts + 4 * e, places + place - count);
                sts_u(tiles + 4 * e, all_tiles + tile - own_tiles);
            }
            places += shfl_idx_u(place, 31);
            all_tiles += shfl_idx_u(tile, 31);
        }
        if (lane() == 0) stg_u(p.tiles, all_tiles);
    }
    bar_sync();
    for (int e = warp(); e < p.experts; e += LISTS_WARPS) {
        u32 count = lds_u(counts + 4 * e), first = lds_u(firsts + 4 * e), tile = lds_u(tiles + 4 * e);
        for (u32 i = (u32)lane(); i * (u32)p.tile_rows < count; i += 32) {
            u32 from = i * (u32)p.tile_rows, n = count - from;
            if (n > (u32)p.tile_rows) n = (u32)p.tile_rows;
            stg_v4((v4 *)p.tiles + 1 + tile + i, {(u32)e, first + from, n, 0});
        }
        for (int i = 0; i < pairs; i += 32) {
            u32 chosen = vote_mask(lists_id(p, i + lane(), pairs) == (u32)e);
            if (chosen >> lane() & 1) {
                u32 place = first + (u32)popc(chosen & ((1u << lane()) - 1));
                stg_u((u32 *)p.tokens + place, (u32)(p.first_token + (i + lane()) / p.top_k));
                stg_u((u32 *)p.places + i + lane(), place);
            }
            first += (u32)popc(chosen);
        }
    }
    for (int i = tid(); i < pairs; i += LISTS_WARPS * 32)
        if (lists_id(p, i, pairs) == (u32)p.experts) stg_u((u32 *)p.places + i, NO_PLACE);
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
