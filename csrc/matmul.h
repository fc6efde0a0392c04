// Matrix products over packed panels, written once for every format and level.
//
// One panel (16 rows) at a time. With few tokens the codes are decoded in registers as they stream from memory; with many,
// a slab of the panel is decoded once into the L1 cache and applied to all tokens. Both run the same arithmetic in the same
// order (per output: one fused multiply-add chain over ascending groups), so a token's result never depends on its company.
#pragma once
#include "ops.h"
#include "simd.h"

namespace ISA_NAMESPACE {

constexpr int SLAB_COLS = 256; // columns decoded at once: 16 KB of codes or floats
constexpr int PAIRS = BLOCK / 2;
constexpr int PREFETCH_AHEAD = 2048;  // bytes

// Twice the value of every e2m1 number, plus 16.
alignas(16) constexpr uint8_t E2M1_CODES[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

template <Format F> constexpr Scheme S = scheme(F);
template <Format F> constexpr int64_t BLOCK_BYTES = record_bytes(S<F>) * BLOCK / S<F>.span;
template <Format F> constexpr int GROUPS = BLOCK / S<F>.group;  // scale groups per 32 columns

// ---- codes: vector v of a 32-column block holds columns 2v and 2v + 1 of 16 rows
template <int WIDTH, int TO, int V> INLINE i16x32 plane_field(const uint8_t *plane) {
  constexpr int fields = 16 / WIDTH;
  return bit_field<V % fields * WIDTH, WIDTH, TO>(load_words(plane + V / fields * 64));
}
template <int BITS, int V> INLINE i16x32 decode_codes(const uint8_t *p) {
  if constexpr (BITS == 8 && V % 2 == 0) return low_bytes(load_words(p + V / 2 * 64));
  if constexpr (BITS == 8 && V % 2 == 1) return high_bytes(load_words(p + V / 2 * 64));
  if constexpr (BITS == 4) return plane_field<4, 0, V>(p);
  if constexpr (BITS == 2) return plane_field<2, 0, V>(p);
  if constexpr (BITS == 5) return plane_field<4, 0, V>(p) | plane_field<1, 4, V>(p + 4 * 64);
  if constexpr (BITS == 6) return plane_field<4, 0, V>(p) | plane_field<2, 4, V>(p + 4 * 64);
  if constexpr (BITS == 3) return plane_field<2, 0, V>(p) | plane_field<1, 2, V>(p + 2 * 64);
}

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

// ---- where a block's codes and scales come from: the packed panel, or a decoded slab
template <Format F> struct Packed {
  const uint8_t *panel;
  // Weights stream from memory faster than the processor's own prefetchers run ahead: 13 to 18 GB/s on one Zen 3 core.
  INLINE void prefetch(int64_t b) const {
    for (int64_t i = 0; i < BLOCK_BYTES<F>; i += 64) __builtin_prefetch(panel + b * BLOCK_BYTES<F> + PREFETCH_AHEAD + i);
  }
  // Code vectors V to V + 3 of a block.
  template <int V> INLINE void four_codes(int64_t b, i16x32 (&out)[4]) const {
    constexpr int blocks = S<F>.span / BLOCK;
    const uint8_t *planes = panel + b / blocks * record_bytes(S<F>) + b % blocks * S<F>.bits * 64;
    if constexpr (S<F>.e2m1) {  // fields f and f + 2 are the two bytes of a word: one table look-up serves both
      const i16x32 plane = load_words(planes + V / 4 * 64);
      const i16x32 even = look_up(E2M1_CODES, nibbles<0>(plane)), odd = look_up(E2M1_CODES, nibbles<1>(plane));
      out[0] = bit_field<0, 8, 0>(even), out[1] = bit_field<0, 8, 0>(odd);
      out[2] = bit_field<8, 8, 0>(even), out[3] = bit_field<8, 8, 0>(odd);
    } else {
      constexpr int bits = S<F>.bits;
      out[0] = decode_codes<bits, V>(planes), out[1] = decode_codes<bits, V + 1>(planes);
      out[2] = decode_codes<bits, V + 2>(planes), out[3] = decode_codes<bits, V + 3>(planes);
    }
  }
  INLINE const uint8_t *scales(int64_t b) const {
    return panel + b / (S<F>.span / BLOCK) * record_bytes(S<F>) + code_bytes(S<F>);
  }
  INLINE f32x16 scale(int64_t b, int g) const { return decode_scale<F>(scales(b), (int)(b % (S<F>.span / BLOCK)) * GROUPS<F> + g); }
  INLINE f32x16 min(int64_t b, int g) const { return decode_min<F>(scales(b), (int)(b % (S<F>.span / BLOCK)) * GROUPS<F> + g); }
};
template <Format F> struct Slab {
  uint8_t *code_rows;  // [SLAB_COLS / 2][64]
  float *scale_rows;   // [SLAB_COLS / group][16]
  float *min_rows;
  const uint8_t *next;  // what is decoded next, fetched while the first tokens take this; null once it has been
  INLINE void prefetch(int64_t b) const {
    if (next)
      for (int64_t i = 0; i < BLOCK_BYTES<F>; i += 64) __builtin_prefetch(next + b * BLOCK_BYTES<F> + i);
  }
  template <int V> INLINE void four_codes(int64_t b, i16x32 (&out)[4]) const {
    for (int i = 0; i < 4; i++) out[i] = load_words(code_rows + (b * PAIRS + V + i) * 64);
  }
  INLINE f32x16 scale(int64_t b, int g) const { return load(scale_rows + (b * GROUPS<F> + g) * PANEL); }
  INLINE f32x16 min(int64_t b, int g) const { return load(min_rows + (b * GROUPS<F> + g) * PANEL); }

  template <int V> INLINE void decode_from(const Packed<F> &packed, int64_t from, int64_t b) const {
    if constexpr (V < PAIRS) {
      i16x32 four[4];
      packed.template four_codes<V>(from + b, four);
      for (int i = 0; i < 4; i++) store_words(code_rows + (b * PAIRS + V + i) * 64, four[i]);
      decode_from<V + 4>(packed, from, b);
    }
  }
  INLINE void decode(const Packed<F> &packed, int64_t from, int64_t n_blocks) const {
    for (int64_t b = 0; b < n_blocks; b++) {
      decode_from<0>(packed, from, b);
      for (int g = 0; g < GROUPS<F>; g++) {
        store(scale_rows + (b * GROUPS<F> + g) * PANEL, packed.scale(from + b, g));
        if constexpr (S<F>.has_min) store(min_rows + (b * GROUPS<F> + g) * PANEL, packed.min(from + b, g));
      }
    }
  }
};

// ---- integer products. T tokens from t0, all in one group of L interleaved lanes
template <int T, int L, int V, int V_END, class Source>
INLINE void dot_pairs(const Source &w, int64_t b, const int16_t *a, i32x16 (&sum)[T]) {
  if constexpr (V < V_END) {
    i16x32 four[4];
    w.template four_codes<V>(b, four);
    for (int i = 0; i < 4; i++)
      for (int t = 0; t < T; t++) sum[t] = dot_pair(sum[t], four[i], a + ((V + i) * L + t) * 2);
    dot_pairs<T, L, V + 4, V_END>(w, b, a, sum);
  }
}
// Column block xb of the activations, seen from token t0.
template <Format F, int L> struct BlockView {
  const int16_t *codes;
  const float *scale, *scaled;  // scaled, sums: of the first group
  const int32_t *sums;
  INLINE BlockView(const Activations &x, int t0, int64_t xb) {
    const int64_t n_blocks = x.n_cols / BLOCK, group = t0 / L, lane = t0 % L;
    constexpr bool halves = GROUPS<F> == 2;
    codes = x.codes + ((group * n_blocks + xb) * PAIRS * L + lane) * 2;
    scale = x.scales + (group * n_blocks + xb) * L + lane;
    const int64_t sum = (group * n_blocks + xb) * GROUPS<F> * L + lane;
    scaled = (halves ? x.scaled16 : x.scaled32) + sum;
    sums = (halves ? x.sums16 : x.sums32) + sum;
  }
};
template <Format F, int T, int L, int G, class Source>
INLINE void accumulate_groups(const Source &w, int64_t b, const BlockView<F, L> &x, f32x16 (&acc)[T]) {
  if constexpr (G < GROUPS<F>) {
    i32x16 sum[T];
    for (int t = 0; t < T; t++) {
      if constexpr (S<F>.zero >= 0)
        sum[t] = negate(shift_left<S<F>.zero>(int_splat(x.sums[G * L + t])));
      else
        sum[t] = int_splat(0);
    }
    dot_pairs<T, L, G * PAIRS / GROUPS<F>, (G + 1) * PAIRS / GROUPS<F>>(w, b, x.codes, sum);
    const f32x16 scale = w.scale(b, G);
    for (int t = 0; t < T; t++) acc[t] = fma(to_float(sum[t]), scale * splat(x.scale[t]), acc[t]);
    if constexpr (S<F>.has_min) {
      const f32x16 min = w.min(b, G);
      for (int t = 0; t < T; t++) acc[t] = fma(min, splat(x.scaled[G * L + t]), acc[t]);
    }
    accumulate_groups<F, T, L, G + 1>(w, b, x, acc);
  }
}
// acc[t] += the products of blocks [0, n_blocks) of `w`, which are columns from block x_block of the activations.
template <Format F, int T, int L, class Source>
INLINE void dot_blocks(const Source &w, int64_t n_blocks, const Activations &x, int64_t x_block, int t0, f32x16 (&acc)[T]) {
  for (int64_t b = 0; b < n_blocks; b++) {
    w.prefetch(b);
    accumulate_groups<F, T, L, 0>(w, b, BlockView<F, L>(x, t0, x_block + b), acc);
  }
}

// ---- float products
template <int T, int L> INLINE void dot_column(f32x16 w, const float *a, f32x16 (&acc)[T]) {
  for (int t = 0; t < T; t++) acc[t] = fma(w, splat(a[t]), acc[t]);
}
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

// ---- one panel for all tokens; sums: [n_tokens, 16]. Unused lanes of the last group are computed and ignored.
template <Format F, int T, int L> INLINE void panel_direct(const uint8_t *panel, const Activations &x, float *sums) {
  f32x16 acc[T];
  for (int t = 0; t < T; t++) acc[t] = splat(0);
  if constexpr (S<F>.integer) {
    dot_blocks<F, T, L>(Packed<F>{panel}, x.n_cols / BLOCK, x, 0, 0, acc);
  } else {
    const FloatPanel<F> w(panel, x.n_cols);
    for (int64_t k = 0; k + 1 < x.n_cols; k += 2) {
      __builtin_prefetch(w.values + k * record_bytes(S<F>) + PREFETCH_AHEAD);
      dot_column<T, L>(w.column(k), x.values + k * L, acc);
      dot_column<T, L>(w.column(k + 1), x.values + (k + 1) * L, acc);
    }
    if (x.n_cols & 1) dot_column<T, L>(w.column(x.n_cols - 1), x.values + (x.n_cols - 1) * L, acc);
  }
  for (int t = 0; t < T; t++) store(sums + t * PANEL, acc[t]);
}

template <Format F>
INLINE void slab_tokens(const Slab<F> &slab, const float *floats, int64_t k0, int64_t cols, const Activations &x, int t0, float *sums) {
  f32x16 acc[LANES];
  for (int t = 0; t < LANES; t++) acc[t] = k0 ? load(sums + (t0 + t) * PANEL) : splat(0);
  if constexpr (S<F>.integer) {
    dot_blocks<F, LANES, LANES>(slab, cols / BLOCK, x, k0 / BLOCK, t0, acc);
  } else {
    const float *a = x.values + x.at(t0, k0, x.n_cols);
    for (int64_t k = 0; k < cols; k++) dot_column<LANES, LANES>(load(floats + k * PANEL), a + k * LANES, acc);
  }
  for (int t = 0; t < LANES; t++) store(sums + (t0 + t) * PANEL, acc[t]);
}

template <Format F> void panel_slabs(const uint8_t *panel, const Activations &x, int n_tokens, float *sums, uint8_t *scratch) {
  float *floats = (float *)scratch;
  Slab<F> slab{scratch, (float *)(scratch + SLAB_COLS * PANEL * 2), (float *)(scratch + SLAB_COLS * PANEL * 3), nullptr};
  static_assert(!S<F>.integer || S<F>.group >= 16, "scales of a slab must fit their part of the scratch");
  for (int64_t k0 = 0; k0 < x.n_cols; k0 += SLAB_COLS) {
    const int64_t cols = x.n_cols - k0 < SLAB_COLS ? x.n_cols - k0 : SLAB_COLS;
    if constexpr (S<F>.integer)
      slab.decode(Packed<F>{panel}, k0 / BLOCK, cols / BLOCK);
    else
      for (int64_t k = 0; k < cols; k++) store(floats + k * PANEL, FloatPanel<F>(panel, x.n_cols).column(k0 + k));
    slab.next = panel + (k0 + cols) / BLOCK * BLOCK_BYTES<F>;
    for (int t = 0; t < n_tokens; t += LANES, slab.next = nullptr) slab_tokens<F>(slab, floats, k0, cols, x, t, sums);
  }
}

template <Format F> void panel_product(const Weight &w, int64_t panel, const Activations &x, int n_tokens, float *sums, uint8_t *scratch) {
  const uint8_t *data = w.data + panel * w.panel_size();
  if (x.lanes == 1) return panel_direct<F, 1, 1>(data, x, sums);
  if (n_tokens <= 2) return panel_direct<F, 2, LANES>(data, x, sums);
  if (n_tokens <= LANES) return panel_direct<F, LANES, LANES>(data, x, sums);
  panel_slabs<F>(data, x, n_tokens, sums, scratch);
}

using PanelProduct = void (*)(const Weight &, int64_t, const Activations &, int, float *, uint8_t *);
constexpr PanelProduct PANEL_PRODUCTS[(int)Format::COUNT] = {
    panel_product<Format::F32>,  panel_product<Format::F16>,  panel_product<Format::BF16>, panel_product<Format::Q8_0>,
    panel_product<Format::Q4_0>, panel_product<Format::Q4_1>, panel_product<Format::Q5_0>, panel_product<Format::Q5_1>,
    panel_product<Format::Q2_K>, panel_product<Format::Q3_K>, panel_product<Format::Q4_K>, panel_product<Format::Q5_K>,
    panel_product<Format::Q6_K>, panel_product<Format::MXFP4>, panel_product<Format::F8_E4M3>};

// ---- results of a panel: bias, activation, residual
INLINE void finish_panel(const Matmul &m, int64_t panel, const float *sums, const float *up_sums) {
  const int64_t row0 = panel * PANEL;
  const int n_rows = (int)(m.w->n_rows - row0 < PANEL ? m.w->n_rows - row0 : PANEL);
  float bias[PANEL] = {}, up_bias[PANEL] = {};
  if (m.bias) memcpy(bias, m.bias + row0, n_rows * sizeof(float));
  if (m.up_bias) memcpy(up_bias, m.up_bias + row0, n_rows * sizeof(float));
  for (int t = 0; t < m.n_tokens; t++) {
    float *out = m.out + t * m.out_stride + row0;
    f32x16 y = load(sums + t * PANEL) + load(bias);
    float tail[PANEL];
    if (m.epilogue == Epilogue::SWIGLU) y = silu(y) * (load(up_sums + t * PANEL) + load(up_bias));
    if (m.epilogue == Epilogue::SWIGLU_CLAMPED) {  // the limit comes first, so that a NaN survives min and max
      const f32x16 limit = splat(m.limit), one = splat(1), gate = min(limit, y);
      const f32x16 up = max(splat(-m.limit), min(limit, load(up_sums + t * PANEL) + load(up_bias)));
      y = gate / (one + exp(splat(-m.alpha) * gate)) * (up + one);
    }
    if (m.epilogue == Epilogue::ADD) {
      if (n_rows < PANEL) memcpy(tail, out, n_rows * sizeof(float));
      y = y + load(n_rows < PANEL ? tail : out);
    }
    if (n_rows == PANEL) {
      store(out, y);
    } else {
      store(tail, y);
      memcpy(out, tail, n_rows * sizeof(float));
    }
  }
}

void matmul(const Matmul &m, int64_t panel0, int64_t panel1, uint8_t *scratch) {
  float *sums = (float *)scratch, *up_sums = sums + MATMUL_TOKENS * PANEL;
  uint8_t *slab = scratch + 2 * MATMUL_TOKENS * PANEL * sizeof(float);
  for (int64_t p = panel0; p < panel1; p++) {
    PANEL_PRODUCTS[(int)m.w->format](*m.w, p, *m.x, m.n_tokens, sums, slab);
    if (m.up) PANEL_PRODUCTS[(int)m.up->format](*m.up, p, *m.x, m.n_tokens, up_sums, slab);
    finish_panel(m, p, sums, up_sums);
  }
}

// ---- one row as floats: the embedding lookup
template <Format F, int V> INLINE void row_codes(const Packed<F> &w, int64_t b, int lane, int16_t *q) {
  if constexpr (V < PAIRS) {
    i16x32 four[4];
    w.template four_codes<V>(b, four);
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
