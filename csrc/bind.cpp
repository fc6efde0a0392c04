// Python bindings: check types and shapes, release the GIL, forward. No logic.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <map>
#include <stdexcept>

#include "dispatch.h"
#include "memory.h"
#include "pack.h"
#include "program.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T, int NDIM> using In = nb::ndarray<const T, nb::ndim<NDIM>, nb::c_contig, nb::device::cpu>;
template <class T, int NDIM> using Out = nb::ndarray<T, nb::ndim<NDIM>, nb::c_contig, nb::device::cpu>;

void require(bool ok, const char *what) {
  if (!ok) throw std::invalid_argument(what);
}

struct Packed {
  Weight weight;
  Span memory;                              // of an arena
  nb::ndarray<const uint8_t> foreign = {};  // or somebody else's, kept alive
  size_t size() const { return weight.n_panels() * weight.panel_size(); }
};

// A matrix whose bytes are still to be named.
std::shared_ptr<Packed> shaped(int format, int64_t n_rows, int64_t n_cols) {
  require(format >= 0 && format < (int)Format::COUNT, "unknown format");
  const Scheme &s = scheme((Format)format);
  require(n_rows > 0 && n_cols > 0 && n_cols % (s.integer ? s.span : 1) == 0, "columns are not a multiple of the format's block");
  auto packed = std::make_shared<Packed>();
  packed->weight = {nullptr, n_rows, n_cols, (Format)format};
  return packed;
}

// One that was packed before, by the same layout: `data` is what Packed.data gave then.
std::shared_ptr<Packed> wrap(In<uint8_t, 1> data, int format, int64_t n_rows, int64_t n_cols) {
  auto packed = shaped(format, n_rows, n_cols);
  require(data.size() == packed->size(), "packed bytes do not fit the shape");
  packed->foreign = nb::ndarray<const uint8_t>(data);
  packed->weight.data = data.data();
  return packed;
}

// One to be packed, by `fill`.
std::shared_ptr<Packed> reserve(Arena &arena, int format, int64_t n_rows, int64_t n_cols) {
  auto packed = shaped(format, n_rows, n_cols);
  packed->memory = arena.take(packed->size());
  packed->weight.data = packed->memory.data;
  return packed;
}

using Rows = nb::ndarray<const uint8_t, nb::ndim<2>, nb::device::cpu>;  // rows may be any distance apart

Source source_of(const Weight &w, int format, const Rows &rows, const std::optional<Rows> &scales) {
  require(format >= 0 && format < (int)Format::COUNT && can_pack((Format)format, w.format), "cannot pack that as this format");
  require(rows.shape(0) == (size_t)w.n_rows && rows.stride(1) == 1, "rows do not fit the matrix");
  if (!scales) {
    const Scheme &s = scheme((Format)format);
    require(rows.shape(1) == (size_t)(w.n_cols / s.span * s.source_bytes), "row bytes do not fit the format");
    return {(Format)format, rows.data(), (size_t)rows.stride(0), nullptr, 0};
  }
  const bool f8 = (Format)format == Format::F8_E4M3;
  require(f8 || (Format)format == Format::MXFP4, "scales apart are of MXFP4 and F8_E4M3");
  require(rows.shape(1) == (size_t)(f8 ? w.n_cols : w.n_cols / 2), "row bytes do not fit the format with scales apart");
  const size_t scale_bytes = f8 ? (size_t)(w.n_cols + 127) / 128 * sizeof(float) : (size_t)(w.n_cols / BLOCK);
  require(scales->shape(0) == rows.shape(0) && scales->shape(1) == scale_bytes && scales->stride(1) == 1, "scales do not fit");
  return {(Format)format, rows.data(), (size_t)rows.stride(0), scales->data(), (size_t)scales->stride(0)};
}

const Kernels &runnable(const std::string &isa) {
  const Level *level = find_level(isa);
  require(level && level->kernels && level->runs_here, "this level does not run here");
  return *level->kernels;
}

