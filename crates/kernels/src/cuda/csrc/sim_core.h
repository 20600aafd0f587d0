// The emulator's inside: a device, the block that runs on it, its warps and threads. See sim.h.
#pragma once

#include "dev.h"

#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace sim {

constexpr int MAX_WARPS = 32;
constexpr int MAX_THREADS = 32 * MAX_WARPS;
constexpr int BARRIERS = 16;
constexpr u32 ALL_LANES = 0xffffffffu;
constexpr u32 MAX_SHARED_BYTES = 232448; // of a block, on sm_90

// ---- fibers (sim_fibers.cpp)

struct Context {
    void *stack_pointer = nullptr;
    std::shared_ptr<void> other; // where there is no switch of our own
};
void make_context(Context &, u8 *stack, size_t bytes, void (*entry)());
void switch_context(Context &from, Context &to);

// A fiber's memory, with a page behind it that traps.
class Stack {
  public:
    static constexpr size_t BYTES = 128 << 10;
    Stack();
    ~Stack();
    Stack(const Stack &) = delete;
    u8 *memory;
};

// ---- copies under way

struct Copy {
    u32 to, group;
    bool landed; // the bytes are there; the thread has not waited yet
    Site site;
    u8 bytes[16];
};

// ---- threads, warps, barriers

struct Lane {
    Context context;
    std::vector<Copy> copies; // in order of issue
    u32 groups;               // committed
    u32 fenced;               // what it wrote to shared memory up to here, the engine may touch
    u32 mbarrier, parity;     // where it waits, or 0
    Site waits;
};

struct Warp;

// What 32 lanes do together: run by the last that arrives.
struct Collective {
    const char *name;
    void (*run)(Warp &);
};

// The engine that does bulk copies has a clock as warps have.
constexpr int ENGINE = MAX_WARPS;

// clocks[w]: how much of warp w's past is known.
using Clocks = u32[MAX_WARPS + 1];

struct Warp {
    u32 runnable; // lanes
    u32 returned;
    u32 arrived; // at `met`
    const Collective *met;
    Site site;   // where
    void *arguments[32]; // each lane's
    int barrier; // where the warp waits, or -1
    u32 synced;  // what lanes did before this time is known to the warp's other lanes
    Clocks clocks;
};

struct Barrier {
    int expected; // threads; 0: nobody has come yet
    int arrived;
    u32 waiting; // warps
    Site site;
    Clocks clocks;
};

// A barrier in shared memory (sim_mbarrier.cpp).
struct Mbarrier {
    u32 count, pending; // arrivals
    i64 bytes;          // expected and not landed
    u32 phase;          // phases that have ended
    int thread;         // that made it
    bool fenced;        // the engine may use it
    bool expects;       // bytes, in this phase
    bool unheeded;      // bytes landed in a phase whose end nobody has waited for
    Site site;          // of its mbar_init
    Clocks coming, known; // of those that have arrived, up to now and up to the last phase's end
    std::vector<int> waiting; // threads
};

struct BulkCopy {
    u32 to, bytes, mbarrier;
    const void *from;
    Site site;
};

enum class Copies { Eager, Lazy, Random };
enum class Order { Up, Down, Random };

struct Options {
    Copies copies;
    Order order;
    u64 seed;
};

// Who has touched each 2 bytes of shared memory (sim_races.cpp). Clocks go on from block to block, so that what earlier
// blocks did is known to all.
struct Shadow {
    std::vector<u64> writes; // by cell
    std::vector<u32> stores; // by cell: the number of its last ordinary write, 0 if the engine's
    std::vector<u32> reads[MAX_WARPS]; // by warp and cell
    u32 n_stores = 0;
    u32 newest = 0; // no clock is later
    u32 engine = 0; // the engine's clock

    void open(u32 shared_bytes, int warps);
    void close(const Warp *, int warps);
};

// What the lanes of a warp access together (sim_counters.cpp): their nth time at one line, until they next meet.
struct Together {
    Site site;
    Access access;
    u32 bytes, lanes;
    u64 at[32];
};

struct Tally {
    std::vector<Together> open[MAX_WARPS];
    u32 next[MAX_THREADS] = {}; // where a lane's next access probably belongs

    void note(int thread, Access, u64 at, u32 bytes, Site);
    void settle(int warp);
    void clear();
};

struct Device;

struct Block {
    Device &device;
    Options options;
    const Kernel *kernel = nullptr;
    const void *params = nullptr;
    int n_warps = 0;
    u32 ready = 0; // warps of which some lane can run
    u32 give_ways = 0;
    Context host;
    std::vector<std::unique_ptr<Stack>> stacks;
    std::vector<Lane> lanes;
    Warp warps[MAX_WARPS];
    Barrier barriers[BARRIERS];
    std::map<u32, Mbarrier> mbarriers; // by shared address
    std::vector<BulkCopy> bulk_copies; // under way
    Shadow shadow;
    Tally tally;
    std::minstd_rand random;
    std::string error;

    explicit Block(Device &device) : device(device), options() {}

    Lane &lane_now() { return lanes[running.tid]; }
    int warp_index() const { return running.tid >> 5; }
    Warp &warp_now() { return warps[running.tid >> 5]; }
    void run(u32 threads);   // until all threads have returned or one has failed
    void yield(Order);       // to whoever goes on next
    void yield() { yield(options.order); }
    void set_runnable(Warp &, u32 lanes);
    bool chance(u32 one_in) { return random() / 8 % one_in == 0; }

  private:
    int choose(u32 set, Order);
    void resume(int thread);
    bool all_returned() const;
    [[noreturn]] void stuck();
};
// The block that runs on this OS thread.
extern __thread Block *block;

void meet(const Collective &, void *arguments, Site);
[[noreturn]] void fail(Site, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *base_name(const char *path);

// ---- races

void start_clocks(Block &);
void race_copy_begin(u32 at, u32 bytes, Site);
void race_copy_end(u32 at, u32 bytes, Site);
void race_read_by_warp(u32 at, u32 bytes, Site);
void race_use(u32 at, u32 bytes, Site); // of what another thread has set up
void race_bulk_begin(u32 at, u32 bytes, Site);
void race_bulk_end(u32 at, u32 bytes);
void join(Clocks &into, const Clocks &from);

// ---- barriers in shared memory and bulk copies

bool land_one_bulk_copy(); // false where none is under way
void check_bulk_copies_ended();
std::string waits_at_mbarriers(int warp);

// ---- the device

struct Mapping {
    u8 *base;
    size_t bytes;
    std::vector<u8> written;
    std::vector<u32> writers; // while races are looked for
    Allocation allocation;
};

struct Device {
    std::vector<std::unique_ptr<Mapping>> mappings; // by address
    Allocation *hints[PAGE_HINTS] = {};
    Counters counters = {};
    u32 blocks = 0; // run so far
    std::vector<u8> shared;
    Block block{*this};
    std::string error;

    ~Device();
    Mapping *find(u64 at);
    void *allocate(size_t bytes, int fill);
    bool free(void *);
};

void mark_written(Allocation &, u64 at, u64 bytes);

} // namespace sim
