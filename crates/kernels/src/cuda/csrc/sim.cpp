// A block's run: who goes on next, who waits, and what is wrong where nobody can.
#include "sim_core.h"

#include <cstdarg>
#include <cstdio>

namespace sim {

__thread Running running;
__thread Block *block;

const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

// Leaves the block for good: its fibers hold nothing that needs an end.
void fail(Site site, const char *format, ...) {
    char what[2048], where[256];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    const int *at = running.block;
    snprintf(where, sizeof where, "%s, block (%d, %d, %d), thread %d (warp %d, lane %d), ", block->kernel->name, at[0],
             at[1], at[2], running.tid, running.tid >> 5, running.tid & 31);
    block->error = where;
    if (site.file) block->error += std::string(base_name(site.file)) + ":" + std::to_string(site.line) + ": ";
    block->error += what;
    Context abandoned;
    switch_context(abandoned, block->host);
    __builtin_unreachable();
}

static int warp_number(const Warp &warp) { return (int)(&warp - block->warps); }

static void lane_returns() {
    Lane &lane = block->lane_now();
    Warp &warp = block->warp_now();
    u32 bit = 1u << (running.tid & 31);
    if (!lane.copies.empty())
        fail(lane.copies[0].site, "%zu copies begun by this thread were not waited for when it returned",
             lane.copies.size());
    warp.returned |= bit;
    if (running.lanes && warp.returned == ALL_LANES) block->tally.settle(warp_number(warp));
    if (warp.arrived) fail(warp.site, "a lane has returned while others wait in %s here", warp.met->name);
    block->set_runnable(warp, warp.runnable & ~bit);
    block->yield();
}

static void fiber() {
    block->kernel->run(block->params);
    lane_returns();
}

void Block::set_runnable(Warp &warp, u32 of) {
    warp.runnable = of;
    u32 bit = 1u << (&warp - warps);
    ready = of ? ready | bit : ready & ~bit;
}

int Block::choose(u32 set, Order order) {
    if (order == Order::Up) return __builtin_ctz(set);
    if (order == Order::Down) return 31 - __builtin_clz(set);
    for (u32 skip = random() / 8 % (u32)__builtin_popcount(set); skip > 0; skip--) set &= set - 1;
    return __builtin_ctz(set);
}

void Block::resume(int thread) {
    if (thread == running.tid) return;
    Context &from = running.tid < 0 ? host : lanes[running.tid].context;
    running.tid = thread;
    switch_context(from, lanes[thread].context);
}

bool Block::all_returned() const {
    for (int w = 0; w < n_warps; w++)
        if (warps[w].returned != ALL_LANES) return false;
    return true;
}

void Block::yield(Order order) {
    if (options.copies == Copies::Random && chance(4)) land_one_bulk_copy();
    while (!ready) {
        if (all_returned()) {
            check_bulk_copies_ended();
            Context done;
            switch_context(done, host);
        }
        if (!land_one_bulk_copy()) stuck();
    }
    int w = running.tid >> 5; // a warp goes on until it has to wait, unless the order is random
    if (running.tid < 0 || order == Order::Random || !warps[w].runnable) w = choose(ready, order);
    resume(32 * w + choose(warps[w].runnable, order));
}

void give_way(Site site) {
    constexpr u32 SPINS_MAX = 1 << 20;
    if (++block->give_ways > SPINS_MAX) fail(site, "waits for global memory that nobody of this block changes");
    block->yield(Order::Random); // else the one that waits might go on alone for ever
}

static std::string at(Site site) { return std::string(base_name(site.file)) + ":" + std::to_string(site.line); }

static std::string where_it_waits(const Warp &warp, int w) {
    if (warp.returned == ALL_LANES) return "has returned";
    if (warp.barrier >= 0) {
        const Barrier &barrier = block->barriers[warp.barrier];
        return "waits at barrier " + std::to_string(warp.barrier) + " (" + std::to_string(barrier.arrived) + " of " +
               std::to_string(barrier.expected) + " threads have come), " + at(warp.site);
    }
    std::string text = waits_at_mbarriers(w);
    if (!warp.arrived) return text;
    char lanes[32];
    snprintf(lanes, sizeof lanes, "lanes %08x", warp.arrived);
    return text + lanes + " wait in " + warp.met->name + ", " + at(warp.site);
}

void Block::stuck() {
    std::string who;
    for (int w = 0; w < n_warps; w++) who += "\n  warp " + std::to_string(w) + " " + where_it_waits(warps[w], w);
    fail({nullptr, 0}, "deadlock: nobody can go on%s", who.c_str());
}

void Block::run(u32 threads) {
    n_warps = (int)threads / 32;
    ready = 0;
    give_ways = 0;
    error.clear();
    if (lanes.size() < threads) lanes.resize(threads);
    while (stacks.size() < threads) stacks.push_back(std::make_unique<Stack>());
    for (u32 t = 0; t < threads; t++) {
        make_context(lanes[t].context, stacks[t]->memory, Stack::BYTES, fiber);
        lanes[t].copies.clear();
        lanes[t].groups = lanes[t].mbarrier = 0;
        lanes[t].fenced = shadow.n_stores;
    }
    for (int w = 0; w < n_warps; w++) {
        warps[w].returned = warps[w].arrived = 0;
        warps[w].barrier = -1;
        set_runnable(warps[w], ALL_LANES);
    }
    memset(barriers, 0, sizeof barriers);
    mbarriers.clear();
    bulk_copies.clear();
    tally.clear();
    start_clocks(*this);
    running.tid = -1;
    yield();
    shadow.close(warps, n_warps);
    if (!error.empty()) shadow.writes.clear(); // copies are under way for ever
}

// ---- meeting

static bool same(Site a, Site b) { return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file)); }

