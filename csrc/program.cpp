// Execution of a recorded program. All workers walk the steps together; within a step each claims pieces of work until none
// is left, so a slowed core costs little. Which worker computes a piece never changes its result.
#include "program.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {

int ceil_div(int a, int b) { return (a + b - 1) / b; }
int tile_tokens(const AttentionOp &op) { return std::max(1, MAX_ROWS / (op.n_heads / op.n_kv_heads)); }
int n_splits(int n_positions) { return ceil_div(n_positions, KV_SPLIT); }

// The first split that position `pos` can see any of.
int first_split(const AttentionOp &op, int pos) { return op.window && pos >= op.window ? (pos - op.window + 1) / KV_SPLIT : 0; }

}  // namespace

template <class Code> void Program::CodedStore<Code>::reserve(size_t n) {
  if (codes.size() >= n) return;
  codes.resize(n), scales.resize(n / 32 + 1);
  sums16.resize(n / 16 + 1), sums32.resize(n / 32 + 1), scaled16.resize(n / 16 + 1), scaled32.resize(n / 32 + 1);
}

template <class Code> Coded<Code> Program::CodedStore<Code>::view(int64_t at) {
  if (codes.empty()) return {};
  return {codes.data() + at,         scales.data() + at / 32,   sums16.data() + at / 16,
          sums32.data() + at / 32, scaled16.data() + at / 16, scaled32.data() + at / 32};
}

Activations Program::ActivationStore::view(int64_t n_cols, const Run &run) {
  const int64_t at = run.slot * n_cols;
  return {n_cols,
          run.n_tokens == 1 ? 1 : LANES,
          values.empty() ? nullptr : values.data() + at,
          words.view(at),
          bytes.view(at),
          run.tiled && n_cols % BLOCK == 0 ? (uint16_t *)tiles.data() + at : nullptr};
}

void Program::ActivationStore::reserve(int64_t n_tokens, int64_t n_cols, int forms) {
  const size_t n = (size_t)(round_up(n_tokens, TILE_TOKENS) * n_cols);  // the last tile or group may be partly used
  if (forms & TILES && tiles.size() < n / 32 + 1) tiles.resize(n / 32 + 1);
  if (forms & VALUES && values.size() < n) values.resize(n);
  if (forms & WORDS) words.reserve(n);
  if (forms & BYTES) bytes.reserve(n);
}

Program::Program(std::shared_ptr<Pool> pool, const Kernels &kernels) : pool_(std::move(pool)), kernels_(kernels) {
  workers_.resize(pool_->size());
}

int Program::add_buffer(int64_t width) {
  widths_.push_back(width);
  buffers_.emplace_back();
  return (int)widths_.size() - 1;
}

int Program::add_rope(std::vector<double> inverse_frequencies, double scale, bool interleaved) {
  ropes_.push_back({std::move(inverse_frequencies), scale, interleaved, {}, {}});
  return (int)ropes_.size() - 1;
}

void Program::add(Step step) {
  for (const Product &p : step.linear.products) max_cols_ = std::max(max_cols_, p.weight.n_cols);
  forms_ |= step.linear.forms, pair_forms_ |= step.experts.forms;
  for (const Weight &w : step.experts.weights) {
    max_pair_cols_ = std::max(max_pair_cols_, w.n_cols);
    if (step.kind == Step::COMBINE) max_pair_rows_ = std::max(max_pair_rows_, w.n_rows);
  }
  steps_.push_back(std::move(step));
  tiles_.resize(steps_.size()), latent_plans_.resize(steps_.size());
  next_ = std::make_unique<std::atomic<int>[]>(steps_.size() * PHASES);
}

bool Program::run(const BatchView &batch) {
  unwanted_.store(false, std::memory_order_relaxed);
  last_step_.store(SIZE_MAX, std::memory_order_relaxed);
  reserve(batch);
  for (size_t i = 0; i < steps_.size() * PHASES; i++) next_[i].store(0, std::memory_order_relaxed);
  pool_->run([&](int worker, int) { work(batch, worker); });
  return last_step_.load(std::memory_order_relaxed) == SIZE_MAX;
}

