// The AMX level: AVX-512 with BF16, and products of many tokens on bf16 tiles. Compiled with the matching -m flags.
#define ISA_NAMESPACE amx
#define ISA_AVX512
#include "attend.h"
#include "matmul.h"
#include "misc.h"
#include "quantise.h"

#include "amx.h"

namespace amx {
extern const Kernels KERNELS;
const Kernels KERNELS = {"amx",        prepare_tiles, matmul_tiles, unpack_row, norm_heads, rope, append_kv, append_latent, read_latent,
                         attend_split, merge_split,   finish_rows,  add_scaled, round_span, TILE_TOKENS};
}  // namespace amx
