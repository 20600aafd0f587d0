// The functions of NVIDIA's driver and of NVRTC that we call, without a GPU: memory is the host's, "machine code" is the
// source, and every kernel does the same. Work waits in the stream until somebody waits for the stream, as late as a GPU
// may do it. What a driver would not forgive is counted: `fake_faults`.
// Which driver and which GPUs: FAKE_CUDA_VERSION (13000), FAKE_GPUS (compute capabilities, "90,70").
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))
#define FN API int
#define LOCK std::lock_guard<std::recursive_mutex> lock(mutex)

namespace {

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_HANDLE = 400, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, FAILED = 719 };

typedef std::function<int()> Work;
struct Graph {
    std::vector<Work> work;
};
struct Stream {
    std::vector<Work> work;
    uint64_t done = 0; // of all that was ever put here
    Graph *capture = nullptr;
    int failed = OK; // sticks, as a GPU's errors do
};
struct Event {
    Stream *stream = nullptr;
    uint64_t at = 0;
};
struct Module {
    std::string text;
};
struct Function {
    std::string name;
    int shared_bytes_max = 48 << 10;
    bool loaded = false;
};
// Of every kernel: to[i] = from[i] + blocks, for n bytes.
struct Params {
    const uint8_t *from;
    uint8_t *to;
    int n;
};

std::recursive_mutex mutex;
thread_local void *current = nullptr;
std::map<uint64_t, size_t> memory;
std::vector<Stream *> streams;
int faults = 0;

std::vector<int> gpus() {
    const char *said = getenv("FAKE_GPUS");
    std::vector<int> archs;
    for (const char *at = said ? said : "90,70"; *at;) {
        char *end;
        archs.push_back((int)strtol(at, &end, 10));
        at = *end ? end + 1 : end;
    }
    return archs;
}

bool fault(bool is) {
    if (is) faults++;
    return is;
}

bool in_memory(uint64_t at, size_t bytes) {
    auto next = memory.upper_bound(at);
    if (next == memory.begin()) return false;
    --next;
    return at + bytes <= next->first + next->second;
}

// Runs what was put before `until`.
int drain(Stream *s, uint64_t until) {
    size_t n = until > s->done ? until - s->done : 0;
    for (size_t i = 0; i < n; i++) {
        int status = s->work[i]();
        if (s->failed == OK) s->failed = status;
    }
    s->work.erase(s->work.begin(), s->work.begin() + n);
    s->done += n;
    return s->failed;
}

bool idle() {
    for (Stream *s : streams)
        if (!s->work.empty()) return false;
    return true;
}

int put(Stream *s, Work work) {
    if (fault(!current)) return 201;
    (s->capture ? s->capture->work : s->work).push_back(work);
    return s->failed;
}

} // namespace

API int fake_faults() { return faults; }

FN cuInit(unsigned) { return gpus().empty() ? NO_DEVICE : OK; }
FN cuDriverGetVersion(int *version) {
    const char *said = getenv("FAKE_CUDA_VERSION");
    *version = said ? atoi(said) : 13000;
    return OK;
}
FN cuGetErrorString(int status, const char **text) {
    *text = status == OUT_OF_MEMORY ? "out of memory" : status == FAILED            ? "unspecified launch failure"
            : status == ILLEGAL_ADDRESS ? "an illegal memory access was encountered"
                                        : "an error";
    return OK;
}
FN cuDeviceGetCount(int *n) { return *n = (int)gpus().size(), OK; }
FN cuDeviceGet(int *device, int ordinal) { return *device = ordinal, OK; }
FN cuDeviceGetName(char *name, int len, int device) { return snprintf(name, len, "Fake GPU %d", device), OK; }
FN cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = 1 << 30, OK; }
FN cuDeviceGetAttribute(int *value, int attribute, int device) {
    int arch = gpus().at(device);
    switch (attribute) {
    case 75: *value = arch / 10; break;
    case 76: *value = arch % 10; break;
    case 16: *value = 132; break;
    case 97: *value = 227 << 10; break;
    default: *value = 1;
    }
    return OK;
}
FN cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)(intptr_t)(device + 1), OK; }
FN cuDevicePrimaryCtxRelease_v2(int) { return OK; }
FN cuCtxGetCurrent(void **context) { return *context = current, OK; }
FN cuCtxSetCurrent(void *context) { return current = context, OK; }

FN cuStreamCreate(Stream **s, unsigned) {
    LOCK;
    streams.push_back(*s = new Stream);
    return OK;
}
FN cuStreamDestroy_v2(Stream *s) {
    LOCK;
    fault(!s->work.empty() || s->capture);
    return OK;
}
FN cuStreamSynchronize(Stream *s) {
    LOCK;
    if (fault(s->capture)) return INVALID_VALUE;
    return drain(s, s->done + s->work.size());
}
FN cuStreamBeginCapture_v2(Stream *s, int) { return s->capture = new Graph, OK; }
FN cuStreamEndCapture(Stream *s, Graph **graph) {
    *graph = s->capture;
    s->capture = nullptr;
    return OK;
}
FN cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long) {
    return *executable = new Graph(*graph), OK;
}
FN cuGraphUpload(Graph *, Stream *) { return OK; }
FN cuGraphLaunch(Graph *graph, Stream *s) {
    LOCK;
    for (auto &work : graph->work)
        if (int status = put(s, work)) return status;
    return OK;
}
FN cuGraphExecDestroy(Graph *graph) { return delete graph, OK; }
FN cuGraphDestroy(Graph *graph) { return delete graph, OK; }