// Everything that may allocate happens here, before the workers start.
void Program::reserve(const BatchView &batch) {
  for (size_t b = 0; b < buffers_.size(); b++)
    if (buffers_[b].size() < (size_t)(batch.n_tokens * widths_[b])) buffers_[b].resize((size_t)(batch.n_tokens * widths_[b]));
  plan_runs(batch);
  int n_slots = 0;
  for (const auto *runs : {&runs_, &logit_runs_})
    if (!runs->empty()) n_slots = std::max(n_slots, runs->back().slot + runs->back().n_tokens);
  shared_.reserve(n_slots, max_cols_, forms_ | (kernels_.tile_tokens ? TILES : 0));
  reserve_experts(batch);
  for (Worker &w : workers_) {
    w.activations.reserve(1, max_cols_, forms_);
    w.scratch.resize(MATMUL_SCRATCH / sizeof(Line));
    w.scores.resize((size_t)MAX_ROWS * KV_SPLIT);
    w.state.resize(2 * MAX_ROWS * (2 + MAX_LATENT));
  }
  for (Rope &r : ropes_)
    if (r.cos.size() < batch.n_tokens * r.inverse.size()) r.cos.resize(batch.n_tokens * r.inverse.size()), r.sin.resize(r.cos.size());
  max_splits_ = 0;
  for (int s = 0; s < batch.n_seqs; s++) max_splits_ = std::max(max_splits_, n_splits(batch.positions[batch.seq_starts[s + 1] - 1] + 1));
  size_t partial_floats = 0;
  for (size_t i = 0; i < steps_.size(); i++) {
    if (steps_[i].kind != Step::ATTENTION && steps_[i].kind != Step::LATENT) continue;
    const bool latent = steps_[i].kind == Step::LATENT;
    const AttentionOp &op = latent ? steps_[i].latent.absorbed : steps_[i].attention;
    partial_floats = std::max(partial_floats, (size_t)batch.n_seqs * max_splits_ * op.n_heads * (2 + op.v_dim));
    if (latent)
      plan_latent(batch, steps_[i].latent, latent_plans_[i], tiles_[i]);
    else
      plan_attention(batch, op, batch.seq_starts, tiles_[i]);
  }
  reserve_latent();
  if (partials_.size() < partial_floats) partials_.resize(partial_floats);
}

// Which rows go through the products together. A sequence uses the matrix unit if it has enough rows of its own, so how a token
// is computed depends on its own sequence's part of the batch and never on what else is in it.
void Program::plan_runs(const BatchView &batch) {
  runs_.clear(), logit_runs_.clear();
  for (int s = 0; s < batch.n_seqs; s++) add_rows(batch.seq_starts[s + 1] - batch.seq_starts[s], runs_);
  const auto sequence = [&](int i) {
    return std::upper_bound(batch.seq_starts, batch.seq_starts + batch.n_seqs, batch.logit_rows[i]) - batch.seq_starts;
  };
  for (int i = 0, end; i < batch.n_logits; i = end) {
    for (end = i + 1; end < batch.n_logits && sequence(end) == sequence(i);) end++;
    add_rows(end - i, logit_runs_);
  }
}

// Appends the next n rows, all of one sequence.
void Program::add_rows(int n, std::vector<Run> &runs) const {
  const bool tiled = kernels_.tile_tokens && n >= kernels_.tile_tokens;
  for (int taken; n > 0; n -= taken) {
    const Run last = runs.empty() ? Run{0, 0, 0, tiled} : runs.back();
    if (runs.empty() || tiled || last.tiled || last.n_tokens == MATMUL_TOKENS)
      runs.push_back({last.first + last.n_tokens, 0, (int)round_up(last.slot + last.n_tokens, TILE_TOKENS), tiled});
    taken = std::min(n, MATMUL_TOKENS - runs.back().n_tokens);
    runs.back().n_tokens += taken;
  }
}

