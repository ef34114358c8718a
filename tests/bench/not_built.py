#!/usr/bin/env python3
"""Steps that were tried and not built, with what they would have to beat: fills the sections of docs/results/quality-ablation.md.

    python3 tests/bench/not_built.py [wren] [second] [--parts merging,rounding]

Merging: experts of a layer are clustered by their mean outputs on calibration text (agglomerative, average linkage, Euclidean) and
each cluster becomes the mean of its experts' weights, weighted by how many tokens chose them (HC-SMoE); the router stays. Beside it
whole experts dropped by REAP, and all experts at fewer bits. HQQ: scales from the range, zero points by half-quadratic splitting of
the error under |x|^0.7, beta 10 growing by 1.01, 20 iterations, no data. Rotation: inputs times a Hadamard matrix (blocks of the
largest power of two that divides the columns), undone after rounding. Trellis: two bits a weight choose the next of 1,024 states,
each of which stands for a fixed Gaussian number; the path of least squared error through blocks of 256 columns (Viterbi), a scale a
row, after rotation: what was tried before codec t2 was built. Codebooks: k-means (Lloyd, 30 rounds) of the model's weights over
the largest of their group, one for all matrices, of single weights or of four together; then a scale a group by least squares and
the nearest points again, three times. Scales in 6 bits: of a row's largest, which is f16; codes and scales as for codebooks.

Needs what quality.py needs and python3-numpy (of Debian: /usr/bin/python3)."""
import argparse
import json
import pathlib
import shutil
import struct
import tempfile

import numpy

import bench_lib
import ours
from bench_lib import CTX, ROOT, run, table

PAGE = ROOT / "docs/results/quality-ablation.md"
DTYPES = {"F32": "<f4", "F64": "<f8", "U64": "<u8", "I32": "<i4"}