// Packs panels [first, last) of matrices, each from (format, rows, scales), in one go: the GIL is let go, and the workers are
// woken, once for all. Returns the index of the first matrix that pack_panels finds fault with, or -1.
int fill(Pool &pool, const std::vector<std::shared_ptr<Packed>> &packed,
         const std::vector<std::tuple<int, Rows, std::optional<Rows>>> &given, const std::string &isa, int64_t first,
         int64_t last) {
  require(first >= 0 && first <= last, "panels are not in order");
  require(packed.size() == given.size(), "one source per matrix");
  const Rounder round = runnable(isa).round_span;
  std::vector<Source> sources;
  for (size_t i = 0; i < packed.size(); i++)
    sources.push_back(source_of(packed[i]->weight, std::get<0>(given[i]), std::get<1>(given[i]), std::get<2>(given[i])));
  std::vector<std::atomic<int64_t>> next(packed.size());
  std::atomic<int> damaged{(int)packed.size()};
  nb::gil_scoped_release release;
  pool.run([&](int, int) {
    for (size_t i = 0; i < packed.size(); i++) {
      const Weight &w = packed[i]->weight;
      const int64_t end = std::min(last, w.n_panels());
      for (int64_t p; (p = first + next[i].fetch_add(4)) < end;)
        if (!pack_panels(sources[i], w, packed[i]->memory.data, p, std::min(p + 4, end), round))
          for (int seen = damaged; (int)i < seen && !damaged.compare_exchange_weak(seen, (int)i);) {
          }
    }
  });
  return damaged < (int)packed.size() ? damaged.load() : -1;
}

using Vector = std::optional<In<float, 1>>;
using Matrix2 = std::optional<In<float, 2>>;
using PackedPtr = std::shared_ptr<Packed>;

// A program, kept together with everything it points into.
struct Recorded {
  Program program;
  std::vector<PackedPtr> weights;
  std::vector<In<float, 1>> vectors;
  std::vector<In<float, 2>> matrices;
  std::vector<Rows> tables;
  std::map<int64_t, int> scratches;  // buffers by width
  int64_t kv_elems = 0;  // f16 elements of a KV block that the attention operations reach
  int64_t vocab = 0, n_embeddings = 0;
  bool bytes;            // activations as bytes wherever products can take them

  Recorded(std::shared_ptr<Pool> pool, const std::string &isa, bool bytes) : program(std::move(pool), runnable(isa)), bytes(bytes) {}

  // The form of activations that a product with this matrix takes.
  int form_of(const Weight &w) const {
    if (!scheme(w.format).integer) return VALUES;
    require(w.n_cols % BLOCK == 0, "columns are not a multiple of 32");
    return bytes && byte_codes(scheme(w.format)) ? BYTES : WORDS;
  }
  const float *keep(const Vector &v, int64_t n) {
    if (!v) return nullptr;
    require((int64_t)v->size() == n, "a vector's length does not fit its matrix");
    vectors.push_back(*v);
    return v->data();
  }
  const float *keep(const Matrix2 &m, const std::vector<PackedPtr> &experts) {
    require(!experts.empty(), "no experts");
    if (!m) return nullptr;
    require(m->shape(0) == experts.size() && (int64_t)m->shape(1) == experts[0]->weight.n_rows, "biases do not fit the experts");
    matrices.push_back(*m);
    return m->data();
  }
  const Weight &keep(const PackedPtr &w) {
    weights.push_back(w);
    return w->weight;
  }
  LinearOp linear_op(int in, const Vector &norm, float eps, const PackedPtr &first) {
    return {in, keep(norm, first->weight.n_cols), eps, 0, {}};
  }
  void add_product(LinearOp &op, const PackedPtr &w, const PackedPtr &up, const Vector &bias, int out, bool add) {
    Product p{keep(w), up ? keep(up) : Weight{}, keep(bias, w->weight.n_rows), out, add};
    require(op.products.empty() || op.products[0].weight.n_cols == p.weight.n_cols, "matrices of one operation differ in columns");
    require(!up || (p.up.n_rows == p.weight.n_rows && p.up.n_cols == p.weight.n_cols), "gate and up differ in shape");
    op.forms |= form_of(p.weight) | (up ? form_of(p.up) : 0);
    op.products.push_back(p);
  }

