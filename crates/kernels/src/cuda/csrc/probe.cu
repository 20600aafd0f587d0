// Kernels that show what each wrapper of dev.h does, for tests of the wrappers: on the emulator against plain
// arithmetic, on a GPU against the emulator. Each thread of a block of 64 reads its words of `from` and writes its words of
// `to`; what they are, tests/emulator/wrappers.rs says.
#include "dev.h"

#define THREADS 64
#define STAGES 3

#define PROBE_FIELDS(F) F(const void *, from) F(void *, to) F(int, n)
PARAMS(ProbeP, PROBE_FIELDS)

DEV const u32 *words_in(const ProbeP &p, int each = 1) { return (const u32 *)p.from + each * (cta_x() * THREADS + tid()); }
DEV u32 *words_out(const ProbeP &p, int each = 1) { return (u32 *)p.to + each * (cta_x() * THREADS + tid()); }
DEV v4 words(u32 x, u32 y, u32 z, u32 w) { return v4{x, y, z, w}; }
DEV v4 floats(float x, float y, float z, float w) { return words(f_bits(x), f_bits(y), f_bits(z), f_bits(w)); }

KERNEL(THREADS, 1, smxx_u32_probe_place, ProbeP) {
    int block = cta_x() + ncta_x() * (cta_y() + ncta_y() * cta_z());
    stg_v4((u32 *)p.to + 4 * (block * THREADS + tid()),
           words(tid() | lane() << 8 | warp() << 16, cta_x() | ncta_x() << 8, cta_y() | ncta_y() << 8, cta_z()));
}

KERNEL(THREADS, 1, smxx_u32_probe_warp, ProbeP) {
    u32 x = ldg_u(words_in(p));
    float f = (float)(x & 255);
    u32 *out = words_out(p, 8);
    stg_v4(out, words(shfl_xor_u(x, 5), shfl_idx_u(x, (int)(x & 31)), shfl_idx_u(x, 3), vote_mask(x & 1)));
    float swapped = shfl_xor(f, 16), first = shfl_idx(f, 0);
    stg_v4(out + 4, floats(swapped, first, warp_sum(f), warp_max(f)));
}

KERNEL(THREADS, 1, smxx_f32_probe_unary, ProbeP) {
    u32 bits = ldg_u(words_in(p));
    float x = bits_f(bits);
    u32 *out = words_out(p, 8);
    stg_v4(out, floats(ex2(x), lg2(x), rcp(x), rsqrt_f(x)));
    stg_v4(out + 4, words((u32)popc(bits), (u32)clz(bits), f_bf16(x), f_bits(round_bf16(x))));
}

KERNEL(THREADS, 1, smxx_f32_probe_binary, ProbeP) {
    v2 in = ldg_v2(words_in(p, 2));
    float x = bits_f(in.x), y = bits_f(in.y);
    u32 *out = words_out(p, 8);
    stg_v4(out, floats(fma_f(x, y, 1.5f), max_f(x, y), min_f(x, y), bf16_hi(in.x)));
    stg_v4(out + 4, words(pack_bf16(x, y), mul_bf16x2(in.x, in.y), f_bits(bf16_lo(in.x)), f_bits(bf16_f((u16)in.y))));
}

// Four words a thread: written in one width, read in another where the thread that mirrors this one wrote.
KERNEL(THREADS, 1, smxx_u32_probe_shared, ProbeP) {
    u32 mine = smem_base() + 16 * tid(), other = smem_base() + 16 * (THREADS - 1 - tid());
    const u32 *in = words_in(p, 4);
    u32 *out = words_out(p, 12);
    sts_v4(mine, ldg_v4(in));
    bar_sync();
    stg_v4(out, words(lds_u(other), f_bits(lds_f(other + 4)), lds_u16(other + 8), lds_u16(other + 10)));
    v2 half = lds_v2(other + 8);
    bar_sync();
    sts_u(mine, ldg_u(in + 3));
    sts_f(mine + 4, ldg_f(in + 2));
    sts_u16(mine + 8, ldg_u16(in));
    sts_u16(mine + 10, ldg_u16((const u16 *)in + 3));
    sts_u(mine + 12, half.y);
    bar_sync();
    stg_v4(out + 4, lds_v4(other));
    bar_sync();
    sts_v2(mine, half);
    sts_u(mine + 8, atoms_add(smem_base() + 16 * THREADS, 0)); // nobody has written there: all ones
    warp_sync();
    v2 near = lds_v2(smem_base() + 16 * (tid() ^ 1));
    stg_v4(out + 8, words(near.x, near.y, lds_u(mine + 8), 0));
}

