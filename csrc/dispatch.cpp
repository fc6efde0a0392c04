// The probe: once per process, from CPUID and the operating system's word on which registers it saves.
#include "dispatch.h"

#define DECLARE_LEVEL(isa) \
  namespace isa {          \
  extern const Kernels KERNELS; \
  }
DECLARE_LEVEL(scalar)
#if defined(FREEHOLD_X86)
DECLARE_LEVEL(avx2)
DECLARE_LEVEL(avx512)
#endif

namespace {

struct Feature { const char *name; bool present; };

Level level(const char *name, const Kernels *kernels, const std::vector<Feature> &features) {
  Level l{name, kernels, true, ""};
  for (const Feature &f : features)
    if (!f.present) l.runs_here = false, l.needs += (l.needs.empty() ? "" : ", ") + std::string(f.name);
  return l;
}

std::vector<Level> probe() {
  std::vector<Level> found{level("scalar", &scalar::KERNELS, {})};
#if defined(FREEHOLD_X86)
  __builtin_cpu_init();  // checks XGETBV too: a feature whose registers the system does not save counts as absent
#define HAS(feature) Feature{feature, (bool)__builtin_cpu_supports(feature)}
  found.push_back(level("avx2", &avx2::KERNELS, {HAS("avx2"), HAS("fma"), HAS("f16c")}));
  found.push_back(level("avx512", &avx512::KERNELS,
                        {HAS("avx512f"), HAS("avx512bw"), HAS("avx512dq"), HAS("avx512vl"), HAS("avx512vnni")}));
#undef HAS
#endif
  return found;
}

}  // namespace

const std::vector<Level> &levels() {
  static const std::vector<Level> found = probe();
  return found;
}

const Level *find_level(const std::string &name) {
  for (const Level &l : levels())
    if (name == l.name) return &l;
  return nullptr;
}