// Pieces of attention work, the longest first. A lone decoded token with a long past is divided by splits.
void Program::plan_attention(const BatchView &batch, const AttentionOp &op, const int32_t *starts, std::vector<Tile> &tiles) const {
  tiles.clear();
  for (int s = 0; s < batch.n_seqs; s++) {
    const int start = starts[s], n = batch.seq_starts[s + 1] - start;
    if (n == 0) continue;
    const int pos = batch.positions[start];
    if (n == 1 && n_splits(pos + 1) - first_split(op, pos) > 1) {
      for (int split = first_split(op, pos); split < n_splits(pos + 1); split++)
        for (int h = 0; h < op.n_kv_heads; h++) tiles.push_back({s, h, start, 1, split});
    } else {
      const int size = tile_tokens(op);
      for (int t = (n - 1) / size * size; t >= 0; t -= size)
        for (int h = 0; h < op.n_kv_heads; h++) tiles.push_back({s, h, start + t, std::min(size, n - t), -1});
    }
  }
}

void Program::work(const BatchView &batch, int worker) {
  const int n_workers = pool_->size();
  for (Rope &r : ropes_)
    for (int t = worker; t < batch.n_tokens; t += n_workers)
      for (size_t i = 0; i < r.inverse.size(); i++) {
        const double angle = batch.positions[t] * r.inverse[i];
        r.cos[t * r.inverse.size() + i] = (float)(std::cos(angle) * r.scale);
        r.sin[t * r.inverse.size() + i] = (float)(std::sin(angle) * r.scale);
      }
  for (size_t i = 0; i < steps_.size(); i++) {
    const Step &step = steps_[i];
    switch (step.kind) {
      case Step::EMBED: embed(step, batch, worker); break;
      case Step::LINEAR: linear(step.linear, runs_, nullptr, nullptr, next_[i * PHASES], worker); break;
      case Step::ATTENTION: attention(step.attention, batch, i, worker); break;
      case Step::LATENT: latent(step.latent, batch, i, worker); break;
      case Step::ROUTE: route(step.route, batch, worker); break;
      case Step::EXPERTS: experts(step.experts, batch, next_[i * PHASES], worker); break;
      case Step::COMBINE: combine(step.experts, batch, next_[i * PHASES], worker); break;
      case Step::HEAD:
        if (batch.n_logits) linear(step.linear, logit_runs_, batch.logit_rows, batch.logits, next_[i * PHASES], worker);
        break;
    }
    // One worker decides for all, by number: whoever passes this barrier late must not act on what is decided at the next. Pieces
    // that others left unclaimed are only missed if that worker saw the flag as well; else it has computed them.
    if (worker == 0 && unwanted_.load(std::memory_order_relaxed)) last_step_.store(i, std::memory_order_relaxed);
    pool_->barrier().wait();
    if (last_step_.load(std::memory_order_relaxed) <= i) return;
  }
}

void Program::embed(const Step &step, const BatchView &batch, int worker) {
  for (int t = worker; t < batch.n_tokens; t += pool_->size()) {
    float *out = row(step.out, t);
    if (!step.rows) {
      kernels_.unpack_row(step.table, batch.tokens[t], out);
      continue;
    }
    const uint8_t *from = step.rows + batch.tokens[t] * step.row_bytes;
    for (int64_t k = 0; k < widths_[step.out]; k++) {
      uint16_t half;
      memcpy(&half, from + 2 * k, 2);  // of any alignment
      const uint32_t bits = (uint32_t)half << 16;
      memcpy(out + k, &bits, 4);
    }
  }
}

