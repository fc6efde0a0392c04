// Execution of a recorded program. All workers walk the steps together; within a step each claims pieces of work until none
// is left, so a slowed core costs little. Which worker computes a piece never changes its result.
#include "program.h"

#include <algorithm>
#include <cmath>

namespace {

int ceil_div(int a, int b) { return (a + b - 1) / b; }
int tile_tokens(const AttentionOp &op) { return std::max(1, MAX_ROWS / (op.n_heads / op.n_kv_heads)); }
int n_splits(int n_positions) { return ceil_div(n_positions, KV_SPLIT); }

// The first split that position `pos` can see any of.
int first_split(const AttentionOp &op, int pos) { return op.window && pos >= op.window ? (pos - op.window + 1) / KV_SPLIT : 0; }

bool is_split(const AttentionOp &op, const BatchView &batch, int seq) {
  const int start = batch.seq_starts[seq], pos = batch.positions[start];
  return batch.seq_starts[seq + 1] - start == 1 && n_splits(pos + 1) - first_split(op, pos) > 1;
}

}  // namespace

Activations Program::ActivationStore::view(int64_t n_cols, int lanes) {
  return {n_cols, lanes, values.data(), codes.data(), scales.data(), sums16.data(), sums32.data(), scaled16.data(), scaled32.data()};
}

void Program::ActivationStore::reserve(int64_t n_tokens, int64_t n_cols) {
  const size_t n = (size_t)((n_tokens + LANES - 1) / LANES * LANES * n_cols);  // the last group may be partly used
  if (values.size() >= n) return;
  values.resize(n), codes.resize(n), scales.resize(n / 32 + 1);
  sums16.resize(n / 16 + 1), sums32.resize(n / 32 + 1), scaled16.resize(n / 16 + 1), scaled32.resize(n / 32 + 1);
}

Program::Program(std::shared_ptr<Pool> pool, const Kernels &kernels) : pool_(std::move(pool)), kernels_(kernels) {
  workers_.resize(pool_->size());
}

int Program::add_buffer(int64_t width) {
  widths_.push_back(width);
  buffers_.emplace_back();
  return (int)widths_.size() - 1;
}

int Program::add_rope(std::vector<double> inverse_frequencies, double scale) {
  ropes_.push_back({std::move(inverse_frequencies), scale, {}, {}});
  return (int)ropes_.size() - 1;
}

void Program::add(Step step) {
  for (const Product &p : step.linear.products) max_cols_ = std::max(max_cols_, p.weight.n_cols);
  steps_.push_back(std::move(step));
  tiles_.resize(steps_.size());
  next_ = std::make_unique<std::atomic<int>[]>(steps_.size());
}

void Program::run(const BatchView &batch) {
  reserve(batch);
  for (size_t i = 0; i < steps_.size(); i++) next_[i].store(0, std::memory_order_relaxed);
  pool_->run([&](int worker, int) { work(batch, worker); });
}

// Everything that may allocate happens here, before the workers start.
void Program::reserve(const BatchView &batch) {
  for (size_t b = 0; b < buffers_.size(); b++)
    if (buffers_[b].size() < (size_t)(batch.n_tokens * widths_[b])) buffers_[b].resize((size_t)(batch.n_tokens * widths_[b]));
  shared_.reserve(std::max(batch.n_tokens, batch.n_logits), max_cols_);
  for (Worker &w : workers_) {
    w.activations.reserve(1, max_cols_);
    w.scratch.resize(MATMUL_SCRATCH);
    w.scores.resize((size_t)MAX_ROWS * KV_SPLIT);
    w.state.resize(2 * MAX_ROWS * (2 + MAX_HEAD_DIM));
  }
  for (Rope &r : ropes_)
    if (r.cos.size() < batch.n_tokens * r.inverse.size()) r.cos.resize(batch.n_tokens * r.inverse.size()), r.sin.resize(r.cos.size());
  max_splits_ = 0;
  for (int s = 0; s < batch.n_seqs; s++) max_splits_ = std::max(max_splits_, n_splits(batch.positions[batch.seq_starts[s + 1] - 1] + 1));
  size_t partial_floats = 0;
  for (size_t i = 0; i < steps_.size(); i++) {
    if (steps_[i].kind != Step::ATTENTION) continue;
    const AttentionOp &op = steps_[i].attention;
    partial_floats = std::max(partial_floats, (size_t)batch.n_seqs * max_splits_ * op.n_heads * (2 + op.head_dim));
    plan_attention(batch, op, tiles_[i]);
  }
  if (partials_.size() < partial_floats) partials_.resize(partial_floats);
}

