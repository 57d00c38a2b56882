// Checks each access to memory: its bounds, and its order among those of other threads.
#pragma once
#include "machine.h"

namespace {

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

}  // namespace