  void embed(const PackedPtr &table, int out) {
    n_embeddings = table->weight.n_rows;
    program.add({.kind = Step::EMBED, .out = out, .table = keep(table)});
  }
  // A table that stays where it is, in a mapped file: bfloat16 rows, of which only those of the batch's tokens are touched.
  void embed_rows(Rows rows, int out) {
    require(rows.stride(1) == 1 && (int64_t)rows.shape(1) == 2 * program.width(out), "the table's rows do not fit the output");
    n_embeddings = (int64_t)rows.shape(0);
    program.add({.kind = Step::EMBED, .out = out, .rows = rows.data(), .row_bytes = rows.stride(0)});
    tables.push_back(std::move(rows));
  }
  void linear(int in, const Vector &norm, float eps, const std::vector<PackedPtr> &ws, const std::vector<Vector> &biases,
              const std::vector<int> &outs, bool add) {
    require(!ws.empty() && ws.size() == outs.size() && ws.size() == biases.size(), "one output and one bias entry per matrix");
    LinearOp op = linear_op(in, norm, eps, ws[0]);
    for (size_t i = 0; i < ws.size(); i++) add_product(op, ws[i], nullptr, biases[i], outs[i], add);
    program.add({.kind = Step::LINEAR, .linear = op});
  }
  void gated(int in, const Vector &norm, float eps, const PackedPtr &gate, const PackedPtr &up, int out) {
    LinearOp op = linear_op(in, norm, eps, gate);
    add_product(op, gate, up, std::nullopt, out, false);
    program.add({.kind = Step::LINEAR, .linear = op});
  }
  // Scores of experts to a choice of k; the result is the routing that the experts' operations name.
  int route(int in, int n_experts, int k, bool sigmoid, bool normalised, float scale, const Vector &bias, int n_groups, int n_kept_groups,
            int group_best) {
    require(0 < k && k <= n_experts && program.width(in) == n_experts, "one score per expert, and at most as many chosen");
    require(0 < n_groups && n_experts % n_groups == 0 && 0 < group_best && group_best <= n_experts / n_groups, "groups do not fit the experts");
    require(0 < n_kept_groups && n_kept_groups <= n_groups && k <= n_experts / n_groups * n_kept_groups, "too few groups to choose from");
    const int routing = program.add_routing(n_experts, k, {sigmoid, normalised, scale, keep(bias, n_experts), n_groups, n_kept_groups, group_best});
    program.add({.kind = Step::ROUTE, .route = {in, routing}});
    return routing;
  }
  ExpertsOp experts_op(int in, int routing, const std::vector<PackedPtr> &ws, const std::vector<PackedPtr> &ups, const Matrix2 &bias,
                       const Matrix2 &up_bias) {
    ExpertsOp op{.in = in, .bias = keep(bias, ws), .up_bias = keep(up_bias, ws), .routing = routing};
    require(program.n_experts(routing) == (int)ws.size() && (ups.empty() || ups.size() == ws.size()), "one matrix per expert");
    for (const auto *list : {&ws, &ups})
      for (const PackedPtr &w : *list) {
        const Weight &first = ws[0]->weight;
        require(w->weight.n_rows == first.n_rows && w->weight.n_cols == first.n_cols, "experts differ in shape");
        op.forms |= form_of(w->weight);
        (list == &ws ? op.weights : op.ups).push_back(keep(w));
      }
    return op;
  }
  void experts(int in, const Vector &norm, float eps, int routing, const std::vector<PackedPtr> &gates, const std::vector<PackedPtr> &ups,
               const Matrix2 &gate_bias, const Matrix2 &up_bias, std::optional<std::tuple<float, float>> clamp, int out) {
    ExpertsOp op = experts_op(in, routing, gates, ups, gate_bias, up_bias);
    require(!ups.empty(), "one up matrix per expert");
    op.norm = keep(norm, gates[0]->weight.n_cols), op.eps = eps, op.out = out;
    op.epilogue = clamp ? Epilogue::SWIGLU_CLAMPED : Epilogue::SWIGLU;
    if (clamp) std::tie(op.alpha, op.limit) = *clamp;
    require(program.width(out) == program.chosen(routing) * gates[0]->weight.n_rows, "the output holds a row per chosen expert");
    program.add({.kind = Step::EXPERTS, .experts = op});
  }
  void combine(int in, int routing, const std::vector<PackedPtr> &downs, const Matrix2 &bias, int out) {
    ExpertsOp op = experts_op(in, routing, downs, {}, bias, std::nullopt);
    op.out = out, op.epilogue = Epilogue::STORE;
    require(program.width(in) == program.chosen(routing) * downs[0]->weight.n_cols, "the input holds a row per chosen expert");
    require(program.width(out) == downs[0]->weight.n_rows, "the output has the experts' rows");
    program.add({.kind = Step::COMBINE, .experts = op});
  }
  void attention(int q, int k, int v, int out, int64_t kv_offset, int n_heads, int n_kv_heads, int k_dim, int v_dim, int window, int rope,
                 float scale, const Vector &sinks, const Vector &q_norm, float q_eps, const Vector &k_norm, float k_eps) {
    require(n_kv_heads > 0 && n_heads % n_kv_heads == 0 && n_heads / n_kv_heads <= MAX_ROWS, "unsupported grouping of heads");
    require(is_head_size(k_dim) && is_head_size(v_dim), "head sizes must be multiples of 16 and at most 256");
    kv_elems = std::max(kv_elems, kv_offset + (int64_t)n_kv_heads * KV_BLOCK * (k_dim + v_dim));
    program.add({.kind = Step::ATTENTION,
                 .attention = {q, k, v, out, kv_offset, n_heads, n_kv_heads, k_dim, v_dim, window, false, rope, scale, keep(sinks, n_heads),
                               keep(q_norm, k_dim), q_eps, keep(k_norm, k_dim), k_eps}});
  }
  // A buffer for use within one operation, which the next one with the same need takes over.
  int scratch(int64_t width) {
    const auto [at, is_new] = scratches.try_emplace(width, 0);
    if (is_new) at->second = program.add_buffer(width);
    return at->second;
  }
  static bool is_head_size(int64_t n) { return n > 0 && n % 16 == 0 && n <= MAX_HEAD_DIM; }
  // The heads' matrices, all of one shape, and the forms of activations that they take.
  int keep_heads(const std::vector<PackedPtr> &heads, size_t n, int64_t n_rows, int64_t n_cols, std::vector<Weight> &to) {
    require(heads.size() == n, "a matrix for every head");
    int forms = 0;
    for (const PackedPtr &w : heads) {
      require(w->weight.n_rows == n_rows && w->weight.n_cols == n_cols, "a head's matrix has the wrong shape");
      forms |= form_of(w->weight);
      to.push_back(keep(w));
    }
    return forms;
  }
  void attention_of_latents(int q, int latent, int out, int64_t kv_offset, const Vector &norm, float eps, const std::vector<PackedPtr> &keys,
                            const std::vector<PackedPtr> &queries, const std::vector<PackedPtr> &values, int rope, float scale) {
    require(!keys.empty() && !values.empty(), "no heads");
    const int n_heads = (int)keys.size();
    const int64_t k_dim = keys[0]->weight.n_rows, rank = keys[0]->weight.n_cols, v_dim = values[0]->weight.n_rows;
    const int64_t rotated = program.width(latent) - rank;
    require(rank % 16 == 0 && rank <= MAX_LATENT && rotated > 0 && rotated == program.rotated(rope), "the latent has the wrong size");
    require(is_head_size(k_dim + rotated) && rotated % 16 == 0 && is_head_size(v_dim), "head sizes must be multiples of 16 and at most 256");
    require(program.width(q) == n_heads * (k_dim + rotated) && program.width(out) == n_heads * v_dim, "queries or outputs do not fit the heads");
    LatentOp op{q, latent, out, (int)rank, (int)rotated, (int)k_dim, (int)v_dim, keep(norm, rank), eps, {}, {}, {}, 0, 0, 0, {}};
    require(op.norm, "no weight of the latent's norm");
    op.plain_forms = keep_heads(keys, n_heads, k_dim, rank, op.keys);
    op.query_forms = keep_heads(queries, n_heads, rank, k_dim, op.queries);
    op.value_forms = keep_heads(values, n_heads, v_dim, rank, op.values);
    op.plain_forms |= op.value_forms;
    int together = 8;  // heads that share a pass over the latents; more would leave workers idle
    while (n_heads % together) together /= 2;
    const int row = (int)(rank + rotated), absorbed = scratch(n_heads * row), weighted = scratch(n_heads * rank);
    op.absorbed = {absorbed, -1, -1, weighted, kv_offset, n_heads, n_heads / together, row, (int)rank, 0, true, rope, scale,
                   nullptr, nullptr, 0, nullptr, 0};
    kv_elems = std::max(kv_elems, kv_offset + (int64_t)KV_BLOCK * row);
    program.add({.kind = Step::LATENT, .latent = op});
  }
  void head(int in, const Vector &norm, float eps, const PackedPtr &w) {
    LinearOp op = linear_op(in, norm, eps, w);
    add_product(op, w, nullptr, std::nullopt, -1, false);
    vocab = w->weight.n_rows;
    program.add({.kind = Step::HEAD, .linear = op});
  }
  bool run(In<int32_t, 1> tokens, In<int32_t, 1> positions, In<int32_t, 1> seq_starts, In<int32_t, 2> block_table,
           In<int32_t, 1> logit_rows, std::optional<In<int32_t, 2>> prompts, Out<uint16_t, 2> kv, Out<float, 2> logits) {
    const BatchView batch{tokens.data(), positions.data(), seq_starts.data(), block_table.data(), logit_rows.data(),
                          prompts ? prompts->data() : nullptr, (int)tokens.size(), (int)seq_starts.size() - 1,
                          (int)block_table.shape(1), (int)logit_rows.size(), kv.data(), (int64_t)kv.shape(1), logits.data()};
    require(!prompts || (prompts->shape(0) + 1 == seq_starts.size() && prompts->shape(1) == 2), "one prompt per sequence");
    require(positions.size() == tokens.size() && block_table.shape(0) + 1 == seq_starts.size(), "batch arrays do not fit together");
    require(logits.shape(0) == logit_rows.size() && (int64_t)logits.shape(1) == vocab, "logits have the wrong shape");
    require(batch.block_elems >= kv_elems, "KV blocks are too small for this model");
    check_indices(batch, (int64_t)kv.shape(0));
    nb::gil_scoped_release release;
    return program.run(batch);
  }
  // Everything that becomes an address is checked here, once per batch.
  void check_indices(const BatchView &b, int64_t n_blocks) const {
    require(b.seq_starts[0] == 0 && b.seq_starts[b.n_seqs] == b.n_tokens, "sequence starts do not cover the tokens");
    for (int t = 0; t < b.n_tokens; t++) require(b.tokens[t] >= 0 && b.tokens[t] < n_embeddings, "a token id is out of range");
    for (int i = 0; i < b.n_logits; i++) require(b.logit_rows[i] >= 0 && b.logit_rows[i] < b.n_tokens, "a logit row is out of range");
    for (int s = 0; s < b.n_seqs; s++) {
      const int start = b.seq_starts[s], end = b.seq_starts[s + 1];
      require(start < end, "a sequence of the batch has no tokens");
      for (int t = start; t < end; t++) require(b.positions[t] == b.positions[start] + t - start, "positions of a sequence must follow each other");
      const int last = b.positions[end - 1];
      require(b.positions[start] >= 0 && last / KV_BLOCK < b.max_blocks, "a position lies outside the block table");
      for (int i = 0; i <= last / KV_BLOCK; i++) {
        const int32_t id = b.block_table[(int64_t)s * b.max_blocks + i];
        require(id >= 0 && id < n_blocks, "a block id is out of range");
      }
    }
  }
};