KERNEL(THREADS, 1, smxx_u32_probe_global, ProbeP) {
    const u32 *in = words_in(p, 4);
    u32 *out = words_out(p, 16);
    stg_v4(out, ldg_v4_stream(in));
    stg_v2(out + 4, ldg_v2(in + 2));
    stg_v2(out + 6, ldg_v2_stream(in));
    stg_f(out + 8, ldg_f(in + 1));
    for (int i = 0; i < 2; i++) stg_u16((u16 *)(out + 9) + i, ldg_u16((const u16 *)in + i));
    for (int i = 0; i < 4; i++) stg_u8((u8 *)(out + 10) + i, ldg_u8((const u8 *)in + i));
    for (int i = 11; i < 16; i++) stg_u(out + i, (u32)i);
}

KERNEL(THREADS, 1, smxx_u32_probe_reverse, ProbeP) {
    stg_u(words_out(p), ldg_u((const u32 *)p.from + THREADS * cta_x() + THREADS - 1 - tid()));
}

// to: [ticket of each thread, then: tickets given, lock, shared tickets given]
KERNEL(THREADS, 1, smxx_u32_probe_atomics, ProbeP) {
    u32 *tickets = (u32 *)p.to + THREADS;
    if (tid() == 0) sts_u(smem_base(), 0);
    bar_sync();
    stg_u((u32 *)p.to + tid(), atom_add(tickets, 1));
    u32 won = atom_cas(tickets + 1, 0, (u32)tid() + 1);
    if (won == 0) stg_u(tickets + 3, (u32)tid() + 1);
    atoms_add(smem_base(), 2);
    bar_sync();
    if (tid() == 0) stg_u(tickets + 2, lds_u(smem_base()));
}

// Warp 1 waits for a word that warp 0 releases.
KERNEL(THREADS, 1, smxx_u32_probe_release, ProbeP) {
    u32 *flag = (u32 *)p.to, *data = flag + 1;
    if (tid() == 0) {
        stg_u(data, 17);
        fence_gpu();
        st_release(flag, 1);
    }
    if (tid() == 32) {
        while (ld_acquire(flag) == 0) {
        }
        stg_u(data + 1, ldg_u(data) + 1);
    }
}

// to[t] = the sum of from[64 tile + 63 - t] over `n` words of tiles, of which the last may be short: three stages.
DEV void begin_copy(const ProbeP &p, int tile) {
    int from = THREADS * tile + 4 * tid();
    u32 to = smem_base() + 4 * (THREADS * (tile % STAGES) + 4 * tid());
    if (tid() < THREADS / 4) cp16(to, (const u32 *)p.from + from, from < p.n);
    cp_commit();
}
KERNEL(THREADS, 1, smxx_f32_probe_pipeline, ProbeP) {
    int tiles = div_up(p.n, THREADS);
    for (int tile = 0; tile < STAGES - 1; tile++) begin_copy(p, tile);
    float sum = 0;
    for (int tile = 0; tile < tiles; tile++) {
        cp_wait<STAGES - 2>();
        bar_sync();
        begin_copy(p, tile + STAGES - 1);
        sum += lds_f(smem_base() + 4 * (THREADS * (tile % STAGES) + THREADS - 1 - tid()));
    }
    cp_wait<0>();
    stg_f((float *)p.to + tid(), sum);
}

