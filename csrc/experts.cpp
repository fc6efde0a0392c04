// Mixtures of experts: routing, and products whose tokens are grouped by expert.
//
// Every (token, expert) pair is a row of its own. Pairs are ordered by expert, so that an expert's weights are read once for
// all of its tokens; within an expert by token. The sum over a token's experts is taken in the order they were chosen, so no
// result depends on what else is in the batch, nor on the number of workers.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "program.h"

namespace {
constexpr int FEW_TOKENS = 16;  // routed by one worker: cheaper than meeting at a barrier

// A rank that is no number comes last; as a weight it then spoils the token's result, as it must.
bool is_better(float a, float b) { return a > b || (std::isnan(b) && !std::isnan(a)); }

// The index of the largest of n, the first of equals; none that is among the `n_taken` indices `taken`.
int best_of(const float *ranks, int n, const int *taken, int n_taken) {
  int best = -1;
  for (int i = 0; i < n; i++)
    if ((best < 0 || is_better(ranks[i], ranks[best])) && std::find(taken, taken + n_taken, i) == taken + n_taken) best = i;
  return best;
}

// Ranks -infinity for all experts outside the best groups. sorted, groups, kept: room for `size`, n and n_kept_groups.
void keep_best_groups(const Gating &gating, int size, float *ranks, float *sorted, float *groups, int *kept) {
  const int n = gating.n_groups;
  for (int g = 0; g < n; g++) {
    std::partial_sort_copy(ranks + g * size, ranks + (g + 1) * size, sorted, sorted + gating.group_best, is_better);
    groups[g] = std::accumulate(sorted, sorted + gating.group_best, 0.0f);
  }
  for (int i = 0; i < gating.n_kept_groups; i++) kept[i] = best_of(groups, n, kept, i);
  for (int g = 0; g < n; g++)
    if (std::find(kept, kept + gating.n_kept_groups, g) == kept + gating.n_kept_groups) std::fill_n(ranks + g * size, size, -INFINITY);
}
}  // namespace

int Program::add_routing(int n_experts, int k, const Gating &gating) {
  routings_.push_back({n_experts, k, gating, {}, {}, {}, {}, {}, {}});
  return (int)routings_.size() - 1;
}

int64_t Program::Routing::max_slots(int n_pairs, bool tiled) const {
  const int64_t n_runs = std::min<int64_t>(n_pairs, (tiled ? 2 : 1) * n_experts) + n_pairs / MATMUL_TOKENS;
  return n_pairs + n_runs * ((tiled ? TILE_TOKENS : LANES) - 1);
}

void Program::reserve_experts(const BatchView &batch) {
  if (routings_.empty()) return;
  const bool tiled = kernels_.tile_tokens > 0;
  int64_t n_slots = 0, most = 0;
  for (Routing &r : routings_) {
    const size_t n_pairs = (size_t)batch.n_tokens * r.k;
    if (r.order.size() < n_pairs) r.expert.resize(n_pairs), r.place.resize(n_pairs), r.weight.resize(n_pairs), r.order.resize(n_pairs);
    r.counts.resize((size_t)r.n_experts * 2);
    r.runs.reserve((size_t)r.n_experts * 2 + n_pairs / MATMUL_TOKENS);
    n_slots = std::max(n_slots, r.max_slots((int)n_pairs, tiled)), most = std::max<int64_t>(most, r.k);
    if (pair_outputs_.size() < n_pairs * max_pair_rows_) pair_outputs_.resize(n_pairs * max_pair_rows_);
  }
  pairs_.reserve(n_slots, max_pair_cols_, pair_forms_ | (tiled ? TILES : 0));
  for (Worker &w : workers_) {
    w.activations.reserve(most, max_pair_cols_, pair_forms_);
    for (const Routing &r : routings_)
      if (w.ranks.size() < (size_t)r.n_experts)
        w.ranks.resize(r.n_experts), w.sorted.resize(r.n_experts), w.groups.resize(r.n_experts), w.kept.resize(r.n_experts);
  }
  tiled_tokens_.resize(batch.n_tokens);
  for (const Run &run : runs_) std::fill_n(tiled_tokens_.begin() + run.first, run.n_tokens, run.tiled);
}

