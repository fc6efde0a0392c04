// The vector model that every kernel body is written in: 16 float lanes, 16 int32 lanes, 32 int16 lanes (two per row).
//
// One section per instruction set implements the same ~30 operations with the same rounding and the same lane order, so a
// kernel written over them gives bit-identical results on every level. Included once per target file, inside that target's
// namespace (ISA_NAMESPACE); must not include std containers, or the linker could keep a copy compiled for a newer processor.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(ISA_AVX512) || defined(ISA_AVX2)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace ISA_NAMESPACE {

#if defined(ISA_AVX512)
// ---------------------------------------------------------------- AVX-512 F, BW, DQ, VL, VNNI
struct f32x16 { __m512 v; };
struct i32x16 { __m512i v; };
struct i16x32 { __m512i v; };

INLINE f32x16 load(const float *p) { return {_mm512_loadu_ps(p)}; }
INLINE void store(float *p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
INLINE f32x16 splat(float a) { return {_mm512_set1_ps(a)}; }
INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
INLINE f32x16 operator/(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
INLINE f32x16 abs(f32x16 a) { return {_mm512_abs_ps(a.v)}; }
INLINE f32x16 select_less(f32x16 a, f32x16 b, f32x16 yes, f32x16 no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
INLINE f32x16 to_float(i32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
INLINE i32x16 round_to_int(f32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
INLINE f32x16 scale_by_pow2(f32x16 a, i32x16 n) {
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), _mm512_slli_epi32(n.v, 23)))};
}
INLINE f32x16 load_f16(const uint16_t *p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p))}; }
INLINE void store_nearest_f16(uint16_t *p, f32x16 a) {  // ties to even; what is too large becomes infinite
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE f32x16 load_i8(const int8_t *p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)))}; }
INLINE f32x16 load_u8(const uint8_t *p) { return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)))}; }
INLINE void store_i16(int16_t *p, i32x16 a) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtsepi32_epi16(a.v)); }
INLINE i16x32 load_words(const void *p) { return {_mm512_loadu_si512(p)}; }
INLINE void store_words(void *p, i16x32 a) { _mm512_storeu_si512(p, a.v); }
INLINE f32x16 bf16_even(i16x32 a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16))}; }
INLINE f32x16 bf16_odd(i16x32 a) { return {_mm512_castsi512_ps(_mm512_and_si512(a.v, _mm512_set1_epi32((int)0xffff0000)))}; }
INLINE i32x16 int_splat(int32_t a) { return {_mm512_set1_epi32(a)}; }
INLINE i32x16 operator+(i32x16 a, i32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
template <int SHIFT> INLINE i32x16 shift_left(i32x16 a) { return {_mm512_slli_epi32(a.v, SHIFT)}; }
// Bits [SHIFT, SHIFT + WIDTH) of every word, moved to start at bit TO.
template <int SHIFT, int WIDTH, int TO> INLINE i16x32 bit_field(i16x32 a) {
  __m512i x = a.v;
  if constexpr (SHIFT > TO) x = _mm512_srli_epi16(x, SHIFT - TO);
  if constexpr (SHIFT < TO) x = _mm512_slli_epi16(x, TO - SHIFT);
  if constexpr (TO || SHIFT + WIDTH < 16) x = _mm512_and_si512(x, _mm512_set1_epi16((short)(((1 << WIDTH) - 1) << TO)));
  return {x};
}
INLINE i16x32 operator|(i16x32 a, i16x32 b) { return {_mm512_or_si512(a.v, b.v)}; }
// The same of every byte.
template <int SHIFT, int WIDTH, int TO> INLINE i16x32 byte_field(i16x32 a) {
  __m512i x = a.v;
  if constexpr (SHIFT > TO) x = _mm512_srli_epi16(x, SHIFT - TO);
  if constexpr (SHIFT < TO) x = _mm512_slli_epi16(x, TO - SHIFT);
  return {_mm512_and_si512(x, _mm512_set1_epi8((char)(((1 << WIDTH) - 1) << TO)))};
}
// A table's entry for every byte, which is below 16.
INLINE i16x32 look_up(const uint8_t *table, i16x32 a) {
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table)), a.v)};
}
// 2^(e - 127) for 16 bytes e, but 0 for e = 0.
INLINE f32x16 load_pow2(const uint8_t *p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)), 23))};
}
// 16 numbers in e4m3, times 2^-120: the fields of theirs are fields of a float's.
INLINE f32x16 load_f8(const uint8_t *p) {
  const __m512i x = _mm512_slli_epi32(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)), 20);
  return {_mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0x87f00000)))};
}
INLINE i16x32 low_bytes(i16x32 a) { return {_mm512_srai_epi16(_mm512_slli_epi16(a.v, 8), 8)}; }  // sign-extended
INLINE i16x32 high_bytes(i16x32 a) { return {_mm512_srai_epi16(a.v, 8)}; }
// Adds to each row's sum the products of its two words with two activations, the same for all rows.
INLINE i32x16 dot_pair(i32x16 sum, i16x32 codes, const int16_t *a) {
  int32_t pair;
  memcpy(&pair, a, 4);
  return {_mm512_dpwssd_epi32(sum.v, codes.v, _mm512_set1_epi32(pair))};
}
// Sums of products of bytes: of each row's four codes, which have no sign, with four activations, the same for all rows.
// At most so many products are added as 16 bits hold on any level; then the sums are `widened`.
using byte_sums = i32x16;
INLINE byte_sums dot_bytes(i16x32 codes, const int8_t *a) {
  int32_t four;
  memcpy(&four, a, 4);
  return {_mm512_dpbusd_epi32(_mm512_setzero_si512(), codes.v, _mm512_set1_epi32(four))};
}
INLINE byte_sums dot_bytes(byte_sums sum, i16x32 codes, const int8_t *a) {
  int32_t four;
  memcpy(&four, a, 4);
  return {_mm512_dpbusd_epi32(sum.v, codes.v, _mm512_set1_epi32(four))};
}
INLINE i32x16 widened(byte_sums a) { return a; }

