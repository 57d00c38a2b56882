// metal_math, metal_common, metal_integer, metal_relational and metal_geometric.
#pragma once

#define METAL_FUNC inline
#define METAL_ALIGN(x) __attribute__((aligned(x)))
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_huge_valf()
#define MAXFLOAT __FLT_MAX__
#define FLT_MAX __FLT_MAX__
#define FLT_MIN __FLT_MIN__
#define FLT_EPSILON __FLT_EPSILON__
#define HALF_MAX (half::of_bits(0x7bff))
#define HALF_MIN (half::of_bits(0x0400))
#define CHAR_BIT 8
#define INT_MAX __INT_MAX__
#define INT_MIN (-__INT_MAX__ - 1)
#define UINT_MAX (__INT_MAX__ * 2u + 1u)
#define M_E_F 2.71828182845904523536028747135266250f
#define M_LOG2E_F 1.44269504088896340735992468100189214f
#define M_LOG10E_F 0.434294481903251827651128918916605082f
#define M_LN2_F 0.693147180559945309417232121458176568f
#define M_LN10_F 2.30258509299404568401799145468436421f
#define M_PI_F 3.14159265358979323846264338327950288f
#define M_PI_2_F 1.57079632679489661923132169163975144f
#define M_PI_4_F 0.785398163397448309615660845819875721f
#define M_1_PI_F 0.318309886183790671537767526745028724f
#define M_2_PI_F 0.636619772367581343075535053490057448f
#define M_2_SQRTPI_F 1.12837916709551257389615890312154517f
#define M_SQRT2_F 1.41421356237309504880168872420969808f
#define M_SQRT1_2_F 0.707106781186547524400844362104849039f

