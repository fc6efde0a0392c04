// Multi-head latent attention (MLA): the KV cache holds one latent per token, of which each head makes its own keys and values.
//
// Plain form: keys and values of a sequence's whole past are made anew, head by head and split by split, and attended to as
// usual. Absorbed form: a query times the head's key matrix can be compared with latents, and the weighted latents times its
// value matrix are the output. Plain costs by the length of the past whatever is asked of it, absorbed several times as much
// per pair of query and position: so long prompts are plain, and decoding is absorbed. Which one it is depends on the prompt as a
// whole, never on how it is cut into batches or on what else is in them.
#include <algorithm>

#include "program.h"

namespace {

constexpr int EXPANDED = 128;  // positions whose keys and values are made at once: they stay in the L2 cache

// Whether a prompt of n_new tokens after n_past in the cache is cheaper in the plain form, in multiplications.
bool is_plain(const LatentOp &op, int64_t n_past, int64_t n_new) {
  const int64_t expanding = n_past * op.rank * (op.k_dim + op.v_dim);
  const int64_t saved = n_new * (n_past + n_new / 2) * (2 * op.rank - op.k_dim - op.v_dim);
  return n_new > 1 && saved >= expanding;
}

// The block that holds a position.
const uint16_t *block_of(const LatentOp &op, const BatchView &batch, int seq, int pos) {
  const int64_t id = batch.block_table[(int64_t)seq * batch.max_blocks + pos / KV_BLOCK];
  return batch.kv + id * batch.block_elems + op.absorbed.kv_offset;
}

}  // namespace

void Program::plan_latent(const BatchView &batch, const LatentOp &op, LatentPlan &plan, std::vector<Tile> &tiles) const {
  plan.plain.clear(), plan.tasks.clear(), plan.absorbed.clear();
  plan.starts.resize(batch.n_seqs);
  int slot = 0;
  for (int s = 0; s < batch.n_seqs; s++) {
    const int start = batch.seq_starts[s], end = batch.seq_starts[s + 1], pos = batch.positions[start];
    const int first = batch.prompts ? batch.prompts[2 * s] : pos, last = batch.prompts ? batch.prompts[2 * s + 1] : pos + end - start;
    const int n_plain = is_plain(op, first, last - first) ? std::clamp(last - pos, 0, end - start) : 0;
    plan.starts[s] = start + n_plain;
    for (int t = start + n_plain; t < end; t++) plan.absorbed.push_back(t);
    if (!n_plain) continue;
    plan.plain.push_back({s, slot, pos + n_plain});
    slot = (int)round_up(slot + pos + n_plain, TILE_TOKENS);
  }
  plan_attention(batch, op.absorbed, plan.starts.data(), tiles);
  const int n_heads = (int)plan.plain.size() * op.n_heads();
  for (int i = 0; i < (int)plan.plain.size(); i++) {
    // The last queries see the most, and with more workers than heads queries are divided as well.
    const int start = batch.seq_starts[plan.plain[i].seq], end = plan.starts[plan.plain[i].seq];
    const int parts = std::max(1, pool_->size() / n_heads), size = (end - start + parts - 1) / parts;
    for (int t = start + (end - start - 1) / size * size; t >= start; t -= size)
      for (int h = 0; h < op.n_heads(); h++) plan.tasks.push_back({i, h, t, std::min(size, end - t)});
  }
}

void Program::reserve_latent() {
  for (size_t i = 0; i < steps_.size(); i++) {
    if (steps_[i].kind != Step::LATENT) continue;
    const LatentOp &op = steps_[i].latent;
    const LatentPlan &plan = latent_plans_[i];
    const int together = std::min((int)plan.absorbed.size(), MATMUL_TOKENS);
    for (Worker &w : workers_) {
      w.heads.reserve(together, std::max(op.rank, op.k_dim), op.query_forms | op.value_forms);
      const size_t products = (size_t)together * std::max(op.rank, op.v_dim);
      if (w.products.size() < products) w.products.resize(products);
    }
    if (plan.plain.empty()) continue;
    const LatentPlan::Sequence &last = plan.plain.back();
    latents_.reserve(last.slot + last.n_positions, op.rank, op.plain_forms | (kernels_.tile_tokens ? TILES : 0));
    int most = 0, longest = 0;
    for (const auto &task : plan.tasks) most = std::max(most, task.n_tokens);
    for (const auto &sequence : plan.plain) longest = std::max(longest, sequence.n_positions);
    for (int b = (int)cycle_.size(); b * KV_BLOCK < longest; b++) cycle_.push_back(b % (KV_SPLIT / KV_BLOCK));
    const size_t key = op.k_dim + op.rotated, states = (size_t)round_up(most, MAX_ROWS) * (2 + op.v_dim);
    for (Worker &w : workers_) {
      if (w.latent.size() < (size_t)op.rank + op.rotated) w.latent.resize(op.rank + op.rotated);
      if (w.keys.size() < EXPANDED * key) w.keys.resize(EXPANDED * key);
      if (w.values.size() < (size_t)EXPANDED * op.v_dim) w.values.resize((size_t)EXPANDED * op.v_dim);
      if (w.kv.size() < KV_SPLIT * (key + op.v_dim)) w.kv.resize(KV_SPLIT * (key + op.v_dim));
      if (w.states.size() < states) w.states.resize(states);
    }
  }
}

