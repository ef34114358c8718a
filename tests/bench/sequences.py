#!/usr/bin/env python3
"""Several sequences that decode together, long prompts, and keys and values in 8 bits; writes its section of docs/results/runtime.md. Needs
a release build and numpy:

    python3 tests/bench/sequences.py --work DIR [--rounds 7] [--codec i4mg64] [--sequences 1,2,4,8,16] [--prompts 512,2048]

DIR is that of tests/bench/runtime.py: the bundle of OLMoE's shape is taken from it, or made there (6 GB). One process a figure, 2 threads,
settings in turn; figures are medians over the rounds. Processor time is that of a process less that of one which does not decode, or not
prefill that much: it tells settings apart also on a busy machine."""
import argparse
import json
import os
import pathlib
import resource
import statistics
import sys

import bench_lib
import runtime
from bench_lib import run

KV_BITS = (32, 8)
THREADS, REPEATS, PROMPT, DECODE = 2, 2, 32, 128


def prepare(work, codec):
    bundle = work / f"{codec}.moeb"
    if not bundle.exists():
        work.mkdir(parents=True, exist_ok=True)
        runtime.prepare_bundle(work, codec)
    return bundle


def processor_s():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def bench(work, bundle, kv, *options):
    before = processor_s()
    report = json.loads(run(runtime.MOEPACK, "run", "bench", bundle, "--trust", work / "trust.json", "--threads", THREADS, "--kv", kv,
                            "--repeats", REPEATS, "--json", *options, messages=False))
    return {**report, "processor_s": processor_s() - before}


def decode(work, bundle, kv, count):
    idle = bench(work, bundle, kv, "-p", PROMPT, "-n", 0, "--sequences", count)
    report = bench(work, bundle, kv, "-p", PROMPT, "-n", DECODE, "--sequences", count)
    used = report["processor_s"] - idle["processor_s"]
    return {**report, "processor_ms": 1000 * used / (REPEATS * DECODE * count)}


def prefill(work, bundle, kv, tokens):
    short = bench(work, bundle, kv, "-p", PROMPT, "-n", 0)
    report = bench(work, bundle, kv, "-p", tokens, "-n", 0)
    return {**report, "processor_ms": 1000 * (report["processor_s"] - short["processor_s"]) / (REPEATS * (tokens - PROMPT))}


def measure(work, bundle, options):
    """Settings to the reports of each round: ("decode", sequences, bits) and ("prefill", tokens, bits)."""
    samples = {}
    for i in range(options.rounds):
        for kv in KV_BITS:
            for count in options.sequences:
                samples.setdefault(("decode", count, kv), []).append(decode(work, bundle, kv, count))
            for tokens in options.prompts:
                samples.setdefault(("prefill", tokens, kv), []).append(prefill(work, bundle, kv, tokens))
        print(f"round {i + 1} of {options.rounds}: load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    return samples


def median(samples, setting, key):
    return statistics.median(report[key] for report in samples[setting])


def both(samples, kind, size, key, decimals, scale=1.0):
    """The figure with 32 and with 8 bits."""
    return [f"{median(samples, (kind, size, kv), key) * scale:.{decimals}f}" for kv in KV_BITS]


def decode_rows(samples, sequences):
    alone = median(samples, ("decode", sequences[0], 32), "processor_ms")
    for count in sequences:
        at = ("decode", count)
        yield (count, *both(samples, *at, "processor_ms", 1), f"{alone / median(samples, (*at, 32), 'processor_ms'):.2f}",
               *both(samples, *at, "decode_tokens_per_s", 1), *both(samples, *at, "used_state_bytes", 1, 1e-6))


def prefill_rows(samples, prompts):
    for tokens in prompts:
        at = ("prefill", tokens)
        yield (tokens, *both(samples, *at, "processor_ms", 2), *both(samples, *at, "prefill_tokens_per_s", 0),
               *both(samples, *at, "used_state_bytes", 1, 1e-6))


def numbers(text):
    return [int(number) for number in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--codec", default="i4mg64")
    parser.add_argument("--sequences", type=numbers, default=[1, 2, 4, 8, 16])
    parser.add_argument("--prompts", type=numbers, default=[512, 2048])
    options = parser.parse_args()
    bundle = prepare(options.work, options.codec)
    before = os.getloadavg()[0]
    samples = measure(options.work, bundle, options)
    lines = [f"{runtime.processor()}, {options.codec}, {THREADS} threads, medians of {options.rounds} rounds; the system's load was "
             f"{before:.1f} before and {os.getloadavg()[0]:.1f} after ({THREADS} of it this script's).", ""]
    kv = ("KV MB", "with --kv 8")
    lines += [bench_lib.table(("sequences", "processor ms a token", "with --kv 8", f"of {options.sequences[0]} / of these", "tokens/s of all", "with --kv 8", *kv),
                   decode_rows(samples, options.sequences)), ""]
    lines.append(bench_lib.table(("prompt tokens", "processor ms a token", "with --kv 8", "tokens/s", "with --kv 8", *kv),
                                 prefill_rows(samples, options.prompts)))
    bench_lib.write_section(runtime.OUT, "sequences", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
