// Runs a kernel's grid: every thread of a threadgroup is a fiber; the compiler's ThreadSanitizer calls, which this file
// answers itself, tell of each access to memory, so that bounds and order are known.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "runtime/schedule.h"

namespace {

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
