#!/usr/bin/env python3
"""Speed of the device runtime beside llama.cpp's and the machine's limits; writes docs/results/runtime.md. Needs a release build, numpy
and npm (or --llama FOLDER with llama-quantize and llama-bench, built as tests/bench/llama.py does it):

    python3 tests/bench/runtime.py --work DIR [--rounds 7] [--only i4mg64,...]

DIR keeps the checkpoint of OLMoE's shape (tests/bench/olmoe_shape.py), bundles and GGUF files between runs (18 GB). Programs run in
turn, one process each, 2 threads; every figure is the median over the rounds, every ratio the median of the ratios of one round."""
import argparse
import json
import os
import pathlib
import re
import statistics
import sys

import bench_lib
import llama
from bench_lib import ROOT, run

BUILD = ROOT / "build/release"
MOEPACK = BUILD / "bin/moepack"
OUT = ROOT / "docs/results/runtime.md"
PAIRS = (("i8g64", "Q8_0"), ("i4mg64", "Q4_K_M"), ("t4g128", "Q4_K_M"), ("i3g64", "Q3_K_M"), ("t3g128", "Q3_K_M"))
THREADS, PROMPT, DECODE = 2, 512, 64
SPEEDUP, OF_ROOFLINE = 1.4, 0.9  # what decoding is to reach, whichever is less


def prepare_bundle(work, codec):
    """DIR/CODEC.moeb of OLMoE's shape, and the trust file beside it."""
    model, key, bundle = work / "olmoe", work / "key.pem", work / f"{codec}.moeb"
    if not model.exists():
        run(sys.executable, ROOT / "tests/bench/olmoe_shape.py", model)
    if not key.exists():
        run(MOEPACK, "pack", "keygen", "-o", key, "--trust", work / "trust.json")
    if not bundle.exists():
        run(MOEPACK, "compress", model, "--codec", codec, "-o", work / f"dir-{codec}")
        run(MOEPACK, "pack", work / f"dir-{codec}", "--key", key, "--zstd-level", 1, "-o", bundle)


def prepare(work, peer_bin, pairs):
    work.mkdir(parents=True, exist_ok=True)
    for codec, peer in pairs:
        prepare_bundle(work, codec)
        gguf = work / f"{peer}.gguf"
        if not gguf.exists():
            if not (work / "f16.gguf").exists():
                run(MOEPACK, "export", work / "olmoe", "--gguf", "--type", "f16", "-o", work / "f16.gguf")
            run(peer_bin / "llama-quantize", work / "f16.gguf", gguf, peer, THREADS)


def bench(work, codec, prompt, decode):
    return json.loads(run(MOEPACK, "run", "bench", work / f"{codec}.moeb", "--trust", work / "trust.json", "--threads", THREADS,
                           "--prompt-tokens", prompt, "-n", decode, "--repeats", 2, "--json", messages=False))


def ours(work, codec):
    """Prefill of a whole prompt, and decoding from an empty context as llama-bench does it, between two looks at the bandwidth."""
    prefill = bench(work, codec, PROMPT, 1)
    before, decode, after = bandwidth(), bench(work, codec, 1, DECODE), bandwidth()
    return {"read": (before + after) / 2, "decode": decode["decode_tokens_per_s"], "prefill": prefill["prefill_tokens_per_s"],
            "rss": prefill["peak_rss_bytes"], "weights": prefill["dense_bytes"] + prefill["expert_bytes"], "state": prefill["state_bytes"],
            "token_bytes": decode["weight_bytes_per_token"]}


def theirs(work, peer, peer_bin):
    report = json.loads(run(peer_bin / "llama-bench", "-m", work / f"{peer}.gguf", "-t", THREADS, "-p", PROMPT, "-n", DECODE, "-r", 1, "-o",
                             "json"))
    rate = {("prefill" if run["n_prompt"] else "decode"): run["avg_ts"] for run in report}
    return {**rate, "bytes": report[0]["model_size"]}


def bandwidth():
    return json.loads(run(BUILD / "bench/kernel_bench", THREADS, "bandwidth", messages=False))["read_gb_per_s"]


def measure(work, peer_bin, pairs, rounds):
    samples = {codec: [] for codec, _ in pairs}
    for i in range(rounds):
        for codec, peer in pairs:
            a, b = ours(work, codec), theirs(work, peer, peer_bin)
            samples[codec].append({"ours": a, "theirs": b})
            print(f"{i} {codec}: decode {a['decode']:.1f} / {b['decode']:.1f}, prefill {a['prefill']:.0f} / {b['prefill']:.0f}, "
                  f"read {a['read']:.1f} GB/s", file=sys.stderr, flush=True)
    return samples