// Pieces of attention work, the longest first. A lone decoded token with a long past is divided by splits.
void Program::plan_attention(const BatchView &batch, const AttentionOp &op, std::vector<Tile> &tiles) const {
  tiles.clear();
  for (int s = 0; s < batch.n_seqs; s++) {
    const int start = batch.seq_starts[s], n = batch.seq_starts[s + 1] - start;
    if (is_split(op, batch, s)) {
      const int pos = batch.positions[start];
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
      case Step::LINEAR: linear(step.linear, batch.n_tokens, nullptr, nullptr, next_[i], worker); break;
      case Step::ATTENTION: attention(step.attention, batch, next_[i], worker); break;
      case Step::HEAD:
        if (batch.n_logits) linear(step.linear, batch.n_logits, batch.logit_rows, batch.logits, next_[i], worker);
        break;
    }
    pool_->barrier().wait();
  }
}

void Program::embed(const Step &step, const BatchView &batch, int worker) {
  for (int t = worker; t < batch.n_tokens; t += pool_->size()) kernels_.unpack_row(step.table, batch.tokens[t], row(step.out, t));
}

// rows: which tokens of the input buffer to use, or null for all. to: where results go instead of a buffer (the logits).
void Program::linear(const LinearOp &op, int n_tokens, const int32_t *rows, float *to, std::atomic<int> &next, int worker) {
  const int64_t n_cols = op.products[0].weight.n_cols;
  // A single token is prepared by every worker for itself: cheaper than meeting at a barrier.
  const bool alone = n_tokens == 1;
  const Activations x = (alone ? workers_[worker].activations : shared_).view(n_cols, alone ? 1 : LANES);
  for (int t = alone ? 0 : worker; t < n_tokens; t += alone ? 1 : pool_->size())
    kernels_.prepare(row(op.in, rows ? rows[t] : t), op.norm, op.eps, op.forms, x, t);
  if (!alone) pool_->barrier().wait();
  multiply(op, x, n_tokens, to, next, worker);
}

void Program::multiply(const LinearOp &op, const Activations &x, int n_tokens, float *to, std::atomic<int> &next, int worker) {
  int64_t total = 0;
  for (const Product &p : op.products) total += p.weight.n_panels();
  const int64_t piece = std::max<int64_t>(1, total / (8 * pool_->size()));
  for (int64_t begin; (begin = piece * next.fetch_add(1, std::memory_order_relaxed)) < total;) {
    const int64_t end = std::min(total, begin + piece);
    int64_t first = 0;  // panel number, over all products, where this product starts
    for (const Product &p : op.products) {
      const int64_t p0 = std::max<int64_t>(begin - first, 0), p1 = std::min(end - first, p.weight.n_panels());
      first += p.weight.n_panels();
      for (int t = 0; p0 < p1 && t < n_tokens; t += MATMUL_TOKENS) {
        const int64_t c = x.n_cols;
        const Activations part{c, x.lanes, x.values + t * c, x.codes + t * c, x.scales + t * c / 32, x.sums16 + t * c / 16,
                               x.sums32 + t * c / 32, x.scaled16 + t * c / 16, x.scaled32 + t * c / 32};
        const int64_t stride = to ? p.weight.n_rows : widths_[p.out];
        const Matmul m{&p.weight, p.up.data ? &p.up : nullptr, p.bias, &part, (to ? to : row(p.out, 0)) + t * stride, stride,
                       std::min(n_tokens - t, MATMUL_TOKENS),
                       p.up.data ? Epilogue::SWIGLU : p.add ? Epilogue::ADD : Epilogue::STORE};
        kernels_.matmul(m, p0, p1, workers_[worker].scratch.data());
      }
    }
  }
}

void Program::attention(const AttentionOp &op, const BatchView &batch, std::atomic<int> &next, int worker) {
  append(op, batch, worker);
  pool_->barrier().wait();
  const auto &tiles = tiles_[&next - next_.get()];
  bool decoded = false;
  for (const Tile &t : tiles) decoded |= t.split >= 0;
  for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < (int)tiles.size();) attend_tile(op, batch, tiles[i], worker);
  if (!decoded) return;
  pool_->barrier().wait();
  merge_decoded(op, batch, worker);
}

