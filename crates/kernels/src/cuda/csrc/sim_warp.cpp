// What a warp computes together: shuffles, votes, matrix fragments and products.
#include "sim_core.h"

#include <algorithm>

namespace sim {

// ---- shuffles and votes

struct ShuffleCall {
    u32 value, result;
    int from;
};

static void exchange(Warp &warp) {
    for (void *to : warp.arguments) {
        ShuffleCall &call = *static_cast<ShuffleCall *>(to);
        call.result = static_cast<ShuffleCall *>(warp.arguments[call.from & 31])->value;
    }
}

static const Collective SHUFFLE = {"a shuffle", exchange};

u32 shuffle(u32 x, int from, Site site) {
    ShuffleCall call = {x, 0, from};
    meet(SHUFFLE, &call, site);
    return call.result;
}

static void count_votes(Warp &warp) {
    u32 mask = 0;
    for (int l = 0; l < 32; l++) mask |= *static_cast<u32 *>(warp.arguments[l]) << l;
    for (void *to : warp.arguments) *static_cast<u32 *>(to) = mask;
}

static const Collective VOTE = {"vote_mask", count_votes};

u32 vote(bool p, Site site) {
    u32 x = p;
    meet(VOTE, &x, site);
    return x;
}

// ---- ldmatrix

struct LoadMatrixCall {
    u32 *r;
    u32 at;
    bool transposed;
    Site site;
};

// Rows that lie in the same 16 bytes of the 128 that memory gives at once are read one after another.
static u32 wavefronts(const u32 (&rows)[8]) {
    u32 most = 0, distinct[8] = {};
    for (int i = 0; i < 8; i++) {
        if (std::find(rows, rows + i, rows[i]) != rows + i) continue;
        most = std::max(most, ++distinct[rows[i] >> 4 & 7]);
    }
    return most;
}

static void load_matrices(Warp &warp) {
    for (int m = 0; m < 4; m++) {
        u32 at[8];
        u16 rows[8][8];
        for (int i = 0; i < 8; i++) {
            LoadMatrixCall &call = *static_cast<LoadMatrixCall *>(warp.arguments[8 * m + i]);
            at[i] = call.at;
            memcpy(rows[i], shared_at(call.at, 16, call.site), 16);
            if (running.races) race_read_by_warp(call.at, 16, call.site);
        }
        running.counters->ldsm_wavefronts += wavefronts(at);
        running.counters->ldsm_ideal++;
        for (int l = 0; l < 32; l++) {
            LoadMatrixCall &call = *static_cast<LoadMatrixCall *>(warp.arguments[l]);
            int g = l / 4, c = l % 4 * 2;
            u16 lo = call.transposed ? rows[c][g] : rows[g][c];
            u16 hi = call.transposed ? rows[c + 1][g] : rows[g][c + 1];
            call.r[m] = lo | (u32)hi << 16;
        }
    }
}

static const Collective LOAD_MATRICES = {"ldsm4", load_matrices};

void ldsm4(u32 (&r)[4], u32 at, bool transposed, Site site) {
    LoadMatrixCall call = {r, at, transposed, site};
    meet(LOAD_MATRICES, &call, site);
}

// ---- mma

typedef float Row __attribute__((vector_size(32))); // 8 columns

struct MmaCall {
    float *d;
    const u32 *a;
    u32 b[2];
};

static void multiply(Warp &warp) {
    float a[16][16];
    Row b[16], d[16];
    for (int l = 0; l < 32; l++) {
        MmaCall &call = *static_cast<MmaCall *>(warp.arguments[l]);
        int g = l / 4, c = l % 4 * 2;
        for (int i = 0; i < 4; i++) {
            int row = g + 8 * (i & 1), column = c + 8 * (i >> 1);
            a[row][column] = bits_f(call.a[i] << 16);
            a[row][column + 1] = bits_f(call.a[i] & 0xffff0000u);
        }
        for (int i = 0; i < 2; i++) {
            b[c + 8 * i][g] = bits_f(call.b[i] << 16);
            b[c + 8 * i + 1][g] = bits_f(call.b[i] & 0xffff0000u);
        }
    }
    for (int row = 0; row < 16; row++) {
        Row sum = {};
        for (int k = 0; k < 16; k++) sum += a[row][k] * b[k];
        d[row] = sum;
    }
    for (int l = 0; l < 32; l++) {
        MmaCall &call = *static_cast<MmaCall *>(warp.arguments[l]);
        int g = l / 4, c = l % 4 * 2;
        for (int i = 0; i < 4; i++) call.d[i] += d[g + 8 * (i >> 1)][c + (i & 1)];
    }
    running.counters->mma++;
}

static const Collective MULTIPLY = {"mma_bf16", multiply};

void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, Site site) {
    MmaCall call = {d, a, {b0, b1}};
    meet(MULTIPLY, &call, site);
}

u32 nearest_bf16(float x) {
    if (x != x) return 0x7fff;
    u32 bits = f_bits(x);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

} // namespace sim
