// metal_simdgroup, metal_quadgroup and metal_simdgroup_matrix. A simdgroup has 32 lanes.
#pragma once

namespace mtlhost {

// Where a call stands: the default argument is filled in by the caller's line.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// The values that lanes brought; lanes that did not come hold all bits set.
template <class T>
struct Lanes {
  T value[kLanes];
  uint32_t active;
  int lane;
  Lanes(const T& mine, int width, const char* op, Site site) {
    static_assert(sizeof(T) <= kLaneBytes);
    const Exchange* exchange = mtlhost_exchange(width, op, &mine, sizeof(T), site.file, site.line);
    active = exchange->active;
    lane = int(mtlhost_ids()->thread_index_in_simdgroup);
    if (width == 4) active &= 0xfu << (lane & ~3);
    for (int i = 0; i < kLanes; i++) __builtin_memcpy((void*)&value[i], exchange->lane[i], sizeof(T));
  }
  bool is_active(int i) const { return i >= 0 && i < kLanes && (active >> i & 1); }

  // Over the active lanes, as a tree.
  template <class F>
  T reduce(F f) {
    uint32_t have = active;
    for (int stride = kLanes / 2; stride > 0; stride /= 2) {
      for (int i = 0; i < stride; i++) {
        bool low = have >> i & 1, high = have >> (i + stride) & 1;
        if (low && high) value[i] = f(value[i], value[i + stride]);
        if (!low && high) value[i] = value[i + stride], have |= 1u << i;
      }
    }
    return value[0];
  }

  template <class F>
  T scan(F f, T identity, bool inclusive) {
    T sum = identity;
    for (int i = 0; i < lane; i++)
      if (is_active(i)) sum = f(sum, value[i]);
    return inclusive ? f(sum, value[lane]) : sum;
  }
};

}  // namespace mtlhost

namespace metal {

#define MTLHOST_SITE mtlhost::Site site = mtlhost::Site::here()
#define MTLHOST_REDUCE(name, expression)                                                     \
  template <class T>                                                                         \
  inline T simd_##name(T data, MTLHOST_SITE) {                                               \
    return mtlhost::Lanes<T>(data, 32, "simd_" #name, site).reduce([](T a, T b) {            \
      return T(expression);                                                                  \
    });                                                                                      \
  }                                                                                          \
  template <class T>                                                                         \
  inline T quad_##name(T data, MTLHOST_SITE) {                                               \
    return mtlhost::Lanes<T>(data, 4, "quad_" #name, site).reduce([](T a, T b) {             \
      return T(expression);                                                                  \
    });                                                                                      \
  }
MTLHOST_REDUCE(sum, a + b)
MTLHOST_REDUCE(product, a* b)
MTLHOST_REDUCE(max, metal::max(a, b))
MTLHOST_REDUCE(min, metal::min(a, b))
MTLHOST_REDUCE(and, a& b)
MTLHOST_REDUCE(or, a | b)
MTLHOST_REDUCE(xor, a ^ b)

#define MTLHOST_SCAN(name, op, identity)                                                      \
  template <class T>                                                                          \
  inline T simd_prefix_inclusive_##name(T data, MTLHOST_SITE) {                               \
    return mtlhost::Lanes<T>(data, 32, "simd_prefix_inclusive_" #name, site)                  \
        .scan([](T a, T b) { return T(a op b); }, T(identity), true);                         \
  }                                                                                           \
  template <class T>                                                                          \
  inline T simd_prefix_exclusive_##name(T data, MTLHOST_SITE) {                               \
    return mtlhost::Lanes<T>(data, 32, "simd_prefix_exclusive_" #name, site)                  \
        .scan([](T a, T b) { return T(a op b); }, T(identity), false);                        \
  }
MTLHOST_SCAN(sum, +, 0)
MTLHOST_SCAN(product, *, 1)

