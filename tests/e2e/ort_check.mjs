// Runs an exported ONNX model in ONNX Runtime and compares its logits with a golden file. Optional: needs onnxruntime-node
// from the npm registry, in any folder outside the tree:
//
//   mkdir -p OUTSIDE && cd OUTSIDE && npm install --ignore-scripts onnxruntime-node   (the script fetches CUDA, not needed)
//   moepack export examples/wren/model --onnx -o OUTSIDE/wren.onnx
//   NODE_PATH=OUTSIDE/node_modules node tests/e2e/ort_check.mjs OUTSIDE/wren.onnx tests/golden/wren/python
//   NODE_PATH=OUTSIDE/node_modules node tests/e2e/ort_check.mjs OUTSIDE/olmoe.onnx tests/golden/olmoe/golden
//
// The second argument is a golden without its suffix: NAME.json with "tokens" (one sequence) or "sequences", and the logits
// in NAME.f32 or NAME_logits.f32. Runs each sequence twice: all tokens at once, and with the second half one token at a time
// on the key-value caches. Exit status 0 when every logit is within 1e-3 of the largest |logit| of the golden, otherwise 1.
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";

const ort = createRequire(import.meta.url)("onnxruntime-node");
const TOLERANCE = 1e-3;

function readGolden(prefix) {
  const json = JSON.parse(readFileSync(`${prefix}.json`, "utf8"));
  const path = existsSync(`${prefix}.f32`) ? `${prefix}.f32` : `${prefix}_logits.f32`;
  const bytes = readFileSync(path);
  const logits = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  const sequences = json.sequences ?? [json.tokens];
  return { sequences, logits };
}

function integers(values) {
  return new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
}

// Empty caches of the shapes that the model declares.
function emptyCaches(session) {
  const caches = {};
  for (const input of session.inputMetadata) {
    if (!input.name.startsWith("past_key_values.")) continue;
    const shape = [1, input.shape[1], 0, input.shape[3]];
    caches[input.name] = new ort.Tensor("float32", new Float32Array(0), shape);
  }
  return caches;
}

// Feeds `tokens` cut into `pieces` and returns the logits of all of them.
async function run(session, pieces) {
  let caches = emptyCaches(session);
  let seen = 0;
  const rows = [];
  for (const piece of pieces) {
    seen += piece.length;
    const mask = integers(new Array(seen).fill(1));
    const out = await session.run({ input_ids: integers(piece), attention_mask: mask, ...caches });
    rows.push(out.logits.data);
    caches = {};
    for (const [name, tensor] of Object.entries(out)) {
      if (name.startsWith("present.")) caches[name.replace("present.", "past_key_values.")] = tensor;
    }
  }
  return rows.flatMap((row) => Array.from(row));
}

function worst(logits, golden) {
  if (logits.length !== golden.length) throw new Error(`${logits.length} logits, the golden has ${golden.length}`);
  let difference = 0;
  let largest = 0;
  for (let i = 0; i < golden.length; ++i) {
    if (!Number.isFinite(logits[i])) throw new Error(`logit ${i} is ${logits[i]}`);
    difference = Math.max(difference, Math.abs(logits[i] - golden[i]));
    largest = Math.max(largest, Math.abs(golden[i]));
  }
  return difference / largest;
}

async function main() {
  const [model, prefix] = process.argv.slice(2);
  if (!model || !prefix) throw new Error("usage: ort_check.mjs MODEL.onnx GOLDEN_WITHOUT_SUFFIX");
  const session = await ort.InferenceSession.create(model);
  const { sequences, logits } = readGolden(prefix);
  const tokens = sequences.reduce((sum, sequence) => sum + sequence.length, 0);
  const width = logits.length / tokens;
  let row = 0;
  let failed = false;
  for (const sequence of sequences) {
    const golden = logits.subarray(row * width, (row + sequence.length) * width);
    const half = Math.floor(sequence.length / 2);
    const stepwise = [sequence.slice(0, half), ...sequence.slice(half).map((token) => [token])];
    for (const [how, pieces] of [["at once", [sequence]], ["by token", stepwise]]) {
      const error = worst(await run(session, pieces), golden);
      failed ||= !(error <= TOLERANCE);
      console.log(`${sequence.length} tokens ${how}: largest difference ${error.toExponential(2)} of the largest |logit|`);
    }
    row += sequence.length;
  }
  console.log(failed ? "FAILED" : "ok");
  process.exitCode = failed ? 1 : 0;
}

await main();
