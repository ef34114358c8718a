#!/usr/bin/env bash
# Outside engines as judges of our exports, optional because they come from the npm registry and take minutes:
#   outside.sh onnx   ONNX Runtime runs the ONNX exports of wren and the four golden checkpoints
#   outside.sh gguf   llama.cpp, built from the source in the package node-llama-cpp, runs the GGUF export of wren
# Both by default. Needs npm, and the release build. Everything is kept under build/outside.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
moepack="$root/build/release/bin/moepack"
work="$root/build/outside"
mkdir -p "$work"

check_onnx() {
  (cd "$work" && npm install --silent --no-save --ignore-scripts --prefix . onnxruntime-node@1.30.0 >/dev/null)
  local name model golden
  for name in wren qwen2_moe mixtral olmoe qwen3_moe; do
    model="tests/golden/$name" golden="tests/golden/$name/golden"
    if [ "$name" = wren ]; then model=examples/wren/model golden=tests/golden/wren/python; fi
    "$moepack" export "$model" --onnx -o "$work/$name.onnx" --quiet
    say "ONNX Runtime on $name"
    NODE_PATH="$work/node_modules" node tests/e2e/ort_check.mjs "$work/$name.onnx" "$golden"
  done
}

check_gguf() {
  if [ ! -x "$work/llama/build/bin/llama-perplexity" ]; then
    (cd "$work" && npm pack --silent node-llama-cpp@3.22.1 >/dev/null && tar xzf node-llama-cpp-3.22.1.tgz package/llama/gitRelease.bundle)
    [ -d "$work/llama" ] || git clone -q "$work/package/llama/gitRelease.bundle" "$work/llama"
    # No GGML_NATIVE: some machines advertise AMX and trap on it.
    cmake -S "$work/llama" -B "$work/llama/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON \
      -DGGML_F16C=ON -DGGML_BMI2=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_UI=OFF >/dev/null
    cmake --build "$work/llama/build" --target llama-perplexity >"$work/llama.log" 2>&1
  fi
  "$moepack" export examples/wren/model --gguf -o "$work/wren.gguf" --quiet
  say "llama.cpp on wren: perplexity of the full model must be 37.28"
  local ppl
  ppl=$("$work/llama/build/bin/llama-perplexity" -m "$work/wren.gguf" -f examples/wren/text/mixed.eval.txt -c 256 2>&1 |
    sed -n 's/.*Final estimate: PPL = \([0-9.]*\).*/\1/p')
  echo "perplexity $ppl"
  awk -v p="$ppl" 'BEGIN { exit !(p > 37.27 && p < 37.29) }'
}

for engine in "${@:-onnx gguf}"; do
  for one in $engine; do "check_$one"; done
done
