#!/usr/bin/env python3
"""How near to Belady's MIN eviction comes when it is trained on all that the tokens so far tell; fills a section of docs/results/runtime.md.
Needs a release build and numpy, and the profiles of tests/bench/expert_cache.py, which are made when they are not there:

    python3 tests/bench/learned_eviction.py --work DIR

For each expert a least-squares fit on 32,768 tokens of calibration text foretells GAMMA^(tokens until its next use) from its uses so far,
decayed with several half-lives, and from tables of how often it is used so many tokens after the running token and the one before. Who is
foretold least leaves. Compared on 16,384 tokens of held-out text, a quarter of the experts in memory."""
import argparse
import pathlib

import numpy

import bench_lib
import expert_cache
import foretelling
from bench_lib import table

HALF_LIVES, LAGS, GAMMA, SHARE = (2, 8, 32, 128), 4, 0.6, 0.25
PRIOR = 8  # tokens that a table's row counts of the average


def used(traces, experts):
    """[tokens, layers * experts]: 1 where the router chose the expert."""
    out = numpy.zeros((len(traces.tokens), len(traces.chosen) * experts), numpy.float32)
    for layer, chosen in enumerate(traces.chosen):
        for column in chosen.T:
            out[numpy.arange(len(out)), layer * experts + column] = 1
    return out


def count_tables(tokens, uses, vocabulary):
    """For each lag: [vocabulary, experts], how often an expert is used that many tokens after a token."""
    out = []
    for lag in range(LAGS):
        sums, seen = numpy.zeros((vocabulary, uses.shape[1]), numpy.float32), numpy.zeros((vocabulary, 1), numpy.float32)
        numpy.add.at(sums, tokens[:len(tokens) - lag], uses[lag:])
        numpy.add.at(seen, tokens[:len(tokens) - lag], 1)
        out.append((sums + PRIOR * uses.mean(axis=0)) / (seen + PRIOR))
    return out


def features(tokens, uses, tables, routed):
    """[tokens, experts, features] once the layers of `routed` (bool by expert) have chosen: their uses count already."""
    out = []
    for half_life in HALF_LIVES:
        decay, sums, rows = 0.5 ** (1 / half_life), numpy.zeros(uses.shape[1], numpy.float32), numpy.empty_like(uses)
        for t, use in enumerate(uses):
            rows[t] = decay * sums + (1 - decay) * use * routed
            sums = decay * sums + (1 - decay) * use
        out.append(rows)
    before = numpy.concatenate([tokens[:1], tokens[:-1]])
    out += [tables[lag][tokens] * (lag > 0 or ~routed) for lag in range(LAGS)]
    out += [tables[lag][before] for lag in range(2, LAGS)]
    return numpy.stack([*out, numpy.ones_like(uses)], axis=-1)


def nearness(uses, routed, gamma):
    """[tokens, experts]: gamma^(tokens until the next use), this token's too where the layer has not chosen yet."""
    out, later = numpy.empty_like(uses), numpy.zeros(uses.shape[1], numpy.float32)
    for t in reversed(range(len(uses))):
        here = numpy.where(uses[t] > 0, 1, gamma * later)
        out[t] = numpy.where(routed, gamma * later, here)
        later = here
    return out


def fit(tokens, uses, vocabulary, routed):
    """Weights of the features for experts whose layer has chosen, and for the others. Tables are of the other half of the text."""
    half = len(tokens) // 2
    halves = [(tokens[:half], uses[:half]), (tokens[half:], uses[half:])]
    out = {}
    for group in (routed, ~routed):
        if not group.any():
            continue
        inner = outer = 0
        for (text, use), other in zip(halves, reversed(halves)):
            x = features(text, use, count_tables(*other, vocabulary), routed)[:, group].reshape(-1, len(HALF_LIVES) + 2 * LAGS - 1)
            inner, outer = inner + x.T @ x, outer + x.T @ nearness(use, routed, GAMMA)[:, group].reshape(-1)
        out[group.tobytes()] = numpy.linalg.solve(inner + 1e-3 * numpy.eye(len(outer)), outer)
    return out


def demand_hits(values, uses, experts, room):
    """values[layer][token, expert]: who has the least leaves."""
    resident, hits = numpy.zeros(uses.shape[1], bool), 0
    for t in range(len(uses)):
        for layer, value in enumerate(values):
            needed = layer * experts + numpy.nonzero(uses[t, layer * experts:(layer + 1) * experts])[0]
            hits += resident[needed].sum()
            resident[needed] = True
            over = resident.sum() - room
            if over > 0:
                rank = numpy.where(resident, value[t], numpy.inf)
                rank[needed] = numpy.inf
                resident[numpy.argpartition(rank, over - 1)[:over]] = False
    return hits / uses.sum()


def rows(calibration, evaluation):
    experts = 1 + max(int(c.max()) for c in calibration.chosen)
    vocabulary = 1 + max(calibration.tokens.max(), evaluation.tokens.max())
    known, uses = used(calibration, experts), used(evaluation, experts)
    tables, room = count_tables(calibration.tokens, known, vocabulary), round(SHARE * uses.shape[1])
    learned, future = [], []
    for layer in range(len(evaluation.chosen)):
        routed = numpy.arange(uses.shape[1]) < (layer + 1) * experts
        x, value = features(evaluation.tokens, uses, tables, routed), numpy.empty_like(uses)
        for group, weights in fit(calibration.tokens, known, vocabulary, routed).items():
            group = numpy.frombuffer(group, bool)
            value[:, group] = x[:, group] @ weights
        learned.append(value)
        future.append(nearness(uses, routed, 0.9))
    best = demand_hits(future, uses, experts, room)
    for name, hits in (("trained", demand_hits(learned, uses, experts, room)), ("Belady's", best)):
        yield name, f"{100 * hits:.1f} %", f"{hits / best:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    options = parser.parse_args()
    calibration, evaluation = (foretelling.Traces(p) for p in expert_cache.profiles_of(options.work, bench_lib.subjects()["wren"]))
    text = table(("eviction", "demand hits", "of Belady's"), rows(calibration, evaluation))
    print(text)
    bench_lib.write_section(expert_cache.OUT, "learned eviction", text)


if __name__ == "__main__":
    main()
