#!/usr/bin/env python3
"""Cache policies beside Belady's MIN, and tokens a second against expert RAM; fills two sections of docs/results/runtime.md and
draws docs/results/runtime-expert-ram.svg. Needs a release build and matplotlib:

    python3 tests/bench/expert_cache.py --work DIR [--rounds 5]

Policies are chosen on calibration text (wren) or on traces of another seed (synthetic) and compared on held-out text or traces."""
import argparse
import json
import pathlib
import statistics

import bench_lib
from bench_lib import ROOT, run, table

BUILD = ROOT / "build/release"
MOEPACK, SIMULATOR = BUILD / "bin/moepack", BUILD / "bench/moepack-cache-sim"
OUT, PICTURE = ROOT / "docs/results/runtime.md", ROOT / "docs/results/runtime-expert-ram.svg"
SHARES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
CODEC, PROMPT, DECODE = "i4g64", 32, 480


def prepare(work, wren):
    work.mkdir(parents=True, exist_ok=True)
    profiles = work / "calibration.mprof", work / "evaluation.mprof"
    if not all(p.exists() for p in profiles):
        run(MOEPACK, "calibrate", wren.model, "--data", *(f"{d}={wren.calib(d)}" for d in wren.domains), "--tokens", 32768, "-o", profiles[0])
        run(MOEPACK, "calibrate", wren.model, "--data", wren.mixed_eval, "--tokens", 16384, "-o", profiles[1])
    bundle = work / "wren.moeb"
    if not bundle.exists():
        run(MOEPACK, "pack", "keygen", "-o", work / "key.pem", "--trust", work / "trust.json")
        run(MOEPACK, "compress", wren.model, "--profile", profiles[0], "--codec", CODEC, "-o", work / "wren.dir")
        run(MOEPACK, "pack", work / "wren.dir", "--key", work / "key.pem", "-o", bundle)
    return profiles, bundle


def policy_rows(name, report):
    rows = []
    for sizes in ("equal", "unequal"):
        for r in report[sizes]:
            if r["share"] != 0.25 and r["name"] not in ("LRU", "chosen"):
                continue
            label = f"chosen: {r['policy']}" if r["name"] == "chosen" else r["name"]
            rows.append((name, f"{report['srp']:.0f} %", sizes, f"{100 * r['share']:g} %", label, f"{100 * r['hit_rate']:.1f} %",
                         f"{100 * r['belady']:.1f} %", f"{r['of_belady']:.2f}"))
    return rows


def measure(bundle, work, wren, policy, share, all_bytes):
    options = () if policy is None else ("--cache-policy", policy)
    return json.loads(run(MOEPACK, "run", "bench", bundle, "--trust", work / "trust.json", "--threads", 2, "--data", wren.mixed_eval,
                          "--prompt-tokens", PROMPT, "-n", DECODE, "--repeats", 2, "--expert-ram", int(share * all_bytes), *options, "--json",
                          messages=False))


def speeds(bundle, work, wren, rounds):
    """(policy or None for the bundle's, share) -> medians over the rounds."""
    all_bytes = json.loads(run(MOEPACK, "inspect", bundle, "--trust", work / "trust.json", "--json", messages=False))["expert_bytes_resident"]
    samples = {}
    for _ in range(rounds):
        for share in SHARES:
            for policy in ("lru", None):
                samples.setdefault((policy, share), []).append(measure(bundle, work, wren, policy, share, all_bytes))
    medians = {}
    for key, runs in samples.items():
        middle = {name: statistics.median(r[name] for r in runs) for name in
                  ("decode_tokens_per_s", "hit_rate", "expert_bytes_read", "peak_rss_bytes", "expert_budget_bytes", "expert_bytes")}
        medians[key] = {**middle, "policy": runs[0]["cache_policy"]}
    return medians


def plot(medians):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "moepack", "svg.fonttype": "none"})  # the same numbers give the same file
    import matplotlib.pyplot as plt
    figure, axis = plt.subplots(figsize=(6.5, 4))
    for policy, label, mark in (("lru", "LRU", "o--"), (None, "the bundle's policy", "s-")):
        points = [(medians[policy, s]["expert_budget_bytes"] / 1e6, medians[policy, s]["decode_tokens_per_s"]) for s in SHARES]
        axis.plot(*zip(*points), mark, label=label, markersize=4)
    axis.set(xlabel="expert RAM, MB", ylabel="decoded tokens/s", title=f"wren, {CODEC}, 2 threads")
    axis.set_ylim(bottom=0)
    axis.grid(True, alpha=0.25)
    axis.legend()
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})


def speed_rows(medians):
    tokens = 2 * (PROMPT + DECODE)
    for share in SHARES:
        for policy in ("lru", None):
            m = medians[policy, share]
            yield (f"{100 * share:g} %", f"{m['expert_budget_bytes'] / 1e6:.2f}", f"{m['expert_bytes'] / 1e6:.2f}", m["policy"],
                   f"{100 * m['hit_rate']:.1f} %", f"{m['expert_bytes_read'] / tokens / 1e3:.0f}", f"{m['decode_tokens_per_s']:.0f}",
                   f"{m['peak_rss_bytes'] / 1e6:.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    wren = bench_lib.subjects()["wren"]
    profiles, bundle = prepare(options.work, wren)
    rows = policy_rows("wren", json.loads(run(SIMULATOR, *profiles, messages=False)))
    rows += policy_rows("synthetic", json.loads(run(SIMULATOR, "synthetic", messages=False)))
    policies = table(("traces", "SRP", "expert sizes", "experts in RAM", "policy", "demand hits", "Belady's", "of Belady's"), rows)
    medians = speeds(bundle, options.work, wren, options.rounds)
    plot(medians)
    speed = table(("experts in RAM", "budget MB", "resident MB", "policy", "demand hits", "kB read a token", "decode tokens/s", "peak resident MB"),
                  speed_rows(medians))
    print(policies, speed, sep="\n\n")
    bench_lib.write_section(OUT, "cache policies", policies)
    bench_lib.write_section(OUT, "expert ram", speed)


if __name__ == "__main__":
    main()
