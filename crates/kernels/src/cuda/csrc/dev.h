// All that a kernel may use of the device: thin wrappers, each one PTX instruction (or a few) under nvcc and NVRTC, and
// a checked emulation under a host compiler (sim.h). Kernels include this header alone and no CUDA header, never form a
// pointer into shared memory, and reach global memory only through `ldg_*`, `stg_*`, `cp16` and their like, so that one
// text is compiled for the GPU and run thread by thread on a CPU with checks that no GPU makes.
//
// Shared memory is addressed by 32-bit byte offsets from `smem_base()`; bf16 is its 16 bits.
// PTX: "Parallel Thread Execution ISA" 8.0 and later; the least architecture is sm_80, wrappers that need sm_90 say so.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct alignas(16) v4 {
    u32 x, y, z, w;
};
struct alignas(8) v2 {
    u32 x, y;
};

// A kernel's arguments: FIELDS is a list of F(type, name). Under the emulator the struct also describes itself, so
// that a test compares it with its twin in Rust.
#define PARAMS_FIELD(type, name) type name;

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)

#define DEV __device__ __forceinline__
#define DEV_MEMBER DEV // of a struct
// Whether this compilation is for sm_90 or later; kernels that need it stand in `#if SM90`.
#define SM90 (__CUDA_ARCH__ >= 900)
// Last parameter and argument of a function whose caller the emulator should name, where it reports a mistake.
#define AND_SITE
#define AND_HERE
#define PARAMS(P, FIELDS)                                                                                              \
    struct P {                                                                                                         \
        FIELDS(PARAMS_FIELD)                                                                                           \
    };
// KERNEL(threads of a block, blocks that should fit on a multiprocessor, name, params) { ... p.field ... }
#define KERNEL(THREADS, BLOCKS, NAME, P)                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(const __grid_constant__ P p)

// ---- place

DEV int tid() { return threadIdx.x; }
DEV int lane() { return threadIdx.x & 31; }
DEV int warp() { return threadIdx.x >> 5; }
DEV int cta_x() { return blockIdx.x; }
DEV int cta_y() { return blockIdx.y; }
DEV int cta_z() { return blockIdx.z; }
DEV int ncta_x() { return gridDim.x; }
DEV int ncta_y() { return gridDim.y; }

extern __shared__ __align__(1024) u8 dynamic_shared[];
DEV u32 smem_base() { return (u32)__cvta_generic_to_shared(dynamic_shared); }

// ---- barriers

DEV void bar_sync() { asm volatile("barrier.sync 0;" ::: "memory"); }
// `threads` (a multiple of 32) of the block meet at barrier `id` (1 to 15).
DEV void bar_sync_n(int id, int threads) { asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEV void bar_arrive_n(int id, int threads) {
    asm volatile("barrier.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEV void warp_sync() { asm volatile("bar.warp.sync 0xffffffff;" ::: "memory"); }

// ---- warp; all 32 lanes take part

DEV u32 shfl_xor_u(u32 x, int mask) {
    u32 y;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=r"(y) : "r"(x), "r"(mask));
    return y;
}
DEV u32 shfl_idx_u(u32 x, int from) {
    u32 y;
    asm volatile("shfl.sync.idx.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=r"(y) : "r"(x), "r"(from));
    return y;
}
DEV u32 vote_mask(bool p) {
    u32 m;
    asm volatile("{ .reg .pred q; setp.ne.u32 q, %1, 0; vote.sync.ballot.b32 %0, q, 0xffffffff; }" : "=r"(m) : "r"((u32)p));
    return m;
}

DEV u32 warp_max_u(u32 x) {
    u32 y;
    asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(y) : "r"(x));
    return y;
}
DEV u32 warp_min_u(u32 x) {
    u32 y;
    asm volatile("redux.sync.min.u32 %0, %1, 0xffffffff;" : "=r"(y) : "r"(x));
    return y;
}
// The lanes that have the same x.
DEV u32 match_mask(u32 x) {
    u32 m;
    asm volatile("match.any.sync.b32 %0, %1, 0xffffffff;" : "=r"(m) : "r"(x));
    return m;
}

// ---- bits and arithmetic

DEV float bits_f(u32 x) { return __uint_as_float(x); }
DEV u32 f_bits(float x) { return __float_as_uint(x); }
DEV float ex2(float x) { // 2^x
    float y;
    asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEV float lg2(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEV float rcp(float x) {
    float y;
    asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEV float rsqrt_f(float x) {
    float y;
    asm("rsqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// Rounded once, and nothing else is: all compilers are told not to fuse a * b + c themselves.
DEV float fma_f(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEV float max_f(float a, float b) { // the other one, where one is NaN
    float y;
    asm("max.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}
DEV float min_f(float a, float b) {
    float y;
    asm("min.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}
DEV int popc(u32 x) { return __popc(x); }
DEV int clz(u32 x) { return __clz((int)x); }
// Two floats to the nearest bf16, ties to even; `lo` in the lower half.
DEV u32 pack_bf16(float lo, float hi) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
    return y;
}
// d = a * b in each half, rounded to bf16.
DEV u32 mul_bf16x2(u32 a, u32 b) {
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(0x80008000u));
    return d;
}

// ---- shared memory: `at` is a 32-bit shared address, aligned to the access

DEV float lds_f(u32 at) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(at));
    return x;
}
DEV u32 lds_u(u32 at) {
    u32 x;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(at));
    return x;
}
DEV double lds_d(u32 at) {
    double x;
    asm volatile("ld.shared.f64 %0, [%1];" : "=d"(x) : "r"(at));
    return x;
}
DEV u16 lds_u16(u32 at) {
    u16 x;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(x) : "r"(at));
    return x;
}
DEV v2 lds_v2(u32 at) {
    v2 x;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(at));
    return x;
}
DEV v4 lds_v4(u32 at) {
    v4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(at));
    return x;
}
DEV void sts_f(u32 at, float x) { asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(x) : "memory"); }
DEV void sts_u(u32 at, u32 x) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(x) : "memory"); }
DEV void sts_d(u32 at, double x) { asm volatile("st.shared.f64 [%0], %1;" ::"r"(at), "d"(x) : "memory"); }
DEV void sts_u16(u32 at, u16 x) { asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(x) : "memory"); }
DEV void sts_v2(u32 at, v2 x) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(x.x), "r"(x.y) : "memory");
}
DEV void sts_v4(u32 at, v4 x) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}
// Shared-memory counters: the value before.
DEV u32 atoms_add(u32 at, u32 x) {
    u32 old;
    asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(old) : "r"(at), "r"(x) : "memory");
    return old;
}

