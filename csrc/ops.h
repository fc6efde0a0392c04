// The kernel API: what one instruction-set level provides, as plain structs and function pointers.
//
// Narrow on purpose: program.cpp calls kernels only through this table, so a level is one file that fills it, and no kernel
// knows of programs, threads or Python. A kernel does the part of its work that the caller names and touches nothing else.
#pragma once
#include <cstdint>

#include "formats.h"

constexpr float MASKED = -1e30f;  // the score of a position that may not be seen

constexpr int KV_BLOCK = 32;    // tokens in a KV block; equals freehold.core.KV_BLOCK
constexpr int KV_SPLIT = 256;   // tokens whose softmax is computed in one piece; fixed, so results never depend on threads
constexpr int MAX_ROWS = 32;    // query rows of one attention call
constexpr int MAX_HEAD_DIM = 256;    // of a key or a value
constexpr int MAX_LATENT = 512;      // of a latent, which stands for the value then; its key is longer by what is rotated

// Activations of one linear operation, in the forms that its weights need.
//
// Integer forms: code = round(x / scale), scale = max|x| / the largest code per 32 columns. WORDS are 16 bits, which is exact for
// all that matters; BYTES are 8, which halves the work and shows in the logits (docs/kernels.md), so they are asked for. Zero
// points and minimums need the sums of codes. Four tokens are interleaved, because a kernel multiplies them side by side: one
// cache line feeds all four, where four rows a power of two apart would evict each other. A single token (lanes = 1) is plain.
// Tile form, only for levels with a matrix unit: bf16, 16 tokens by 32 columns after each other.
constexpr int LANES = 4;
constexpr int TILE_TOKENS = 16;
enum Forms { VALUES = 1, WORDS = 2, TILES = 4, BYTES = 8 };
template <class Code> struct Coded {
  static constexpr int UNIT = 4 / sizeof(Code);        // columns multiplied in one operation
  static constexpr float LARGEST = sizeof(Code) == 1 ? 127 : 32767;
  Code *codes;      // [n_tokens / lanes][n_cols / UNIT][lanes][UNIT]; of bytes, see OCTET_ORDER
  float *scales;    // [n_tokens / lanes][n_cols / 32][lanes]
  int32_t *sums16;  // [n_tokens / lanes][n_cols / 16][lanes] sums of codes over 16 and over 32 columns
  int32_t *sums32;  // [n_tokens / lanes][n_cols / 32][lanes]
  float *scaled16;  // [n_tokens / lanes][n_cols / 16][lanes] the same sums times the scale
  float *scaled32;  // [n_tokens / lanes][n_cols / 32][lanes]
};
struct Activations {
  int64_t n_cols;
  int lanes;        // 1 (one token only) or LANES
  float *values;    // [n_tokens / lanes][n_cols][lanes]
  Coded<int16_t> words;
  Coded<int8_t> bytes;  // null unless asked for: then products of formats with `byte_codes` take them
  uint16_t *tiles;  // [n_tokens / 16][n_cols / 32][16][32]; null unless this, and nothing else, is the form at hand

  // Where item i of token t is, in an array of n items per token.
  FLOOR int64_t at(int t, int64_t i, int64_t n) const { return (t / lanes * n + i) * lanes + t % lanes; }
  template <class Code> FLOOR const Coded<Code> &coded() const {
    if constexpr (sizeof(Code) == 1) return bytes;
    else return words;
  }
};

// y = w x + bias, u = up x + up_bias. SWIGLU: silu(y) * u. SWIGLU_CLAMPED: y' * sigmoid(alpha y') * (u' + 1), where y' is y but
// at most `limit`, and u' is u within +-limit.
enum class Epilogue : int { STORE, ADD, SWIGLU, SWIGLU_CLAMPED };

struct Matmul {  // out[t, r] (+)= sum_k w[r, k] * x[t, k] + bias[r], or what the epilogue makes of it
  const Weight *w;
  const Weight *up;      // only for the gated epilogues
  const float *bias;     // [n_rows] or null
  const float *up_bias;
  const Activations *x;
  float *out;            // [n_tokens, out_stride]
  int64_t out_stride;
  int n_tokens;
  Epilogue epilogue;
  float alpha, limit;    // only for SWIGLU_CLAMPED
};

