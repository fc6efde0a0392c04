// The plain C++ level: any processor, and the yardstick for the others.
#define ISA_NAMESPACE scalar
#include "target.h"