// ---- global memory

DEV u8 ldg_u8(const void *p) {
    u32 x;
    asm volatile("ld.global.u8 %0, [%1];" : "=r"(x) : "l"(p));
    return (u8)x;
}
DEV u16 ldg_u16(const void *p) {
    u16 x;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(x) : "l"(p));
    return x;
}
DEV u32 ldg_u(const void *p) {
    u32 x;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(x) : "l"(p));
    return x;
}
DEV float ldg_f(const void *p) {
    float x;
    asm volatile("ld.global.f32 %0, [%1];" : "=f"(x) : "l"(p));
    return x;
}
DEV double ldg_d(const void *p) {
    double x;
    asm volatile("ld.global.f64 %0, [%1];" : "=d"(x) : "l"(p));
    return x;
}
DEV v2 ldg_v2(const void *p) {
    v2 x;
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(p));
    return x;
}
DEV v4 ldg_v4(const void *p) {
    v4 x;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(p));
    return x;
}
// Weights, read once a step: past L1, and never written while a kernel runs.
DEV v4 ldg_v4_stream(const void *p) {
    v4 x;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(p));
    return x;
}
DEV v2 ldg_v2_stream(const void *p) {
    v2 x;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(p));
    return x;
}
DEV void stg_u8(void *p, u8 x) { asm volatile("st.global.u8 [%0], %1;" ::"l"(p), "r"((u32)x) : "memory"); }
DEV void stg_u16(void *p, u16 x) { asm volatile("st.global.u16 [%0], %1;" ::"l"(p), "h"(x) : "memory"); }
DEV void stg_u(void *p, u32 x) { asm volatile("st.global.u32 [%0], %1;" ::"l"(p), "r"(x) : "memory"); }
DEV void stg_f(void *p, float x) { asm volatile("st.global.f32 [%0], %1;" ::"l"(p), "f"(x) : "memory"); }
DEV void stg_v2(void *p, v2 x) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(x.x), "r"(x.y) : "memory");
}
DEV void stg_v4(void *p, v4 x) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}
DEV u32 atom_add(void *p, u32 x) { // the value before
    u32 old;
    asm volatile("atom.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(x) : "memory");
    return old;
}
DEV u32 atom_cas(void *p, u32 expected, u32 x) {
    u32 old;
    asm volatile("atom.global.cas.b32 %0, [%1], %2, %3;" : "=r"(old) : "l"(p), "r"(expected), "r"(x) : "memory");
    return old;
}
DEV void fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
DEV u32 ld_acquire(const void *p) {
    u32 x;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
    return x;
}
DEV void st_release(void *p, u32 x) { asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(x) : "memory"); }

