#!/usr/bin/env python3
"""Quality for bytes against llama.cpp with an importance matrix: same model, text and protocol in the same run.

    python3 tests/bench/quality.py                 all models: fills docs/results/quality.md and quality-MODEL.svg
    python3 tests/bench/quality.py wren --types Q4_K_M,IQ2_XS --no-domains
    python3 tests/bench/quality.py --gap           the entropy-gap table instead: docs/results/entropy-gap.md

Needs a release build, python3-matplotlib, npm; the second model is made by train_second.py. Calibrates and collects the
importance matrix on *.calib.txt, evaluates on mixed.eval.txt in chunks of 256 tokens, second half of each scored. Results are
kept in --work under the digests of programs, model and text, so a second run measures only what changed."""
import argparse
import json
import pathlib

import bench_lib
import llama
import ours
from bench_lib import ROOT, table

PAGE = ROOT / "docs/results/quality.md"
# Largest ratio of mean KLD to llama.cpp's that counts as met: stored, resident.
TARGETS = {"Q6_K": (0.5, 0.8), "Q5_K_M": (0.5, 0.8), "Q4_K_M": (0.5, 0.8), "IQ4_XS": (0.5, 0.8), "Q3_K_M": (0.6, 0.8),
           "IQ3_XXS": (0.6, 0.8), "Q2_K": (0.6, 0.8), "IQ2_XS": (0.6, 0.8)}
DOMAIN_TYPES = ("Q6_K", "Q4_K_M", "IQ3_XXS", "IQ2_XS")
GAP_CODECS = ("i2g16 i2g32 i2g64 i2mg32 i3g32 i3g64 i3g128 i3mg32 i4g32 i4g64 i4g128 i4r i4mg32 i5g64 i6g64 i8g64").split()


def verdict(ratio, limit):
    if limit is None:
        return "no target"
    return f"{'met' if ratio <= limit else '**missed**'} (<= {limit})"


def column_table(peers, results, which):
    """The table of one column. which: 0 stored, 1 resident."""
    field = ("bytes", "bytes_resident")[which]
    name = ("file bytes", "tensor bytes")[which]
    rows = []
    for kind, peer in peers.items():
        mine = results[kind]
        if mine is None:
            rows.append((kind, f"{peer[field]:,}", f"{peer['kld_mean']:.6f}", f"{100 * peer['same_top1']:.2f}", "no plan is that small",
                         "", "", "", "", verdict(float("inf"), TARGETS.get(kind, (None, None))[which])))
            continue
        ratio = mine["kld_mean"] / peer["kld_mean"]
        over = "" if mine[field] <= peer[field] else " (over)"
        rows.append((kind, f"{peer[field]:,}", f"{peer['kld_mean']:.6f}", f"{100 * peer['same_top1']:.2f}", f"{mine[field]:,}{over}",
                     f"{mine['kld_mean']:.6f}", f"{100 * mine['same_top1']:.2f}", f"{mine['ppl']:.3f}", f"{ratio:.2f}",
                     verdict(ratio, TARGETS.get(kind, (None, None))[which])))
    return table(("type", f"its {name}", "its mean KLD", "its same top-1 %", f"our {('file', 'resident')[which]} bytes", "our mean KLD",
                  "our same top-1 %", "our perplexity", "KLD ratio", "target"), rows)


def domain_table(subject, peer, mine, kinds):
    rows = []
    for domain in subject.domains:
        row = [domain]
        for kind in kinds:
            theirs = peer.measure(kind, subject.eval(domain))["kld_mean"]
            own = mine.measure(mine.stored_aim(peer.measure(kind, subject.mixed_eval)["bytes"]), subject.eval(domain))
            row.append("-" if own is None else f"{own['kld_mean']:.5f} / {theirs:.5f} = {own['kld_mean'] / theirs:.2f}")
        rows.append(row)
    return table(("domain", *(f"{k}: ours / llama.cpp's" for k in kinds)), rows)


def plot(subject, peers, stored, resident, path):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "moepack", "svg.fonttype": "none"})  # the same numbers give the same file
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axis, field, results, title in ((axes[0], "bytes", stored, "whole file"), (axes[1], "bytes_resident", resident, "weights in RAM")):
        for data, label, mark in ((peers, "llama.cpp, imatrix", "o--"), (results, "moepack", "s-")):
            points = sorted((r[field] / 1e6, r["kld_mean"]) for r in data.values() if r)
            axis.plot(*zip(*points), mark, label=label, markersize=4)
        for kind, peer in peers.items():
            axis.annotate(kind, (peer[field] / 1e6, peer["kld_mean"]), fontsize=6, xytext=(3, 4), textcoords="offset points")
        axis.set(xlabel=f"MB, {title}", yscale="log", title=f"{subject.name}: {title}")
        axis.grid(True, which="both", alpha=0.25)
        axis.legend()
    axes[0].set_ylabel("mean KLD against the full model")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def brief(result):
    return "-" if result is None else f"KLD {result['kld_mean']:.6f} ({result['bytes']} stored, {result['bytes_resident']} resident)"