void Program::route(const RouteOp &op, const BatchView &batch, int worker) {
  Routing &r = routings_[op.routing];
  const bool few = batch.n_tokens <= FEW_TOKENS;
  for (int t = 0; t < batch.n_tokens; t++)
    if (few ? worker == 0 : t % pool_->size() == worker) choose(row(op.in, t), r, t, workers_[worker]);
  if (!few) pool_->barrier().wait();
  if (worker == 0) group(r, batch.n_tokens * r.k);
}

// The k best experts, and their weights.
void Program::choose(const float *scores, Routing &r, int token, Worker &worker) const {
  const Gating &gating = r.gating;
  const auto sigmoid = [](float x) { return 1 / (1 + std::exp(-x)); };
  // Ranked by scores where their order is that of what they become, which rounding could make equal.
  const bool by_scores = !gating.bias && gating.group_best == 1;
  const float most_of_all = *std::max_element(scores, scores + r.n_experts);
  float sum_of_all = 0;
  if (!gating.sigmoid && !(by_scores && gating.normalised))
    for (int e = 0; e < r.n_experts; e++) sum_of_all += std::exp(scores[e] - most_of_all);
  const auto share = [&](int e) { return gating.sigmoid ? sigmoid(scores[e]) : std::exp(scores[e] - most_of_all) / sum_of_all; };

  float *ranks = worker.ranks.data();
  for (int e = 0; e < r.n_experts; e++) ranks[e] = by_scores ? scores[e] : share(e) + (gating.bias ? gating.bias[e] : 0);
  if (gating.n_groups > 1)
    keep_best_groups(gating, r.n_experts / gating.n_groups, ranks, worker.sorted.data(), worker.groups.data(), worker.kept.data());

  int *chosen = r.expert.data() + (int64_t)token * r.k;
  float *weight = r.weight.data() + (int64_t)token * r.k, total = 0;
  for (int i = 0; i < r.k; i++) chosen[i] = best_of(ranks, r.n_experts, chosen, i);
  const bool among_chosen = !gating.sigmoid && gating.normalised;  // then the sum over all cancels
  for (int i = 0; i < r.k; i++) total += weight[i] = among_chosen ? std::exp(scores[chosen[i]] - scores[chosen[0]]) : share(chosen[i]);
  const float factor = gating.scale / (gating.normalised ? total + 1e-20f : 1);
  for (int i = 0; i < r.k; i++) weight[i] *= factor;
}

// Orders the pairs by expert, those of the matrix unit apart, and cuts them into runs.
void Program::group(Routing &r, int n_pairs) const {
  const auto key = [&](int pair) { return r.expert[pair] * 2 + tiled_tokens_[pair / r.k]; };
  std::fill(r.counts.begin(), r.counts.end(), 0);
  for (int p = 0; p < n_pairs; p++) r.counts[key(p)]++;
  r.runs.clear();
  int first = 0;
  int64_t slot = 0;
  for (int k = 0; k < 2 * r.n_experts; k++) {
    const int n = r.counts[k];
    for (int done = 0; done < n; done += MATMUL_TOKENS) {
      const int taken = std::min(n - done, MATMUL_TOKENS);
      r.runs.push_back({k / 2, {first + done, taken, (int)slot, k % 2 == 1}});
      slot = round_up(slot + taken, kernels_.tile_tokens ? TILE_TOKENS : LANES);
    }
    r.counts[k] = first, first += n;
  }
  for (int p = 0; p < n_pairs; p++) r.order[r.place[p] = r.counts[key(p)]++] = p;
}

// Calls work(run, first panel, last panel) for pieces of all runs, until none is left.
template <class F> void Program::share_panels(const ExpertsOp &op, std::atomic<int> &next, int n_runs, const F &work) {
  const int64_t panels = op.weights[0].n_panels(), total = n_runs * panels;
  for (int64_t begin, end; claim(next, unwanted_, total, pool_->size(), kernels_.tile_tokens ? 2 : 1, begin, end);)
    for (int64_t at = begin; at < end;) {
      const int64_t stop = std::min(end, (at / panels + 1) * panels);
      work((int)(at / panels), at % panels, stop - at / panels * panels);
      at = stop;
    }
}

