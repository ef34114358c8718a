#!/usr/bin/env python3
"""What removing weights costs on wren, and a few experts at 3 bits or less. Needs a release build
(or MOEPACK_BIN, a folder of its programs); run from anywhere:

    python3 tests/bench/pruning.py draws    MoE-Pruner, Wanda and magnitude at 50 % over 5 calibration draws
    python3 tests/bench/pruning.py sparse   50 % and 2:4, plain, with compensation, and the stages of distillation
    python3 tests/bench/pruning.py few      under 20 % of the experts at 3 and 2 bits, the rest in bf16; random ones as control

Calibrates on *.calib.txt only and evaluates on mixed.eval.txt (chunks of 256 tokens, second half of each scored)."""
import json
import math
import os
import pathlib
import random
import statistics
import struct
import sys
import tempfile
import time

from bench_lib import CTX, ROOT, run, subjects

WREN = subjects()["wren"]
DRAWS = 5
CONTROLS = 5
SHARE = 0.2  # of the experts, not reached


BIN = pathlib.Path(os.environ.get("MOEPACK_BIN", ROOT / "build/release/bin"))


def moepack(*args):
    return run(BIN / "moepack", *args, messages=False)


class Bench:
    def __init__(self, folder):
        self.dir = pathlib.Path(folder)
        moepack("pack", "keygen", "-o", self.dir / "key.pem", "--trust", self.dir / "trust.json")
        moepack("logits", WREN.model, "--data", WREN.mixed_eval, "--ctx", CTX, "-o", self.dir / "base.f32")

    def calibrate(self, name, texts, tokens):
        out = self.dir / f"{name}.mprof"
        moepack("calibrate", WREN.model, "--data", *texts, "--tokens", tokens, "-o", out)
        return out

    def evaluate(self, name, profile, recipe):
        """Compresses by the recipe's text, packs, evaluates: the eval object with the seconds of compress."""
        folder, bundle, path = (self.dir / (name + suffix) for suffix in ("", ".moeb", ".yaml"))
        path.write_text(recipe)
        start = time.monotonic()
        moepack("compress", WREN.model, "--profile", profile, "--recipe", path, "-o", folder)
        seconds = time.monotonic() - start
        moepack("pack", folder, "--key", self.dir / "key.pem", "-o", bundle)
        report = json.loads(moepack("run", "eval", bundle, "--trust", self.dir / "trust.json", "--base", self.dir / "base.f32", "--data",
                                    WREN.mixed_eval, "--ctx", CTX, "--json"))
        return {**report, "compress_seconds": seconds}


def draw(bench, index):
    """A profile of 16,384 tokens from a slice of every domain of its own."""
    texts = []
    for domain in WREN.domains:
        text = WREN.calib(domain).read_text()
        part = len(text) // DRAWS
        path = bench.dir / f"draw{index}-{domain}.txt"
        path.write_text(text[index * part:(index + 1) * part])
        texts.append(f"{domain}={path}")
    return bench.calibrate(f"draw{index}", texts, 16384)


def draws(bench):
    profiles = [draw(bench, i) for i in range(DRAWS)]
    print(f"| method, 50 % of every row of every expert matrix | mean KLD over {DRAWS} draws | standard error | draws |\n|---|---|---|---|")
    for method in ("moe-pruner", "wanda", "magnitude"):
        recipe = f"version: 1\ndefaults:\n  codec: bf16\nprune:\n  method: {method}\n  sparsity: 0.5\ngptq: false\n"
        klds = [bench.evaluate(f"{method}-{i}", profile, recipe)["kld_mean"] for i, profile in enumerate(profiles)]
        error = statistics.stdev(klds) / math.sqrt(DRAWS)
        print(f"| {method} | {statistics.mean(klds):.5f} | {error:.5f} | {', '.join(f'{k:.5f}' for k in klds)} |", flush=True)


