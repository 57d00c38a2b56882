// Metal's vectors, arrays and `as_type`.
#pragma once
#include "metal_scalar.h"

namespace metal {

struct spread_tag {};

template <class T, int N>
struct vec;
template <class T, int N>
struct packed_vec;

namespace detail {

// The conversion that Metal does by itself when a scalar or vector is built from another.
template <class T, class U>
constexpr T to(U u) {
  return static_cast<T>(u);
}

template <class A>
concept vector = requires { typename std::remove_cvref_t<A>::vector_type; };
template <vector A>
using vec_of = typename std::remove_cvref_t<A>::vector_type;
template <class A>
struct width {
  static constexpr int value = 1;
};
template <vector A>
struct width<A> {
  static constexpr int value = vec_of<A>::size;
};
template <class A>
inline constexpr int width_v = width<std::remove_cvref_t<A>>::value;

// Components of a longer vector, in the order named: readable and assignable.
template <class T, int N, int... I>
struct swizzle {
  using vector_type = vec<T, sizeof...(I)>;
  T data[N];
  swizzle() = default;
  constexpr operator vector_type() const { return vector_type(data[I]...); }
  swizzle& operator=(const swizzle& other) { return *this = vector_type(other); }
  template <class U>
    requires std::is_convertible_v<U, vector_type>
  constexpr swizzle& operator=(const U& u) {
    vector_type v = u;
    int i = 0;
    ((data[I] = v[i++]), ...);
    return *this;
  }
#define MTLHOST_SWIZZLE_ASSIGN(op)                                  \
  template <class U>                                                \
  constexpr swizzle& operator op##=(const U& u) {                   \
    return *this = vector_type(vector_type(*this) op u);            \
  }
  MTLHOST_SWIZZLE_ASSIGN(+)
  MTLHOST_SWIZZLE_ASSIGN(-)
  MTLHOST_SWIZZLE_ASSIGN(*)
  MTLHOST_SWIZZLE_ASSIGN(/)
  MTLHOST_SWIZZLE_ASSIGN(&)
  MTLHOST_SWIZZLE_ASSIGN(|)
  MTLHOST_SWIZZLE_ASSIGN(^)
  MTLHOST_SWIZZLE_ASSIGN(<<)
  MTLHOST_SWIZZLE_ASSIGN(>>)
  constexpr T operator[](size_t i) const { return vector_type(*this)[i]; }
};

}  // namespace detail

