// From the bytes of a file to packed panels. Packed weights are kept on disk: whoever changes what packing gives counts up
// PACKED_LAYOUT in kernels/native.py.
#pragma once
#include "formats.h"

// Rows of a matrix as a file has them, `row_bytes` apart. MXFP4 comes in two forms: GGUF's blocks, or Hugging Face's, which keeps
// the scales in an array of their own, `scale_stride` bytes per row, and pairs neighbouring columns in a byte. F8_E4M3 may have
// such an array too, of float32 for 128 columns each; the rows of a panel, if it has rows of one block of the file, share it.
struct Source {
  Format format;
  const uint8_t *rows;
  size_t row_bytes;
  const uint8_t *scales;  // null, or of MXFP4 or F8_E4M3
  size_t scale_stride;
};

// Rounds `span` columns of a panel, [span][PANEL], to one record of a format; Kernels::round_span of some level.
using Rounder = bool (*)(const float *columns, Format to, uint8_t *record);

// Whether a matrix of the source's format may be packed as `to`: as it is, or rounded.
bool can_pack(Format from, Format to);
bool can_round(Format from, Format to);

// Packs panels [panel0, panel1) of a matrix; `out` is the whole packed matrix. False if an MXFP4 scale, or anything
// of F8_E4M3, stands for no number, or if a number to be rounded does, or is too large.
bool pack_panels(const Source &source, const Weight &shape, uint8_t *out, int64_t panel0, int64_t panel1, Rounder round);

// One panel of rows [row, row + n_rows), rounded. False as above.
bool round_panel(const Source &source, int64_t row, int n_rows, const Weight &shape, Rounder round, uint8_t *panel);
