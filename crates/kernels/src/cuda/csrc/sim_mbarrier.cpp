// Barriers in shared memory, and the engine whose bulk copies complete on them. A lane that has waited learns what the
// barrier knows for its whole warp.
#include "sim_core.h"

#include <algorithm>

namespace sim {

constexpr u32 COUNT_MAX = (1 << 20) - 1; // of arrivals, and of bytes in a phase

// ---- barriers

static Mbarrier &known(u32 at, const char *doing, Site site) {
    auto found = block->mbarriers.find(at);
    if (found == block->mbarriers.end()) fail(site, "%s at shared address %u, where no mbarrier is", doing, at);
    if (running.races) race_use(at, 8, site);
    return found->second;
}

void mbar_init(u32 at, u32 arrivals, Site site) {
    shared_at(at, 8, site);
    if (!arrivals || arrivals > COUNT_MAX) fail(site, "an mbarrier of %u arrivals", arrivals);
    if (running.races) race_write(at, 8, site);
    Mbarrier &made = block->mbarriers[at];
    if (!made.waiting.empty()) fail(site, "an mbarrier is made anew while threads wait for it");
    made = {};
    made.count = made.pending = arrivals;
    made.thread = running.tid;
    made.site = site;
}

void mbar_fence() {
    for (auto &[at, mbarrier] : block->mbarriers)
        if (mbarrier.thread == running.tid) mbarrier.fenced = true;
}

static void wake(Mbarrier &mbarrier) {
    for (int thread : mbarrier.waiting) {
        Warp &warp = block->warps[thread / 32];
        block->lanes[thread].mbarrier = 0;
        block->set_runnable(warp, warp.runnable | 1u << thread % 32);
    }
    mbarrier.waiting.clear();
}

// Ends the phase if all is there.
static void settle(Mbarrier &mbarrier, Site site) {
    if (mbarrier.pending) return;
    if (mbarrier.bytes < 0) fail(site, "%lld bytes more than the mbarrier expects", -mbarrier.bytes);
    if (mbarrier.bytes) return;
    mbarrier.phase++;
    mbarrier.pending = mbarrier.count;
    mbarrier.unheeded |= mbarrier.expects;
    mbarrier.expects = false;
    join(mbarrier.known, mbarrier.coming);
    wake(mbarrier);
}

static void preempt() {
    if (block->options.order == Order::Random) block->yield();
}

void mbar_arrive(u32 at, u32 bytes, bool expects, Site site) {
    Mbarrier &mbarrier = known(at, expects ? "mbar_expect" : "mbar_arrive", site);
    if (!mbarrier.pending) fail(site, "more than the %u arrivals that the mbarrier counts", mbarrier.count);
    if (bytes > COUNT_MAX) fail(site, "an mbarrier cannot expect %u bytes", bytes);
    mbarrier.bytes += bytes;
    mbarrier.expects |= expects;
    mbarrier.pending--;
    Warp &warp = block->warp_now();
    join(mbarrier.coming, warp.clocks);
    warp.clocks[block->warp_index()]++;
    settle(mbarrier, site);
    preempt();
}

void mbar_wait(u32 at, u32 parity, Site site) {
    Mbarrier &mbarrier = known(at, "mbar_wait", site);
    if (parity > 1) fail(site, "parity %u", parity);
    Warp &warp = block->warp_now();
    while ((mbarrier.phase & 1) == parity) {
        Lane &lane = block->lane_now();
        lane.mbarrier = at;
        lane.parity = parity;
        lane.waits = site;
        mbarrier.waiting.push_back(running.tid);
        block->set_runnable(warp, warp.runnable & ~(1u << (running.tid & 31)));
        block->yield();
    }
    mbarrier.unheeded = false;
    join(warp.clocks, mbarrier.known);
    warp.synced = std::max(warp.synced, mbarrier.known[block->warp_index()] + 1); // lanes of the warp arrived too
    preempt();
}

std::string waits_at_mbarriers(int warp) {
    for (int l = 0; l < 32; l++) {
        const Lane &lane = block->lanes[32 * warp + l];
        if (!lane.mbarrier) continue;
        const Mbarrier &at = block->mbarriers[lane.mbarrier];
        return "lane " + std::to_string(l) + " waits for parity " + std::to_string(lane.parity) + " of the mbarrier at " +
               std::to_string(lane.mbarrier) + " (phase " + std::to_string(at.phase) + ", " +
               std::to_string(at.pending) + " arrivals and " + std::to_string(at.bytes) + " bytes missing), " +
               base_name(lane.waits.file) + ":" + std::to_string(lane.waits.line) + "; ";
    }
    return "";
}

// ---- bulk copies

static void land(const BulkCopy &copy) {
    memcpy(running.shared + (copy.to - SHARED_BASE), copy.from, copy.bytes);
    block->shadow.engine++;
    if (running.races) race_bulk_end(copy.to, copy.bytes);
    Mbarrier &mbarrier = block->mbarriers[copy.mbarrier];
    mbarrier.bytes -= copy.bytes;
    mbarrier.coming[ENGINE] = block->shadow.engine;
    settle(mbarrier, copy.site);
}

bool land_one_bulk_copy() {
    std::vector<BulkCopy> &copies = block->bulk_copies;
    if (copies.empty()) return false;
    size_t which = block->options.copies == Copies::Random ? block->random() / 8 % copies.size() : 0;
    BulkCopy copy = copies[which];
    copies.erase(copies.begin() + (long)which);
    land(copy);
    return true;
}

static void check_source(const void *from, u32 bytes, Site site) {
    Allocation *in = global_at(from, 16, site);
    u64 offset = (u64)from - in->start;
    if (in->bytes - offset < bytes) bad_global((u64)from + bytes - 16, 16, "out of range", site);
    if (running.unwritten && !in->marked(offset, bytes)) bad_global((u64)from, bytes, "never written", site);
    if (running.races) read_of_block(in, offset, bytes, site);
    running.counters->loaded_bytes += bytes;
}

void bulk16(u32 to, const void *from, u32 bytes, u32 at, Site site) {
    Mbarrier &mbarrier = known(at, "bulk16", site);
    if (!mbarrier.fenced) fail(site, "bulk16 tells an mbarrier with no mbar_fence since its mbar_init");
    if (!bytes || bytes % 16 || bytes > COUNT_MAX) fail(site, "a bulk copy of %u bytes", bytes);
    u8 *target = shared_at(to, 16, site);
    if (to - SHARED_BASE + bytes > running.shared_bytes) bad_shared(to + bytes - 16, 16, site);
    check_source(from, bytes, site);
    if (running.races) race_bulk_begin(to, bytes, site);
    memset(target, 0xff, bytes);
    block->bulk_copies.push_back({to, bytes, at, from, site});
    if (block->options.copies == Copies::Eager) land_one_bulk_copy();
    preempt();
}

void check_bulk_copies_ended() {
    if (!block->bulk_copies.empty())
        fail(block->bulk_copies[0].site, "%zu bulk copies are under way when the block ends", block->bulk_copies.size());
    for (auto &[at, mbarrier] : block->mbarriers) {
        if (mbarrier.bytes)
            fail(mbarrier.site, "the mbarrier made here expects %lld more bytes when the block ends", mbarrier.bytes);
        if (mbarrier.unheeded) fail(mbarrier.site, "nobody waited for the bytes that came to the mbarrier made here");
    }
}

} // namespace sim
