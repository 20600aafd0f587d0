// The device's wrappers on a host: the other half of dev.h, for tests. A kernel's text is compiled by a C++ compiler and
// run thread by thread, with checks that no GPU makes.
//
// Threads. One fiber (sim_fibers) a CUDA thread, blocks one after another, one OS thread: a run is repeatable. Which
// fiber goes on where several can is the run's order: up, down, or random by a seed. Fibers give way where they meet
// others, nowhere else.
//
// Warp collectives (shuffles, votes, ldmatrix, mma, barriers). Each lane leaves its arguments with its warp and gives
// way; the last one computes for all 32. Lanes that meet at different lines, or of which some have returned, are errors.
//
// Barriers. A barrier is a collective first; then the warp counts once. Unequal counts are an error; so is a block in
// which nobody can go on, and the message lists where each warp waits.
//
// Copies (cp16). Eager: the bytes land at once, which shows a stage that is overwritten while it is read. Lazy: the
// target is NaN until the thread waits, which shows a missing wait. Random: they land at some commit in between.
//
// Barriers in shared memory and bulk copies (sim_mbarrier). The engine that copies has a clock like a warp's; who waits
// for the barrier learns it. Lazy: a copy lands when nobody else can go on. What threads have written themselves, the
// engine may overwrite only after their `fence_async`.
//
// Races on shared memory (sim_races). Each warp has a vector clock, joined at barriers; each 2 bytes of shared memory
// know who wrote them last and when each warp has read them. Two accesses by different warps, one of them a write, need a
// barrier between; by different lanes of a warp, a barrier or `warp_sync`: other collectives order nothing. So a missing
// barrier is found whatever the order of the run, also where the numbers come out right.
//
// Races on global memory: what a block has written, no other block of the launch may read or write, unless by atomics or
// after it has acquired something. (Read first and written then, in one order, is the other way round in another.)
//
// Memory. Shared memory is NaN (0xFF) before each block; offsets begin at 1024, so that one without `smem_base()` shows.
// Each access of shared and global memory is checked for range and alignment (sim_memory).
//
// An error ends the launch with a message that names kernel, block, thread and line.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>

#define DEV static inline
#define DEV_MEMBER inline
#define SM90 1
// The last argument of a wrapper that can fail: the line that calls it.
#define SITE sim::Site site = {__builtin_FILE(), __builtin_LINE()}
#define AND_SITE , SITE
#define AND_HERE , site

namespace sim {

typedef long long i64;

struct Site {
    const char *file;
    int line;
};

constexpr u32 SHARED_BASE = 1024;
constexpr u32 PAGE_HINTS = 256;

struct Allocation {
    u64 start, bytes;
    u8 *written;  // a bit a byte
    u32 *writers; // by byte: the block that wrote it last, as a number that grows from launch to launch; or null

