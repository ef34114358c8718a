#!/usr/bin/env python3
"""Several sequences that decode together, long prompts, and keys and values in 8 bits; writes its section of docs/results/runtime.md. Needs
a release build and numpy:

    python3 tests/bench/sequences.py --work DIR [--rounds 7] [--codec i4mg64]

DIR is that of tests/bench/runtime.py: the bundle of OLMoE's shape is taken from it, or made there (6 GB). One process a figure, 2 threads,
settings in turn; figures are medians over the rounds."""
import argparse
import json
import os
import pathlib
import statistics
import sys

import bench_lib
import runtime
from bench_lib import run

SEQUENCES, PROMPTS, KV_BITS = (1, 2, 4, 8, 16), (512, 2048), (32, 8)
THREADS, PROMPT, DECODE = 2, 32, 32


def prepare(work, codec):
    bundle = work / f"{codec}.moeb"
    if not bundle.exists():
        work.mkdir(parents=True, exist_ok=True)
        runtime.prepare_bundle(work, codec)
    return bundle


def bench(work, bundle, kv, *options):
    return json.loads(run(runtime.MOEPACK, "run", "bench", bundle, "--trust", work / "trust.json", "--threads", THREADS, "--kv", kv,
                          "--repeats", 2, "--json", *options, messages=False))


def measure(work, bundle, rounds):
    """Settings to the reports of each round: ("decode", sequences, bits) and ("prefill", tokens, bits)."""
    samples = {}
    for i in range(rounds):
        for kv in KV_BITS:
            for count in SEQUENCES:
                report = bench(work, bundle, kv, "-p", PROMPT, "-n", DECODE, "--sequences", count)
                samples.setdefault(("decode", count, kv), []).append(report)
            for tokens in PROMPTS:
                samples.setdefault(("prefill", tokens, kv), []).append(bench(work, bundle, kv, "-p", tokens, "-n", 1))
        print(f"round {i}: {samples['decode', 1, 32][-1]['decode_tokens_per_s']:.1f} tokens/s alone", file=sys.stderr, flush=True)
    return samples


def median(samples, setting, key):
    return statistics.median(report[key] for report in samples[setting])


def decode_rows(samples):
    alone = median(samples, ("decode", 1, 32), "decode_tokens_per_s")
    for count in SEQUENCES:
        full, eight = ("decode", count, 32), ("decode", count, 8)
        rate = median(samples, full, "decode_tokens_per_s")
        yield (count, f"{rate:.1f}", f"{rate / alone:.2f}", f"{median(samples, full, 'p50_ms'):.1f}",
               f"{median(samples, eight, 'decode_tokens_per_s'):.1f}", f"{median(samples, full, 'used_state_bytes') / 1e6:.1f}",
               f"{median(samples, eight, 'used_state_bytes') / 1e6:.1f}")


def prefill_rows(samples):
    for tokens in PROMPTS:
        full, eight = ("prefill", tokens, 32), ("prefill", tokens, 8)
        yield (tokens, *(f"{median(samples, setting, 'prefill_tokens_per_s'):.0f}" for setting in (full, eight)),
               *(f"{median(samples, setting, 'used_state_bytes') / 1e6:.1f}" for setting in (full, eight)))


def table(head, rows):
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(map(str, row))} |" for row in rows)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--codec", default="i4mg64")
    options = parser.parse_args()
    bundle = prepare(options.work, options.codec)
    before = os.getloadavg()[0]
    samples = measure(options.work, bundle, options.rounds)
    lines = [f"{runtime.processor()}, {options.codec}, {THREADS} threads, medians of {options.rounds} rounds; the system's load was "
             f"{before:.1f} before and {os.getloadavg()[0]:.1f} after ({THREADS} of it this script's).", ""]
    lines += table(("sequences", "decode tokens/s of all", "times one alone", "ms a step", "tokens/s with --kv 8", "KV MB", "with --kv 8"),
                   decode_rows(samples))
    lines += ["", *table(("prompt tokens", "prefill tokens/s", "with --kv 8", "KV MB", "with --kv 8"), prefill_rows(samples))]
    bench_lib.write_section(runtime.OUT, "sequences", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