// Every swizzle of x, y, z, w as a member; one macro per depth, for a macro does not expand inside itself.
#define MTLHOST_SWIZZLE2(T, N, a, i, b, j) detail::swizzle<T, N, i, j> a##b;
#define MTLHOST_SWIZZLE3(T, N, a, i, b, j, c, k) detail::swizzle<T, N, i, j, k> a##b##c;
#define MTLHOST_SWIZZLE4(T, N, a, i, b, j, c, k, d, l) detail::swizzle<T, N, i, j, k, l> a##b##c##d;
#define MTLHOST_A2(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1)
#define MTLHOST_B2(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1)
#define MTLHOST_C2(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1)
#define MTLHOST_D2(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1)
#define MTLHOST_2OF2(...) MTLHOST_B2(MTLHOST_SWIZZLE2, __VA_ARGS__)
#define MTLHOST_3OF2_(...) MTLHOST_C2(MTLHOST_SWIZZLE3, __VA_ARGS__)
#define MTLHOST_3OF2(...) MTLHOST_B2(MTLHOST_3OF2_, __VA_ARGS__)
#define MTLHOST_4OF2__(...) MTLHOST_D2(MTLHOST_SWIZZLE4, __VA_ARGS__)
#define MTLHOST_4OF2_(...) MTLHOST_C2(MTLHOST_4OF2__, __VA_ARGS__)
#define MTLHOST_4OF2(...) MTLHOST_B2(MTLHOST_4OF2_, __VA_ARGS__)
#define MTLHOST_SWIZZLES_OF_2(T) MTLHOST_A2(MTLHOST_2OF2, T, 2) MTLHOST_A2(MTLHOST_3OF2, T, 2) MTLHOST_A2(MTLHOST_4OF2, T, 2)
#define MTLHOST_A3(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1) M(__VA_ARGS__, z, 2)
#define MTLHOST_B3(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1) M(__VA_ARGS__, z, 2)
#define MTLHOST_C3(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1) M(__VA_ARGS__, z, 2)
#define MTLHOST_D3(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1) M(__VA_ARGS__, z, 2)
#define MTLHOST_2OF3(...) MTLHOST_B3(MTLHOST_SWIZZLE2, __VA_ARGS__)
#define MTLHOST_3OF3_(...) MTLHOST_C3(MTLHOST_SWIZZLE3, __VA_ARGS__)
#define MTLHOST_3OF3(...) MTLHOST_B3(MTLHOST_3OF3_, __VA_ARGS__)
#define MTLHOST_4OF3__(...) MTLHOST_D3(MTLHOST_SWIZZLE4, __VA_ARGS__)
#define MTLHOST_4OF3_(...) MTLHOST_C3(MTLHOST_4OF3__, __VA_ARGS__)
#define MTLHOST_4OF3(...) MTLHOST_B3(MTLHOST_4OF3_, __VA_ARGS__)
#define MTLHOST_SWIZZLES_OF_3(T) MTLHOST_A3(MTLHOST_2OF3, T, 3) MTLHOST_A3(MTLHOST_3OF3, T, 3) MTLHOST_A3(MTLHOST_4OF3, T, 3)
#define MTLHOST_A4(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1) M(__VA_ARGS__, z, 2) M(__VA_ARGS__, w, 3)
#define MTLHOST_B4(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1) M(__VA_ARGS__, z, 2) M(__VA_ARGS__, w, 3)
#define MTLHOST_C4(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1) M(__VA_ARGS__, z, 2) M(__VA_ARGS__, w, 3)
#define MTLHOST_D4(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1) M(__VA_ARGS__, z, 2) M(__VA_ARGS__, w, 3)
#define MTLHOST_2OF4(...) MTLHOST_B4(MTLHOST_SWIZZLE2, __VA_ARGS__)
#define MTLHOST_3OF4_(...) MTLHOST_C4(MTLHOST_SWIZZLE3, __VA_ARGS__)
#define MTLHOST_3OF4(...) MTLHOST_B4(MTLHOST_3OF4_, __VA_ARGS__)
#define MTLHOST_4OF4__(...) MTLHOST_D4(MTLHOST_SWIZZLE4, __VA_ARGS__)
#define MTLHOST_4OF4_(...) MTLHOST_C4(MTLHOST_4OF4__, __VA_ARGS__)
#define MTLHOST_4OF4(...) MTLHOST_B4(MTLHOST_4OF4_, __VA_ARGS__)
#define MTLHOST_SWIZZLES_OF_4(T) MTLHOST_A4(MTLHOST_2OF4, T, 4) MTLHOST_A4(MTLHOST_3OF4, T, 4) MTLHOST_A4(MTLHOST_4OF4, T, 4)

#define MTLHOST_VECTOR_BODY(name)                                                                   \
  using vector_type = vec<T, N>;                                                                    \
  using element = T;                                                                                \
  static constexpr int size = N;                                                                    \
  name() = default;                                                                                 \
  template <detail::scalar S>                                                                       \
  constexpr name(S s) : name(spread_tag{}, detail::to<T>(s)) {}                                     \
  template <class... A>                                                                             \
    requires(sizeof...(A) > 1 && (detail::width_v<A> + ...) == N)                                   \
  constexpr name(const A&... a) : name(spread_tag{}, T(0)) {                                        \
    int at = 0;                                                                                     \
    (put(at, a), ...);                                                                              \
  }                                                                                                 \
  template <detail::vector V>                                                                       \
    requires(detail::width_v<V> == N)                                                               \
  explicit(!std::is_same_v<typename detail::vec_of<V>::element, T>) constexpr name(const V& v)      \
      : name(spread_tag{}, T(0)) {                                                                  \
    int at = 0;                                                                                     \
    put(at, v);                                                                                     \
  }                                                                                                 \
  constexpr T& operator[](size_t i) { return data[i]; }                                             \
  constexpr const T& operator[](size_t i) const { return data[i]; }                                 \
                                                                                                    \
 private:                                                                                           \
  template <class A>                                                                                \
  constexpr void put(int& at, const A& a) {                                                         \
    if constexpr (detail::vector<A>) {                                                              \
      detail::vec_of<A> v = a;                                                                      \
      for (int i = 0; i < detail::width_v<A>; i++) data[at++] = detail::to<T>(v.data[i]);           \
    } else {                                                                                        \
      data[at++] = detail::to<T>(a);                                                                \
    }                                                                                               \
  }                                                                                                 \
                                                                                                    \
 public:

