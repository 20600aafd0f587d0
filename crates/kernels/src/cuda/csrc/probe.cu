// Kernels that exercise each wrapper of dev.h by itself, for tests of the wrappers: on the emulator against plain
// arithmetic, on a GPU against the emulator.
#include "dev.h"

#define PROBE_FIELDS(F) F(const void *, in) F(void *, out) F(int, n)
PARAMS(ProbeP, PROBE_FIELDS)

DEV const void *in_at(const ProbeP &p, int i) { return (const u8 *)p.in + 4 * i; }
DEV void *out_at(const ProbeP &p, int i) { return (u8 *)p.out + 4 * i; }

// out[i] = the sum of in[i]'s warp
KERNEL(64, 1, smxx_f32_probe_warp_sum, ProbeP) {
    int i = cta_x() * 64 + tid();
    float x = i < p.n ? ldg_f(in_at(p, i)) : 0.0f;
    x = warp_sum(x);
    if (i < p.n) stg_f(out_at(p, i), x);
}

// out = in reversed within each block, by shared memory
KERNEL(128, 1, smxx_f32_probe_reverse, ProbeP) {
    int i = cta_x() * 128 + tid();
    if (tid() % 4 == 0) cp16(smem_base() + 4 * tid(), in_at(p, i), true);
    cp_commit();
    cp_wait<0>();
    bar_sync();
    stg_f(out_at(p, i), lds_f(smem_base() + 4 * (127 - tid())));
}
