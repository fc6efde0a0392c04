// Runs the portable kernels without Python and prints a checksum of every result, so that two architectures can be compared.
//
// Each result is first checked here against plain loops in double. The program has no input and uses no library function
// whose rounding is left open, so its output must be the same, byte for byte, wherever it is built: see bench/arm64.sh.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../csrc/ops.h"
#include "../../csrc/pack.h"

namespace scalar {
extern const Kernels KERNELS;
}

namespace {

const Kernels &kernels = scalar::KERNELS;
constexpr int N_ROWS = 37, N_COLS = 512;
const char *const NAMES[] = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4", "F8_E4M3"};
static_assert(sizeof NAMES / sizeof *NAMES == (size_t)Format::COUNT, "a name for every format");

uint32_t state = 1;
uint32_t random_bits() { return state = state * 1664525u + 1013904223u, state >> 8; }  // 24 bits
float random_float() { return (float)random_bits() / 8388608.0f - 1; }

void require(bool ok, const char *what, const char *name) {
  if (ok) return;
  fprintf(stderr, "%s: %s\n", name, what);
  exit(1);
}

uint64_t checksum(const std::vector<float> &values) {  // FNV-1a of the bits
  uint64_t hash = 14695981039346656037u;
  for (float f : values) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    for (int i = 0; i < 32; i += 8) hash = (hash ^ (bits >> i & 255)) * 1099511628211u;
  }
  return hash;
}
void report(const char *name, const char *what, const std::vector<float> &values) {
  printf("%-9s %-14s %016llx\n", name, what, (unsigned long long)checksum(values));
}

// Random bytes are valid codes of every format, but its floats must be finite and small: every 16-bit word (or, for F32 and
// BF16, every exponent) is cut to that range. Codes lose some bits by it, which does not matter here.
std::vector<uint8_t> random_matrix(Format format) {
  const Scheme &s = scheme(format);
  std::vector<uint8_t> bytes((size_t)N_ROWS * N_COLS / s.span * s.source_bytes);
  for (auto &b : bytes) b = (uint8_t)random_bits();
  if (s.e2m1) {  // no float but a scale byte
    for (size_t i = 0; i < bytes.size(); i += s.source_bytes) bytes[i] = (uint8_t)(bytes[i] % 8 + 118);
    return bytes;
  }
  if (s.shared) {  // one-byte floats, of which only 127 and 255 are no numbers
    for (auto &b : bytes) b = (uint8_t)((b & 0x80) | (b & 0x7f) % 120);
    return bytes;
  }
  const size_t step = format == Format::F32 ? 4 : 2;
  for (size_t i = step - 2; i + 1 < bytes.size(); i += step) {
    const bool wide = format == Format::F32 || format == Format::BF16;  // 8 exponent bits, else 5
    bytes[i + 1] = wide ? (uint8_t)((bytes[i + 1] & 0x80) | 0x3e) : (uint8_t)(bytes[i + 1] & 0xa7);
  }
  return bytes;
}

struct Room {  // for the activations of n tokens, in one of the forms
  std::vector<float> values, scales, scaled16, scaled32;
  std::vector<int16_t> words;
  std::vector<int8_t> bytes;
  std::vector<int32_t> sums16, sums32;
  Activations view;
  template <class Code> Coded<Code> coded(std::vector<Code> &codes) {
    return {codes.data(), scales.data(), sums16.data(), sums32.data(), scaled16.data(), scaled32.data()};
  }
  Room(int n_tokens, int form) {
    const size_t n = (size_t)(n_tokens + LANES - 1) / LANES * LANES * N_COLS;
    values.resize(n), words.resize(n), bytes.resize(n), scales.resize(n / 32), sums16.resize(n / 16), sums32.resize(n / 32);
    scaled16.resize(n / 16), scaled32.resize(n / 32);
    view = {N_COLS, n_tokens == 1 ? 1 : LANES, values.data(), coded(words), form == BYTES ? coded(bytes) : Coded<int8_t>{}, nullptr};
  }
};

