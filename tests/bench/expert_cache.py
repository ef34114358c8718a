#!/usr/bin/env python3
"""Cache policies beside Belady's MIN, tokens a second against expert RAM, and prefetching; fills five sections of
docs/results/runtime.md and draws docs/results/runtime-expert-ram.svg. Needs a release build and matplotlib:

    python3 tests/bench/expert_cache.py --work DIR [--rounds 5] [--only policies|ram|prefetch]

Policies are chosen on calibration text (wren) or on traces of another seed (synthetic) and compared on held-out text or traces."""
import argparse
import json
import pathlib
import statistics

import bench_lib
from bench_lib import ROOT, run, table

BUILD = ROOT / "build/release"
MOEPACK, SIMULATOR, EXPERTS = BUILD / "bin/moepack", BUILD / "bench/moepack-cache-sim", BUILD / "bench/moepack-expert-bench"
OUT, PICTURE = ROOT / "docs/results/runtime.md", ROOT / "docs/results/runtime-expert-ram.svg"
SHARES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
CODEC, PROMPT, DECODE = "i4g64", 32, 480
POLICIES = ("lru", None)  # None: the bundle's
# Of prefetching: layers ahead and lanes; tokens of held-out text, one at a time. Without lanes nothing is loaded ahead: an expert is two
# chunks, and there are two threads.
SETTINGS, TOKENS, THREADS = ((0, 0), (2, 1)), 1024, 2


def profiles_of(work, wren):
    """Profiles of calibration text and of held-out text."""
    work.mkdir(parents=True, exist_ok=True)
    profiles = work / "calibration.mprof", work / "evaluation.mprof"
    if not all(p.exists() for p in profiles):
        run(MOEPACK, "calibrate", wren.model, "--data", *(f"{d}={wren.calib(d)}" for d in wren.domains), "--tokens", 32768, "-o", profiles[0])
        run(MOEPACK, "calibrate", wren.model, "--data", wren.mixed_eval, "--tokens", 16384, "-o", profiles[1])
    return profiles


def prepare(work, wren):
    profiles = profiles_of(work, wren)
    bundle = work / "wren.moeb"
    if not bundle.exists():
        run(MOEPACK, "pack", "keygen", "-o", work / "key.pem", "--trust", work / "trust.json")
        run(MOEPACK, "compress", wren.model, "--profile", profiles[0], "--codec", CODEC, "-o", work / "wren.dir")
        run(MOEPACK, "pack", work / "wren.dir", "--key", work / "key.pem", "-o", bundle)
    traces = work / "folder.mprof"  # of the weights that the bundle has, so that its routers choose alike
    if not traces.exists():
        run(MOEPACK, "calibrate", work / "wren.dir", "--data", wren.mixed_eval, "--tokens", 4 * TOKENS, "-o", traces)
    return profiles, bundle, traces


def policy_rows(name, report):
    rows = []
    for sizes in ("equal", "unequal"):
        for r in sorted(report[sizes], key=lambda r: r["share"]):
            if r["share"] != 0.25 and r["name"] not in ("LRU", "chosen", "most without foresight"):
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
            for policy in POLICIES:
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
    for policy, label, mark in zip(POLICIES, ("LRU", "the bundle's policy"), ("o--", "s-")):
        found = [medians[policy, s] for s in SHARES]
        points = [(m["expert_budget_bytes"] / 1e6, m["decode_tokens_per_s"]) for m in found]
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
        for policy in POLICIES:
            m = medians[policy, share]
            yield (f"{100 * share:g} %", f"{m['expert_budget_bytes'] / 1e6:.2f}", f"{m['expert_bytes'] / 1e6:.2f}", m["policy"],
                   f"{100 * m['hit_rate']:.1f} %", f"{m['expert_bytes_read'] / tokens / 1e3:.0f}", f"{m['decode_tokens_per_s']:.0f}",
                   f"{m['peak_rss_bytes'] / 1e6:.1f}")


def decode_text(bundle, work, traces, share, prefetch, lanes):
    return json.loads(run(EXPERTS, bundle, work / "trust.json", traces, TOKENS, share, prefetch, lanes, messages=False))