def measure_subject(subject, args, cache, llama_bin):
    peer = llama.Llama(llama_bin, args.work, subject, cache, args.bin / "moepack", args.threads)
    mine = ours.Ours(args.bin, args.work, subject, cache, args.option)
    peers, stored, resident = {}, {}, {}
    for kind in args.types:
        peers[kind] = peer.measure(kind, subject.mixed_eval)
        stored[kind] = mine.measure(mine.stored_aim(peers[kind]["bytes"]), subject.mixed_eval)
        resident[kind] = mine.measure(mine.resident_aim(peers[kind]["bytes_resident"]), subject.mixed_eval)
        print(f"{subject.name} {kind}: {brief(peers[kind])}; stored {brief(stored[kind])}; resident {brief(resident[kind])}", flush=True)
    some = next(r for r in stored.values() if r)
    text = [f"`python3 tests/bench/quality.py {subject.name}`; {some['parameters']:,} parameters, perplexity of the full model "
            f"{some['ppl_base']:.3f} (llama.cpp: {next(iter(peers.values()))['ppl_base']:.3f}). One bundle "
            "serves one column. llama.cpp's KLD is against a base of 16 bits, so about 0.0003 of it is noise of that file; ours is "
            "against float32.",
            "### Stored: the bundle file within the bytes of the GGUF file", column_table(peers, stored, 0),
            "### Resident: all weight buffers within the bytes of the GGUF's tensors", column_table(peers, resident, 1)]
    if not args.no_domains:
        kinds = [k for k in DOMAIN_TYPES if k in peers]
        text += ["### KLD by domain, stored", "The same bundles on the held-out text of each domain.", domain_table(subject, peer, mine, kinds)]
    picture = PAGE.with_name(f"quality-{subject.name}.svg")
    plot(subject, peers, stored, resident, picture)
    text.append(f"![KLD against bytes]({picture.name})")
    bench_lib.write_section(PAGE, f"quality {subject.name}", "\n\n".join(text))


def gap_rows(report):
    """GPTQ's rows; rounding to nearest where a matrix has no inputs to measure (embeddings) and, for comparison, of gate and up."""
    for r in report["matrices"]:
        weighted = r["weighted_gaussian_bits"]
        if r["method"] == "nearest" and weighted is not None and r["role"] != "expert gate, up":
            continue
        entropy = r["code_entropy_bits"] + r["scale_entropy_bits"]
        yield (r["role"], r["codec"], r["method"], f"{r['plain_bits']:.3f}", f"{r['stored_bits']:.3f}", f"{r['code_entropy_bits']:.3f}",
               f"{r['scale_entropy_bits']:.3f}", f"{r['stored_bits'] - entropy:+.3f}", f"{r['error']:.3g}",
               f"{r['stored_bits'] - r['gaussian_bits']:.3f}", "" if weighted is None else f"{r['weighted_error']:.3g}",
               "" if weighted is None else f"{r['stored_bits'] - weighted:.3f}")


def around_rows(mine):
    """Where a bundle's bytes are outside of its chunks."""
    for codec in ("i2g64", "i4g64", "i8g64"):
        report = mine.pack_report(["--codec", codec])
        padding = report["file_bytes"] - report["table_bytes"] - report["chunk_stored_bytes"]
        bits = [f"{8 * n / report['parameters']:.4f}" for n in (report["table_bytes"], padding)]
        yield (codec, f"{report['file_bytes']:,}", f"{report['chunk_plain_bytes']:,}", f"{report['chunk_stored_bytes']:,}",
               f"{report['table_bytes']:,} ({bits[0]})", f"{padding:,} ({bits[1]})")


def gap(subject, args, cache):
    """The entropy-gap section of one model."""
    mine = ours.Ours(args.bin, args.work, subject, cache)
    program = args.bin.parent / "bench/moepack-entropy-gap"
    report = cache.get(["gap", bench_lib.digest(program), subject.digest, GAP_CODECS],
                       lambda: json.loads(bench_lib.run(program, subject.model, mine.profile, *GAP_CODECS, messages=False)))
    below = {r["role"]: r["below_gaussian_bits"] for r in report["matrices"]}
    text = [f"`python3 tests/bench/quality.py {subject.name} --gap`, bits a weight:",
            table(("role", "codec", "method", "plain", "stored", "entropy of codes", "entropy of scales", "stored - entropy",
                   "error / energy", "stored - Gaussian bound", "weighted error / energy", "stored - weighted bound"), gap_rows(report)),
            "Differential entropy of the weights less a Gaussian's of the same variance (bits a weight): "
            + ", ".join(f"{role} {bits:.3f}" for role, bits in below.items()) + ".",
            "Whole bundles of one codec, bytes (bits a weight in brackets):",
            table(("codec", "file", "chunks, plain", "chunks, stored", "manifest and tables", "padding to 4 KiB"), around_rows(mine))]
    bench_lib.write_section(PAGE.with_name("entropy-gap.md"), f"gap {subject.name}", "\n\n".join(text))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["wren", "second"], help="wren, second")
    parser.add_argument("--gap", action="store_true", help="the entropy-gap table only")
    parser.add_argument("--types", type=lambda s: s.split(","), default=llama.TYPES, help="llama.cpp's types, separated by commas")
    parser.add_argument("--no-domains", action="store_true")
    parser.add_argument("--llama", type=pathlib.Path, help="folder of llama.cpp's programs; built under --work when absent")
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp, whose threads spin: 1 on a busy machine")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/quality")
    parser.add_argument("--option", nargs=argparse.REMAINDER, default=[], help="last: further arguments of every compress")
    args = parser.parse_args()
    cache = bench_lib.Cache(args.work / "cache")
    for name in args.models:
        subject = bench_lib.subjects()[name]
        if args.gap:
            gap(subject, args, cache)
        else:
            measure_subject(subject, args, cache, args.llama or llama.build(args.work))


if __name__ == "__main__":
    main()