// `from`: the lane that is read; out of the group the lane keeps its own value (`keep`) or the value is undefined.
#define MTLHOST_MOVES(prefix, width)                                                               \
  template <class T>                                                                               \
  inline T prefix##_shuffle(T data, ushort lane, MTLHOST_SITE) {                                   \
    mtlhost::Lanes<T> l(data, width, #prefix "_shuffle", site);                                    \
    return l.value[(l.lane & ~(width - 1)) + lane % width];                                        \
  }                                                                                                \
  template <class T>                                                                               \
  inline T prefix##_broadcast(T data, ushort lane, MTLHOST_SITE) {                                 \
    mtlhost::Lanes<T> l(data, width, #prefix "_broadcast", site);                                  \
    return l.value[(l.lane & ~(width - 1)) + lane % width];                                        \
  }                                                                                                \
  template <class T>                                                                               \
  inline T prefix##_broadcast_first(T data, MTLHOST_SITE) {                                        \
    mtlhost::Lanes<T> l(data, width, #prefix "_broadcast_first", site);                            \
    return l.value[__builtin_ctz(l.active)];                                                       \
  }                                                                                                \
  template <class T>                                                                               \
  inline T prefix##_shuffle_xor(T data, ushort mask, MTLHOST_SITE) {                               \
    mtlhost::Lanes<T> l(data, width, #prefix "_shuffle_xor", site);                                \
    return l.value[(l.lane & ~(width - 1)) + ((l.lane ^ mask) % width)];                           \
  }                                                                                                \
  template <class T>                                                                               \
  inline T prefix##_shuffle_down(T data, ushort delta, MTLHOST_SITE) {                             \
    mtlhost::Lanes<T> l(data, width, #prefix "_shuffle_down", site);                               \
    return l.lane % width + delta < width ? l.value[l.lane + delta] : data;                        \
  }                                                                                                \
  template <class T>                                                                               \
  inline T prefix##_shuffle_up(T data, ushort delta, MTLHOST_SITE) {                               \
    mtlhost::Lanes<T> l(data, width, #prefix "_shuffle_up", site);                                 \
    return l.lane % width >= delta ? l.value[l.lane - delta] : data;                               \
  }                                                                                                \
  template <class T>                                                                               \
  inline T prefix##_shuffle_rotate_down(T data, ushort delta, MTLHOST_SITE) {                      \
    mtlhost::Lanes<T> l(data, width, #prefix "_shuffle_rotate_down", site);                        \
    return l.value[(l.lane & ~(width - 1)) + (l.lane + delta) % width];                            \
  }                                                                                                \
  template <class T>                                                                               \
  inline T prefix##_shuffle_rotate_up(T data, ushort delta, MTLHOST_SITE) {                        \
    mtlhost::Lanes<T> l(data, width, #prefix "_shuffle_rotate_up", site);                          \
    return l.value[(l.lane & ~(width - 1)) + (l.lane + width - delta % width) % width];            \
  }                                                                                                \
  template <class T>                                                                               \
  inline T prefix##_shuffle_and_fill_down(T data, T filling, ushort delta, ushort modulo = width,  \
                                          MTLHOST_SITE) {                                          \
    mtlhost::Lanes<T> l(data, width, #prefix "_shuffle_and_fill_down", site);                      \
    mtlhost::Lanes<T> f(filling, width, #prefix "_shuffle_and_fill_down filling", site);           \
    int at = l.lane % modulo + delta, base = l.lane - l.lane % modulo;                             \
    return at < modulo ? l.value[base + at] : f.value[base + at - modulo];                         \
  }                                                                                                \
  template <class T>                                                                               \
  inline T prefix##_shuffle_and_fill_up(T data, T filling, ushort delta, ushort modulo = width,    \
                                        MTLHOST_SITE) {                                            \
    mtlhost::Lanes<T> l(data, width, #prefix "_shuffle_and_fill_up", site);                        \
    mtlhost::Lanes<T> f(filling, width, #prefix "_shuffle_and_fill_up filling", site);             \
    int at = l.lane % modulo - delta, base = l.lane - l.lane % modulo;                             \
    return at >= 0 ? l.value[base + at] : f.value[base + at + modulo];                             \
  }
MTLHOST_MOVES(simd, 32)
MTLHOST_MOVES(quad, 4)

class simd_vote {
 public:
  using vote_t = ulong;
  explicit constexpr simd_vote(vote_t v = 0) : bits(v) {}
  explicit constexpr operator vote_t() const { return bits; }
  constexpr bool all() const { return bits == 0xffffffff; }
  constexpr bool any() const { return bits != 0; }

 private:
  vote_t bits;
};

inline simd_vote simd_ballot(bool b, MTLHOST_SITE) {
  mtlhost::Lanes<bool> l(b, 32, "simd_ballot", site);
  ulong out = 0;
  for (int i = 0; i < 32; i++)
    if (l.is_active(i) && l.value[i]) out |= 1ul << i;
  return simd_vote(out);
}
inline bool simd_all(bool b, MTLHOST_SITE) {
  return mtlhost::Lanes<bool>(b, 32, "simd_all", site).reduce([](bool x, bool y) { return x && y; });
}
inline bool simd_any(bool b, MTLHOST_SITE) {
  return mtlhost::Lanes<bool>(b, 32, "simd_any", site).reduce([](bool x, bool y) { return x || y; });
}
inline bool quad_all(bool b, MTLHOST_SITE) { return quad_and(int(b), site); }
inline bool quad_any(bool b, MTLHOST_SITE) { return quad_or(int(b), site); }
inline simd_vote simd_active_threads_mask(MTLHOST_SITE) { return simd_ballot(true, site); }
inline bool simd_is_first(MTLHOST_SITE) {
  mtlhost::Lanes<bool> l(true, 32, "simd_is_first", site);
  return l.lane == __builtin_ctz(l.active);
}

// ---- Matrices: each lane holds two neighbouring elements of an 8x8 matrix ----

template <class T, int Cols, int Rows = Cols>
struct simdgroup_matrix {
  static_assert(Cols == 8 && Rows == 8, "Metal has simdgroup matrices of 8x8 only");
  using storage_type = vec<T, 2>;
  storage_type storage;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal) : storage(T(0)) {
    for (int i = 0; i < 2; i++)
      if (row() == column() + i) storage[i] = diagonal;
  }
  storage_type& thread_elements() { return storage; }
  const storage_type& thread_elements() const { return storage; }
  static int row() {
    int lane = int(mtlhost_ids()->thread_index_in_simdgroup);
    return (lane / 4 & 4) + lane / 2 % 4;
  }
  static int column() {
    int lane = int(mtlhost_ids()->thread_index_in_simdgroup);
    return (lane / 4 & 2) * 2 + lane % 2 * 2;
  }
};
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8, 8>;

template <class T, int C, int R>
inline simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, C, R> m;
  m.storage = vec<T, 2>(value);
  return m;
}

namespace detail {
inline void whole_simdgroup(const char* op, mtlhost::Site site) {
  if (mtlhost::Lanes<bool>(true, 32, op, site).active != 0xffffffff)
    mtlhost_fail("a simdgroup matrix operation needs all 32 lanes");
}
}  // namespace detail

template <class T>
inline void simdgroup_load(simdgroup_matrix<T, 8, 8>& m, const T* source, ulong elements_per_row = 8,
                           ulong2 origin = ulong2(0), bool transpose = false, MTLHOST_SITE) {
  detail::whole_simdgroup("simdgroup_load", site);
  for (int i = 0; i < 2; i++) {
    ulong r = m.row(), c = m.column() + i;
    m.storage[i] = source[(origin.y + (transpose ? c : r)) * elements_per_row + origin.x + (transpose ? r : c)];
  }
}
template <class T>
inline void simdgroup_store(const simdgroup_matrix<T, 8, 8>& m, T* target, ulong elements_per_row = 8,
                            ulong2 origin = ulong2(0), bool transpose = false, MTLHOST_SITE) {
  detail::whole_simdgroup("simdgroup_store", site);
  for (int i = 0; i < 2; i++) {
    ulong r = m.row(), c = m.column() + i;
    target[(origin.y + (transpose ? c : r)) * elements_per_row + origin.x + (transpose ? r : c)] = m.storage[i];
  }
}

template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                          const simdgroup_matrix<B, 8, 8>& b,
                                          const simdgroup_matrix<C, 8, 8>& c, MTLHOST_SITE) {
  detail::whole_simdgroup("simdgroup_multiply_accumulate", site);
  mtlhost::Lanes<vec<A, 2>> left(a.storage, 32, "simdgroup_multiply_accumulate", site);
  mtlhost::Lanes<vec<B, 2>> right(b.storage, 32, "simdgroup_multiply_accumulate", site);
  auto lane_of = [](int r, int c) { return (r & 4) * 4 + r % 4 * 2 + (c & 4) * 2 + c % 4 / 2; };
  for (int i = 0; i < 2; i++) {
    int row = d.row(), column = d.column() + i;
    float sum = float(c.storage[i]);
    for (int k = 0; k < 8; k++)
      sum += float(left.value[lane_of(row, k)][k % 2]) * float(right.value[lane_of(k, column)][column % 2]);
    d.storage[i] = D(sum);
  }
}
template <class D, class A, class B>
inline void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                               const simdgroup_matrix<B, 8, 8>& b, MTLHOST_SITE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)), site);
}
template <class T>
inline simdgroup_matrix<T, 8, 8> operator*(const simdgroup_matrix<T, 8, 8>& a, const simdgroup_matrix<T, 8, 8>& b) {
  simdgroup_matrix<T, 8, 8> d;
  simdgroup_multiply(d, a, b);
  return d;
}

}  // namespace metal
