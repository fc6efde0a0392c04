// Everything that is not a matrix product or attention: norms, activation quantising, rotation, KV append.
#pragma once
#include "ops.h"
#include "simd.h"

namespace ISA_NAMESPACE {

INLINE f32x16 load_tail(const float *p, int64_t n) {  // the first n < 16 lanes; zeros after
  float v[16] = {};
  memcpy(v, p, (size_t)n * sizeof(float));
  return load(v);
}

// 1 / sqrt(mean(x^2) + eps)
INLINE float inverse_rms(const float *x, int64_t n, float eps) {
  f32x16 squares = splat(0);
  int64_t k = 0;
  for (; k + 16 <= n; k += 16) squares = fma(load(x + k), load(x + k), squares);
  if (k < n) squares = fma(load_tail(x + k, n - k), load_tail(x + k, n - k), squares);
  return 1.0f / __builtin_sqrtf(reduce_add(squares) / (float)n + eps);
}

struct Normalised {  // x, or x / rms(x) * weight, 16 columns at a time
  const float *x, *weight;
  f32x16 inverse;
  INLINE f32x16 columns(int64_t k) const { return weight ? load(x + k) * inverse * load(weight + k) : load(x + k); }
  INLINE f32x16 tail(int64_t k, int64_t n) const {
    return weight ? load_tail(x + k, n) * inverse * load_tail(weight + k, n) : load_tail(x + k, n);
  }
};

// 32 codes to where the kernels look for them, units `lanes` apart.
INLINE int16_t *store_codes(const int16_t *block, int16_t *to, int64_t lanes) {
  for (int p = 0; p < BLOCK / 2; p++, to += 2 * lanes) memcpy(to, block + 2 * p, 4);
  return to;
}
INLINE int8_t *store_codes(const int16_t *block, int8_t *to, int64_t lanes) {
  for (int u = 0; u < BLOCK / 4; u++, to += 4 * lanes)
    for (int i = 0; i < 4; i++) to[i] = (int8_t)block[u / 2 * 8 + OCTET_ORDER[u % 2 * 4 + i]];
  return to;
}
template <class Code> INLINE void quantise_token(const Normalised &x, const Activations &a, int t) {
  using Form = Coded<Code>;
  const Form &form = a.coded<Code>();
  const int64_t n_blocks = a.n_cols / BLOCK, lanes = a.lanes;
  // Where this token's items start. Computed once: stores of bytes could, for all the compiler knows, change `a`.
  Code *codes = form.codes + a.at(t, 0, a.n_cols / Form::UNIT) * Form::UNIT;
  float *scales = form.scales + a.at(t, 0, n_blocks);
  int32_t *sums16 = form.sums16 + a.at(t, 0, 2 * n_blocks), *sums32 = form.sums32 + a.at(t, 0, n_blocks);
  float *scaled16 = form.scaled16 + a.at(t, 0, 2 * n_blocks), *scaled32 = form.scaled32 + a.at(t, 0, n_blocks);
  f32x16 poison = splat(0);  // becomes NaN if any value is infinite or NaN, which integers could not carry
  for (int64_t b = 0; b < n_blocks; b++) {
    const f32x16 lo = x.columns(b * BLOCK), hi = x.columns(b * BLOCK + 16);
    const float largest = reduce_max(max(abs(lo), abs(hi)));
    const f32x16 inverse = splat(largest > 0 ? Form::LARGEST / largest : 0.0f);
    poison = fma(lo, splat(0), fma(hi, splat(0), poison));
    int16_t block[BLOCK];
    store_i16(block, round_to_int(lo * inverse));
    store_i16(block + 16, round_to_int(hi * inverse));
    codes = store_codes(block, codes, lanes);
    int32_t sum0 = 0, sum1 = 0;
    for (int i = 0; i < 16; i++) sum0 += block[i], sum1 += block[16 + i];
    const float scale = largest / Form::LARGEST;
    scales[b * lanes] = scale;
    sums16[2 * b * lanes] = sum0, sums16[(2 * b + 1) * lanes] = sum1, sums32[b * lanes] = sum0 + sum1;
    scaled16[2 * b * lanes] = scale * (float)sum0, scaled16[(2 * b + 1) * lanes] = scale * (float)sum1;
    scaled32[b * lanes] = scale * (float)(sum0 + sum1);
  }
  const float bad = reduce_add(poison);
  if (bad != 0.0f)
    for (int64_t b = 0; b < n_blocks; b++) scales[b * lanes] = bad;
}

INLINE void store_values(const Normalised &x, const Activations &a, int t) {
  for (int64_t k = 0; k < a.n_cols; k += 16) {
    const int64_t n = a.n_cols - k < 16 ? a.n_cols - k : 16;
    float v[16];
    store(v, n == 16 ? x.columns(k) : x.tail(k, n));
    float *to = a.values + a.at(t, k, a.n_cols);
    for (int64_t i = 0; i < n; i++) to[i * a.lanes] = v[i];
  }
}

void prepare(const float *x, const float *norm, float eps, int forms, const Activations &a, int t) {
  const Normalised in{x, norm, splat(norm ? inverse_rms(x, a.n_cols, eps) : 1.0f)};
  if (forms & WORDS) quantise_token<int16_t>(in, a, t);
  if (forms & BYTES) quantise_token<int8_t>(in, a, t);
  if (forms & VALUES) store_values(in, a, t);
}

void norm_heads(float *x, int n_heads, int dim, const float *weight, float eps) {
  for (int h = 0; h < n_heads; h++, x += dim) {
    const f32x16 inverse = splat(inverse_rms(x, dim, eps));
    for (int i = 0; i < dim; i += 16) store(x + i, load(x + i) * inverse * load(weight + i));  // heads are whole vectors
  }
}

void rope(float *x, int n_heads, int head_dim, int dim, const float *cos, const float *sin, bool interleaved) {
  const int half = dim / 2;
  for (int h = 0; h < n_heads; h++, x += head_dim) {
    if (interleaved) {
      float sorted[MAX_HEAD_DIM];
      for (int i = 0; i < half; i++) sorted[i] = x[2 * i], sorted[half + i] = x[2 * i + 1];
      memcpy(x, sorted, (size_t)dim * sizeof(float));
    }
    int i = 0;
    for (; i + 16 <= half; i += 16) {
      const f32x16 a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
      store(x + i, a * c - b * s);
      store(x + half + i, b * c + a * s);
    }
    for (; i < half; i++) {
      const float a = x[i], b = x[half + i];
      x[i] = a * cos[i] - b * sin[i];
      x[half + i] = b * cos[i] + a * sin[i];
    }
  }
}

void add_scaled(float *out, const float *x, float factor, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, fma(splat(factor), load(x + i), load(out + i)));
  for (; i < n; i++) out[i] = __builtin_fmaf(factor, x[i], out[i]);
}

