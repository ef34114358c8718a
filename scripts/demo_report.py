#!/usr/bin/env python3
"""Prints demo.sh's table and the two generated texts, full and compressed side by side. usage: demo_report.py OUT_DIR"""
import json
import pathlib
import subprocess
import sys
import textwrap

NAMES = ("8bit", "q4-size", "q3-size")
PROMPTS = ("In the beginning God created the heaven and", "def __init__(self, name):\n")
WIDTH = 46


def load(out, name, kind):
    return json.loads((out / f"{name}.{kind}.json").read_text())


def table(out):
    header = ("bundle", "bytes", "bits/weight", "ppl full", "ppl", "mean KLD", "same top-1", "tokens/s", "peak RSS", "verified")
    rows = [header]
    for name in NAMES:
        inspect, evaluation, bench, verify = (load(out, name, kind) for kind in ("inspect", "eval", "bench", "verify"))
        rows.append((name, str(inspect["bytes_stored"]), f"{inspect['bits_per_weight']:.2f}", f"{evaluation['ppl_base']:.3f}",
                     f"{evaluation['ppl']:.3f}", f"{evaluation['kld_mean']:.6f}", f"{100 * evaluation['same_top1']:.2f} %",
                     f"{bench['decode_tokens_per_s']:.0f}", f"{bench['peak_rss_bytes'] / 2**20:.0f} MiB",
                     "yes" if verify["verified"] else "NO"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths)))


def generate(out, name, prompt):
    result = subprocess.run(["moepack", "run", "generate", out / f"wren-{name}.moeb", "--trust", out / "trust.json", "--prompt", prompt,
                             "-n", "60", "--json"], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)["text"]


def side_by_side(left, right):
    columns = [[line for part in text.splitlines() or [""] for line in textwrap.wrap(part, WIDTH) or [""]] for text in (left, right)]
    for i in range(max(map(len, columns))):
        cells = [column[i] if i < len(column) else "" for column in columns]
        print("  " + cells[0].ljust(WIDTH) + " | " + cells[1])


def main():
    out = pathlib.Path(sys.argv[1])
    table(out)
    for prompt in PROMPTS:
        print(f"\nPrompt: {prompt!r}\n  {'full (bf16)'.ljust(WIDTH)} | {NAMES[1]}")
        side_by_side(generate(out, "full", prompt), generate(out, NAMES[1], prompt))


if __name__ == "__main__":
    main()