void Program::latent(const LatentOp &op, const BatchView &batch, size_t step, int worker) {
  const LatentPlan &plan = latent_plans_[step];
  std::atomic<int> *next = &next_[step * PHASES];
  append_latents(op, batch, worker);
  pool_->barrier().wait();
  prepare_latents(op, batch, plan, worker);
  const int head = op.k_dim + op.rotated, row = op.rank + op.rotated;
  multiply_heads(op.queries, op.query_forms, op.q, head, op.absorbed.q, row, plan.absorbed, next[0], worker);
  pool_->barrier().wait();
  const auto &tiles = tiles_[step];
  const int n_tasks = (int)plan.tasks.size(), n = n_tasks + (int)tiles.size();
  for (int i; !unwanted_.load(std::memory_order_relaxed) && (i = next[1].fetch_add(1, std::memory_order_relaxed)) < n;)
    if (i < n_tasks)
      attend_plainly(op, batch, plan, plan.tasks[i], worker);
    else
      attend_tile(op.absorbed, batch, tiles[i - n_tasks], worker);
  if (plan.absorbed.empty()) return;
  merge_decoded(op.absorbed, batch, tiles, worker);
  pool_->barrier().wait();
  multiply_heads(op.values, op.value_forms, op.absorbed.out, op.rank, op.out, op.v_dim, plan.absorbed, next[2], worker);
}

// Normalises and rotates, puts latents into the cache, and the rotated part of every query behind where it is absorbed.
void Program::append_latents(const LatentOp &op, const BatchView &batch, int worker) {
  const Rope &r = ropes_[op.absorbed.rope];
  const int head = op.k_dim + op.rotated;
  for (int s = 0; s < batch.n_seqs; s++)
    for (int t = batch.seq_starts[s]; t < batch.seq_starts[s + 1]; t++) {
      if (t % pool_->size() != worker) continue;
      float *q = row(op.q, t), *latent = row(op.latent, t), *absorbed = row(op.absorbed.q, t) + op.rank;
      const float *cos = r.cos.data() + t * r.inverse.size(), *sin = r.sin.data() + t * r.inverse.size();
      kernels_.norm_heads(latent, 1, op.rank, op.norm, op.eps);
      kernels_.rope(latent + op.rank, 1, op.rotated, op.rotated, cos, sin, r.interleaved);
      kernels_.rope(q + op.k_dim, op.n_heads(), head, op.rotated, cos, sin, r.interleaved);
      for (int h = 0; h < op.n_heads(); h++, q += head, absorbed += op.rank + op.rotated)
        std::copy_n(q + op.k_dim, op.rotated, absorbed);
      const int pos = batch.positions[t];
      const int64_t id = batch.block_table[(int64_t)s * batch.max_blocks + pos / KV_BLOCK];
      uint16_t *block = batch.kv + id * batch.block_elems + op.absorbed.kv_offset;
      kernels_.append_latent(latent, block, pos % KV_BLOCK, op.rank + op.rotated);
    }
}

// The latents of all that sequences in the plain form have seen, as activations, which all their heads multiply.
void Program::prepare_latents(const LatentOp &op, const BatchView &batch, const LatentPlan &plan, int worker) {
  std::vector<float> &latent = workers_[worker].latent;
  for (const auto &sequence : plan.plain) {
    const Activations x = latents_.view(op.rank, {0, std::max(sequence.n_positions, 2), sequence.slot, kernels_.tile_tokens > 0});
    for (int pos = 0; pos < sequence.n_positions; pos++) {
      if (pos / LANES % pool_->size() != worker) continue;  // as in Program::linear
      kernels_.read_latent(block_of(op, batch, sequence.seq, pos), pos % KV_BLOCK, op.rank + op.rotated, latent.data());
      kernels_.prepare(latent.data(), nullptr, 0, x.tiles ? TILES : op.plain_forms, x, pos);
    }
  }
}

