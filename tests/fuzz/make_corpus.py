#!/usr/bin/env python3
"""Writes the seed corpus: every artefact of a checkpoint of a few hundred weights, cut into what each target reads.

    MOEPACK_BIN=build/release/bin MOEPACK_SOURCE=. MOEPACK_WORK=build/corpus python3 tests/fuzz/make_corpus.py

The committed corpus was made by it; inputs that fuzzing found worth keeping stand beside these seeds."""
import hashlib
import json
import math
import pathlib
import random
import shutil
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
import tabular_model  # noqa: E402
from harness import SOURCE, WORK, run, write_safetensors  # noqa: E402

CORPUS = SOURCE / "tests/fuzz/corpus"
CONFIG = {"model_type": "mixtral", "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
          "num_key_value_heads": 1, "intermediate_size": 4, "num_local_experts": 2, "num_experts_per_tok": 1,
          "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False}
SHAPES = {"model.embed_tokens": (8, 4), "model.norm": (4,), "lm_head": (8, 4)}
LAYER = {"input_layernorm": (4,), "post_attention_layernorm": (4,), "self_attn.q_proj": (4, 4), "self_attn.k_proj": (2, 4),
         "self_attn.v_proj": (2, 4), "self_attn.o_proj": (4, 4), "block_sparse_moe.gate": (2, 4),
         **{f"block_sparse_moe.experts.{e}.{w}": (4, 4) for e in range(2) for w in ("w1", "w2", "w3")}}
TABLES = {"expert_table": b"\0", "dense_table": b"\1", "hot_list": b"\2"}
RECIPE = """version: 1
defaults:
  candidates: [i4g64, i5g64]
rules:
  - match: 'layers\\.\\d+\\.experts\\..*\\.down_proj'
    codec: i6g64
prune:
  method: moe-pruner
  sparsity: 0.5
drop_experts:
  count: 1
gptq: true
"""


def weights(rng, shape):
    count = 1
    for size in shape:
        count *= size
    return "BF16", list(shape), b"".join(struct.pack("<f", rng.uniform(-1, 1))[2:] for _ in range(count))


def put(target, name, data):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def put_bundle(name, path, report):
    data = path.read_bytes()
    manifest_bytes = struct.unpack("<Q", data[16:24])[0]
    put("envelope", name, data[:1568])
    put("manifest", name, data[1568:1568 + manifest_bytes])
    for blob in report["blobs"]:
        content = data[blob["offset"]:blob["offset"] + blob["bytes"]]
        if blob["kind"] == "program":
            put("program", name, content)
        if blob["kind"] in TABLES:
            put("tables", f"{name}-{blob['kind']}", TABLES[blob["kind"]] + content)


def tokenizer_seed():
    """The smallest tokenizer.json that has a merge: 256 bytes of wren's alphabet, one merge, one special token."""
    full = json.loads((SOURCE / "examples/wren/model/tokenizer.json").read_text())
    alphabet = [t for t, i in sorted(full["model"]["vocab"].items(), key=lambda e: e[1]) if i < 256]
    vocab = {t: i for i, t in enumerate([*alphabet, "he"])}
    return {**full, "added_tokens": [{**full["added_tokens"][0], "id": 257}], "model": {**full["model"], "vocab": vocab, "merges": ["h e"]}}


def write_model(rng, folder, config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {**SHAPES, **{f"model.layers.0.{name}": shape for name, shape in LAYER.items()}}
    for name in ("model.embed_tokens", "lm_head"):
        shapes[name] = (config["vocab_size"], 4)
    write_safetensors(folder / "model.safetensors", {f"{name}.weight": weights(rng, shape) for name, shape in shapes.items()})


def put_tokenizer(rng):
    model = WORK / "with-tokenizer"
    write_model(rng, model, {**CONFIG, "vocab_size": 258})
    text = json.dumps(tokenizer_seed())
    (model / "tokenizer.json").write_text(text)
    put("tokenizer_json", "small", text.encode())
    run("compress", model, "--codec", "f32", "-o", WORK / "tokenizer")
    sample = "he said: 1234\n  the \u00e9\u0301 \U0001f600".encode()
    put("tokenizer", "small", struct.pack("<H", len(sample)) + sample + (WORK / "tokenizer/tokenizer.bin").read_bytes())


def put_sequences():
    """Saved sequences of sequence_fuzz.cc's program: a convolution over 3 positions of 4 channels, an attention with one head of 4,
    without the MoE layers, which have no state."""
    rng = random.Random(5)
    for name, bits8, positions, following in (("empty", 0, 0, []), ("one-block", 0, 5, [1]), ("two-blocks", 0, 33, []), ("full", 1, 96, [2, 7]),
                                              ("eight-bits", 1, 40, [3]), ("no-numbers", 0, 5, [1])):
        block = 2 * 32 * (4 + 4) if bits8 else 2 * 32 * 4 * 4
        count = (-(-positions // 32) * block + min(positions, 2) * 16) // 4
        state = b"".join(struct.pack("<f", math.nan if name == "no-numbers" else rng.uniform(-1, 1)) for _ in range(count))
        head = b"MOESEQS\n" + struct.pack("<II32xIIIIQ", 1, bits8, positions, 0, len(following), 0, len(state))
        saved = head + struct.pack(f"<{len(following)}I", *following) + state
        put("sequence", name, bytes([bits8]) + saved + hashlib.sha256(saved).digest())


def put_npy():
    """Two rows of three numbers in each version of .npy."""
    for version, kind, values in ((1, "<f4", "<6f"), (2, "<f8", "<6d"), (3, "<f4", "<6f")):
        header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': (2, 3), }}\n".encode()
        length = struct.pack("<H" if version == 1 else "<I", len(header))
        put("npy", f"version_{version}", b"\x93NUMPY" + bytes([version, 0]) + length + header + struct.pack(values, *range(6)))


def put_bundle_edits():
    """What bundle_fuzz does to its bundle: part, operation, place, value."""
    for name, edits in (("unchanged", []), ("file", [(0, 0, 5000, 1)]), ("manifest", [(1, 0, 40, 3)]), ("chunk", [(2, 5, 3, 17)]),
                        ("encoded_chunk", [(3, 0, 4, 2), (3, 0, 5, 1)]), ("short_chunk", [(3, 1, 4, 100)]),
                        ("long_plain", [(3, 2, 4, 60000)]), ("program", [(4, 0, 200, 8)]),
                        ("expert_table", [(7, 2, 60, 9), (4, 4, 10, 90)])):
        put("bundle", name, b"".join(struct.pack("<BBHH", *edit) for edit in edits))


def put_mixtures():
    """ONNX graphs that spell a mixture out, with three experts of a few numbers."""
    tabular_model.FEATURES, tabular_model.HIDDEN, tabular_model.WIDE, tabular_model.EXPERTS, tabular_model.CLASSES = 3, 4, 5, 3, 2
    for form in tabular_model.FORMS:
        tabular_model.write_model(WORK / "mixture.onnx", form)
        put("onnx", form, (WORK / "mixture.onnx").read_bytes())


def main():
    put_sequences()
    put_npy()
    put_bundle_edits()
    rng = random.Random(3)
    shutil.rmtree(WORK, ignore_errors=True)
    model = WORK / "m"
    write_model(rng, model, CONFIG)
    run("pack", "keygen", "-o", WORK / "k.pem", "--trust", WORK / "t.json")
    for codec in ("f32", "i4g32", "i3mg16"):
        run("compress", model, "--codec", codec, "-o", WORK / codec)
        bundle = WORK / f"{codec}.moeb"
        run("pack", WORK / codec, "--key", WORK / "k.pem", "-o", bundle)
        put_bundle(codec, bundle, run("inspect", bundle, "--trust", WORK / "t.json", "--json").json())
    run("export", model, "--onnx", "-o", WORK / "m.onnx")
    put("onnx", "mixtral", (WORK / "m.onnx").read_bytes())
    put_mixtures()
    put("checkpoint", "mixtral", (model / "model.safetensors").read_bytes())
    put("config", "mixtral", json.dumps(CONFIG).encode())
    for family in ("qwen2_moe", "olmoe", "qwen3_moe"):
        put("config", family, (SOURCE / "tests/golden" / family / "config.json").read_bytes())
    put("safetensors", "checkpoint", (model / "model.safetensors").read_bytes())
    put("recipe", "full", RECIPE.encode())
    put("recipe", "huge_backreference", b"version: 1\nrules:\n  - match: 'a\\99999999999999999999'\n    keep: true\n")
    put_tokenizer(rng)
    put("config", "wren", (SOURCE / "examples/wren/model/config.json").read_bytes())
    for name, shape, plain in (("i4g32", (2, 33), 2 * 17 + 8), ("i3mg16", (1, 16), 4 + 2 + 4), ("bf16+2:4", (1, 8), 1 + 8),
                               ("i8g64", (1, 5), 5 + 2), ("f16", (1, 3), 6)):
        put("codec", name.replace("+", "-").replace(":", "-"), name.encode() + b"\n" + bytes(shape) + bytes(plain))
    # 4 equal bytes, one table; two columns with a table each; a plain run.
    coded = bytes([0, 1, 7, 1, 1, 0, 0x80, 0x20]) + struct.pack("<I", 8) + struct.pack("<I", 65536) * 4
    by_column = (bytes([1]) + struct.pack("<II", 2, 0) + bytes([2, 2]) + bytes([7, 1, 1, 0, 0x80, 0x20]) + bytes([9, 1, 1, 0, 0x80, 0x20])
                 + struct.pack("<I", 8) + struct.pack("<I", 65536) * 4)
    put("rans", "one-table", struct.pack("<HBI", 4, 1, 4) + coded)
    put("rans", "by-column", struct.pack("<HBI", 4, 1, 4) + by_column)
    put("rans", "plain", struct.pack("<HBI", 3, 0, 3) + b"abc")
    # SPEC.md, section 14: one prompt, one step.
    put("tables", "golden_prompts", b"\3" + bytes.fromhex("0801150000803e220e0a010512090a01061204000040c0"))


if __name__ == "__main__":
    main()
