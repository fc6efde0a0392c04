#!/usr/bin/env bash
# Builds the portable kernels for this machine and for arm64, runs both and compares every bit of their results.
#
# usage: bench/arm64.sh
# needs: g++, aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: g++-aarch64-linux-gnu, qemu-user). Also compiles everything of
# the extension but the Python bindings for arm64, with warnings as errors.
set -euo pipefail
cd "$(dirname "$0")/.."

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
flags=(-std=gnu++20 -O2 -ffp-contract=off -fno-math-errno -Wall -Wextra -Werror -Wno-psabi)
sources=(tests/native/portable.cpp csrc/pack.cpp csrc/quantise.cpp csrc/target_scalar.cpp)

g++ "${flags[@]}" "${sources[@]}" -o "$build/here"
aarch64-linux-gnu-g++ "${flags[@]}" -static "${sources[@]}" -o "$build/arm64"
for source in csrc/program.cpp csrc/experts.cpp csrc/latent.cpp csrc/threads.cpp csrc/memory.cpp csrc/dispatch.cpp; do
  aarch64-linux-gnu-g++ "${flags[@]}" -fsyntax-only "$source"
done

"$build/here" >"$build/here.txt"
qemu-aarch64 "$build/arm64" >"$build/arm64.txt"
diff "$build/here.txt" "$build/arm64.txt"
echo "$(wc -l <"$build/here.txt") results agree in every bit"
