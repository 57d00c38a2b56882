// Runs a kernel's grid: every thread of a threadgroup is a fiber; the compiler's ThreadSanitizer calls, which this file
// answers itself, tell of each access to memory, so that bounds and order are known.
#include "../include/runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

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

// ---- Checks ----

Slot* slot_of(uintptr_t address) {
  uintptr_t base = uintptr_t(m.arena);
  if (address - base >= kSlots * kSlotBytes) return nullptr;
  size_t i = (address - base) / kSlotBytes;
  return i < m.slot_count ? &m.slots[i] : nullptr;
}

void describe(const Slot& s, char* out, size_t size) {
  if (!s.threadgroup) snprintf(out, size, "buffer %d", s.index);
  else if (s.name) snprintf(out, size, "threadgroup variable `%s`", s.name);
  else snprintf(out, size, "threadgroup argument %d", s.index);
}

// Whether `a` is known to come before what the current thread does now.
bool ordered(const Access& a, bool threadgroup) {
  if (a.group != m.group + 1) return false;
  if (a.epoch < m.epoch[threadgroup]) return true;
  uint32_t mine = m.current->ids.simdgroup_index_in_threadgroup;
  return a.thread / kLanes == mine && a.simd_epoch < m.simd_epoch[mine][threadgroup];
}

void report_race(const Slot& s, const Access& a, bool was_write, uint64_t at, const char* what, const void* pc) {
  char where[128];
  describe(s, where, sizeof where);
  uint32_t group = a.group - 1;
  report(kRace, pc, a.pc,
         "%s byte %llu: thread %u of threadgroup %u %s, thread %u of threadgroup %u %s, with no barrier between them",
         where, (unsigned long long)at, m.current->ids.thread_index_in_threadgroup, m.group, what, unsigned(a.thread),
         group, was_write ? (a.atomic ? "wrote atomically" : "wrote") : (a.atomic ? "read atomically" : "read"));
}

// Compares what the last write put with what was there, now that it is done.
void settle() {
  auto& p = m.pending;
  if (p.bytes && memcmp(p.address, p.old, p.bytes) != 0)
    report_race(*p.slot, p.other, true, p.at, "writes another value", p.pc);
  p.bytes = 0;
}

// Keeps two readers that differ as much as they can: in threadgroup, then simdgroup, then thread.
void remember_reader(Cell& c, const Access& now, bool threadgroup) {
  for (Access& r : c.read) {
    if (r.group == 0 || (r.group == now.group && r.thread == now.thread) || ordered(r, threadgroup)) {
      r = now;
      return;
    }
  }
  auto distance = [](const Access& a, const Access& b) {
    return a.group != b.group ? 2 : a.thread / kLanes != b.thread / kLanes ? 1 : 0;
  };
  if (distance(c.read[0], now) > distance(c.read[0], c.read[1])) c.read[1] = now;
}

