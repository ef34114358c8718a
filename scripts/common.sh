# Sourced by the scripts beside it: where things are, and how to build a preset.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
# The compiler cache then serves every checkout, wherever it stands.
export CCACHE_BASEDIR="$root" CCACHE_NOHASHDIR=1

say() { printf '\n== %s\n' "$*"; }

# build_preset PRESET [TARGET...]: configures and builds; everything when no target is given.
build_preset() {
  local preset="$1"
  shift
  local log="build/$preset.log"
  mkdir -p build
  if ! { cmake --preset "$preset" && cmake --build "build/$preset" ${1:+--target "$@"}; } >"$log" 2>&1; then
    tail -40 "$log" >&2
    echo "building $preset failed; the whole log is $log" >&2
    return 1
  fi
}
