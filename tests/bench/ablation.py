#!/usr/bin/env python3
"""What each step of compression buys at the same bytes, on both models: fills the ablation section of docs/results/quality-ablation.md.

    python3 tests/bench/ablation.py [wren] [second] [--types Q4_K_M,IQ3_XXS]

A variant is the built-in recipe less one step. Bundles stay within the bytes of llama.cpp's file of a type (weights in RAM free) or of its
tensors; quality.py measures those types, and its results are taken from the cache under --work. Needs what quality.py needs."""
import argparse
import pathlib

import bench_lib
import llama
import ours
from bench_lib import ROOT, table

PAGE = ROOT / "docs/results/quality-ablation.md"
# The built-in candidates without those with a rate, by what the floors of compress leave to each role.
PLAIN = "t2g128 t2g64 t3g128 t3g64 t4g128 t4g64 t5g128 t6g128 i8g128 i8g64".split()
GRIDS = "i2g128 i2mg128 i2mg64 i3g128 i3g64 i4g128 i4g64 i4g32 i5g128 i5g64 i6g128 i6g64 i8g128 i8g64".split()


def plain_rules(codecs=PLAIN):
    def choice(least):
        return "[" + ", ".join(c for c in codecs if int(c[1]) >= least) + "]"
    return (f"defaults:\n  candidates: {choice(4)}\nrules:\n"
            f"  - match: '.*\\.experts\\..*|embed_tokens|lm_head'\n    candidates: {choice(2)}\n"
            f"  - match: '.*\\.(q|k|v|o)_proj'\n    candidates: {choice(3)}\n")


VARIANTS = (("everything", None), ("no codecs held to a rate", plain_rules()),
            ("nor a trellis, but grids", plain_rules(GRIDS)), ("rounding to nearest", "gptq: false\n"),
            ("errors of all layers count alike", "probes: false\n"), ("and experts learn", "distill: {logits: none}\n"),
            ("and norms and scales too, from predictions", "distill: {}\n"), ("and weights and codes", "distill: {logits: all}\n"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["wren", "second"])
    parser.add_argument("--types", type=lambda s: s.split(","), default=["Q4_K_M", "IQ3_XXS"])
    parser.add_argument("--llama", type=pathlib.Path, help="folder of llama.cpp's programs; built under --work when absent")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/quality")
    args = parser.parse_args()
    cache = bench_lib.Cache(args.work / "cache")
    recipes = args.work / "recipes"
    recipes.mkdir(parents=True, exist_ok=True)
    for name in args.models:
        subject = bench_lib.subjects()[name]
        peer = llama.Llama(args.llama or llama.build(args.work), args.work, subject, cache, args.bin / "moepack")
        rows = []
        for title, recipe in VARIANTS:
            options = []
            if recipe is not None:
                path = recipes / (title.replace(" ", "-").replace(",", "") + ".yaml")
                path.write_text("version: 1\n" + recipe)
                options = ["--recipe", path]
            mine, row = ours.Ours(args.bin, args.work, subject, cache, options), [title]
            for kind in args.types:
                size = peer.measure(kind, subject.mixed_eval)
                for aim in (mine.stored_aim(size["bytes"]), mine.resident_aim(size["bytes_resident"])):
                    result = mine.measure(aim, subject.mixed_eval)
                    row.append("no plan is that small" if result is None else f"{result['kld_mean']:.6f}")
            rows.append(row)
            print(subject.name, row, flush=True)
        header = ["variant", *(f"{kind}, {column}" for kind in args.types for column in ("file", "in RAM"))]
        types = "" if args.types == parser.get_default("types") else f" --types {','.join(args.types)}"
        bench_lib.write_section(PAGE, f"ablation {name}", f"`python3 tests/bench/ablation.py {name}{types}`, mean KLD on {subject.mixed_eval.name} at "
                                f"the bytes of llama.cpp's file, or of its tensors:\n\n{table(header, rows)}")


if __name__ == "__main__":
    main()
