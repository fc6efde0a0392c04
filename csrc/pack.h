// Packing: from the row-major blocks of a model file to the panels of formats.h. Moves bits, never rounds.
#pragma once
#include "formats.h"

// Packs panels [panel0, panel1) of a matrix whose rows start `row_bytes` apart in `source`; `out` is the whole packed matrix.
void pack_panels(const uint8_t *source, size_t row_bytes, const Weight &shape, uint8_t *out, int64_t panel0, int64_t panel1);
