// Packing of every supported file format. The block layouts are those of GGUF (ggml's quantised blocks).
#include "pack.h"

#include <cstring>

namespace {

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

using ReadSpan = void (*)(const uint8_t *, Span &);
constexpr ReadSpan READERS[(int)Format::COUNT] = {nullptr,   nullptr,   nullptr,   read_q8_0, read_q4_0, read_q4_1, read_q5_0,
                                                  read_q5_1, read_q2_k, read_q3_k, read_q4_k, read_q5_k, read_q6_k};

// Writes the `width`-bit field starting at bit `from` of 32 codes of one row into a code plane (see formats.h).
void write_plane(uint8_t *plane, const uint8_t *codes, int lane, int width, int from) {
  const int fields = 16 / width;
  for (int j = 0; j < width; j++) {
    uint32_t words = 0;  // word 0 in the low half
    for (int f = 0; f < fields; f++) {
      const uint8_t *pair = codes + 2 * (j * fields + f);
      const uint32_t both = (uint32_t)pair[0] | (uint32_t)pair[1] << 16;
      words |= (both >> from & ((1u << width) - 1) * 0x10001u) << (f * width);
    }
    memcpy(plane + j * 64 + lane * 4, &words, 4);
  }
}

void write_codes(uint8_t *planes, const uint8_t *codes, int lane, int bits) {
  int from = 0;
  for (int width = bits & 8 ? 8 : bits & 4 ? 4 : 2, left = bits; left; left -= width, width = left) {
    write_plane(planes, codes, lane, width, from);
    planes += width * 64, from += width;
  }
}

void write_scales(uint8_t *out, const Span &span, int lane, const Scheme &s) {
  const int groups = s.span == BLOCK ? 0 : s.span / s.group;
  for (int g = 0; g < groups; g++) {
    out[g * PANEL + lane] = span.scales[g];
    if (s.has_min) out[(groups + g) * PANEL + lane] = span.mins[g];
  }
  out += groups * PANEL * (s.has_min ? 2 : 1);
  memcpy(out + lane * 2, &span.d, 2);
  if (s.has_min) memcpy(out + 2 * PANEL + lane * 2, &span.m, 2);
}

void pack_integer_row(const uint8_t *row, const Weight &w, const Scheme &s, int lane, uint8_t *panel) {
  const ReadSpan read = READERS[(int)w.format];
  Span span;
  for (int64_t k = 0; k < w.n_cols; k += s.span, row += s.source_bytes, panel += record_bytes(s)) {
    read(row, span);
    for (int b = 0; b < s.span / BLOCK; b++) write_codes(panel + b * s.bits * 64, span.codes + b * BLOCK, lane, s.bits);
    write_scales(panel + code_bytes(s), span, lane, s);
  }
}

void pack_float_row(const uint8_t *row, const Weight &w, int lane, uint8_t *panel) {
  const size_t width = (size_t)scheme(w.format).bits / 8;
  for (int64_t k = 0; k < w.n_cols; k++) {
    const size_t at = w.format == Format::BF16 ? (size_t)(k / 2) * 64 + lane * 4 + k % 2 * 2 : ((size_t)k * PANEL + lane) * width;
    memcpy(panel + at, row + (size_t)k * width, width);
  }
}

}  // namespace

void pack_panels(const uint8_t *source, size_t row_bytes, const Weight &w, uint8_t *out, int64_t panel0, int64_t panel1) {
  const Scheme &s = scheme(w.format);
  const bool padded = w.n_rows % PANEL || (!s.integer && w.n_cols % 2);
  for (int64_t p = panel0; p < panel1; p++) {
    uint8_t *panel = out + p * w.panel_size();
    if (padded) memset(panel, 0, w.panel_size());
    for (int lane = 0; lane < PANEL && p * PANEL + lane < w.n_rows; lane++) {
      const uint8_t *row = source + (p * PANEL + lane) * row_bytes;
      if (s.integer)
        pack_integer_row(row, w, s, lane, panel);
      else
        pack_float_row(row, w, lane, panel);
    }
  }
}