// For every head: its part of buffer `in`, times its matrix, becomes its part of `out`. Parts are in_head and out_head apart.
void Program::multiply_heads(const std::vector<Weight> &weights, int forms, int in, int in_head, int out, int out_head,
                             const std::vector<int> &tokens, std::atomic<int> &next, int worker) {
  if (tokens.empty()) return;
  const int64_t panels = weights[0].n_panels(), n_rows = weights[0].n_rows, total = panels * (int64_t)weights.size();
  Worker &w = workers_[worker];
  const auto multiply = [&](const int *token, int n, int h, int64_t p0, int64_t p1) {
    const Activations x = w.heads.view(weights[h].n_cols, {0, n, 0, false});
    for (int i = 0; i < n; i++) kernels_.prepare(row(in, token[i]) + (int64_t)h * in_head, nullptr, 0, forms, x, i);
    kernels_.matmul({&weights[h], nullptr, nullptr, nullptr, &x, w.products.data(), n_rows, n, Epilogue::STORE, 0, 0}, p0, p1,
                    (uint8_t *)w.scratch.data());
    const int64_t begin = p0 * PANEL, end = std::min(n_rows, p1 * PANEL);
    for (int i = 0; i < n; i++)
      std::copy(&w.products[i * n_rows + begin], &w.products[i * n_rows] + end, row(out, token[i]) + (int64_t)h * out_head + begin);
  };
  for (int64_t begin, end; claim(next, unwanted_, total, pool_->size(), kernels_.tile_tokens ? 2 : 1, begin, end);)
    for (int64_t at = begin; at < end;) {
      const int64_t head = at / panels, stop = std::min(end, (head + 1) * panels);
      for (size_t t = 0; t < tokens.size(); t += MATMUL_TOKENS)
        multiply(&tokens[t], (int)std::min<size_t>(tokens.size() - t, MATMUL_TOKENS), (int)head, at - head * panels, stop - head * panels);
      at = stop;
    }
}

// One head's attention of some tokens of one sequence.
void Program::attend_plainly(const LatentOp &op, const BatchView &batch, const LatentPlan &plan, const LatentPlan::Task &task, int worker) {
  const LatentPlan::Sequence &sequence = plan.plain[task.sequence];
  const int key = op.k_dim + op.rotated, n = task.n_tokens, first_pos = batch.positions[task.token], end = first_pos + n;
  Worker &w = workers_[worker];
  const SoftmaxState state{w.states.data(), w.states.data() + n, w.states.data() + 2 * n};
  float *p = w.state.data();
  const SoftmaxState part{p, p + MAX_ROWS, p + 2 * MAX_ROWS};
  std::fill_n(state.max, n, MASKED);
  std::fill_n(state.sum, n, 0.0f);
  std::fill_n(state.out, (size_t)n * op.v_dim, 0.0f);
  for (int split = 0; split * KV_SPLIT < end && !unwanted_.load(std::memory_order_relaxed); split++) {
    const int begin = split * KV_SPLIT, stop = std::min(end, begin + KV_SPLIT);
    for (int pos = begin; pos < stop; pos += EXPANDED) expand_latents(op, batch, sequence, task.head, pos, std::min(EXPANDED, stop - pos), w);
    for (int t = 0; t < n; t += MAX_ROWS) {
      const int rows = std::min(MAX_ROWS, n - t);
      if (first_pos + t + rows <= begin) continue;
      const Attention a{row(op.q, task.token + t) + (int64_t)task.head * key, widths_[op.q], w.kv.data(), cycle_.data(),
                        (int64_t)KV_BLOCK * (key + op.v_dim), 0, key, op.v_dim, false, 1, rows, first_pos + t, 0, op.absorbed.scale};
      kernels_.attend_split(a, split, w.scores.data(), part);
      kernels_.merge_split({state.max + t, state.sum + t, state.out + (size_t)t * op.v_dim}, part, rows, op.v_dim);
    }
  }
  kernels_.finish_rows(state, nullptr, n, 1, op.v_dim, row(op.out, task.token) + (int64_t)task.head * op.v_dim, widths_[op.out]);
}

// One head's keys and values of n positions, into KV blocks of its own, of which there are as many as a split has.
void Program::expand_latents(const LatentOp &op, const BatchView &batch, const LatentPlan::Sequence &sequence, int head, int first, int n,
                             Worker &w) {
  // At least two: they were prepared side by side with others, also where a lone one is left.
  const Activations x = latents_.view(op.rank, {0, std::max(n, 2), sequence.slot + first, kernels_.tile_tokens > 0});
  const int key = op.k_dim + op.rotated;
  const auto multiply = [&](const Weight &weight, float *out, int stride) {
    kernels_.matmul({&weight, nullptr, nullptr, nullptr, &x, out, stride, n, Epilogue::STORE, 0, 0}, 0, weight.n_panels(),
                    (uint8_t *)w.scratch.data());
  };
  multiply(op.keys[head], w.keys.data(), key);
  multiply(op.values[head], w.values.data(), op.v_dim);
  for (int i = 0; i < n; i++) {
    const int pos = first + i;
    kernels_.read_latent(block_of(op, batch, sequence.seq, pos), pos % KV_BLOCK, op.rank + op.rotated, w.latent.data());
    std::copy_n(w.latent.data() + op.rank, op.rotated, &w.keys[(size_t)i * key + op.k_dim]);
    uint16_t *block = w.kv.data() + (int64_t)(pos % KV_SPLIT / KV_BLOCK) * KV_BLOCK * (key + op.v_dim);
    kernels_.append_kv(&w.keys[(size_t)i * key], &w.values[(size_t)i * op.v_dim], block, pos % KV_BLOCK, 1, key, op.v_dim);
  }
}
