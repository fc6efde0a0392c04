// From numbers in a file, as floats, to panels of a quantised format. The rounding itself is a kernel (quantise.h).
#include "pack.h"

#include <algorithm>
#include <cstring>

namespace {

float number(const uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
float from_f32(const uint8_t *p) {
  uint32_t bits;
  memcpy(&bits, p, 4);
  return number(bits);
}
float from_bf16(const uint8_t *p) { return number((uint32_t)p[0] << 16 | (uint32_t)p[1] << 24); }
float from_f16(const uint8_t *p) {
  const uint32_t half = (uint32_t)(p[0] | p[1] << 8), sign = (half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return number(sign | 0x7f800000 | rest << 13);
  // Shifted into place the exponent is 112 too small, also for subnormal numbers.
  return number(sign | rest << 13) * number(0x77800000);
}

// Columns [k, k + n) of a panel's rows, as x[n][PANEL].
template <int BYTES, float (*READ)(const uint8_t *)>
void read_columns(const Source &source, int64_t row, int n_rows, int64_t k, int n, float *x) {
  for (int lane = 0; lane < n_rows; lane++) {
    const uint8_t *p = source.rows + (row + lane) * source.row_bytes + k * BYTES;
    for (int i = 0; i < n; i++) x[i * PANEL + lane] = READ(p + i * BYTES);
  }
}

constexpr int F8_COLUMNS = scheme(Format::F8_E4M3).shared;  // that share a scale

float from_f8(uint8_t code) {  // sign, four bits of exponent, three of mantissa; all ones but the sign is no number
  const uint32_t sign = (uint32_t)(code & 0x80) << 24, rest = code & 0x7f;
  return number(sign | (rest == 0x7f ? 0x7fc00000 : rest << 20)) * 0x1p120f;
}
void read_f8(const Source &source, int64_t row, int n_rows, int64_t k, int n, float *x) {
  for (int lane = 0; lane < n_rows; lane++) {
    const uint8_t *p = source.rows + (row + lane) * source.row_bytes + k;
    const uint8_t *scales = source.scales ? source.scales + (row + lane) * source.scale_stride : nullptr;
    for (int i = 0; i < n; i++)
      x[i * PANEL + lane] = from_f8(p[i]) * (scales ? from_f32(scales + (k + i) / F8_COLUMNS * sizeof(float)) : 1);
  }
}

using Reader = void (*)(const Source &source, int64_t row, int n_rows, int64_t k, int n, float *x);

// A format that shall be rounded while loading needs no more than a reader here.
Reader reader(Format from) {
  switch (from) {
    case Format::F32: return read_columns<4, from_f32>;
    case Format::F16: return read_columns<2, from_f16>;
    case Format::BF16: return read_columns<2, from_bf16>;
    case Format::F8_E4M3: return read_f8;
    default: return nullptr;
  }
}

}  // namespace

bool can_round(Format from, Format to) {
  return reader(from) && (to == Format::Q8_0 || to == Format::Q4_1 || to == Format::Q4_K);
}

bool round_panel(const Source &source, int64_t row, int n_rows, const Weight &w, Rounder round, uint8_t *panel) {
  const Scheme &s = scheme(w.format);
  const Reader read = reader(source.format);
  alignas(64) float x[256 * PANEL] = {};  // rows beyond the last stay zero
  bool ok = true;
  for (int64_t k = 0; k < w.n_cols; k += s.span, panel += record_bytes(s)) {
    read(source, row, n_rows, k, s.span, x);
    ok &= round(x, w.format, panel);
  }
  return ok;
}
