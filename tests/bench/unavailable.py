#!/usr/bin/env python3
"""What it costs on wren, in KLD, to bridge experts that a device has lost, by the step that bridges them: fills a section of
docs/results/runtime.md. Needs a release build:

    python3 tests/bench/unavailable.py --work DIR [--chunks 8]

Lost are all chunks of the first variants of experts drawn once (the same for every step); what stands in is there."""
import argparse
import json
import pathlib
import random
import shutil
import sys

import bench_lib
from bench_lib import CTX, ROOT, run, table

sys.path.insert(0, str(ROOT / "tests/vectors"))
from second_reader import Bundle  # noqa: E402

MOEPACK, OUT = ROOT / "build/release/bin/moepack", ROOT / "docs/results/runtime.md"
RECIPE = "version: 1\ndefaults: {codec: i8g64}\nsecond_precision: {codec: i2mg32}\ntwins: true\ndense_fallback: {codec: i8g64}\n"
STEPS = ("lower", "twin", "renormalise", "dense", "renormalise,dense")
SHARES = (0, 0.125, 0.25, 0.5, 1)


def prepare(work, wren, chunks):
    base = bench_lib.key_profile_and_logits(MOEPACK, work, wren, chunks)
    folder = work / "stand-ins"
    if not (work / "a.trust").exists():
        run(MOEPACK, "pack", "keygen", "-o", work / "root.pem")
        run(MOEPACK, "pack", "anchor", work / "trust.json", "--root", work / "root.pem", "-o", work / "a.trust")
    if not folder.exists():
        (work / "recipe.yaml").write_text(RECIPE)
        print(run(MOEPACK, "compress", wren.model, "--profile", work / "wren.mprof", "--recipe", work / "recipe.yaml", "-o", folder))
    return base, folder


def lose(work, bundle, share):
    """A device with the bundle, without the chunks of the drawn experts."""
    root = work / "device"
    shutil.rmtree(root, ignore_errors=True)
    run(MOEPACK, "device", "provision", root, "--trust", work / "a.trust")
    run(MOEPACK, "device", "install", root, bundle, "--quiet")
    opened = Bundle(bundle.read_bytes(), json.loads((work / "trust.json").read_text()))
    for t in opened.tables:
        experts = list(range(len(t["experts"])))
        random.Random(t["table"]).shuffle(experts)
        for e in experts[:round(share * len(experts))]:
            for chunk in t["units"][t["experts"][e]["variants"][0]["physical"]]["chunks"]:
                for path in (root / "chunks").glob(chunk["plain_digest"].hex() + "*"):
                    path.unlink()
    return root


def rows(work, wren, chunks):
    base, folder = prepare(work, wren, chunks)
    for steps in STEPS:
        bundle = work / f"{steps.replace(',', '-')}.moeb"
        run(MOEPACK, "pack", folder, "--key", work / "key.pem", "--unavailable", steps, "-o", bundle)
        cells = []
        for share in SHARES:
            root = lose(work, bundle, share)
            try:
                r = json.loads(run(MOEPACK, "run", "eval", "--device", root, "--base", base, "--data", wren.mixed_eval, "--ctx", CTX,
                                   "--chunks", chunks, "--tile", 1, "--json", "--quiet", messages=False))
                cells.append(f"{r['kld_mean']:.4f} ({100 * r['same_top1']:.1f} %)")
            except bench_lib.Failed:
                cells.append("fails")
        print(steps, *cells, file=sys.stderr, flush=True)
        yield steps, *cells


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--chunks", type=int, default=8, help="of %d tokens" % CTX)
    options = parser.parse_args()
    wren = bench_lib.subjects()["wren"]
    text = table(("step", *(f"{100 * share:g} % of experts lost" for share in SHARES)), rows(options.work, wren, options.chunks))
    print(text)
    bench_lib.write_section(OUT, "unavailable", text)


if __name__ == "__main__":
    main()