void Program::multiply_expert(const ExpertsOp &op, const Routing::ExpertRun &at, const Activations &x, float *to, int64_t p0, int64_t p1,
                              int worker) {
  const Weight &w = op.weights[at.expert];
  const auto of_expert = [&](const float *bias) { return bias ? bias + at.expert * w.n_rows : nullptr; };
  const Matmul m{&w, op.ups.empty() ? nullptr : &op.ups[at.expert], of_expert(op.bias), of_expert(op.up_bias), &x,
                 to + at.run.first * w.n_rows, w.n_rows, at.run.n_tokens, op.epilogue, op.alpha, op.limit};
  kernels_.matmul(m, p0, p1, (uint8_t *)workers_[worker].scratch.data());
}

// The activations of all pairs, in the order of the runs. A single token's are prepared by every worker for itself.
void Program::prepare_pairs(const ExpertsOp &op, bool alone, int worker) {
  const Routing &r = routings_[op.routing];
  const int64_t n_cols = op.weights[0].n_cols;
  ActivationStore &store = alone ? workers_[worker].activations : pairs_;
  for (const auto &[expert, run] : r.runs) {
    const Activations x = store.view(n_cols, alone ? Run{0, 1, run.first, false} : run);
    for (int i = 0; i < run.n_tokens; i++) {
      const int place = run.first + i;
      if (!alone && (run.slot + i) / LANES % pool_->size() != worker) continue;  // as in Program::linear
      const float *from = op.ups.empty() ? buffers_[op.in].data() + place * n_cols : row(op.in, r.order[place] / r.k);
      kernels_.prepare(from, op.norm, op.eps, x.tiles ? TILES : op.forms, x, i);
    }
  }
  if (!alone) pool_->barrier().wait();
}

void Program::experts(const ExpertsOp &op, const BatchView &batch, std::atomic<int> &next, int worker) {
  const Routing &r = routings_[op.routing];
  const int64_t n_cols = op.weights[0].n_cols;
  float *to = buffers_[op.out].data();
  if (batch.n_tokens == 1) {  // one row for all experts
    const Activations x = workers_[worker].activations.view(n_cols, {0, 1, 0, false});
    kernels_.prepare(row(op.in, 0), op.norm, op.eps, op.forms, x, 0);
    share_panels(op, next, r.k, [&](int i, int64_t p0, int64_t p1) { multiply_expert(op, r.runs[i], x, to, p0, p1, worker); });
    return;
  }
  prepare_pairs(op, false, worker);
  share_panels(op, next, (int)r.runs.size(), [&](int i, int64_t p0, int64_t p1) {
    multiply_expert(op, r.runs[i], pairs_.view(n_cols, r.runs[i].run), to, p0, p1, worker);
  });
}

void Program::combine(const ExpertsOp &op, const BatchView &batch, std::atomic<int> &next, int worker) {
  const Routing &r = routings_[op.routing];
  const int64_t n_cols = op.weights[0].n_cols, n_rows = op.weights[0].n_rows;
  const bool alone = batch.n_tokens == 1;
  float *y = pair_outputs_.data();
  prepare_pairs(op, alone, worker);
  if (alone) {  // whoever computes a piece for all experts also adds it up
    share_panels(op, next, 1, [&](int, int64_t p0, int64_t p1) {
      for (const auto &at : r.runs)
        multiply_expert(op, at, workers_[worker].activations.view(n_cols, {0, 1, at.run.first, false}), y, p0, p1, worker);
      const int64_t first = p0 * PANEL, n = std::min(n_rows, p1 * PANEL) - first;
      for (int i = 0; i < r.k; i++) kernels_.add_scaled(row(op.out, 0) + first, y + r.place[i] * n_rows + first, r.weight[i], n);
    });
    return;
  }
  share_panels(op, next, (int)r.runs.size(), [&](int i, int64_t p0, int64_t p1) {
    multiply_expert(op, r.runs[i], pairs_.view(n_cols, r.runs[i].run), y, p0, p1, worker);
  });
  pool_->barrier().wait();
  for (int t = worker; t < batch.n_tokens; t += pool_->size())
    for (int i = 0; i < r.k; i++) kernels_.add_scaled(row(op.out, t), y + r.place[t * r.k + i] * n_rows, r.weight[t * r.k + i], n_rows);
}
