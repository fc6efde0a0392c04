// The AVX-512 level (F, BW, DQ, VL, VNNI). Compiled with the matching -m flags.
#define ISA_NAMESPACE avx512
#define ISA_AVX512
#include "target.h"
