// Which instruction-set level this processor and operating system can run.
#pragma once
#include <string>
#include <vector>

#include "ops.h"

struct Level {
  const char *name;
  const Kernels *kernels;  // null: not compiled into this build
  bool runs_here;
  std::string needs;       // what is missing, if it does not run here; "emulated" in builds with FREEHOLD_EMULATE
};

const std::vector<Level> &levels();              // from plain to best
const Level *find_level(const std::string &name);  // null if there is none of that name