// A block holds per KV head: keys as two panels of 16 tokens, [k_dim][16], then values, [KV_BLOCK / 2][v_dim / 16][2][16], all of
// them f16. Latents are stored as values are, and nothing beside them.
void append_latent(const float *latent, uint16_t *block, int slot, int dim) {
  uint16_t *to = block + (int64_t)(slot / 2) * dim * 2 + slot % 2 * 16;
  for (int d = 0; d < dim; d += 16) store_kv(to + 2 * d, load(latent + d));
}

void read_latent(const uint16_t *block, int slot, int dim, float *latent) {
  const uint16_t *from = block + (int64_t)(slot / 2) * dim * 2 + slot % 2 * 16;
  for (int d = 0; d < dim; d += 16) store(latent + d, load_f16(from + 2 * d));
}

void append_kv(const float *k, const float *v, uint16_t *block, int slot, int n_heads, int k_dim, int v_dim) {
  for (int h = 0; h < n_heads; h++, k += k_dim, v += v_dim, block += (int64_t)KV_BLOCK * (k_dim + v_dim)) {
    uint16_t *keys = block + (int64_t)(slot / 16) * k_dim * 16 + slot % 16;
    for (int d = 0; d < k_dim; d += 16, keys += 16 * 16) {
      uint16_t halves[16];
      store_kv(halves, load(k + d));
      for (int i = 0; i < 16; i++) keys[i * 16] = halves[i];
    }
    append_latent(v, block + (int64_t)KV_BLOCK * k_dim, slot, v_dim);
  }
}

}  // namespace ISA_NAMESPACE
