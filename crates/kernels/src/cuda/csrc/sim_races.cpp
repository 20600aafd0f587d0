// Who touched which shared memory, and whether a barrier lies between.
#include "sim_core.h"

#include <algorithm>

namespace sim {

// ---- what a cell remembers

constexpr u32 EVERY_LANE = 0xff; // a warp's lanes together, or several of them
constexpr u32 ATOMIC = 0xfe;

// Of a cell's last write.
struct Write {
    u32 clock;
    u8 warp, lane;
    bool in_flight;
    u16 line;

    static Write from(u64 bits) {
        return {(u32)(bits & 0xffffff), (u8)(bits >> 24 & 0x7f), (u8)(bits >> 32), (bits >> 31 & 1) != 0,
                (u16)(bits >> 40)};
    }
    u64 bits() const {
        return clock | (u64)warp << 24 | (u64)in_flight << 31 | (u64)lane << 32 | (u64)line << 40;
    }
};

constexpr u32 CLOCK_MAX = 0xffffff; // 24 bits, also beside a lane in `reads`

void join(Clocks &into, const Clocks &from) {
    for (int w = 0; w <= ENGINE; w++) into[w] = std::max(into[w], from[w]);
}

void Shadow::open(u32 shared_bytes, int warps) {
    size_t cells = (shared_bytes + 1) / 2;
    bool full = newest > CLOCK_MAX / 2;
    if (full || writes.size() < cells) {
        writes.assign(cells, 0);
        stores.assign(cells, 0);
        for (auto &of : reads) of.clear();
        newest = full ? 0 : newest;
    }
    for (int w = 0; w < warps; w++)
        if (reads[w].size() < writes.size()) reads[w].assign(writes.size(), 0);
}

void Shadow::close(const Warp *warps, int n) {
    for (int w = 0; w < n; w++) newest = std::max(newest, warps[w].clocks[w]);
    newest = std::max(newest, engine);
}

void start_clocks(Block &b) {
    if (running.races) b.shadow.open(running.shared_bytes, b.n_warps);
    u32 known = b.shadow.newest;
    b.shadow.engine = known;
    for (int w = 0; w < b.n_warps; w++) {
        std::fill(b.warps[w].clocks, b.warps[w].clocks + ENGINE + 1, known);
        b.warps[w].synced = b.warps[w].clocks[w] = known + 1;
    }
}

// ---- accesses

static std::string one(int warp, u32 lane) {
    if (warp == ENGINE) return "a bulk copy";
    if (lane == EVERY_LANE) return "warp " + std::to_string(warp);
    if (lane == ATOMIC) return "an atomic of warp " + std::to_string(warp);
    return "warp " + std::to_string(warp) + ", lane " + std::to_string(lane);
}

// The access being made: by a lane of the warp that runs.
struct Toucher {
    int warp;
    u32 lane;
    const Clocks &clocks;
    u32 synced;
    u32 at;
    Site site;

    Toucher(u32 lane, u32 at, Site site)
        : warp(block->warp_index()), lane(lane), clocks(block->warp_now().clocks), synced(block->warp_now().synced),
          at(at), site(site) {}

    u32 now() const { return clocks[warp]; }
    // Whether what that lane did at that time is known here.
    bool knows(int of, u32 by, u32 clock) const {
        return of == warp ? clock < synced || by == lane : clock <= clocks[of];
    }

    void after_write(u64 bits, const char *doing) const {
        Write w = Write::from(bits);
        if (w.in_flight)
            fail(site, "%s shared address %u, whose copy by %s (line %u) is under way", doing, at,
                 one(w.warp, w.lane).c_str(), w.line);
        if (lane == ATOMIC && w.lane == ATOMIC) return;
        if (!knows(w.warp, w.lane, w.clock))
            fail(site, "race: %s shared address %u, written by %s (line %u) with no barrier since", doing, at,
                 one(w.warp, w.lane).c_str(), w.line);
    }

