#!/usr/bin/env bash
# Runs the kernel tests with the avx512 and amx levels emulated, on any x86-64 processor with AVX2.
#
# usage: bench/emulated.sh [pytest arguments]
# needs: cmake, ninja, libsimde-dev (Debian's name for SIMDe), and a Python, PYTHON or python3, with nanobind and our test
# requirements. Builds in a temporary directory, or in BUILD, which a second run then reuses. The build takes some minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
build=${BUILD:-$(mktemp -d)}
[ -n "${BUILD:-}" ] || trap 'rm -rf "$build"' EXIT

cmake -S . -B "$build/cmake" -G Ninja -DPython_EXECUTABLE="$(command -v "$python")" \
  -Dnanobind_DIR="$("$python" -m nanobind --cmake_dir)" -DFREEHOLD_STRICT=ON -DFREEHOLD_EMULATE=ON
cmake --build "$build/cmake"

rm -rf "$build/package" && mkdir -p "$build/package"
cp -r src/freehold "$build/package/"
rm -f "$build"/package/freehold/kernels/_kernels*.so
cp "$build"/cmake/_kernels*.so "$build/package/freehold/kernels/"

export PYTHONPATH="$build/package"
"$python" - <<'CHECK'
from freehold.kernels import _kernels
levels = {name: note for name, runs_here, note in _kernels.levels() if runs_here}
assert levels["avx512"] == levels["amx"] == "emulated", f"another build of the extension was imported: {_kernels.__file__}"
CHECK
"$python" -m pytest tests/kernels "$@"
