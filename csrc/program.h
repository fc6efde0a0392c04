// A model's forward pass, recorded once as a list of fused operations and replayed for every batch in one call.
//
// The model file (Python) records embed, linear, attention and head; run() executes them on all workers of a pool with a
// barrier between phases. Knows buffers, batches and KV blocks; knows nothing of model families or of how kernels compute.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "ops.h"
#include "threads.h"

struct Product {  // one matrix of a linear operation
  Weight weight;
  Weight up;            // data is null unless gated
  const float *bias;
  int out;              // buffer
  bool add;             // add to the buffer instead of overwriting it
};

struct LinearOp {
  int in;
  const float *norm;    // RMSNorm weight applied to the input, or null
  float eps;
  int forms;            // of the activations that the weights need
  std::vector<Product> products;
};

struct AttentionOp {
  int q, k, v, out;     // buffers
  int64_t kv_offset;    // bf16 elements from the start of a KV block to this layer's part
  int n_heads, n_kv_heads, head_dim, window;
  int rope;             // index of the rotation table, or -1
  float scale;
};

struct Step {
  enum Kind { EMBED, LINEAR, ATTENTION, HEAD } kind;
  int out = 0;                 // EMBED
  Weight table{};              // EMBED
  LinearOp linear{};           // LINEAR and HEAD
  AttentionOp attention{};     // ATTENTION
};

struct BatchView {
  const int32_t *tokens, *positions, *seq_starts, *block_table, *logit_rows;
  int n_tokens, n_seqs, max_blocks, n_logits;
  uint16_t *kv;                // [n_blocks, block_elems]: every layer's keys and values of KV_BLOCK tokens
  int64_t block_elems;
  float *logits;               // [n_logits, vocab]
};

class Program {
 public:
  Program(std::shared_ptr<Pool> pool, const Kernels &kernels);
  int add_buffer(int64_t width);
  int add_rope(std::vector<double> inverse_frequencies, double scale);
  void add(Step step);
  void run(const BatchView &batch);
  const char *isa() const { return kernels_.isa; }
  int n_threads() const { return pool_->size(); }

 private:
  struct Rope {
    std::vector<double> inverse;
    double scale;
    std::vector<float> cos, sin;  // [n_tokens, head_dim / 2]
  };
  struct alignas(64) Line { uint8_t bytes[64]; };  // for memory whose vectors must not straddle cache lines
  struct Run {      // tokens that go through a product together, at most MATMUL_TOKENS
    int first, n_tokens;
    int slot;       // where their activations start, in tokens: a multiple of TILE_TOKENS
    bool tiled;     // on the matrix unit
  };
  struct ActivationStore {
    std::vector<float> values, scales, scaled16, scaled32;
    std::vector<int16_t> codes;
    std::vector<int32_t> sums16, sums32;
    std::vector<Line> tiles;
    void reserve(int64_t n_tokens, int64_t n_cols, bool tiled);
    Activations view(int64_t n_cols, const Run &run);
  };
  struct Worker {
    ActivationStore activations;  // of a single token
    std::vector<Line> scratch;
    std::vector<float> scores, state;
  };
  struct Tile { int seq, head, token, n_tokens, split; };  // split -1: all splits, one after the other

  void reserve(const BatchView &batch);
  void plan_runs(const BatchView &batch);
  void add_rows(int n, std::vector<Run> &runs) const;
  void plan_attention(const BatchView &batch, const AttentionOp &op, std::vector<Tile> &tiles) const;
  void work(const BatchView &batch, int worker);
  void embed(const Step &, const BatchView &, int worker);
  void linear(const LinearOp &, const std::vector<Run> &runs, const int32_t *rows, float *to, std::atomic<int> &next, int worker);
  void multiply(const LinearOp &, ActivationStore &, const std::vector<Run> &runs, float *to, std::atomic<int> &next, int worker);
  void attention(const AttentionOp &, const BatchView &, std::atomic<int> &next, int worker);
  void append(const AttentionOp &, const BatchView &, int worker);
  void attend_tile(const AttentionOp &, const BatchView &, const Tile &, int worker);
  void merge_decoded(const AttentionOp &, const BatchView &, int worker);
  Attention geometry(const AttentionOp &, const BatchView &, int seq, int head, int token, int n_tokens) const;
  SoftmaxState partial(const AttentionOp &, int seq, int head, int split);
  float *row(int buffer, int64_t token) { return buffers_[buffer].data() + token * widths_[buffer]; }

  std::shared_ptr<Pool> pool_;
  const Kernels &kernels_;
  std::vector<Step> steps_;
  std::vector<int64_t> widths_;
  std::vector<std::vector<float>> buffers_;
  std::vector<Rope> ropes_;
  std::vector<std::vector<Tile>> tiles_;                 // per step; only attention has some
  std::unique_ptr<std::atomic<int>[]> next_;             // per step: the next piece of work to be claimed
  std::vector<float> partials_;                          // decode: softmax states of all splits
  int max_splits_ = 0;
  std::vector<Run> runs_, logit_runs_;                   // of the batch's tokens, and of its rows that need logits
  ActivationStore shared_;
  std::vector<Worker> workers_;
  int64_t max_cols_ = 0;
};