// rows: which tokens of the input buffer to use, or null for all. to: where results go instead of a buffer (the logits).
void Program::linear(const LinearOp &op, const std::vector<Run> &runs, const int32_t *rows, float *to, std::atomic<int> &next,
                     int worker) {
  const int64_t n_cols = op.products[0].weight.n_cols;
  // A single token is prepared by every worker for itself: cheaper than meeting at a barrier.
  const bool alone = runs.size() == 1 && runs[0].n_tokens == 1;
  ActivationStore &store = alone ? workers_[worker].activations : shared_;
  for (const Run &run : runs) {
    const Activations x = store.view(n_cols, run);
    for (int t = 0, i = run.first; t < run.n_tokens; t++, i++)
      if (alone || (run.slot + t) / LANES % pool_->size() == worker)  // tokens that share cache lines are one worker's
        kernels_.prepare(row(op.in, rows ? rows[i] : i), op.norm, op.eps, x.tiles ? TILES : op.forms, x, t);
  }
  if (!alone) pool_->barrier().wait();
  multiply(op, store, runs, to, next, worker);
}

void Program::multiply(const LinearOp &op, ActivationStore &store, const std::vector<Run> &runs, float *to, std::atomic<int> &next,
                       int worker) {
  int64_t total = 0;
  for (const Product &p : op.products) total += p.weight.n_panels();
  const int64_t pair = kernels_.tile_tokens ? 2 : 1;  // tiles take two panels at a time
  for (int64_t begin, end; claim(next, unwanted_, total, pool_->size(), pair, begin, end);) {
    int64_t first = 0;  // panel number, over all products, where this product starts
    for (const Product &p : op.products) {
      const int64_t p0 = std::max<int64_t>(begin - first, 0), p1 = std::min(end - first, p.weight.n_panels());
      first += p.weight.n_panels();
      if (p0 >= p1) continue;
      for (const Run &run : runs) {
        const Activations x = store.view(p.weight.n_cols, run);
        const int64_t stride = to ? p.weight.n_rows : widths_[p.out];
        const Matmul m{&p.weight, p.up.data ? &p.up : nullptr, p.bias, nullptr, &x, (to ? to : row(p.out, 0)) + run.first * stride,
                       stride, run.n_tokens, p.up.data ? Epilogue::SWIGLU : p.add ? Epilogue::ADD : Epilogue::STORE, 0, 0};
        kernels_.matmul(m, p0, p1, (uint8_t *)workers_[worker].scratch.data());
      }
    }
  }
}

void Program::attention(const AttentionOp &op, const BatchView &batch, size_t step, int worker) {
  append(op, batch, worker);
  pool_->barrier().wait();
  const auto &tiles = tiles_[step];
  for (int i; !unwanted_.load(std::memory_order_relaxed) && (i = next_[step * PHASES].fetch_add(1, std::memory_order_relaxed)) < (int)tiles.size();)
    attend_tile(op, batch, tiles[i], worker);
  merge_decoded(op, batch, tiles, worker);
}

void Program::append(const AttentionOp &op, const BatchView &batch, int worker) {
  for (int s = 0; s < batch.n_seqs; s++)
    for (int t = batch.seq_starts[s]; t < batch.seq_starts[s + 1]; t++) {
      if (t % pool_->size() != worker) continue;
      if (op.q_norm) kernels_.norm_heads(row(op.q, t), op.n_heads, op.k_dim, op.q_norm, op.q_eps);
      if (op.k_norm) kernels_.norm_heads(row(op.k, t), op.n_kv_heads, op.k_dim, op.k_norm, op.k_eps);
      if (op.rope >= 0) {
        const Rope &r = ropes_[op.rope];
        const float *cos = r.cos.data() + t * r.inverse.size(), *sin = r.sin.data() + t * r.inverse.size();
        const int dim = 2 * (int)r.inverse.size();
        kernels_.rope(row(op.q, t), op.n_heads, op.k_dim, dim, cos, sin, r.interleaved);
        kernels_.rope(row(op.k, t), op.n_kv_heads, op.k_dim, dim, cos, sin, r.interleaved);
      }
      const int pos = batch.positions[t];
      const int64_t id = batch.block_table[(int64_t)s * batch.max_blocks + pos / KV_BLOCK];
      uint16_t *block = batch.kv + id * batch.block_elems + op.kv_offset;
      kernels_.append_kv(row(op.k, t), row(op.v, t), block, pos % KV_BLOCK, op.n_kv_heads, op.k_dim, op.v_dim);
    }
}