#elif defined(ISA_AVX2)
// ---------------------------------------------------------------- AVX2, FMA, F16C
struct f32x16 { __m256 lo, hi; };
struct i32x16 { __m256i lo, hi; };
struct i16x32 { __m256i lo, hi; };

INLINE f32x16 load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void store(float *p, f32x16 a) { _mm256_storeu_ps(p, a.lo), _mm256_storeu_ps(p + 8, a.hi); }
INLINE f32x16 splat(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
INLINE f32x16 operator/(f32x16 a, f32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
INLINE f32x16 abs(f32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
INLINE f32x16 select_less(f32x16 a, f32x16 b, f32x16 yes, f32x16 no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.hi, yes.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
INLINE f32x16 to_float(i32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
INLINE i32x16 round_to_int(f32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
INLINE f32x16 scale_by_pow2(f32x16 a, i32x16 n) {
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.lo), _mm256_slli_epi32(n.lo, 23))),
          _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.hi), _mm256_slli_epi32(n.hi, 23)))};
}
INLINE f32x16 load_f16(const uint16_t *p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
INLINE void store_nearest_f16(uint16_t *p, f32x16 a) {
  _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
INLINE f32x16 load_i8(const int8_t *p) {
  __m128i b = _mm_loadu_si128((const __m128i *)p);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(b, 8)))};
}
INLINE f32x16 load_u8(const uint8_t *p) {
  __m128i b = _mm_loadu_si128((const __m128i *)p);
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(b)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(b, 8)))};
}
INLINE void store_i16(int16_t *p, i32x16 a) {
  _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8));
}
INLINE i16x32 load_words(const void *p) {
  return {_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)p + 1)};
}
INLINE void store_words(void *p, i16x32 a) { _mm256_storeu_si256((__m256i *)p, a.lo), _mm256_storeu_si256((__m256i *)p + 1, a.hi); }
INLINE f32x16 bf16_even(i16x32 a) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(a.lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(a.hi, 16))};
}
INLINE f32x16 bf16_odd(i16x32 a) {
  const __m256i high = _mm256_set1_epi32((int)0xffff0000);
  return {_mm256_castsi256_ps(_mm256_and_si256(a.lo, high)), _mm256_castsi256_ps(_mm256_and_si256(a.hi, high))};
}
INLINE i32x16 int_splat(int32_t a) { return {_mm256_set1_epi32(a), _mm256_set1_epi32(a)}; }
INLINE i32x16 operator+(i32x16 a, i32x16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
template <int SHIFT> INLINE i32x16 shift_left(i32x16 a) { return {_mm256_slli_epi32(a.lo, SHIFT), _mm256_slli_epi32(a.hi, SHIFT)}; }
template <int SHIFT, int WIDTH, int TO> INLINE __m256i bit_field(__m256i x) {
  if constexpr (SHIFT > TO) x = _mm256_srli_epi16(x, SHIFT - TO);
  if constexpr (SHIFT < TO) x = _mm256_slli_epi16(x, TO - SHIFT);
  if constexpr (TO || SHIFT + WIDTH < 16) x = _mm256_and_si256(x, _mm256_set1_epi16((short)(((1 << WIDTH) - 1) << TO)));
  return x;
}
template <int SHIFT, int WIDTH, int TO> INLINE i16x32 bit_field(i16x32 a) {
  return {bit_field<SHIFT, WIDTH, TO>(a.lo), bit_field<SHIFT, WIDTH, TO>(a.hi)};
}
INLINE i16x32 operator|(i16x32 a, i16x32 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
template <int SHIFT, int WIDTH, int TO> INLINE __m256i byte_field(__m256i x) {
  if constexpr (SHIFT > TO) x = _mm256_srli_epi16(x, SHIFT - TO);
  if constexpr (SHIFT < TO) x = _mm256_slli_epi16(x, TO - SHIFT);
  return _mm256_and_si256(x, _mm256_set1_epi8((char)(((1 << WIDTH) - 1) << TO)));
}
template <int SHIFT, int WIDTH, int TO> INLINE i16x32 byte_field(i16x32 a) {
  return {byte_field<SHIFT, WIDTH, TO>(a.lo), byte_field<SHIFT, WIDTH, TO>(a.hi)};
}
INLINE i16x32 look_up(const uint8_t *table, i16x32 a) {
  const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
  return {_mm256_shuffle_epi8(t, a.lo), _mm256_shuffle_epi8(t, a.hi)};
}
INLINE f32x16 load_pow2(const uint8_t *p) {
  const __m128i b = _mm_loadu_si128((const __m128i *)p);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(b), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(b, 8)), 23))};
}
INLINE f32x16 load_f8(const uint8_t *p) {
  const __m128i b = _mm_loadu_si128((const __m128i *)p);
  const __m256i fields = _mm256_set1_epi32((int)0x87f00000);
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_slli_epi32(_mm256_cvtepi8_epi32(b), 20), fields)),
          _mm256_castsi256_ps(_mm256_and_si256(_mm256_slli_epi32(_mm256_cvtepi8_epi32(_mm_srli_si128(b, 8)), 20), fields))};
}
INLINE i16x32 low_bytes(i16x32 a) {
  return {_mm256_srai_epi16(_mm256_slli_epi16(a.lo, 8), 8), _mm256_srai_epi16(_mm256_slli_epi16(a.hi, 8), 8)};
}
INLINE i16x32 high_bytes(i16x32 a) { return {_mm256_srai_epi16(a.lo, 8), _mm256_srai_epi16(a.hi, 8)}; }
INLINE i32x16 dot_pair(i32x16 sum, i16x32 codes, const int16_t *a) {
  int32_t pair;
  memcpy(&pair, a, 4);
  const __m256i act = _mm256_set1_epi32(pair);
  sum.lo = _mm256_add_epi32(sum.lo, _mm256_madd_epi16(codes.lo, act));
  sum.hi = _mm256_add_epi32(sum.hi, _mm256_madd_epi16(codes.hi, act));
  asm("" : "+x"(sum.lo), "+x"(sum.hi));  // or GCC turns the chain of sums into a tree and spills every product
  return sum;
}
using byte_sums = i16x32;
INLINE byte_sums dot_bytes(i16x32 codes, const int8_t *a) {
  int32_t four;
  memcpy(&four, a, 4);
  const __m256i act = _mm256_set1_epi32(four);
  return {_mm256_maddubs_epi16(codes.lo, act), _mm256_maddubs_epi16(codes.hi, act)};
}
INLINE byte_sums dot_bytes(byte_sums sum, i16x32 codes, const int8_t *a) {
  const byte_sums product = dot_bytes(codes, a);
  sum.lo = _mm256_add_epi16(sum.lo, product.lo);
  sum.hi = _mm256_add_epi16(sum.hi, product.hi);
  asm("" : "+x"(sum.lo), "+x"(sum.hi));
  return sum;
}
INLINE i32x16 widened(byte_sums a) {
  const __m256i one = _mm256_set1_epi16(1);
  return {_mm256_madd_epi16(a.lo, one), _mm256_madd_epi16(a.hi, one)};
}

