// What a GPU can do at best, measured by kernels that do nothing else, and memory filled with noise: for the GPU kit
// (scripts/gpu) alone. No step of a model launches these.
#include "dev.h"

#define THREADS 256
#define UNROLL 8
// Units of 16 bytes that a block takes at a time.
#define TILE (THREADS * UNROLL)

#define PEAK_FIELDS(F) F(const void *, from) F(void *, to) F(u64, units) F(int, n)
PARAMS(PeakP, PEAK_FIELDS)

// from: [units] of 16 bytes, a multiple of TILE; to: u32 [blocks, THREADS], the exclusive or of what each thread has read.
KERNEL(THREADS, 4, smxx_u32_peak_read, PeakP) {
    u32 all = 0;
    for (u64 tile = (u64)cta_x() * TILE; tile < p.units; tile += (u64)ncta_x() * TILE) {
        v4 x[UNROLL];
        for (int i = 0; i < UNROLL; i++) x[i] = ldg_v4_stream((const u8 *)p.from + 16 * (tile + THREADS * i + tid()));
        for (int i = 0; i < UNROLL; i++) all ^= x[i].x ^ x[i].y ^ x[i].z ^ x[i].w;
    }
    stg_u((u32 *)p.to + THREADS * cta_x() + tid(), all);
}

// from, to: [units] of 16 bytes, a multiple of TILE.
KERNEL(THREADS, 4, smxx_u32_peak_copy, PeakP) {
    for (u64 tile = (u64)cta_x() * TILE; tile < p.units; tile += (u64)ncta_x() * TILE) {
        v4 x[UNROLL];
        for (int i = 0; i < UNROLL; i++) x[i] = ldg_v4_stream((const u8 *)p.from + 16 * (tile + THREADS * i + tid()));
        for (int i = 0; i < UNROLL; i++) stg_v4((u8 *)p.to + 16 * (tile + THREADS * i + tid()), x[i]);
    }
}

// Products of ones, in registers alone: `n` rounds of UNROLL a warp. to: f32 [blocks, THREADS], all 16 * 4 * UNROLL * n.
KERNEL(THREADS, 2, smxx_bf16_peak_mma, PeakP) {
    const u32 ones = 0x3f803f80u, a[4] = {ones, ones, ones, ones};
    float d[UNROLL][4] = {};
    for (int round = 0; round < p.n; round++) {
        for (int i = 0; i < UNROLL; i++) mma_bf16(d[i], a, ones, ones);
    }
    float sum = 0;
    for (int i = 0; i < UNROLL; i++) sum += d[i][0] + d[i][1] + d[i][2] + d[i][3];
    stg_f((float *)p.to + THREADS * cta_x() + tid(), sum);
}

// Next to nothing: to[0] += 1, by one warp.
KERNEL(32, 1, smxx_u32_peak_tick, PeakP) {
    if (tid() == 0) stg_u(p.to, ldg_u(p.to) + 1);
}

// to: [units] of 16 bytes, bf16 of either sign and of sizes from 2^-5 to 2^-4, by their place and the seed `n` alone. As
// f32 they are of the same sizes.
KERNEL(THREADS, 4, smxx_bf16_peak_fill, PeakP) {
    for (u64 at = (u64)cta_x() * THREADS + tid(); at < p.units; at += (u64)ncta_x() * THREADS) {
        u32 words[4];
        for (int i = 0; i < 4; i++) {
            u32 x = ((u32)at * 4 + i) * 0x9e3779b9u ^ ((u32)(at >> 30) + (u32)p.n) * 0x7feb352du;
            x = (x ^ x >> 16) * 0x85ebca6bu;
            x = (x ^ x >> 13) * 0xc2b2ae35u;
            words[i] = ((x ^ x >> 16) & 0x807f807fu) | 0x3d003d00u;
        }
        stg_v4((u8 *)p.to + 16 * at, v4{words[0], words[1], words[2], words[3]});
    }
}
