// Matrix products of many tokens on bf16 tiles, for every format. Included after matmul.h, at the amx level alone.
//
// A weight tile is 32 columns of a 16-row panel as bf16 pairs, [16 pairs][16 rows][2]; an activation tile is [16 tokens][32
// columns]; their product adds to [16 tokens][16 rows] of float32. A slab of columns is decoded once into the L1 cache and
// applied to all tokens, two panels by 32 tokens at a time. Codes and scales come from the same Packed source as the vector
// products'; both factors are rounded to bf16 (nearest even), so a product is within 3e-3 (relative L2) of theirs.
// A token's sums do not depend on the other tokens of the call, nor on its place among them.
#pragma once
#include "ops.h"
#include "simd.h"

namespace ISA_NAMESPACE {

constexpr int TILE_ELEMS = 16 * 32;  // bf16 values of a weight or activation tile: 1 KB
constexpr int SLAB_TILES = 10;       // per panel: 20 KB for a pair, which leaves the L1 cache room for activations and sums
constexpr int GROUP_PANELS = 8;      // panels that take turns on a slab of activations while it is in the L2 cache

// ---- configuration: all eight tiles are 16 x 64 bytes
struct TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
// Static, because GCC 12 believes that loading a configuration reads 8 bytes and would drop the rest of a local one.
alignas(64) constexpr TileConfig TILE_CONFIG = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// GCC 12 does not know that tile loads read memory. Needed between tile operations and ordinary ones on the same memory.
INLINE void tile_fence() { asm volatile("" ::: "memory"); }

// ---- weights as bf16 pairs
INLINE void store_bf16(uint16_t *out, f32x16 first, f32x16 second) {  // 32 values in order
  _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(second.v, first.v));
}
INLINE void store_pairs(uint16_t *out, f32x16 even, f32x16 odd) {  // value i of `even`, value i of `odd`, and so on
  alignas(64) static constexpr uint16_t zip[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  _mm512_storeu_si512(out, _mm512_permutexvar_epi16(_mm512_loadu_si512(zip), (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v)));
}
INLINE f32x16 even_words(i16x32 a) { return {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(a.v, 16), 16))}; }
INLINE f32x16 odd_words(i16x32 a) { return {_mm512_cvtepi32_ps(_mm512_srai_epi32(a.v, 16))}; }

