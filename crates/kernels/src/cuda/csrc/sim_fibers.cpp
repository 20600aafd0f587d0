// Fibers: stacks, and the switch from one to another.
#include "sim_core.h"

#include <new>
#include <sys/mman.h>
#include <unistd.h>

namespace sim {

Stack::Stack() {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *at = mmap(nullptr, BYTES + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    mprotect(at, page, PROT_NONE); // stacks grow down
    memory = (u8 *)at + page;
}

Stack::~Stack() {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    munmap(memory - page, BYTES + page);
}

} // namespace sim

#if defined(__x86_64__) && !defined(SIM_UCONTEXT)

// Saves what a call must keep (System V ABI) on the stack that is left, and takes it from the one that is entered.
extern "C" __attribute__((visibility("hidden"))) void sim_switch_stack(void **leave, void *enter);
asm(R"(
    .text
    .p2align 4
    .globl sim_switch_stack
    .hidden sim_switch_stack
    .type sim_switch_stack, @function
sim_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size sim_switch_stack, . - sim_switch_stack
)");

namespace sim {

void make_context(Context &context, u8 *stack, size_t bytes, void (*entry)()) {
    constexpr int SAVED = 6;
    void **top = (void **)(stack + bytes) - 1; // the entry begins as if called: its return address would be here
    *top = nullptr;
    *--top = (void *)entry;
    for (int i = 0; i < SAVED; i++) *--top = nullptr;
    context.stack_pointer = top;
}

void switch_context(Context &from, Context &to) { sim_switch_stack(&from.stack_pointer, to.stack_pointer); }

} // namespace sim

#else

#include <ucontext.h>

namespace sim {

static ucontext_t &inside(Context &context) {
    if (!context.other) context.other = std::make_shared<ucontext_t>();
    return *static_cast<ucontext_t *>(context.other.get());
}

void make_context(Context &context, u8 *stack, size_t bytes, void (*entry)()) {
    ucontext_t &to = inside(context);
    getcontext(&to);
    to.uc_stack.ss_sp = stack;
    to.uc_stack.ss_size = bytes;
    to.uc_link = nullptr;
    makecontext(&to, entry, 0);
}

void switch_context(Context &from, Context &to) { swapcontext(&inside(from), &inside(to)); }

} // namespace sim

#endif
