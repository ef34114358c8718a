#!/usr/bin/env bash
# Everything CI checks, from a fresh machine: dependencies, release build, static device programs for x86-64 and aarch64,
# shared libraries, the quick suite under ASan+UBSan, the threaded parts under TSan, and all tests (the aarch64 programs
# and the kernels' tests under qemu-user).
# MOEPACK_OUTSIDE=1 also runs scripts/outside.sh: our exports in ONNX Runtime and llama.cpp from npm.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

say "Dependencies"
bash scripts/install-deps.sh --device --checks
say "Release build"
build_preset release
say "Static device programs, x86-64 and aarch64"
build_preset device-x86_64
build_preset device-aarch64
say "Shared libraries"
build_preset library moepack_runtime_shared moepack_verify_shared
say "Quick suite under AddressSanitizer and UndefinedBehaviorSanitizer"
build_preset asan-ubsan
ctest --test-dir build/asan-ubsan -L quick --output-on-failure --no-tests=error -j "$(nproc)" >build/asan-ctest.log 2>&1 ||
  { tail -60 build/asan-ctest.log; exit 1; }
tail -4 build/asan-ctest.log
say "Threaded parts under ThreadSanitizer"
build_preset tsan base_test runtime_test runtime_c_test verify_test
ctest --test-dir build/tsan -R 'Thread|Engine|ExpertCache' --output-on-failure --no-tests=error -j "$(nproc)" >build/tsan-ctest.log 2>&1 ||
  { tail -60 build/tsan-ctest.log; exit 1; }
tail -4 build/tsan-ctest.log
if [ "${MOEPACK_OUTSIDE:-}" = 1 ]; then
  say "Outside engines"
  bash scripts/outside.sh
fi
say "All tests"
ctest --test-dir build/release --output-on-failure --no-tests=error -j "$(nproc)"