// `rows`: the numbers of the matrix.
void check_products(const Weight &w, const std::vector<float> &rows, int form, uint8_t *scratch) {
  const char *name = NAMES[(int)w.format];
  for (int n_tokens : {1, 2, 4, 9}) {
    std::vector<float> x((size_t)n_tokens * N_COLS), norm(N_COLS), out((size_t)n_tokens * N_ROWS);
    for (auto &f : x) f = random_float();
    for (auto &f : norm) f = 1 + random_float() / 4;
    Room room(n_tokens, form);
    for (int t = 0; t < n_tokens; t++) kernels.prepare(&x[(size_t)t * N_COLS], norm.data(), 1e-5f, form, room.view, t);
    kernels.matmul({&w, nullptr, nullptr, nullptr, &room.view, out.data(), N_ROWS, n_tokens, Epilogue::STORE, 0, 0}, 0, w.n_panels(), scratch);

    double worst = 0, largest = 0;
    for (int t = 0; t < n_tokens; t++) {
      const float *xt = &x[(size_t)t * N_COLS];
      double squares = 0;
      for (int k = 0; k < N_COLS; k++) squares += (double)xt[k] * xt[k];
      for (int r = 0; r < N_ROWS; r++) {
        double sum = 0, size = 0;
        for (int k = 0; k < N_COLS; k++) {
          const double term = (double)rows[(size_t)r * N_COLS + k] * xt[k] * norm[k];
          sum += term, size += term * term;
        }
        const double scale = 1 / std::sqrt(squares / N_COLS + 1e-5);
        worst = std::fmax(worst, std::fabs(sum * scale - out[(size_t)t * N_ROWS + r]));
        largest = std::fmax(largest, std::sqrt(size) * scale);
      }
    }
    require(worst <= (form == BYTES ? 2e-2 : 1e-4) * largest, "a product is wrong", name);
    char what[32];
    snprintf(what, sizeof what, form == BYTES ? "in bytes %d" : "product %d", n_tokens);
    report(name, what, out);
  }
}

void check_products(Format format) {
  const char *name = NAMES[(int)format];
  const std::vector<uint8_t> source = random_matrix(format);
  Weight w{nullptr, N_ROWS, N_COLS, format};
  std::vector<uint8_t> packed((size_t)w.n_panels() * w.panel_size()), scratch(MATMUL_SCRATCH);
  pack_panels({w.format, source.data(), source.size() / N_ROWS, nullptr, 0}, w, packed.data(), 0, w.n_panels(), kernels.round_span);
  w.data = packed.data();

  std::vector<float> rows((size_t)N_ROWS * N_COLS);
  for (int r = 0; r < N_ROWS; r++) kernels.unpack_row(w, r, &rows[(size_t)r * N_COLS]);
  report(name, "rows", rows);
  check_products(w, rows, scheme(format).integer ? WORDS : VALUES, scratch.data());
  if (byte_codes(scheme(format))) check_products(w, rows, BYTES, scratch.data());
}

float f16(float f) {  // rounded to nearest even; of a normal number
  int exponent;
  const float mantissa = std::frexp(f, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(mantissa, 11)), exponent - 11);
}