template <Format F, int V, int V_END> INLINE void decode_pairs(const Packed<F> &w, int64_t b, f32x16 scale, f32x16 offset, uint16_t *tile) {
  if constexpr (V < V_END) {
    i16x32 four[4];
    w.template octet<int16_t, V / 4>(b, four);
    for (int i = 0; i < 4; i++) {
      const f32x16 even = even_words(four[i]), odd = odd_words(four[i]);
      if constexpr (S<F>.has_min || S<F>.zero >= 0)
        store_pairs(tile + (V + i) * 32, fma(even, scale, offset), fma(odd, scale, offset));
      else
        store_pairs(tile + (V + i) * 32, even * scale, odd * scale);
    }
    decode_pairs<F, V + 4, V_END>(w, b, scale, offset, tile);
  }
}
template <Format F, int G> INLINE void decode_groups(const Packed<F> &w, int64_t b, uint16_t *tile) {
  if constexpr (G < GROUPS<F>) {
    const f32x16 scale = w.scale(b, G);
    f32x16 offset = splat(0);
    if constexpr (S<F>.has_min) offset = w.min(b, G);
    if constexpr (S<F>.zero >= 0) offset = scale * splat(-(float)(1 << S<F>.zero));  // a power of two: exact
    decode_pairs<F, G * PAIRS / GROUPS<F>, (G + 1) * PAIRS / GROUPS<F>>(w, b, scale, offset, tile);
    decode_groups<F, G + 1>(w, b, tile);
  }
}
// Columns [32 * block0, 32 * (block0 + n_tiles)) of a panel; tiles lie 2 * TILE_ELEMS apart, a pair of panels side by side.
template <Format F> void decode_tiles(const uint8_t *panel, int64_t n_cols, int64_t block0, int n_tiles, uint16_t *tile) {
  [[maybe_unused]] const FloatPanel<F> w(panel, n_cols);
  for (int64_t b = block0; b < block0 + n_tiles; b++, tile += 2 * TILE_ELEMS) {
    if constexpr (S<F>.integer)
      decode_groups<F, 0>(Packed<F>{panel}, b, tile);
    else if constexpr (F == Format::BF16)  // packed panels are tiles already
      memcpy(tile, panel + b * TILE_ELEMS * 2, TILE_ELEMS * 2);
    else
      for (int64_t k = 0; k < BLOCK; k += 2)
        store_pairs(tile + k * PANEL, w.column(b * BLOCK + k), w.column(b * BLOCK + k + 1));
  }
}
using DecodeTiles = void (*)(const uint8_t *, int64_t, int64_t, int, uint16_t *);
constexpr DecodeTiles DECODE_TILES[(int)Format::COUNT] = {
    decode_tiles<Format::F32>,  decode_tiles<Format::F16>,  decode_tiles<Format::BF16>, decode_tiles<Format::Q8_0>,
    decode_tiles<Format::Q4_0>, decode_tiles<Format::Q4_1>, decode_tiles<Format::Q5_0>, decode_tiles<Format::Q5_1>,
    decode_tiles<Format::Q2_K>, decode_tiles<Format::Q3_K>, decode_tiles<Format::Q4_K>, decode_tiles<Format::Q5_K>,
    decode_tiles<Format::Q6_K>, decode_tiles<Format::MXFP4>, decode_tiles<Format::F8_E4M3>};

// ---- sums of M x 16 tokens by N panels over one slab; tile registers: 0-1 tokens, 2-3 panels, 4-7 sums
template <int M, int N>
INLINE void multiply_tiles(const uint16_t *w, const uint16_t *x, int64_t x_stride, int n_tiles, bool first, float *const *sums, int t) {
  if (first) {
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
  } else {
    _tile_loadd(4, sums[0] + t * PANEL, 64);
    if constexpr (N == 2) _tile_loadd(5, sums[1] + t * PANEL, 64);
    if constexpr (M == 2) _tile_loadd(6, sums[0] + (t + TILE_TOKENS) * PANEL, 64);
    if constexpr (M == 2 && N == 2) _tile_loadd(7, sums[1] + (t + TILE_TOKENS) * PANEL, 64);
  }
  for (int i = 0; i < n_tiles; i++, w += 2 * TILE_ELEMS, x += TILE_ELEMS) {
    _tile_loadd(2, w, 64);
    _tile_loadd(0, x, 64);
    _tile_dpbf16ps(4, 0, 2);
    if constexpr (N == 2) {
      _tile_loadd(3, w + TILE_ELEMS, 64);
      _tile_dpbf16ps(5, 0, 3);
    }
    if constexpr (M == 2) {
      _tile_loadd(1, x + x_stride, 64);
      _tile_dpbf16ps(6, 1, 2);
      if constexpr (N == 2) _tile_dpbf16ps(7, 1, 3);
    }
  }
  _tile_stored(4, sums[0] + t * PANEL, 64);
  if constexpr (N == 2) _tile_stored(5, sums[1] + t * PANEL, 64);
  if constexpr (M == 2) _tile_stored(6, sums[0] + (t + TILE_TOKENS) * PANEL, 64);
  if constexpr (M == 2 && N == 2) _tile_stored(7, sums[1] + (t + TILE_TOKENS) * PANEL, 64);
}

