// A model's forward pass, recorded once as a list of fused operations and replayed for every batch in one call.
//
// The model file (Python) records embed, linear, attention, experts and head; run() executes them on all workers of a pool with
// a barrier between phases. Mixtures of experts are in experts.cpp, latent attention in latent.cpp. Knows buffers, batches and KV blocks; knows nothing of model families or of how kernels compute.
#pragma once
#include <algorithm>
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
  int64_t kv_offset;    // f16 elements from the start of a KV block to this layer's part
  int n_heads, n_kv_heads, k_dim, v_dim, window;
  bool latent;          // the KV block's rows are latents, the same for all n_kv_heads
  int rope;             // index of the rotation table, or -1
  float scale;
  const float *sinks;   // [n_heads] scores without a value, or null
  const float *q_norm;  // [k_dim] or null: each head is RMS-normalised by itself, before it is rotated
  float q_eps;
  const float *k_norm;
  float k_eps;
};

// Multi-head latent attention. A sequence that brings many tokens attends in the plain form: keys and values of its whole past
// are made from the latents, head by head. One that brings few has its queries made comparable to the latents instead
// (`absorbed`: their buffers, and the attention over latents), and values made of the weighted latents. See latent.cpp.
struct LatentOp {
  int q, latent, out;   // buffers
  int rank, rotated;    // of a row of `latent`: the latent, normalised by `norm`, then what all heads' keys have in common
  int k_dim, v_dim;     // of a head; k_dim without what is rotated
  const float *norm;    // [rank]
  float eps;
  std::vector<Weight> keys, queries, values;  // [n_heads] of [k_dim, rank], [rank, k_dim], [v_dim, rank]
  int plain_forms, query_forms, value_forms;  // of the activations that these need
  AttentionOp absorbed;
  int n_heads() const { return (int)keys.size(); }
};

// A mixture of experts is three steps. ROUTE chooses k experts for every token from their scores. EXPERTS computes the gated
// products, a row per (token, expert) pair, pairs ordered by expert. COMBINE multiplies those with the second matrices and adds
// the results, times the experts' weights, to each token's row of `out`.
struct RouteOp {
  int in;               // buffer of scores
  int routing;          // index of the choice made, for the other two steps
};

// How experts are chosen from scores, and what they weigh: kernels/ops.py, Gating.
struct Gating {
  bool sigmoid = false, normalised = true;
  float scale = 1;
  const float *bias = nullptr;  // [n_experts] or null
  int n_groups = 1, n_kept_groups = 1, group_best = 1;
};

struct ExpertsOp {
  int in = 0, out = 0;  // buffers
  const float *norm = nullptr;
  float eps = 0;
  int forms = 0;
  std::vector<Weight> weights = {}, ups = {};                // one per expert; ups only of EXPERTS
  const float *bias = nullptr, *up_bias = nullptr;           // [n_experts, n_rows], or null
  Epilogue epilogue = Epilogue::STORE;
  float alpha = 0, limit = 0;
  int routing = 0;
};

struct Step {
  enum Kind { EMBED, LINEAR, ATTENTION, LATENT, ROUTE, EXPERTS, COMBINE, HEAD } kind;
  int out = 0;                 // EMBED
  Weight table{};              // EMBED, packed, or
  const uint8_t *rows = nullptr;  // rows of bfloat16 as a file has them, `row_bytes` apart
  int64_t row_bytes = 0;
  LinearOp linear{};           // LINEAR and HEAD
  AttentionOp attention{};     // ATTENTION
  LatentOp latent{};           // LATENT
  RouteOp route{};             // ROUTE
  ExpertsOp experts{};         // EXPERTS and COMBINE
};

