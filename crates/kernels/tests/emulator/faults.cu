// Kernels with one mistake each, which the emulator must refuse: how, faults.rs says. Blocks of 64 threads, two warps.
#include "dev.h"

#define FAULT_FIELDS(F) F(const void *, in) F(void *, out) F(int, n)
PARAMS(FaultP, FAULT_FIELDS)
#define FAULT(NAME) KERNEL(64, 1, NAME, FaultP)

DEV u32 mine() { return smem_base() + 16 * tid(); }
DEV u32 mirror() { return smem_base() + 16 * (63 - tid()); }
DEV const u32 *in(const FaultP &p, int i) { return (const u32 *)p.in + i; }
DEV u32 *out(const FaultP &p, int i) { return (u32 *)p.out + i; }

// ---- races

FAULT(read_without_barrier) {
    sts_u(mine(), 1);
    stg_u(out(p, tid()), lds_u(mirror()));
}
FAULT(write_after_read_without_barrier) {
    sts_u(mine(), 1);
    bar_sync();
    u32 x = lds_u(mirror());
    sts_u(mine(), x);
}
FAULT(two_writers) { sts_u(smem_base() + 4 * lane(), 1); }
FAULT(two_lanes_write) { sts_u(smem_base() + 64 * warp() + 4 * (lane() % 16), 1); }
FAULT(two_writers_of_a_half) {
    sts_u16(smem_base() + 2 * lane(), 1); // neighbours within a word are fine, the other warp is not
}
FAULT(lanes_without_warp_sync) {
    sts_u(mine(), 1);
    stg_u(out(p, tid()), lds_u(smem_base() + 16 * (tid() ^ 1)));
}
FAULT(shuffle_orders_nothing) {
    sts_u(mine(), 1);
    u32 x = shfl_xor_u(1, 1);
    stg_u(out(p, tid()), x + lds_u(smem_base() + 16 * (tid() ^ 1)));
}
FAULT(matrix_without_warp_sync) {
    sts_v4(mine(), v4{1, 2, 3, 4});
    u32 r[4];
    ldsm4(r, mine());
}
FAULT(overwritten_matrix) {
    sts_v4(mine(), v4{1, 2, 3, 4});
    warp_sync();
    u32 r[4];
    ldsm4(r, mine());
    sts_u(mine(), r[0]);
}
FAULT(plain_read_of_a_counter) {
    if (tid() == 0) sts_u(smem_base(), 0);
    bar_sync();
    atoms_add(smem_base(), 1);
    if (tid() == 0) stg_u(out(p, 0), lds_u(smem_base()));
}
FAULT(arrival_is_no_wait) {
    if (warp() == 0) {
        bar_arrive_n(1, 64);
        stg_u(out(p, lane()), lds_u(smem_base() + 16 * (tid() + 32)));
    } else {
        sts_u(mine(), 1);
        bar_sync_n(1, 64);
    }
}

// ---- copies

FAULT(copy_not_waited_for) {
    cp16(mine(), in(p, 4 * tid()), true);
    cp_commit();
    stg_u(out(p, tid()), lds_u(mine()));
    cp_wait<0>();
}
FAULT(copy_one_group_short) {
    cp16(mine(), in(p, 4 * tid()), true);
    cp_commit();
    cp_wait<1>();
    stg_u(out(p, tid()), lds_u(mine()));
    cp_wait<0>();
}
FAULT(copy_never_committed) {
    cp16(mine(), in(p, 4 * tid()), true);
    cp_wait<0>();
    stg_u(out(p, tid()), lds_u(mine()));
}
FAULT(copy_left_behind) {
    cp16(mine(), in(p, 4 * tid()), true);
    cp_commit();
}
FAULT(copy_seen_without_barrier) {
    cp16(mine(), in(p, 4 * tid()), true);
    cp_commit();
    cp_wait<0>();
    stg_u(out(p, tid()), lds_u(mirror()));
}
FAULT(copy_over_what_is_read) {
    sts_v4(mine(), v4{1, 2, 3, 4});
    bar_sync();
    u32 x = lds_u(mirror());
    cp16(mine(), in(p, 4 * tid()), true);
    cp_commit();
    cp_wait<0>();
    stg_u(out(p, tid()), x);
}

// ---- places

FAULT(shared_out_of_range) { sts_u(smem_base() + 4096 + 4 * tid(), 1); }
FAULT(shared_from_zero) { sts_u(4 * tid(), 1); }
FAULT(shared_misaligned) { sts_v4(smem_base() + 8 * tid(), v4{1, 2, 3, 4}); }
FAULT(global_read_past_end) { stg_u(out(p, tid()), ldg_u(in(p, p.n - 63 + tid()))); }
FAULT(global_write_past_end) { stg_u(out(p, 4096), 1); }
FAULT(global_before_begin) { stg_u(out(p, tid()), ldg_u(in(p, -1))); }
FAULT(global_misaligned) { stg_v2(out(p, 2 * tid() + 1), v2{1, 2}); }
FAULT(global_null) { stg_u(out(p, tid()), ldg_u(nullptr)); }
FAULT(blocks_write_the_same) { stg_u(out(p, tid()), (u32)cta_x()); }
FAULT(block_reads_anothers) {
    stg_u(out(p, 64 * cta_x() + tid()), 1);
    ldg_u(out(p, 64 * (1 - cta_x()) + tid()));
}
FAULT(block_copies_anothers) {
    stg_v4(out(p, 256 * cta_x() + 4 * tid()), v4{1, 2, 3, 4});
    cp16(mine(), out(p, 256 * (1 - cta_x()) + 4 * tid()), true);
    cp_commit();
    cp_wait<0>();
}
FAULT(constant_is_written) {
    stg_v4(out(p, 256 * cta_x() + 4 * tid()), v4{1, 2, 3, 4});
    ldg_v4_stream(out(p, 256 * cta_x() + 4 * tid()));
}
FAULT(copy_past_end) {
    cp16(mine(), in(p, p.n - 2), true);
    cp_commit();
    cp_wait<0>();
}
FAULT(shared_never_written) {
    float x = lds_f(mine()); // NaN, so that a sum shows it
    stg_u(out(p, tid()), x == x ? 1u : 2u);
}

