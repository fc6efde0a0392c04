// Stands in front of the compiler's <immintrin.h> in builds with FREEHOLD_EMULATE: AVX-512 and AMX for processors with AVX2.
//
// AVX-512 is SIMDe's (Debian: libsimde-dev), an implementation by others, and the few operations it lacks; the tiles follow
// the operation sections of Intel's manual and stop the program where the instruction would fault. Test builds only.
#pragma once
#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cstdio>
#include <cstdlib>

namespace emulated {

#define EMULATED inline __attribute__((always_inline))

EMULATED __m512 join(__m256 lo, __m256 hi) { return _mm512_insertf32x8(_mm512_castps256_ps512(lo), hi, 1); }
EMULATED __m512i join(__m256i lo, __m256i hi) { return _mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1); }
EMULATED __m256i low(__m512i a) { return _mm512_extracti64x4_epi64(a, 0); }
EMULATED __m256i high(__m512i a) { return _mm512_extracti64x4_epi64(a, 1); }
EMULATED __m512 to_ps(__m512i a) { return join(_mm256_cvtepi32_ps(low(a)), _mm256_cvtepi32_ps(high(a))); }
EMULATED __m512i to_epi32(__m512 a) {
  const __m512i bits = _mm512_castps_si512(a);
  return join(_mm256_cvtps_epi32(_mm256_castsi256_ps(low(bits))), _mm256_cvtps_epi32(_mm256_castsi256_ps(high(bits))));
}
EMULATED __m512 from_f16(__m256i a) {
  return join(_mm256_cvtph_ps(_mm256_castsi256_si128(a)), _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)));
}
EMULATED __m256i to_f16(__m512 a) {
  const __m512i bits = _mm512_castps_si512(a);
  const __m128i first = _mm256_cvtps_ph(_mm256_castsi256_ps(low(bits)), _MM_FROUND_TO_NEAREST_INT);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(first), _mm256_cvtps_ph(_mm256_castsi256_ps(high(bits)), _MM_FROUND_TO_NEAREST_INT), 1);
}
EMULATED __m512i from_i8(__m128i a) { return join(_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8))); }
EMULATED __m512i from_u8(__m128i a) { return join(_mm256_cvtepu8_epi32(a), _mm256_cvtepu8_epi32(_mm_srli_si128(a, 8))); }
template <int N> EMULATED __m512i shift_right(__m512i a) { return join(_mm256_srai_epi32(low(a), N), _mm256_srai_epi32(high(a), N)); }