void meet(const Collective &what, void *arguments, Site site) {
    Warp &warp = block->warp_now();
    int lane = running.tid & 31;
    u32 bit = 1u << lane;
    if (warp.returned) fail(site, "%s by a warp of which lanes %08x have returned", what.name, warp.returned);
    if (!warp.arrived) {
        warp.met = &what;
        warp.site = site;
    } else if (warp.met != &what || !same(warp.site, site)) {
        fail(site, "the warp has diverged: this lane is in %s, lanes %08x are in %s at %s:%d", what.name, warp.arrived,
             warp.met->name, base_name(warp.site.file), warp.site.line);
    }
    warp.arguments[lane] = arguments;
    warp.arrived |= bit;
    if (warp.arrived != ALL_LANES) {
        block->set_runnable(warp, warp.runnable & ~bit);
        block->yield();
        return;
    }
    warp.arrived = 0;
    running.counters->collectives++;
    if (running.lanes) block->tally.settle(warp_number(warp));
    block->set_runnable(warp, ALL_LANES);
    what.run(warp);
    if (block->options.order == Order::Random || !warp.runnable) block->yield();
}

// ---- barriers

struct BarrierCall {
    int id, threads;
    bool waits;
    Site site;
};

static void open_barrier(Barrier &barrier) {
    for (int w = 0; w < block->n_warps; w++) {
        if (!(barrier.waiting >> w & 1)) continue;
        Warp &warp = block->warps[w];
        join(warp.clocks, barrier.clocks);
        warp.synced = warp.clocks[w];
        warp.barrier = -1;
        block->set_runnable(warp, ALL_LANES);
    }
    memset(&barrier, 0, sizeof barrier);
}

static void come(Warp &warp) {
    BarrierCall &call = *static_cast<BarrierCall *>(warp.arguments[0]);
    for (void *other : warp.arguments) {
        BarrierCall &o = *static_cast<BarrierCall *>(other);
        if (o.id != call.id || o.threads != call.threads) fail(call.site, "lanes of a warp name different barriers");
    }
    if (call.id < 0 || call.id >= BARRIERS) fail(call.site, "barrier %d of 0 to 15", call.id);
    if (call.threads <= 0 || call.threads % 32 || call.threads > 32 * block->n_warps)
        fail(call.site, "a barrier of %d threads in a block of %d", call.threads, 32 * block->n_warps);
    Barrier &barrier = block->barriers[call.id];
    if (barrier.expected && barrier.expected != call.threads)
        fail(call.site, "barrier %d is met by %d threads here and by %d at %s:%d", call.id, call.threads,
             barrier.expected, base_name(barrier.site.file), barrier.site.line);
    int w = warp_number(warp);
    running.counters->barriers++;
    barrier.expected = call.threads;
    barrier.site = call.site;
    barrier.arrived += 32;
    join(barrier.clocks, warp.clocks);
    warp.clocks[w]++;
    if (call.waits) {
        barrier.waiting |= 1u << w;
        warp.barrier = call.id;
        block->set_runnable(warp, 0);
    }
    if (barrier.arrived == barrier.expected) open_barrier(barrier);
}

static const Collective SYNC = {"bar_sync", come}, ARRIVE = {"bar_arrive_n", come};

void bar_sync(int id, int threads, Site site) {
    BarrierCall call = {id, threads ? threads : 32 * block->n_warps, true, site};
    meet(SYNC, &call, site);
}

void bar_arrive(int id, int threads, Site site) {
    BarrierCall call = {id, threads, false, site};
    meet(ARRIVE, &call, site);
}

static void order_lanes(Warp &warp) { warp.synced = ++warp.clocks[warp_number(warp)]; }

static const Collective WARP_SYNC = {"warp_sync", order_lanes};

void warp_sync(Site site) { meet(WARP_SYNC, nullptr, site); }

} // namespace sim
