#!/usr/bin/env bash
# Fuzzes every parser under ASan+UBSan, starting from the committed corpus. usage: fuzz.sh [SECONDS_EACH] [TARGET...]
# New inputs go to build/fuzz/corpus; a finding is left in build/fuzz/findings and ends the script with status 1.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
seconds="${1:-600}"
shift || true
bash scripts/install-deps.sh --checks
mapfile -t targets < <([ "$#" -gt 0 ] && printf '%s\n' "$@" || ls tests/fuzz/corpus)
build_preset fuzz "${targets[@]/%/_fuzz}"
mkdir -p build/fuzz/findings
failed=0
for target in "${targets[@]}"; do
  mkdir -p "build/fuzz/corpus/$target"
  if "build/fuzz/bin/${target}_fuzz" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=3000 -max_len=65536 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/findings/$target-" "build/fuzz/corpus/$target" "tests/fuzz/corpus/$target" >"build/fuzz/$target.log" 2>&1; then
    printf '%-16s %s executions, coverage %s, no finding\n' "$target" \
      "$(sed -n 's/^stat::number_of_executed_units: *//p' "build/fuzz/$target.log")" \
      "$(grep -o 'cov: [0-9]*' "build/fuzz/$target.log" | tail -1 | cut -d' ' -f2)"
  else
    printf '%-16s FINDING, see build/fuzz/%s.log\n' "$target" "$target"
    failed=1
  fi
done
exit "$failed"
