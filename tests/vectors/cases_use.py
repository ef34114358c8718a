"""What is found when bytes are used: chunks and plain bytes (R-603 to R-606), the tokenizer blob (R-7xx)."""
import struct

import zstandard

import writer
from second_plain import sections
from vectors import IDENTITY, USE, add
from writer import CODECS, full_codec, make_chunk, make_tokenizer

BOMB, LIES, TWICE, OVERFLOW = "decompression bomb", "type or shape lies", "duplicate names", "integer overflow"

# ---- zstd ----


def frame(change):
    """The stored bytes of the first zstd chunk become change(plain)."""
    def edit(build):
        unit = build.model["dense"]["units"][0]
        plain = unit["chunks"][0]["plain"]
        unit["chunks"][0] = make_chunk(plain, change(plain), True)
    return edit


def compress(plain, **parameters):
    return zstandard.ZstdCompressor(level=3, **parameters).compress(plain)


def no_size(plain):
    return zstandard.ZstdCompressor(level=3, write_content_size=False).compress(plain)


def rle_frame(declared, length, block=0x7F000):
    """A frame that declares `declared` bytes and holds `length` zeros in run-length blocks."""
    out = bytes.fromhex("28b52ffd") + b"\xa0" + struct.pack("<I", declared)
    while length > 0:
        part = min(length, 128 * 1024)
        length -= part
        out += (part << 3 | 1 << 1 | (length <= 0)).to_bytes(3, "little") + b"\0"
    return out


