#!/usr/bin/env python3
"""Counts where our tokenizer and @huggingface/tokenizers disagree. Optional: needs node and that package.

    npm install --prefix OUTSIDE --ignore-scripts @huggingface/tokenizers@0.2.0
    NODE_PATH=OUTSIDE/node_modules python3 tests/e2e/tokenizer_check.py build/release

Vocabularies are trained here, on text that is not cut, so that tokens reach over every border that a pre-tokenizer could
draw: a piece cut elsewhere gives other tokens. Left out of the texts are U+0085, U+FEFF and U+017F: JavaScript's \\s and
case folding differ there from those of the Rust library, which ours follow.
"""
import collections
import json
import random
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
from bench_lib import byte_symbols  # noqa: E402

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent.parent
TEXT = SOURCE / "examples/wren/text"
MERGES = 1500
LEFT_OUT = {0x85, 0xFEFF, 0x17F}

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES)
DEEPSEEK = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            r'''[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|'''
            + SPACES]


def split(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


KINDS = {
    "gpt2": byte_level(True),
    "qwen2": sequence(split(QWEN2), byte_level(False)),
    "llama3": sequence(split(LLAMA3), byte_level(False)),
    "o200k": sequence(split(O200K), byte_level(False)),
    "deepseek_v3": sequence(*map(split, DEEPSEEK), byte_level(False)),
    "granite": sequence({"type": "Digits", "individual_digits": True}, byte_level(True)),
}


def train(symbols, count):
    """Merges of the most frequent neighbours; ties go to the first pair in order."""
    merges = []
    for _ in range(count):
        pairs = collections.Counter(zip(symbols, symbols[1:]))
        best = min(pairs.items(), key=lambda item: (-item[1], item[0]))[0]
        merges.append(best)
        joined, i = [], 0
        while i < len(symbols):
            if i + 1 < len(symbols) and (symbols[i], symbols[i + 1]) == best:
                joined.append(best[0] + best[1])
                i += 2
            else:
                joined.append(symbols[i])
                i += 1
        symbols = joined
    return merges


def scripts(rng):
    """Words of letters, marks, digits and signs of every block of 64 code points that has any."""
    blocks = []
    for begin in range(0xA0, 0x20000, 64):
        good = [chr(c) for c in range(begin, begin + 64) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")
                and c not in LEFT_OUT]
        if good:
            blocks.append(good)
    for _ in range(3000):
        block = rng.choice(blocks)
        yield "".join(rng.choice(block) if rng.random() < 0.85 else rng.choice(" .,1'\n") for _ in range(rng.randint(1, 30)))


def texts():
    rng = random.Random(7)
    out = []
    for path in sorted(TEXT.glob("*.eval.txt")):
        content = path.read_text(encoding="utf-8")
        for _ in range(150):
            begin = rng.randrange(len(content))
            out.append(content[begin:begin + rng.randint(1, 400)])
    out += list(scripts(rng))
    for _ in range(2000):  # ASCII soup: contractions, digits, newlines, slashes
        out.append("".join(rng.choice("aAbBsStTdDmMllLreRvVE'''   \t\r\n\n/!?.,;0123456789_-+*()[]{}<>=\"\\") for _ in range(rng.randint(1, 40))))
    for _ in range(500):  # any bytes that are text, controls among them
        raw = bytes(rng.randrange(256) for _ in range(rng.randint(1, 60)))
        out.append(raw.decode("utf-8", "ignore"))
    out += ["", " ", "\n", "👩‍👩‍👧‍👦 family 🏳️‍🌈", "e\u0301 vs é", "ﬁ ligature", "١٢٣٤٥ ۱۲۳ 一二三", "don't DON'T don’t", "\u3000全角　空白\u3000"]
    return [t for t in out if not any(ord(c) in LEFT_OUT for c in t)]


def definition(vocabulary, merges, **rest):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
            "post_processor": None,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": {t: i for i, t in enumerate(vocabulary)}, "merges": [" ".join(m) for m in merges]}} | rest


def definitions(corpus):
    rng = random.Random(3)
    sample = "".join(rng.sample(corpus, 900))[:40000]
    letters = byte_symbols()
    merges = train([letters[b] for b in sample.encode()], MERGES)
    vocabulary = list(dict.fromkeys([letters[b] for b in range(256)] + ["".join(m) for m in merges]))
    for name, pre in KINDS.items():
        yield name, definition(vocabulary, merges, pre_tokenizer=pre, decoder=byte_level(True))
    whole = definition(vocabulary + ["hello", "ĠBoston"], merges, pre_tokenizer=KINDS["llama3"], decoder=byte_level(True))
    whole["model"]["ignore_merges"] = True
    yield "llama3 with ignore_merges", whole
    yield "qwen2 with NFC", definition(vocabulary, merges, pre_tokenizer=KINDS["qwen2"], decoder=byte_level(True), normalizer={"type": "NFC"})
    characters = [c for c, n in collections.Counter(sample.replace(" ", "▁")).items() if n > 1]
    merges = [m for m in train([c for c in "▁" + sample.replace(" ", "▁") if c in set(characters)], MERGES)]
    vocabulary = list(dict.fromkeys(["<unk>"] + [f"<0x{b:02X}>" for b in range(256)] + characters + ["".join(m) for m in merges]))
    decoder = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    normalizer = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    piece = definition(vocabulary, merges, normalizer=normalizer, decoder=decoder)
    piece["model"] |= {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    piece["added_tokens"] = [{"id": 0, "content": "<unk>", "single_word": False, "lstrip": False, "rstrip": False,
                              "normalized": False, "special": True}]
    yield "sentencepiece", piece


def main(build):
    corpus = texts()
    wrong = 0
    with tempfile.TemporaryDirectory() as work:
        cases, tokenizer = Path(work) / "texts.json", Path(work) / "tokenizer.json"
        everything = corpus
        for name, content in definitions(everything):
            # Nothing cuts these texts, and the JavaScript library takes the square of their length.
            corpus = [t for t in everything if len(t) < 120][:3000] if name == "sentencepiece" else everything
            cases.write_text(json.dumps(corpus))
            tokenizer.write_text(json.dumps(content))
            ours, theirs = (json.loads(subprocess.run([*command, tokenizer, cases], check=True, capture_output=True).stdout)
                            for command in ([build / "tests/tokenize_texts"], ["node", HERE / "tokenizer_check.mjs"]))
            different = [i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]
            wrong += len(different)
            print(f"{name}: {len(corpus)} texts, {sum(map(len, ours))} tokens, {len(different)} differ")
            for i in different[:3]:
                print(f"  {corpus[i]!r}\n  ours   {ours[i]}\n  theirs {theirs[i]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