def read_arrays(path):
    """name -> array of a safetensors file (bf16 widened), other element types left out."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, out = json.loads(data[8:8 + length]), {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            value = (numpy.frombuffer(data[begin:end], "<u2").astype("<u4") << 16).view("<f4")
        elif entry["dtype"] in DTYPES:
            value = numpy.frombuffer(data[begin:end], DTYPES[entry["dtype"]])
        else:
            continue
        out[name] = value.reshape(entry["shape"])
    return out


def write_model(source, folder, tensors):
    """The model of folder `source` with these float32 weights."""
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix == ".json":
            shutil.copy(file, folder)
    header, offset = {}, 0
    for name, value in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [offset, offset + 4 * value.size]}
        offset += 4 * value.size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for value in tensors.values():
            out.write(value.astype("<f4").tobytes())


class Judge:
    """Mean KLD and same top-1 of the reference forward on the held-out text, against the full model."""

    def __init__(self, moepack, subject, scratch):
        self.moepack, self.subject, self.scratch = moepack, subject, scratch
        self.base = self.logits(subject.model, scratch / "base.f32")

    def logits(self, model, out):
        report = json.loads(run(self.moepack, "logits", model, "--data", self.subject.mixed_eval, "--ctx", CTX, "-o", out, "--json", "--quiet",
                                messages=False))
        return numpy.memmap(out, "<f4", "r", shape=(report["rows"], report["vocabulary"]))

    def measure(self, model):
        other, kld, same = self.logits(model, self.scratch / "other.f32"), 0.0, 0
        for begin in range(0, len(self.base), 1024):
            p, q = (x[begin:begin + 1024].astype("f8") for x in (self.base, other))
            p, q = (x - numpy.logaddexp.reduce(x, axis=1, keepdims=True) for x in (p, q))
            kld += float((numpy.exp(p) * (p - q)).sum())
            same += int((p.argmax(1) == q.argmax(1)).sum())
        return kld / len(self.base), same / len(self.base)

    def measure_weights(self, tensors):
        folder = self.scratch / "model"
        shutil.rmtree(folder, ignore_errors=True)
        write_model(self.subject.model, folder, tensors)
        return self.measure(folder)


def clusters(points, count):
    """Agglomerative, average linkage: lists of indices."""
    distance = numpy.linalg.norm(points[:, None] - points[None], axis=2)
    groups = [[i] for i in range(len(points))]
    while len(groups) > count:
        pairs = [(distance[numpy.ix_(a, b)].mean(), i, j) for i, a in enumerate(groups) for j, b in enumerate(groups) if i < j]
        _, i, j = min(pairs)
        groups[i] += groups.pop(j)
    return groups


def merged(tensors, profile, left):
    """The weights with the experts of each layer merged to `left`."""
    out = dict(tensors)
    layer = 0
    while f"table.{layer}.output_mean" in profile:
        tokens = profile[f"table.{layer}.tokens"].sum(axis=0).astype("f8")
        means = profile[f"table.{layer}.output_mean"].reshape(len(tokens), -1).astype("f8")
        for group in clusters(means, left):
            weights = tokens[group] / tokens[group].sum()
            for matrix in ("gate_proj", "up_proj", "down_proj"):
                names = [f"model.layers.{layer}.mlp.experts.{e}.{matrix}.weight" for e in group]
                mean = sum(w * tensors[name] for w, name in zip(weights, names))
                out.update({name: mean for name in names})
        layer += 1
    return out


def hqq(matrix, bits, group=64):
    w = matrix.reshape(-1, group).astype("f8")
    low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
    scale = numpy.maximum((high - low) / (2**bits - 1), 1e-8).astype("f2").astype("f8")
    zero, beta, best, kept = -low / scale, 10.0, numpy.inf, None
    for _ in range(20):
        codes = numpy.clip(numpy.round(w / scale + zero), 0, 2**bits - 1)
        error = w - scale * (codes - zero)
        if numpy.abs(error).mean() >= best:
            break
        best, kept = numpy.abs(error).mean(), scale * (codes - zero)
        size = numpy.maximum(numpy.abs(error), 1e-12)
        shrunk = numpy.sign(error) * numpy.maximum(size - size**-0.3 / beta, 0)
        zero, beta = (codes - (w - shrunk) / scale).mean(1, keepdims=True), beta * 1.01
    return kept.reshape(matrix.shape)


def hadamard(columns):
    """Orthogonal [columns, columns], equal blocks along the diagonal."""
    block, size = numpy.ones((1, 1)), columns & -columns
    while len(block) < size:
        block = numpy.block([[block, block], [block, -block]])
    return numpy.kron(numpy.eye(columns // size), block / numpy.sqrt(size))


def rotated(matrix, method):
    turn = hadamard(matrix.shape[1])
    return method(matrix.astype("f8") @ turn) @ turn.T


def trellis(matrix, state_bits=10, length=256):
    """What a two-bit trellis makes of the rows; sequences of `length` columns (all of a row where that does not divide them)."""
    length = length if matrix.shape[1] % length == 0 else matrix.shape[1]
    states, branches = 1 << state_bits, 4
    points = numpy.random.default_rng(1).standard_normal(states).astype("f4")
    scale = numpy.sqrt((matrix**2).mean(1, keepdims=True))
    sequences = (matrix / numpy.maximum(scale, 1e-12)).astype("f4").reshape(-1, length)
    out = numpy.empty_like(sequences)
    for begin in range(0, len(sequences), 2048):
        part = sequences[begin:begin + 2048]
        cost, choice = numpy.zeros((len(part), states), "f4"), numpy.empty((length, len(part), states // branches), "u1")
        for t in range(length):
            # State s comes from s // 4 + k * states / 4, for k of 0 to 3.
            arriving = cost.reshape(len(part), branches, states // branches)
            choice[t] = arriving.argmin(1)
            cost = numpy.repeat(arriving.min(1), branches, axis=1) + (part[:, t, None] - points)**2
        state, rows = cost.argmin(1), numpy.arange(len(part))
        for t in reversed(range(length)):
            out[begin:begin + 2048][rows, t] = points[state]
            state = state // branches + choice[t][rows, state // branches].astype("i8") * (states // branches)
    fitted = out.reshape(matrix.shape)
    # The scale that fits best once the path is known.
    return fitted * ((matrix * fitted).sum(1, keepdims=True) / (fitted**2).sum(1, keepdims=True))


def nearest(vectors, points):
    """Index of the nearest of points [n, d] for vectors [m, d]."""
    if points.shape[1] == 1:
        order = points[:, 0].argsort()
        line = points[order, 0]
        return order[numpy.searchsorted((line[1:] + line[:-1]) / 2, vectors[:, 0])]
    out = numpy.empty(len(vectors), "i8")
    for begin in range(0, len(vectors), 1 << 16):
        part = vectors[begin:begin + (1 << 16)]
        out[begin:begin + (1 << 16)] = ((points**2).sum(1) - 2 * part @ points.T).argmin(1)
    return out


def by_group(matrix, group):
    """Weights [groups, group] and the largest magnitude of each."""
    w = matrix.astype("f4").reshape(-1, group)
    return w, numpy.maximum(numpy.abs(w).max(1, keepdims=True), 1e-12)


def learn_codebook(tensors, count, dimensions, group):
    random = numpy.random.default_rng(1)
    shares = []
    for name, value in tensors.items():
        if quantizes(name, value) and value.shape[1] % group == 0:
            w, largest = by_group(value, group)
            vectors = (w / largest).reshape(-1, dimensions)
            shares.append(vectors[random.choice(len(vectors), min(len(vectors), 1500), replace=False)])
    sample = numpy.concatenate(shares)
    points = sample[random.choice(len(sample), count, replace=False)]
    for _ in range(30):
        codes = nearest(sample, points)
        sums = numpy.stack([numpy.bincount(codes, sample[:, d], count) for d in range(dimensions)], axis=1)
        seen = numpy.bincount(codes, minlength=count)[:, None]
        points = numpy.where(seen > 0, sums / numpy.maximum(seen, 1), points).astype("f4")
    return points


def with_codebook(matrix, points, group, scale_bits=16):
    """The matrix in points times a scale for each group of columns (all of a row where that does not divide them)."""
    group = group if matrix.shape[1] % group == 0 else matrix.shape[1]
    w, scale = by_group(matrix, group)
    for _ in range(3):
        values = points[nearest((w / scale).reshape(-1, points.shape[1]), points)].reshape(w.shape)
        scale = numpy.maximum((w * values).sum(1, keepdims=True) / numpy.maximum((values**2).sum(1, keepdims=True), 1e-12), 1e-12)
        if scale_bits < 16:
            rows = scale.reshape(matrix.shape[0], -1)
            unit = rows.max(1, keepdims=True).astype("f2").astype("f4") / (2**scale_bits - 1)
            scale = (numpy.maximum(numpy.round(rows / unit), 1) * unit).reshape(-1, 1)
        else:
            scale = numpy.maximum(scale.astype("f2").astype("f4"), 1e-7)
    return (points[nearest((w / scale).reshape(-1, points.shape[1]), points)].reshape(w.shape) * scale).reshape(matrix.shape)


def quantizes(name, value):
    return value.ndim == 2 and value.size >= 4096 and not name.endswith(("mlp.gate.weight", "shared_expert_gate.weight"))


def row(title, bits, result):
    return (title, f"{bits:.2f}", f"{result[0]:.6f}", f"{100 * result[1]:.2f} %")


def merging_rows(judge, mine, tensors, profile):
    experts = len(profile["table.0.reap"])
    count = {name: value.size for name, value in tensors.items()}
    all_weights, in_experts = sum(count.values()), sum(n for name, n in count.items() if ".experts." in name)
    for left in (experts * 7 // 8, experts * 3 // 4, experts // 2):
        bits = 16 * (1 - in_experts / all_weights * (1 - left / experts))
        yield row(f"{left} of {experts} experts: merged", bits, judge.measure_weights(merged(tensors, profile, left)))
        recipe, folder = judge.scratch / "drop.yaml", judge.scratch / f"drop-{left}"
        recipe.write_text(f"version: 1\ndefaults: {{codec: bf16}}\ndrop_experts: {{count: {experts - left}, by: reap}}\n")
        mine.moepack("compress", judge.subject.model, "--profile", mine.profile, "--recipe", recipe, "-o", folder, "--quiet")
        yield row(f"{left} of {experts} experts: the others dropped", bits, judge.measure(folder))
    for bits in (8, 4, 2.5):
        folder = judge.scratch / f"bits-{bits}"
        mine.compress("--target-bpw", bits, "-o", folder)
        yield row("all experts, file and weights in RAM at fewer bits", bits, judge.measure(folder))


def no_data_rows(judge, mine, tensors):
    """Rounding without data, and what data adds."""
    def everywhere(method):
        return judge.measure_weights({name: method(value) if quantizes(name, value) else value for name, value in tensors.items()})
    for bits in (4, 3, 2):
        codec = f"i{bits}mg64"
        mine_free, mine_best = (judge.scratch / f"{codec}-{kind}" for kind in ("free", "best"))
        mine.moepack("compress", judge.subject.model, "--codec", codec, "-o", mine_free, "--quiet")
        mine.moepack("compress", judge.subject.model, "--codec", codec, "--profile", mine.profile, "-o", mine_best, "--quiet")
        yield row(f"{codec}, HQQ, no data", bits + 0.5, everywhere(lambda w, b=bits: hqq(w, b)))
        yield row(f"{codec}, HQQ, inputs rotated, no data", bits + 0.5, everywhere(lambda w, b=bits: rotated(w, lambda r: hqq(r, b))))
        yield row(f"{codec}, scale search, no data", bits + 0.5, judge.measure(mine_free))
        yield row(f"{codec}, GPTQ and weighted search", bits + 0.5, judge.measure(mine_best))
    yield row("trellis of 2 bits, inputs rotated, no data", 2 + 16 / 512, everywhere(lambda w: rotated(w, trellis)))
    grid = (numpy.arange(16, dtype="f4")[:, None] - 8) / 8
    yield row("i4g64 with scales of 6 bits, no data", 4 + 6 / 64 + 16 / 512, everywhere(lambda w: with_codebook(w, grid, 64, 6)))
    for count, dimensions, bits, group in ((16, 1, 4, 64), (8, 1, 3, 64), (256, 4, 2, 128)):
        points = learn_codebook(tensors, count, dimensions, group)
        title = f"codebook of {count} points" + (f" of {dimensions} weights" if dimensions > 1 else "") + f", groups of {group}, no data"
        yield row(title, bits + 16 / group, everywhere(lambda w, p=points, g=group: with_codebook(w, p, g)))
    for codec in ("i4g64", "t4g128", "i3g64", "t3g128", "i2g128", "t2g128"):
        folder = judge.scratch / codec
        mine.moepack("compress", judge.subject.model, "--codec", codec, "-o", folder, "--quiet")
        yield row(f"{codec}, scale search, no data", int(codec[1]) + 16 / int(codec[3:]), judge.measure(folder))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["wren", "second"])
    parser.add_argument("--parts", type=lambda s: s.split(","), default=["merging", "rounding"])
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/quality")
    args = parser.parse_args()
    cache = bench_lib.Cache(args.work / "cache")
    for name in args.models:
        subject = bench_lib.subjects()[name]
        mine = ours.Ours(args.bin, args.work, subject, cache)
        tensors, profile = read_arrays(subject.model / "model.safetensors"), read_arrays(mine.profile)
        with tempfile.TemporaryDirectory(prefix="moepack-bench-") as scratch:
            judge = Judge(args.bin / "moepack", subject, pathlib.Path(scratch))
            parts = {"merging": ("experts", merging_rows, (judge, mine, tensors, profile)),
                     "rounding": ("matrices, routers aside", no_data_rows, (judge, mine, tensors))}
            for part in args.parts:
                what, rows, inputs = parts[part]
                text = table((what, "bits a weight", "mean KLD", "same top-1"), rows(*inputs))
                bench_lib.write_section(PAGE, f"{part} {name}", f"`python3 tests/bench/not_built.py {name} --parts {part}`:\n\n{text}")
                print(text, flush=True)


if __name__ == "__main__":
    main()
