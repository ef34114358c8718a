"""Runs vectors through every entry point: libraries, C interface, programs and the second reader."""
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import second_reader
import writer
from vectors import FOLDER, IDENTITY, OPEN, RECORD, USE, VECTORS, VERIFY, spec_rules

import cases_folder  # noqa: F401  (the cases register themselves)
import cases_golden  # noqa: F401
import cases_program  # noqa: F401
import cases_signed  # noqa: F401
import cases_tables  # noqa: F401
import cases_trust  # noqa: F401
import cases_use  # noqa: F401
import cases_wire  # noqa: F401

BUILD = pathlib.Path(os.environ["MOEPACK_BUILD"])
RULES = spec_rules()


class Replay:
    """A program that answers a line for a line."""

    def __init__(self, path):
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, errors="replace")

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise AssertionError(f"{self.process.args[0]} ended with {self.process.wait()} at: {line}")
        return answer.rstrip("\n")

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def line_of(path, trust_path, trust):
    """What vector_replay is asked about an input."""
    if isinstance(trust, writer.BuildRecord):
        view = [trust.view[name] for name in ("channel", "now", "head_version", "key_epoch", "security_counter")]
        return "\t".join(map(str, [trust.kind, path, trust_path, *view]))
    return f"bundle\t{path}\t{trust_path}" if trust_path else f"folder\t{path}"


class Runner:
    """Writes inputs to a folder of its own and asks the entry points about them."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="moepack-vectors-"))
        self.library = Replay(BUILD / "tests/vector_replay")
        self.c_interface = Replay(BUILD / "tests/c_replay")

    def close(self):
        self.library.close()
        self.c_interface.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, name, vector):
        """Returns (path, trust path, bytes, trust); of a folder its path; of a record (path, current, bytes, build)."""
        path = self.folder / name
        if vector.stage == RECORD:
            build = writer.BuildRecord()
            vector.edit(build)
            current = self.folder / f"{name}.current"
            current.write_bytes(build.make_current())
            return path, current, self.write_bytes(path, build.make()), build
        if vector.stage == FOLDER:
            build = writer.BuildFolder()
            vector.edit(build)
            build.write(path)
            return path, None, None, None
        build = writer.Build()
        vector.edit(build)
        data = build.make()
        return path, self.write_trust(build.trust, name), self.write_bytes(path, data), build.trust

    @staticmethod
    def write_bytes(path, data):
        path.write_bytes(data)
        return data

    def write_trust(self, trust, name="trust"):
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(trust))
        return path

    def ask_library(self, path, trust_path, trust=None):
        """([open, verify, use], message)"""
        *codes, message = self.library.ask(line_of(path, trust_path, trust)).split("\t", 3)
        return [int(code) for code in codes], message

    def ask_c(self, path, trust):
        fields = [trust[name] for name in ("product", "threshold", "key_epoch", "minimum_security_counter")]
        line = " ".join(map(str, [path, *fields, "".join(trust["release_keys"])]))
        return [int(code) for code in self.c_interface.ask(line).split()]


def command(program, *args):
    done = subprocess.run([BUILD / "bin" / program, *map(str, args), "--quiet"], capture_output=True, timeout=300)
    return done.returncode, done.stdout, done.stderr.decode(errors="replace")


def expected(vector):
    """Error codes of open, verify and use."""
    code = RULES[vector.rule] if vector.rule else 0
    used = code if vector.rule == "R-109" else 0
    return {OPEN: [code] * 3, FOLDER: [code] * 3, RECORD: [code] * 3, USE: [0, 0, code], IDENTITY: [0, 0, 0],
            VERIFY: [0, code, used]}[vector.stage]


def second_verdicts(vector, path, data, trust):
    """([codes], rule) of the second reader."""
    if vector.stage == FOLDER:
        verdicts = [second_reader.read_folder(path)] * 3
    elif vector.stage == RECORD:
        verdicts = [second_reader.read_record(trust.kind, data, trust.make_current(), trust.view)] * 3
    else:
        verdicts = second_reader.read_bundle(data, trust)
    return [code for code, _ in verdicts[:3]], next((rule for _, rule in verdicts if rule), None)


__all__ = ["BUILD", "FOLDER", "IDENTITY", "RECORD", "RULES", "Runner", "USE", "VECTORS", "VERIFY", "command", "expected", "line_of",
           "second_verdicts"]
