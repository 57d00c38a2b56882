// Metal's scalar types, their traits and limits.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <type_traits>

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;

namespace metal {

// ---- Half and bfloat: each operation is done in float and rounded once ----

namespace detail {

constexpr float half_to_float(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
  if (exponent == 0) {
    float v = float(mantissa) * 0x1p-24f;
    return sign ? -v : v;
  }
  uint32_t bits = exponent == 31 ? 0x7f800000 | mantissa << 13 : (exponent + 112) << 23 | mantissa << 13;
  return __builtin_bit_cast(float, sign | bits);
}

constexpr uint16_t float_to_half(float f) {
  uint32_t u = __builtin_bit_cast(uint32_t, f);
  uint16_t sign = uint16_t((u >> 16) & 0x8000);
  u &= 0x7fffffff;
  if (u > 0x7f800000) return sign | 0x7e00 | uint16_t((u >> 13) & 0x3ff);
  if (u >= 0x477ff000) return sign | 0x7c00;
  if (u < 0x38800000) {  // denormal: the sum has a unit of 2^-24 in its last place
    float sum = __builtin_bit_cast(float, u) + 0.5f;
    return uint16_t(sign | (__builtin_bit_cast(uint32_t, sum) - 0x3f000000));
  }
  return uint16_t(sign | ((u + 0xc8000fff + ((u >> 13) & 1)) >> 13));
}

constexpr float bfloat_to_float(uint16_t b) { return __builtin_bit_cast(float, uint32_t(b) << 16); }

constexpr uint16_t float_to_bfloat(float f) {
  uint32_t u = __builtin_bit_cast(uint32_t, f);
  if ((u & 0x7fffffff) > 0x7f800000) return uint16_t(u >> 16 | 0x40);
  return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

template <class T>
concept builtin = std::is_arithmetic_v<T>;
template <class T>
concept builtin_float = std::is_floating_point_v<T>;
template <class T>
concept builtin_int = std::is_integral_v<T>;

}  // namespace detail

#define MTLHOST_MIXED(type, op)                                                              \
  friend constexpr auto operator op(type a, type b) { return type(float(a) op float(b)); }   \
  template <detail::builtin A>                                                               \
  friend constexpr auto operator op(type a, A b) {                                           \
    if constexpr (detail::builtin_float<A>) return float(a) op float(b);                     \
    else return type(float(a) op float(type(b)));                                            \
  }                                                                                          \
  template <detail::builtin A>                                                               \
  friend constexpr auto operator op(A a, type b) {                                           \
    if constexpr (detail::builtin_float<A>) return float(a) op float(b);                     \
    else return type(float(type(a)) op float(b));                                            \
  }                                                                                          \
  template <class A>                                                                         \
  constexpr type& operator op##=(A b) {                                                      \
    return *this = type(*this op b);                                                         \
  }                                                                                          \
  template <detail::builtin A>                                                               \
  friend constexpr A& operator op##=(A& a, type b) {                                         \
    return a = A(a op b);                                                                    \
  }
#define MTLHOST_COMPARED(type, op)                                                           \
  friend constexpr bool operator op(type a, type b) { return float(a) op float(b); }         \
  template <detail::builtin A>                                                               \
  friend constexpr bool operator op(type a, A b) { return float(a) op float(b); }            \
  template <detail::builtin A>                                                               \
  friend constexpr bool operator op(A a, type b) { return float(a) op float(b); }
#define MTLHOST_SMALL_FLOAT(type, from, to)                                                  \
  template <detail::builtin A>                                                               \
  explicit(!std::is_same_v<A, float>) constexpr operator A() const {                         \
    return A(to(bits));                                                                      \
  }                                                                                          \
  static constexpr type of_bits(uint16_t bits) {                                             \
    type v{};                                                                                \
    v.bits = bits;                                                                           \
    return v;                                                                                \
  }                                                                                          \
  MTLHOST_MIXED(type, +)                                                                     \
  MTLHOST_MIXED(type, -)                                                                     \
  MTLHOST_MIXED(type, *)                                                                     \
  MTLHOST_MIXED(type, /)                                                                     \
  MTLHOST_COMPARED(type, ==)                                                                 \
  MTLHOST_COMPARED(type, !=)                                                                 \
  MTLHOST_COMPARED(type, <)                                                                  \
  MTLHOST_COMPARED(type, <=)                                                                 \
  MTLHOST_COMPARED(type, >)                                                                  \
  MTLHOST_COMPARED(type, >=)                                                                 \
  constexpr type operator-() const { return of_bits(bits ^ 0x8000); }                        \
  constexpr type operator+() const { return *this; }                                         \
  constexpr bool operator!() const { return float(*this) == 0; }                             \
  constexpr type& operator++() { return *this += 1; }                                        \
  constexpr type& operator--() { return *this -= 1; }                                        \
  constexpr type operator++(int) {                                                           \
    type old = *this;                                                                        \
    ++*this;                                                                                 \
    return old;                                                                              \
  }                                                                                          \
  constexpr type operator--(int) {                                                           \
    type old = *this;                                                                        \
    --*this;                                                                                 \
    return old;                                                                              \
  }

struct bfloat;

struct half {
  uint16_t bits;
  half() = default;
  template <detail::builtin A>
  constexpr half(A a) : bits(detail::float_to_half(float(a))) {}
  explicit constexpr half(bfloat b);
  MTLHOST_SMALL_FLOAT(half, detail::float_to_half, detail::half_to_float)
};

// Only integers turn into it by themselves, as the language specification has it.
struct bfloat {
  uint16_t bits;
  bfloat() = default;
  template <detail::builtin A>
  explicit(detail::builtin_float<A>) constexpr bfloat(A a) : bits(detail::float_to_bfloat(float(a))) {}
  explicit constexpr bfloat(half h) : bits(detail::float_to_bfloat(float(h))) {}
  MTLHOST_SMALL_FLOAT(bfloat, detail::float_to_bfloat, detail::bfloat_to_float)
};