Attention Program::geometry(const AttentionOp &op, const BatchView &batch, int seq, int head, int token, int n_tokens) const {
  const int n_group = op.n_heads / op.n_kv_heads;
  const int64_t per_head = op.latent ? 0 : (int64_t)KV_BLOCK * (op.k_dim + op.v_dim);
  const float *q = buffers_[op.q].data() + token * widths_[op.q] + (int64_t)head * n_group * op.k_dim;
  return {q, widths_[op.q], batch.kv + op.kv_offset, batch.block_table + (int64_t)seq * batch.max_blocks, batch.block_elems,
          head * per_head, op.k_dim, op.v_dim, op.latent, n_group, n_tokens, batch.positions[token], op.window, op.scale};
}

SoftmaxState Program::partial(const AttentionOp &op, int seq, int head, int split) {
  const int n_group = op.n_heads / op.n_kv_heads;
  const size_t size = (size_t)n_group * (2 + op.v_dim);
  float *p = partials_.data() + (((size_t)seq * op.n_kv_heads + head) * max_splits_ + split) * size;
  return {p, p + n_group, p + 2 * n_group};
}

void Program::attend_tile(const AttentionOp &op, const BatchView &batch, const Tile &tile, int worker) {
  const Attention a = geometry(op, batch, tile.seq, tile.head, tile.token, tile.n_tokens);
  Worker &w = workers_[worker];
  if (tile.split >= 0) return kernels_.attend_split(a, tile.split, w.scores.data(), partial(op, tile.seq, tile.head, tile.split));
  const int rows = a.n_tokens * a.n_group;
  float *p = w.state.data();
  const SoftmaxState state{p, p + MAX_ROWS, p + 4 * MAX_ROWS}, part{p + 2 * MAX_ROWS, p + 3 * MAX_ROWS, p + 4 * MAX_ROWS + MAX_ROWS * MAX_LATENT};
  std::fill_n(state.max, rows, MASKED);
  std::fill_n(state.sum, rows, 0.0f);
  std::fill_n(state.out, (size_t)rows * a.v_dim, 0.0f);
  for (int split = first_split(op, a.first_pos); split < n_splits(a.first_pos + a.n_tokens); split++) {
    kernels_.attend_split(a, split, w.scores.data(), part);
    kernels_.merge_split(state, part, rows, a.v_dim);
  }
  float *out = row(op.out, tile.token) + (int64_t)tile.head * a.n_group * a.v_dim;
  kernels_.finish_rows(state, op.sinks ? op.sinks + tile.head * a.n_group : nullptr, rows, a.n_group, a.v_dim, out, widths_[op.out]);
}

// Adds up the splits of tokens whose attention was divided by splits, if there are any.
void Program::merge_decoded(const AttentionOp &op, const BatchView &batch, const std::vector<Tile> &tiles, int worker) {
  if (std::none_of(tiles.begin(), tiles.end(), [](const Tile &t) { return t.split >= 0; })) return;
  pool_->barrier().wait();
  const int n_group = op.n_heads / op.n_kv_heads;
  int n = 0;
  for (const auto &[seq, head, token, n_tokens, first] : tiles) {
    const int pos = batch.positions[token];
    if (first < 0 || first != first_split(op, pos) || n++ % pool_->size() != worker) continue;
    float *p = workers_[worker].state.data();
    const SoftmaxState state{p, p + n_group, p + 2 * n_group};
    std::fill_n(state.max, n_group, MASKED);
    std::fill_n(state.sum, n_group, 0.0f);
    std::fill_n(state.out, (size_t)n_group * op.v_dim, 0.0f);
    for (int split = first; split < n_splits(pos + 1); split++)
      kernels_.merge_split(state, partial(op, seq, head, split), n_group, op.v_dim);
    float *out = row(op.out, token) + (int64_t)head * n_group * op.v_dim;
    kernels_.finish_rows(state, op.sinks ? op.sinks + head * n_group : nullptr, n_group, n_group, op.v_dim, out, widths_[op.out]);
  }
}