// n tokens attend to themselves and everything before them; every token's query is checked against plain loops.
void check_attention(int n, int n_group, int dim, int window) {
  std::vector<float> q((size_t)n * n_group * dim), k((size_t)n * dim), v((size_t)n * dim), out(q.size());
  for (auto *values : {&q, &k, &v})
    for (auto &f : *values) f = random_float() * 2;
  const int64_t block_elems = 2 * KV_BLOCK * dim;
  const int n_blocks = (n + KV_BLOCK - 1) / KV_BLOCK;
  std::vector<uint16_t> kv((size_t)n_blocks * block_elems);
  std::vector<int32_t> blocks(n_blocks);
  for (int i = 0; i < n_blocks; i++) blocks[i] = n_blocks - 1 - i;
  for (int t = 0; t < n; t++)
    kernels.append_kv(&k[(size_t)t * dim], &v[(size_t)t * dim], kv.data() + blocks[t / KV_BLOCK] * block_elems, t % KV_BLOCK, 1, dim, dim);

  const float scale = 0.125f;
  double error = 0, size = 0;
  std::vector<float> scores((size_t)MAX_ROWS * KV_SPLIT);
  for (int t = 0; t < n; t++) {
    const Attention a{&q[(size_t)t * n_group * dim], n_group * dim, kv.data(), blocks.data(), block_elems, 0, dim, dim, false, n_group, 1, t, window, scale};
    std::vector<float> sums((size_t)2 * n_group * (2 + dim));
    float *p = sums.data();
    const SoftmaxState total{p, p + n_group, p + 2 * n_group};
    p += n_group * (2 + dim);
    const SoftmaxState part{p, p + n_group, p + 2 * n_group};
    for (int g = 0; g < n_group; g++) total.max[g] = MASKED;
    for (int split = 0; split * KV_SPLIT <= t; split++) {
      kernels.attend_split(a, split, scores.data(), part);
      kernels.merge_split(total, part, n_group, dim);
    }
    float *to = &out[(size_t)t * n_group * dim];
    kernels.finish_rows(total, nullptr, n_group, n_group, dim, to, n_group * dim);
    for (int g = 0; g < n_group; g++) {
      std::vector<double> weights(t + 1);
      double sum = 0;
      for (int s = window && t >= window ? t - window + 1 : 0; s <= t; s++) {
        double dot = 0;
        for (int d = 0; d < dim; d++) dot += (double)q[((size_t)t * n_group + g) * dim + d] * f16(k[(size_t)s * dim + d]);
        sum += weights[s] = std::exp(dot * scale);
      }
      for (int d = 0; d < dim; d++) {
        double expected = 0;
        for (int s = 0; s <= t; s++) expected += weights[s] / sum * f16(v[(size_t)s * dim + d]);
        error += std::pow(expected - to[g * dim + d], 2), size += expected * expected;
      }
    }
  }
  require(std::sqrt(error / size) < 1e-5, "the output is wrong", "attention");
  char what[32];
  snprintf(what, sizeof what, "%d,%d,%d,%d", n, n_group, dim, window);
  report("attention", what, out);
}

void check_rope() {
  constexpr int DIM = 64;
  std::vector<float> x(3 * DIM), before, cos(DIM / 2), sin(DIM / 2);
  for (auto &f : x) f = random_float();
  for (int i = 0; i < DIM / 2; i++) {  // points of the unit circle without a library's sine
    const float t = random_float();
    cos[i] = (1 - t * t) / (1 + t * t), sin[i] = 2 * t / (1 + t * t);
  }
  before = x;
  kernels.rope(x.data(), 3, DIM, DIM, cos.data(), sin.data(), false);
  for (int h = 0; h < 3; h++)
    for (int i = 0; i < DIM / 2; i++) {
      const double a = before[h * DIM + i], b = before[h * DIM + DIM / 2 + i];
      require(std::fabs(x[h * DIM + i] - (a * cos[i] - b * sin[i])) < 1e-6, "the rotation is wrong", "rope");
      require(std::fabs(x[h * DIM + DIM / 2 + i] - (b * cos[i] + a * sin[i])) < 1e-6, "the rotation is wrong", "rope");
    }
  report("rope", "3 heads", x);
}

}  // namespace

int main() {
  for (int f = 0; f < (int)Format::COUNT; f++) check_products((Format)f);
  check_attention(70, 3, 64, 0);
  check_attention(300, 1, 16, 0);
  check_attention(300, 5, 32, 40);
  check_rope();
}