namespace metal {

namespace detail {

// The type that two scalars of a call agree on.
template <class A, class B>
struct common {
  using type = decltype(A{} + B{});
};
template <class A>
struct common<A, A> {
  using type = A;
};
template <class A, class B>
using common_t = typename common<A, B>::type;

inline float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
inline float sinpi(float x) { return __builtin_sin(3.14159265358979323846 * __builtin_remainder(x, 2.0)); }
inline float cospi(float x) { return __builtin_cos(3.14159265358979323846 * __builtin_remainder(x, 2.0)); }
inline float tanpi(float x) { return sinpi(x) / cospi(x); }
inline float fract(float x) {
  float f = x - __builtin_floorf(x);
  return f < 1.0f ? f : 0x1.fffffep-1f;
}
inline float sign(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : x == x ? x : 0.0f; }
inline float saturate(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }

}  // namespace detail

// One float function for scalars (integers as float), half and bfloat (rounded once) and vectors.
#define MTLHOST_UNARY(name, call)                                              \
  inline float name(float x) { return call(x); }                               \
  template <detail::small_float T>                                             \
  inline T name(T x) {                                                         \
    return T(call(float(x)));                                                  \
  }                                                                            \
  template <detail::builtin_int T>                                             \
  inline float name(T x) {                                                     \
    return call(float(x));                                                     \
  }                                                                            \
  template <detail::vector V>                                                  \
  inline auto name(const V& v) {                                               \
    return detail::map(v, [](auto x) { return decltype(x)(call(float(x))); }); \
  }
#define MTLHOST_UNARY_ALL(M)          \
  M(acos, __builtin_acosf)            \
  M(acosh, __builtin_acoshf)          \
  M(asin, __builtin_asinf)            \
  M(asinh, __builtin_asinhf)          \
  M(atan, __builtin_atanf)            \
  M(atanh, __builtin_atanhf)          \
  M(ceil, __builtin_ceilf)            \
  M(cos, __builtin_cosf)              \
  M(cosh, __builtin_coshf)            \
  M(cospi, detail::cospi)             \
  M(exp, __builtin_expf)              \
  M(exp2, __builtin_exp2f)            \
  M(exp10, __builtin_exp10f)          \
  M(fabs, __builtin_fabsf)            \
  M(floor, __builtin_floorf)          \
  M(fract, detail::fract)             \
  M(log, __builtin_logf)              \
  M(log2, __builtin_log2f)            \
  M(log10, __builtin_log10f)          \
  M(rint, __builtin_rintf)            \
  M(round, __builtin_roundf)          \
  M(rsqrt, detail::rsqrt)             \
  M(saturate, detail::saturate)       \
  M(sign, detail::sign)               \
  M(sin, __builtin_sinf)              \
  M(sinh, __builtin_sinhf)            \
  M(sinpi, detail::sinpi)             \
  M(sqrt, __builtin_sqrtf)            \
  M(tan, __builtin_tanf)              \
  M(tanh, __builtin_tanhf)            \
  M(tanpi, detail::tanpi)             \
  M(trunc, __builtin_truncf)
MTLHOST_UNARY_ALL(MTLHOST_UNARY)

// Two and three operands of one float type after Metal's conversions; vectors take scalars too.
#define MTLHOST_BINARY(name, call)                                                                    \
  template <detail::scalar A, detail::scalar B>                                                       \
  inline auto name(A a, B b) {                                                                        \
    using C = detail::common_t<A, B>;                                                                 \
    using R = std::conditional_t<is_floating_point_v<C>, C, float>;                                   \
    return R(call(float(a), float(b)));                                                               \
  }                                                                                                   \
  template <class A, class B>                                                                         \
    requires detail::operands<A, B>                                                                   \
  inline auto name(const A& a, const B& b) {                                                          \
    return detail::zip(a, b, [](auto x, auto y) { return decltype(x)(call(float(x), float(y))); });   \
  }
#define MTLHOST_BINARY_ALL(M)       \
  M(atan2, __builtin_atan2f)        \
  M(copysign, __builtin_copysignf)  \
  M(fdim, __builtin_fdimf)          \
  M(fmax, __builtin_fmaxf)          \
  M(fmin, __builtin_fminf)          \
  M(fmod, __builtin_fmodf)          \
  M(nextafter, __builtin_nextafterf) \
  M(pow, __builtin_powf)            \
  M(powr, __builtin_powf)
MTLHOST_BINARY_ALL(MTLHOST_BINARY)

template <detail::scalar A, detail::scalar B, detail::scalar C>
inline auto fma(A a, B b, C c) {
  using R = detail::common_t<detail::common_t<A, B>, C>;
  return R(__builtin_fmaf(float(a), float(b), float(c)));
}
template <class A, class B, class C>
  requires(detail::vector<A> || detail::vector<B> || detail::vector<C>)
inline auto fma(const A& a, const B& b, const C& c) {
  using V = decltype(a * b + c);
  V x = detail::widen<V>(a), y = detail::widen<V>(b), z = detail::widen<V>(c);
  for (int i = 0; i < V::size; i++) x.data[i] = fma(x.data[i], y.data[i], z.data[i]);
  return x;
}

template <detail::scalar T>
inline T ldexp(T x, int e) {
  return T(__builtin_ldexpf(float(x), e));
}
inline float frexp(float x, int& e) { return __builtin_frexpf(x, &e); }
inline float modf(float x, float& whole) { return __builtin_modff(x, &whole); }
inline int ilogb(float x) { return __builtin_ilogbf(x); }
inline float sincos(float x, float& c) {
  c = __builtin_cosf(x);
  return __builtin_sinf(x);
}

// Of a number and NaN both give the number; integers keep their type.
#define MTLHOST_PICK(name, op, call)                                                                    \
  template <detail::scalar A, detail::scalar B>                                                         \
  constexpr auto name(A a, B b) {                                                                       \
    using C = detail::common_t<A, B>;                                                                   \
    if constexpr (is_floating_point_v<C>) return C(call(float(a), float(b)));                           \
    else return C(C(b) op C(a) ? C(b) : C(a));                                                          \
  }                                                                                                     \
  template <class A, class B>                                                                           \
    requires detail::operands<A, B>                                                                     \
  constexpr auto name(const A& a, const B& b) {                                                         \
    return detail::zip(a, b, [](auto x, auto y) { return name(x, y); });                                \
  }
MTLHOST_PICK(max, >, __builtin_fmaxf)
MTLHOST_PICK(min, <, __builtin_fminf)
template <class A, class B, class C>
constexpr auto max3(const A& a, const B& b, const C& c) {
  return max(max(a, b), c);
}
template <class A, class B, class C>
constexpr auto min3(const A& a, const B& b, const C& c) {
  return min(min(a, b), c);
}
template <class A, class B, class C>
constexpr auto clamp(const A& x, const B& low, const C& high) {
  return min(max(x, low), high);
}

template <detail::scalar T>
constexpr T abs(T x) {
  return x < T(0) || (is_floating_point_v<T> && x == T(0)) ? T(x == T(0) ? T(0) : T(-x)) : x;
}
template <detail::vector V>
constexpr auto abs(const V& v) {
  return detail::map(v, [](auto x) { return abs(x); });
}

namespace fast {
#define MTLHOST_USING(name, call) using metal::name;
MTLHOST_UNARY_ALL(MTLHOST_USING)
MTLHOST_BINARY_ALL(MTLHOST_USING)
using metal::clamp;
using metal::fma;
using metal::max;
using metal::min;
using metal::sincos;
}  // namespace fast
namespace precise {
MTLHOST_UNARY_ALL(MTLHOST_USING)
MTLHOST_BINARY_ALL(MTLHOST_USING)
using metal::clamp;
using metal::fma;
using metal::max;
using metal::min;
using metal::sincos;
}  // namespace precise

template <class A, class B, class C>
constexpr auto mix(const A& x, const B& y, const C& a) {
  return x + (y - x) * a;
}
template <class A, class B>
constexpr auto step(const A& edge, const B& x) {
  using T = decltype(x - edge);
  if constexpr (detail::vector<T>)
    return detail::zip(edge, x, [](auto e, auto v) { return decltype(e)(v < e ? 0 : 1); });
  else
    return T(x < edge ? 0 : 1);
}
template <class A, class B, class C>
constexpr auto smoothstep(const A& e0, const B& e1, const C& x) {
  auto t = saturate((x - e0) / (e1 - e0));
  return t * t * (3 - 2 * t);
}

// ---- Relations ----

#define MTLHOST_CLASSIFY(name, call)                                          \
  template <detail::scalar T>                                                 \
  inline bool name(T x) {                                                     \
    return call(float(x));                                                    \
  }                                                                           \
  template <detail::vector V>                                                 \
  inline auto name(const V& v) {                                              \
    return detail::map(v, [](auto x) { return bool(call(float(x))); });       \
  }
MTLHOST_CLASSIFY(isnan, __builtin_isnan)
MTLHOST_CLASSIFY(isinf, __builtin_isinf)
MTLHOST_CLASSIFY(isfinite, __builtin_isfinite)
MTLHOST_CLASSIFY(isnormal, __builtin_isnormal)
MTLHOST_CLASSIFY(signbit, __builtin_signbit)

constexpr bool any(bool b) { return b; }
constexpr bool all(bool b) { return b; }
template <detail::vector V>
constexpr bool any(const V& v) {
  bool out = false;
  for (int i = 0; i < detail::width_v<V>; i++) out |= bool(detail::vec_of<V>(v).data[i]);
  return out;
}
template <detail::vector V>
constexpr bool all(const V& v) {
  bool out = true;
  for (int i = 0; i < detail::width_v<V>; i++) out &= bool(detail::vec_of<V>(v).data[i]);
  return out;
}

// The second where the condition holds.
template <detail::scalar A, detail::scalar B>
constexpr auto select(A a, B b, bool condition) {
  using C = detail::common_t<A, B>;
  return condition ? C(b) : C(a);
}
template <class A, class B, class C>
  requires detail::operands<A, B>
constexpr auto select(const A& a, const B& b, const C& condition) {
  using V = detail::joined_t<A, B>;
  V x = detail::widen<V>(a), y = detail::widen<V>(b);
  vec<bool, V::size> c(condition);
  for (int i = 0; i < V::size; i++) x.data[i] = c.data[i] ? y.data[i] : x.data[i];
  return x;
}

// ---- Integers ----

#define MTLHOST_INTEGER(name, expression)                                     \
  template <detail::builtin_int T>                                            \
  constexpr T name(T x) {                                                     \
    constexpr int width = sizeof(T) * 8;                                      \
    using U = std::make_unsigned_t<T>;                                        \
    (void)width;                                                              \
    return T(expression);                                                     \
  }                                                                           \
  template <detail::vector V>                                                 \
  constexpr auto name(const V& v) {                                           \
    return detail::map(v, [](auto x) { return name(x); });                    \
  }
MTLHOST_INTEGER(popcount, __builtin_popcountll((unsigned long long)U(x)))
MTLHOST_INTEGER(clz, U(x) ? __builtin_clzll((unsigned long long)U(x)) - (64 - width) : width)
MTLHOST_INTEGER(ctz, U(x) ? __builtin_ctzll((unsigned long long)U(x)) : width)
template <detail::builtin_int T>
constexpr T reverse_bits(T x) {
  std::make_unsigned_t<T> u = x, out = 0;
  for (unsigned i = 0; i < sizeof(T) * 8; i++, u >>= 1) out = out << 1 | (u & 1);
  return T(out);
}

template <detail::builtin_int T>
constexpr T extract_bits(T x, uint offset, uint bits) {
  constexpr uint width = sizeof(T) * 8;
  using U = std::make_unsigned_t<T>;
  if (bits == 0) return 0;
  if (offset + bits > width) mtlhost_fail("extract_bits reaches past the width of its type");
  return T(T(U(x) << (width - bits - offset)) >> (width - bits));
}
template <detail::builtin_int T>
constexpr T insert_bits(T base, T insert, uint offset, uint bits) {
  constexpr uint width = sizeof(T) * 8;
  using U = std::make_unsigned_t<T>;
  if (bits == 0) return base;
  if (offset + bits > width) mtlhost_fail("insert_bits reaches past the width of its type");
  U mask = (bits == width ? U(-1) : U((U(1) << bits) - 1)) << offset;
  return T((U(base) & ~mask) | (U(insert) << offset & mask));
}
template <detail::builtin_int T>
constexpr T rotate(T x, T by) {
  constexpr int width = sizeof(T) * 8;
  using U = std::make_unsigned_t<T>;
  int n = int(U(by) % width);
  return n == 0 ? x : T(U(x) << n | U(x) >> (width - n));
}
template <detail::builtin_int T>
constexpr T mulhi(T a, T b) {
  return T((__int128(a) * __int128(b)) >> (sizeof(T) * 8));
}
template <detail::builtin_int T>
constexpr T mul24(T a, T b) {
  return a * b;
}
template <detail::builtin_int T>
constexpr T mad24(T a, T b, T c) {
  return a * b + c;
}
template <detail::builtin_int T>
constexpr auto absdiff(T a, T b) {
  using U = std::make_unsigned_t<T>;
  return a < b ? U(U(b) - U(a)) : U(U(a) - U(b));
}
template <detail::builtin_int T>
constexpr T addsat(T a, T b) {
  T out{};
  if (!__builtin_add_overflow(a, b, &out)) return out;
  return b < 0 ? numeric_limits<T>::min() : numeric_limits<T>::max();
}
template <detail::builtin_int T>
constexpr T subsat(T a, T b) {
  T out{};
  if (!__builtin_sub_overflow(a, b, &out)) return out;
  return b < 0 ? numeric_limits<T>::max() : numeric_limits<T>::min();
}
template <detail::builtin_int T>
constexpr T hadd(T a, T b) {
  return T((__int128(a) + __int128(b)) >> 1);
}

// ---- Geometry ----

template <detail::vector A, detail::vector B>
constexpr auto dot(const A& a, const B& b) {
  auto p = a * b;
  auto out = p.data[0];
  for (int i = 1; i < decltype(p)::size; i++) out += p.data[i];
  return out;
}
template <detail::vector A>
inline auto length_squared(const A& a) {
  return dot(a, a);
}
template <detail::vector A>
inline auto length(const A& a) {
  return sqrt(dot(a, a));
}
template <detail::vector A, detail::vector B>
inline auto distance(const A& a, const B& b) {
  return length(a - b);
}
template <detail::vector A>
inline auto normalize(const A& a) {
  return a * rsqrt(dot(a, a));
}
template <class T>
constexpr vec<T, 3> cross(const vec<T, 3>& a, const vec<T, 3>& b) {
  return vec<T, 3>(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x);
}

// ---- Packing ----

inline uint pack_float_to_snorm4x8(float4 v) {
  uint out = 0;
  for (int i = 0; i < 4; i++)
    out |= (uint(int(rint(clamp(v[i], -1.0f, 1.0f) * 127.0f))) & 0xff) << 8 * i;
  return out;
}
inline float4 unpack_unorm4x8_to_float(uint v) {
  return float4(v & 0xff, v >> 8 & 0xff, v >> 16 & 0xff, v >> 24) / 255.0f;
}
inline float4 unpack_snorm4x8_to_float(uint v) {
  float4 out;
  for (int i = 0; i < 4; i++) out[i] = max(float(int8_t(v >> 8 * i)) / 127.0f, -1.0f);
  return out;
}

}  // namespace metal