template <class T>
struct alignas(sizeof(T) * 2) vec<T, 2> {
  static constexpr int N = 2;
  union {
    T data[2];
    struct {
      T x, y;
    };
    struct {
      T r, g;
    };
    MTLHOST_SWIZZLES_OF_2(T)
  };
  constexpr vec(spread_tag, T v) : data{v, v} {}
  constexpr vec(const vec& o) : data{o.data[0], o.data[1]} {}
  constexpr vec& operator=(const vec& o) {
    for (int i = 0; i < N; i++) data[i] = o.data[i];
    return *this;
  }
  MTLHOST_VECTOR_BODY(vec)
};

template <class T>
struct alignas(sizeof(T) * 4) vec<T, 3> {
  static constexpr int N = 3;
  union {
    T data[3];
    struct {
      T x, y, z;
    };
    struct {
      T r, g, b;
    };
    MTLHOST_SWIZZLES_OF_3(T)
  };
  constexpr vec(spread_tag, T v) : data{v, v, v} {}
  constexpr vec(const vec& o) : data{o.data[0], o.data[1], o.data[2]} {}
  constexpr vec& operator=(const vec& o) {
    for (int i = 0; i < N; i++) data[i] = o.data[i];
    return *this;
  }
  MTLHOST_VECTOR_BODY(vec)
};

template <class T>
struct alignas(sizeof(T) * 4) vec<T, 4> {
  static constexpr int N = 4;
  union {
    T data[4];
    struct {
      T x, y, z, w;
    };
    struct {
      T r, g, b, a;
    };
    MTLHOST_SWIZZLES_OF_4(T)
  };
  constexpr vec(spread_tag, T v) : data{v, v, v, v} {}
  constexpr vec(const vec& o) : data{o.data[0], o.data[1], o.data[2], o.data[3]} {}
  constexpr vec& operator=(const vec& o) {
    for (int i = 0; i < N; i++) data[i] = o.data[i];
    return *this;
  }
  MTLHOST_VECTOR_BODY(vec)
};

// Without the alignment of a vector; only indexed, copied and turned into one.
template <class T, int N_>
struct packed_vec {
  static constexpr int N = N_;
  T data[N];
  constexpr packed_vec(spread_tag, T v) {
    for (int i = 0; i < N; i++) data[i] = v;
  }
  constexpr operator vec<T, N>() const {
    vec<T, N> v(spread_tag{}, T(0));
    for (int i = 0; i < N; i++) v.data[i] = data[i];
    return v;
  }
  MTLHOST_VECTOR_BODY(packed_vec)
};

namespace detail {

// Operands of which at least one is a vector, the other a vector of that length or a scalar.
template <class A, class B>
concept operands = (vector<A> && vector<B> && width_v<A> == width_v<B>) || (vector<A> && scalar<B>) ||
                   (scalar<A> && vector<B>);
template <class A, class B>
struct joined {
  using type = vec_of<A>;
};
template <class A, class B>
  requires(!vector<A>)
struct joined<A, B> {
  using type = vec_of<B>;
};
template <class A, class B>
using joined_t = typename joined<A, B>::type;

template <class V, class A>
constexpr V widen(const A& a) {
  if constexpr (vector<A>) {
    static_assert(std::is_same_v<typename vec_of<A>::element, typename V::element>,
                  "vectors of different element types do not mix");
    return V(a);
  } else {
    return V(a);
  }
}

template <class A, class B, class F>
constexpr auto zip(const A& a, const B& b, F f) {
  using V = joined_t<A, B>;
  V x = widen<V>(a), y = widen<V>(b);
  using R = decltype(f(x.data[0], y.data[0]));
  vec<R, V::size> out(spread_tag{}, R(0));
  for (int i = 0; i < V::size; i++) out.data[i] = f(x.data[i], y.data[i]);
  return out;
}

template <vector A, class F>
constexpr auto map(const A& a, F f) {
  using V = vec_of<A>;
  V x = a;
  using R = decltype(f(x.data[0]));
  vec<R, V::size> out(spread_tag{}, R(0));
  for (int i = 0; i < V::size; i++) out.data[i] = f(x.data[i]);
  return out;
}

}  // namespace detail

#define MTLHOST_VECTOR_OPERATOR(op)                                                       \
  template <class A, class B>                                                             \
    requires detail::operands<A, B>                                                       \
  constexpr auto operator op(const A& a, const B& b) {                                    \
    return detail::zip(a, b, [](auto x, auto y) { return decltype(x)(x op y); });         \
  }                                                                                       \
  template <class T, int N, class B>                                                      \
    requires detail::operands<vec<T, N>, B>                                               \
  constexpr vec<T, N>& operator op##=(vec<T, N>& a, const B& b) {                         \
    return a = a op b;                                                                    \
  }