#else
// ---------------------------------------------------------------- plain C++ with compiler vectors: any processor
typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef int16_t i16x16 __attribute__((vector_size(32)));
typedef int16_t i16x32 __attribute__((vector_size(64)));
typedef uint16_t u16x32 __attribute__((vector_size(64)));

#define LANES _Pragma("GCC unroll 1") for (int i = 0; i < 16; i++)
template <class V> INLINE V load_any(const void *p) { V r; memcpy(&r, p, sizeof(V)); return r; }
INLINE f32x16 load(const float *p) { return load_any<f32x16>(p); }
INLINE void store(float *p, f32x16 a) { memcpy(p, &a, 64); }
INLINE f32x16 splat(float a) { return a - f32x16{}; }
INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { LANES c[i] = __builtin_fmaf(a[i], b[i], c[i]); return c; }
INLINE f32x16 max(f32x16 a, f32x16 b) { return a > b ? a : b; }
INLINE f32x16 min(f32x16 a, f32x16 b) { return a < b ? a : b; }
INLINE f32x16 abs(f32x16 a) { return (f32x16)((u32x16)a & 0x7fffffffu); }
INLINE f32x16 select_less(f32x16 a, f32x16 b, f32x16 yes, f32x16 no) { return a < b ? yes : no; }
INLINE f32x16 to_float(i32x16 a) { return __builtin_convertvector(a, f32x16); }
INLINE i32x16 round_to_int(f32x16 a) {  // ties to even; what does not fit gives INT_MIN, as the vector instructions do
  i32x16 r;
  LANES r[i] = a[i] >= -2147483648.0f && a[i] < 2147483648.0f ? (int32_t)__builtin_nearbyintf(a[i]) : INT32_MIN;
  return r;
}
INLINE f32x16 scale_by_pow2(f32x16 a, i32x16 n) { return (f32x16)((u32x16)a + ((u32x16)n << 23)); }
INLINE f32x16 load_f16(const uint16_t *p) {
  const u32x16 h = __builtin_convertvector(load_any<u16x16>(p), u32x16);
  const u32x16 sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 1023u;
  const u32x16 normal = ((exponent + 112u) << 23) | (mantissa << 13);
  const u32x16 special = (mantissa << 13) | 0x7f800000u;
  const u32x16 small = (u32x16)(to_float((i32x16)mantissa) * 5.9604644775390625e-8f);  // zero and subnormals: m * 2^-24
  return (f32x16)(sign | (exponent == 31u ? special : exponent == 0u ? small : normal));
}
INLINE void store_nearest_f16(uint16_t *p, f32x16 a) {
  for (int i = 0; i < 16; i++) {
    uint32_t bits;
    const float size = __builtin_fabsf(a[i]);
    memcpy(&bits, &size, 4);
    uint32_t half = 0x7e00;
    if (bits < 0x38800000) half = (uint32_t)__builtin_nearbyintf(size * 16777216.0f);  // below 2^-14 the unit is 2^-24
    else if (bits <= 0x7f800000) half = bits >= 0x477ff000 ? 0x7c00 : (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13;
    p[i] = (uint16_t)(half | (__builtin_signbit(a[i]) ? 0x8000 : 0));
  }
}
INLINE f32x16 load_i8(const int8_t *p) { return __builtin_convertvector(load_any<i8x16>(p), f32x16); }
INLINE f32x16 load_u8(const uint8_t *p) { return __builtin_convertvector(load_any<u8x16>(p), f32x16); }
INLINE void store_i16(int16_t *p, i32x16 a) {  // what does not fit saturates, as the vector instructions do
  a = a > 32767 ? 32767 - i32x16{} : a < -32768 ? -32768 - i32x16{} : a;
  const i16x16 words = __builtin_convertvector(a, i16x16);
  memcpy(p, &words, 32);
}
INLINE i16x32 load_words(const void *p) { return load_any<i16x32>(p); }
INLINE void store_words(void *p, i16x32 a) { memcpy(p, &a, 64); }
INLINE f32x16 bf16_even(i16x32 a) { return (f32x16)((u32x16)a << 16); }
INLINE f32x16 bf16_odd(i16x32 a) { return (f32x16)((u32x16)a & 0xffff0000u); }
INLINE i32x16 int_splat(int32_t a) { return a - i32x16{}; }
template <int SHIFT> INLINE i32x16 shift_left(i32x16 a) { return (i32x16)((u32x16)a << SHIFT); }
template <int SHIFT, int WIDTH, int TO> INLINE i16x32 bit_field(i16x32 a) {
  return (i16x32)(((u16x32)a >> SHIFT & (uint16_t)((1 << WIDTH) - 1)) << TO);
}
template <int SHIFT, int WIDTH, int TO> INLINE i16x32 byte_field(i16x32 a) {
  return (i16x32)(((u16x32)a >> SHIFT & (uint16_t)(((1 << WIDTH) - 1) * 0x0101)) << TO);
}
INLINE i16x32 look_up(const uint8_t *table, i16x32 a) {
  uint8_t bytes[64];
  memcpy(bytes, &a, 64);
  for (int i = 0; i < 64; i++) bytes[i] = table[bytes[i]];
  return load_any<i16x32>(bytes);
}
INLINE f32x16 load_pow2(const uint8_t *p) { return (f32x16)(__builtin_convertvector(load_any<u8x16>(p), u32x16) << 23); }
INLINE f32x16 load_f8(const uint8_t *p) {
  const u32x16 x = __builtin_convertvector(load_any<u8x16>(p), u32x16);
  return (f32x16)((x & 0x7f) << 20 | (x & 0x80) << 24);
}
INLINE i16x32 low_bytes(i16x32 a) { return (i16x32)((u16x32)a << 8) >> 8; }
INLINE i16x32 high_bytes(i16x32 a) { return a >> 8; }
INLINE i32x16 dot_pair(i32x16 sum, i16x32 codes, const int16_t *a) {  // word 0 of a lane is its low half (little-endian)
  const i32x16 both = (i32x16)codes;
  return sum + ((i32x16)((u32x16)both << 16) >> 16) * (int32_t)a[0] + (both >> 16) * (int32_t)a[1];
}
using byte_sums = i32x16;
INLINE byte_sums dot_bytes(byte_sums sum, i16x32 codes, const int8_t *a) {
  const u32x16 four = (u32x16)codes;
  for (int i = 0; i < 4; i++) sum += (i32x16)(four >> 8 * i & 255u) * (int32_t)a[i];
  return sum;
}
INLINE byte_sums dot_bytes(i16x32 codes, const int8_t *a) { return dot_bytes(byte_sums{}, codes, a); }
INLINE i32x16 widened(byte_sums a) { return a; }
#undef LANES
#endif

// ---------------------------------------------------------------- written once over the operations above
INLINE i32x16 negate(i32x16 a) {
#if defined(ISA_AVX512)
  return {_mm512_sub_epi32(_mm512_setzero_si512(), a.v)};
#elif defined(ISA_AVX2)
  return {_mm256_sub_epi32(_mm256_setzero_si256(), a.lo), _mm256_sub_epi32(_mm256_setzero_si256(), a.hi)};
#else
  return -a;
#endif
}

// Horizontal reductions in one fixed tree (lane i with i + 8, then + 4, + 2, + 1), so that no level differs from another.
#if defined(ISA_AVX512) || defined(ISA_AVX2)
#if defined(ISA_AVX512)
template <int UPPER> INLINE __m256 half_of(f32x16 a) {
  return _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(a.v), UPPER));
}
#else
template <int UPPER> INLINE __m256 half_of(f32x16 a) { return UPPER ? a.hi : a.lo; }
#endif
INLINE float reduce_add(f32x16 a) {
  const __m256 eight = _mm256_add_ps(half_of<0>(a), half_of<1>(a));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
INLINE float reduce_max(f32x16 a) {
  const __m256 eight = _mm256_max_ps(half_of<0>(a), half_of<1>(a));
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
#else
INLINE float reduce_add(f32x16 a) {
  float v[16];
  store(v, a);
  for (int n = 8; n; n /= 2)
    for (int i = 0; i < n; i++) v[i] += v[i + n];
  return v[0];
}
INLINE float reduce_max(f32x16 a) {
  float v[16];
  store(v, a);
  for (int n = 8; n; n /= 2)
    for (int i = 0; i < n; i++) v[i] = v[i] > v[i + n] ? v[i] : v[i + n];
  return v[0];
}
#endif

// e^x to about 1 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, degree-6 polynomial. Below -87 the result is exactly 0.
INLINE f32x16 exp(f32x16 x) {
  const f32x16 low = splat(-87.0f);
  f32x16 clamped = min(max(x, low), splat(88.0f));
  i32x16 n = round_to_int(clamped * splat(1.44269504088896341f));
  f32x16 fn = to_float(n);
  f32x16 r = fma(fn, splat(-0.693145751953125f), clamped);
  r = fma(fn, splat(-1.42860682030941723e-6f), r);
  f32x16 p = fma(r, splat(1.3888889e-3f), splat(8.3333333e-3f));
  p = fma(p, r, splat(4.16666667e-2f));
  p = fma(p, r, splat(1.66666667e-1f));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  return select_less(x, low, splat(0.0f), scale_by_pow2(p, n));
}

INLINE f32x16 silu(f32x16 x) { return x / (splat(1.0f) + exp(splat(0.0f) - x)); }

// What is stored in the KV cache: at most the largest f16, so that only what is no finite number becomes none.
INLINE void store_kv(uint16_t *p, f32x16 a) {
  const f32x16 largest = splat(65504.0f);
  store_nearest_f16(p, fma(a, splat(0), max(splat(-65504.0f), min(largest, a))));
}

}  // namespace ISA_NAMESPACE
