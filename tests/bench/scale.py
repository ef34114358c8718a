#!/usr/bin/env python3
"""What large models cost: fills docs/results/scale.md.

    python3 tests/bench/scale.py whole    a synthetic checkpoint at OLMoE's dimensions (7 B) through calibrate, compress and pack
    python3 tests/bench/scale.py gptq     one layer of it with and without error feedback
    python3 tests/bench/scale.py growth   small checkpoints with twice the experts and twice the layers
    python3 tests/bench/scale.py scout    Llama 4 Scout from its config.json alone: which codecs fit 64 GB

`whole` writes 13.8 GB under --work and deletes them as soon as they are read; it needs 22 GB of free disk. Needs a release build
and python3-numpy (of Debian: /usr/bin/python3)."""
import argparse
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import time

import numpy

import bench_lib
from bench_lib import ROOT, run, table
from cost import Timed, load

PAGE = ROOT / "docs/results/scale.md"
OLMOE = {"layers": 16, "hidden": 2048, "intermediate": 1024, "experts": 64, "k": 8, "heads": 16, "vocabulary": 50304}
SMALL = {"layers": 4, "hidden": 512, "intermediate": 256, "experts": 32, "k": 4, "heads": 8, "vocabulary": 4096}
RECIPES = {"rounded": "version: 1\ndefaults: {codec: i4g64}\ngptq: false\n", "gptq": "version: 1\ndefaults: {codec: i4g64}\n"}