// Causal attention of a few query tokens of one sequence, for one KV head and its n_group query heads. `latent`: instead of keys
// and values a block holds one row per token, of which all is the key and the first v_dim numbers are the value.
struct Attention {
  const float *q;         // [n_tokens, q_stride]; this KV head's query heads start at column 0
  int64_t q_stride;
  const uint16_t *kv;     // this layer's part of block 0
  const int32_t *blocks;  // the sequence's block ids
  int64_t block_elems;    // f16 elements from one block to the next
  int64_t head_offset;    // where this head starts inside the layer's part
  int k_dim, v_dim;
  bool latent;
  int n_group;
  int n_tokens, first_pos;  // query positions first_pos .. first_pos + n_tokens - 1
  int window;               // 0: everything before; n: the last n positions, itself included
  float scale;
};

// Running softmax of `rows` = n_tokens * n_group query rows: maximum, sum of exponentials, and the output so far.
struct SoftmaxState {
  float *max, *sum;  // [rows]
  float *out;        // [rows, v_dim]
};

struct Kernels {
  const char *isa;
  // x[n_cols] -> token t of the activations in the given Forms, RMS-normalised if `norm` is given.
  void (*prepare)(const float *x, const float *norm, float eps, int forms, const Activations &, int t);
  void (*matmul)(const Matmul &, int64_t panel0, int64_t panel1, uint8_t *scratch);
  void (*unpack_row)(const Weight &, int64_t row, float *out);
  // x[h] = x[h] / rms(x[h]) * weight for n_heads heads of `dim`, each by itself.
  void (*norm_heads)(float *x, int n_heads, int dim, const float *weight, float eps);
  // Rotates pairs (i, i + dim / 2) of n_heads heads, head_dim apart, the first dim numbers of each; cos, sin: [dim / 2] for this
  // token. interleaved: pairs (2 i, 2 i + 1), whose results then stand at (i, i + dim / 2).
  void (*rope)(float *x, int n_heads, int head_dim, int dim, const float *cos, const float *sin, bool interleaved);
  void (*append_kv)(const float *k, const float *v, uint16_t *block, int slot, int n_heads, int k_dim, int v_dim);
  void (*append_latent)(const float *latent, uint16_t *block, int slot, int dim);
  void (*read_latent)(const uint16_t *block, int slot, int dim, float *latent);
  // The softmax of KV positions [split * KV_SPLIT, (split + 1) * KV_SPLIT) alone, unnormalised; scores: [rows, KV_SPLIT].
  void (*attend_split)(const Attention &, int split, float *scores, const SoftmaxState &);
  // state += part, for `rows` rows. Splits are merged in ascending order, whoever computed them.
  void (*merge_split)(const SoftmaxState &state, const SoftmaxState &part, int rows, int v_dim);
  // out[row] = state.out / state.sum, row r at out + r / n_group * out_stride + r % n_group * v_dim. sinks: [n_group] scores
  // that take part in the softmax and have no value, or null.
  void (*finish_rows)(const SoftmaxState &state, const float *sinks, int rows, int n_group, int v_dim, float *out, int64_t out_stride);
  void (*add_scaled)(float *out, const float *x, float factor, int64_t n);  // out += factor * x
  // Rounds columns [span][16 rows], of one panel, to a record of Q8_0, Q4_1 or Q4_K. False if a number is none, or too large for it.
  bool (*round_span)(const float *columns, Format to, uint8_t *record);
  int tile_tokens = 0;  // products of at least so many tokens of one sequence want the tile form; 0: this level has none
};

constexpr int64_t MATMUL_SCRATCH = 288 * 1024;  // bytes per thread for decoded weights and partial sums
constexpr int MATMUL_TOKENS = 512;              // most tokens of one matmul call; bounds the partial sums