// ---- asynchronous copies, 16 bytes from global to shared memory; zeros where not `ok` (the source is then not read)

DEV void cp16(u32 to, const void *from, bool ok) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(ok ? 16 : 0) : "memory");
}
DEV void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most N of this thread's groups are under way.
template <int N> DEV void cp_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// ---- tensor cores

// Four 8 x 8 matrices of 16-bit numbers; lanes 8i..8i+7 hold the addresses of matrix i's rows. Lane l receives of each
// matrix elements (l / 4, 2 (l % 4)) and the next; transposed: (2 (l % 4), l / 4) and the one below.
DEV void ldsm4(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}
DEV void ldsm4t(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}
// D[16, 8] += A[16, 16] B[16, 8], bf16 products in f32. With g = lane / 4 and c = 2 (lane % 4):
// a = {A[g][c..], A[g + 8][c..], A[g][c + 8..], A[g + 8][c + 8..]}, b0 = B[c..][g], b1 = B[c + 8..][g],
// d = {D[g][c], D[g][c + 1], D[g + 8][c], D[g + 8][c + 1]}.
DEV void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- a kernel may start before the one in front has ended (sm_90): wait before touching what that one wrote

DEV void grid_dep_wait() {
#if SM90
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEV void grid_dep_launch() {
#if SM90
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#if SM90

// ---- barriers in shared memory (8 bytes) and bulk copies that complete on them: sm_90

DEV void mbar_init(u32 mbar, u32 arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(mbar), "r"(arrivals) : "memory");
}
// After mbar_init, before others (and the copy engine) use them.
DEV void mbar_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Arrives, and lets the phase end only when `bytes` have landed too.
DEV void mbar_expect(u32 mbar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(mbar), "r"(bytes) : "memory");
}
DEV void mbar_arrive(u32 mbar) { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(mbar) : "memory"); }
// Until the phase of this parity has ended; the first phase has parity 0.
DEV void mbar_wait(u32 mbar, u32 parity) {
    asm volatile("{ .reg .pred q;\n"
                 "again: mbarrier.try_wait.parity.shared.b64 q, [%0], %1;\n"
                 "@q bra done;\n"
                 "bra again;\n"
                 "done: }" ::"r"(mbar),
                 "r"(parity)
                 : "memory");
}
// Copies `bytes` (a multiple of 16) and tells `mbar`.
DEV void bulk16(u32 to, const void *from, u32 bytes, u32 mbar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(mbar)
                 : "memory");
}
// Makes this thread's ordinary writes to shared memory visible to wgmma and the copy engine; before the barrier.
DEV void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#endif

#else
#include "sim.h"
#endif

// ---- the same on both sides

DEV float shfl_xor(float x, int mask AND_SITE) { return bits_f(shfl_xor_u(f_bits(x), mask AND_HERE)); }
DEV float shfl_idx(float x, int from AND_SITE) { return bits_f(shfl_idx_u(f_bits(x), from AND_HERE)); }
#define MINUS_INFINITY bits_f(0xff800000u)
// A number by which floats that are no NaN are compared as integers; the two zeros are one.
DEV u32 order_of(float x) {
    u32 bits = f_bits(x + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
DEV float from_order(u32 order) { return bits_f(order >> 31 ? order & 0x7fffffffu : ~order); }
DEV float bf16_lo(u32 pair) { return bits_f(pair << 16); }
DEV float bf16_hi(u32 pair) { return bits_f(pair & 0xffff0000u); }
DEV float bf16_f(u16 x) { return bits_f((u32)x << 16); }
DEV u16 f_bf16(float x) { return (u16)pack_bf16(x, 0.0f); }
// x as a product sees it.
DEV float round_bf16(float x) { return bf16_lo(pack_bf16(x, 0.0f)); }
DEV int min_i(int a, int b) { return a < b ? a : b; }
DEV int max_i(int a, int b) { return a > b ? a : b; }
DEV int div_up(int a, int b) { return (a + b - 1) / b; }
DEV float exp_f(float x) { return ex2(x * 1.4426950408889634f); }
DEV float silu(float x) { return x * rcp(1.0f + exp_f(-x)); }

DEV float warp_sum(float x AND_SITE) {
    for (int mask = 16; mask > 0; mask >>= 1) x += shfl_xor(x, mask AND_HERE);
    return x;
}
DEV float warp_max(float x AND_SITE) {
    for (int mask = 16; mask > 0; mask >>= 1) x = max_f(x, shfl_xor(x, mask AND_HERE));
    return x;
}
