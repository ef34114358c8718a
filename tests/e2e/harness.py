"""What the end-to-end tests share: running programs, reading their output, building damaged inputs."""
import array
import json
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile
import unittest

BIN = pathlib.Path(os.environ["MOEPACK_BIN"])
SOURCE = pathlib.Path(os.environ["MOEPACK_SOURCE"])
WORK = pathlib.Path(os.environ["MOEPACK_WORK"])
WREN = SOURCE / "examples/wren/model"
TEXT = SOURCE / "examples/wren/text"
GOLDEN = SOURCE / "tests/golden"
TRUST = WORK / "trust.json"
# Bundles that prepare.py makes of wren; "trellis" has one of every width.
CODECS = ("f32", "i8g64", "i4g64", "trellis")
CHECKPOINTS = sorted(path.parent.name for path in GOLDEN.glob("*/golden.json"))


class Outcome:
    def __init__(self, process):
        self.status, self.out, self.err = process.returncode, process.stdout, process.stderr

    def json(self):
        return json.loads(self.out)


def run(*args, expect=0, limit_bytes=None, limit_memory=None, program="moepack"):
    """Runs moepack with the arguments; fails the test when the exit status is not `expect`."""
    command = [str(BIN / program), *map(str, args)]
    if limit_bytes is not None:  # no file may grow beyond it: what a full disk looks like to the program
        command = ["sh", "-c", f'ulimit -f {limit_bytes // 512}; exec "$@"', "sh", *command]
    if limit_memory is not None:  # bytes of address space
        command = ["sh", "-c", f'ulimit -s 8192; ulimit -v {limit_memory // 1024}; exec "$@"', "sh", *command]
    outcome = Outcome(subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=900))
    if outcome.status != expect:
        raise AssertionError(f"{' '.join(command)}\nexit {outcome.status}, expected {expect}\n{outcome.out[-2000:]}\n{outcome.err[-4000:]}")
    return outcome


def floats(path):
    values = array.array("f")
    values.frombytes(pathlib.Path(path).read_bytes())
    return values


def largest_difference(a, b):
    """max |a - b| relative to max |b|."""
    assert len(a) == len(b), (len(a), len(b))
    return max(abs(x - y) for x, y in zip(a, b)) / max(abs(y) for y in b)


def read_safetensors(path):
    raw = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"], raw[8 + length + entry["data_offsets"][0]:8 + length + entry["data_offsets"][1]])
            for name, entry in header.items()}


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            out.write(data)


class Case(unittest.TestCase):
    """A test with a folder of its own that is removed afterwards."""

    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="moepack-e2e-"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def copy_model(self, source, name="model"):
        target = self.dir / name
        shutil.copytree(source, target)
        return target

    def assert_refused(self, *args, status, says, output=None):
        """The command fails with `status`, its message has each of `says`, and nothing is left at `output`."""
        before = set(self.dir.iterdir())
        outcome = run(*args, "--quiet", expect=status)
        for word in says if isinstance(says, (list, tuple)) else [says]:
            self.assertIn(word, outcome.err)
        self.assertEqual(outcome.out, "")
        self.assertLessEqual(len(outcome.err.strip().splitlines()), 3, outcome.err)
        left = set(self.dir.iterdir()) - before
        self.assertEqual(left, set(), "output left behind")
        if output is not None:
            self.assertFalse(pathlib.Path(output).exists())


class DeviceCase(Case):
    """A Case with a device at `root`, provisioned with the anchor a.trust, which trusts the key that signs test bundles."""

    def setUp(self):
        super().setUp()
        run("pack", "keygen", "-o", self.dir / "root.pem")
        run("pack", "anchor", TRUST, "--root", self.dir / "root.pem", "-o", self.dir / "a.trust")
        self.root = self.dir / "device"
        run("device", "provision", self.root, "--trust", self.dir / "a.trust")