// GB/s that the pool reads from memory: the best of three passes over `bytes` per worker.
double measure_bandwidth(Pool &pool, size_t bytes) {
  nb::gil_scoped_release release;
  std::vector<std::unique_ptr<Region>> regions(pool.size());
  pool.run([&](int worker, int) {
    regions[worker] = std::make_unique<Region>(bytes);
    memset(regions[worker]->data(), 1, regions[worker]->size());
  });
  std::atomic<uint64_t> sink{0};
  double best = 0;
  for (int pass = 0; pass < 3; pass++) {
    const auto start = std::chrono::steady_clock::now();
    pool.run([&](int worker, int) {
      const uint64_t *p = (const uint64_t *)regions[worker]->data(), *end = p + regions[worker]->size() / 8;
      uint64_t sums[32] = {};
      for (; p < end; p += 32)
        for (int i = 0; i < 32; i++) sums[i] += p[i];
      for (uint64_t s : sums) sink += s;
    });
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::max(best, (double)bytes * pool.size() / taken.count() / 1e9);
  }
  return best;
}

}  // namespace

NB_MODULE(_kernels, m) {
  m.attr("KV_BLOCK") = KV_BLOCK;
  m.attr("PANEL") = PANEL;
  m.attr("MAX_HEAD_DIM") = MAX_HEAD_DIM;
  m.attr("MAX_LATENT") = MAX_LATENT;
  m.attr("MAX_GROUP") = MAX_ROWS;
  m.def("levels", [] {
    std::vector<std::tuple<std::string, bool, std::string>> rows;
    for (const Level &l : levels()) rows.emplace_back(l.name, l.runs_here, l.needs);
    return rows;
  });
  m.def("reserve", &reserve, "arena"_a, "format"_a, "n_rows"_a, "n_cols"_a);
  m.def("packed_bytes", [](int format, int64_t n_rows, int64_t n_cols) { return shaped(format, n_rows, n_cols)->size(); },
        "format"_a, "n_rows"_a, "n_cols"_a);
  m.def("wrap", &wrap, "data"_a, "format"_a, "n_rows"_a, "n_cols"_a);
  m.def("fill", &fill, "pool"_a, "packed"_a, "sources"_a, "isa"_a, "first"_a = 0, "last"_a = INT64_MAX);
  m.def("unpack_row", [](const Packed &p, const std::string &isa, int64_t row, Out<float, 1> out) {
    require(row >= 0 && row < p.weight.n_rows && (int64_t)out.size() == p.weight.n_cols, "row out of range");
    runnable(isa).unpack_row(p.weight, row, out.data());
  });
  m.def("measure_bandwidth", &measure_bandwidth, "pool"_a, "bytes"_a);
  nb::class_<Pool>(m, "Pool").def(nb::init<int>(), "n_threads"_a).def_prop_ro("n_threads", &Pool::size);
  nb::class_<Arena>(m, "Arena").def(nb::init<size_t>(), "expected"_a = 0);
  nb::class_<Packed>(m, "Packed")
      .def_prop_ro("shape", [](const Packed &p) { return std::make_tuple(p.weight.n_rows, p.weight.n_cols); })
      .def_prop_ro("n_bytes", &Packed::size)
      .def_prop_ro("format", [](const Packed &p) { return (int)p.weight.format; })
      .def_prop_ro("data", [](const Packed &p) {
        return nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(p.weight.data, {p.size()}, nb::handle());
      }, nb::rv_policy::reference_internal);
  nb::class_<Recorded>(m, "Program")
      .def(nb::init<std::shared_ptr<Pool>, const std::string &, bool>(), "pool"_a, "isa"_a, "bytes"_a = false)
      .def("buffer", [](Recorded &r, int64_t width) { return r.program.add_buffer(width); })
      .def("rope", [](Recorded &r, std::vector<double> inverse, double scale, bool interleaved) { return r.program.add_rope(std::move(inverse), scale, interleaved); })
      .def("embed", &Recorded::embed)
      .def("embed_rows", &Recorded::embed_rows)
      .def("linear", &Recorded::linear, nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg())
      .def("gated", &Recorded::gated, nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg())
      .def("attention", &Recorded::attention, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
           nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg().none(), nb::arg())
      .def("attention_of_latents", &Recorded::attention_of_latents)
      .def("route", &Recorded::route, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(),
           nb::arg())
      .def("experts", &Recorded::experts, nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(),
           nb::arg().none(), nb::arg().none(), nb::arg())
      .def("combine", &Recorded::combine, nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg())
      .def("head", &Recorded::head, nb::arg(), nb::arg().none(), nb::arg(), nb::arg())
      .def("run", &Recorded::run, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg())
      .def("interrupt", [](Recorded &self) { self.program.interrupt(); });
}
