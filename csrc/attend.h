// Attention over the paged KV cache, one KV head and one split of 256 positions at a time.
//
// The query heads that share a KV head are rows of one small product, so every key and value is read once for all of them.
// Latents (MLA) are both keys and values: one row per token, all heads alike.
// A split's boundaries are absolute positions and a row's own arithmetic does not depend on the other rows, so prefill,
// decode, any chunking and any number of threads give the same bits.
#pragma once
#include "ops.h"
#include "simd.h"

namespace ISA_NAMESPACE {

constexpr int ROWS = 4;  // query rows per register block

INLINE const uint16_t *head_block(const Attention &a, int64_t pos) {
  return a.kv + a.blocks[pos / KV_BLOCK] * a.block_elems + a.head_offset;
}
INLINE const float *query_row(const Attention &a, int row) {
  return a.q + row / a.n_group * a.q_stride + (int64_t)(row % a.n_group) * a.k_dim;
}
// Values, or latents, of the pair of tokens that `pos` is in: [row width / 16][2][16].
INLINE const uint16_t *value_pair(const Attention &a, int64_t pos) {
  const int64_t width = a.latent ? a.k_dim : a.v_dim;
  return head_block(a, pos) + (a.latent ? 0 : (int64_t)KV_BLOCK * a.k_dim) + pos % KV_BLOCK / 2 * width * 2;
}

// scores[r][pos - split start] for 16 positions from `pos` (a multiple of 16) and R rows from row0; the last is before `end`
template <int R> INLINE void score_panel(const Attention &a, int64_t pos, int64_t end, int row0, float *scores) {
  const uint16_t *keys = head_block(a, pos) + pos % KV_BLOCK / 16 * a.k_dim * 16;
  // What comes next, and is about as long: these positions' values, and the keys of the next 16.
  const uint16_t *values = keys + (int64_t)KV_BLOCK * a.k_dim, *next = pos + 16 < end ? head_block(a, pos + 16) : keys;
  next += (pos + 16) % KV_BLOCK / 16 * a.k_dim * 16;
  const float *q[R];
  f32x16 acc[R];
  for (int r = 0; r < R; r++) q[r] = query_row(a, row0 + r), acc[r] = splat(0);
  for (int d = 0; d < a.k_dim; d += 2) {
    __builtin_prefetch(next + d * 16);
    __builtin_prefetch(values + d * 16);
    const f32x16 first = load_f16(keys + d * 16), second = load_f16(keys + d * 16 + 16);
    for (int r = 0; r < R; r++) acc[r] = fma(first, splat(q[r][d]), acc[r]);
    for (int r = 0; r < R; r++) acc[r] = fma(second, splat(q[r][d + 1]), acc[r]);
  }
  const float lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int r = 0; r < R; r++) {
    const int64_t query = a.first_pos + (row0 + r) / a.n_group;
    f32x16 s = acc[r] * splat(a.scale);
    if (pos + 15 > query) s = select_less(splat((float)(query - pos)), load(lanes), splat(MASKED), s);
    if (a.window && pos <= query - a.window) s = select_less(load(lanes), splat((float)(query - a.window + 1 - pos)), splat(MASKED), s);
    store(scores + (int64_t)(row0 + r) * KV_SPLIT + pos % KV_SPLIT, s);
  }
}

// The same for latents, two positions at a time, of which one may lie past `end`.
template <int R> INLINE void score_latents(const Attention &a, int64_t pos, int64_t end, int row0, float *scores) {
  const uint16_t *pair = value_pair(a, pos);
  const float *q[R];
  f32x16 even[R], odd[R];
  for (int r = 0; r < R; r++) q[r] = query_row(a, row0 + r), even[r] = splat(0), odd[r] = splat(0);
  for (int d = 0; d < a.k_dim; d += 16, pair += 32) {
    __builtin_prefetch(pair + 2 * a.k_dim);
    const f32x16 first = load_f16(pair), second = load_f16(pair + 16);
    for (int r = 0; r < R; r++) even[r] = fma(first, load(q[r] + d), even[r]), odd[r] = fma(second, load(q[r] + d), odd[r]);
  }
  for (int r = 0; r < R; r++) {
    const int64_t query = a.first_pos + (row0 + r) / a.n_group, last = query < end - 1 ? query : end - 1;
    float *to = scores + (int64_t)(row0 + r) * KV_SPLIT + pos % KV_SPLIT;
    to[0] = pos > last ? MASKED : reduce_add(even[r]) * a.scale;
    to[1] = pos + 1 > last ? MASKED : reduce_add(odd[r]) * a.scale;
  }
}

INLINE void softmax_row(float *scores, int64_t begin, int64_t end, float *row_max, float *row_sum) {
  f32x16 largest = splat(MASKED);
  for (int64_t i = begin; i < end; i += 16) largest = max(largest, load(scores + i));
  const float m = reduce_max(largest);
  f32x16 total = splat(0);
  for (int64_t i = begin; i < end; i += 16) {
    const f32x16 p = m > MASKED ? exp(load(scores + i) - splat(m)) : splat(0);
    store(scores + i, p);
    total = total + p;
  }
  *row_max = m, *row_sum = reduce_add(total);
}

