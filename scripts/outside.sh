#!/usr/bin/env bash
# Outside engines as judges of our exports, optional because they come from the npm registry and take minutes:
#   outside.sh onnx   ONNX Runtime runs the ONNX exports of wren and six golden checkpoints
#   outside.sh gguf   llama.cpp, built from the source in the package node-llama-cpp, runs GGUF exports of wren, its
#                   compressed codes unchanged among them
# Both by default. Needs npm, and the release build. Everything is kept under build/outside.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
moepack="$root/build/release/bin/moepack"
work="$root/build/outside"
mkdir -p "$work"

check_onnx() {
  (cd "$work" && npm install --silent --no-save --ignore-scripts --prefix . onnxruntime-node@1.30.0 >/dev/null)
  local name model golden
  for name in wren qwen2_moe mixtral olmoe qwen3_moe granitemoe gpt_oss; do
    model="tests/golden/$name" golden="tests/golden/$name/golden"
    if [ "$name" = wren ]; then model=examples/wren/model golden=tests/golden/wren/python; fi
    "$moepack" export "$model" --onnx -o "$work/$name.onnx" --quiet
    say "ONNX Runtime on $name"
    NODE_PATH="$work/node_modules" node tests/e2e/ort_check.mjs "$work/$name.onnx" "$golden"
  done
}

perplexity() {
  "$1/llama-perplexity" -m "$2" -f examples/wren/text/mixed.eval.txt -c 256 2>&1 | sed -n 's/.*Final estimate: PPL = \([0-9.]*\).*/\1/p'
}

check_gguf() {
  local bin type ppl first codes="$work/wren-i4mg64"
  bin="$(python3 tests/bench/llama.py "$work" llama-perplexity)"
  for type in f32 f16; do
    "$moepack" export examples/wren/model --gguf --type "$type" -o "$work/wren-$type.gguf" --quiet
    say "llama.cpp on wren in $type: perplexity of the full model must be 37.28"
    ppl=$(perplexity "$bin" "$work/wren-$type.gguf")
    echo "perplexity $ppl"
    awk -v p="$ppl" 'BEGIN { exit !(p > 37.27 && p < 37.29) }'
  done
  rm -rf "$codes"
  "$moepack" compress examples/wren/model --codec i4mg64 -o "$codes" --quiet
  for type in f32 stored; do
    "$moepack" export "$codes" --gguf --type "$type" -o "$codes-$type.gguf" --quiet
    say "llama.cpp on wren in i4mg64, exported as $type: its own kernels round activations for stored codes"
    ppl=$(perplexity "$bin" "$codes-$type.gguf")
    echo "perplexity $ppl, $(stat -c %s "$codes-$type.gguf") bytes"
    awk -v p="$ppl" -v f="${first:=$ppl}" 'BEGIN { exit !(p > f * 0.99 && p < f * 1.01) }'
  done
}

for engine in "${@:-onnx gguf}"; do
  for one in $engine; do "check_$one"; done
done
