// Packing of every supported file format. The block layouts are those of GGUF (ggml's quantised blocks), and Hugging Face's MXFP4.
#include "pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {

constexpr int AHEAD = 512;  // bytes of each of 16 rows that are fetched beforehand: too many streams for the processor to see

// What one row's block says, format aside: codes, and scale bytes in the order the packed record wants them.
struct Span {
  uint8_t codes[256];
  uint16_t d, m;        // f16 scale and minimum (or their super-scales)
  uint8_t scales[16];   // K-quants: group scales (signed) and group minimums
  uint8_t mins[16];
};

uint16_t u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
uint16_t negate_f16(uint16_t h) { return h ^ 0x8000; }

void low_high_nibbles(const uint8_t *q, uint8_t *codes) {  // byte i: column i low, column i + 16 high
  for (int i = 0; i < 16; i++) codes[i] = q[i] & 15, codes[i + 16] = q[i] >> 4;
}
void fifth_bits(const uint8_t *p, uint8_t *codes) {  // bit i: column i
  uint32_t bits;
  memcpy(&bits, p, 4);
  for (int i = 0; i < 32; i++) codes[i] |= (uint8_t)((bits >> i & 1) << 4);
}

void read_q8_0(const uint8_t *p, Span &s) { s.d = u16(p), memcpy(s.codes, p + 2, 32); }
void read_q4_0(const uint8_t *p, Span &s) { s.d = u16(p), low_high_nibbles(p + 2, s.codes); }
void read_q4_1(const uint8_t *p, Span &s) { s.d = u16(p), s.m = u16(p + 2), low_high_nibbles(p + 4, s.codes); }
void read_q5_0(const uint8_t *p, Span &s) { s.d = u16(p), low_high_nibbles(p + 6, s.codes), fifth_bits(p + 2, s.codes); }
void read_q5_1(const uint8_t *p, Span &s) {
  s.d = u16(p), s.m = u16(p + 2), low_high_nibbles(p + 8, s.codes), fifth_bits(p + 4, s.codes);
}

void read_q2_k(const uint8_t *p, Span &s) {  // scales[16] (scale low nibble, min high) | codes[64] | d | dmin
  for (int g = 0; g < 16; g++) s.scales[g] = p[g] & 15, s.mins[g] = p[g] >> 4;
  for (int k = 0; k < 256; k++) s.codes[k] = p[16 + k / 128 * 32 + k % 32] >> (k / 32 % 4 * 2) & 3;
  s.d = u16(p + 80), s.m = negate_f16(u16(p + 82));
}

void read_q3_k(const uint8_t *p, Span &s) {  // high bits[32] | low codes[64] | 6-bit scales[12] | d
  const uint8_t *low = p + 32, *packed = p + 96;
  for (int k = 0; k < 256; k++)
    s.codes[k] = (uint8_t)((low[k / 128 * 32 + k % 32] >> (k / 32 % 4 * 2) & 3) | (p[k % 32] >> (k / 32) & 1) << 2);
  for (int g = 0; g < 16; g++) {
    const int nibble = g < 8 ? packed[g] & 15 : packed[g - 8] >> 4;
    s.scales[g] = (uint8_t)((nibble | (packed[8 + g % 4] >> (g / 4 * 2) & 3) << 4) - 32);
  }
  s.d = u16(p + 108);
}