    void mark(u64 at, u32 n) {
        u8 *bits = written + (at >> 3);
        if (n >= 8) memset(bits, 0xff, n >> 3);
        else *bits |= (u8)(((1u << n) - 1) << (at & 7));
    }
    bool marked(u64 at, u32 n) const;
};

struct Counters {
    u64 loaded_bytes, stored_bytes; // of global memory, by kernels
    u64 mma, ldsm_wavefronts, ldsm_ideal;
    u64 barriers, collectives;      // each a warp's
    u64 load_sectors, load_sectors_ideal, store_sectors, store_sectors_ideal; // of 32 bytes
    u64 shared_wavefronts, shared_ideal;                                      // of lds and sts
};

// What the wrappers of the thread that runs look at, in one place to be cheap.
struct Running {
    int tid, block[3], grid[3];
    bool races;       // follow who touched which shared memory
    bool unwritten;   // refuse to read global memory that nobody has written
    bool lanes;       // count sectors and bank conflicts
    u8 *shared;
    u32 shared_bytes;
    u32 first_block, this_block; // numbers of the launch's first block and of this one
    bool acquired;               // this block has looked at what others released, and may read more of theirs
    Allocation *const *hints; // by address: the allocation met there last
    Counters *counters;
};
extern __thread Running running;

[[noreturn]] void bad_shared(u32 at, u32 bytes, Site);
Allocation *find_global(u64 at, u32 bytes, Site); // fails where there is none
[[noreturn]] void bad_global(u64 at, u32 bytes, const char *fault, Site);
void read_of_block(Allocation *, u64 at, u32 bytes, Site); // checks that no other block of the launch writes there
void read_of_constant(const void *, u32 bytes, Site);         // checks that nobody in the launch has written there
void write_of_block(Allocation *, u64 at, u32 bytes, bool shared, Site);
void race_read(u32 at, u32 bytes, Site);
void race_write(u32 at, u32 bytes, Site);
void race_atomic(u32 at, u32 bytes, Site);
enum class Access { SharedLoad, SharedStore, GlobalLoad, GlobalStore };
void note_lane(Access, u64 at, u32 bytes, Site);

inline u8 *shared_at(u32 at, u32 bytes, Site site) {
    u64 offset = (u32)(at - SHARED_BASE);
    if (__builtin_expect(offset + bytes > running.shared_bytes || (at & (bytes - 1)), 0)) bad_shared(at, bytes, site);
    return running.shared + offset;
}

inline Allocation *global_at(const void *p, u32 bytes, Site site) {
    u64 at = (u64)p;
    Allocation *in = running.hints[(at >> 12) % PAGE_HINTS];
    u64 offset = in ? at - in->start : 0;
    if (__builtin_expect(!in || offset >= in->bytes || in->bytes - offset < bytes, 0)) in = find_global(at, bytes, site);
    if (__builtin_expect(at & (bytes - 1), 0)) bad_global(at, bytes, "misaligned", site);
    return in;
}

template <class T> T load_shared(u32 at, Site site) {
    const u8 *from = shared_at(at, sizeof(T), site);
    if (running.races) race_read(at, sizeof(T), site);
    if (running.lanes) note_lane(Access::SharedLoad, at, sizeof(T), site);
    T x;
    memcpy(&x, from, sizeof(T));
    return x;
}

template <class T> void store_shared(u32 at, T x, Site site) {
    u8 *to = shared_at(at, sizeof(T), site);
    if (running.races) race_write(at, sizeof(T), site);
    if (running.lanes) note_lane(Access::SharedStore, at, sizeof(T), site);
    memcpy(to, &x, sizeof(T));
}

inline void check_load(const void *p, u32 bytes, Site site) {
    Allocation *in = global_at(p, bytes, site);
    running.counters->loaded_bytes += bytes;
    if (running.unwritten && !in->marked((u64)p - in->start, bytes)) bad_global((u64)p, bytes, "never written", site);
    if (running.races) read_of_block(in, (u64)p - in->start, bytes, site);
    if (running.lanes) note_lane(Access::GlobalLoad, (u64)p, bytes, site);
}

// `shared`: in a way that other blocks may too.
inline void check_store(void *p, u32 bytes, bool shared, Site site) {
    Allocation *in = global_at(p, bytes, site);
    running.counters->stored_bytes += bytes;
    in->mark((u64)p - in->start, bytes);
    if (running.races) write_of_block(in, (u64)p - in->start, bytes, shared, site);
    if (running.lanes) note_lane(Access::GlobalStore, (u64)p, bytes, site);
}

template <class T> T load_global(const void *p, Site site) {
    check_load(p, sizeof(T), site);
    T x;
    memcpy(&x, p, sizeof(T));
    return x;
}

template <class T> T load_constant(const void *p, Site site) {
    T x = load_global<T>(p, site);
    if (running.races) read_of_constant(p, sizeof(T), site);
    return x;
}

template <class T> void store_global(void *p, T x, Site site, bool shared = false) {
    check_store(p, sizeof(T), shared, site);
    memcpy(p, &x, sizeof(T));
}

// Warp collectives and what waits: out of line.
void bar_sync(int id, int threads, Site); // threads = 0: all of the block
void bar_arrive(int id, int threads, Site);
void warp_sync(Site);
u32 shuffle(u32 x, int from, Site); // the value of lane `from` mod 32
u32 vote(bool p, Site);
void ldsm4(u32 (&r)[4], u32 at, bool transposed, Site);
void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, Site);
void cp16(u32 to, const void *from, bool ok, Site);
void cp_commit();
void cp_wait(u32 groups, Site);
void mbar_init(u32 mbar, u32 arrivals, Site);
void mbar_fence();
void mbar_arrive(u32 mbar, u32 bytes, bool expects, Site);
void mbar_wait(u32 mbar, u32 parity, Site);
void bulk16(u32 to, const void *from, u32 bytes, u32 mbar, Site);
void fence_async();
void give_way(Site); // to fibers that may change what this one is waiting for

