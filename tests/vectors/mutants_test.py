"""The two readers against each other on mutants: bytes of a file, or of a message that is digested and signed again, are
changed at random. Both must accept, or both refuse with the same exit status. MOEPACK_MUTANTS sets how many (1000)."""
import collections
import os
import random
import unittest

import cases_golden
import second_reader
import writer
from harness import Runner

COUNT = int(os.environ.get("MOEPACK_MUTANTS", "1000"))
SEED = int(os.environ.get("MOEPACK_SEED", "1"))
BLOBS = [(writer.PROGRAM, 0), (writer.PROGRAM, 0), (writer.TOKENIZER, 0), (writer.DENSE, 0), (writer.DENSE, 0),
         (writer.EXPERTS, 0),
         (writer.EXPERTS, 1), (writer.HOT, 0), (writer.GOLDEN, 0)]
EDGES = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF)


def mutate(rng, data):
    """One to three changes: a bit, a byte, a run removed, repeated or inserted."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(out)) if out else 0
        run = rng.choice((1, 1, 2, 4, 34))
        action = rng.randrange(6)
        if action == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif action == 1 and out:
            out[at] = rng.choice(EDGES)
        elif action == 2:
            del out[at:at + run]
        elif action == 3:
            out[at:at] = out[at:at + run]
        elif action == 4:
            out[at:at] = bytes(rng.choice(EDGES) for _ in range(run))
        elif out:
            out[at] = (out[at] + rng.choice((-1, 1))) & 0xFF
    return bytes(out)


def numbers(value, path=()):
    """Paths of all numbers of a model part."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(item, (int, float)):
            yield path + (key,)
        else:
            yield from numbers(item, path + (key,))


def change_number(rng, part):
    """One number becomes a neighbour, a power of two, or another number of the same part."""
    paths = list(numbers(part))
    *steps, last = rng.choice(paths)
    target = part
    for step in steps:
        target = target[step]
    if isinstance(target[last], float):
        target[last] = rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
        return
    largest = 2**32 - 1 if last != "bytes" else 2**64 - 1
    target[last] = min(largest, max(0, rng.choice((target[last] + rng.choice((-1, 1)), 2**rng.randrange(32),
                                                   rng.randrange(40)))))


def make_mutant(rng):
    build = writer.Build()
    cases_golden.golden()(build)
    kind = rng.choice(("file", "envelope", "manifest", "blob", "blob", "blob", "number", "number", "chunk"))
    if kind == "file":
        return kind, build.trust, mutate(rng, build.make())
    if kind == "envelope":
        def change(envelope):
            envelope[rng.randrange(1568)] ^= 1 << rng.randrange(8)
        build.envelope = change
    elif kind == "manifest":
        seed = rng.random()
        build.manifest_bytes = lambda data: mutate(random.Random(seed), data)
    elif kind == "blob":
        seed, which = rng.random(), rng.choice(BLOBS)
        build.blob[which] = lambda data: mutate(random.Random(seed), data)
    elif kind == "number":
        change_number(rng, build.model[rng.choice(("program", "program", "dense", "experts", "hot", "golden"))])
    else:
        unit = rng.choice(list(build.units()))
        chunk = rng.choice(unit["chunks"])
        chunk["stored"] = mutate(rng, chunk["stored"])[:chunk["stored_bytes"]].ljust(chunk["stored_bytes"], b"\0")
        chunk["stored_digest"] = writer.sha256(chunk["stored"])
        if not chunk["encoding"]:
            chunk["plain_digest"] = chunk["stored_digest"]
    return kind, build.trust, build.make()


class Mutants(unittest.TestCase):
    def test_both_readers_say_the_same(self):
        runner = Runner()
        self.addCleanup(runner.close)
        rng = random.Random(SEED)
        verdicts, other_code = collections.Counter(), 0
        path = runner.folder / "mutant.moeb"
        trust_path = runner.write_trust(writer.TRUST)
        for number in range(COUNT):
            kind, trust, data = make_mutant(rng)
            path.write_bytes(data)
            codes, message = runner.ask_library(path, trust_path)
            second = second_reader.read_bundle(data, trust)[:3]
            c_codes = runner.ask_c(path, trust)
            said = f"mutant {number} ({kind}, seed {SEED}): library {codes} ({message}), second reader {second}"
            self.assertEqual([code // 100 for code in codes], [code // 100 for code, _ in second], said)
            self.assertEqual(c_codes, codes[:2], said)
            other_code += codes != [code for code, _ in second]
            verdicts[kind, "accepted" if not any(codes) else f"exit {max(codes) // 100}"] += 1
        summary = ", ".join(f"{kind} {verdict} {count}" for (kind, verdict), count in sorted(verdicts.items()))
        print(f"{COUNT} mutants, no disagreement, {other_code} refused by another rule of the same stage: {summary}")


if __name__ == "__main__":
    unittest.main()
