#!/usr/bin/env python3
"""A step of OLMoE's shape with few experts in memory: time, memory and hits; fills a section of docs/results/runtime.md. Needs a release
build and numpy:

    python3 tests/bench/promise.py --work DIR [--rounds 3]

DIR is that of tests/bench/runtime.py. The synthetic weights choose experts almost at random, so hits of these runs are the least that a
model can have; beside them stand the hits of routing traces with a local consistency of 50 % at the same share of experts, and the step
that they would make: resident time and a miss's time, both measured, times the misses."""
import argparse
import json
import pathlib
import statistics

import bench_lib
import runtime
from bench_lib import run, table

SIMULATOR = runtime.BUILD / "bench/moepack-cache-sim"
CODECS, SHARES, PROMPT, DECODE = ("i4mg64", "i3g64"), (0.25, 0.33, 0.5, 0.75, 1.0), 8, 32
PARAMETERS, LAYERS, TOP_K = 1.88e9, 4, 8


def bench(work, codec, *options):
    return json.loads(run(runtime.MOEPACK, "run", "bench", work / f"{codec}.moeb", "--trust", work / "trust.json", "--threads",
                          runtime.THREADS, "--prompt-tokens", PROMPT, "-n", DECODE, "--repeats", 2, *options, "--json",
                          messages=False))


def measure(work, codec, rounds):
    """share -> medians over the rounds."""
    report = json.loads(run(runtime.MOEPACK, "inspect", work / f"{codec}.moeb", "--trust", work / "trust.json", "--json", messages=False))
    samples = {}
    for _ in range(rounds):
        for share in SHARES:
            samples.setdefault(share, []).append(bench(work, codec, "--expert-ram", int(share * report["expert_bytes_resident"])))
    keys = ("p50_ms", "hit_rate", "peak_rss_bytes")
    medians = {share: {key: statistics.median(r[key] for r in runs) for key in keys} for share, runs in samples.items()}
    return report, medians


def rows_of(codec, report, medians, traces):
    resident, lookups = medians[1.0]["p50_ms"], LAYERS * TOP_K
    for share, m in medians.items():
        misses = lookups * (1 - m["hit_rate"])
        of_miss = (m["p50_ms"] - resident) / misses if share < 1 else 0
        hits = traces[share]["hit_rate"]
        yield (codec, f"{4 * PARAMETERS / report['bytes_stored']:.1f}", f"{100 * share:g} %", f"{m['peak_rss_bytes'] / 1e6:.0f}",
               f"{100 * m['hit_rate']:.1f} %", f"{m['p50_ms']:.1f}", f"{of_miss:.2f}" if share < 1 else "",
               f"{100 * hits:.1f} %", f"{100 * traces[share]['belady']:.1f} %", f"{resident + of_miss * lookups * (1 - hits):.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    traces = {r["share"]: r for r in json.loads(run(SIMULATOR, "synthetic", *SHARES, messages=False))["equal"]}
    rows = []
    for codec in CODECS:
        runtime.prepare_bundle(options.work, codec)
        rows += rows_of(codec, *measure(options.work, codec, options.rounds), traces)
    text = table(("bundle", "f32 / file", "experts in RAM", "peak resident MB", "hits", "median ms a step", "ms a miss", "hits, SRP 50 %",
                   "Belady's", "ms a step at those hits"), rows)
    print(text)
    bench_lib.write_section(runtime.OUT, "promise", text)


if __name__ == "__main__":
    main()
