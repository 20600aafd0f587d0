// The emulator as its users in Rust see it (../sim.rs). Errors are texts that live until the device's next call.
#include "sim_core.h"

#include <algorithm>

using namespace sim;

// Twin of `RawLaunch` in ../sim.rs.
struct SimLaunch {
    const Kernel *kernel;
    u32 grid[3];
    u32 shared_bytes;
    const void *params;
    u64 params_bytes;
    u32 copies, order; // Copies, Order
    u64 seed;
    bool races, unwritten, lanes;
};

#define API extern "C" __attribute__((visibility("default")))

API Device *sim_open() { return new Device(); }
API void sim_close(Device *device) { delete device; }
API void *sim_alloc(Device *device, u64 bytes, int fill) { return device->allocate(bytes, fill); }
API bool sim_free(Device *device, void *start) { return device->free(start); }
API void sim_counters(const Device *device, Counters *out) { *out = device->counters; }
API void sim_counters_reset(Device *device) { device->counters = {}; }

static const char *error(Device *device, std::string what) {
    device->error = std::move(what);
    return device->error.c_str();
}

// The allocation that holds the whole range, or none.
static Allocation *holding(Device *device, u64 at, u64 bytes) {
    Mapping *mapping = device->find(at);
    if (!mapping) return nullptr;
    Allocation &in = mapping->allocation;
    u64 offset = at - in.start;
    return offset <= in.bytes && in.bytes - offset >= bytes ? &in : nullptr;
}

API const char *sim_write(Device *device, void *to, const void *from, u64 bytes) {
    Allocation *in = holding(device, (u64)to, bytes);
    if (!in) return error(device, "writes " + std::to_string(bytes) + " bytes past an allocation's end");
    mark_written(*in, (u64)to - in->start, bytes);
    memcpy(to, from, bytes);
    return nullptr;
}

API const char *sim_read(Device *device, const void *from, void *to, u64 bytes) {
    if (!holding(device, (u64)from, bytes))
        return error(device, "reads " + std::to_string(bytes) + " bytes past an allocation's end");
    memcpy(to, from, bytes);
    return nullptr;
}

static std::string refusal(const SimLaunch &launch) {
    const Kernel &kernel = *launch.kernel;
    if (kernel.threads % 32 || kernel.threads > MAX_THREADS || !kernel.threads)
        return std::to_string(kernel.threads) + " threads";
    if (launch.shared_bytes > MAX_SHARED_BYTES) return std::to_string(launch.shared_bytes) + " bytes of shared memory";
    if (launch.params_bytes != kernel.params_bytes)
        return std::to_string(launch.params_bytes) + " bytes of parameters, expected " +
               std::to_string(kernel.params_bytes) + " of " + kernel.params;
    const u32 *grid = launch.grid;
    u64 blocks = (u64)grid[0] * grid[1] * grid[2];
    if (!blocks || blocks > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535)
        return "a grid of " + std::to_string(grid[0]) + " x " + std::to_string(grid[1]) + " x " + std::to_string(grid[2]);
    return "";
}

static std::vector<u64> block_order(const SimLaunch &launch, std::minstd_rand &random) {
    std::vector<u64> blocks((u64)launch.grid[0] * launch.grid[1] * launch.grid[2]);
    for (u64 i = 0; i < blocks.size(); i++) blocks[i] = i;
    if ((Order)launch.order == Order::Down) std::reverse(blocks.begin(), blocks.end());
    if ((Order)launch.order == Order::Random) std::shuffle(blocks.begin(), blocks.end(), random);
    return blocks;
}

static void run_block(Device *device, const SimLaunch &launch, u64 index) {
    const u32 *grid = launch.grid;
    running.block[0] = (int)(index % grid[0]);
    running.block[1] = (int)(index / grid[0] % grid[1]);
    running.block[2] = (int)(index / grid[0] / grid[1]);
    running.this_block = running.first_block + (u32)index;
    running.acquired = false;
    memset(running.shared, 0xff, launch.shared_bytes);
    device->block.run(launch.kernel->threads);
}

// Gives the launch's blocks numbers that no earlier launch has had.
static void number_blocks(Device *device, u64 n) {
    if (device->blocks + n > 0xfffffffeu) {
        device->blocks = 0;
        for (auto &mapping : device->mappings) std::fill(mapping->writers.begin(), mapping->writers.end(), 0);
    }
    running.first_block = device->blocks + 1;
    device->blocks += (u32)n;
}

API const char *sim_launch(Device *device, const SimLaunch *launch) {
    std::string refused = refusal(*launch);
    if (!refused.empty()) return error(device, std::string(launch->kernel->name) + ": " + refused);
    Block &runs = device->block;
    runs.options = {(Copies)launch->copies, (Order)launch->order, launch->seed};
    runs.kernel = launch->kernel;
    runs.params = launch->params;
    runs.random.seed((u32)(launch->seed ^ launch->seed >> 32) + 1);
    device->shared.resize(launch->shared_bytes);
    running = {};
    for (int i = 0; i < 3; i++) running.grid[i] = (int)launch->grid[i];
    running.races = launch->races;
    running.unwritten = launch->unwritten;
    running.lanes = launch->lanes;
    running.shared = device->shared.data();
    running.shared_bytes = launch->shared_bytes;
    running.hints = device->hints;
    running.counters = &device->counters;
    number_blocks(device, (u64)launch->grid[0] * launch->grid[1] * launch->grid[2]);
    block = &runs;
    for (u64 index : block_order(*launch, runs.random)) {
        run_block(device, *launch, index);
        if (!runs.error.empty()) return error(device, runs.error);
    }
    return nullptr;
}

API const Module *sim_modules() { return modules; }
