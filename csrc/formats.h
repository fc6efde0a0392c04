// Weight formats and the packed layout that decode (one token) and prefill (many) both read.
//
// A packed matrix is a row of panels; a panel holds 16 output rows, its bytes in the order a kernel reads them, so lane r of
// every vector belongs to row r and no kernel ever adds across lanes.
//
//   float panel     F32, F16: for each k, 16 values.   BF16: for each pair of k, 16 x (value k, value k + 1).
//                   F8_E4M3: float32 scales of 128 columns each, up to a multiple of 64 bytes; then for each k, 16 values.
//   integer panel   for each span of `span` columns (32, or 256 for the K-quants): code planes | scales
//     code planes   per 32 columns, for each plane width B of `bits` = 8, or a sum of 4, 2, 1: B vectors of 64 bytes, of which four
//                   are a row's. Field f of vector j is half h = j * 8 / B + f: the four columns 8 * (h / 2) + OCTET_ORDER[4 * (h % 2)]
//                   and following of OCTET_ORDER, one in each byte. So one shift and mask gives four columns of all rows as
//                   bytes, and another the pairs of columns 0, 1 and 4, 5, or 2, 3 and 6, 7, of an octet as 16-bit words.
//     scales        span 32:  d f16[16], and with minimums m f16[16]               value = d * (code - zero) + m
//                   MXFP4:    e u8[16]                                     value = 2^(e - 128) * (code - zero), code from a table
//                   span 256: s i8[groups][16], with minimums n u8[groups][16], then d f16[16], with minimums e f16[16]
//                                                                                  value = d * s * (code - zero) + e * n
// The values are exactly the source's: packing moves bits and never rounds.
#pragma once
#include <cstddef>
#include <cstdint>

// Target files include this header at raised instruction sets. Always inlined, so that no such copy reaches the linker.
#define FLOOR inline __attribute__((always_inline))

enum class Format : int { F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, MXFP4, F8_E4M3, COUNT };

constexpr int PANEL = 16;  // output rows in a panel
constexpr int BLOCK = 32;  // columns that share one activation scale
constexpr int OCTETS = BLOCK / 8;
constexpr int OCTET_ORDER[8] = {0, 4, 1, 5, 2, 6, 3, 7};  // of eight columns, as bytes

struct Scheme {
  bool integer;
  int bits;         // code width; for float formats the width of a value
  int span;         // columns per scale record
  int group;        // columns per scale
  bool has_min;     // a minimum is added
  int zero;         // log2 of the code that stands for 0, or -1
  bool e2m1;        // stored codes are e2m1 numbers: a table gives twice their value plus `zero`, and scales are powers of two
  int source_bytes; // bytes per `span` columns of one row in the file
  int shared = 0;   // columns of all rows of a panel that share a float32 scale, stored before the panel's values; 0: no scales
};

constexpr Scheme SCHEMES[(int)Format::COUNT] = {
    /* F32   */ {false, 32, 1, 1, false, -1, false, 4},
    /* F16   */ {false, 16, 1, 1, false, -1, false, 2},
    /* BF16  */ {false, 16, 1, 1, false, -1, false, 2},
    /* Q8_0  */ {true, 8, 32, 32, false, -1, false, 34},
    /* Q4_0  */ {true, 4, 32, 32, false, 3, false, 18},
    /* Q4_1  */ {true, 4, 32, 32, true, -1, false, 20},
    /* Q5_0  */ {true, 5, 32, 32, false, 4, false, 22},
    /* Q5_1  */ {true, 5, 32, 32, true, -1, false, 24},
    /* Q2_K  */ {true, 2, 256, 16, true, -1, false, 84},
    /* Q3_K  */ {true, 3, 256, 16, false, 2, false, 110},
    /* Q4_K  */ {true, 4, 256, 32, true, -1, false, 144},
    /* Q5_K  */ {true, 5, 256, 32, true, -1, false, 176},
    /* Q6_K  */ {true, 6, 256, 16, false, 5, false, 210},
    /* MXFP4 */ {true, 4, 32, 32, false, 4, true, 17},
    /* F8    */ {false, 8, 1, 1, false, -1, false, 1, 128},
};

FLOOR constexpr const Scheme &scheme(Format f) { return SCHEMES[(int)f]; }

// Bytes of the code planes of `span` columns, of one scale record, and of both, for the 16 rows of a panel.
FLOOR constexpr size_t code_bytes(const Scheme &s) { return (size_t)s.span / BLOCK * s.bits * 64; }
FLOOR constexpr size_t scale_bytes(const Scheme &s) {
  if (s.e2m1) return PANEL;
  const size_t per_row = s.span == BLOCK ? 2 : (size_t)s.span / s.group + 2;
  return per_row * (s.has_min ? 2 : 1) * PANEL;
}
FLOOR constexpr size_t record_bytes(const Scheme &s) {
  return s.integer ? code_bytes(s) + scale_bytes(s) : (size_t)s.bits / 8 * PANEL;
}
FLOOR constexpr size_t shared_scale_bytes(const Scheme &s, size_t n_cols) {
  return s.shared ? ((n_cols + s.shared - 1) / s.shared * sizeof(float) + 63) / 64 * 64 : 0;
}
FLOOR constexpr size_t panel_bytes(const Scheme &s, size_t n_cols) {
  // BF16 panels hold pairs of columns: an odd width is padded with a zero column.
  const size_t cols = s.integer || s.bits == 32 ? n_cols : (n_cols + 1) / 2 * 2;
  return shared_scale_bytes(s, n_cols) + cols / s.span * record_bytes(s);
}

static_assert(record_bytes(SCHEMES[(int)Format::Q4_0]) == 16 * 18, "Q4_0 packs without overhead");
static_assert(record_bytes(SCHEMES[(int)Format::Q4_1]) == 16 * 20, "Q4_1 packs without overhead");
static_assert(record_bytes(SCHEMES[(int)Format::Q5_0]) == 16 * 22, "Q5_0 packs without overhead");
static_assert(record_bytes(SCHEMES[(int)Format::Q5_1]) == 16 * 24, "Q5_1 packs without overhead");
static_assert(record_bytes(SCHEMES[(int)Format::Q8_0]) == 16 * 34, "Q8_0 packs without overhead");
static_assert(record_bytes(SCHEMES[(int)Format::MXFP4]) == 16 * 17, "MXFP4 packs without overhead");
static_assert(record_bytes(SCHEMES[(int)Format::Q6_K]) == 16 * 210, "Q6_K packs without overhead");
static_assert(record_bytes(SCHEMES[(int)Format::Q4_K]) == 16 * 148, "Q4_K: scales widen from 6 to 8 bits");
static_assert(record_bytes(SCHEMES[(int)Format::Q5_K]) == 16 * 180, "Q5_K: scales widen from 6 to 8 bits");

// The largest code, and whether codes can be multiplied as bytes: two products with 8-bit activations fit 16 bits, and twice so
// many do for each bit that is missing. Of 8-bit codes they do not.
FLOOR constexpr int largest_code(const Scheme &s) { return s.e2m1 ? 28 : (1 << s.bits) - 1; }
FLOOR constexpr bool byte_codes(const Scheme &s) { return s.integer && s.bits <= 6; }

struct Weight {  // a packed matrix [n_rows, n_cols]; panels are padded with zero rows
  const uint8_t *data;
  int64_t n_rows, n_cols;
  Format format;
  FLOOR int64_t n_panels() const { return (n_rows + PANEL - 1) / PANEL; }
  FLOOR size_t panel_size() const { return panel_bytes(scheme(format), (size_t)n_cols); }
};