// The rows of the last tile behind the last token hold leftovers; so do their sums, which nobody reads.
template <int N>
void multiply_slab(const uint16_t *slab, const Activations &x, int64_t block0, int n_tiles, int n_tokens, float *const *sums) {
  const int64_t x_stride = x.n_cols * TILE_TOKENS;
  const uint16_t *tiles = x.tiles + block0 * TILE_ELEMS;
  tile_fence();
  for (int t = 0; t < n_tokens; t += 2 * TILE_TOKENS, tiles += 2 * x_stride)
    if (t + TILE_TOKENS < n_tokens)
      multiply_tiles<2, N>(slab, tiles, x_stride, n_tiles, block0 == 0, sums, t);
    else
      multiply_tiles<1, N>(slab, tiles, x_stride, n_tiles, block0 == 0, sums, t);
  tile_fence();
}

struct PanelOf {
  const Weight *w;
  int64_t panel;
};

// sums + i * MATMUL_TOKENS * 16 = the sums of panels[i], for all tokens
INLINE void multiply_panels(const PanelOf *panels, int n_panels, const Matmul &m, float *sums, uint16_t *slab) {
  const int64_t n_blocks = m.x->n_cols / BLOCK;
  for (int64_t b = 0; b < n_blocks; b += SLAB_TILES) {
    const int n_tiles = (int)(n_blocks - b < SLAB_TILES ? n_blocks - b : SLAB_TILES);
    for (int i = 0; i < n_panels; i += 2) {
      const int n = n_panels - i < 2 ? 1 : 2;
      float *const to[2] = {sums + (int64_t)i * MATMUL_TOKENS * PANEL, sums + (int64_t)(i + 1) * MATMUL_TOKENS * PANEL};
      for (int j = 0; j < n; j++) {
        const Weight &w = *panels[i + j].w;
        DECODE_TILES[(int)w.format](w.data + panels[i + j].panel * w.panel_size(), w.n_cols, b, n_tiles, slab + j * TILE_ELEMS);
      }
      (n == 2 ? multiply_slab<2> : multiply_slab<1>)(slab, *m.x, b, n_tiles, m.n_tokens, to);
    }
  }
}

// ---- what the level offers: the vector kernels, and tiles where the activations come as tiles
void prepare_tiles(const float *x, const float *norm, float eps, int forms, const Activations &a, int t) {
  if (!(forms & TILES)) return prepare(x, norm, eps, forms, a, t);
  const Normalised in{x, norm, splat(norm ? inverse_rms(x, a.n_cols, eps) : 1.0f)};
  uint16_t *tile = a.tiles + t / TILE_TOKENS * TILE_TOKENS * a.n_cols + t % TILE_TOKENS * BLOCK;
  for (int64_t k = 0; k < a.n_cols; k += BLOCK, tile += TILE_ELEMS) store_bf16(tile, in.columns(k), in.columns(k + 16));
}

void matmul_tiles(const Matmul &m, int64_t panel0, int64_t panel1, uint8_t *scratch) {
  if (!m.x->tiles) return matmul(m, panel0, panel1, scratch);
  constexpr int64_t SUMS = (int64_t)MATMUL_TOKENS * PANEL;
  float *sums = (float *)scratch;
  uint16_t *slab = (uint16_t *)(sums + GROUP_PANELS * SUMS);
  static_assert(GROUP_PANELS * SUMS * sizeof(float) + 2 * SLAB_TILES * TILE_ELEMS * 2 <= MATMUL_SCRATCH, "the scratch is too small");
  const int each = m.up ? 2 : 1, step = GROUP_PANELS / each;
  _tile_loadconfig(&TILE_CONFIG);
  for (int64_t p = panel0; p < panel1; p += step) {
    const int n = (int)(panel1 - p < step ? panel1 - p : step);
    PanelOf panels[GROUP_PANELS];
    for (int i = 0; i < n; i++) {
      panels[i * each] = {m.w, p + i};
      if (m.up) panels[i * each + 1] = {m.up, p + i};
    }
    multiply_panels(panels, n * each, m, sums, slab);
    for (int i = 0; i < n; i++) finish_panel(m, p + i, sums + i * each * SUMS, sums + (i * each + 1) * SUMS);
  }
  _tile_release();
}

}  // namespace ISA_NAMESPACE