// out[r][d .. d + 15] = sum over positions [begin, end) of p * value
template <int R> INLINE void weigh_values(const Attention &a, const float *scores, int64_t begin, int64_t end, int row0, int d, float *out) {
  f32x16 acc[R];
  for (int r = 0; r < R; r++) acc[r] = splat(0);
  const float *p = scores + (int64_t)row0 * KV_SPLIT;
  const int64_t width = a.latent ? a.k_dim : a.v_dim;
  for (int64_t block = begin; block < end; block = (block / KV_BLOCK + 1) * KV_BLOCK) {
    const int64_t block_end = (block / KV_BLOCK + 1) * KV_BLOCK < end ? (block / KV_BLOCK + 1) * KV_BLOCK : end;
    const uint16_t *values = value_pair(a, block) + d * 2;
    const float *weight = p + block % KV_SPLIT;
    int64_t pos = block;
    for (; pos + 1 < block_end; pos += 2, values += 2 * width, weight += 2) {
      const f32x16 first = load_f16(values), second = load_f16(values + 16);
      for (int r = 0; r < R; r++) acc[r] = fma(first, splat(weight[r * KV_SPLIT]), acc[r]);
      for (int r = 0; r < R; r++) acc[r] = fma(second, splat(weight[r * KV_SPLIT + 1]), acc[r]);
    }
    if (pos < block_end)  // the slot after the last token may hold anything
      for (int r = 0; r < R; r++) acc[r] = fma(load_f16(values), splat(weight[r * KV_SPLIT]), acc[r]);
  }
  for (int r = 0; r < R; r++) store(out + (int64_t)(row0 + r) * a.v_dim + d, acc[r]);
}

// Two rows at a time, which is what 16 registers hold of them.
template <int R> INLINE void score_some_latents(const Attention &a, int64_t pos, int64_t end, int row0, float *scores) {
  for (int r = 0; r + 1 < R; r += 2) score_latents<2>(a, pos, end, row0 + r, scores);
  if constexpr (R % 2) score_latents<1>(a, pos, end, row0 + R - 1, scores);
}

template <int R> INLINE void attend_rows(const Attention &a, int64_t begin, int64_t end, int row0, float *scores, const SoftmaxState &part) {
  const int64_t first = begin % KV_SPLIT, last = first + (end - begin + 15) / 16 * 16;
  if (a.latent)
    for (int64_t pos = begin; pos < end; pos += 2) score_some_latents<R>(a, pos, end, row0, scores);
  else
    for (int64_t pos = begin; pos < end; pos += 16) score_panel<R>(a, pos, end, row0, scores);
  if (a.latent)
    for (int r = row0; r < row0 + R; r++)
      for (int64_t i = first + (end - begin + 1) / 2 * 2; i < last; i++) scores[(int64_t)r * KV_SPLIT + i] = MASKED;
  for (int r = row0; r < row0 + R; r++) softmax_row(scores + (int64_t)r * KV_SPLIT, first, last, part.max + r, part.sum + r);
  for (int d = 0; d < a.v_dim; d += 16) weigh_values<R>(a, scores, begin, end, row0, d, part.out);
}

INLINE void attend_nothing(const Attention &a, int row0, int n, const SoftmaxState &part) {
  for (int r = row0; r < row0 + n; r++) {
    part.max[r] = MASKED, part.sum[r] = 0;
    memset(part.out + (int64_t)r * a.v_dim, 0, a.v_dim * sizeof(float));
  }
}

void attend_split(const Attention &a, int split, float *scores, const SoftmaxState &part) {
  const int rows = a.n_tokens * a.n_group;
  for (int row = 0; row < rows; row += ROWS) {
    const int n = rows - row < ROWS ? rows - row : ROWS;
    // Only what some row of this register block may see.
    const int64_t last_query = a.first_pos + (row + n - 1) / a.n_group, first_query = a.first_pos + row / a.n_group;
    int64_t begin = (int64_t)split * KV_SPLIT, end = begin + KV_SPLIT;
    if (end > last_query + 1) end = last_query + 1;
    if (a.window && begin <= first_query - a.window) begin = (first_query - a.window + 1) / 16 * 16;
    if (begin >= end) {
      attend_nothing(a, row, n, part);
      continue;
    }
    switch (n) {
      case 1: attend_rows<1>(a, begin, end, row, scores, part); break;
      case 2: attend_rows<2>(a, begin, end, row, scores, part); break;
      case 3: attend_rows<3>(a, begin, end, row, scores, part); break;
      default: attend_rows<ROWS>(a, begin, end, row, scores, part);
    }
  }
}

INLINE float exp_one(float x) {
  float v[16];
  store(v, exp(splat(x)));
  return v[0];
}

void merge_split(const SoftmaxState &state, const SoftmaxState &part, int rows, int v_dim) {
  for (int r = 0; r < rows; r++) {
    if (part.sum[r] == 0) continue;
    const float m = state.max[r] > part.max[r] ? state.max[r] : part.max[r];
    const float old_scale = exp_one(state.max[r] - m), new_scale = exp_one(part.max[r] - m);
    float *out = state.out + (int64_t)r * v_dim;
    const float *in = part.out + (int64_t)r * v_dim;
    for (int d = 0; d < v_dim; d += 16) store(out + d, fma(load(out + d), splat(old_scale), load(in + d) * splat(new_scale)));
    state.sum[r] = __builtin_fmaf(state.sum[r], old_scale, part.sum[r] * new_scale);
    state.max[r] = m;
  }
}

void finish_rows(const SoftmaxState &state, const float *sinks, int rows, int n_group, int v_dim, float *out, int64_t out_stride) {
  for (int r = 0; r < rows; r++) {
    float total = state.sum[r], seen = 1;
    if (sinks) {
      const float sink = sinks[r % n_group], m = state.max[r] > sink ? state.max[r] : sink;
      seen = exp_one(state.max[r] - m);
      total = __builtin_fmaf(total, seen, exp_one(sink - m));
    }
    const f32x16 factor = splat(seen), sum = splat(total);
    float *to = out + r / n_group * out_stride + (int64_t)(r % n_group) * v_dim;
    for (int d = 0; d < v_dim; d += 16) store(to + d, load(state.out + (int64_t)r * v_dim + d) * factor / sum);
  }
}

}  // namespace ISA_NAMESPACE