u32 nearest_bf16(float x);

// ---- kernels and their parameters

struct Field {
    const char *name;
    size_t at, bytes;
};

// A kernel of this file, on a list that the file's module shows (SIM_MODULE).
struct Kernel {
    const char *name;
    u32 threads;
    void (*run)(const void *params);
    const char *params;
    size_t params_bytes;
    const Field *fields;
    size_t n_fields;
    const Kernel *next;

    Kernel(const Kernel *&list, const char *name, u32 threads, void (*run)(const void *), const char *params,
           size_t bytes, const Field *fields, size_t n_fields)
        : name(name), threads(threads), run(run), params(params), params_bytes(bytes), fields(fields),
          n_fields(n_fields), next(list) {
        list = this;
    }
};

// A file of kernels.
struct Module {
    const char *file; // without `.cu`; null behind the last
    const Kernel *(*kernels)();
};
extern const Module modules[]; // written by build.rs

} // namespace sim

#define PARAMS_ENTRY(type, name) {#name, offsetof(Self, name), sizeof(type)},
#define PARAMS(P, FIELDS)                                                                                              \
    struct P {                                                                                                         \
        FIELDS(PARAMS_FIELD)                                                                                           \
        using Self = P;                                                                                                \
        static size_t describe(const sim::Field **list) {                                                              \
            static const sim::Field fields[] = {FIELDS(PARAMS_ENTRY)};                                                 \
            *list = fields;                                                                                            \
            return sizeof(fields) / sizeof(fields[0]);                                                                 \
        }                                                                                                              \
    };

#ifdef SIM_MODULE
static const sim::Kernel *kernels_here = nullptr;
extern "C" __attribute__((visibility("default"))) const sim::Kernel *SIM_MODULE() { return kernels_here; }