void six_bit_scales(const uint8_t *q, Span &s) {  // 8 scales and 8 minimums in 12 bytes
  for (int g = 0; g < 4; g++) {
    s.scales[g] = q[g] & 63, s.mins[g] = q[g + 4] & 63;
    s.scales[g + 4] = (uint8_t)((q[g + 8] & 15) | (q[g] >> 6) << 4);
    s.mins[g + 4] = (uint8_t)((q[g + 8] >> 4) | (q[g + 4] >> 6) << 4);
  }
}
void k_nibbles(const uint8_t *q, uint8_t *codes) {  // per 64 columns 32 bytes: low nibbles, then high nibbles
  for (int k = 0; k < 256; k++) codes[k] = q[k / 64 * 32 + k % 32] >> (k / 32 % 2 * 4) & 15;
}
void read_q4_k(const uint8_t *p, Span &s) {  // d | dmin | scales[12] | codes[128]
  s.d = u16(p), s.m = negate_f16(u16(p + 2)), six_bit_scales(p + 4, s), k_nibbles(p + 16, s.codes);
}
void read_q5_k(const uint8_t *p, Span &s) {  // d | dmin | scales[12] | high bits[32] | codes[128]
  s.d = u16(p), s.m = negate_f16(u16(p + 2)), six_bit_scales(p + 4, s), k_nibbles(p + 48, s.codes);
  for (int k = 0; k < 256; k++) s.codes[k] |= (uint8_t)((p[16 + k % 32] >> (k / 32) & 1) << 4);
}
void read_q6_k(const uint8_t *p, Span &s) {  // low nibbles[128] | high pairs[64] | scales i8[16] | d
  for (int k = 0; k < 256; k++) {
    const int half = k / 128, i = k % 128;
    const int low = p[half * 64 + i % 64] >> (i / 64 * 4) & 15;
    s.codes[k] = (uint8_t)(low | (p[128 + half * 32 + i % 32] >> (i / 32 * 2) & 3) << 4);
  }
  memcpy(s.scales, p + 192, 16);
  s.d = u16(p + 208);
}

void read_mxfp4(const uint8_t *p, Span &s) { s.d = p[0], low_high_nibbles(p + 1, s.codes); }

// Of eight codes, one per byte, those of columns 0, 4, 1 and 5.
uint32_t first_half(uint64_t x) {
  x &= 0x0000FFFF0000FFFF;
  const uint32_t pairs = (uint32_t)(x | x >> 16);  // 0, 1, 4, 5
  return (pairs & 0xFF0000FF) | (pairs & 0xFF00) << 8 | (pairs >> 8 & 0xFF00);
}

// Writes the `W`-bit fields, from bit `from` on, of 32 codes of one row into a code plane (see formats.h).
template <int W> void write_plane(uint8_t *plane, const uint8_t *codes, int lane, int from) {
  constexpr uint64_t FIELD = (0xFFu >> (8 - W)) * 0x0101010101010101u;
  uint32_t bytes[8] = {};
  for (int octet = 0; octet < OCTETS; octet++) {
    uint64_t x;
    memcpy(&x, codes + 8 * octet, 8);
    x = x >> from & FIELD;
    if constexpr (W == 8)
      bytes[2 * octet] = first_half(x), bytes[2 * octet + 1] = first_half(x >> 16);
    else  // the second half's fields beside the first's
      bytes[octet * W / 4] |= first_half(x | x >> (16 - W)) << octet * 2 * W % 8;
  }
  for (int j = 0; j < W; j++) memcpy(plane + j * 64 + lane * 4, &bytes[j], 4);
}

template <int BITS> void write_codes(uint8_t *planes, const uint8_t *codes, int lane) {
  constexpr int FIRST = BITS & 8 ? 8 : BITS & 4 ? 4 : 2;
  write_plane<FIRST>(planes, codes, lane, 0);
  if constexpr (BITS > FIRST) write_plane<BITS - FIRST>(planes + FIRST * 64, codes, lane, FIRST);
}

void write_scales(uint8_t *out, const Span &span, int lane, const Scheme &s) {
  if (s.e2m1) {
    out[lane] = (uint8_t)span.d;
    return;
  }
  const int groups = s.span == BLOCK ? 0 : s.span / s.group;
  for (int g = 0; g < groups; g++) {
    out[g * PANEL + lane] = span.scales[g];
    if (s.has_min) out[(groups + g) * PANEL + lane] = span.mins[g];
  }
  out += groups * PANEL * (s.has_min ? 2 : 1);
  memcpy(out + lane * 2, &span.d, 2);
  if (s.has_min) memcpy(out + 2 * PANEL + lane * 2, &span.m, 2);
}