MTLHOST_VECTOR_OPERATOR(+)
MTLHOST_VECTOR_OPERATOR(-)
MTLHOST_VECTOR_OPERATOR(*)
MTLHOST_VECTOR_OPERATOR(/)
MTLHOST_VECTOR_OPERATOR(%)
MTLHOST_VECTOR_OPERATOR(&)
MTLHOST_VECTOR_OPERATOR(|)
MTLHOST_VECTOR_OPERATOR(^)
MTLHOST_VECTOR_OPERATOR(<<)
MTLHOST_VECTOR_OPERATOR(>>)
#define MTLHOST_VECTOR_COMPARISON(op)                                                     \
  template <class A, class B>                                                             \
    requires detail::operands<A, B>                                                       \
  constexpr auto operator op(const A& a, const B& b) {                                    \
    return detail::zip(a, b, [](auto x, auto y) { return bool(x op y); });                \
  }
MTLHOST_VECTOR_COMPARISON(==)
MTLHOST_VECTOR_COMPARISON(!=)
MTLHOST_VECTOR_COMPARISON(<)
MTLHOST_VECTOR_COMPARISON(<=)
MTLHOST_VECTOR_COMPARISON(>)
MTLHOST_VECTOR_COMPARISON(>=)
MTLHOST_VECTOR_COMPARISON(&&)
MTLHOST_VECTOR_COMPARISON(||)
template <detail::vector A>
constexpr auto operator-(const A& a) {
  return detail::map(a, [](auto x) { return decltype(x)(-x); });
}
template <detail::vector A>
constexpr auto operator~(const A& a) {
  return detail::map(a, [](auto x) { return decltype(x)(~x); });
}
template <detail::vector A>
constexpr auto operator!(const A& a) {
  return detail::map(a, [](auto x) { return !x; });
}

#define MTLHOST_VECTORS(name, type)           \
  using name##2 = vec<type, 2>;               \
  using name##3 = vec<type, 3>;               \
  using name##4 = vec<type, 4>;               \
  using packed_##name##2 = packed_vec<type, 2>; \
  using packed_##name##3 = packed_vec<type, 3>; \
  using packed_##name##4 = packed_vec<type, 4>;
#define MTLHOST_ALL_VECTORS     \
  MTLHOST_VECTORS(bool, bool)   \
  MTLHOST_VECTORS(char, int8_t) \
  MTLHOST_VECTORS(uchar, uchar) \
  MTLHOST_VECTORS(short, short) \
  MTLHOST_VECTORS(ushort, ushort) \
  MTLHOST_VECTORS(int, int)     \
  MTLHOST_VECTORS(uint, uint)   \
  MTLHOST_VECTORS(long, long)   \
  MTLHOST_VECTORS(ulong, ulong) \
  MTLHOST_VECTORS(half, half)   \
  MTLHOST_VECTORS(bfloat, bfloat) \
  MTLHOST_VECTORS(float, float)
MTLHOST_ALL_VECTORS

template <class T, size_t N>
struct array {
  T elements[N];
  constexpr T& operator[](size_t i) { return elements[i]; }
  constexpr const T& operator[](size_t i) const { return elements[i]; }
  constexpr size_t size() const { return N; }
};

template <class To, class From>
inline To as_type(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  To to;
  From copy = from;
  __builtin_memcpy((void*)&to, (const void*)&copy, sizeof(To));
  return to;
}

}  // namespace metal

#define MTLHOST_GLOBAL_VECTORS(name)                                                                      \
  using metal::name##2;                                                                                   \
  using metal::name##3;                                                                                   \
  using metal::name##4;                                                                                   \
  using metal::packed_##name##2;                                                                          \
  using metal::packed_##name##3;                                                                          \
  using metal::packed_##name##4;
MTLHOST_GLOBAL_VECTORS(bool)
MTLHOST_GLOBAL_VECTORS(char)
MTLHOST_GLOBAL_VECTORS(uchar)
MTLHOST_GLOBAL_VECTORS(short)
MTLHOST_GLOBAL_VECTORS(ushort)
MTLHOST_GLOBAL_VECTORS(int)
MTLHOST_GLOBAL_VECTORS(uint)
MTLHOST_GLOBAL_VECTORS(long)
MTLHOST_GLOBAL_VECTORS(ulong)
MTLHOST_GLOBAL_VECTORS(half)
MTLHOST_GLOBAL_VECTORS(bfloat)
MTLHOST_GLOBAL_VECTORS(float)
using metal::as_type;
using metal::vec;