template <class P>
sim::Kernel describe_kernel(const char *name, u32 threads, void (*run)(const void *), const char *params) {
    const sim::Field *fields;
    size_t n = P::describe(&fields);
    return sim::Kernel(kernels_here, name, threads, run, params, sizeof(P), fields, n);
}
#define KERNEL(THREADS, BLOCKS, NAME, P)                                                                               \
    static void NAME(const P &p);                                                                                      \
    static const sim::Kernel NAME##_entry =                                                                            \
        describe_kernel<P>(#NAME, THREADS, [](const void *params) { NAME(*static_cast<const P *>(params)); }, #P);     \
    static void NAME([[maybe_unused]] const P &p)
#endif

// ---- dev.h's wrappers, in its order

DEV int tid() { return sim::running.tid; }
DEV int lane() { return sim::running.tid & 31; }
DEV int warp() { return sim::running.tid >> 5; }
DEV int cta_x() { return sim::running.block[0]; }
DEV int cta_y() { return sim::running.block[1]; }
DEV int cta_z() { return sim::running.block[2]; }
DEV int ncta_x() { return sim::running.grid[0]; }
DEV int ncta_y() { return sim::running.grid[1]; }
DEV u32 smem_base() { return sim::SHARED_BASE; }

DEV void bar_sync(SITE) { sim::bar_sync(0, 0, site); }
DEV void bar_sync_n(int id, int threads, SITE) { sim::bar_sync(id, threads, site); }
DEV void bar_arrive_n(int id, int threads, SITE) { sim::bar_arrive(id, threads, site); }
DEV void warp_sync(SITE) { sim::warp_sync(site); }

DEV u32 shfl_xor_u(u32 x, int mask, SITE) { return sim::shuffle(x, lane() ^ mask, site); }
DEV u32 shfl_idx_u(u32 x, int from, SITE) { return sim::shuffle(x, from, site); }
DEV u32 vote_mask(bool p, SITE) { return sim::vote(p, site); }
DEV u32 match_mask(u32 x, SITE) {
    u32 mask = 0;
    for (int from = 0; from < 32; from++) mask |= (u32)(sim::shuffle(x, from, site) == x) << from;
    return mask;
}
DEV u32 warp_max_u(u32 x, SITE) {
    for (int mask = 16; mask > 0; mask >>= 1) {
        u32 other = sim::shuffle(x, lane() ^ mask, site);
        x = other > x ? other : x;
    }
    return x;
}
DEV u32 warp_min_u(u32 x, SITE) { return ~warp_max_u(~x, site); }

DEV float bits_f(u32 x) {
    float f;
    memcpy(&f, &x, 4);
    return f;
}
DEV u32 f_bits(float f) {
    u32 x;
    memcpy(&x, &f, 4);
    return x;
}
DEV float ex2(float x) { return exp2f(x); }
DEV float lg2(float x) { return log2f(x); }
DEV float rcp(float x) { return 1.0f / x; }
DEV float rsqrt_f(float x) { return (float)(1.0 / sqrt((double)x)); }
DEV float fma_f(float a, float b, float c) { return fmaf(a, b, c); }
DEV float max_f(float a, float b) { return fmaxf(a, b); }
DEV float min_f(float a, float b) { return fminf(a, b); }
DEV int popc(u32 x) { return __builtin_popcount(x); }
DEV int clz(u32 x) { return x ? __builtin_clz(x) : 32; }
DEV u32 pack_bf16(float lo, float hi) { return sim::nearest_bf16(lo) | sim::nearest_bf16(hi) << 16; }
DEV u32 mul_bf16x2(u32 a, u32 b) { // each product is exact in f32
    return pack_bf16(bits_f(a << 16) * bits_f(b << 16), bits_f(a & 0xffff0000u) * bits_f(b & 0xffff0000u));
}

DEV float lds_f(u32 at, SITE) { return sim::load_shared<float>(at, site); }
DEV u32 lds_u(u32 at, SITE) { return sim::load_shared<u32>(at, site); }
DEV double lds_d(u32 at, SITE) { return sim::load_shared<double>(at, site); }
DEV u16 lds_u16(u32 at, SITE) { return sim::load_shared<u16>(at, site); }
DEV v2 lds_v2(u32 at, SITE) { return sim::load_shared<v2>(at, site); }
DEV v4 lds_v4(u32 at, SITE) { return sim::load_shared<v4>(at, site); }
DEV void sts_f(u32 at, float x, SITE) { sim::store_shared(at, x, site); }
DEV void sts_u(u32 at, u32 x, SITE) { sim::store_shared(at, x, site); }
DEV void sts_d(u32 at, double x, SITE) { sim::store_shared(at, x, site); }
DEV void sts_u16(u32 at, u16 x, SITE) { sim::store_shared(at, x, site); }
DEV void sts_v2(u32 at, v2 x, SITE) { sim::store_shared(at, x, site); }
DEV void sts_v4(u32 at, v4 x, SITE) { sim::store_shared(at, x, site); }
DEV u32 atoms_add(u32 at, u32 x, SITE) {
    u8 *to = sim::shared_at(at, 4, site);
    if (sim::running.races) sim::race_atomic(at, 4, site);
    u32 old;
    memcpy(&old, to, 4);
    x += old;
    memcpy(to, &x, 4);
    return old;
}

DEV u8 ldg_u8(const void *p, SITE) { return sim::load_global<u8>(p, site); }
DEV u16 ldg_u16(const void *p, SITE) { return sim::load_global<u16>(p, site); }
DEV u32 ldg_u(const void *p, SITE) { return sim::load_global<u32>(p, site); }
DEV float ldg_f(const void *p, SITE) { return sim::load_global<float>(p, site); }
DEV double ldg_d(const void *p, SITE) { return sim::load_global<double>(p, site); }
DEV v2 ldg_v2(const void *p, SITE) { return sim::load_global<v2>(p, site); }
DEV v4 ldg_v4(const void *p, SITE) { return sim::load_global<v4>(p, site); }
DEV v4 ldg_v4_stream(const void *p, SITE) { return sim::load_constant<v4>(p, site); }
DEV v2 ldg_v2_stream(const void *p, SITE) { return sim::load_constant<v2>(p, site); }
DEV void stg_u8(void *p, u8 x, SITE) { sim::store_global(p, x, site); }
DEV void stg_u16(void *p, u16 x, SITE) { sim::store_global(p, x, site); }
DEV void stg_u(void *p, u32 x, SITE) { sim::store_global(p, x, site); }
DEV void stg_f(void *p, float x, SITE) { sim::store_global(p, x, site); }
DEV void stg_v2(void *p, v2 x, SITE) { sim::store_global(p, x, site); }
DEV void stg_v4(void *p, v4 x, SITE) { sim::store_global(p, x, site); }
DEV u32 atom_add(void *p, u32 x, SITE) {
    sim::running.acquired = true;
    u32 old = sim::load_global<u32>(p, site);
    sim::store_global(p, old + x, site, true);
    return old;
}
DEV u32 atom_cas(void *p, u32 expected, u32 x, SITE) {
    sim::give_way(site);
    sim::running.acquired = true;
    u32 old = sim::load_global<u32>(p, site);
    if (old == expected) sim::store_global(p, x, site, true);
    return old;
}
DEV void fence_gpu() {}
DEV u32 ld_acquire(const void *p, SITE) {
    sim::give_way(site);
    sim::running.acquired = true;
    return sim::load_global<u32>(p, site);
}
DEV void st_release(void *p, u32 x, SITE) { sim::store_global(p, x, site, true); }

DEV void cp16(u32 to, const void *from, bool ok, SITE) { sim::cp16(to, from, ok, site); }
DEV void cp_commit() { sim::cp_commit(); }
template <int N> DEV void cp_wait(SITE) { sim::cp_wait(N, site); }

DEV void ldsm4(u32 (&r)[4], u32 at, SITE) { sim::ldsm4(r, at, false, site); }
DEV void ldsm4t(u32 (&r)[4], u32 at, SITE) { sim::ldsm4(r, at, true, site); }
DEV void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, SITE) { sim::mma(d, a, b0, b1, site); }

DEV void grid_dep_wait() {}
DEV void grid_dep_launch() {}

DEV void mbar_init(u32 mbar, u32 arrivals, SITE) { sim::mbar_init(mbar, arrivals, site); }
DEV void mbar_fence() { sim::mbar_fence(); }
DEV void mbar_expect(u32 mbar, u32 bytes, SITE) { sim::mbar_arrive(mbar, bytes, true, site); }
DEV void mbar_arrive(u32 mbar, SITE) { sim::mbar_arrive(mbar, 0, false, site); }
DEV void mbar_wait(u32 mbar, u32 parity, SITE) { sim::mbar_wait(mbar, parity, site); }
DEV void bulk16(u32 to, const void *from, u32 bytes, u32 mbar, SITE) { sim::bulk16(to, from, bytes, mbar, site); }
DEV void fence_async() { sim::fence_async(); }