def prefetch_rows(bundle, work, traces, rounds):
    """Rows of how experts were found, and of what a token took beside what it had to take by the rates of the same round."""
    samples = {}
    for _ in range(rounds):
        resident = decode_text(bundle, work, traces, 1, 0, 0)
        for share in SHARES[:-1]:
            without = None
            for setting in SETTINGS:
                r = decode_text(bundle, work, traces, share, *setting)
                without = without or r
                seconds_a_byte = sum(1 / r[f"{what}_bytes_per_s"] for what in ("read", "hash", "decompress"))
                r["resident_ms"] = resident["p50_ms"]
                r["bound_ms"] = resident["p50_ms"] + without["bytes_read"] / TOKENS * seconds_a_byte / THREADS * 1e3
                r["of_bound"] = r["ms_a_token"] / r["bound_ms"]
                samples.setdefault((share, setting), []).append(r)
    found, times = [], []
    for (share, (prefetch, lanes)), runs in samples.items():
        m = {key: statistics.median(r[key] for r in runs) for key, value in runs[0].items() if not isinstance(value, str)}
        label = (f"{100 * share:g} %", prefetch or "off", lanes if prefetch else "")
        hits, ahead = m["hits"] / m["lookups"], m["prefetched"] / m["lookups"]
        found.append((*label, f"{100 * hits:.1f} %", f"{100 * ahead:.1f} %", f"{100 * (hits + ahead):.1f} %", f"{100 * m['belady']:.1f} %",
                      f"{(hits + ahead) / m['belady']:.2f}", f"{100 * m['late'] / m['lookups']:.1f} %", f"{100 * m['foreseen'] / m['lookups']:.1f} %",
                      f"{m['prefetches'] / TOKENS:.2f}", f"{m['wasted'] / TOKENS:.2f}", f"{m['bytes_read'] / TOKENS / 1e3:.0f}"))
        times.append((*label, f"{m['resident_ms']:.3f}", f"{m['read_bytes_per_s'] / 1e6:.0f}", f"{m['hash_bytes_per_s'] / 1e6:.0f}",
                      f"{m['decompress_bytes_per_s'] / 1e6:.0f}", f"{m['bound_ms']:.3f}", f"{m['ms_a_token']:.3f}", f"{m['p50_ms']:.3f}",
                      f"{m['of_bound']:.2f}"))
    return found, times


def foresight_rows(name, report):
    """One row: the hits with what is known of further tokens, beside Belady's."""
    hits = [f"{100 * r['hit_rate']:.1f} % ({r['of_belady']:.2f})" for r in report["foresight"]]
    return [(name, *hits)]


def policies_section(profiles):
    reports = {"wren": json.loads(run(SIMULATOR, *profiles, messages=False)),
               "synthetic": json.loads(run(SIMULATOR, "synthetic", messages=False))}
    rows = [row for name, report in reports.items() for row in policy_rows(name, report)]
    known = [row for name, report in reports.items() for row in foresight_rows(name, report)]
    ahead = ("this token", "and 1 more", *(f"and {r['known']} more" for r in reports["wren"]["foresight"][3:]))
    return {"foresight": table(("traces", "nothing known", *ahead), known), "cache policies": table(("traces", "SRP", "expert sizes", "experts in RAM", "policy", "demand hits", "Belady's", "of Belady's"), rows)}


def ram_section(bundle, work, wren, rounds):
    medians = speeds(bundle, work, wren, rounds)
    plot(medians)
    return {"expert ram": table(("experts in RAM", "budget MB", "resident MB", "policy", "demand hits", "kB read a token",
                                 "decode tokens/s", "peak resident MB"), speed_rows(medians))}


def prefetch_section(bundle, work, traces, rounds):
    found, times = prefetch_rows(bundle, work, traces, rounds)
    setting = ("experts in RAM", "layers ahead", "lanes")
    return {"prefetch": table((*setting, "demand hits", "in time", "together", "Belady's", "of Belady's", "late", "foretold",
                               "loaded ahead a token", "in vain", "kB read a token"), found),
            "token time": table((*setting, "resident ms", "read MB/s", "hash MB/s", "decompress MB/s", "resident + misses ms", "a token ms",
                                 "median ms", "ratio"), times)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("policies", "ram", "prefetch"))
    options = parser.parse_args()
    wren = bench_lib.subjects()["wren"]
    profiles, bundle, traces = prepare(options.work, wren)
    makers = {"policies": lambda: policies_section(profiles),
              "ram": lambda: ram_section(bundle, options.work, wren, options.rounds),
              "prefetch": lambda: prefetch_section(bundle, options.work, traces, options.rounds)}
    for name, make in makers.items():
        if options.only not in (None, name):
            continue
        for section, text in make().items():
            print(text, end="\n\n", flush=True)
            bench_lib.write_section(OUT, section, text)


if __name__ == "__main__":
    main()