FN cuEventCreate(Event **event, unsigned) { return *event = new Event, OK; }
FN cuEventRecord(Event *event, Stream *s) {
    LOCK;
    fault(s->capture);
    return event->stream = s, event->at = s->done + s->work.size(), OK;
}
FN cuEventSynchronize(Event *event) {
    LOCK;
    return event->stream ? drain(event->stream, event->at) : OK;
}
FN cuEventDestroy_v2(Event *event) { return delete event, OK; }

FN cuMemAlloc_v2(uint64_t *at, size_t bytes) {
    LOCK;
    if (fault(!current || bytes == 0)) return INVALID_VALUE;
    if (bytes > 1 << 30) return OUT_OF_MEMORY;
    void *block = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(block, 0xff, bytes);
    memory[*at = (uint64_t)block] = bytes;
    return OK;
}
FN cuMemFree_v2(uint64_t at) {
    LOCK;
    if (fault(!memory.count(at) || !idle())) return INVALID_VALUE;
    memory.erase(at);
    return free((void *)at), OK;
}
FN cuMemGetInfo_v2(size_t *free, size_t *total) {
    LOCK;
    *free = *total = 1 << 30;
    for (auto &block : memory) *free -= block.second;
    return OK;
}
FN cuMemHostAlloc(void **at, size_t bytes, unsigned) { return *at = malloc(bytes), OK; }
FN cuMemFreeHost(void *at) {
    LOCK;
    fault(!idle());
    return free(at), OK;
}
FN cuMemsetD8Async(uint64_t at, unsigned char x, size_t n, Stream *s) {
    LOCK;
    return put(s, [=] { return fault(!in_memory(at, n)) ? FAILED : (memset((void *)at, x, n), OK); });
}
FN cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, Stream *s) {
    LOCK;
    return put(s, [=] { return fault(!in_memory(to, n)) ? FAILED : (memcpy((void *)to, from, n), OK); });
}
FN cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, Stream *s) {
    LOCK;
    return put(s, [=] { return fault(!in_memory(from, n)) ? FAILED : (memcpy(to, (void *)from, n), OK); });
}

FN cuModuleLoadData(Module **module, const char *image) { return *module = new Module{image}, OK; }
FN cuModuleGetFunction(Function **function, Module *module, const char *name) {
    bool there = module->text.find(", " + std::string(name) + ",") != std::string::npos;
    return *function = there ? new Function{name} : nullptr, there ? OK : NOT_FOUND;
}
FN cuModuleUnload(Module *module) {
    LOCK;
    fault(!current || !idle());
    return delete module, OK;
}
FN cuFuncLoad(Function *function) { return function->loaded = true, OK; }
FN cuFuncGetParamInfo(Function *, size_t i, size_t *at, size_t *bytes) {
    *at = 0, *bytes = sizeof(Params);
    return i == 0 ? OK : INVALID_VALUE;
}
FN cuFuncGetAttribute(int *value, int attribute, Function *) { return *value = attribute == 0 ? 64 : 0, OK; }
FN cuFuncSetAttribute(Function *function, int attribute, int value) {
    if (attribute != 8 || value > 227 << 10) return INVALID_VALUE;
    return function->shared_bytes_max = value, OK;
}
FN cuLaunchKernel(Function *function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                  unsigned shared, Stream *s, void **arguments, void **) {
    LOCK;
    if (fault(!function->loaded || (int)shared > function->shared_bytes_max)) return INVALID_VALUE;
    if (fault(tx > 64 || ty * tz != 1 || x * y * z == 0)) return INVALID_VALUE;
    Params p;
    memcpy(&p, arguments[0], sizeof p);
    return put(s, [=] {
        if (p.n < 0) return (int)(p.n == -2 ? ILLEGAL_ADDRESS : FAILED);
        if (fault(!in_memory((uint64_t)p.from, p.n) || !in_memory((uint64_t)p.to, p.n))) return (int)FAILED;
        for (int i = 0; i < p.n; i++) p.to[i] = (uint8_t)(p.from[i] + x * y * z);
        return (int)OK;
    });
}

// ---- NVRTC: code is the source

FN nvrtcVersion(int *major, int *minor) { return *major = 13, *minor = 0, OK; }
API const char *nvrtcGetErrorString(int status) { return status == 5 ? "NVRTC_ERROR_INVALID_OPTION" : "an error"; }
FN nvrtcCreateProgram(Module **program, const char *source, const char *, int, const char *const *, const char *const *) {
    return *program = new Module{source}, OK;
}
FN nvrtcDestroyProgram(Module **program) { return delete *program, OK; }
FN nvrtcCompileProgram(Module *, int n, const char *const *options) {
    for (int i = 0; i < n; i++)
        if (!strcmp(options[i], "--gpu-architecture=sm_30")) return 5;
    return OK;
}
FN nvrtcGetProgramLogSize(Module *, size_t *bytes) { return *bytes = 1, OK; }
FN nvrtcGetProgramLog(Module *, char *log) { return *log = 0, OK; }
FN nvrtcGetCUBINSize(Module *program, size_t *bytes) { return *bytes = program->text.size() + 1, OK; }
FN nvrtcGetCUBIN(Module *program, char *code) { return memcpy(code, program->text.c_str(), program->text.size() + 1), OK; }