void check(const void* p, uint64_t bytes, bool write, bool read, bool atomic, const void* pc) {
  if (!m.current) return;
  if (m.pending.bytes) {
    settle();
    if (m.failed) stop();
  }
  uintptr_t address = uintptr_t(p);
  Slot* s = slot_of(address);
  if (!s) {
    uintptr_t stack = address - uintptr_t(m.stacks);
    if (stack < kStack * kMaxThreads) return;
    if (in_image(address)) return;
    report(kWild, pc, 0, "%s of %llu bytes at address %p, which is no buffer, threadgroup memory or variable",
           write ? "a write" : "a read", (unsigned long long)bytes, p);
    stop();
  }
  int64_t at = int64_t(address - uintptr_t(s->start));
  if (at < 0 || uint64_t(at) + bytes > s->bytes) {
    char where[128];
    describe(*s, where, sizeof where);
    report(kBounds, pc, 0, "%s of %llu bytes at byte %lld of %s, which has %llu bytes", write ? "a write" : "a read",
           (unsigned long long)bytes, (long long)at, where, (unsigned long long)s->bytes);
    stop();
  }
  if (++m.accesses > 4000000000ull) {
    report(kLimit, pc, 0, "4e9 accesses to memory: the kernel does not seem to end");
    stop();
  }
  if (s->constant) {
    if (!write) return;
    char where[128];
    describe(*s, where, sizeof where);
    report(kOther, pc, 0, "a write to %s, which the kernel takes as const", where);
    stop();
  }
  bool tg = s->threadgroup;
  uint32_t simd = m.current->ids.simdgroup_index_in_threadgroup;
  Access now{m.group + 1,         uint16_t(m.current->ids.thread_index_in_threadgroup),
             uint16_t(atomic),    m.epoch[tg],
             m.simd_epoch[simd][tg], offset_of(pc)};
  auto conflicts = [&](const Access& a) {
    return a.group && !(a.group == now.group && a.thread == now.thread) && !(a.atomic && atomic) && !ordered(a, tg);
  };
  for (uint64_t i = 0; i < bytes; i++) {
    Cell& c = s->cells[at + i];
    if (read && !s->initialized && c.write.group == 0) {
      char where[128];
      describe(*s, where, sizeof where);
      report(kUninitialized, pc, 0, "a read of byte %llu of %s, which nothing has written", (unsigned long long)(at + i),
             where);
      stop();
    }
    const char* what = atomic ? "updates it atomically" : write ? "writes" : "reads";
    if (conflicts(c.write)) {
      if ((m.launch.flags & kEqualWrites) && write && !atomic && !c.write.atomic && bytes <= 16) {
        if (!m.pending.bytes) {
          m.pending = {bytes, s->start + at, {}, s, c.write, at + i, pc};
          memcpy(m.pending.old, s->start + at, bytes);
        }
      } else {
        report_race(*s, c.write, true, at + i, what, pc);
        stop();
      }
    }
    if (write) {
      for (const Access& r : c.read)
        if (conflicts(r)) {
          report_race(*s, r, false, at + i, what, pc);
          stop();
        }
      c.write = now;
    } else {
      remember_reader(c, now, tg);
    }
  }
}

// ---- Scheduling ----

void fiber_main() {
  mtlhost_kernel(m.buffers, m.threadgroup_arguments);
  m.current->state = State::kDone;
  stop();
}

void prepare(Fiber& f, size_t i) {
  uint8_t* top = m.stacks + (i + 1) * kStack;
  void** sp = reinterpret_cast<void**>(top) - 2;
#if defined(__x86_64__)
  *--sp = nullptr;  // keeps the alignment that a call leaves
  *--sp = reinterpret_cast<void*>(fiber_main);
  for (int k = 0; k < kSaved; k++) *--sp = nullptr;
#else
  sp -= 20;
  memset(sp, 0, 160);
  sp[11] = reinterpret_cast<void*>(fiber_main);
#endif
  f.stack_pointer = sp;
  f.state = State::kReady;
}

void resume(Fiber& f) {
  m.current = &f;
  mtlhost_switch(&m.scheduler, f.stack_pointer);
  settle();
  m.current = nullptr;
}

