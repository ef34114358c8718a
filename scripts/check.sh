#!/usr/bin/env bash
# Before a commit: format and clang-tidy on changed files, the layer check, quick tests. Base to compare with: $1 (HEAD).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
base="${1:-HEAD}"

bash scripts/install-deps.sh --checks
mapfile -t changed < <({ git diff --name-only --diff-filter=d "$base"; git ls-files --others --exclude-standard; } | grep -E '\.(cc|h)$' | sort -u)
if [ "${#changed[@]}" -gt 0 ]; then
  say "Format of ${#changed[@]} changed files"
  clang-format --dry-run --Werror "${changed[@]}"
fi
say "Build"
build_preset dev
mapfile -t sources < <(printf '%s\n' "${changed[@]}" | grep -E '\.cc$' | grep -vE 'kernels_(avx|neon)' || true)
if [ "${#sources[@]}" -gt 0 ]; then
  say "clang-tidy on ${#sources[@]} changed sources"
  # The compile commands hold warnings that only GCC knows.
  clang-tidy -p build/dev --quiet --extra-arg=-Wno-unknown-warning-option "${sources[@]}"
fi
say "Layers"
python3 scripts/check_layers.py
say "Quick tests"
ctest --test-dir build/dev -L quick --output-on-failure --no-tests=error -j "$(nproc)" | tail -12