void Program::append(const AttentionOp &op, const BatchView &batch, int worker) {
  for (int s = 0; s < batch.n_seqs; s++)
    for (int t = batch.seq_starts[s]; t < batch.seq_starts[s + 1]; t++) {
      if (t % pool_->size() != worker) continue;
      if (op.rope >= 0) {
        const Rope &r = ropes_[op.rope];
        const float *cos = r.cos.data() + t * r.inverse.size(), *sin = r.sin.data() + t * r.inverse.size();
        kernels_.rope(row(op.q, t), op.n_heads, op.head_dim, cos, sin);
        kernels_.rope(row(op.k, t), op.n_kv_heads, op.head_dim, cos, sin);
      }
      const int pos = batch.positions[t];
      const int64_t id = batch.block_table[(int64_t)s * batch.max_blocks + pos / KV_BLOCK];
      uint16_t *block = batch.kv + id * batch.block_elems + op.kv_offset;
      kernels_.append_kv(row(op.k, t), row(op.v, t), block, pos % KV_BLOCK, op.n_kv_heads, op.head_dim);
    }
}

Attention Program::geometry(const AttentionOp &op, const BatchView &batch, int seq, int head, int token, int n_tokens) const {
  const int n_group = op.n_heads / op.n_kv_heads;
  const int64_t per_head = (int64_t)2 * KV_BLOCK * op.head_dim;
  const float *q = buffers_[op.q].data() + token * widths_[op.q] + (int64_t)head * n_group * op.head_dim;
  return {q, widths_[op.q], batch.kv + op.kv_offset, batch.block_table + (int64_t)seq * batch.max_blocks, batch.block_elems,
          head * per_head, op.head_dim, n_group, n_tokens, batch.positions[token], op.window, op.scale};
}

SoftmaxState Program::partial(const AttentionOp &op, int seq, int head, int split) {
  const int n_group = op.n_heads / op.n_kv_heads;
  const size_t size = (size_t)n_group * (2 + op.head_dim);
  float *p = partials_.data() + (((size_t)seq * op.n_kv_heads + head) * max_splits_ + split) * size;
  return {p, p + n_group, p + 2 * n_group};
}

void Program::attend_tile(const AttentionOp &op, const BatchView &batch, const Tile &tile, int worker) {
  const Attention a = geometry(op, batch, tile.seq, tile.head, tile.token, tile.n_tokens);
  Worker &w = workers_[worker];
  if (tile.split >= 0) return kernels_.attend_split(a, tile.split, w.scores.data(), partial(op, tile.seq, tile.head, tile.split));
  const int rows = a.n_tokens * a.n_group;
  float *p = w.state.data();
  const SoftmaxState state{p, p + MAX_ROWS, p + 4 * MAX_ROWS}, part{p + 2 * MAX_ROWS, p + 3 * MAX_ROWS, p + 4 * MAX_ROWS + MAX_ROWS * MAX_HEAD_DIM};
  std::fill_n(state.max, rows, MASKED);
  std::fill_n(state.sum, rows, 0.0f);
  std::fill_n(state.out, (size_t)rows * a.head_dim, 0.0f);
  for (int split = first_split(op, a.first_pos); split < n_splits(a.first_pos + a.n_tokens); split++) {
    kernels_.attend_split(a, split, w.scores.data(), part);
    kernels_.merge_split(state, part, rows, a.head_dim);
  }
  float *out = row(op.out, tile.token) + (int64_t)tile.head * a.n_group * a.head_dim;
  kernels_.finish_rows(state, rows, a.n_group, a.head_dim, out, widths_[op.out]);
}

void Program::merge_decoded(const AttentionOp &op, const BatchView &batch, int worker) {
  const int n_group = op.n_heads / op.n_kv_heads;
  for (int i = worker; i < batch.n_seqs * op.n_kv_heads; i += pool_->size()) {
    const int seq = i / op.n_kv_heads, head = i % op.n_kv_heads, token = batch.seq_starts[seq];
    if (!is_split(op, batch, seq)) continue;
    const int pos = batch.positions[token];
    float *p = workers_[worker].state.data();
    const SoftmaxState state{p, p + n_group, p + 2 * n_group};
    std::fill_n(state.max, n_group, MASKED);
    std::fill_n(state.sum, n_group, 0.0f);
    std::fill_n(state.out, (size_t)n_group * op.head_dim, 0.0f);
    for (int split = first_split(op, pos); split < n_splits(pos + 1); split++)
      kernels_.merge_split(state, partial(op, seq, head, split), n_group, op.head_dim);
    kernels_.finish_rows(state, n_group, n_group, op.head_dim, row(op.out, token) + (int64_t)head * n_group * op.head_dim, widths_[op.out]);
  }
}
