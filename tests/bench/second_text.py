"""The second model's text: documents of Debian packages, split by document into train, calib and eval.

Packages are fetched with apt-get download and unpacked, never installed. None of this text is in wren's.
| domain | package | licence (see its debian/copyright) |
| help | vim-runtime | Vim licence |
| manual | manpages-dev | GPL-2+, BSD, Linux man-pages copyleft, a file each |
| spanish | manpages-es | GPL-3+ |
| perl | perl-modules-5.36 | GPL-1+ or Artistic |
| header | linux-libc-dev | GPL-2 with the syscall note |"""
import gzip
import hashlib
import re
import subprocess
import unicodedata

# Domain: package, glob of its documents under the unpacked package.
DOMAINS = {
    "help": ("vim-runtime", "usr/share/vim/vim*/doc/*.txt"),
    "manual": ("manpages-dev", "usr/share/man/man[0-9]*/*.gz"),
    "spanish": ("manpages-es", "usr/share/man/es/man[0-9]*/*.gz"),
    "perl": ("perl-modules-5.36", "usr/share/perl/5.36.0/**/*.p[ml]"),
    "header": ("linux-libc-dev", "usr/include/**/*.h"),
}
TRAIN_CHARS, CALIB_CHARS, EVAL_CHARS, MIXED_CHARS = 1_400_000, 80_000, 48_000, 24_000
PIECE_CHARS = 12_000  # no document gives more to calib or eval, so that each split holds several


def fetch(package, folder):
    """Unpacks a Debian package into folder/package once; its folder and file name (with the version)."""
    target = folder / package
    if not target.is_dir():
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True)
        deb = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", deb, target], check=True)
    return target, next(folder.glob(f"{package}_*.deb")).name


def plain_roff(text):
    """A manual page without its macros; what the reader of the page sees, roughly."""
    lines = []
    for line in text.split("\n"):
        if line.startswith((".\\\"", "'\\\"", ".TH", ".so")):
            continue
        if line.startswith("."):
            macro, _, rest = line[1:].strip().partition(" ")
            line = ("\n" if macro in ("SH", "SS", "PP", "TP", "IP", "P") else "") + rest.replace('"', "")
        line = re.sub(r"\\f(\([A-Z]{2}|\[[A-Z]*\]|.)|\\&|\\/|\\,|\\%|\\c", "", line)
        lines.append(re.sub(r"\\\(aq", "'", line).replace("\\-", "-").replace("\\e", "\\"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def read_document(path):
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    text = raw.decode("utf-8", "ignore").replace("\r", "").replace("\0", "")
    text = plain_roff(text) if path.suffix == ".gz" else text
    return unicodedata.normalize("NFC", text)


def documents(root, pattern):
    """Every distinct document of at least 400 characters in an order that does not follow names."""
    found = {}
    for path in sorted(root.glob(pattern)):
        if path.is_file() and not path.is_symlink():
            text = read_document(path)
            if len(text) >= 400:
                found.setdefault(hashlib.sha256(text.encode()).hexdigest(), text)
    return [found[key] for key in sorted(found)]


def split(texts):
    """(train, calib, eval) of one domain: whole documents, each in one split only."""
    out = {"eval": [], "calib": [], "train": []}
    room = {"eval": EVAL_CHARS, "calib": CALIB_CHARS, "train": TRAIN_CHARS}
    for text in texts:
        name = next((n for n in out if room[n] > 0), None)
        if name is None:
            break
        piece = text[:min(room[name], len(text) if name == "train" else PIECE_CHARS)]
        out[name].append(piece)
        room[name] -= len(piece)
    return out


def build(folder):
    """Writes folder/text/*.{calib,eval}.txt; returns the training documents and the packages' file names."""
    packages, texts = folder / "packages", folder / "text"
    packages.mkdir(parents=True, exist_ok=True)
    texts.mkdir(exist_ok=True)
    train, versions, mixed = [], [], {"calib": [], "eval": []}
    for domain, (package, pattern) in DOMAINS.items():
        root, deb = fetch(package, packages)
        versions.append(deb)
        parts = split(documents(root, pattern))
        train += parts["train"]
        for name in ("calib", "eval"):
            whole = "".join(parts[name])
            (texts / f"{domain}.{name}.txt").write_text(whole)
            mixed[name].append(whole if name == "calib" else whole[:MIXED_CHARS])
    for name, parts in mixed.items():
        (texts / f"mixed.{name}.txt").write_text("".join(parts))
    return train, versions
