// One instruction-set level: every kernel compiled in its own namespace, and the table that hands them out.
// A target_<isa>.cpp defines ISA_NAMESPACE and, for vector levels, ISA_<LEVEL>, and includes this file.
#pragma once
#include "attend.h"
#include "matmul.h"
#include "misc.h"
#include "quantise.h"

namespace ISA_NAMESPACE {
extern const Kernels KERNELS;
#define ISA_STRING_(x) #x
#define ISA_STRING(x) ISA_STRING_(x)
const Kernels KERNELS = {ISA_STRING(ISA_NAMESPACE), prepare, matmul, unpack_row, norm_heads, rope,
                         append_kv, append_latent, read_latent, attend_split, merge_split, finish_rows, add_scaled,
                         round_span};
}  // namespace ISA_NAMESPACE
