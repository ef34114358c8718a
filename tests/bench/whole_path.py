#!/usr/bin/env python3
"""Measures what docs/results/whole-path.md reports. Needs a release build; run from anywhere:

    python3 tests/bench/whole_path.py quality   KLD at 8 bits and at the bytes of llama.cpp's quantizations
    python3 tests/bench/whole_path.py pruning   MoE-Pruner, Wanda and magnitude at 50% over 5 calibration draws

Calibrates on *.calib.txt only and evaluates on mixed.eval.txt (chunks of 256 tokens, second half of each scored)."""
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MOEPACK = ROOT / "build/release/bin/moepack"
MODEL = ROOT / "examples/wren/model"
TEXT = ROOT / "examples/wren/text"
DOMAINS = ("scripture", "speech", "novel", "python", "german", "french", "admin", "dictionary")
# examples/wren measured with llama.cpp v0.5.0 and an importance matrix: type, file bytes, mean KLD.
PEERS = (("Q8_0", 17486656, 0.000523), ("Q6_K", 13550400, 0.001772), ("Q5_K_M", 11835712, 0.002945), ("Q4_K_M", 10221888, 0.007128),
         ("Q3_K_M", 8263488, 0.017142))
DRAWS = 5


def moepack(*args):
    result = subprocess.run([MOEPACK, *map(str, args)], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"moepack {' '.join(map(str, args))}\n{result.stderr}")
    return result.stdout


class Bench:
    def __init__(self, folder):
        self.dir = pathlib.Path(folder)
        moepack("pack", "keygen", "-o", self.dir / "key.pem", "--trust", self.dir / "trust.json")
        moepack("logits", MODEL, "--data", TEXT / "mixed.eval.txt", "--ctx", 256, "-o", self.dir / "base.f32")

    def calibrate(self, name, texts, tokens):
        out = self.dir / f"{name}.mprof"
        moepack("calibrate", MODEL, "--data", *texts, "--tokens", tokens, "-o", out)
        return out

    def evaluate(self, name, *compress):
        """Compresses, packs, evaluates: the eval object with the bundle's bytes."""
        folder, bundle = self.dir / name, self.dir / f"{name}.moeb"
        start = time.monotonic()
        moepack("compress", MODEL, *compress, "-o", folder)
        seconds = time.monotonic() - start
        moepack("pack", folder, "--key", self.dir / "key.pem", "-o", bundle)
        report = json.loads(moepack("run", "eval", bundle, "--trust", self.dir / "trust.json", "--base", self.dir / "base.f32", "--data",
                                    TEXT / "mixed.eval.txt", "--ctx", 256, "--json"))
        return {**report, "bytes": bundle.stat().st_size, "compress_seconds": seconds}


def quality(bench):
    profile = bench.calibrate("all", [f"{d}={TEXT / d}.calib.txt" for d in DOMAINS], 65536)
    print("| at the bytes of | llama.cpp bytes | its mean KLD | bundle bytes | mean KLD | ratio | perplexity | same top-1 | compress s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, size, kld in PEERS:
        r = bench.evaluate(name, "--profile", profile, "--error-table", bench.dir / "errors.json", "--target-size", size)
        print(f"| {name} | {size} | {kld:.6f} | {r['bytes']} | {r['kld_mean']:.6f} | {r['kld_mean'] / kld:.2f} | {r['ppl']:.3f} "
              f"| {100 * r['same_top1']:.2f} % | {r['compress_seconds']:.0f} |", flush=True)
    r = bench.evaluate("i8", "--profile", profile, "--codec", "i8g64")
    print(f"| i8g64 | | | {r['bytes']} | {r['kld_mean']:.6f} | | {r['ppl']:.3f} | {100 * r['same_top1']:.2f} % | {r['compress_seconds']:.0f} |")


def draw(bench, index):
    """A profile of 16,384 tokens from a slice of every domain of its own."""
    texts = []
    for domain in DOMAINS:
        text = (TEXT / f"{domain}.calib.txt").read_text()
        part = len(text) // DRAWS
        path = bench.dir / f"draw{index}-{domain}.txt"
        path.write_text(text[index * part:(index + 1) * part])
        texts.append(f"{domain}={path}")
    return bench.calibrate(f"draw{index}", texts, 16384)


def pruning(bench):
    profiles = [draw(bench, i) for i in range(DRAWS)]
    print("| method, 50% of every row of every expert matrix | mean KLD over 5 draws | standard error | draws |\n|---|---|---|---|")
    for method in ("moe-pruner", "wanda", "magnitude"):
        recipe = bench.dir / f"{method}.yaml"
        recipe.write_text(f"version: 1\ndefaults:\n  codec: bf16\nprune:\n  method: {method}\n  sparsity: 0.5\ngptq: false\n")
        klds = [bench.evaluate(f"{method}-{i}", "--profile", profile, "--recipe", recipe)["kld_mean"] for i, profile in enumerate(profiles)]
        error = statistics.stdev(klds) / math.sqrt(DRAWS)
        print(f"| {method} | {statistics.mean(klds):.5f} | {error:.5f} | {', '.join(f'{k:.5f}' for k in klds)} |", flush=True)


if __name__ == "__main__":
    runs = {"quality": quality, "pruning": pruning}
    if len(sys.argv) != 2 or sys.argv[1] not in runs:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(prefix="moepack-bench-") as scratch:
        runs[sys.argv[1]](Bench(scratch))