def tensors_of(size, layer):
    """Shapes of one layer's tensors, or (layer None) of what stands around the layers."""
    h, i = size["hidden"], size["intermediate"]
    if layer is None:
        return {"model.embed_tokens.weight": (size["vocabulary"], h), "lm_head.weight": (size["vocabulary"], h), "model.norm.weight": (h,)}
    p = f"model.layers.{layer}."
    shapes = {p + "mlp.gate.weight": (size["experts"], h)}
    shapes |= {f"{p}self_attn.{n}_proj.weight": (h, h) for n in "qkvo"}
    shapes |= {p + n + ".weight": (h,) for n in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")}
    for e in range(size["experts"]):
        shapes |= {f"{p}mlp.experts.{e}.{n}_proj.weight": ((h, i) if n == "down" else (i, h)) for n in ("gate", "up", "down")}
    return shapes


def write_shard(path, shapes, random):
    """One safetensors file of bf16 tensors, a tensor in memory at a time."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(numpy.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            value = numpy.ones(shape, "<f4") if len(shape) == 1 else random.standard_normal(shape, "<f4") * numpy.float32(0.02)
            (value.view("<u4") >> 16).astype("<u2").tofile(out)
    return offset


def write_checkpoint(folder, size):
    """An OLMoE checkpoint with random weights, a shard a layer, and wren's tokenizer. Returns the bytes of its tensors."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = [None, *range(size["layers"])]
    random, where, total = numpy.random.default_rng(1), {}, 0
    for number, layer in enumerate(parts):
        name, shapes = f"model-{number + 1:05}-of-{len(parts):05}.safetensors", tensors_of(size, layer)
        total += write_shard(folder / name, shapes, random)
        where |= dict.fromkeys(shapes, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "examples/wren/model" / name, folder)
    config = {"architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "vocab_size": size["vocabulary"], "hidden_size": size["hidden"],
              "num_hidden_layers": size["layers"], "num_attention_heads": size["heads"], "num_key_value_heads": size["heads"],
              "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "tie_word_embeddings": False, "attention_bias": False, "clip_qkv": None, "intermediate_size": size["intermediate"],
              "num_experts": size["experts"], "num_experts_per_tok": size["k"], "norm_topk_prob": False, "rope_scaling": None,
              "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return total


class Killed:
    """A run that gets SIGKILL once `mark` is there."""

    def __init__(self, command, mark):
        start = time.monotonic()
        process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not mark.exists():
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended with {process.returncode} before {mark} was there")
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = -signal.SIGKILL
        self.wall, self.cpu, self.peak = time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def folder_bytes(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


class Path:
    """The files of one model on its way, and the commands of its steps."""

    def __init__(self, args, name):
        self.args, self.folder = args, args.work / f"scale-{name}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.model, self.profile, self.out = self.folder / "model", self.folder / "p.mprof", self.folder / "out"
        self.bundle, self.key = self.folder / "b.moeb", self.folder / "k.pem"

    def command(self, verb, *arguments):
        return (self.args.bin / f"moepack-{verb}", *arguments, "--threads", self.args.threads, "--quiet")

    def calibrate(self):
        wren = bench_lib.subjects()["wren"]
        return self.command("calibrate", self.model, "--data", *(f"{d}={wren.calib(d)}" for d in wren.domains), "--tokens",
                            self.args.tokens, "-o", self.profile)

    def compress(self, recipe, *options):
        (self.folder / "recipe.yaml").write_text(RECIPES[recipe])
        return self.command("compress", self.model, "--profile", self.profile, "--recipe", self.folder / "recipe.yaml", "-o", self.out, *options)

    def pack(self):
        if not self.key.exists():
            run(self.args.bin / "moepack-pack", "keygen", "-o", self.key, "--trust", self.folder / "t.json")
        return self.command("pack", self.out, "--key", self.key, "-o", self.bundle)

    def clean(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def row(name, result, size=None):
    return (name, f"{result.wall:.0f}", f"{result.cpu:.0f}", f"{result.peak / 2**30:.2f}", "" if size is None else f"{size:,}")


HEADER = ("step", "wall s", "processor s", "peak GiB", "bytes written")


def write(args, name, *text):
    given = f" --tokens {args.tokens}" if args.tokens != 4096 else ""
    bench_lib.write_section(PAGE, name, "\n\n".join((f"`python3 tests/bench/scale.py {name}{given}` ({load()})", *text)))
    print("\n\n".join(text), flush=True)


def whole(args):
    path = Path(args, "whole")
    try:
        size = write_checkpoint(path.model, OLMOE)
        rows = [("checkpoint (written by the script)", "", "", "", f"{size:,}")]
        result = Timed(*path.calibrate())
        rows.append(row("calibrate", result, path.profile.stat().st_size))
        half = path.out.with_name("out.partial") / f"block-{OLMOE['layers'] // 2:03}.moeu"
        rows.append(row(f"compress, killed when block {OLMOE['layers'] // 2} was written", Killed(path.compress("rounded"), half)))
        rows.append(row("compress --resume", Timed(*path.compress("rounded", "--resume")), folder_bytes(path.out)))
        shutil.rmtree(path.model)
        result = Timed(*path.pack())
        rows.append(row("pack", result, path.bundle.stat().st_size))
        inspected = json.loads(run(args.bin / "moepack-inspect", path.bundle, "--trust", path.folder / "t.json", "--json", messages=False))
    finally:
        path.clean()
    write(args, "whole", f"Random weights at the dimensions of OLMoE-7B: {OLMOE['layers']} layers of {OLMOE['experts']} experts (top "
          f"{OLMOE['k']}), hidden {OLMOE['hidden']}, intermediate {OLMOE['intermediate']}, vocabulary {OLMOE['vocabulary']:,}; "
          f"{inspected['parameters']:,} parameters in bf16, a shard a layer. {args.tokens:,} calibration tokens, every matrix i4g64, "
          f"rounded to nearest, {args.threads} threads. The bundle has {inspected['bits_per_weight']:.3f} bits a weight.",
          table(HEADER, rows))


def gptq(args):
    size = OLMOE | {"layers": 1}
    path, rows = Path(args, "gptq"), []
    try:
        write_checkpoint(path.model, size)
        rows.append(row("calibrate", Timed(*path.calibrate())))
        for recipe, name in (("rounded", "compress, rounded to nearest"), ("gptq", "compress with error feedback")):
            shutil.rmtree(path.out, ignore_errors=True)
            rows.append(row(name, Timed(*path.compress(recipe)), folder_bytes(path.out)))
    finally:
        path.clean()
    write(args, "gptq", f"One layer of the same model between embedding and head, {args.tokens:,} tokens, every matrix i4g64, {args.threads} threads.",
          table(HEADER, rows))


def growth(args):
    rows = []
    for name, change in (("4 layers of 32 experts", {}), ("8 layers of 32", {"layers": 8}), ("16 layers of 32", {"layers": 16}),
                         ("4 layers of 64", {"experts": 64}), ("4 layers of 128", {"experts": 128})):
        path = Path(args, "growth")
        try:
            write_checkpoint(path.model, SMALL | change)
            steps = [Timed(*path.calibrate()), Timed(*path.compress("gptq")), Timed(*path.pack())]
            dry = Timed(*path.command("compress", path.model / "config.json", "--codec", "i4g64", "--dry-run"))
        finally:
            path.clean()
        rows.append((name, *(f"{step.cpu:.1f}" for step in (*steps, dry)), f"{max(step.peak for step in steps) / 2**20:.0f}"))
    write(args, "growth", f"Hidden {SMALL['hidden']}, intermediate {SMALL['intermediate']}, top {SMALL['k']}, {args.tokens:,} tokens, i4g64 with error "
          "feedback. Processor seconds, start-up included:",
          table(("model", "calibrate", "compress", "pack", "dry run of config.json", "peak MiB"), rows))


# The text part of meta-llama/Llama-4-Scout-17B-16E's config.json.
SCOUT = {"architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4", "torch_dtype": "bfloat16", "text_config": {
    "model_type": "llama4_text", "attention_bias": False, "attention_chunk_size": 8192, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 5120, "interleave_moe_layer_step": 1, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
    "max_position_embeddings": 10485760, "no_rope_layers": [], "num_attention_heads": 40, "num_experts_per_tok": 1,
    "num_hidden_layers": 48, "num_key_value_heads": 8, "num_local_experts": 16, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
                     "rope_type": "llama3"},
    "torch_dtype": "bfloat16", "use_qk_norm": True, "vocab_size": 202048}}
CONTEXT, ORIN, SYSTEM = 8192, 64e9, 4e9  # tokens; bytes of memory; of them for the system and the program
MIXED = "version: 1\ndefaults: {codec: %s}\nrules:\n  - {match: '.*\\.experts\\..*', codec: %s}\n"


def scout(args):
    folder = args.work / "scale-scout"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.json"
    config.write_text(json.dumps(SCOUT))
    text = SCOUT["text_config"]
    heads = CONTEXT * text["num_hidden_layers"] * 2 * text["num_key_value_heads"]  # rows of keys and values
    state, state8 = heads * text["head_dim"] * 4, heads * (text["head_dim"] + 4)   # float32; --kv 8: codes and a scale
    rows, start = [], time.monotonic()
    for dense, experts in (("bf16", "bf16"), ("i8g64", "i8g64"), ("i8g64", "i6g64"), ("i6g64", "i5g64"), ("i6g64", "i4g64"), ("i5g64", "i4g128"),
                           ("i4g64", "i4g64"), ("i6g64", "i3g64"), ("i6g64", "i3g128"), ("i6g64", "i2mg64")):
        recipe = folder / "recipe.yaml"
        recipe.write_text(MIXED % (dense, experts))
        plan = json.loads(run(args.bin / "moepack-compress", config, "--recipe", recipe, "--dry-run", "--json", "--quiet", messages=False))
        expert_bytes = sum(t["bytes"] for name, t in plan["tensors"].items() if ".experts." in name)
        dense_bytes = sum(t["bytes"] for name, t in plan["tensors"].items() if ".experts." not in name)
        needs = [plan["bytes_resident"] + s + SYSTEM for s in (state, state8)]
        rows.append((dense, experts, f"{plan['bits_per_weight']:.2f}", f"{plan['bundle_bytes'] / 1e9:.1f}", f"{plan['bytes_resident'] / 1e9:.1f}",
                     *(f"{n / 1e9:.1f}{'' if n > ORIN else ' fits'}" for n in needs),
                     f"{(dense_bytes + expert_bytes * 2 / 16 + state8 + SYSTEM) / 1e9:.1f}"))
    took = time.monotonic() - start
    shutil.rmtree(folder)
    write(args, "scout", f"Llama 4 Scout (text), {plan['parameters']:,} parameters, from config.json: `moepack compress config.json --recipe R.yaml "
          f"--dry-run --json`, {len(rows)} plans in {took:.1f} s. \"Dense\" is everything but routed experts. GB are 10^9 bytes; a Jetson AGX Orin has "
          f"{ORIN / 1e9:.0f}. \"Needs\" is what the weights take once loaded, keys and values of {CONTEXT:,} tokens ({state / 1e9:.1f} GB, "
          f"{state8 / 1e9:.1f} GB with `run --kv 8`) and {SYSTEM / 1e9:.0f} GB left to the system and the program (an assumption). \"Streamed\": with "
          "`--kv 8`, dense weights loaded and room for two of sixteen experts of each layer (`run --expert-ram`), the others read when they are routed.",
          table(("dense", "experts", "bits a weight", "bundle GB", "weights loaded GB", "needs GB", "needs GB, --kv 8", "streamed, needs GB"), rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"whole": whole, "gptq": gptq, "growth": growth, "scout": scout}
    parser.add_argument("parts", nargs="+", choices=parts)
    parser.add_argument("--tokens", type=int, default=4096, help="calibration tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/scale")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        parts[part](args)


if __name__ == "__main__":
    main()