constexpr half::half(bfloat b) : bits(detail::float_to_half(float(b))) {}

}  // namespace metal

using metal::bfloat;
using metal::half;
constexpr half operator""h(long double v) { return half(float(v)); }
constexpr half operator""h(unsigned long long v) { return half(float(v)); }
constexpr bfloat operator""bf(long double v) { return bfloat(float(v)); }

namespace metal {

// ---- Traits ----

using std::conditional;
using std::conditional_t;
using std::decay_t;
using std::declval;
using std::enable_if;
using std::enable_if_t;
using std::false_type;
using std::integral_constant;
using std::is_const_v;
using std::is_convertible;
using std::is_convertible_v;
using std::is_enum_v;
using std::is_integral;
using std::is_integral_v;
using std::is_pointer_v;
using std::is_same;
using std::is_same_v;
using std::is_unsigned;
using std::is_unsigned_v;
using std::is_void_v;
using std::make_signed_t;
using std::make_unsigned_t;
using std::remove_const_t;
using std::remove_cv;
using std::remove_cv_t;
using std::remove_pointer_t;
using std::remove_reference;
using std::remove_reference_t;
using std::true_type;
template <bool B>
using bool_constant = std::bool_constant<B>;
template <class... B>
using _disjunction = std::disjunction<B...>;
template <class T>
using remove_addrspace_t = T;
template <class T>
struct remove_addrspace {
  using type = T;
};

template <class T>
inline constexpr bool is_floating_point_v =
    std::is_floating_point_v<T> || std::is_same_v<std::remove_cv_t<T>, half> ||
    std::is_same_v<std::remove_cv_t<T>, bfloat>;
template <class T>
struct is_floating_point : bool_constant<is_floating_point_v<T>> {};
template <class T>
inline constexpr bool is_arithmetic_v = std::is_integral_v<T> || is_floating_point_v<T>;
template <class T>
struct is_arithmetic : bool_constant<is_arithmetic_v<T>> {};
template <class T>
inline constexpr bool is_signed_v = std::is_signed_v<T> || is_floating_point_v<T>;
template <class T>
struct is_signed : bool_constant<is_signed_v<T>> {};

namespace detail {
template <class T>
concept scalar = is_arithmetic_v<std::remove_cv_t<T>>;
template <class T>
concept small_float = std::is_same_v<T, half> || std::is_same_v<T, bfloat>;
template <class T>
concept floating = is_floating_point_v<T>;
}  // namespace detail

template <class T>
struct numeric_limits;
#define MTLHOST_LIMITS_OF_INT(type)                                                       \
  template <>                                                                             \
  struct numeric_limits<type> {                                                           \
    using T = type;                                                                       \
    static constexpr bool is_signed = T(-1) < T(0), is_integer = true;                    \
    static constexpr int digits = int(sizeof(T) * 8) - is_signed;                         \
    static constexpr T max() { return T((unsigned long)(-1) >> (64 - digits)); }          \
    static constexpr T min() { return is_signed ? T(-max() - 1) : T(0); }                 \
    static constexpr T lowest() { return min(); }                                         \
  };
MTLHOST_LIMITS_OF_INT(char)
MTLHOST_LIMITS_OF_INT(signed char)
MTLHOST_LIMITS_OF_INT(unsigned char)
MTLHOST_LIMITS_OF_INT(short)
MTLHOST_LIMITS_OF_INT(unsigned short)
MTLHOST_LIMITS_OF_INT(int)
MTLHOST_LIMITS_OF_INT(unsigned int)
MTLHOST_LIMITS_OF_INT(long)
MTLHOST_LIMITS_OF_INT(unsigned long)
MTLHOST_LIMITS_OF_INT(long long)
MTLHOST_LIMITS_OF_INT(unsigned long long)
template <>
struct numeric_limits<bool> {
  static constexpr bool max() { return true; }
  static constexpr bool min() { return false; }
  static constexpr bool lowest() { return false; }
};
#define MTLHOST_LIMITS_OF_FLOAT(type, digits_, max_, min_, epsilon_, denormal, infinity_, nan) \
  template <>                                                                                  \
  struct numeric_limits<type> {                                                                \
    static constexpr bool is_signed = true, is_integer = false;                                \
    static constexpr int digits = digits_;                                                     \
    static constexpr type max() { return max_; }                                               \
    static constexpr type lowest() { return -max_; }                                           \
    static constexpr type min() { return min_; }                                               \
    static constexpr type epsilon() { return epsilon_; }                                       \
    static constexpr type denorm_min() { return denormal; }                                    \
    static constexpr type infinity() { return infinity_; }                                     \
    static constexpr type quiet_NaN() { return nan; }                                          \
  };
MTLHOST_LIMITS_OF_FLOAT(float, 24, __FLT_MAX__, __FLT_MIN__, __FLT_EPSILON__, __FLT_DENORM_MIN__,
                        __builtin_inff(), __builtin_nanf(""))
MTLHOST_LIMITS_OF_FLOAT(half, 11, half::of_bits(0x7bff), half::of_bits(0x0400), half::of_bits(0x1400),
                        half::of_bits(1), half::of_bits(0x7c00), half::of_bits(0x7e00))
MTLHOST_LIMITS_OF_FLOAT(bfloat, 8, bfloat::of_bits(0x7f7f), bfloat::of_bits(0x0080), bfloat::of_bits(0x3c00),
                        bfloat::of_bits(1), bfloat::of_bits(0x7f80), bfloat::of_bits(0x7fc0))

}  // namespace metal