// VCVTNE2PS2BF16: denormals count as zero, NaN becomes quiet, everything else rounds to nearest even.
inline uint16_t to_bf16(uint32_t bits) {
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude < 0x00800000) return (uint16_t)(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline __m512i two_to_bf16(__m512 upper, __m512 lower) {
  uint32_t in[32];
  uint16_t out[32];
  _mm512_storeu_ps(in, lower), _mm512_storeu_ps(in + 16, upper);
  for (int i = 0; i < 32; i++) out[i] = to_bf16(in[i]);
  return _mm512_loadu_si512(out);
}

struct TileConfig {  // what LDTILECFG reads
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "LDTILECFG reads 64 bytes");
struct Tile { uint8_t bytes[16][64]; };
inline thread_local TileConfig config;  // all zero: the tiles are in their initial state, and any use of them faults
inline thread_local Tile tiles[8];

inline void fault_unless(bool ok, const char *what) {
  if (ok) return;
  fprintf(stderr, "emulated tiles: %s\n", what);
  abort();
}
inline void check_tile(int t) { fault_unless(config.palette == 1 && config.rows[t] && config.row_bytes[t], "the tile is not configured"); }

inline void load_config(const void *from) {
  memcpy(&config, from, sizeof config);
  fault_unless(config.palette == 1 && config.start_row == 0, "unknown palette or restart row");
  for (uint8_t b : config.reserved) fault_unless(b == 0, "reserved bytes of the configuration are not zero");
  for (int t = 0; t < 16; t++) {
    fault_unless(config.rows[t] <= 16 && config.row_bytes[t] <= 64, "a tile is configured too large");
    fault_unless(t < 8 || (!config.rows[t] && !config.row_bytes[t]), "there are only eight tiles");
  }
  memset(tiles, 0, sizeof tiles);
}
inline void release() { memset(&config, 0, sizeof config); }
inline void zero(int t) { check_tile(t), memset(&tiles[t], 0, sizeof(Tile)); }
inline void load(int t, const void *base, int64_t stride) {
  zero(t);
  for (int r = 0; r < config.rows[t]; r++) memcpy(tiles[t].bytes[r], (const uint8_t *)base + r * stride, config.row_bytes[t]);
}
inline void store(int t, void *base, int64_t stride) {
  check_tile(t);
  for (int r = 0; r < config.rows[t]; r++) memcpy((uint8_t *)base + r * stride, tiles[t].bytes[r], config.row_bytes[t]);
}

EMULATED float without_denormal(uint32_t bits) {
  if ((bits & 0x7f800000) == 0) bits &= 0x80000000;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
EMULATED float flushed(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return without_denormal(bits);
}
// TDPBF16PS: even and odd columns are summed apart, then together, then onto C. The caller owns the order of pairs: ascending.
inline void multiply_bf16(int c, int a, int b) {
  check_tile(c), check_tile(a), check_tile(b);
  fault_unless(c != a && c != b && a != b, "operands must be three different tiles");
  fault_unless(config.rows[c] == config.rows[a] && config.row_bytes[c] == config.row_bytes[b] &&
                   config.row_bytes[a] == 4 * config.rows[b] && config.row_bytes[c] % 4 == 0,
               "tile shapes do not fit together");
  const int n = config.row_bytes[c] / 4;
  for (int m = 0; m < config.rows[c]; m++) {
    float even[16] = {}, odd[16] = {}, to[16];
    for (int k = 0; k < config.rows[b]; k++) {
      uint32_t left, right[16];
      memcpy(&left, tiles[a].bytes[m] + 4 * k, 4);
      memcpy(right, tiles[b].bytes[k], 64);
      const float left_even = without_denormal(left << 16), left_odd = without_denormal(left & 0xffff0000);
      for (int i = 0; i < n; i++) even[i] = flushed(__builtin_fmaf(left_even, without_denormal(right[i] << 16), even[i]));
      for (int i = 0; i < n; i++) odd[i] = flushed(__builtin_fmaf(left_odd, without_denormal(right[i] & 0xffff0000), odd[i]));
    }
    memcpy(to, tiles[c].bytes[m], 64);
    for (int i = 0; i < n; i++) to[i] = flushed(flushed(to[i]) + flushed(even[i] + odd[i]));
    memcpy(tiles[c].bytes[m], to, 64);
  }
}

}  // namespace emulated

#define _mm512_cvtepi32_ps(a) emulated::to_ps(a)
#define _mm512_cvtps_epi32(a) emulated::to_epi32(a)
#define _mm512_cvtph_ps(a) emulated::from_f16(a)
#define _mm512_cvtps_ph(a, rounding) emulated::to_f16(a)
#define _mm512_cvtepi8_epi32(a) emulated::from_i8(a)
#define _mm512_cvtepu8_epi32(a) emulated::from_u8(a)
#define _mm512_srai_epi32(a, n) emulated::shift_right<n>(a)
#define _mm512_cvtne2ps_pbh(a, b) emulated::two_to_bf16(a, b)

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(from) emulated::load_config(from)
#define _tile_release() emulated::release()
#define _tile_loadd(t, base, stride) emulated::load(t, base, stride)
#define _tile_stored(t, base, stride) emulated::store(t, base, stride)
#define _tile_zero(t) emulated::zero(t)
#define _tile_dpbf16ps(c, a, b) emulated::multiply_bf16(c, a, b)
