// Runs the fibers of a threadgroup from barrier to barrier.
#pragma once
#include <algorithm>
#include <vector>

#include "checks.h"

namespace {

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

}  // namespace
