// What a packed matrix says: codes, scales and numbers out of its panels, for every format. Knows nothing of products.
#pragma once
#include "ops.h"
#include "simd.h"

namespace ISA_NAMESPACE {

constexpr int PAIRS = BLOCK / 2;
constexpr int PREFETCH_AHEAD = 2048;  // bytes

// Twice the value of every e2m1 number, plus 16.
alignas(16) constexpr uint8_t E2M1_CODES[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

template <Format F> constexpr Scheme S = scheme(F);
template <Format F> constexpr int64_t BLOCK_BYTES = record_bytes(S<F>) * BLOCK / S<F>.span;
template <Format F> constexpr int GROUPS = BLOCK / S<F>.group;  // scale groups per 32 columns

// ---- codes. Byte vector I of a 32-column block holds four columns of 16 rows: those of half I % 2 of octet I / 2 (formats.h)
template <int WIDTH, int TO, int I> INLINE i16x32 plane_bytes(const uint8_t *plane) {
  constexpr int fields = 8 / WIDTH;
  return byte_field<I % fields * WIDTH, WIDTH, TO>(load_words(plane + I / fields * 64));
}
template <int BITS, int I> INLINE i16x32 octet_half(const uint8_t *p) {
  if constexpr (BITS == 8) return load_words(p + I * 64);
  if constexpr (BITS == 4) return plane_bytes<4, 0, I>(p);
  if constexpr (BITS == 2) return plane_bytes<2, 0, I>(p);
  if constexpr (BITS == 5) return plane_bytes<4, 0, I>(p) | plane_bytes<1, 4, I>(p + 4 * 64);
  if constexpr (BITS == 6) return plane_bytes<4, 0, I>(p) | plane_bytes<2, 4, I>(p + 4 * 64);
  if constexpr (BITS == 3) return plane_bytes<2, 0, I>(p) | plane_bytes<1, 2, I>(p + 2 * 64);
}
// Eight columns are two vectors of bytes, or four of words, two columns each.
template <class Code> constexpr int OCTET = 8 / Coded<Code>::UNIT;

// ---- scales of group g of a span
template <Format F> INLINE f32x16 decode_scale(const uint8_t *scales, int g) {
  if constexpr (S<F>.e2m1) return load_pow2(scales) * splat(0.5f);
  if constexpr (S<F>.span == BLOCK) return load_f16((const uint16_t *)scales);
  constexpr int groups = S<F>.span / S<F>.group;
  const uint8_t *d = scales + groups * PANEL * (S<F>.has_min ? 2 : 1);
  return load_i8((const int8_t *)scales + g * PANEL) * load_f16((const uint16_t *)d);
}
template <Format F> INLINE f32x16 decode_min(const uint8_t *scales, int g) {
  if constexpr (S<F>.span == BLOCK) return load_f16((const uint16_t *)(scales + 2 * PANEL));
  constexpr int groups = S<F>.span / S<F>.group;
  return load_u8(scales + (groups + g) * PANEL) * load_f16((const uint16_t *)(scales + groups * PANEL * 2 + 2 * PANEL));
}

// ---- where a block's codes and scales come from
template <Format F> struct Packed {
  const uint8_t *panel;
  // Weights stream from memory faster than the processor's own prefetchers run ahead: 13 to 18 GB/s on one Zen 3 core.
  INLINE void prefetch(int64_t b) const {
    for (int64_t i = 0; i < BLOCK_BYTES<F>; i += 64) __builtin_prefetch(panel + b * BLOCK_BYTES<F> + PREFETCH_AHEAD + i);
  }
  // Octet O of a block: the codes of its columns 8 O to 8 O + 7, as the activations of that form are.
  template <class Code, int O> INLINE void octet(int64_t b, i16x32 (&out)[OCTET<Code>]) const {
    constexpr int blocks = S<F>.span / BLOCK, bits = S<F>.bits;
    const uint8_t *planes = panel + b / blocks * record_bytes(S<F>) + b % blocks * bits * 64;
    if constexpr (sizeof(Code) == 2 && bits == 4 && !S<F>.e2m1) {  // one operation less than by way of bytes
      const i16x32 plane = load_words(planes + O * 64);
      out[0] = bit_field<0, 4, 0>(plane), out[1] = bit_field<4, 4, 0>(plane);
      out[2] = bit_field<8, 4, 0>(plane), out[3] = bit_field<12, 4, 0>(plane);
      return;
    }
    i16x32 first = octet_half<bits, 2 * O>(planes), second = octet_half<bits, 2 * O + 1>(planes);
    if constexpr (S<F>.e2m1) first = look_up(E2M1_CODES, first), second = look_up(E2M1_CODES, second);
    if constexpr (sizeof(Code) == 1) {
      out[0] = first, out[1] = second;
    } else if constexpr (bits == 8) {  // the one width whose codes have a sign
      out[0] = low_bytes(first), out[1] = low_bytes(second), out[2] = high_bytes(first), out[3] = high_bytes(second);
    } else {
      out[0] = bit_field<0, 8, 0>(first), out[1] = bit_field<0, 8, 0>(second);
      out[2] = bit_field<8, 8, 0>(first), out[3] = bit_field<8, 8, 0>(second);
    }
  }
  INLINE const uint8_t *scales(int64_t b) const {
    return panel + b / (S<F>.span / BLOCK) * record_bytes(S<F>) + code_bytes(S<F>);
  }
  INLINE f32x16 scale(int64_t b, int g) const { return decode_scale<F>(scales(b), (int)(b % (S<F>.span / BLOCK)) * GROUPS<F> + g); }
  INLINE f32x16 min(int64_t b, int g) const { return decode_min<F>(scales(b), (int)(b % (S<F>.span / BLOCK)) * GROUPS<F> + g); }
};

template <Format F> struct FloatPanel {
  const uint8_t *panel, *values;
  INLINE FloatPanel(const uint8_t *panel, int64_t n_cols) : panel(panel), values(panel + shared_scale_bytes(S<F>, (size_t)n_cols)) {}
  INLINE f32x16 column(int64_t k) const {
    if constexpr (F == Format::F32) return load((const float *)values + k * PANEL);
    if constexpr (F == Format::F16) return load_f16((const uint16_t *)values + k * PANEL);
    if constexpr (F == Format::F8_E4M3) return load_f8(values + k * PANEL) * splat(((const float *)panel)[k / S<F>.shared]);
    const i16x32 pair = load_words(values + k / 2 * 64);
    return k & 1 ? bf16_odd(pair) : bf16_even(pair);
  }
};

// ---- one row as floats: the embedding lookup
template <Format F, int V> INLINE void row_codes(const Packed<F> &w, int64_t b, int lane, int16_t *q) {
  if constexpr (V < PAIRS) {
    i16x32 four[4];
    w.template octet<int16_t, V / 4>(b, four);
    for (int i = V; i < V + 4; i++) {
      int16_t codes[32];
      store_words(codes, four[i - V]);
      q[2 * i] = codes[2 * lane], q[2 * i + 1] = codes[2 * lane + 1];
    }
    row_codes<F, V + 4>(w, b, lane, q);
  }
}
template <Format F> void unpack_row_of(const Weight &w, int64_t row, float *out) {
  const uint8_t *panel = w.data + row / PANEL * w.panel_size();
  const int lane = (int)(row % PANEL);
  float v[PANEL];
  if constexpr (!S<F>.integer) {
    for (int64_t k = 0; k < w.n_cols; k++) store(v, FloatPanel<F>(panel, w.n_cols).column(k)), out[k] = v[lane];
  } else {
    const Packed<F> packed{panel};
    for (int64_t b = 0; b < w.n_cols / BLOCK; b++) {
      int16_t q[BLOCK];
      row_codes<F, 0>(packed, b, lane, q);
      for (int g = 0; g < GROUPS<F>; g++) {
        store(v, packed.scale(b, g));
        const float scale = v[lane];
        float min = 0;
        if constexpr (S<F>.has_min) store(v, packed.min(b, g)), min = v[lane];
        constexpr int zero = S<F>.zero >= 0 ? 1 << S<F>.zero : 0;
        for (int i = g * S<F>.group; i < (g + 1) * S<F>.group && i < BLOCK; i++) {
          out[b * BLOCK + i] = (float)(q[i] - zero) * scale + min;
        }
      }
    }
  }
}
using UnpackRow = void (*)(const Weight &, int64_t, float *);
constexpr UnpackRow UNPACK_ROWS[(int)Format::COUNT] = {
    unpack_row_of<Format::F32>,  unpack_row_of<Format::F16>,  unpack_row_of<Format::BF16>, unpack_row_of<Format::Q8_0>,
    unpack_row_of<Format::Q4_0>, unpack_row_of<Format::Q4_1>, unpack_row_of<Format::Q5_0>, unpack_row_of<Format::Q5_1>,
    unpack_row_of<Format::Q2_K>, unpack_row_of<Format::Q3_K>, unpack_row_of<Format::Q4_K>, unpack_row_of<Format::Q5_K>,
    unpack_row_of<Format::Q6_K>, unpack_row_of<Format::MXFP4>, unpack_row_of<Format::F8_E4M3>};
void unpack_row(const Weight &w, int64_t row, float *out) { UNPACK_ROWS[(int)w.format](w, row, out); }

}  // namespace ISA_NAMESPACE
