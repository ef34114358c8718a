#!/usr/bin/env python3
"""What routers of 8 bits cost on wren, with their inputs in 15 or 8 bits: KLD, and how often they choose the same experts as routers
of 16 bits. Fills a section of docs/results/runtime.md. Needs a release build:

    python3 tests/bench/quantized_router.py --work DIR [--chunks 16]"""
import argparse
import json
import pathlib

import bench_lib
from bench_lib import CTX, ROOT, run, table

BUILD = ROOT / "build/release"
MOEPACK, CHOICES, OUT = BUILD / "bin/moepack", BUILD / "bench/router_choices", ROOT / "docs/results/runtime.md"
REST = {"as the checkpoint": "keep: true", "i4g64": "codec: i4g64"}
CODECS = {"bf16": "keep: true", "i8g64": "codec: i8g64", "i8r": "codec: i8r"}
ROUTERS = (("bf16", 15), ("i8g64", 15), ("i8r", 15), ("i8g64", 8), ("i8r", 8))
RECIPE = "version: 1\nrules:\n  - {match: '.*_proj|embed_tokens|lm_head', %s}\n  - {match: '.*\\.router', %s}\n"


def bundle_of(work, wren, rest, router):
    bundle = work / f"router-{rest.replace(' ', '-')}-{router}.moeb"
    if not bundle.exists():
        (work / "recipe.yaml").write_text(RECIPE % (REST[rest], CODECS[router]))
        run(MOEPACK, "compress", wren.model, "--profile", work / "wren.mprof", "--recipe", work / "recipe.yaml", "-o", bundle.with_suffix(".dir"))
        run(MOEPACK, "pack", bundle.with_suffix(".dir"), "--key", work / "key.pem", "-o", bundle)
    return bundle


def choices(bundle, work, wren, chunks, bits):
    lines = run(CHOICES, bundle, work / "trust.json", wren.mixed_eval, CTX, chunks, bits, messages=False).splitlines()
    return {tuple(words[:2]): words[2:] for words in map(str.split, lines)}


def rows(work, wren, chunks):
    base = bench_lib.key_profile_and_logits(MOEPACK, work, wren, chunks)
    for rest in REST:
        reference = None
        for router, bits in ROUTERS:
            bundle = bundle_of(work, wren, rest, router)
            r = json.loads(run(MOEPACK, "run", "eval", bundle, "--trust", work / "trust.json", "--base", base, "--data", wren.mixed_eval, "--ctx",
                               CTX, "--chunks", chunks, "--router-inputs", bits, "--json", messages=False))
            chosen = choices(bundle, work, wren, chunks, bits)
            reference = reference or chosen
            same = sum(set(chosen[at]) == set(reference[at]) for at in reference) / len(reference)
            first = sum(chosen[at][0] == reference[at][0] for at in reference) / len(reference)
            yield (rest, router, "float" if router == "bf16" else f"{bits} bits", f"{r['kld_mean']:.6f}", f"{100 * r['same_top1']:.2f} %", f"{100 * first:.2f} %", f"{100 * same:.2f} %")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--chunks", type=int, default=16, help="of %d tokens" % CTX)
    options = parser.parse_args()
    text = table(("other matrices", "routers", "their inputs", "mean KLD", "same top-1 token", "same first expert", "same experts"),
                 rows(options.work, bench_lib.subjects()["wren"], options.chunks))
    print(text)
    bench_lib.write_section(OUT, "quantized router", text)


if __name__ == "__main__":
    main()
