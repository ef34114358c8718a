"""A byte-level BPE tokenizer with the Qwen2 pre-tokenizer: trains, encodes, and writes tokenizer.json."""
import collections
import heapq

import regex

import bench_lib

PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


SYMBOLS = bench_lib.byte_symbols()


def pieces(text):
    return ("".join(SYMBOLS[b] for b in piece.encode()) for piece in regex.findall(PATTERN, text))


def merge_word(word, pair):
    out, i = [], 0
    while i < len(word):
        if i + 1 < len(word) and (word[i], word[i + 1]) == pair:
            out.append(word[i] + word[i + 1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return out


def train(texts, size):
    """Merges, most frequent pair first (ties: the smaller pair), until bytes, merges and specials are `size` tokens."""
    counts = collections.Counter(p for text in texts for p in pieces(text))
    words = [(list(piece), count) for piece, count in sorted(counts.items())]
    pairs, where = collections.Counter(), collections.defaultdict(set)
    for index, (word, count) in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += count
            where[pair].add(index)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    merges = []
    while len(merges) < size - 256 - len(SPECIALS):
        count, best = heapq.heappop(heap)
        if pairs[best] != -count:
            continue
        merges.append(best)
        changed = set()
        for index in where.pop(best):
            word, times = words[index]
            for pair in zip(word, word[1:]):
                pairs[pair] -= times
                changed.add(pair)
            words[index] = (word := merge_word(word, best), times)
            for pair in zip(word, word[1:]):
                pairs[pair] += times
                where[pair].add(index)
                changed.add(pair)
        for pair in changed:
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
    return merges


class Encoder:
    def __init__(self, merges):
        self.rank = {pair: i for i, pair in enumerate(merges)}
        self.vocab = {s: i for i, s in enumerate([*sorted(SYMBOLS.values()), *(a + b for a, b in merges)])}
        self.merges = merges
        self.cache = {}

    def piece(self, piece):
        word = list(piece)
        while len(word) > 1:
            best = min(zip(word, word[1:]), key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            word = merge_word(word, best)
        return [self.vocab[symbol] for symbol in word]

    def __call__(self, text):
        out = []
        for piece in pieces(text):
            if piece not in self.cache:
                self.cache[piece] = self.piece(piece)
            out += self.cache[piece]
        return out

    def json(self):
        """What tokenizer.json holds."""
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
        special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        return {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": len(self.vocab) + i, "content": s, **special} for i, s in enumerate(SPECIALS)],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": byte_level, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                      "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": self.vocab, "merges": [f"{a} {b}" for a, b in self.merges]},
        }