def median(rows, value):
    return statistics.median(value(row) for row in rows)


def speed_tables(samples, pairs):
    lines = ["| bundle | peer | decode tokens/s | peer's | ratio | read GB/s | MB a token | roofline tokens/s | of the roofline | of the target |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for codec, peer in pairs:
        rows = samples[codec]
        roofline = [r["ours"]["read"] * 1e9 / r["ours"]["token_bytes"] for r in rows]
        target = [min(SPEEDUP * r["theirs"]["decode"], OF_ROOFLINE * limit) for r, limit in zip(rows, roofline)]
        lines.append(f"| {codec} | {peer} | {median(rows, lambda r: r['ours']['decode']):.1f} "
                     f"| {median(rows, lambda r: r['theirs']['decode']):.1f} "
                     f"| {median(rows, lambda r: r['ours']['decode'] / r['theirs']['decode']):.2f} | {median(rows, lambda r: r['ours']['read']):.1f} "
                     f"| {rows[0]['ours']['token_bytes'] / 1e6:.1f} | {statistics.median(roofline):.1f} "
                     f"| {statistics.median(r['ours']['decode'] / limit for r, limit in zip(rows, roofline)):.2f} "
                     f"| {statistics.median(r['ours']['decode'] / aim for r, aim in zip(rows, target)):.2f} |")
    lines += ["", "| bundle | peer | prefill tokens/s | peer's | ratio | weights and KV, MB | peak resident, MB | peak / (weights + KV) |",
              "|---|---|---|---|---|---|---|---|"]
    for codec, peer in pairs:
        rows = samples[codec]
        held = rows[0]["ours"]["weights"] + rows[0]["ours"]["state"]
        peak = median(rows, lambda r: r["ours"]["rss"])
        lines.append(f"| {codec} | {peer} | {median(rows, lambda r: r['ours']['prefill']):.0f} "
                     f"| {median(rows, lambda r: r['theirs']['prefill']):.0f} "
                     f"| {median(rows, lambda r: r['ours']['prefill'] / r['theirs']['prefill']):.2f} "
                     f"| {held / 1e6:.0f} | {peak / 1e6:.0f} | {peak / held:.2f} |")
    return lines


def kernel_table():
    report = json.loads(run(BUILD / "bench/kernel_bench", THREADS, messages=False))
    lines = ["| kernels | codec | decode GB/s | of the read limit | prefill Gop/s | of the dot limit |", "|---|---|---|---|---|---|"]
    for k in report["kernels"]:
        lines.append(f"| {k['isa']} | {k['codec']} | {k['decode_gb_per_s']:.1f} | {k['decode_gb_per_s'] / k['read_gb_per_s']:.2f} "
                     f"| {k['prefill_gop_per_s']:.0f} | {k['prefill_gop_per_s'] / k['dot_gop_per_s']:.2f} |")
    peaks = {k["isa"]: k["dot_gop_per_s"] for k in report["kernels"]}
    limits = ", ".join(f"{isa} dots {peak:.0f} Gop/s" for isa, peak in peaks.items())
    read = [k["read_gb_per_s"] for k in report["kernels"]]
    return [f"Limits in this run: read {min(read):.1f} to {max(read):.1f} GB/s, {limits}.", "", *lines]


def processor():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*: (.*)", text)
    return found.group(1) if found else os.uname().machine


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="codecs, comma separated; prints the tables and leaves the page alone")
    options = parser.parse_args()
    pairs = [p for p in PAIRS if options.only is None or p[0] in options.only.split(",")]
    peer = options.llama or llama.build(options.work, ("llama-quantize", "llama-bench"))
    prepare(options.work, peer, pairs)
    speed = speed_tables(measure(options.work, peer, pairs, options.rounds), pairs)
    print("\n".join(speed))
    if options.only is not None:
        return
    kernels = kernel_table()
    print("\n".join(kernels))
    bench_lib.write_section(OUT, "speed", "\n".join([f"{processor()}, {THREADS} threads, medians of {options.rounds} rounds.", "", *speed]))
    bench_lib.write_section(OUT, "kernels", "\n".join(kernels))


if __name__ == "__main__":
    main()