struct BatchView {
  const int32_t *tokens, *positions, *seq_starts, *block_table, *logit_rows;
  const int32_t *prompts;      // [n_seqs, 2] first and end positions of what is computed as one prompt; null: of the batch's part
  int n_tokens, n_seqs, max_blocks, n_logits;
  uint16_t *kv;                // [n_blocks, block_elems]: every layer's keys and values of KV_BLOCK tokens
  int64_t block_elems;
  float *logits;               // [n_logits, vocab]
};

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// The next piece of `total` items, claimed from a counter that workers share: large at first, one item at last, so that all end
// together and few claims are made. Sizes are multiples of `align`. False when nothing is left, or nobody wants the rest.
inline bool claim(std::atomic<int> &next, const std::atomic<bool> &unwanted, int64_t total, int n_workers, int64_t align, int64_t &begin,
                  int64_t &end) {
  if (unwanted.load(std::memory_order_relaxed)) return false;
  int at = next.load(std::memory_order_relaxed);
  do {
    if (at >= total) return false;
    const int64_t share = std::max<int64_t>(1, (total - at) / (4 * n_workers));
    begin = at, end = std::min(total, at + round_up(share, align));
  } while (!next.compare_exchange_weak(at, (int)end, std::memory_order_relaxed));
  return true;
}

constexpr int PHASES = 3;  // pieces of work are claimed in at most so many phases of a step

class Program {
 public:
  Program(std::shared_ptr<Pool> pool, const Kernels &kernels);
  int add_buffer(int64_t width);
  int add_rope(std::vector<double> inverse_frequencies, double scale, bool interleaved);
  int add_routing(int n_experts, int k, const Gating &gating);
  void add(Step step);
  // False if `interrupt` ended it early: the logits then mean nothing, and the batch's KV has to be computed again.
  bool run(const BatchView &batch);
  // Ends the run under way soon, if there is one. Any thread may call it at any time.
  void interrupt() { unwanted_.store(true, std::memory_order_relaxed); }
  const char *isa() const { return kernels_.isa; }
  int n_threads() const { return pool_->size(); }
  int64_t width(int buffer) const { return widths_.at(buffer); }
  int64_t rotated(int rope) const { return 2 * (int64_t)ropes_.at(rope).inverse.size(); }
  int n_experts(int routing) const { return routings_.at(routing).n_experts; }
  int chosen(int routing) const { return routings_.at(routing).k; }

 private:
  struct Rope {
    std::vector<double> inverse;
    double scale;
    bool interleaved;
    std::vector<float> cos, sin;  // [n_tokens, dim / 2]
  };
  struct alignas(64) Line { uint8_t bytes[64]; };  // for memory whose vectors must not straddle cache lines
  struct Run {      // tokens that go through a product together, at most MATMUL_TOKENS
    int first, n_tokens;
    int slot;       // where their activations start, in tokens: a multiple of TILE_TOKENS
    bool tiled;     // on the matrix unit
  };
  template <class Code> struct CodedStore {
    std::vector<Code> codes;
    std::vector<float> scales, scaled16, scaled32;
    std::vector<int32_t> sums16, sums32;
    void reserve(size_t n);
    Coded<Code> view(int64_t at);
  };
  struct ActivationStore {
    std::vector<float> values;
    CodedStore<int16_t> words;
    CodedStore<int8_t> bytes;
    std::vector<Line> tiles;
    void reserve(int64_t n_tokens, int64_t n_cols, int forms);
    Activations view(int64_t n_cols, const Run &run);
  };
  struct Worker {
    ActivationStore activations;  // of a single token, or of its pairs
    std::vector<Line> scratch;
    std::vector<float> scores, state;
    std::vector<float> ranks, sorted, groups;  // of the experts of one token, those of one group, and of the groups
    std::vector<int> kept;                     // groups
    ActivationStore heads;             // of one head of the absorbed tokens
    std::vector<float> products;       // of them
    std::vector<float> latent, keys, values, states;  // a row of the cache; the others of one head, in the plain form
    std::vector<uint16_t> kv;          // of one split, in KV blocks
  };
  struct Tile { int seq, head, token, n_tokens, split; };  // split -1: all splits, one after the other

  struct Routing {
    struct ExpertRun { int expert; Run run; };
    int n_experts, k;
    Gating gating;
    std::vector<int> expert, place;  // [n_tokens, k]: the chosen experts, best first, and where the pair stands among all
    std::vector<float> weight;       // [n_tokens, k]
    std::vector<int> order, counts;  // the pair at each place; scratch of the sorting
    std::vector<ExpertRun> runs;     // the places of each expert
    int64_t max_slots(int n_pairs, bool tiled) const;
  };

