"""What the measuring scripts share: models, programs, cached results, sections of a results page."""
import hashlib
import json
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CTX = 256


class Failed(SystemExit):
    """A program that ended with `status`; ends the script with its message unless it is caught."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def run(*command, cwd=None, messages=True):
    """Output of a command, with standard error unless not `messages`; a failure ends the script with what it printed."""
    result = subprocess.run([str(c) for c in command], cwd=cwd, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT if messages else subprocess.PIPE)
    text = result.stdout.decode(errors="replace")
    if result.returncode != 0:
        printed = text + (result.stderr or b"").decode(errors="replace")
        raise Failed(result.returncode, f"{' '.join(str(c) for c in command)}\nended with {result.returncode}\n{printed[-4000:]}")
    return text


def digest(path):
    """SHA-256 of a file, or of all files of a folder with their names."""
    path, sha = pathlib.Path(path), hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            sha.update(file.name.encode() + b"\0" + file.read_bytes())
    return sha.hexdigest()


class Subject:
    """A model under test with its calibration and evaluation texts."""

    def __init__(self, name, folder, domains):
        self.name, self.model, self.text = name, folder / "model", folder / "text"
        self.domains = domains
        self.mixed_calib, self.mixed_eval = self.text / "mixed.calib.txt", self.text / "mixed.eval.txt"
        self._digest = None

    @property
    def digest(self):
        if self._digest is None:
            self._digest = digest(self.model) + digest(self.text)
        return self._digest

    def calib(self, domain):
        return self.text / f"{domain}.calib.txt"

    def eval(self, domain):
        return self.text / f"{domain}.eval.txt"


def subjects():
    return {
        "wren": Subject("wren", ROOT / "examples/wren",
                        ("scripture", "speech", "novel", "python", "german", "french", "admin", "dictionary")),
        "second": Subject("second", ROOT / "build/second", ("help", "manual", "spanish", "perl", "header")),
    }


class Cache:
    """JSON results in a folder, each under the digest of all that it depends on."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key, make):
        """The stored result of `key` (any JSON value), or make()'s, stored."""
        text = json.dumps(key, sort_keys=True)
        path = self.folder / (hashlib.sha256(text.encode()).hexdigest()[:32] + ".json")
        if path.is_file():
            return json.loads(path.read_text())["result"]
        result = make()
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"key": key, "result": result}, indent=1))
        temporary.rename(path)
        return result


def key_profile_and_logits(moepack, work, subject, chunks):
    """In `work`, unless they are there: key.pem and trust.json, SUBJECT.mprof of 32,768 tokens, and the full model's logits of
    the first `chunks` chunks of held-out text, whose file is returned."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "key.pem").exists():
        run(moepack, "pack", "keygen", "-o", work / "key.pem", "--trust", work / "trust.json")
        run(moepack, "calibrate", subject.model, "--data", *(f"{d}={subject.calib(d)}" for d in subject.domains), "--tokens", 32768,
            "-o", work / f"{subject.name}.mprof")
    base = work / f"base-{chunks}.f32"
    if not base.exists():
        run(moepack, "logits", subject.model, "--data", subject.mixed_eval, "--ctx", CTX, "--chunks", chunks, "-o", base)
    return base


def byte_symbols():
    """byte -> the printable character that stands for it in a byte-level vocabulary (GPT-2's)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols, extra = {b: chr(b) for b in printable}, 256
    for byte in range(256):
        if byte not in symbols:
            symbols[byte] = chr(extra)
            extra += 1
    return symbols


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def write_section(page, name, text):
    """Replaces what stands between the marks of section `name` of a Markdown page; a new section goes to its end."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    body = f"{begin}\n{text.strip()}\n{end}"
    old = page.read_text() if page.is_file() else ""
    if begin in old:
        old = re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: body, old, flags=re.S)
    else:
        old = old.rstrip() + ("\n\n" if old else "") + body + "\n"
    page.write_text(old)
