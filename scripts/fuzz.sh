#!/usr/bin/env bash
# Fuzzes every parser under ASan+UBSan, a target a processor, starting from the committed corpus.
# usage: fuzz.sh [SECONDS_EACH] [TARGET...]
# New inputs go to build/fuzz/corpus; a finding is left in build/fuzz/findings and ends the script with status 1.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
seconds="${1:-600}"
shift || true
bash scripts/install-deps.sh --checks
mapfile -t targets < <([ "$#" -gt 0 ] && printf '%s\n' "$@" || ls tests/fuzz/corpus)
build_preset fuzz "${targets[@]/%/_fuzz}"
mkdir -p build/fuzz/findings

# fuzz TARGET: runs it for $seconds and prints a line of what came out.
fuzz() {
  local target="$1" log="build/fuzz/$1.log"
  mkdir -p "build/fuzz/corpus/$target"
  if "build/fuzz/bin/${target}_fuzz" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=3000 -max_len=65536 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/findings/$target-" "build/fuzz/corpus/$target" "tests/fuzz/corpus/$target" >"$log" 2>&1; then
    printf '%-16s %s executions, coverage %s, no finding\n' "$target" \
      "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" "$(grep -o 'cov: [0-9]*' "$log" | tail -1 | cut -d' ' -f2)"
  else
    printf '%-16s FINDING, see %s\n' "$target" "$log"
    return 1
  fi
}

failed=0
for target in "${targets[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || failed=1; done
  fuzz "$target" &
done
while [ "$(jobs -p | wc -l)" -gt 0 ]; do wait -n || failed=1; done
exit "$failed"