// The fragments of four 8 x 8 matrices of `from` (one after another), as they are and transposed.
KERNEL(THREADS, 1, smxx_u32_probe_ldsm, ProbeP) {
    u32 base = smem_base() + 512 * warp();
    sts_v4(base + 16 * lane(), ldg_v4(words_in(p, 4)));
    warp_sync();
    u32 r[4], t[4];
    ldsm4(r, base + 16 * lane());
    ldsm4t(t, base + 16 * lane());
    stg_v4(words_out(p, 8), words(r[0], r[1], r[2], r[3]));
    stg_v4(words_out(p, 8) + 4, words(t[0], t[1], t[2], t[3]));
}

// D = 1 + A B, each of 2 warps its own: from = A [16, 16] and B [16, 8] bf16 row by row, to = D [16, 8].
KERNEL(THREADS, 1, smxx_bf16_probe_mma, ProbeP) {
    const u8 *in = (const u8 *)p.from + 768 * warp();
    float *out = (float *)p.to + 128 * warp();
    u32 base = smem_base() + 1024 * warp();
    for (int i = lane(); i < 48; i += 32) sts_v4(base + 16 * i, ldg_v4(in + 16 * i));
    warp_sync();
    u32 a[4], b[4];
    ldsm4(a, base + 32 * (lane() % 16) + 16 * (lane() / 16));
    ldsm4t(b, base + 512 + 16 * (lane() % 16)); // twice; the first two matrices are used
    float d[4] = {1, 1, 1, 1};
    mma_bf16(d, a, b[0], b[1]);
    for (int i = 0; i < 4; i++) stg_f(out + 8 * (lane() / 4 + 8 * (i / 2)) + lane() % 4 * 2 + i % 2, d[i]);
}

// Warp 0 fills a word a lane `n` times, warp 1 adds them up: barrier 1 says full, barrier 2 says empty.
KERNEL(THREADS, 1, smxx_u32_probe_named, ProbeP) {
    u32 at = smem_base() + 4 * lane(), sum = 0;
    for (int i = 0; i < p.n; i++) {
        if (warp() == 0) {
            if (i > 0) bar_sync_n(2, THREADS);
            sts_u(at, ldg_u((const u32 *)p.from + 32 * i + lane()));
            bar_arrive_n(1, THREADS);
        } else {
            bar_sync_n(1, THREADS);
            sum += lds_u(smem_base() + 4 * (31 - lane()));
            if (i + 1 < p.n) bar_arrive_n(2, THREADS);
        }
    }
    if (warp() == 1) stg_u((u32 *)p.to + lane(), sum);
}

#if SM90
// As probe_pipeline, by bulk copies of whole tiles (n is a multiple of 64): thread 0 copies and is told by barrier
// `full`; all tell by `empty` that they have read.
DEV u32 full_at(int stage) { return smem_base() + 4 * THREADS * STAGES + 16 * stage; }
DEV u32 empty_at(int stage) { return full_at(stage) + 8; }
DEV void begin_bulk(const ProbeP &p, int tile) {
    int stage = tile % STAGES, round = tile / STAGES;
    if (round > 0) mbar_wait(empty_at(stage), (u32)(round - 1) & 1);
    mbar_expect(full_at(stage), 4 * THREADS);
    bulk16(smem_base() + 4 * THREADS * stage, (const u32 *)p.from + THREADS * tile, 4 * THREADS, full_at(stage));
}
KERNEL(THREADS, 1, sm90_f32_probe_bulk, ProbeP) {
    int tiles = p.n / THREADS;
    if (tid() == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            mbar_init(full_at(stage), 1);
            mbar_init(empty_at(stage), THREADS);
        }
        mbar_fence();
    }
    bar_sync();
    float sum = 0;
    if (tid() == 0)
        for (int tile = 0; tile < min_i(tiles, STAGES - 1); tile++) begin_bulk(p, tile);
    for (int tile = 0; tile < tiles; tile++) {
        int stage = tile % STAGES, next = tile + STAGES - 1;
        if (tid() == 0 && next < tiles) begin_bulk(p, next);
        mbar_wait(full_at(stage), (u32)(tile / STAGES) & 1);
        sum += lds_f(smem_base() + 4 * (THREADS * stage + THREADS - 1 - tid()));
        mbar_arrive(empty_at(stage));
    }
    stg_f((float *)p.to + tid(), sum);
}
#endif
