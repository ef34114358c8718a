#!/usr/bin/env python3
"""How many of a router's choices can be named before it runs, on wren's routing traces; fills a section of docs/results/runtime.md.
Needs a release build and numpy, and the profiles of tests/bench/expert_cache.py, which are made when they are not there:

    python3 tests/bench/foretelling.py --work DIR

Tables are counted on 32,768 tokens of calibration text; every share is of 16,384 tokens of held-out text. Each names as many experts as
the router chooses."""
import argparse
import json
import pathlib
import struct

import numpy

import bench_lib
import expert_cache
from bench_lib import table

TYPES = {"U16": "<u2", "I32": "<i4", "U64": "<u8", "U32": "<u4", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}


def tensors(path, wanted):
    """The tensors of a safetensors file whose names `wanted` accepts; bf16 as float32."""
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header, out = json.loads(file.read(size)), {}
        for name, entry in header.items():
            if name == "__metadata__" or not wanted(name):
                continue
            begin, end = entry["data_offsets"]
            file.seek(8 + size + begin)
            values = numpy.frombuffer(file.read(end - begin), TYPES[entry["dtype"]])
            if entry["dtype"] == "BF16":
                values = (values.astype(numpy.uint32) << 16).view(numpy.float32)
            out[name] = values.reshape(entry["shape"])
    return out


class Traces:
    def __init__(self, profile):
        found = tensors(profile, lambda name: name in ("tokens", "sequence_start") or name.endswith(".trace"))
        self.tokens = found["tokens"].astype(int)
        self.chosen = [found[f"table.{t}.trace"].astype(int) for t in range(sum(name.endswith(".trace") for name in found))]
        self.starts = numpy.zeros(len(self.tokens), bool)
        self.starts[found["sequence_start"].astype(int)] = True

    def before(self, values):
        """Values of the token before, -1 at the start of a sequence."""
        out = numpy.roll(values, 1, axis=0)
        out[self.starts] = -1
        return out


def counted(contexts, chosen, experts, held_out):
    """The experts most often chosen after each context on one text, for the contexts of another, and whether the context is known."""
    k = chosen.shape[1]
    kinds, index = numpy.unique(contexts, return_inverse=True)
    counts = numpy.zeros((len(kinds), experts))
    for i in range(k):
        numpy.add.at(counts, (index, chosen[:, i]), 1)
    everywhere = counts.sum(axis=0)
    best = numpy.argsort(-(counts + everywhere / (1 + everywhere.sum())), axis=1, kind="stable")[:, :k]
    at = numpy.minimum(numpy.searchsorted(kinds, held_out), len(kinds) - 1)
    return best[at], (kinds[at] == held_out)[:, None]


def early_router(model, layer, tokens, k):
    """What the router of a layer says of a token's embedding alone."""
    at = f"model.layers.{layer}."
    names = {"model.embed_tokens.weight", at + "post_attention_layernorm.weight", at + "mlp.gate.weight"}
    found = tensors(model / "model.safetensors", names.__contains__)
    x = found["model.embed_tokens.weight"][tokens]
    x = x / numpy.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-6) * found[at + "post_attention_layernorm.weight"]
    return numpy.argsort(-(x @ found[at + "mlp.gate.weight"].T), axis=1, kind="stable")[:, :k]


def named(guess, chosen):
    return numpy.mean([[choice in row for choice in true] for row, true in zip(guess.tolist(), chosen.tolist())])


def rows(model, calibration, evaluation):
    experts = 1 + max(int(c.max()) for c in calibration.chosen)
    ways = {"the token (table)": [], "the two last tokens (table)": [], "the token before's experts": [], "the embedding (early router)": [],
            "the token and the layer before (table)": []}
    for layer, chosen in enumerate(evaluation.chosen):
        k, known = chosen.shape[1], calibration.chosen[layer]

        def by(context, otherwise):
            guess, seen = counted(context(calibration), known, experts, context(evaluation))
            return numpy.where(seen, guess, otherwise)

        def pair(t):
            return t.tokens * 65536 + t.before(t.tokens)

        def token_and_layer(t):
            return t.tokens * experts * experts + t.chosen[layer - 1][:, :2] @ (1, experts)
        popular = numpy.argsort(-numpy.bincount(known.ravel(), minlength=experts), kind="stable")[:k]
        token = by(lambda t: t.tokens, popular)
        ways["the token (table)"].append(token)
        ways["the two last tokens (table)"].append(by(pair, token))
        ways["the token before's experts"].append(evaluation.before(chosen))
        ways["the embedding (early router)"].append(early_router(model, layer, evaluation.tokens, k))
        ways["the token and the layer before (table)"].append(by(token_and_layer, token) if layer > 0 else None)
    for name, guesses in ways.items():
        yield (name, *("" if g is None else f"{100 * named(g, c):.0f} %" for g, c in zip(guesses, evaluation.chosen)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    options = parser.parse_args()
    wren = bench_lib.subjects()["wren"]
    calibration, evaluation = (Traces(p) for p in expert_cache.profiles_of(options.work, wren))
    text = table(("from", *(f"layer {i}" for i in range(len(evaluation.chosen)))), rows(wren.model, calibration, evaluation))
    print(text)
    bench_lib.write_section(expert_cache.OUT, "foretelling", text)


if __name__ == "__main__":
    main()