def damaged(plain):
    data = bytearray(compress(plain))
    data[len(data) // 2] ^= 0x55
    data[-1] ^= 0xFF
    return bytes(data)


def wrong_checksum(plain):
    data = compress(plain, write_checksum=True)
    return data[:-4] + bytes([data[-4] ^ 1]) + data[-3:]


def with_dictionary(plain):
    dictionary = zstandard.ZstdCompressionDict(zstandard.train_dictionary(1024,
        [plain[i:i + 64] for i in range(0, len(plain), 64)] * 8).as_bytes())
    return zstandard.ZstdCompressor(level=3, dict_data=dictionary).compress(plain)


SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"skip"
for name, change, attack in (
        ("two_frames", lambda p: compress(p) + compress(b""), LIES),
        ("bytes_behind_the_frame", lambda p: compress(p) + b"\0", LIES),
        ("skippable_frame_behind", lambda p: compress(p) + SKIPPABLE, LIES),
        ("skippable_frame_before", lambda p: SKIPPABLE + compress(p), LIES),
        ("only_a_skippable_frame", lambda p: SKIPPABLE, LIES), ("no_content_size", no_size, BOMB),
        ("content_size_of_less", lambda p: compress(p[:-1]), BOMB),
        ("content_size_of_more", lambda p: compress(p + b"\0"), BOMB),
        ("frame_cut_off", lambda p: compress(p)[:-1], "truncation"),
        ("not_zstd", lambda p: b"BZh9" + bytes(40), LIES), ("damaged_block", damaged, LIES),
        ("wrong_checksum", wrong_checksum, LIES),
        ("dictionary_needed", with_dictionary, LIES), ("bomb_of_a_gibibyte", lambda p: rle_frame(2**30, 2**23), BOMB),
        ("bomb_that_declares_little", lambda p: rle_frame(len(p), 2**23), BOMB),
        ("frame_that_holds_less", lambda p: rle_frame(len(p), len(p) - 1), BOMB)):
    add("R-603", f"zstd_{name}", frame(change), stage=USE, attack=attack)


def another_identity(build):
    chunk = build.model["dense"]["units"][0]["chunks"][0]
    chunk["plain_digest"] = bytes(32)


add("R-607", "zstd_chunk_of_another_identity", another_identity, stage=IDENTITY, attack=LIES)
# ---- rANS ----


def constant_run(count, symbol, order=b"\0", tables=b"\1", table=None, words=8, states=(65536,) * 4, length=None, kind=1):
    """A run of one byte again and again: its table leaves nothing to say, so no word is pulled."""
    table = bytes([symbol, 1, 1, 0, 0x80, 0x20]) if table is None else table
    body = order + tables + table * max(1, tables[0]) + struct.pack("<I", words) + struct.pack("<4I", *states)
    return struct.pack("<BI", kind, count if length is None else length) + body


def rans(change, symbol=0):
    """The first chunk of the embedding (bf16) becomes one run of equal bytes; stored as change(their number)."""
    def edit(build):
        unit = build.model["dense"]["units"][0]
        count = len(unit["chunks"][0]["plain"])
        unit["chunks"][0] = {**make_chunk(bytes([symbol]) * count, change(count), True), "encoding": 2}
    return edit


def ordered(order, period, phase, tables, bits, entries):
    """Header up to the map, which names table 1 for every odd entry."""
    packed = sum((i & 1) << i * bits for i in range(entries))
    return bytes([order]) + struct.pack("<II", period, phase), bytes([tables]) + packed.to_bytes(-(-entries * bits // 8), "little")


def mapped(n, order, period, phase, tables=2, bits=1, spare=0, entries=None):
    rows = -(-(phase + n) // period) if period else 1
    entries = (period if order == 1 else rows) if entries is None else entries
    head, rest = ordered(order, period, phase, tables, bits, entries)
    if spare:
        rest = rest[:-1] + bytes([rest[-1] | spare])
    run = constant_run(n, 0, order=head, tables=bytes([tables]))
    at = 5 + len(head) + 1
    return run[:at] + rest[1:] + run[at:]


add(None, "rans_one_table", rans(lambda n: constant_run(n, 0)))
add(None, "rans_two_runs", rans(lambda n: constant_run(n - 100, 0) + struct.pack("<BI", 0, 100) + bytes(100)))
add(None, "rans_by_column", rans(lambda n: mapped(n, 1, 32, 7)))
add(None, "rans_by_row", rans(lambda n: mapped(n, 2, 64, 63)))
for name, change, attack in (
        ("kind_2", lambda n: constant_run(n, 0, kind=2), LIES), ("run_of_nothing", lambda n: constant_run(n, 0, length=0), LIES),
        ("run_longer_than_the_chunk", lambda n: constant_run(n, 0, length=n + 1), BOMB),
        ("run_of_4_gib", lambda n: constant_run(n, 0, length=2**32 - 1), BOMB),
        ("cut_off", lambda n: constant_run(n, 0)[:-1], "truncation"), ("less_than_the_chunk", lambda n: constant_run(n - 1, 0), LIES),
        ("bytes_behind", lambda n: constant_run(n, 0) + b"\0", LIES), ("order_3", lambda n: constant_run(n, 0, order=b"\3"), LIES),
        ("no_tables", lambda n: constant_run(n, 0, tables=b"\0"), LIES), ("two_tables", lambda n: constant_run(n, 0, tables=b"\2"), LIES),
        ("stride_0", lambda n: constant_run(n, 0, table=bytes([0, 0, 1, 0, 0x80, 0x20])), LIES),
        ("no_symbols", lambda n: constant_run(n, 0, table=bytes([0, 1, 0, 0])), LIES),
        ("symbol_past_255", lambda n: constant_run(n, 0, table=bytes([0, 255, 3, 0, 0, 0, 0x80, 0x20])), OVERFLOW),
        ("frequencies_below_4096", lambda n: constant_run(n, 0, table=bytes([0, 1, 1, 0, 0xFF, 0x1F])), LIES),
        ("frequencies_above_4096", lambda n: constant_run(n, 0, table=bytes([0, 1, 1, 0, 0x81, 0x20])), OVERFLOW),
        ("frequency_in_two_bytes_of_one", lambda n: constant_run(n, 0, table=bytes([0, 1, 2, 0, 0x80, 0, 0x80, 0x20])), LIES),
        ("state_too_low", lambda n: constant_run(n, 0, states=(65535, 65536, 65536, 65536)), LIES),
        ("state_not_at_the_end", lambda n: constant_run(n, 0, states=(65537, 65536, 65536, 65536)), LIES),
        ("too_few_states", lambda n: constant_run(n, 0, words=7)[:-2], "truncation"),
        ("words_left", lambda n: constant_run(n, 0, words=9) + b"\0\0", LIES),
        ("words_past_the_end", lambda n: constant_run(n, 0, words=2**32 - 1), OVERFLOW),
        ("period_0", lambda n: mapped(n, 1, 0, 0), LIES), ("period_above_2_to_the_20", lambda n: mapped(n, 1, 2**20 + 1, 0, entries=64), BOMB),
        ("phase_not_below_period", lambda n: mapped(n, 1, 32, 32), OVERFLOW),
        ("map_one_table", lambda n: mapped(n, 1, 32, 0, tables=1), LIES), ("map_17_tables", lambda n: mapped(n, 1, 32, 0, tables=17, bits=5), LIES),
        ("map_of_a_table_that_is_not_there", lambda n: mapped(n, 1, 30, 0, tables=3, bits=2, spare=0x0C), LIES),
        ("map_cut_off", lambda n: mapped(n, 1, 32, 7)[:16], "truncation"),
        ("plain_run_cut_off", lambda n: constant_run(n - 100, 0) + struct.pack("<BI", 0, 100) + bytes(99), "truncation"),
        ("too_few_words", lambda n: constant_run(n, 0, table=bytes([0, 1, 2, 0, 0x80, 0x10, 0x80, 0x10])), LIES),
        ("map_with_spare_bits", lambda n: mapped(n, 1, 31, 0, spare=0x80), LIES)):
    add("R-608", f"rans_{name}", rans(change), stage=USE, attack=attack)

add(None, "zstd_with_checksum", frame(lambda p: compress(p, write_checksum=True)))

# ---- plain bytes ----


def plain(unit_of, tensor, section, change):
    """change(bytearray) on one section of one tensor of a raw unit; the chunks and their digests follow."""
    def edit(build):
        unit = unit_of(build.model)
        cuts = [len(c["plain"]) for c in unit["chunks"]]
        data, at = bytearray(b"".join(c["plain"] for c in unit["chunks"])), 0
        for index, t in enumerate(unit["tensors"]):
            for number, (_, rows, row_bytes, _) in enumerate(sections(full_codec(t["codec"]), t["rows"], t["cols"])[1]):
                if (index, number) == (tensor, section):
                    part = data[at:at + rows * row_bytes]
                    change(part)
                    data[at:at + rows * row_bytes] = part
                at += rows * row_bytes
        unit["chunks"] = []
        for cut in cuts:
            unit["chunks"].append(make_chunk(bytes(data[:cut]), bytes(data[:cut]), False))
            del data[:cut]
    return edit


def block_1(model):
    return model["dense"]["units"][1]


def expert(table, unit):
    return lambda model: model["experts"][table]["units"][unit]


def store(at, data):
    return lambda part: part.__setitem__(slice(at, at + len(data)), data)


def flip(at, bits):
    return lambda part: part.__setitem__(at, part[at] ^ bits)


def move_bit(part):
    """Each run of four keeps two; now one keeps three and the next one."""
    part[0] = 0b01000111


def fill(part):
    part[:] = b"\xff" * len(part)


def half(index, value):
    """Low and high bytes of f16 number `index`, which lie apart."""
    def change(part):
        count = len(part) // 2
        part[index], part[count + index] = struct.pack("<H", value)
    return change


for name, edit in (("a_bit_more", plain(block_1, 8, 0, flip(0, 1))), ("all_bits", plain(block_1, 8, 0, fill)),
                   ("no_bits", plain(expert(0, 0), 2, 0, store(0, b"\0"))), ("runs_uneven", plain(block_1, 5, 0, move_bit)),
                   ("bits_past_the_columns", plain(expert(1, 1), 1, 0, flip(1, 0x80)))):
    add("R-604", f"mask_{name}", edit, stage=USE, attack=LIES)
for name, edit in (("first_plane", plain(expert(0, 0), 2, 1, flip(1, 0x80))),
                   ("second_plane", plain(expert(0, 0), 2, 2, flip(0, 0x20))),
                   ("last_row", plain(expert(0, 0), 2, 2, lambda part: part.__setitem__(-1, part[-1] ^ 0x80)))):
    add("R-605", f"code_bits_in_{name}", edit, stage=USE, attack=LIES)
for name, edit in (("f32_nan", plain(block_1, 0, 0, store(4, struct.pack("<f", float("nan"))))),
                   ("f32_infinity", plain(block_1, 0, 0, store(60, b"\0\0\x80\xff"))),
                   ("bf16_infinity", plain(block_1, 7, 0, store(2, b"\x80\x7f"))),
                   ("bf16_nan_in_a_sparse_row", plain(block_1, 5, 1, store(6, b"\xff\xff"))),
                   ("f16_nan", plain(block_1, 4, 0, store(8, b"\x01\x7c"))),
                   ("f16_infinity_in_a_sparse_row", plain(block_1, 8, 1, store(0, b"\0\xfc"))),
                   ("scale_infinity", plain(block_1, 1, 1, half(3, 0x7C00))),
                   ("scale_nan_in_the_last_group", plain(block_1, 2, 1, half(7, 0xFE01))),
                   ("minimum_nan", plain(block_1, 3, 4, half(7, 0x7E00)))):
    add("R-606", f"number_{name}", edit, stage=USE, attack=LIES)

# ---- tokenizer ----


def tokenizer(change):
    return lambda build: change(build.model["tokenizer"])


def tokenizer_bytes(change):
    return lambda build: build.blob.update({(writer.TOKENIZER, 0): change})


def field(at, data):
    return tokenizer_bytes(lambda blob: blob[:at] + data + blob[at + len(data):])


WHOLE = len(writer.encode_tokenizer(make_tokenizer()))
for rule, name, edit, attack in (
        ("R-701", "magic", field(0, b"mtok"), LIES), ("R-701", "version", field(4, b"\2\0"), LIES),
        ("R-701", "cut_in_its_magic", tokenizer_bytes(lambda b: b[:3]), "truncation"),
        ("R-702", "pre_tokenizer_0", field(6, b"\0"), LIES), ("R-702", "pre_tokenizer_8", field(6, b"\x08"), LIES),
        ("R-702", "flags_64", field(7, b"\x40"), LIES), ("R-702", "flags_18", field(7, b"\x12"), LIES),
        ("R-704", "beginning_that_is_not_there", field(7, b"\x08"), "truncation"),
        ("R-704", "byte_tokens_that_are_not_there", field(6, b"\x07"), "truncation"),
        ("R-703", "beginning_of_no_tokens", tokenizer_bytes(lambda b: b[:7] + b"\x08" + b[8:] + b"\0" * 4), LIES),
        ("R-706", "token_that_is_not_its_byte", tokenizer_bytes(lambda b: b[:6] + b"\x07" + b[7:] + b"a\0\0\0" * 256), LIES),
        ("R-703", "tokens_255", field(8, struct.pack("<I", 255)), LIES),
        ("R-703", "tokens_above_the_cap", field(8, struct.pack("<I", 2**20 + 1)), OVERFLOW),
        ("R-703", "merges_above_the_cap", field(12, struct.pack("<I", 2**22 + 1)), OVERFLOW),
        ("R-703", "special_above_tokens", field(16, struct.pack("<I", 261)), OVERFLOW),
        ("R-703", "ends_above_tokens", field(20, b"\xff\xff\xff\xff"), OVERFLOW),
        ("R-703", "token_of_1025_bytes", tokenizer(lambda t: t["texts"].__setitem__(259, b"x" * 1025)), OVERFLOW),
        ("R-704", "cut_in_its_header", tokenizer_bytes(lambda b: b[:20]), "truncation"),
        ("R-704", "cut_in_its_lengths", tokenizer_bytes(lambda b: b[:100]), "truncation"),
        ("R-704", "cut_in_its_tokens", tokenizer_bytes(lambda b: b[:24 + 520 + 100]), "truncation"),
        ("R-704", "cut_in_its_merges", tokenizer_bytes(lambda b: b[:WHOLE - 20]), "truncation"),
        ("R-704", "cut_in_its_ids", tokenizer_bytes(lambda b: b[:-6]), "truncation"),
        ("R-704", "cut_in_its_ends", tokenizer_bytes(lambda b: b[:-1]), "truncation"),
        ("R-704", "byte_behind_the_end", tokenizer_bytes(lambda b: b + b"\0"), "overlap, holes, polyglot"),
        ("R-704", "merges_that_are_not_there", field(12, struct.pack("<I", 2**22)), OVERFLOW),
        ("R-705", "merge_of_token_260", tokenizer(lambda t: t["merges"].append((260, 97))), OVERFLOW),
        ("R-705", "special_260", tokenizer(lambda t: t["special"].append(260)), OVERFLOW),
        ("R-705", "special_twice", tokenizer(lambda t: t["special"].append(258)), TWICE),
        ("R-705", "ends_falling", tokenizer(lambda t: t["ends"].append(3)), TWICE),
        ("R-706", "byte_without_token", tokenizer(lambda t: t["texts"].__setitem__(65, b"AA")), LIES),
        ("R-706", "token_twice", tokenizer(lambda t: t["texts"].__setitem__(259, b"abc")), TWICE),
        ("R-707", "merge_of_a_special_token", tokenizer(lambda t: t["merges"].append((258, 97))), LIES),
        ("R-707", "merge_of_an_unused_token", tokenizer(lambda t: t["merges"].append((97, 259))), LIES),
        ("R-707", "merge_without_a_token", tokenizer(lambda t: t["merges"].append((99, 99))), LIES),
        ("R-707", "merge_twice", tokenizer(lambda t: t["merges"].append((97, 98))), TWICE)):
    add(rule, f"tokenizer_{name}", edit, stage=USE, attack=attack)


def chat(flags=b"\3", places=(b"\0",) * 6, excluded=b"\0", end=None):
    """A chat template behind the ordinary blob."""
    data = (flags + b"".join(places) + excluded)[:end]
    return tokenizer_bytes(lambda b: b[:7] + b"\x20" + b[8:] + data)


def first_place(data):
    return chat(places=(data,) + (b"\0",) * 5)


TEXT, TOKEN = b"\0\2\0ab", b"\1" + struct.pack("<I", 258)
for rule, name, edit, attack in (
        ("R-704", "that_is_not_there", chat(end=0), "truncation"), ("R-704", "cut_in_its_places", chat(end=4), "truncation"),
        ("R-704", "cut_in_a_text", chat(places=(b"\1" + TEXT,), excluded=b"", end=-1), "truncation"),
        ("R-704", "cut_in_a_token", chat(places=(b"\1" + TOKEN,), excluded=b"", end=-1), "truncation"),
        ("R-704", "cut_in_an_exclusion", chat(excluded=b"\1\1\2a"), "truncation"),
        ("R-705", "token_260", first_place(b"\1\1" + struct.pack("<I", 260)), OVERFLOW),
        ("R-708", "flags_64", chat(flags=b"\x43"), LIES), ("R-708", "flags_0", chat(flags=b"\0"), LIES),
        ("R-708", "without_system_but_before_one", chat(flags=b"\2", places=(b"\1" + TEXT,) + (b"\0",) * 5), LIES),
        ("R-708", "without_system_but_behind_one", chat(flags=b"\2", places=(b"\0",) * 2 + (b"\1" + TEXT,) + (b"\0",) * 3), LIES),
        ("R-708", "with_system_only_but_before_user", chat(flags=b"\1", places=(b"\0", b"\1" + TEXT) + (b"\0",) * 4), LIES),
        ("R-708", "pieces_65", first_place(b"\x41" + TOKEN * 65), OVERFLOW),
        ("R-708", "kind_2", first_place(b"\1\2" + TOKEN[1:]), LIES), ("R-708", "kind_9", first_place(b"\1\x09" + TOKEN[1:]), LIES),
        ("R-708", "text_of_no_bytes", first_place(b"\1\0\0\0"), LIES),
        ("R-708", "text_of_16385_bytes", first_place(b"\1\0\1\x40" + b"x" * 16385), OVERFLOW),
        ("R-708", "two_texts_in_a_row", first_place(b"\3" + TOKEN + TEXT + TEXT), TWICE),
        ("R-708", "exclusions_17", chat(excluded=b"\x11" + b"".join(b"\1\1" + bytes([c]) for c in range(17))), OVERFLOW),
        ("R-708", "exclusion_of_role_3", chat(excluded=b"\1\3\0"), LIES),
        ("R-708", "exclusion_twice", chat(excluded=b"\2\1\1a\1\1a"), TWICE),
        ("R-708", "exclusions_falling", chat(excluded=b"\2\2\1a\1\1b"), TWICE)):
    add(rule, f"tokenizer_chat_{name}", edit, stage=USE, attack=attack)
WHOLE_CHAT = chat(flags=b"\x3f", places=(b"\1" + TEXT, b"\3" + TEXT + b"\7" + TOKEN[1:] + TEXT, b"\0", b"\2" + TOKEN + TOKEN, b"\0", b"\1" + TEXT),
                  excluded=b"\3\0\0\1\1b\2\0")
add(None, "tokenizer_chat", WHOLE_CHAT, stage=USE)
add(None, "tokenizer_chat_of_nothing", chat(flags=b"\2"), stage=USE)
