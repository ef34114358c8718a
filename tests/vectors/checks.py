"""Finds the checks of the readers in the source: an `if` that returns an error, or an error behind `if (...) return Ok()`.

A check is known by its message: the vectors whose error has that message are its vectors.
"""
import pathlib
import re

SOURCE = pathlib.Path(__file__).resolve().parents[2]
FILES = ("format/envelope.cc", "format/validate_program.cc", "format/validate_node.cc", "format/validate_moe.cc", "format/codec/codec.cc",
         "format/codec/layout.cc", "format/codec/plain.cc", "format/codec/rans_decode.cc",
         "format/manifest/manifest.cc", "format/manifest/layout.cc", "format/manifest/tables.cc",
         "format/manifest/golden.cc", "format/manifest/unit_check.cc", "format/manifest/wire_check.cc", "format/manifest/wire_io.cc",
         "format/manifest/program_wire.cc",
         "format/manifest/folder_files.cc", "format/manifest/model_folder.cc", "tokenizer/tokenizer_blob.cc",
         "runtime-min/chunk_decoder.cc", "verify/envelope_reader.cc", "verify/verified_bundle.cc", "verify/verify_all.cc",
         "verify/trust_anchor.cc", "format/manifest/trust_records.cc")
MAKES_ERROR = re.compile(r"\b(Malformed|OverLimit|Bad|Broken|Damaged|DamagedFile|ChunkError|NotFinite|WrongShape|BadPadding|"
                         r"Status\(ErrorCode)\b")
LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')
FORMAT = re.compile(r"%(?:[-+ 0#]*\d*(?:ll|z|t)?[a-zA-Z])")

# Checks that no file can reach, and why. Looked for in "FILE: MESSAGE".
UNREACHABLE = {
    "%zu bytes, its head has": "the caller reads a whole envelope",
    "values, at most": "R-209 comes first", "tensors, at most": "R-209 comes first",
    "expert tables, at most": "R-209 comes first",
    "more than %u inputs": "R-209 comes first", "unknown role": "R-205 comes first",
    "unknown norm kind": "R-205 comes first",
    "unknown activation": "R-205 comes first", "unknown score function": "R-205 comes first",
    "unknown group rule": "R-205 comes first",
    "unknown operation": "R-205 comes first", "unknown element type": "R-205 comes first",
    "matrix shape": "R-410 comes first", "matrix size overflows": "R-501 comes first",
    "has %llu plain bytes, expected": "R-415 comes first", "quantized matrix": "a writer's check",
    "DecodePlain": "a caller's fault", "a unit is joined": "a caller's fault",
    "chunk sizes overflow": "R-416 comes first", "layout.cc: expert table %u says": "verified_bundle.cc has looked",
    "larger than 2^64": "R-418 comes first", "not a message": "R-2xx come first",
    "not in canonical form": "R-2xx come first",
    "unit %zu of %zu": "a caller's fault", "sizes overflow": "numbers of a report",
    "no such file or folder": "not a file",
    "not a block file": "R-803 comes first", "block file version": "R-803 comes first",
    "does not fit the file": "R-803 comes first",
    "shorter than a block file": "R-803 comes first", "became shorter": "a file that changes",
    "not a named file": "a caller's fault",
    "plain bytes, at most": "R-403 comes first", "raw chunk whose stored": "R-405 comes first",
    "cannot allocate": "no memory",
    "longer than any manifest": "R-004 comes first", "nobody has signed": "for inspect, which trusts nobody",
    "stored bytes, at most": "R-405 and R-406 come first",
    "verify_all.cc: %s: %llu bytes, the signed length": "a file that changes",
}


class Check:
    def __init__(self, file, begin, end, replacement, statement):
        self.file, self.begin, self.end, self.replacement = file, begin, end, replacement
        literals = LITERAL.findall(statement) or [""]
        self.text = max(literals, key=len)
        # The text between what is formatted into it.
        pieces = [re.escape(piece) for piece in FORMAT.split(self.text.encode().decode("unicode_escape"))]
        begins = self.text == literals[0] and self.text[:1] not in ":' "
        self.pattern = re.compile(("(?:^|: )" if begins else "") + ".*".join(pieces))
        self.line = None

    def __str__(self):
        return f"{self.file}:{self.line} \"{self.text}\""

    def delete(self, source):
        return source[:self.begin] + self.replacement + source[self.end:]

    def known_by(self, message):
        return self.pattern.search(message) is not None


def closing(source, at):
    """Index behind the bracket that closes the one at `at`."""
    depth = 0
    for index in range(at, len(source)):
        depth += {"(": 1, ")": -1}.get(source[index], 0)
        if depth == 0:
            return index + 1
    raise ValueError("unbalanced")


def checks_of(root, file):
    source = (root / file).read_text()
    for match in re.finditer(r"\bif \(", source):
        condition = slice(match.end() - 1, closing(source, match.end() - 1))
        rest = re.compile(r"\s*\{?\s*return ([^;]*);\s*\}?\s*(?:return ([^;]*);)?").match(source, condition.stop)
        if rest is None:
            continue
        first, second = rest.group(1), rest.group(2) or ""
        if MAKES_ERROR.search(first) and LITERAL.search(first) and "!reader" not in source[condition]:
            check = Check(file, condition.start, condition.stop, f"({source[condition]} && false)", first)
        elif first.strip() == "Status::Ok()" and MAKES_ERROR.search(second) and LITERAL.search(second):
            check = Check(file, condition.start, condition.stop, f"({source[condition]} || true)", second)
        else:
            continue
        check.line = source.count("\n", 0, match.start()) + 1
        yield check


def all_checks(root=SOURCE):
    return [check for file in FILES for check in checks_of(root, file)]


def vectors_of(check, checks, messages):
    """Names in {name: message} whose error is this check's: of all checks that could say it, none has a longer text."""
    def is_own(message):
        return check.known_by(message) and all(len(c.text) <= len(check.text) for c in checks if c.known_by(message))
    return {name for name, message in messages.items() if is_own(message)}


def is_reachable(check):
    return not any(text in f"{check.file}: {check.text}" for text in UNREACHABLE)
