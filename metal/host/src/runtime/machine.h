// The state of a launch: its arguments, a fiber for each thread of a threadgroup, its memory, what went wrong.
#pragma once
#include "../../include/runtime.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <random>

using namespace mtlhost;

namespace {

// ---- What Rust passes and gets back (the same layout as in src/ffi.rs) ----

struct BufferArg {
  uint8_t* data;
  uint64_t bytes;
  int32_t index;
  uint8_t constant;     // the kernel may only read it
  uint8_t initialized;  // false: reading a byte that no thread has written is an error
};
struct ThreadgroupArg {
  uint64_t bytes;
  int32_t index;
};
struct Launch {
  const BufferArg* buffers;
  uint64_t buffer_count;
  const ThreadgroupArg* threadgroup;
  uint64_t threadgroup_count;
  uint32_t grid[3];   // threads
  uint32_t group[3];  // threads per threadgroup
  uint32_t order;     // 0 forward, 1 reverse, 2 random
  uint32_t flags;     // of the following
  uint64_t seed;
};
constexpr uint32_t kDivergentSimd = 1, kEqualWrites = 2;
enum Kind : uint32_t { kOk, kBounds, kRace, kDivergence, kUninitialized, kWild, kLimit, kOther };
struct Report {
  uint32_t kind;
  uint32_t thread[3];  // in the grid
  uint64_t pc;         // offsets into this library, 0 if unknown
  uint64_t other_pc;
  char message[1024];
};

// ---- Fibers ----

#if defined(__APPLE__)
#define SYMBOL(name) "_" name
#else
#define SYMBOL(name) name
#endif
extern "C" void mtlhost_switch(void** save, void* next);
#if defined(__x86_64__)
asm(".text\n.globl " SYMBOL("mtlhost_switch") "\n" SYMBOL("mtlhost_switch") ":\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n");
constexpr int kSaved = 6;  // words between the stack pointer and the return address
#elif defined(__aarch64__)
asm(".text\n.globl " SYMBOL("mtlhost_switch") "\n.p2align 2\n" SYMBOL("mtlhost_switch") ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n  ret\n");
#else
#error "the context switch is written for x86-64 and aarch64"
#endif

enum class State { kReady, kBarrier, kSimdBarrier, kExchange, kDone };

struct Fiber {
  void* stack_pointer;
  State state;
  int width;          // of the exchange
  const char* op;     // of the exchange
  const Exchange* exchange;
  unsigned char value[kLaneBytes];
  unsigned flags;     // of the barrier
  const char* file;
  int line;
  Ids ids;
};

// The bytes of each fiber's stack.
constexpr size_t kStack = 256 << 10;
constexpr size_t kMaxThreads = 1024;
constexpr int kMaxArguments = 64;
constexpr size_t kMaxThreadgroupBytes = 32 << 10;

// ---- Memory: each buffer and threadgroup variable in the middle of its own 4 GiB of addresses ----

constexpr uint64_t kSlotBytes = 1ull << 32;
constexpr uint64_t kSlotStart = 1ull << 31;
constexpr uint64_t kSlots = 128;

// One access that later ones are compared with.
struct Access {
  uint32_t group;  // plus one; zero if none
  uint16_t thread;
  uint16_t atomic;
  uint32_t epoch;       // barriers of the threadgroup that order this memory
  uint32_t simd_epoch;  // the same of the simdgroup
  uint32_t pc;
};
struct Cell {
  Access write, read[2];
};

struct Slot {
  uint8_t* start;
  uint64_t bytes;
  int32_t index;  // of the argument
  bool threadgroup, constant, initialized;
  const char* name;  // of a threadgroup variable
  const void* site;
  Cell* cells;  // one per byte
};

struct Machine {
  Launch launch;
  void* buffers[kMaxArguments];
  void* threadgroup_arguments[kMaxArguments];
  uint8_t* arena = nullptr;
  uint8_t* stacks = nullptr;
  Slot slots[kSlots];
  size_t slot_count;
  size_t threadgroup_bytes;
  Fiber fibers[kMaxThreads];
  Exchange exchange[kMaxThreads / kLanes][2];
  Exchange quad_exchange[kMaxThreads / 4][2];
  uint8_t turn[kMaxThreads / kLanes];
  uint8_t quad_turn[kMaxThreads / 4];
  uint32_t epoch[2];                            // of device and threadgroup memory
  uint32_t simd_epoch[kMaxThreads / kLanes][2];
  uint32_t threads, simdgroups, group;
  Fiber* current = nullptr;
  void* scheduler;
  std::mt19937_64 random;
  Report* report;
  bool failed;
  uint64_t accesses;
  // A write that may only put what is there already.
  struct {
    uint64_t bytes;  // zero if there is none
    const uint8_t* address;
    uint8_t old[16];
    Slot* slot;
    Access other;
    uint64_t at;
    const void* pc;
  } pending;
};
Machine m;

#if defined(__APPLE__)
// No name for the end of an image there: addresses outside of all buffers pass.
extern "C" const char __ehdr_start asm("__mh_dylib_header") __attribute__((visibility("hidden")));
bool in_image(uintptr_t) { return true; }
#else
extern "C" const char __ehdr_start __attribute__((visibility("hidden")));
extern "C" const char _end __attribute__((visibility("hidden")));
bool in_image(uintptr_t a) { return a >= uintptr_t(&__ehdr_start) && a < uintptr_t(&_end); }
#endif

uint32_t offset_of(const void* pc) { return uint32_t(uintptr_t(pc) - uintptr_t(&__ehdr_start)); }

void report(Kind kind, const void* pc, uint32_t other, const char* format, ...) {
  if (m.failed) return;
  m.failed = true;
  Report& r = *m.report;
  r.kind = kind;
  r.pc = pc ? offset_of(pc) : 0;
  r.other_pc = other;
  if (m.current) memcpy(r.thread, m.current->ids.thread_position_in_grid, sizeof r.thread);
  va_list args;
  va_start(args, format);
  vsnprintf(r.message, sizeof r.message, format, args);
  va_end(args);
}

void leave() {
  Fiber* f = m.current;
  mtlhost_switch(&f->stack_pointer, m.scheduler);
}

[[noreturn]] void stop() {
  leave();
  __builtin_unreachable();
}

}  // namespace
