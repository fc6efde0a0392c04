// The AVX2 level (with FMA and F16C). Compiled with -mavx2 -mfma -mf16c.
#define ISA_NAMESPACE avx2
#define ISA_AVX2
#include "target.h"
