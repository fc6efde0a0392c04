// Rounding numbers to a quantised format, 16 rows at a time: lane r of every vector belongs to row r of a panel.
//
// Nothing is added across lanes and nothing is fused, so every level gives the same bytes. Knows no source format and no file.
#pragma once
#include "ops.h"
#include "simd.h"

namespace ISA_NAMESPACE {

INLINE f32x16 nearest(f32x16 x) { return (x + splat(12582912.0f)) - splat(12582912.0f); }  // ties to even; below 2^22
INLINE f32x16 clamp(f32x16 x, float lo, float hi) { return min(max(x, splat(lo)), splat(hi)); }
// a / b, but 0 where b is not above 1e-30, whose inverse could be infinite.
INLINE f32x16 divide(f32x16 a, f32x16 b) {
  const f32x16 least = splat(1e-30f);
  return select_less(least, b, a / max(b, least), splat(0));
}

// Nearest f16 of 16 numbers >= 0, ties to even, written to `to` and returned as the numbers that they now are. What is too large
// becomes infinite.
INLINE f32x16 store_f16(uint16_t *to, f32x16 x, uint16_t sign = 0) {
  float values[16];
  uint16_t halves[16];
  store(values, x);
  for (int i = 0; i < 16; i++) {
    uint32_t bits;
    const float shifted = values[i] * 16777216.0f + 8388608.0f;  // below 2^-14 the unit is 2^-24: now it is 1
    memcpy(&bits, values[i] < 6.103515625e-05f ? &shifted : &values[i], 4);
    if (values[i] < 6.103515625e-05f) {
      halves[i] = (uint16_t)(bits - 0x4b000000);
    } else {
      bits += 0xfff + (bits >> 13 & 1);
      halves[i] = bits >= 0x47800000 ? 0x7c00 : (uint16_t)((bits - 0x38000000) >> 13);
    }
  }
  const f32x16 stored = load_f16(halves);
  for (int i = 0; i < 16; i++) halves[i] |= sign;
  memcpy(to, halves, 32);
  return stored;
}

// Whether 16 lanes of a poison, and of the scales that came out, are finite.
INLINE bool all_finite(f32x16 poison, f32x16 scale) {
  float lanes[16], sum = 0;
  store(lanes, poison + scale * splat(0));
  for (float lane : lanes) sum += lane;
  return sum == 0;
}

// The code planes of 32 columns (formats.h) from codes[32][16].
template <int BITS> INLINE void store_planes(uint8_t *planes, const int16_t *codes) {
  constexpr int FIELDS = 8 / BITS;
  for (int j = 0; j < BITS; j++)
    for (int lane = 0; lane < PANEL; lane++) {
      uint32_t four = 0;
      for (int f = 0; f < FIELDS; f++)
        for (int m = 0; m < 4; m++) {
          const int half = j * FIELDS + f, column = half / 2 * 8 + OCTET_ORDER[half % 2 * 4 + m];
          four |= ((uint32_t)codes[column * PANEL + lane] & ((1u << BITS) - 1)) << (8 * m + BITS * f);
        }
      memcpy(planes + j * 64 + lane * 4, &four, 4);
    }
}

// Multiples of a scale, from -127 to 127. The scale is rounded first, so that its own rounding costs nothing.
INLINE bool round_to_q8_0(const float *x, uint8_t *record) {
  f32x16 largest = splat(0), poison = splat(0);
  for (int k = 0; k < BLOCK; k++) {
    const f32x16 v = load(x + k * PANEL);
    largest = max(largest, abs(v)), poison = poison + v * splat(0);
  }
  const f32x16 scale = store_f16((uint16_t *)(record + BLOCK * PANEL), largest / splat(127));
  const f32x16 inverse = divide(splat(1), scale);
  int16_t codes[BLOCK * PANEL];
  for (int k = 0; k < BLOCK; k++) store_i16(codes + k * PANEL, round_to_int(clamp(load(x + k * PANEL) * inverse, -127, 127)));
  store_planes<8>(record, codes);
  return all_finite(poison, scale);
}

// x ~ scale * code + offset, with offset <= 0 and codes from 0 to 15, of one group of 32 columns.
struct Fit { f32x16 scale, offset, gain; };  // gain: by how much it lowers the sum of squared errors below that of zeros

INLINE f32x16 code_of(f32x16 x, f32x16 offset, f32x16 inverse) { return clamp(nearest((x - offset) * inverse), 0, 15); }

// The best scale and offset for the codes that another scale, of which `inverse` is, and another offset give.
INLINE Fit refit(const float *x, f32x16 sum, f32x16 offset, f32x16 inverse) {
  f32x16 q1 = splat(0), q2 = splat(0), xq = splat(0);
  for (int k = 0; k < BLOCK; k++) {
    const f32x16 v = load(x + k * PANEL), q = code_of(v, offset, inverse);
    q1 = q1 + q, q2 = q2 + q * q, xq = xq + v * q;
  }
  const f32x16 n = splat(BLOCK), zero = splat(0), determinant = n * q2 - q1 * q1;  // of whole numbers: exact
  const f32x16 free_scale = divide(n * xq - sum * q1, determinant), free_offset = divide(q2 * sum - q1 * xq, determinant);
  const f32x16 through_zero = divide(xq, q2);
  Fit best{through_zero, zero, through_zero * xq};
  const f32x16 usable = select_less(zero, free_scale, free_offset, zero);
  best.scale = select_less(usable, zero, free_scale, best.scale);
  best.gain = select_less(usable, zero, free_scale * xq + free_offset * sum, best.gain);
  best.offset = select_less(usable, zero, free_offset, zero);
  return best;
}

INLINE Fit better(const Fit &a, const Fit &b) {
  return {select_less(a.gain, b.gain, b.scale, a.scale), select_less(a.gain, b.gain, b.offset, a.offset), max(a.gain, b.gain)};
}

// Where the search starts: a group's range in steps, and by how many of 15 parts of it code 0 lies above its lowest number, as the
// ends of a range are rarely worth their price. The seven pairs that together came closest to the best of a fine grid.
struct Start { float steps, shift; };
constexpr Start STARTS[] = {{15.0f, 0.0f}, {15.4f, 0.25f}, {15.0f, -0.25f}, {15.4f, 0.5f}, {14.2f, 0.0f}, {15.8f, 0.25f}, {14.2f, 0.25f}};

INLINE Fit fit_group(const float *x) {
  f32x16 lo = splat(0), hi = load(x), sum = splat(0);
  for (int k = 0; k < BLOCK; k++) {
    const f32x16 v = load(x + k * PANEL);
    lo = min(lo, v), hi = max(hi, v), sum = sum + v;
  }
  const f32x16 range = hi - lo;
  Fit best{splat(0), lo, splat(0)};  // all numbers alike and negative, or zero
  for (const Start &s : STARTS) best = better(best, refit(x, sum, lo + range * splat(s.shift / 15), divide(splat(s.steps), range)));
  for (int again = 0; again < 2; again++) best = better(best, refit(x, sum, best.offset, divide(splat(1), best.scale)));
  return best;
}

// Four bits for each of 32 numbers, whose scale and offset are rounded before the codes are chosen.
INLINE bool round_to_q4_1(const float *x, uint8_t *record) {
  f32x16 poison = splat(0), lowest = splat(0);
  for (int k = 0; k < BLOCK; k++) poison = poison + load(x + k * PANEL) * splat(0), lowest = min(lowest, load(x + k * PANEL));
  Fit fit = fit_group(x);
  const f32x16 least = splat(-65504);  // that f16 has: a fit may overshoot it, numbers may not
  fit.offset = select_less(lowest, least, fit.offset, max(fit.offset, least));
  uint16_t *scales = (uint16_t *)(record + BLOCK * PANEL / 2);
  const f32x16 scale = store_f16(scales, fit.scale), offset = splat(0) - store_f16(scales + PANEL, splat(0) - fit.offset, 0x8000);
  const f32x16 inverse = divide(splat(1), scale);
  int16_t codes[BLOCK * PANEL];
  for (int k = 0; k < BLOCK; k++) store_i16(codes + k * PANEL, round_to_int(code_of(load(x + k * PANEL), offset, inverse)));
  store_planes<4>(record, codes);
  return all_finite(poison, scale + offset);
}

struct Choice { f32x16 scale, offset, error; };  // scale and offset: in units of d and of dmin

// The better of a choice, and of another scale with the offset that suits it.
INLINE Choice try_scale(const float *x, f32x16 sum, f32x16 d, f32x16 dmin, const Choice &best, f32x16 scale) {
  const f32x16 step = d * scale, inverse = divide(splat(1), step);
  f32x16 q1 = splat(0), error = splat(0);
  for (int k = 0; k < BLOCK; k++) q1 = q1 + code_of(load(x + k * PANEL), splat(0) - dmin * best.offset, inverse);
  const f32x16 offset = clamp(nearest(divide((step * q1 - sum) * splat(1.0f / BLOCK), dmin)), 0, 63);
  for (int k = 0; k < BLOCK; k++) {
    const f32x16 v = load(x + k * PANEL) + dmin * offset, off = v - step * clamp(nearest(v * inverse), 0, 15);
    error = error + off * off;
  }
  return {select_less(error, best.error, scale, best.scale), select_less(error, best.error, offset, best.offset), min(error, best.error)};
}

// Four bits for each of 256 numbers, six for the scale and the minimum of each 32, in units of two f16.
INLINE bool round_to_q4_k(const float *x, uint8_t *record) {
  constexpr int GROUPS = 8, STRIDE = BLOCK * PANEL;
  Fit fits[GROUPS];
  f32x16 largest = splat(0), lowest = splat(0), poison = splat(0);
  for (int g = 0; g < GROUPS; g++) {
    fits[g] = fit_group(x + g * STRIDE);
    largest = max(largest, fits[g].scale), lowest = min(lowest, fits[g].offset);
  }
  for (int k = 0; k < GROUPS * BLOCK; k++) poison = poison + load(x + k * PANEL) * splat(0);
  uint8_t *scales = record + GROUPS * BLOCK * PANEL / 2;
  const f32x16 d = store_f16((uint16_t *)(scales + 2 * GROUPS * PANEL), largest / splat(63));
  const f32x16 dmin = store_f16((uint16_t *)(scales + 2 * GROUPS * PANEL + 2 * PANEL), (splat(0) - lowest) / splat(63), 0x8000);
  for (int g = 0; g < GROUPS; g++, x += STRIDE, scales += PANEL) {
    f32x16 sum = splat(0);
    for (int k = 0; k < BLOCK; k++) sum = sum + load(x + k * PANEL);
    const f32x16 scale = clamp(nearest(divide(fits[g].scale, d)), 0, 63);
    Choice best{scale, clamp(nearest(divide(splat(0) - fits[g].offset, dmin)), 0, 63), splat(3e38f)};
    for (int change = -1; change <= 1; change++) best = try_scale(x, sum, d, dmin, best, clamp(scale + splat((float)change), 0, 63));
    const f32x16 offset = splat(0) - dmin * best.offset, inverse = divide(splat(1), d * best.scale);
    int16_t codes[STRIDE], bytes[2 * PANEL];
    for (int k = 0; k < BLOCK; k++) store_i16(codes + k * PANEL, round_to_int(code_of(load(x + k * PANEL), offset, inverse)));
    store_planes<4>(record + g * STRIDE / 2, codes);
    store_i16(bytes, round_to_int(best.scale)), store_i16(bytes + PANEL, round_to_int(best.offset));
    for (int lane = 0; lane < PANEL; lane++) scales[lane] = (uint8_t)bytes[lane], scales[GROUPS * PANEL + lane] = (uint8_t)bytes[PANEL + lane];
  }
  return all_finite(poison, d + dmin);
}

bool round_span(const float *columns, Format to, uint8_t *record) {
  if (to == Format::Q8_0) return round_to_q8_0(columns, record);
  return to == Format::Q4_1 ? round_to_q4_1(columns, record) : round_to_q4_k(columns, record);
}

}  // namespace ISA_NAMESPACE