def calibrate(bench):
    return bench.calibrate("all", [f"{d}={WREN.calib(d)}" for d in WREN.domains], 200000)


def sparse(bench):
    profile = calibrate(bench)
    print("| experts | method | mean KLD | same top-1 | recovered of the lost top-1 | next-token accuracy | of dense | perplexity | compress s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for pattern, prune in (("50 % of every row", "sparsity: 0.5"), ("2:4", "nm: '2:4'")):
        lost = None
        for method, keys in (("removed", "gptq: false\n"), ("others make up for it", ""), ("experts distilled", "distill: {logits: none}\n"),
                             ("norms too, from predictions", "distill: {}\n"), ("weights too, from predictions", "distill: {logits: all}\n")):
            recipe = f"version: 1\ndefaults:\n  codec: bf16\nprune:\n  {prune}\n{keys}"
            r = bench.evaluate(f"{prune[:2]}-{method}".replace(" ", "-").replace(",", ""), profile, recipe)
            lost = lost or 1 - r["same_top1"]
            print(f"| {pattern} | {method} | {r['kld_mean']:.5f} | {100 * r['same_top1']:.2f} % | {100 * (1 - (1 - r['same_top1']) / lost):.0f} % "
                  f"| {100 * r['top1_accuracy']:.2f} % | {100 * r['top1_accuracy'] / r['top1_accuracy_base']:.2f} % | {r['ppl']:.3f} "
                  f"| {r['compress_seconds']:.0f} |", flush=True)


def saliency(profile):
    """(layer, expert) -> what it adds to its layer's output: tokens x mean of g * ||f(x)||, from the profile's arrays."""
    data = profile.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])

    def array(name, kind):
        begin, end = header[name]["data_offsets"]
        return struct.unpack(f"<{(end - begin) // 8}{kind}", data[8 + length + begin:8 + length + end])

    out, table = {}, 0
    while f"table.{table}.reap" in header:
        reap, tokens = array(f"table.{table}.reap", "d"), array(f"table.{table}.tokens", "Q")
        for e, mean in enumerate(reap):
            out[table, e] = mean * sum(tokens[e::len(reap)])
        table += 1
    return out


def few(bench):
    profile = calibrate(bench)
    worth = saliency(profile)
    count = int(SHARE * len(worth)) - (int(SHARE * len(worth)) >= SHARE * len(worth))
    least = sorted(worth, key=lambda key: (worth[key], key))[:count]
    print(f"| codec of {count} of {len(worth)} experts | chosen | mean KLD | same top-1 | perplexity | rise |\n|---|---|---|---|---|---|")
    for codec in ("i3g64", "i2mg64"):
        controls = [sorted(random.Random(seed).sample(sorted(worth), count)) for seed in range(CONTROLS)]
        reports = []
        for i, chosen in enumerate([least, *controls]):
            names = "|".join(f"layers\\.{t}\\.experts\\.{e}" for t, e in chosen)
            recipe = f"version: 1\ndefaults: {{codec: bf16}}\nrules:\n  - match: '({names})\\..*'\n    codec: {codec}\n"
            reports.append(bench.evaluate(f"{codec}-{i}", profile, recipe))
        for title, group in (("least output", reports[:1]), (f"at random, mean of {CONTROLS}", reports[1:])):
            mean = {key: statistics.mean(r[key] for r in group) for key in ("kld_mean", "same_top1", "ppl", "ppl_base")}
            print(f"| {codec} | {title} | {mean['kld_mean']:.6f} | {100 * mean['same_top1']:.2f} % | {mean['ppl']:.4f} "
                  f"| {100 * (mean['ppl'] / mean['ppl_base'] - 1):+.3f} % |", flush=True)


if __name__ == "__main__":
    runs = {"draws": draws, "sparse": sparse, "few": few}
    if len(sys.argv) != 2 or sys.argv[1] not in runs:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(prefix="moepack-bench-") as scratch:
        runs[sys.argv[1]](Bench(scratch))
