// Matrix products over packed panels, written once for every format and level.
//
// One panel (16 rows) at a time. With few tokens the codes are decoded in registers as they stream from memory; with many,
// a slab of the panel is decoded once into the L1 cache and applied to all tokens. Both run the same arithmetic in the same
// order (per output: one fused multiply-add chain over ascending groups), so a token's result never depends on its company.
// Code: of the activations, int16_t, or int8_t where those were asked for.
#pragma once
#include "decode.h"

namespace ISA_NAMESPACE {

constexpr int SLAB_COLS = 256;  // columns decoded at once: at most 16 KB of codes or floats

// What Packed gives, decoded: the activations' form decides whether codes are words or bytes.
template <Format F, class Code> struct Slab {
  static constexpr int VECTORS = BLOCK / Coded<Code>::UNIT;  // of codes, per block
  uint8_t *code_rows;  // [SLAB_COLS / UNIT][64]
  float *scale_rows;   // [SLAB_COLS / group][16]
  float *min_rows;
  const uint8_t *next;  // what is decoded next, fetched while the first tokens take this; null once it has been
  INLINE void prefetch(int64_t b) const {
    if (next)
      for (int64_t i = 0; i < BLOCK_BYTES<F>; i += 64) __builtin_prefetch(next + b * BLOCK_BYTES<F> + i);
  }
  template <class, int O> INLINE void octet(int64_t b, i16x32 (&out)[OCTET<Code>]) const {
    for (int i = 0; i < OCTET<Code>; i++) out[i] = load_words(code_rows + (b * VECTORS + O * OCTET<Code> + i) * 64);
  }
  INLINE f32x16 scale(int64_t b, int g) const { return load(scale_rows + (b * GROUPS<F> + g) * PANEL); }
  INLINE f32x16 min(int64_t b, int g) const { return load(min_rows + (b * GROUPS<F> + g) * PANEL); }

  template <int O> INLINE void decode_from(const Packed<F> &packed, int64_t from, int64_t b) const {
    if constexpr (O < OCTETS) {
      i16x32 codes[OCTET<Code>];
      packed.template octet<Code, O>(from + b, codes);
      for (int i = 0; i < OCTET<Code>; i++) store_words(code_rows + (b * VECTORS + O * OCTET<Code> + i) * 64, codes[i]);
      decode_from<O + 1>(packed, from, b);
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

// ---- integer products of octets [O, O_END) of a block. T tokens, all in one group of L interleaved lanes; a: the block's codes
template <Format F, int T, int L, int O, int O_END, class Source>
INLINE void add_products(const Source &w, int64_t b, const int16_t *a, i32x16 (&sum)[T]) {
  if constexpr (O < O_END) {
    i16x32 codes[4];
    w.template octet<int16_t, O>(b, codes);
    for (int i = 0; i < 4; i++)
      for (int t = 0; t < T; t++) sum[t] = dot_pair(sum[t], codes[i], a + ((O * 4 + i) * L + t) * 2);
    add_products<F, T, L, O + 1, O_END>(w, b, a, sum);
  }
}
template <int T, int L, int O, int O_END, bool FIRST, class Source>
INLINE void add_bytes(const Source &w, int64_t b, const int8_t *a, byte_sums (&sum)[T]) {
  if constexpr (O < O_END) {
    i16x32 codes[2];
    w.template octet<int8_t, O>(b, codes);
    for (int i = 0; i < 2; i++)
      for (int t = 0; t < T; t++) {
        const int8_t *four = a + ((O * 2 + i) * L + t) * 4;
        sum[t] = FIRST && i == 0 ? dot_bytes(codes[i], four) : dot_bytes(sum[t], codes[i], four);
      }
    add_bytes<T, L, O + 1, O_END, false>(w, b, a, sum);
  }
}
// So many octets, of four products per 16-bit sum, cannot overflow it.
template <Format F> constexpr int BYTE_OCTETS = 32767 / (4 * 127 * largest_code(S<F>));
template <Format F, int T, int L, int O, int O_END, class Source>
INLINE void add_products(const Source &w, int64_t b, const int8_t *a, i32x16 (&sum)[T]) {
  if constexpr (O < O_END) {
    constexpr int END = O_END - O < BYTE_OCTETS<F> ? O_END : O + BYTE_OCTETS<F>;
    static_assert(END > O);
    byte_sums part[T];
    add_bytes<T, L, O, END, true>(w, b, a, part);
    for (int t = 0; t < T; t++) sum[t] = sum[t] + widened(part[t]);
    add_products<F, T, L, END, O_END>(w, b, a, sum);
  }
}
// Column block xb of the activations, seen from token t0.
template <Format F, class Code, int L> struct BlockView {
  const Code *codes;
  const float *scale, *scaled;  // scaled, sums: of the first group
  const int32_t *sums;
  INLINE BlockView(const Activations &activations, int t0, int64_t xb) {
    const Coded<Code> &x = activations.coded<Code>();
    const int64_t n_blocks = activations.n_cols / BLOCK, group = t0 / L, lane = t0 % L;
    constexpr bool halves = GROUPS<F> == 2;
    codes = x.codes + (group * n_blocks + xb) * BLOCK * L + lane * Coded<Code>::UNIT;
    scale = x.scales + (group * n_blocks + xb) * L + lane;
    const int64_t sum = (group * n_blocks + xb) * GROUPS<F> * L + lane;
    scaled = (halves ? x.scaled16 : x.scaled32) + sum;
    sums = (halves ? x.sums16 : x.sums32) + sum;
  }
};
template <Format F, class Code, int T, int L, int G, class Source>
INLINE void accumulate_groups(const Source &w, int64_t b, const BlockView<F, Code, L> &x, f32x16 (&acc)[T]) {
  if constexpr (G < GROUPS<F>) {
    constexpr int FIRST = G * OCTETS / GROUPS<F>, END = (G + 1) * OCTETS / GROUPS<F>;
    i32x16 sum[T];
    for (int t = 0; t < T; t++) {
      if constexpr (S<F>.zero >= 0)
        sum[t] = negate(shift_left<S<F>.zero>(int_splat(x.sums[G * L + t])));
      else
        sum[t] = int_splat(0);
    }
    add_products<F, T, L, FIRST, END>(w, b, x.codes, sum);
    const f32x16 scale = w.scale(b, G);
    for (int t = 0; t < T; t++) acc[t] = fma(to_float(sum[t]), scale * splat(x.scale[t]), acc[t]);
    if constexpr (S<F>.has_min) {
      const f32x16 min = w.min(b, G);
      for (int t = 0; t < T; t++) acc[t] = fma(min, splat(x.scaled[G * L + t]), acc[t]);
    }
    accumulate_groups<F, Code, T, L, G + 1>(w, b, x, acc);
  }
}
// acc[t] += the products of blocks [0, n_blocks) of `w`, which are columns from block x_block of the activations.
template <Format F, class Code, int T, int L, class Source>
INLINE void dot_blocks(const Source &w, int64_t n_blocks, const Activations &x, int64_t x_block, int t0, f32x16 (&acc)[T]) {
  for (int64_t b = 0; b < n_blocks; b++) {
    w.prefetch(b);
    accumulate_groups<F, Code, T, L, 0>(w, b, BlockView<F, Code, L>(x, t0, x_block + b), acc);
  }
}

// ---- float products
template <int T, int L> INLINE void dot_column(f32x16 w, const float *a, f32x16 (&acc)[T]) {
  for (int t = 0; t < T; t++) acc[t] = fma(w, splat(a[t]), acc[t]);
}
// ---- one panel for all tokens; sums: [n_tokens, 16]. Unused lanes of the last group are computed and ignored.
template <Format F, class Code, int T, int L> INLINE void panel_direct(const uint8_t *panel, const Activations &x, float *sums) {
  f32x16 acc[T];
  for (int t = 0; t < T; t++) acc[t] = splat(0);
  if constexpr (S<F>.integer) {
    dot_blocks<F, Code, T, L>(Packed<F>{panel}, x.n_cols / BLOCK, x, 0, 0, acc);
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

template <Format F, class Code>
INLINE void slab_tokens(const Slab<F, Code> &slab, const float *floats, int64_t k0, int64_t cols, const Activations &x, int t0, float *sums) {
  f32x16 acc[LANES];
  for (int t = 0; t < LANES; t++) acc[t] = k0 ? load(sums + (t0 + t) * PANEL) : splat(0);
  if constexpr (S<F>.integer) {
    dot_blocks<F, Code, LANES, LANES>(slab, cols / BLOCK, x, k0 / BLOCK, t0, acc);
  } else {
    const float *a = x.values + x.at(t0, k0, x.n_cols);
    for (int64_t k = 0; k < cols; k++) dot_column<LANES, LANES>(load(floats + k * PANEL), a + k * LANES, acc);
  }
  for (int t = 0; t < LANES; t++) store(sums + (t0 + t) * PANEL, acc[t]);
}

template <Format F, class Code> void panel_slabs(const uint8_t *panel, const Activations &x, int n_tokens, float *sums, uint8_t *scratch) {
  float *floats = (float *)scratch;
  Slab<F, Code> slab{scratch, (float *)(scratch + SLAB_COLS * PANEL * 2), (float *)(scratch + SLAB_COLS * PANEL * 3), nullptr};
  static_assert(!S<F>.integer || S<F>.group >= 16, "scales of a slab must fit their part of the scratch");
  for (int64_t k0 = 0; k0 < x.n_cols; k0 += SLAB_COLS) {
    const int64_t cols = x.n_cols - k0 < SLAB_COLS ? x.n_cols - k0 : SLAB_COLS;
    if constexpr (S<F>.integer)
      slab.decode(Packed<F>{panel}, k0 / BLOCK, cols / BLOCK);
    else
      for (int64_t k = 0; k < cols; k++) store(floats + k * PANEL, FloatPanel<F>(panel, x.n_cols).column(k0 + k));
    slab.next = panel + (k0 + cols) / BLOCK * BLOCK_BYTES<F>;
    for (int t = 0; t < n_tokens; t += LANES, slab.next = nullptr) slab_tokens(slab, floats, k0, cols, x, t, sums);
  }
}

template <Format F, class Code>
INLINE void panel_of(const uint8_t *data, const Activations &x, int n_tokens, float *sums, uint8_t *scratch) {
  if (x.lanes == 1) return panel_direct<F, Code, 1, 1>(data, x, sums);
  if (n_tokens <= 2) return panel_direct<F, Code, 2, LANES>(data, x, sums);
  if (n_tokens <= LANES) return panel_direct<F, Code, LANES, LANES>(data, x, sums);
  panel_slabs<F, Code>(data, x, n_tokens, sums, scratch);
}
template <Format F> void panel_product(const Weight &w, int64_t panel, const Activations &x, int n_tokens, float *sums, uint8_t *scratch) {
  const uint8_t *data = w.data + panel * w.panel_size();
  if constexpr (byte_codes(S<F>))
    if (x.bytes.codes) return panel_of<F, int8_t>(data, x, n_tokens, sums, scratch);
  panel_of<F, int16_t>(data, x, n_tokens, sums, scratch);
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

}  // namespace ISA_NAMESPACE
