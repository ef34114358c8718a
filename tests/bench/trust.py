#!/usr/bin/env python3
"""What trust costs: the rate of `moepack verify` beside `openssl speed sha256`, the time from a bundle's file to the first token
with and without hashing, and the golden prompts of the embedded model on trial. Fills the marked sections of docs/results/trust.md.

    python3 tests/bench/trust.py --work DIR [--build build/release] [--rounds 5] [--keep]

Programs run in turn, one process each. Wall time tells little on a shared machine, so processor seconds stand beside it; under
`chrt -f 1` both cores belong to the program being timed. DIR takes 4 GB (OLMoE's shape with one layer in bf16, stored raw)
and is removed unless --keep; what it holds already is used. Needs numpy and openssl."""
import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import time

import olmoe_shape
from bench_lib import ROOT, run, table, write_section

PAGE = ROOT / "docs/results/trust.md"
WREN = ROOT / "examples/wren"
SECONDS = 1  # of each openssl measurement
BLOCK = 16384  # bytes it hashes at a time
PROMPT = "785,264,2997,1020,310,42"


class Bench:
    def __init__(self, options):
        self.bin, self.work, self.rounds = options.build / "bin", options.work, options.rounds
        self.first_token = options.build / "bench/first_token"
        self.cores = len(os.sched_getaffinity(0))
        self.work.mkdir(parents=True, exist_ok=True)
        self.key, self.trust = self.work / "key.pem", self.work / "trust.json"
        if not self.trust.exists():
            self.moepack("pack", "keygen", "-o", self.key, "--trust", self.trust, "--force")

    def moepack(self, *args):
        return run(self.bin / "moepack", *args, "--quiet", messages=False)

    def bundle(self, name, model, codec, *pack):
        path = self.work / f"{name}.moeb"
        if not path.exists():
            folder = self.work / f"{name}-dir"
            shutil.rmtree(folder, ignore_errors=True)
            self.moepack("compress", model, "--codec", codec, "-o", folder)
            self.moepack("pack", folder, "--key", self.key, *pack, "-o", path)
        return path

    def large(self):
        model = self.work / "olmoe-1"
        if not (self.work / "large.moeb").exists():
            shutil.rmtree(model, ignore_errors=True)
            olmoe_shape.write_checkpoint(model, 1)
        return self.bundle("large", model, "bf16", "--zstd-level", 0)

    def golden(self, codec):
        return self.bundle(f"golden-{codec}", WREN / "model", codec, "--golden", WREN / "golden.txt", "--golden-steps", 32)


def timed(*command):
    """(wall seconds, seconds in the program, in the kernel) of a process that must succeed."""
    start = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return time.monotonic() - start, usage.ru_utime, usage.ru_stime


def peak_bytes(*command):
    """VmHWM of the process, looked at until it ends; what wait4 tells counts the memory of this script too."""
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)  # gone once the process ends
        if found and f"Name:\t{pathlib.Path(command[0]).name[:15]}" in status:
            peak = int(found.group(1)) * 1024
        time.sleep(0.005)
    assert process.returncode == 0 and peak > 0, command
    return peak


def warm(path):
    """Into the page cache: the disk is not what is measured. In pieces, for a child counts its parent's memory as its own."""
    with open(path, "rb") as file:
        while file.read(1 << 20):
            pass


def openssl_rate(multi):
    """Bytes a second of SHA-256: with one process by its processor time, with several all together by the clock."""
    last = run("openssl", "speed", "-seconds", SECONDS, "-bytes", BLOCK, *(("-multi", multi, "-elapsed") if multi else ()),
               "sha256").split()[-1]
    return float(last.rstrip("k")) * 1000


def write_again(path):
    """A copy, in the page cache as its writer leaves it: in large pieces."""
    copy = path.with_suffix(".copy")
    with open(path, "rb") as source, open(copy, "wb") as target:
        while piece := source.read(1 << 20):
            target.write(piece)
    return copy


