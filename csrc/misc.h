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

INLINE void quantise_token(const Activations &a, int t) {
  const int64_t n_blocks = a.n_cols / BLOCK;
  const float *x = a.values + t * a.n_cols;
  f32x16 poison = splat(0);  // becomes NaN if any value is infinite or NaN, which integers could not carry
  for (int64_t b = 0; b < n_blocks; b++) {
    const f32x16 lo = load(x + b * BLOCK), hi = load(x + b * BLOCK + 16);
    const float largest = reduce_max(max(abs(lo), abs(hi)));
    const f32x16 inverse = splat(largest > 0 ? 32767.0f / largest : 0.0f);
    poison = fma(lo, splat(0), fma(hi, splat(0), poison));
    int16_t *codes = a.codes + t * a.n_cols + b * BLOCK;
    store_i16(codes, round_to_int(lo * inverse));
    store_i16(codes + 16, round_to_int(hi * inverse));
    int32_t sum0 = 0, sum1 = 0;
    for (int i = 0; i < 16; i++) sum0 += codes[i], sum1 += codes[16 + i];
    const float scale = largest / 32767.0f;
    const int64_t at = t * n_blocks + b;
    a.scales[at] = scale;
    a.sums16[2 * at] = sum0, a.sums16[2 * at + 1] = sum1;
    a.sums32[at] = sum0 + sum1;
    a.scaled16[2 * at] = scale * (float)sum0, a.scaled16[2 * at + 1] = scale * (float)sum1;
    a.scaled32[at] = scale * (float)(sum0 + sum1);
  }
  const float bad = reduce_add(poison);
  if (bad != 0.0f)
    for (int64_t b = 0; b < n_blocks; b++) a.scales[t * n_blocks + b] = bad;
}

void prepare(const float *x, const float *norm, float eps, bool quantise, const Activations &a, int t) {
  const int64_t n = a.n_cols;
  float *out = a.values + t * n;
  if (norm) {
    const f32x16 inverse = splat(inverse_rms(x, n, eps));
    int64_t k = 0;
    for (; k + 16 <= n; k += 16) store(out + k, load(x + k) * inverse * load(norm + k));
    if (k < n) {
      float v[16];
      store(v, load_tail(x + k, n - k) * inverse * load_tail(norm + k, n - k));
      memcpy(out + k, v, (size_t)(n - k) * sizeof(float));
    }
  } else {
    memcpy(out, x, (size_t)n * sizeof(float));
  }
  if (quantise) quantise_token(a, t);
}

void rope(float *x, int n_heads, int dim, const float *cos, const float *sin) {
  const int half = dim / 2;
  for (int h = 0; h < n_heads; h++, x += dim) {
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

// A block holds per KV head: keys as two panels of 16 tokens, [head_dim / 2][16][2], then values, [KV_BLOCK / 2][head_dim][2].
// Both are the pair order that bf16 dot products and matrix tiles read.
void append_kv(const float *k, const float *v, uint16_t *block, int slot, int n_heads, int head_dim) {
  const int64_t panel = (int64_t)head_dim * 16;
  for (int h = 0; h < n_heads; h++) {
    uint16_t *keys = block + (int64_t)h * 2 * KV_BLOCK * head_dim + slot / 16 * panel + slot % 16 * 2;
    uint16_t *values = block + (int64_t)(h * 2 + 1) * KV_BLOCK * head_dim + (int64_t)(slot / 2) * head_dim * 2 + slot % 2;
    for (int d = 0; d < head_dim; d += 2) {
      keys[d * 16] = to_bf16(k[h * head_dim + d]);
      keys[d * 16 + 1] = to_bf16(k[h * head_dim + d + 1]);
    }
    for (int d = 0; d < head_dim; d++) values[2 * d] = to_bf16(v[h * head_dim + d]);
  }
}

}  // namespace ISA_NAMESPACE