const char* base_name(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

void describe_wait(const Fiber& f, char* out, size_t size) {
  switch (f.state) {
    case State::kDone: snprintf(out, size, "has ended"); break;
    case State::kBarrier:
      snprintf(out, size, "waits at threadgroup_barrier in %s:%d", base_name(f.file), f.line);
      break;
    case State::kSimdBarrier:
      snprintf(out, size, "waits at simdgroup_barrier in %s:%d", base_name(f.file), f.line);
      break;
    case State::kExchange:
      snprintf(out, size, "waits at %s in %s:%d", f.op, base_name(f.file), f.line);
      break;
    case State::kReady: snprintf(out, size, "runs"); break;
  }
}

void diverged(const Fiber& a, const Fiber& b) {
  char first[256], second[256];
  describe_wait(a, first, sizeof first);
  describe_wait(b, second, sizeof second);
  m.current = const_cast<Fiber*>(&a);
  report(kDivergence, nullptr, 0, "threadgroup %u: thread %u %s, thread %u %s", m.group,
         a.ids.thread_index_in_threadgroup, first, b.ids.thread_index_in_threadgroup, second);
  m.current = nullptr;
}

bool same_place(const Fiber& a, const Fiber& b) {
  return a.state == b.state && a.line == b.line && strcmp(a.file, b.file) == 0 &&
         (a.state != State::kExchange || (a.width == b.width && strcmp(a.op, b.op) == 0));
}

bool waits_for_lanes(const Fiber& f) { return f.state == State::kSimdBarrier || f.state == State::kExchange; }

// Lets lanes [first, last) go on if all of them that live wait at one place; `force` takes those at the first place.
bool resolve_lanes(uint32_t first, uint32_t last, int width, bool force) {
  const Fiber* place = nullptr;
  for (uint32_t i = first; i < last; i++) {
    const Fiber& f = m.fibers[i];
    bool mine = waits_for_lanes(f) && (f.state == State::kSimdBarrier ? width == 32 : f.width == width);
    if (!mine) {
      if (f.state == State::kDone || force) continue;
      return false;
    }
    if (!place) place = &f;
    else if (!same_place(*place, f)) {
      if (!force) return false;
      if (f.line < place->line) place = &f;
    }
  }
  if (!place) return false;
  Fiber at = *place;
  uint32_t active = 0;
  for (uint32_t i = first; i < last; i++) {
    Fiber& f = m.fibers[i];
    if (!same_place(f, at)) continue;
    active |= 1u << (i % kLanes);
    f.state = State::kReady;
  }
  if (at.state == State::kSimdBarrier) {
    for (int k = 0; k < 2; k++)
      if (at.flags & (1u << k)) m.simd_epoch[first / kLanes][k]++;
    return true;
  }
  // Two in turn: a lane may bring its next value before another has read these.
  Exchange& e = width == 4 ? m.quad_exchange[first / 4][m.quad_turn[first / 4] ^= 1]
                           : m.exchange[first / kLanes][m.turn[first / kLanes] ^= 1];
  e.active = active;
  memset(e.lane, 0xff, sizeof e.lane);
  for (uint32_t i = first; i < last; i++) {
    if (!(active >> (i % kLanes) & 1)) continue;
    memcpy(e.lane[i % kLanes], m.fibers[i].value, kLaneBytes);
    m.fibers[i].exchange = &e;
  }
  return true;
}

bool resolve_simdgroup(uint32_t g, bool force) {
  uint32_t first = g * kLanes, last = std::min(first + kLanes, m.threads);
  if (resolve_lanes(first, last, 32, force)) return true;
  bool any = false;
  for (uint32_t q = first; q < last; q += 4) any |= resolve_lanes(q, std::min(q + 4, last), 4, force);
  return any;
}

// Runs the lanes that can run, once each, in this launch's order.
bool sweep(uint32_t g) {
  uint32_t first = g * kLanes, count = std::min<uint32_t>(kLanes, m.threads - first);
  uint32_t order[kLanes];
  for (uint32_t i = 0; i < count; i++) order[i] = m.launch.order == 1 ? count - 1 - i : i;
  if (m.launch.order == 2) std::shuffle(order, order + count, m.random);
  bool ran = false;
  for (uint32_t i = 0; i < count && !m.failed; i++) {
    Fiber& f = m.fibers[first + order[i]];
    if (f.state != State::kReady) continue;
    resume(f);
    ran = true;
  }
  return ran;
}

void run_group() {
  std::vector<uint32_t> order(m.simdgroups);
  for (;;) {
    for (uint32_t i = 0; i < m.simdgroups; i++) order[i] = m.launch.order == 1 ? m.simdgroups - 1 - i : i;
    if (m.launch.order == 2) {
      // One step of one simdgroup at a time.
      bool any = true;
      while (any && !m.failed) {
        any = false;
        std::shuffle(order.begin(), order.end(), m.random);
        for (uint32_t g : order) {
          any |= sweep(g);
          if (m.failed) return;
          any |= resolve_simdgroup(g, false);
        }
      }
    } else {
      for (uint32_t g : order) {
        do {
          sweep(g);
          if (m.failed) return;
        } while (resolve_simdgroup(g, false));
      }
    }
    if (m.failed) return;

    // Nobody can run: all are at one barrier, or have ended.
    const Fiber *waiting = nullptr, *ended = nullptr, *stuck = nullptr;
    for (uint32_t i = 0; i < m.threads; i++) {
      const Fiber& f = m.fibers[i];
      if (f.state == State::kDone) ended = ended ? ended : &f;
      else if (f.state == State::kBarrier) waiting = waiting ? waiting : &f;
      else stuck = stuck ? stuck : &f;
    }
    if (stuck) {
      bool moved = false;
      if (m.launch.flags & kDivergentSimd)
        for (uint32_t g = 0; g < m.simdgroups; g++) moved |= resolve_simdgroup(g, true);
      if (moved) continue;
      uint32_t first = (stuck - m.fibers) / kLanes * kLanes, last = std::min(first + kLanes, m.threads);
      const Fiber* other = waiting ? waiting : ended;
      for (uint32_t i = first; i < last; i++)
        if (m.fibers[i].state != State::kDone && !same_place(m.fibers[i], *stuck)) other = &m.fibers[i];
      diverged(*stuck, *other);
      return;
    }
    if (!waiting) return;
    for (uint32_t i = 0; i < m.threads; i++) {
      if (!same_place(m.fibers[i], *waiting)) {
        diverged(*waiting, m.fibers[i]);
        return;
      }
    }
    for (int k = 0; k < 2; k++)
      if (waiting->flags & (1u << k)) m.epoch[k]++;
    for (uint32_t i = 0; i < m.threads; i++) m.fibers[i].state = State::kReady;
  }
}

// ---- Setting up ----

Cell* map_cells(uint64_t bytes) {
  void* p = mmap(nullptr, std::max<uint64_t>(1, bytes) * sizeof(Cell), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : static_cast<Cell*>(p);
}

Slot* add_slot(uint64_t bytes) {
  if (m.slot_count == kSlots || bytes >= kSlotStart) {
    report(kLimit, nullptr, 0, "more than %llu buffers and threadgroup variables, or one of 2 GiB",
           (unsigned long long)kSlots);
    return nullptr;
  }
  Slot& s = m.slots[m.slot_count];
  s = Slot{};
  s.start = m.arena + m.slot_count * kSlotBytes + kSlotStart;
  s.bytes = bytes;
  if (bytes && mprotect(s.start, bytes, PROT_READ | PROT_WRITE) != 0) {
    report(kLimit, nullptr, 0, "no memory for %llu bytes", (unsigned long long)bytes);
    return nullptr;
  }
  m.slot_count++;
  return &s;
}

Slot* add_threadgroup_slot(uint64_t bytes) {
  m.threadgroup_bytes += (bytes + 15) & ~15ull;
  if (m.threadgroup_bytes > kMaxThreadgroupBytes) {
    report(kLimit, nullptr, 0, "%zu bytes of threadgroup memory; Metal has %zu", m.threadgroup_bytes,
           kMaxThreadgroupBytes);
    return nullptr;
  }
  Slot* s = add_slot(bytes);
  if (!s) return nullptr;
  s->threadgroup = true;
  s->cells = map_cells(bytes);
  memset(s->start, 0xff, bytes);
  return s;
}

void run(const Launch& l) {
  memset(m.buffers, 0, sizeof m.buffers);
  memset(m.threadgroup_arguments, 0, sizeof m.threadgroup_arguments);
  for (uint64_t i = 0; i < l.buffer_count; i++) {
    const BufferArg& b = l.buffers[i];
    Slot* s = add_slot(b.bytes);
    if (!s) return;
    s->index = b.index;
    s->constant = b.constant;
    s->initialized = b.initialized;
    if (!b.constant) s->cells = map_cells(b.bytes);
    if (b.bytes) memcpy(s->start, b.data, b.bytes);
    if (b.index < 0 || b.index >= kMaxArguments) {
      report(kLimit, nullptr, 0, "buffer index %d", b.index);
      return;
    }
    m.buffers[b.index] = s->start;
  }
  for (uint64_t i = 0; i < l.threadgroup_count; i++) {
    Slot* s = add_threadgroup_slot(l.threadgroup[i].bytes);
    if (!s) return;
    s->index = l.threadgroup[i].index;
    if (s->index < 0 || s->index >= kMaxArguments) {
      report(kLimit, nullptr, 0, "threadgroup index %d", s->index);
      return;
    }
    m.threadgroup_arguments[s->index] = s->start;
  }

  uint32_t groups[3];
  uint64_t total = 1;
  for (int k = 0; k < 3; k++) {
    groups[k] = (l.grid[k] + l.group[k] - 1) / l.group[k];
    total *= groups[k];
  }
  std::vector<uint32_t> order(total);
  for (uint64_t i = 0; i < total; i++) order[i] = l.order == 1 ? total - 1 - i : i;
  if (l.order == 2) std::shuffle(order.begin(), order.end(), m.random);
  for (uint32_t linear : order) {
    uint32_t at[3] = {linear % groups[0], linear / groups[0] % groups[1], linear / groups[0] / groups[1]};
    uint32_t size[3];
    for (int k = 0; k < 3; k++) size[k] = std::min(l.group[k], l.grid[k] - at[k] * l.group[k]);
    m.group = linear;
    m.threads = size[0] * size[1] * size[2];
    m.simdgroups = (m.threads + kLanes - 1) / kLanes;
    uint32_t dispatched = l.group[0] * l.group[1] * l.group[2];
    for (uint32_t i = 0; i < m.threads; i++) {
      Ids& ids = m.fibers[i].ids;
      uint32_t p[3] = {i % size[0], i / size[0] % size[1], i / size[0] / size[1]};
      for (int k = 0; k < 3; k++) {
        ids.thread_position_in_threadgroup[k] = p[k];
        ids.thread_position_in_grid[k] = at[k] * l.group[k] + p[k];
        ids.threadgroup_position_in_grid[k] = at[k];
        ids.threads_per_threadgroup[k] = size[k];
        ids.dispatch_threads_per_threadgroup[k] = l.group[k];
        ids.threads_per_grid[k] = l.grid[k];
        ids.threadgroups_per_grid[k] = groups[k];
      }
      ids.thread_index_in_threadgroup = i;
      ids.thread_index_in_simdgroup = i % kLanes;
      ids.simdgroup_index_in_threadgroup = i / kLanes;
      ids.thread_index_in_quadgroup = i % 4;
      ids.quadgroup_index_in_threadgroup = i / 4;
      ids.simdgroups_per_threadgroup = m.simdgroups;
      ids.dispatch_simdgroups_per_threadgroup = (dispatched + kLanes - 1) / kLanes;
      ids.quadgroups_per_threadgroup = (m.threads + 3) / 4;
      ids.dispatch_quadgroups_per_threadgroup = (dispatched + 3) / 4;
      prepare(m.fibers[i], i);
    }
    m.epoch[0] = m.epoch[1] = 0;
    memset(m.simd_epoch, 0, sizeof m.simd_epoch);
    for (size_t i = 0; i < m.slot_count; i++) {
      Slot& s = m.slots[i];
      if (!s.threadgroup) continue;
      memset(s.start, 0xff, s.bytes);
      memset((void*)s.cells, 0, s.bytes * sizeof(Cell));
    }
    run_group();
    if (m.failed) return;
  }

  for (uint64_t i = 0; i < l.buffer_count; i++)
    if (!l.buffers[i].constant && l.buffers[i].bytes)
      memcpy(l.buffers[i].data, m.slots[i].start, l.buffers[i].bytes);
}

}  // namespace

// ---- What kernels call ----

extern "C" {

const Ids* mtlhost_ids() { return &m.current->ids; }

void mtlhost_barrier(int width, unsigned flags, const char* file, int line) {
  Fiber& f = *m.current;
  f.state = width ? State::kSimdBarrier : State::kBarrier;
  f.flags = flags;
  f.file = file;
  f.line = line;
  leave();
}

const Exchange* mtlhost_exchange(int width, const char* op, const void* value, unsigned bytes, const char* file,
                                 int line) {
  Fiber& f = *m.current;
  memcpy(f.value, value, bytes);
  f.state = State::kExchange;
  f.width = width;
  f.op = op;
  f.file = file;
  f.line = line;
  leave();
  return f.exchange;
}

void mtlhost_atomic(const void* address, unsigned bytes, int kind) {
  check(address, bytes, kind != kAtomicLoad, kind != kAtomicStore, true, __builtin_return_address(0));
}

bool mtlhost_spurious() { return m.launch.order == 2 && m.random() % 8 == 0; }

void* mtlhost_threadgroup(const void* site, const char* name, size_t bytes, size_t) {
  for (size_t i = 0; i < m.slot_count; i++)
    if (m.slots[i].site == site) return m.slots[i].start;
  Slot* s = add_threadgroup_slot(bytes);
  if (!s) stop();
  s->site = site;
  s->name = name;
  return s->start;
}

void mtlhost_fail(const char* message) {
  report(kOther, __builtin_return_address(0), 0, "%s", message);
  stop();
}

// The entry that Rust calls; one launch at a time.
void mtlhost_launch(const Launch* l, Report* out) {
  memset(out, 0, sizeof *out);
  m.report = out;
  m.failed = false;
  m.pending.bytes = 0;
  m.current = nullptr;
  m.launch = *l;
  m.random.seed(l->seed);
  m.slot_count = m.threadgroup_bytes = m.accesses = 0;
  uint64_t threads = uint64_t(l->group[0]) * l->group[1] * l->group[2];
  if (threads == 0 || threads > kMaxThreads) {
    report(kLimit, nullptr, 0, "%llu threads per threadgroup; Metal has 1 to %zu", (unsigned long long)threads,
           kMaxThreads);
    return;
  }
  auto reserve = [](size_t bytes, int access) {
    return static_cast<uint8_t*>(
        mmap(nullptr, bytes, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  };
  m.arena = reserve(kSlots * kSlotBytes, PROT_NONE);
  m.stacks = reserve(kStack * kMaxThreads, PROT_READ | PROT_WRITE);
  if (m.arena == MAP_FAILED || m.stacks == MAP_FAILED) {
    report(kLimit, nullptr, 0, "no address space for the buffers");
  } else {
    run(*l);
  }
  for (size_t i = 0; i < m.slot_count; i++)
    if (m.slots[i].cells) munmap((void*)m.slots[i].cells, std::max<uint64_t>(1, m.slots[i].bytes) * sizeof(Cell));
  if (m.arena != MAP_FAILED) munmap(m.arena, kSlots * kSlotBytes);
  if (m.stacks != MAP_FAILED) munmap(m.stacks, kStack * kMaxThreads);
  m.arena = nullptr;
}

// ---- What the compiler's instrumentation calls ----

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
#define ACCESS(name, bytes, write) \
  void name(void* p) { check(p, bytes, write, !write, false, __builtin_return_address(0)); }
#define ACCESSES(n)                              \
  ACCESS(__tsan_read##n, n, false)               \
  ACCESS(__tsan_write##n, n, true)               \
  ACCESS(__tsan_unaligned_read##n, n, false)     \
  ACCESS(__tsan_unaligned_write##n, n, true)     \
  ACCESS(__tsan_volatile_read##n, n, false)      \
  ACCESS(__tsan_volatile_write##n, n, true)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
// An index outside of an array whose length the compiler knows, in whatever memory: of `-fsanitize=bounds`.
struct ArrayType {
  uint16_t kind, info;
  char name[1];
};
struct OutOfBounds {
  const char* file;
  uint32_t line, column;
  const ArrayType *array, *index;
};
void __ubsan_handle_out_of_bounds(OutOfBounds* data, uintptr_t index) {
  if (!m.current) return;
  report(kBounds, __builtin_return_address(0), 0, "index %lld of an array of type %s", (long long)index,
         data->array->name);
  stop();
}

void __tsan_read_range(void* p, size_t n) { check(p, n, false, true, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { check(p, n, true, false, false, __builtin_return_address(0)); }

}  // extern "C"