// ---- meeting

FAULT(divergent_shuffle) {
    u32 x = 0;
    if (lane() < 16) x = shfl_xor_u(1, 1);
    else x = shfl_xor_u(2, 1);
    stg_u(out(p, tid()), x);
}
FAULT(half_a_warp_shuffles) {
    if (lane() < 16) shfl_xor_u(1, 1);
}
FAULT(shuffle_after_return) {
    if (lane() == 7) return;
    shfl_xor_u(1, 1);
}
FAULT(divergent_sum) {
    float x = 0;
    if (lane() & 1) x = warp_sum(1.0f);
    else x = warp_sum(2.0f);
    stg_f(out(p, tid()), x);
}
FAULT(barrier_for_one_warp) {
    if (warp() == 0) bar_sync();
}
FAULT(barrier_counts_differ) {
    if (warp() == 0) bar_sync_n(1, 64);
    else bar_sync_n(1, 32);
}
FAULT(barrier_of_half_a_warp) { bar_sync_n(1, 48); }
FAULT(barrier_17) { bar_sync_n(17, 64); }
FAULT(barriers_crossed) {
    if (warp() == 0) bar_sync_n(1, 64);
    else bar_sync_n(2, 64);
}
FAULT(waits_for_ever) {
    while (ld_acquire(out(p, 0)) == 0) {
    }
}

// ---- barriers in shared memory and bulk copies: one of 64 bytes is told to the barrier at 1024

DEV u32 bar() { return smem_base() + 1024; }
DEV void start() {
    if (tid() == 0) {
        mbar_init(bar(), 1);
        mbar_fence();
    }
    bar_sync();
}
DEV void bulk(const FaultP &p, u32 expected, u32 bytes) {
    if (tid() != 0) return;
    mbar_expect(bar(), expected);
    bulk16(smem_base(), p.in, bytes, bar());
}

FAULT(mbarrier_not_made) { mbar_wait(bar(), 0); }
FAULT(mbarrier_not_known_yet) {
    if (tid() == 0) {
        mbar_init(bar(), 2);
        mbar_fence();
    }
    if (lane() == 0) mbar_arrive(bar());
    mbar_wait(bar(), 0);
}
FAULT(mbarrier_too_many_arrive) {
    if (tid() == 0) mbar_init(bar(), 48);
    bar_sync();
    if (tid() == 0) mbar_expect(bar(), 64);
    else mbar_arrive(bar());
}
FAULT(mbarrier_too_few_arrive) {
    if (tid() == 0) mbar_init(bar(), 65);
    bar_sync();
    mbar_arrive(bar());
    mbar_wait(bar(), 0);
}
FAULT(mbarrier_wrong_parity) {
    start();
    bulk(p, 64, 64);
    mbar_wait(bar(), 1);
    stg_u(out(p, tid()), lds_u(smem_base() + 4 * (tid() % 16)));
    mbar_wait(bar(), 0);
}
FAULT(bulk_not_waited_for) {
    start();
    bulk(p, 64, 64);
    stg_u(out(p, tid()), lds_u(smem_base() + 4 * (tid() % 16)));
    mbar_wait(bar(), 0);
}
FAULT(bulk_fewer_bytes) {
    start();
    bulk(p, 64, 48);
    mbar_wait(bar(), 0);
}
FAULT(bulk_more_bytes) {
    start();
    bulk(p, 48, 64);
    mbar_wait(bar(), 0);
}
FAULT(bulk_left_behind) {
    start();
    bulk(p, 64, 64);
}
FAULT(bulk_not_fenced) {
    if (tid() == 0) mbar_init(bar(), 1);
    bar_sync();
    bulk(p, 64, 64);
    mbar_wait(bar(), 0);
}
FAULT(bulk_over_own_writes) {
    start();
    if (tid() < 16) sts_u(smem_base() + 4 * tid(), 0);
    bar_sync();
    bulk(p, 64, 64);
    mbar_wait(bar(), 0);
}
FAULT(bulk_misaligned) {
    start();
    if (tid() == 0) bulk16(smem_base() + 8, p.in, 64, bar());
}
FAULT(bulk_past_end) {
    start();
    if (tid() == 0) bulk16(smem_base(), in(p, p.n - 4), 64, bar());
}
FAULT(bulk_odd_size) {
    start();
    if (tid() == 0) bulk16(smem_base(), p.in, 60, bar());
}
