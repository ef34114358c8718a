"""Codecs, plain bytes, stored chunks and the tokenizer blob (SPEC.md sections 5, 7, 8). Part of the second reader."""
import struct

import zstandard

from second_wire import Refused
from second_program import must

PLANES = {8: (8,), 6: (4, 2), 5: (4, 1), 4: (4,), 3: (2, 1), 2: (2,)}


def check_codec(c):
    if c["element"] == 3:
        must(c["bits"] in PLANES and c["group_size"] in (0, 16, 32, 64, 128, 256), "R-601", "bits or group size")
    elif c["element"] == 4:
        must(2 <= c["bits"] <= 6 and c["group_size"] in (0, 16, 32, 64, 128, 256), "R-601", "bits or group size of a trellis")
        must(c["has_min"] == c["sparsity"] == 0, "R-601", "minimum or mask of a trellis")
    else:
        must(c["bits"] == c["has_min"] == c["group_size"] == 0, "R-601", "integer fields of a float codec")
    if c["sparsity"] != 1:
        must(c["kept_per_row"] == 0, "R-601", "kept_per_row")
    if c["sparsity"] != 2:
        must(c["n"] == c["m"] == 0, "R-601", "n and m")
    if c["sparsity"] == 1:
        must(1 <= c["kept_per_row"] <= 2**20, "R-601", "kept_per_row")
    if c["sparsity"] == 2:
        must(c["m"] in (4, 8, 16) and 1 <= c["n"] < c["m"], "R-601", "n and m")