    void after_reads(u32 cell, u32 n) const {
        for (int w = 0; w < block->n_warps; w++) {
            const u32 *reads = &block->shadow.reads[w][cell];
            for (u32 i = 0; i < n; i++) {
                u32 clock = reads[i] >> 8, by = reads[i] & 0xff;
                if (!knows(w, by, clock))
                    fail(site, "race: writes shared address %u, read by %s with no barrier since", at,
                         one(w, by).c_str());
            }
        }
    }
};

static u32 cell_of(u32 at) { return (at - SHARED_BASE) / 2; }
static u32 lane_index() { return running.tid & 31; }

static void read_cells(u32 lane, u32 at, u32 bytes, Site site) {
    Toucher by(lane, at, site);
    u32 cell = cell_of(at), n = bytes / 2;
    u64 seen = 0; // most accesses meet cells of one write
    for (u32 i = 0; i < n; i++) {
        u64 write = block->shadow.writes[cell + i];
        if (write == seen) continue;
        by.after_write(write, "reads");
        seen = write;
    }
    u32 *reads = &block->shadow.reads[by.warp][cell];
    for (u32 i = 0; i < n; i++) {
        bool others = reads[i] >> 8 >= by.synced && (reads[i] & 0xff) != lane;
        reads[i] = by.now() << 8 | (others ? EVERY_LANE : lane);
    }
}

static void write_cells(u32 lane, u32 at, u32 bytes, bool in_flight, const char *doing, Site site) {
    Toucher by(lane, at, site);
    u32 cell = cell_of(at), n = bytes / 2;
    u64 seen = 0;
    u64 mine = Write{by.now(), (u8)by.warp, (u8)lane, in_flight, (u16)site.line}.bits();
    for (u32 i = 0; i < n; i++) {
        u64 &write = block->shadow.writes[cell + i];
        if (write != seen) by.after_write(write, doing);
        seen = write;
        write = mine;
    }
    by.after_reads(cell, n);
    std::fill_n(&block->shadow.stores[cell], n, ++block->shadow.n_stores);
}

void race_read(u32 at, u32 bytes, Site site) { read_cells(lane_index(), at, bytes, site); }
void race_read_by_warp(u32 at, u32 bytes, Site site) { read_cells(EVERY_LANE, at, bytes, site); }
void race_write(u32 at, u32 bytes, Site site) { write_cells(lane_index(), at, bytes, false, "writes", site); }
void race_atomic(u32 at, u32 bytes, Site site) {
    write_cells(ATOMIC, at, bytes, false, "changes", site);
}

void race_copy_begin(u32 at, u32 bytes, Site site) {
    write_cells(lane_index(), at, bytes, true, "copies to", site);
}

// The thread that waited has the bytes; others need a barrier.
void race_copy_end(u32 at, u32 bytes, Site site) {
    Toucher by(lane_index(), at, site);
    u64 landed = Write{by.now(), (u8)by.warp, (u8)by.lane, false, (u16)site.line}.bits();
    std::fill_n(&block->shadow.writes[cell_of(at)], bytes / 2, landed);
}

void race_use(u32 at, u32 bytes, Site site) {
    Toucher by(lane_index(), at, site);
    for (u32 i = 0; i < bytes / 2; i++) by.after_write(block->shadow.writes[cell_of(at) + i], "uses the barrier at");
}

// ---- bulk copies, which go past the path of ordinary writes

void fence_async() { block->lane_now().fenced = block->shadow.n_stores; }

void race_bulk_begin(u32 at, u32 bytes, Site site) {
    Shadow &shadow = block->shadow;
    u32 cell = cell_of(at), n = bytes / 2;
    for (u32 i = 0; i < n; i++) {
        Write w = Write::from(shadow.writes[cell + i]);
        u32 store = shadow.stores[cell + i];
        if (!store || w.in_flight || w.lane >= 32 || store <= block->lanes[32 * w.warp + w.lane].fenced) continue;
        fail(site, "bulk copy to shared address %u, written by %s (line %u) with no fence_async since", at + 2 * i,
             one(w.warp, w.lane).c_str(), w.line);
    }
    write_cells(lane_index(), at, bytes, true, "bulk copies to", site);
    std::fill_n(&shadow.stores[cell], n, 0);
}

void race_bulk_end(u32 at, u32 bytes) {
    Shadow &shadow = block->shadow;
    u64 landed = Write{shadow.engine, ENGINE, EVERY_LANE, false, 0}.bits();
    std::fill_n(&shadow.writes[cell_of(at)], bytes / 2, landed);
}

} // namespace sim
