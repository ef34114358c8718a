#!/usr/bin/env python3
"""What lowering and skipping experts on a miss costs on wren, in KLD: fills a section of docs/results/runtime.md. Needs a release
build:

    python3 tests/bench/misses.py --work DIR [--chunks 16]

One token at a time, as in decoding: in a tile of several an expert gets what the token wants that needs it most."""
import argparse
import json
import pathlib

import bench_lib
from bench_lib import CTX, ROOT, run, table

MOEPACK, OUT = ROOT / "build/release/bin/moepack", ROOT / "docs/results/runtime.md"
RECIPE = "version: 1\ndefaults: {codec: %s}\nsecond_precision: {codec: %s}\n"
PAIRS = (("i8g64", "i4g64"), ("i4g64", "i2mg32"))
RUNS = (("load", None), ("lower", "0.6,0.9"), ("skip", "0.6,0.9"), ("lower", "0.5,0.7"), ("skip", "0.5,0.7"))


def prepare(work, wren, chunks):
    base = bench_lib.key_profile_and_logits(MOEPACK, work, wren, chunks)
    bundles = {}
    for pair in PAIRS:
        bundles[pair] = bundle = work / f"{'-'.join(pair)}.moeb"
        if not bundle.exists():
            (work / "recipe.yaml").write_text(RECIPE % pair)
            run(MOEPACK, "compress", wren.model, "--profile", work / "wren.mprof", "--recipe", work / "recipe.yaml", "-o",
                bundle.with_suffix(".dir"))
            run(MOEPACK, "pack", bundle.with_suffix(".dir"), "--key", work / "key.pem", "-o", bundle)
    return base, bundles


def rows(work, wren, share, chunks):
    base, bundles = prepare(work, wren, chunks)
    for (first, second), bundle in bundles.items():
        shown = json.loads(run(MOEPACK, "inspect", bundle, "--trust", work / "trust.json", "--json", messages=False))
        ram = int(share * shown["expert_bytes_resident"])
        for action, thresholds in RUNS:
            options = ("--miss-thresholds", thresholds) if thresholds else ()
            r = json.loads(run(MOEPACK, "run", "eval", bundle, "--trust", work / "trust.json", "--base", base, "--data", wren.mixed_eval, "--ctx",
                               CTX, "--chunks", chunks, "--tile", 1, "--prefetch", 0, "--expert-ram", ram, "--on-miss", action, *options,
                               "--json", messages=False))
            looked_up = r["expert_hits"] + r["expert_misses"]
            yield (first, second, action, thresholds or "", f"{100 * r['hit_rate']:.1f} %", f"{100 * r['experts_lowered'] / looked_up:.1f} %",
                   f"{100 * r['experts_skipped'] / looked_up:.1f} %", f"{r['expert_bytes_read'] / looked_up / 1e3:.1f}",
                   f"{r['kld_mean']:.6f}", f"{100 * r['same_top1']:.2f} %")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--chunks", type=int, default=16, help="of %d tokens" % CTX)
    parser.add_argument("--share", type=float, default=0.25, help="of the experts' bytes in memory")
    options = parser.parse_args()
    wren = bench_lib.subjects()["wren"]
    text = table(("experts", "second", "on a miss", "thresholds", "found resident", "lowered", "skipped", "kB read a lookup", "mean KLD",
                  "same top-1"), rows(options.work, wren, options.share, options.chunks))
    print(text)
    bench_lib.write_section(OUT, "misses", text)


if __name__ == "__main__":
    main()