def read_again(path):
    """Out of the page cache and into it again by reading: in the pieces that the kernel chooses for reading ahead."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    warm(path)
    return path


def rate(bench):
    rows, kernels, peak = [], [], 0
    median = statistics.median
    for name, prepare in (("just written", write_again), ("read from the disk before", read_again)):
        path = prepare(bench.large())
        size = path.stat().st_size
        walls, processors, kernel, limits, one_core = [], [], [], [], []
        command = bench.bin / "moepack-verify", path, "--trust", bench.trust, "--quiet"
        for _ in range(bench.rounds):
            limits.append(openssl_rate(bench.cores))
            one_core.append(openssl_rate(0))
            wall, user, system = timed(*command)
            walls.append(size / wall)
            processors.append(size / (user + system))
            kernel.append(system / (user + system))
        kernels.append(f"{median(kernel):.0%}")
        rows += [(name, "by the clock", bench.cores, f"{median(limits) / 1e9:.2f}", f"{median(walls) / 1e9:.2f}",
                  f"{median(a / b for a, b in zip(walls, limits)):.2f}"),
                 (name, "by processor seconds", 1, f"{median(one_core) / 1e9:.2f}", f"{median(processors) / 1e9:.2f}",
                  f"{median(a / b for a, b in zip(processors, one_core)):.2f}")]
        peak = max(peak, peak_bytes(*command))
        if path != bench.large():
            path.unlink()
    text = (f"A bundle of {size:,} bytes in the page cache, {bench.cores} threads, medians of {bench.rounds} rounds. Peak memory of "
            f"`moepack verify`: {peak / 2**20:.1f} MiB. Of its processor seconds the kernel takes {kernels[0]} and {kernels[1]}.\n\n")
    write_section(PAGE, "rate", text + table(("file", "rate", "cores", "openssl speed sha256, GB/s", "verify, GB/s", "ratio"), rows))


def first_token(bench):
    rows = []
    for name, path in (("wren, i4g64", bench.golden("i4g64")), ("OLMoE's shape, one layer, bf16", bench.large())):
        warm(path)
        results = {"checked": [], "unchecked": []}
        for _ in range(bench.rounds):
            for mode, list_of in results.items():
                list_of.append(json.loads(run(bench.first_token, path, bench.trust, mode, PROMPT, messages=False)))
        assert len({result["token"] for list_of in results.values() for result in list_of}) == 1
        # Other guests of the host only add: of processor time the least is shown.
        ms = {(mode, key): choose(result[key] for result in list_of)
              for mode, list_of in results.items() for key, choose in (("wall_ms", statistics.median), ("processor_ms", min))}
        rows.append((name, f"{path.stat().st_size:,}",
                     *(f"{ms[mode, key]:.1f}" for key in ("wall_ms", "processor_ms") for mode in results),
                     f"{ms['checked', 'processor_ms'] / ms['unchecked', 'processor_ms']:.2f}"))
    header = ("bundle", "bytes", "checked, wall ms", "unchecked, wall ms", "checked, processor ms", "unchecked, processor ms",
              "ratio of processor ms")
    write_section(PAGE, "first-token", f"{bench.rounds} rounds: medians by the clock, the least processor time.\n\n"
                  + table(header, rows))


def golden(bench):
    """Each bundle on trial on a device of its own."""
    anchor = bench.work / "a.trust"
    bench.moepack("pack", "keygen", "-o", bench.work / "root.pem", "--force")
    bench.moepack("pack", "anchor", bench.trust, "--root", bench.work / "root.pem", "-o", anchor)
    rows = []
    for codec in ("i4g64", "i8g64", "f32"):
        path, root = bench.golden(codec), bench.work / "device"
        shutil.rmtree(root, ignore_errors=True)
        bench.moepack("device", "provision", root, "--trust", anchor)
        bench.moepack("device", "install", root, path)
        shown = json.loads(bench.moepack("inspect", path, "--trust", bench.trust, "--json"))["golden"]
        trial = json.loads(bench.moepack("device", "trial", root, "--json"))
        assert trial["outcome"] == "confirmed"
        rows.append((codec, shown["steps"], trial["steps_differed"],
                     f"{trial['largest_difference'] / shown['tolerance'] / 100:.1e}"))
    write_section(PAGE, "golden", table(("wren", "steps", "that differ", "largest difference of a logit / largest logit"), rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="leave models and bundles in DIR")
    options = parser.parse_args()
    bench = Bench(options)
    for section in (rate, first_token, golden):
        section(bench)
    if not options.keep:
        shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
