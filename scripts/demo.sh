#!/usr/bin/env bash
# The whole path on the embedded model: install, build, calibrate, compress at three sizes, pack, verify, evaluate,
# generate. Prints a table and text; leaves bundles and trust file in out/demo. Options: --no-build uses what is built.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [ "${1:-}" != --no-build ]; then
  say "Installing what a build needs"
  bash scripts/install-deps.sh
  say "Building (release)"
  build_preset release
fi
export PATH="$root/build/release/bin:$PATH"
model=examples/wren/model
text=examples/wren/text
out=out/demo
rm -rf "$out"
mkdir -p "$out"
start=$(date +%s)

say "Calibrating on eight domains"
data=()
for domain in scripture speech novel python german french admin dictionary; do data+=("$domain=$text/$domain.calib.txt"); done
moepack calibrate "$model" --data "${data[@]}" --tokens 32768 -o "$out/wren.mprof" --report "$out/calibration.html"

say "Logits of the full model on held-out text"
moepack logits "$model" --data "$text/mixed.eval.txt" --ctx 256 -o "$out/base.f32" --json >"$out/base.json"

moepack pack keygen -o "$out/key.pem" --trust "$out/trust.json" --product wren
# 8 bits; the bytes of llama.cpp's Q4_K_M file; the bytes of its Q3_K_M file.
sizes=(17486656 10221888 8263488)
names=(8bit q4-size q3-size)
for i in 0 1 2; do
  name="${names[$i]}"
  say "Compressing to at most ${sizes[$i]} bytes, packing, verifying, evaluating: $name"
  moepack compress "$model" --profile "$out/wren.mprof" --error-table "$out/errors.json" \
    --target-size "${sizes[$i]}" -o "$out/$name"
  moepack pack "$out/$name" --key "$out/key.pem" --product wren --version "1.0-$name" --counter 1 -o "$out/wren-$name.moeb"
  moepack verify "$out/wren-$name.moeb" --trust "$out/trust.json" --json >"$out/$name.verify.json"
  moepack inspect "$out/wren-$name.moeb" --trust "$out/trust.json" --json >"$out/$name.inspect.json"
  moepack run eval "$out/wren-$name.moeb" --trust "$out/trust.json" --base "$out/base.f32" --data "$text/mixed.eval.txt" --ctx 256 \
    --json >"$out/$name.eval.json"
  moepack run bench "$out/wren-$name.moeb" --trust "$out/trust.json" --json >"$out/$name.bench.json"
done

# The full model goes through the same path, losslessly, for its text.
moepack compress "$model" --codec bf16 -o "$out/full" --quiet
moepack pack "$out/full" --key "$out/key.pem" --product wren --version 1.0-full --counter 1 -o "$out/wren-full.moeb" --quiet

say "Results"
python3 scripts/demo_report.py "$out"
echo
echo "$(($(date +%s) - start)) s after the build. Files: $out/wren-*.moeb, $out/trust.json, $out/calibration.html"
