// The probe: once per process, from CPUID and the operating system's word on which registers it saves.
#include "dispatch.h"

#if defined(FREEHOLD_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#define DECLARE_LEVEL(isa) \
  namespace isa {          \
  extern const Kernels KERNELS; \
  }
DECLARE_LEVEL(scalar)
#if defined(FREEHOLD_X86)
DECLARE_LEVEL(avx2)
DECLARE_LEVEL(avx512)
DECLARE_LEVEL(amx)
#endif

namespace {

struct Feature { const char *name; bool present; };

Level level(const char *name, const Kernels *kernels, const std::vector<Feature> &features) {
  Level l{name, kernels, true, ""};
  for (const Feature &f : features)
    if (!f.present) l.runs_here = false, l.needs += (l.needs.empty() ? "" : ", ") + std::string(f.name);
  return l;
}

#if defined(FREEHOLD_X86) && !defined(FREEHOLD_EMULATE)
// For what __builtin_cpu_supports does not know by name in every compiler.
enum { EAX, EBX, ECX, EDX };
bool cpuid(unsigned leaf, int reg, int bit) {
  unsigned r[4];
  return __get_cpuid_count(leaf, 0, &r[EAX], &r[EBX], &r[ECX], &r[EDX]) && (r[reg] >> bit & 1);
}
bool saves_tiles() {  // bits 17 and 18 of XGETBV: tile configuration and tile data
  if (!cpuid(1, ECX, 27)) return false;  // OSXSAVE: there is an XGETBV
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low >> 17 & 3) == 3;
}
// Tile registers are large, so Linux gives them only to processes that ask, once.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
  return true;
#endif
}

void probe_x86(std::vector<Level> &found) {
  __builtin_cpu_init();  // checks XGETBV too: a feature whose registers the system does not save counts as absent
#define HAS(feature) Feature{feature, (bool)__builtin_cpu_supports(feature)}
  found.push_back(level("avx2", &avx2::KERNELS, {HAS("avx2"), HAS("fma"), {"f16c", cpuid(1, ECX, 29)}}));
  const std::vector<Feature> avx512{HAS("avx512f"), HAS("avx512bw"), HAS("avx512dq"), HAS("avx512vl"), HAS("avx512vnni")};
  found.push_back(level("avx512", &avx512::KERNELS, avx512));
  std::vector<Feature> tiles = avx512;
  tiles.push_back(HAS("avx512bf16"));
  tiles.push_back({"amx-tile", cpuid(7, EDX, 24)});
  tiles.push_back({"amx-bf16", cpuid(7, EDX, 22)});
#undef HAS
  Level best = level("amx", &amx::KERNELS, tiles);
  if (best.runs_here && !(saves_tiles() && may_use_tiles()))
    best.runs_here = false, best.needs = "the operating system's permission to use tile registers";
  found.push_back(best);
}
#elif defined(FREEHOLD_X86)
// A test build: the levels above avx2 are compiled for AVX2 against tests/emulated and say so.
void probe_x86(std::vector<Level> &found) {
  found.push_back(level("avx2", &avx2::KERNELS, {}));
  found.push_back({"avx512", &avx512::KERNELS, true, "emulated"});
  found.push_back({"amx", &amx::KERNELS, true, "emulated"});
}
#endif

std::vector<Level> probe() {
  std::vector<Level> found{level("scalar", &scalar::KERNELS, {})};
#if defined(FREEHOLD_X86)
  probe_x86(found);
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