using PackPanel = void (*)(const Source &source, int64_t row, int n_rows, int64_t n_cols, uint8_t *panel);

// All that depends on the format is known at compile time: this runs at a third of the time of a loop over a Scheme.
template <Format F, void (*READ)(const uint8_t *, Span &)>
void pack_integers(const Source &source, int64_t row, int n_rows, int64_t n_cols, uint8_t *panel) {
  constexpr Scheme s = scheme(F);
  const uint8_t *rows = source.rows + row * source.row_bytes;
  Span span;
  for (int64_t k = 0; k < n_cols; k += s.span, rows += s.source_bytes, panel += record_bytes(s))
    for (int lane = 0; lane < n_rows; lane++) {
      __builtin_prefetch(rows + lane * source.row_bytes + AHEAD);
      READ(rows + lane * source.row_bytes, span);
      for (int b = 0; b < s.span / BLOCK; b++) write_codes<s.bits>(panel + b * s.bits * 64, span.codes + b * BLOCK, lane);
      write_scales(panel + code_bytes(s), span, lane, s);
    }
}

// Hugging Face's MXFP4 puts even columns low and odd ones high, as the planes want them apart: eight columns are one word.
void pack_mxfp4_pairs(const Source &source, int64_t row, int n_rows, int64_t n_cols, uint8_t *panel) {
  constexpr size_t record = record_bytes(scheme(Format::MXFP4));
  for (int lane = 0; lane < n_rows; lane++) {
    const uint8_t *codes = source.rows + (row + lane) * source.row_bytes, *scales = source.scales + (row + lane) * source.scale_stride;
    uint8_t *out = panel + lane * 4;
    for (int64_t b = 0; b < n_cols / BLOCK; b++, codes += 16, out += record) {
      __builtin_prefetch(codes + AHEAD);
      for (int j = 0; j < 4; j++) {
        uint32_t x;
        memcpy(&x, codes + 4 * j, 4);
        uint32_t even = x & 0x0f0f0f0f, odd = x >> 4 & 0x0f0f0f0f;
        even = (even | even >> 4) & 0x00ff00ff, odd = (odd | odd >> 4) & 0x00ff00ff;
        const uint32_t words = ((even | even >> 8) & 0xffff) | (odd | odd >> 8) << 16;
        memcpy(out + j * 64, &words, 4);
      }
      panel[b * record + 256 + lane] = scales[b];
    }
  }
}

template <class T> void pack_values(const Source &source, int64_t row, int n_rows, int64_t n_cols, uint8_t *panel) {
  const uint8_t *rows = source.rows + row * source.row_bytes;
  for (int64_t k = 0; k < n_cols; k++)
    for (int lane = 0; lane < n_rows; lane++)
      memcpy(panel + (k * PANEL + lane) * sizeof(T), rows + lane * source.row_bytes + k * sizeof(T), sizeof(T));
}
void pack_bf16(const Source &source, int64_t row0, int n_rows, int64_t n_cols, uint8_t *panel) {  // columns in pairs
  for (int lane = 0; lane < n_rows; lane++) {
    const uint8_t *row = source.rows + (row0 + lane) * source.row_bytes;
    for (int64_t k = 0; k + 1 < n_cols; k += 2) memcpy(panel + k * 32 + lane * 4, row + k * 2, 4);
    if (n_cols % 2) memcpy(panel + (n_cols - 1) * 32 + lane * 4, row + (n_cols - 1) * 2, 2);
  }
}