def sections(c, rows, cols):
    """[(name, bytes, bytes a row)] in file order."""
    must(c["sparsity"] != 1 or c["kept_per_row"] <= cols, "R-602", "keeps more columns than there are")
    must(c["sparsity"] != 2 or cols % c["m"] == 0, "R-602", "columns are no multiple of m")
    kept = (cols, c["kept_per_row"], cols // c["m"] * c["n"] if c["m"] else 0)[c["sparsity"]]
    out = []
    if c["sparsity"]:
        out.append(("mask", rows, -(-cols // 8), 0))
    if c["element"] in (3, 4):
        groups = -(-cols // c["group_size"]) if c["group_size"] else 1
        out += [("codes", rows, -(-kept * bits // 8), kept * bits % 8) for bits in PLANES[c["bits"]]]
        out += [("halves", rows, 2 * groups, 0)] * (2 if c["has_min"] else 1)
    else:
        out.append((("f32", "bf16", "f16")[c["element"]], rows, kept * (4 if c["element"] == 0 else 2), 0))
    return kept, out


def plain_bytes(tensor):
    _, parts = sections(tensor["codec"], tensor["rows"], tensor["cols"])
    return sum(rows * row_bytes for _, rows, row_bytes, _ in parts)


def unit_bytes(tensors):
    total = sum(map(plain_bytes, tensors))
    must(total <= 2**31, "R-418", "plain bytes of a unit")
    return total


def check_mask(c, cols, kept, data, rows, row_bytes):
    for row in range(rows):
        mask = int.from_bytes(data[row * row_bytes:(row + 1) * row_bytes], "little")
        must(mask >> cols == 0 and bin(mask).count("1") == kept, "R-604", "mask")
        if c["sparsity"] == 2:
            for begin in range(0, cols, c["m"]):
                must(bin(mask >> begin & (1 << c["m"]) - 1).count("1") == c["n"], "R-604", "mask of a run")


def check_plain(tensor, data):
    """`data` is exactly the tensor's plain bytes."""
    c, at = tensor["codec"], 0
    kept, parts = sections(c, tensor["rows"], tensor["cols"])
    for what, rows, row_bytes, used_bits in parts:
        part = data[at:at + rows * row_bytes]
        at += rows * row_bytes
        if what == "mask":
            check_mask(c, tensor["cols"], kept, part, rows, row_bytes)
        elif what == "codes" and used_bits:
            must(all(part[(row + 1) * row_bytes - 1] >> used_bits == 0 for row in range(rows)), "R-605",
                 "bits past the last column")
        elif what == "halves":
            must(all(high & 0x7C != 0x7C for high in part[len(part) // 2:]), "R-606", "scale or minimum")
        elif what == "f16":
            must(all(high & 0x7C != 0x7C for high in part[1::2]), "R-606", "value")
        elif what == "bf16":
            must(all(low & 0x80 == 0 or high & 0x7F != 0x7F for low, high in zip(part[0::2], part[1::2])), "R-606", "value")
        elif what == "f32":
            must(all(low & 0x80 == 0 or high & 0x7F != 0x7F for low, high in zip(part[2::4], part[3::4])), "R-606", "value")


def frame_bytes(data):
    """Length of the one zstd frame at the start of `data` (RFC 8878, section 3.1.1), None when it is none."""
    if len(data) < 6 or data[:4] != bytes.fromhex("28b52ffd"):
        return None
    descriptor = data[4]
    single, checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
    at = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3] + (single, 2, 4, 8)[descriptor >> 6]
    while True:
        if at + 3 > len(data):
            return None
        header = int.from_bytes(data[at:at + 3], "little")
        at += 3 + (1 if header >> 1 & 3 == 1 else header >> 3)
        if header & 1:
            return at + 4 * checksum


def rans_table(take):
    """(frequency, sum before it, byte) of each slot."""
    first, stride, count = struct.unpack("<BBH", take(4))
    must(stride >= 1 and 1 <= count <= 256 and first + (count - 1) * stride <= 255, "R-608", "symbols of a table")
    slots = []
    for symbol in range(first, first + count * stride, stride):
        frequency = take(1)[0]
        if frequency >= 128:
            high = take(1)[0]
            must(high > 0, "R-608", "frequency in two bytes")
            frequency = frequency - 128 + 128 * high
        must(len(slots) + frequency <= 4096, "R-608", "sum of frequencies")
        slots += [(frequency, len(slots), symbol)] * frequency
    must(len(slots) == 4096, "R-608", "sum of frequencies")
    return slots


def rans_run(take, count):
    order, = take(1)
    must(order <= 2, "R-608", "order of tables")
    period, phase = struct.unpack("<II", take(8)) if order else (1, 0)
    must(1 <= period <= 2**20 and phase < period, "R-608", "period or phase")
    n, = take(1)
    must(2 <= n <= 16 if order else n == 1, "R-608", "number of tables")
    kinds = [0]
    if order:
        entries = period if order == 1 else -(-(phase + count) // period)
        bits = (n - 1).bit_length()
        packed = int.from_bytes(take(-(-entries * bits // 8)), "little")
        kinds = [packed >> i * bits & (1 << bits) - 1 for i in range(entries)]
        must(max(kinds) < n and packed >> entries * bits == 0, "R-608", "map")
    tables = [rans_table(take) for _ in range(n)]
    words = iter(struct.unpack(f"<{(total := struct.unpack('<I', take(4))[0])}H", take(2 * total)))
    try:
        states = [next(words) + 65536 * next(words) for _ in range(4)]
        must(min(states) >= 65536, "R-608", "state at the start")
        out = bytearray()
        for i in range(count):
            at = phase + i
            frequency, before, symbol = tables[kinds[(0, at % period, at // period)[order]]][states[i % 4] % 4096]
            x = frequency * (states[i % 4] // 4096) + states[i % 4] % 4096 - before
            states[i % 4] = x if x >= 65536 else 65536 * x + next(words)
            out.append(symbol)
    except StopIteration as error:
        raise Refused("R-608", "too few words") from error
    must(states == [65536] * 4 and next(words, None) is None, "R-608", "end of the words")
    return bytes(out)


def decode_rans(stored, count):
    at = 0

    def take(n):
        nonlocal at
        must(n <= len(stored) - at, "R-608", "cut off")
        at += n
        return stored[at - n:at]

    out = b""
    while len(out) < count:
        kind, length = struct.unpack("<BI", take(5))
        must(kind <= 1 and 1 <= length <= count - len(out), "R-608", "kind or length of a run")
        out += rans_run(take, length) if kind else take(length)
    must(at == len(stored), "R-608", "bytes behind the last run")
    return out


def decode_chunk(chunk, stored):
    if chunk["encoding"] == 0:
        return stored
    if chunk["encoding"] == 2:
        return decode_rans(stored, chunk["plain_bytes"])
    must(frame_bytes(stored) == len(stored), "R-603", "not exactly one zstd frame")
    try:
        parameters = zstandard.get_frame_parameters(stored)
        must(parameters.content_size == chunk["plain_bytes"], "R-603", "content size of the frame")
        plain = zstandard.ZstdDecompressor().decompress(stored, max_output_size=chunk["plain_bytes"])
    except zstandard.ZstdError as error:
        raise Refused("R-603", str(error)) from error
    must(len(plain) == chunk["plain_bytes"], "R-603", "length of the frame")
    return plain


def check_chat(take, tokens):
    """The chat template at the end of a tokenizer blob."""
    flags, = take(1)
    must(flags <= 63 and flags & 3, "R-708", "flags")
    for needed in (flags & 1, flags & 2, flags & 1, True, True, True):
        count, = take(1)
        must(count <= 64 and (needed or count == 0), "R-708", "pieces")
        texts = []
        for _ in range(count):
            kind, = take(1)
            must(kind in (0, 1, 3, 5, 7), "R-708", "kind of a piece")
            texts.append(kind == 0)
            if kind == 0:
                length, = struct.unpack("<H", take(2))
                must(1 <= length <= 16384, "R-708", "length of a text")
                take(length)
            else:
                must(struct.unpack("<I", take(4))[0] < tokens, "R-705", "unknown id")
        must(not any(a and b for a, b in zip(texts, texts[1:])), "R-708", "two texts in a row")
    count, = take(1)
    must(count <= 16, "R-708", "exclusions")
    excluded = []
    for _ in range(count):
        role, length = take(2)
        must(role <= 2, "R-708", "role")
        excluded.append((role, bytes(take(length))))
    must(all(a < b for a, b in zip(excluded, excluded[1:])), "R-708", "exclusions do not rise")


def check_tokenizer(blob):
    at = 0

    def take(count):
        nonlocal at
        must(count <= len(blob) - at, "R-704", "cut off")
        at += count
        return blob[at - count:at]

    must(blob[:6] == b"MTOK\x01\x00", "R-701", "magic or version")
    take(6)
    pre, flags = (take(2) + b"\0\0")[:2]
    must(1 <= pre <= 7 and flags <= 63 and flags & 18 != 18, "R-702", "pre-tokenizer or flags")
    tokens, merges, special, ends = struct.unpack("<4I", take(16))
    must(256 <= tokens <= 2**20 and merges <= 2**22 and special <= tokens and ends <= tokens, "R-703", "counts")
    lengths = struct.unpack(f"<{tokens}H", take(2 * tokens))
    must(max(lengths) <= 1024, "R-703", "length of a token")
    texts = [take(length) for length in lengths]
    pairs = list(struct.iter_unpack("<II", take(8 * merges)))
    ids = []
    must(all(max(pair) < tokens for pair in pairs), "R-705", "merge of unknown tokens")
    for count in (special, ends):
        ids.append([i for i, in struct.iter_unpack("<I", take(4 * count))])
        must(all(i < tokens for i in ids[-1]), "R-705", "unknown id")
        must(all(a < b for a, b in zip(ids[-1], ids[-1][1:])), "R-705", "ids do not rise")
    of_bytes = []
    if flags & 8:
        count, = struct.unpack("<I", take(4))
        must(1 <= count <= 16, "R-703", "length of the beginning")
        must(all(i < tokens for i, in struct.iter_unpack("<I", take(4 * count))), "R-705", "unknown id")
    if pre == 7:
        of_bytes = [i for i, in struct.iter_unpack("<I", take(4 * 256))]
        must(all(i < tokens for i in of_bytes), "R-705", "unknown id")
    if flags & 32:
        check_chat(take, tokens)
    must(at == len(blob), "R-704", "bytes after the end")
    ordinary, left_out = {}, {*ids[0], *of_bytes}
    for i, text in enumerate(texts):
        if text and i not in left_out:
            must(text not in ordinary, "R-706", "two tokens alike")
            ordinary[text] = i
    if pre == 7:
        must(all(texts[i] == bytes([byte]) for byte, i in enumerate(of_bytes)), "R-706", "a token that is not its byte")
    else:
        must(all(bytes([byte]) in ordinary for byte in range(256)), "R-706", "a byte without token")
    must(all(ordinary.get(texts[i]) == i for pair in pairs for i in pair), "R-707", "merge of tokens that no text makes")
    must(all(texts[left] + texts[right] in ordinary for left, right in pairs), "R-707", "merge without a token")
    must(len(set(pairs)) == len(pairs), "R-707", "pair merged twice")
