// Global memory: allocations that know their bounds and what was written, each ending at a page that traps.
#include "sim_core.h"

#include <algorithm>
#include <sys/mman.h>
#include <unistd.h>

namespace sim {

constexpr size_t ALIGN = 256;

bool Allocation::marked(u64 at, u32 n) const {
    for (u64 i = at; i < at + n;) {
        bool whole = i % 8 == 0 && at + n - i >= 8;
        if (whole ? written[i >> 3] != 0xff : !(written[i >> 3] >> (i & 7) & 1)) return false;
        i += whole ? 8 : 1;
    }
    return true;
}

void mark_written(Allocation &in, u64 at, u64 bytes) {
    u64 end = at + bytes;
    for (; at < end && at % 8; at++) in.mark(at, 1);
    if (u64 whole = (end - at) / 8) memset(in.written + at / 8, 0xff, whole);
    for (at += (end - at) / 8 * 8; at < end; at++) in.mark(at, 1);
}

void *Device::allocate(size_t bytes, int fill) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t room = (std::max<size_t>(bytes, 1) + ALIGN - 1) / ALIGN * ALIGN;
    size_t pages = (room + page - 1) / page * page;
    void *at = mmap(nullptr, pages + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return nullptr;
    auto made = std::make_unique<Mapping>();
    made->base = (u8 *)at;
    made->bytes = pages + page;
    mprotect(made->base + pages, page, PROT_NONE);
    u8 *start = made->base + pages - room;
    made->written.assign(bytes / 8 + 2, fill == 0 ? 0xff : 0); // zeros are a promise, other fillings are not
    made->allocation = {(u64)start, bytes, made->written.data(), nullptr};
    if (fill) memset(start, fill, bytes);
    auto after = std::find_if(mappings.begin(), mappings.end(), [&](auto &m) { return m->base > made->base; });
    mappings.insert(after, std::move(made));
    return start;
}

static void unmap(Mapping &mapping) { munmap(mapping.base, mapping.bytes); }

bool Device::free(void *start) {
    Mapping *mapping = find((u64)start);
    if (!mapping || mapping->allocation.start != (u64)start) return false;
    memset(hints, 0, sizeof hints);
    unmap(*mapping);
    mappings.erase(std::find_if(mappings.begin(), mappings.end(), [&](auto &m) { return m.get() == mapping; }));
    return true;
}

Device::~Device() {
    for (auto &mapping : mappings) unmap(*mapping);
}

// The allocation that begins last at or before `at`.
Mapping *Device::find(u64 at) {
    auto after = std::upper_bound(mappings.begin(), mappings.end(), at,
                                  [](u64 a, const auto &m) { return a < m->allocation.start; });
    return after == mappings.begin() ? nullptr : (after - 1)->get();
}

Allocation *find_global(u64 at, u32 bytes, Site site) {
    Mapping *mapping = block->device.find(at);
    if (!mapping) bad_global(at, bytes, "outside of all memory", site);
    Allocation &in = mapping->allocation;
    u64 offset = at - in.start;
    if (offset >= in.bytes || in.bytes - offset < bytes) bad_global(at, bytes, "out of range", site);
    block->device.hints[(at >> 12) % PAGE_HINTS] = &in;
    return &in;
}

// ---- blocks that touch the same memory

static void check_owner(const Allocation &in, u64 at, u32 bytes, const char *doing, Site site) {
    for (u64 i = at; i < at + bytes; i++) {
        u32 writer = in.writers[i];
        if (writer < running.first_block || writer == running.this_block) continue;
        fail(site, "race: %s byte %llu of an allocation of %llu bytes, which another block of this launch writes (number %u)",
             doing, i, in.bytes, writer - running.first_block);
    }
}

void read_of_block(Allocation *in, u64 at, u32 bytes, Site site) {
    if (in->writers && !running.acquired) check_owner(*in, at, bytes, "reads", site);
}

void read_of_constant(const void *p, u32 bytes, Site site) {
    const Allocation &in = *global_at(p, bytes, site);
    if (!in.writers) return;
    for (u64 at = (u64)p - in.start, end = at + bytes; at < end; at++)
        if (in.writers[at] >= running.first_block)
            fail(site, "reads byte %llu of an allocation of %llu bytes as a constant, but this launch writes it", at, in.bytes);
}

void write_of_block(Allocation *in, u64 at, u32 bytes, bool shared, Site site) {
    if (!in->writers) {
        Mapping &mapping = *block->device.find(in->start);
        mapping.writers.assign(in->bytes, 0);
        in->writers = mapping.writers.data();
    }
    if (!shared && !running.acquired) check_owner(*in, at, bytes, "writes", site);
    std::fill_n(in->writers + at, bytes, shared ? 0 : running.this_block);
}

void bad_global(u64 at, u32 bytes, const char *fault, Site site) {
    Mapping *mapping = at ? block->device.find(at) : nullptr;
    if (!mapping) fail(site, "%u bytes of global memory at %#llx: %s", bytes, at, fault);
    Allocation &near = mapping->allocation;
    fail(site, "%u bytes of global memory: %s, at byte %llu of an allocation of %llu bytes", bytes, fault,
         at - near.start, near.bytes);
}

void bad_shared(u32 at, u32 bytes, Site site) {
    u32 offset = at - SHARED_BASE;
    const char *fault = at & (bytes - 1) ? "misaligned" : "out of range";
    if (at < SHARED_BASE) fail(site, "%u bytes of shared memory: %s, at address %u below smem_base()", bytes, fault, at);
    fail(site, "%u bytes of shared memory: %s, at byte %u of %u", bytes, fault, offset, running.shared_bytes);
}

} // namespace sim