// Scales are stored times 2^120, which makes up for what load_f8 leaves out. One that is too large for that, or not the same
// for all rows, becomes NaN.
void pack_f8(const Source &source, int64_t row0, int n_rows, int64_t n_cols, uint8_t *panel) {
  constexpr Scheme s = scheme(Format::F8_E4M3);
  const auto scale_of = [&](int lane, int64_t block) {
    float scale = 1;
    if (source.scales) memcpy(&scale, source.scales + (row0 + lane) * source.scale_stride + block * 4, 4);
    return scale;
  };
  for (int64_t b = 0; b * s.shared < n_cols; b++) {
    float scale = scale_of(0, b);
    for (int lane = 1; lane < n_rows; lane++)
      if (scale_of(lane, b) != scale) scale = NAN;
    scale *= 0x1p120f;
    memcpy(panel + b * 4, &scale, 4);
  }
  uint8_t *values = panel + shared_scale_bytes(s, (size_t)n_cols);
  const uint8_t *rows = source.rows + row0 * source.row_bytes;
  for (int64_t k = 0; k < n_cols; k++)
    for (int lane = 0; lane < n_rows; lane++) values[k * PANEL + lane] = rows[lane * source.row_bytes + k];
}

constexpr PackPanel PACKERS[(int)Format::COUNT] = {
    pack_values<uint32_t>,
    pack_values<uint16_t>,
    pack_bf16,
    pack_integers<Format::Q8_0, read_q8_0>,
    pack_integers<Format::Q4_0, read_q4_0>,
    pack_integers<Format::Q4_1, read_q4_1>,
    pack_integers<Format::Q5_0, read_q5_0>,
    pack_integers<Format::Q5_1, read_q5_1>,
    pack_integers<Format::Q2_K, read_q2_k>,
    pack_integers<Format::Q3_K, read_q3_k>,
    pack_integers<Format::Q4_K, read_q4_k>,
    pack_integers<Format::Q5_K, read_q5_k>,
    pack_integers<Format::Q6_K, read_q6_k>,
    pack_integers<Format::MXFP4, read_mxfp4>,
    pack_f8,
};

PackPanel packer(const Source &source, Format to) {
  return source.scales && to == Format::MXFP4 ? pack_mxfp4_pairs : PACKERS[(int)to];
}

}  // namespace

bool can_pack(Format from, Format to) { return from == to || can_round(from, to); }

// Whether no scale of a packed MXFP4 panel is 255, and no scale and no value of a packed F8_E4M3 panel is NaN or infinite.
// Looked at here, because here it is in the cache anyway.
bool all_are_numbers(const Weight &w, const uint8_t *panel) {
  const Scheme &s = scheme(w.format);
  if (s.shared) {
    for (int64_t b = 0; b * s.shared < w.n_cols; b++) {
      float scale;
      memcpy(&scale, panel + b * 4, 4);
      if (!std::isfinite(scale)) return false;
    }
    bool ok = true;
    const size_t first = shared_scale_bytes(s, (size_t)w.n_cols), last = w.panel_size();
    for (size_t i = first; i < last; i++) ok &= (panel[i] & 0x7f) != 0x7f;
    return ok;
  }
  for (int64_t b = 0; b < w.n_cols / BLOCK; b++)
    for (int lane = 0; lane < PANEL; lane++)
      if (panel[b * record_bytes(s) + code_bytes(s) + lane] == 255) return false;
  return true;
}

bool pack_panels(const Source &source, const Weight &w, uint8_t *out, int64_t panel0, int64_t panel1, Rounder round) {
  const Scheme &s = scheme(w.format);
  const PackPanel pack = packer(source, w.format);
  bool ok = true;
  for (int64_t p = panel0; p < panel1; p++) {
    uint8_t *panel = out + p * w.panel_size();
    const int n_rows = (int)std::min<int64_t>(PANEL, w.n_rows - p * PANEL);
    if (source.format != w.format) {
      ok &= round_panel(source, p * PANEL, n_rows, w, round, panel);
      continue;
    }
    if (n_rows < PANEL || (!s.integer && w.n_cols % 2)) memset(panel, 0, w.panel_size());
    pack(source, p * PANEL, n_rows, w.n_cols, panel);
    if (s.e2m1 || s.shared) ok &= all_are_numbers(w, panel);
  }
  return ok;
}
