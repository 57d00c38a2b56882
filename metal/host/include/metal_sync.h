// Barriers and atomics.
#pragma once

namespace metal {

// A value that all threads share; here no more than a value.
template <class T>
struct uniform {
  T value;
  constexpr uniform(T v) : value(v) {}
  constexpr operator T() const { return value; }
};
template <class T>
constexpr uniform<T> make_uniform(T v) {
  return v;
}

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }

inline void threadgroup_barrier(mem_flags flags, MTLHOST_SITE) {
  mtlhost_barrier(0, unsigned(flags), site.file, site.line);
}
inline void simdgroup_barrier(mem_flags flags, MTLHOST_SITE) {
  mtlhost_barrier(32, unsigned(flags), site.file, site.line);
}

enum memory_order { memory_order_relaxed, memory_order_acquire, memory_order_release, memory_order_acq_rel,
                    memory_order_seq_cst };

template <class T>
struct atomic {
  T value;
};
using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;
using atomic_bool = atomic<bool>;
using atomic_float = atomic<float>;
using atomic_ulong = atomic<ulong>;

namespace detail {

// These two are no access of the kernel's own, so they stay out of the checks; `mtlhost_atomic` has made them.
template <class T>
__attribute__((noinline, no_sanitize("thread"))) T atomic_get(const volatile T* p) {
  return *p;
}
template <class T>
__attribute__((noinline, no_sanitize("thread"))) void atomic_put(volatile T* p, T v) {
  *p = v;
}

template <class T, class F>
inline T atomic_update(volatile atomic<T>* object, F f) {
  mtlhost_atomic((const void*)&object->value, sizeof(T), mtlhost::kAtomicUpdate);
  T old = atomic_get(&object->value);
  atomic_put(&object->value, T(f(old)));
  return old;
}

}  // namespace detail

template <class T>
inline T atomic_load_explicit(const volatile atomic<T>* object, memory_order) {
  mtlhost_atomic((const void*)&object->value, sizeof(T), mtlhost::kAtomicLoad);
  return detail::atomic_get(&object->value);
}
template <class T>
inline void atomic_store_explicit(volatile atomic<T>* object, std::type_identity_t<T> v, memory_order) {
  mtlhost_atomic((const void*)&object->value, sizeof(T), mtlhost::kAtomicStore);
  detail::atomic_put(&object->value, v);
}
#define MTLHOST_ATOMIC(name, expression)                                                             \
  template <class T>                                                                                 \
  inline T atomic_##name##_explicit(volatile atomic<T>* object, std::type_identity_t<T> v, memory_order) { \
    return detail::atomic_update(object, [v](T old) { return T(expression); });                      \
  }
MTLHOST_ATOMIC(exchange, ((void)old, v))
MTLHOST_ATOMIC(fetch_add, old + v)
MTLHOST_ATOMIC(fetch_sub, old - v)
MTLHOST_ATOMIC(fetch_max, metal::max(old, v))
MTLHOST_ATOMIC(fetch_min, metal::min(old, v))
MTLHOST_ATOMIC(fetch_and, old& v)
MTLHOST_ATOMIC(fetch_or, old | v)
MTLHOST_ATOMIC(fetch_xor, old ^ v)

template <class T>
inline bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* object, T* expected,
                                                  std::type_identity_t<T> desired, memory_order, memory_order) {
  mtlhost_atomic((const void*)&object->value, sizeof(T), mtlhost::kAtomicUpdate);
  T old = detail::atomic_get(&object->value);
  T was = *expected;
  if (__builtin_memcmp((const void*)&old, (const void*)&was, sizeof(T)) != 0 || mtlhost_spurious()) {
    *expected = old;
    return false;
  }
  detail::atomic_put(&object->value, desired);
  return true;
}

}  // namespace metal

namespace mtlhost {

// Arguments that take the type of the kernel's parameter.
struct Pointer {
  void* address;
  template <class T>
  operator T*() const {
    return static_cast<T*>(address);
  }
};
struct Reference {
  void* address;
  template <class T>
  operator T&() const {
    return *static_cast<T*>(address);
  }
};

template <class T>
inline T id(const uint32_t (&v)[3]) {
  if constexpr (metal::detail::vector<T>) {
    T out(0);
    for (int i = 0; i < T::size; i++) out.data[i] = typename T::element(v[i]);
    return out;
  } else {
    return T(v[0]);
  }
}

}  // namespace mtlhost
