"""The list of vectors: each breaks one rule of a valid file only, and is signed again where the signature would hide it.

A vector is written when it is run: nothing but this code is stored. Cases are in cases_*.py.
"""
import pathlib
import re

SPEC = pathlib.Path(__file__).resolve().parents[2] / "format/SPEC.md"
# When a vector is found: opening, checking the whole file, using it, keeping its chunks by identity. Or what it is.
OPEN, VERIFY, USE, IDENTITY, FOLDER, RECORD = "open", "verify", "use", "identity", "folder", "record"

# Rows of the table of malicious input; each is an attack that vectors carry out.
ATTACKS = ("path traversal", "decompression bomb", "integer overflow", "type or shape lies", "overlap, holes, polyglot",
           "duplicate names",
           "signature stripping", "algorithm confusion", "threshold cheats", "key confusion", "unsigned fields",
           "truncation",
           "verify/use race", "rollback, mix-and-match", "fast-forward", "endless download", "protobuf malleability",
           "crash before the signature check", "verified by mistake")


class Vector:
    def __init__(self, name, rule, edit, stage, attack):
        self.name, self.rule, self.edit, self.stage, self.attack = name, rule, edit, stage, attack


VECTORS = {}


def add(rule, name, edit, stage=OPEN, attack=None):
    """`edit` changes a writer.Build (BuildFolder, BuildRecord in the stages of these). rule None: must be accepted."""
    assert name not in VECTORS, name
    assert attack is None or attack in ATTACKS, attack
    VECTORS[name] = Vector(name, rule, edit, stage, attack)


def spec_rules():
    """{rule: error code} as SPEC.md has them."""
    text = SPEC.read_text()
    rules = {rule: int(code) for rule, code in re.findall(r"^\| (R-\d+) \|.*?\| (\d{3}) \w+ \| \d \|$", text, re.M)}
    rules.update({rule: 309 for rule in re.findall(r"^\| (R-7\d\d) \|", text, re.M)})
    assert len(rules) == len(re.findall(r"^\| R-\d+ \|", text, re.M))
    return rules


def put(path, value):
    """An edit that sets one entry of the model: put("program.nodes.5.rotary.heads", 3)."""
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]

    def edit(build):
        target = build.model
        for step in steps:
            target = target[step]
        target[last] = value
    return edit


def both(*edits):
    def edit(build):
        for step in edits:
            step(build)
    return edit


def hook(attribute):
    """Makes of a change the edit that sets build.ATTRIBUTE to it: the writer calls it where it makes that part."""
    def of(change):
        def edit(build):
            setattr(build, attribute, change)
        return edit
    return of