  struct LatentPlan {  // of one step
    struct Sequence { int seq, slot, n_positions; };  // with tokens in the plain form; its latents are activations from `slot`
    struct Task { int sequence, head, token, n_tokens; };
    std::vector<Sequence> plain;
    std::vector<Task> tasks;
    std::vector<int> absorbed;        // tokens
    std::vector<int32_t> starts;      // per sequence, its first absorbed token
  };

  void reserve(const BatchView &batch);
  void reserve_latent();
  void reserve_experts(const BatchView &batch);
  void plan_runs(const BatchView &batch);
  void add_rows(int n, std::vector<Run> &runs) const;
  // starts: per sequence, its first token of interest; a sequence that has none there is left out.
  void plan_attention(const BatchView &, const AttentionOp &, const int32_t *starts, std::vector<Tile> &tiles) const;
  void plan_latent(const BatchView &batch, const LatentOp &op, LatentPlan &plan, std::vector<Tile> &tiles) const;
  void work(const BatchView &batch, int worker);
  void embed(const Step &, const BatchView &, int worker);
  void linear(const LinearOp &, const std::vector<Run> &runs, const int32_t *rows, float *to, std::atomic<int> &next, int worker);
  void multiply(const LinearOp &, ActivationStore &, const std::vector<Run> &runs, float *to, std::atomic<int> &next, int worker);
  void route(const RouteOp &, const BatchView &, int worker);
  void choose(const float *scores, Routing &, int token, Worker &) const;
  void group(Routing &, int n_pairs) const;
  void experts(const ExpertsOp &, const BatchView &, std::atomic<int> &next, int worker);
  void combine(const ExpertsOp &, const BatchView &, std::atomic<int> &next, int worker);
  void prepare_pairs(const ExpertsOp &, bool alone, int worker);
  void multiply_expert(const ExpertsOp &, const Routing::ExpertRun &, const Activations &, float *to, int64_t p0, int64_t p1, int worker);
  template <class F> void share_panels(const ExpertsOp &, std::atomic<int> &next, int n_runs, const F &work);
  void attention(const AttentionOp &, const BatchView &, size_t step, int worker);
  void latent(const LatentOp &, const BatchView &, size_t step, int worker);
  void append_latents(const LatentOp &, const BatchView &, int worker);
  void prepare_latents(const LatentOp &, const BatchView &, const LatentPlan &, int worker);
  void multiply_heads(const std::vector<Weight> &, int forms, int in, int in_head, int out, int out_head, const std::vector<int> &tokens,
                      std::atomic<int> &next, int worker);
  void attend_plainly(const LatentOp &, const BatchView &, const LatentPlan &, const LatentPlan::Task &, int worker);
  void expand_latents(const LatentOp &, const BatchView &, const LatentPlan::Sequence &, int head, int first, int n, Worker &);
  void append(const AttentionOp &, const BatchView &, int worker);
  void attend_tile(const AttentionOp &, const BatchView &, const Tile &, int worker);
  void merge_decoded(const AttentionOp &, const BatchView &, const std::vector<Tile> &tiles, int worker);
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
  std::vector<LatentPlan> latent_plans_;                 // per step; only latent attention has some
  std::unique_ptr<std::atomic<int>[]> next_;             // per step and phase: the next piece of work to be claimed
  std::atomic<bool> unwanted_{false};                    // nobody wants the run's result any more
  std::atomic<size_t> last_step_{SIZE_MAX};              // after which all workers leave an unwanted run
  std::vector<float> partials_;                          // decode: softmax states of all splits
  int max_splits_ = 0;
  std::vector<Run> runs_, logit_runs_;                   // of the batch's tokens, and of its rows that need logits
  ActivationStore shared_;
  std::vector<Worker> workers_;
  int64_t max_cols_ = 0;
  int forms_ = 0;
  std::vector<Routing> routings_;
  std::vector<uint8_t> tiled_tokens_;                    // of the batch: whether its sequence uses the matrix unit
  ActivationStore latents_;                              // of the past of sequences in the plain form
  std::vector<int32_t> cycle_;                           // block numbers of a split's own KV blocks, over and over
  ActivationStore pairs_;
  std::vector<float> pair_outputs_;                      // [n_pairs, n_rows] of the step at hand
  int64_t max_pair_cols_ = 0, max_pair_rows_ = 0;
  int pair_forms_ = 0;
};
