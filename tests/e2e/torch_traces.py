#!/usr/bin/env python3
"""Mixtures whose pairs are sorted by expert, traced by torch.onnx: what moepack reads must compute what torch computes.

    MOEPACK_BIN=build/release/bin python3 tests/e2e/torch_traces.py

Needs torch (python3-torch of Debian: /usr/bin/python3). Each row of CASES is one way to find rows, count pairs, bound runs and
bring outputs back."""
import os
import pathlib
import subprocess
import tempfile
import warnings

import numpy
import torch

EXPERTS, CHOSEN, WIDTH = 5, 2, 16
CASES = (("argsort", "scatter", "sub", "put", False), ("sort", "hot", "offsets", "places", True),
         ("range", "both", "before", "put", True), ("argsort", "compare", "chain", "scatter", False),
         ("sort", "each", "chain", "places", True), ("range", "by row", "offsets", "put", False))


class Expert(torch.nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.gate, self.up = torch.nn.Linear(WIDTH, 4, bias=bias), torch.nn.Linear(WIDTH, 4, bias=bias)
        self.down = torch.nn.Linear(4, WIDTH, bias=bias)

    def forward(self, x):
        return self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))


class Classifier(torch.nn.Module):
    def __init__(self, rows, count, runs, back, bias):
        super().__init__()
        self.rows, self.count, self.runs, self.back = rows, count, runs, back
        self.router, self.head = torch.nn.Linear(WIDTH, EXPERTS, bias=False), torch.nn.Linear(WIDTH, 7)
        self.experts = torch.nn.ModuleList(Expert(bias) for _ in range(EXPERTS))

    def counts(self, ids, flat):
        one_hot = torch.nn.functional.one_hot
        return {"scatter": lambda: ids.new_zeros((ids.shape[0], EXPERTS)).scatter(1, ids, 1).sum(0),
                "hot": lambda: one_hot(flat, EXPERTS).sum(0),
                "both": lambda: one_hot(ids, EXPERTS).sum((0, 1)),
                "by row": lambda: one_hot(ids, EXPERTS).sum(1).sum(0),
                "compare": lambda: (flat.unsqueeze(-1) == torch.arange(EXPERTS)).sum(0),
                "each": lambda: torch.stack([(flat == e).sum() for e in range(EXPERTS)])}[self.count]()

    def bounds(self, counts):
        ends = counts.cumsum(0)
        if self.runs == "sub":
            return [((ends - counts)[e], ends[e]) for e in range(EXPERTS)]
        if self.runs == "offsets":
            all_bounds = torch.cat([torch.zeros(1, dtype=torch.long), ends])
            return [(all_bounds[:-1][e], all_bounds[1:][e]) for e in range(EXPERTS)]
        if self.runs == "before":
            return [(ends[e - 1] if e else 0, ends[e]) for e in range(EXPERTS)]
        pairs, begin = [], 0
        for e in range(EXPERTS):
            pairs.append((begin, begin + counts[e]))
            begin = pairs[-1][1]
        return pairs

    def mixture(self, x):
        weights, ids = torch.topk(torch.softmax(self.router(x), -1), CHOSEN)
        weights = weights / weights.sum(-1, keepdim=True)
        flat = ids.view(-1)
        order = torch.sort(flat)[1] if self.rows == "sort" else flat.argsort()
        rows = order // CHOSEN
        if self.rows == "range":
            rows = torch.arange(x.shape[0]).unsqueeze(-1).expand(-1, CHOSEN).reshape(-1)[order]
        taken = x[rows]
        runs = self.bounds(self.counts(ids, flat))
        out = torch.cat([expert(taken[begin:end]) for expert, (begin, end) in zip(self.experts, runs)])
        if self.back == "places":
            return (out[order.argsort()].view(ids.shape[0], CHOSEN, -1) * weights.unsqueeze(-1)).sum(1)
        if self.back == "scatter":
            out = out * weights.view(-1)[order].unsqueeze(-1)
            return torch.zeros_like(out).scatter(0, order.unsqueeze(-1).expand_as(out), out).view(*ids.shape, -1).sum(1)
        pairs = torch.empty_like(out)
        pairs[order] = out
        return (pairs.view(*ids.shape, -1) * weights.unsqueeze(-1)).sum(1)

    def forward(self, x):
        return self.head(x + self.mixture(x))


def main():
    warnings.filterwarnings("ignore")
    torch.manual_seed(3)
    moepack = pathlib.Path(os.environ["MOEPACK_BIN"]) / "moepack"
    with tempfile.TemporaryDirectory() as folder:
        graph, inputs, out = (pathlib.Path(folder) / name for name in ("t.onnx", "x.npy", "l.f32"))
        for case in CASES:
            model, x = Classifier(*case), torch.randn(37, WIDTH)
            torch.onnx.export(model, x[:6], str(graph), opset_version=16, input_names=["x"], output_names=["y"],
                              dynamic_axes={"x": {0: "rows"}, "y": {0: "rows"}})
            numpy.save(inputs, x.numpy())
            subprocess.run([moepack, "logits", graph, "--inputs", inputs, "-o", out, "--quiet"], check=True)
            want = model(x).detach().numpy()
            off = numpy.abs(numpy.fromfile(out, "<f4").reshape(want.shape) - want).max() / numpy.abs(want).max()
            print(f"{', '.join(str(part) for part in case)}: largest difference {off:.1e} of the largest logit")
            assert off < 1e-5, case


if __name__ == "__main__":
    main()
