// How well the accesses of a warp's lanes fit together: sectors of global memory, wavefronts of shared memory.
#include "sim_core.h"

#include <algorithm>

namespace sim {

void note_lane(Access access, u64 at, u32 bytes, Site site) { block->tally.note(running.tid, access, at, bytes, site); }

static bool fits(const Together &group, int lane, Access access, u32 bytes, Site site) {
    return group.site.line == site.line && group.site.file == site.file && group.access == access &&
           group.bytes == bytes && !(group.lanes >> lane & 1);
}

void Tally::note(int thread, Access access, u64 at, u32 bytes, Site site) {
    std::vector<Together> &groups = open[thread / 32];
    int lane = thread & 31;
    size_t i = next[thread];
    if (i >= groups.size() || !fits(groups[i], lane, access, bytes, site))
        for (i = 0; i < groups.size() && !fits(groups[i], lane, access, bytes, site);) i++;
    if (i == groups.size()) groups.push_back({site, access, bytes, 0, {}});
    groups[i].lanes |= 1u << lane;
    groups[i].at[lane] = at;
    next[thread] = (u32)i + 1;
}

static std::vector<u64> distinct(const Together &group, int begin, int end, int shift) {
    std::vector<u64> of;
    for (int l = begin; l < end; l++)
        if (group.lanes >> l & 1) of.push_back(group.at[l] >> shift);
    std::sort(of.begin(), of.end());
    of.erase(std::unique(of.begin(), of.end()), of.end());
    return of;
}

static void count_sectors(const Together &group, u64 &sectors, u64 &ideal) {
    sectors += distinct(group, 0, 32, 5).size();
    ideal += (distinct(group, 0, 32, 0).size() * group.bytes + 31) / 32;
}

// 32 banks of 4 bytes, 128 bytes at once: 16-byte accesses go by quarters of the warp, 8-byte ones by halves.
static void count_wavefronts(const Together &group) {
    int words = std::max(1, (int)group.bytes / 4), lanes = 32 / words;
    for (int begin = 0; begin < 32; begin += lanes) {
        u32 in_bank[32] = {}, most = 0;
        for (u64 word : distinct(group, begin, begin + lanes, 2))
            for (int i = 0; i < words; i++) most = std::max(most, ++in_bank[(word + i) % 32]);
        running.counters->shared_wavefronts += most;
        running.counters->shared_ideal += most > 0;
    }
}

void Tally::settle(int warp) {
    for (const Together &group : open[warp]) {
        Counters &to = *running.counters;
        if (group.access == Access::GlobalLoad) count_sectors(group, to.load_sectors, to.load_sectors_ideal);
        else if (group.access == Access::GlobalStore) count_sectors(group, to.store_sectors, to.store_sectors_ideal);
        else count_wavefronts(group);
    }
    open[warp].clear();
    std::fill(next + 32 * warp, next + 32 * (warp + 1), 0);
}

void Tally::clear() {
    for (auto &groups : open) groups.clear();
    memset(next, 0, sizeof next);
}

} // namespace sim
