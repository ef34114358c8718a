"""A second writer: a small bundle of every node kind and many codecs, each part of which a vector may spoil before it is
placed, digested and signed. The same bytes in every run."""
import copy
import hashlib
import json
import random
import struct

import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import second_trust
import second_wire as wire
from second_plain import sections

ALIGNMENT, ENVELOPE = 4096, 1568
PROGRAM, TOKENIZER, DENSE, EXPERTS, HOT, PROVENANCE, GOLDEN = 1, 2, 3, 4, 5, 6, 7
HIDDEN, VOCABULARY = 16, 260


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def tag(number, wire_type):
    return varint(number << 3 | wire_type)


def delimited(number, data):
    return tag(number, 2) + varint(len(data)) + data


def encode(fields, values):
    """Canonical bytes of a dict; what it does not name is left out."""
    out = b""
    for number, field in fields.items():
        value = values.get(field.name)
        if value is None and not (field.required and field.kind == wire.MESSAGE):
            continue
        if field.kind == wire.MESSAGE:
            for item in value if field.repeated is not None else [value or {}]:
                out += delimited(number, encode(field.message, item))
        elif field.repeated is not None:
            body = b"".join(struct.pack("<f", item) if field.kind == wire.F32 else varint(item) for item in value)
            out += delimited(number, body) if value else b""
        elif field.kind in (wire.NAME, wire.DIGEST):
            out += delimited(number, value) if value else b""
        elif field.kind == wire.F32:
            packed = struct.pack("<f", value)
            out += tag(number, 5) + packed if packed != bytes(4) else b""
        elif value:
            out += tag(number, 0) + varint(value)
    return out


def sha256(data):
    return hashlib.sha256(data).digest()


def align(size):
    return -(-size // ALIGNMENT) * ALIGNMENT


class Key:
    def __init__(self, seed):
        self.secret = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self.public = self.secret.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, message):
        return self.secret.sign(message)


KEY, SECOND_KEY, STRANGER = Key(1), Key(2), Key(3)


def signed_message(manifest, role=1, version=1, length=None, domain=b"moepack signed manifest\n"):
    return domain + struct.pack("<IIQ", version, role, len(manifest) if length is None else length) + manifest


# ---- the model ----

def node(block, kind, inputs, output, /, **fields):
    return {"semantics": 1, "block": block, "inputs": inputs, "output": output, kind: fields}


def linear(block, source, output, weight, /, **fields):
    return node(block, "linear", [source], output, weight=weight, **fields)


def make_program():
    widths = [None, 16, 16, 16, 8, 8, 16, 8, 16, 16, 16, 16, 4, 16, 16, 8, 8, 16, 16, 16, 1, 1, 16, 3, 16, 16, 16,
              VOCABULARY]
    values = [{"name": b"tokens"}] + [{"name": b"v%d" % i, "kind": 1, "width": w} for i, w in enumerate(widths) if w]
    shapes = [("embed_tokens", VOCABULARY, 16, 0), ("input_norm", 1, 16, 2), ("q_proj", 16, 16, 3), ("k_proj", 8, 16, 3),
              ("v_proj", 8, 16, 3), ("v_proj.bias", 1, 8, 7), ("o_proj", 16, 16, 3), ("norm2", 1, 16, 2),
              ("norm2.bias", 1, 16, 7),
              ("router", 4, 16, 4), ("shared_gate", 1, 16, 5), ("router2", 3, 16, 4), ("norm", 1, 16, 2)]
    tensors = [{"name": name.encode(), "rows": rows, "cols": cols, "role": role, "layer": 1} for name, rows, cols,
               role in shapes]
    rotary = {"head_dim": 8, "rotary_dim": 4, "magnitude": 1.0, "inv_freq": [1.0, 0.01]}
    routing = {"score_before_topk": 1, "k": 2, "renormalise": 1, "eps": 1e-6, "scale": 1.0}
    nodes = [
        node(0, "embedding", [0], 1),
        node(1, "norm", [1], 2, weight_plus_one=2, group=16, eps=1e-5),
        linear(1, 2, 3, 2), linear(1, 2, 4, 3), linear(1, 2, 5, 4, bias_plus_one=6),
        node(1, "rotary", [3], 6, heads=2, **rotary), node(1, "rotary", [4], 7, heads=1, interleaved=1, **rotary),
        node(1, "attention", [6, 7, 5], 8, heads=2, kv_heads=1, head_dim=8, scale=0.35, window=64, softcap=30.0),
        linear(1, 8, 9, 6), node(1, "elementwise", [1, 9], 10),
        node(1, "norm", [10], 11, kind=1, weight_plus_one=8, bias_plus_one=9, group=16, eps=1e-5, one_plus_weight=1),
        linear(1, 11, 12, 9), node(1, "moe", [11, 12], 13, routing=routing, activation={"gated": 1}),
        node(1, "elementwise", [10, 13], 14),
        node(2, "slice", [14], 15), node(2, "slice", [14], 16, begin=8), node(2, "concat", [16, 15], 17),
        node(2, "elementwise", [17], 18, op=8, alpha=4.0), node(2, "elementwise", [18], 19, op=2, alpha=0.5),
        linear(2, 14, 20, 10), node(2, "elementwise", [20], 21, op=3), node(2, "elementwise", [19, 21], 22, op=1),
        linear(2, 22, 23, 11),
        node(2, "moe", [22, 23], 24, routing={"score": 1, "k": 1, "scale": 2.0}, activation={"function": 3}, table=1),
        node(2, "elementwise", [22, 24], 25),
        node(3, "norm", [25], 26, weight_plus_one=13, group=16, eps=1e-5), linear(3, 26, 27, 0),
    ]
    tables = [{"hidden": 16, "intermediate": [8] * 4, "original": [0, 1, 3, 5], "gated": 1},
              {"layer": 1, "hidden": 16, "intermediate": [8, 12, 8], "original": [0, 1, 2]}]
    return {"version": 1, "values": values, "inputs": [0], "output": 27, "nodes": nodes, "tensors": tensors,
            "expert_tables": tables,
            "state_slots": 1, "max_positions": 128, "original_parameters": 12000}


CODECS = {
    "f32": {}, "bf16": {"element": 1}, "f16": {"element": 2}, "i8r": {"element": 3, "bits": 8},
    "i4g16": {"element": 3, "bits": 4, "group_size": 16},
    "i3mr+keep5": {"element": 3, "bits": 3, "has_min": 1, "sparsity": 1, "kept_per_row": 5},
    "bf16+2:4": {"element": 1, "sparsity": 2, "n": 2, "m": 4}, "f16+keep7": {"element": 2, "sparsity": 1, "kept_per_row": 7},
    "i5g32": {"element": 3, "bits": 5, "group_size": 32},
    "i6mr+3:8": {"element": 3, "bits": 6, "has_min": 1, "sparsity": 2, "n": 3, "m": 8},
    "i2r": {"element": 3, "bits": 2}, "t2g16": {"element": 4, "bits": 2, "group_size": 16},
    "t3r": {"element": 4, "bits": 3}, "t5g16": {"element": 4, "bits": 5, "group_size": 16},
}


def full_codec(codec):
    return {field.name: codec.get(field.name, 0) for field in wire.CODEC.values()}


def mask_row(rng, codec, cols):
    mask = 0
    runs = [(0, cols, codec.get("kept_per_row"))] if codec["sparsity"] == 1 else [(b, codec["m"],
        codec["n"]) for b in range(0, cols, codec["m"])]
    for begin, length, kept in runs:
        for column in rng.sample(range(length), kept):
            mask |= 1 << begin + column
    return mask


def random_plain(rng, codec, rows, cols):
    """Well-formed plain bytes with small weights."""
    out, codec = b"", full_codec(codec)
    for what, _, row_bytes, used_bits in sections(codec, rows, cols)[1]:
        if what == "mask":
            out += b"".join(mask_row(rng, codec, cols).to_bytes(row_bytes, "little") for _ in range(rows))
        elif what == "codes":
            part = bytearray(rng.randbytes(rows * row_bytes))
            for row in range(rows) if used_bits else ():
                part[(row + 1) * row_bytes - 1] &= (1 << used_bits) - 1
            out += bytes(part)
        elif what == "halves":
            count = rows * row_bytes // 2
            out += rng.randbytes(count) + bytes(rng.choice((0x20, 0x21, 0x22)) for _ in range(count))
        else:
            pack = {"f32": lambda v: struct.pack("<f", v), "f16": lambda v: struct.pack("<e", v),
                    "bf16": lambda v: struct.pack("<f", v)[2:]}[what]
            count = rows * row_bytes // len(pack(0.0))
            out += b"".join(pack(rng.choice((-0.5, -0.25, 0.125, 0.25, 0.5, 1.0))) for _ in range(count))
    return out


def make_unit(rng, tensors, cut=None, zstd=False):
    """tensors: [(tensor, codec name, rows, cols)]; cut: plain bytes of all chunks but the last."""
    plain = b"".join(random_plain(rng, CODECS[codec], rows, cols) for _, codec, rows, cols in tensors)
    pieces = [plain[at:at + cut] for at in range(0, len(plain), cut)] if cut else [plain]
    unit = {"tensors": [{"tensor": t, "codec": dict(CODECS[codec]), "rows": rows, "cols": cols} for t, codec, rows,
                        cols in tensors], "chunks": []}
    for piece in pieces:
        stored = zstandard.ZstdCompressor(level=3).compress(piece) if zstd else piece
        unit["chunks"].append(make_chunk(piece, stored, zstd))
    return unit


def make_chunk(plain, stored, zstd):
    return {"plain_bytes": len(plain), "stored_bytes": len(stored), "encoding": int(zstd), "plain_digest": sha256(plain),
            "stored_digest": sha256(stored), "stored": stored, "plain": plain}


def make_tokenizer():
    texts = [bytes([byte]) for byte in range(256)] + [b"ab", b"abc", b"<eos>", b""]
    return {"magic": b"MTOK", "version": 1, "pre": 1, "normalizer": 0, "texts": texts, "merges": [(97, 98), (256, 99)],
            "special": [258],
            "ends": [258]}


def encode_tokenizer(t):
    out = t["magic"] + struct.pack("<HBB4I", t["version"], t["pre"], t["normalizer"], len(t["texts"]), len(t["merges"]),
                                   len(t["special"]), len(t["ends"]))
    out += b"".join(struct.pack("<H", len(text)) for text in t["texts"]) + b"".join(t["texts"])
    out += b"".join(struct.pack("<II", *pair) for pair in t["merges"])
    return out + b"".join(struct.pack("<I", i) for i in t["special"] + t["ends"])

# What `pack` asks of the build record in a folder (format/provenance/provenance.h).
RECORD = json.dumps({"version": 2, "tool_version": "0", "family": "none", "recipe": {}, "inputs": {}, "calibration": {},
                     "plan": "00" * 32}).encode()


def make_model():
    rng = random.Random(7)
    program = make_program()
    tensor = lambda i, codec: (i, codec, program["tensors"][i]["rows"], program["tensors"][i]["cols"])
    codecs = {1: "f32", 2: "i8r", 3: "i4g16", 4: "i6mr+3:8", 5: "f16", 6: "bf16+2:4", 7: "f32", 8: "bf16", 9: "f16+keep7",
              10: "i2r"}
    dense = [make_unit(rng, [tensor(0, "bf16")], cut=5000, zstd=True),
             make_unit(rng, [tensor(i, codecs[i]) for i in range(1, 10)]),
             make_unit(rng, [tensor(10, "i2r"), tensor(11, "i3mr+keep5")]),
             make_unit(rng, [tensor(12, "f32")])]
    gated = lambda *c: [(0, c[0], 8, 16), (1, c[1], 8, 16), (2, c[2], 16, 8)]
    plain = lambda width, *c: [(1, c[0], width, 16), (2, c[1], 16, width)]
    table0 = [make_unit(rng, gated("i8r", "bf16+2:4", "i3mr+keep5")), make_unit(rng, gated("i5g32", "i6mr+3:8", "i2r")),
              make_unit(rng, gated("f32", "f16", "bf16"), cut=700), make_unit(rng, gated("i4g16", "t5g16", "i4g16"))]
    table1 = [make_unit(rng, plain(8, "bf16", "bf16"), zstd=True), make_unit(rng, plain(12, "i4g16", "f16+keep7")),
              make_unit(rng, plain(8, "t2g16", "t3r"))]
    entries = lambda *lists: [{"variants": [{"physical": u} for u in units]} for units in lists]
    return {"program": program, "tokenizer": make_tokenizer(), "provenance": b"{}", "dense": {"version": 1, "units": dense},
            "experts": [{"version": 1, "experts": entries([0, 3], [1], [2], [2]), "units": table0},
                        {"version": 1, "table": 1, "experts": entries([0], [1], [2]), "units": table1}],
            "hot": {"version": 1, "experts": [{"expert": 2}, {"table": 1, "expert": 1}, {}, {"expert": 1}, {"table": 1},
                                              {"table": 1, "expert": 2}]}}


MODEL = make_model()
TRUST = {"moepack_trust": 1, "product": "vector", "threshold": 1, "key_epoch": 3, "minimum_security_counter": 7,
         "release_keys": [KEY.public.hex(), SECOND_KEY.public.hex()]}


class Build:
    """One bundle. A vector changes its attributes; make() goes through the steps that are left."""

    def __init__(self):
        self.model = copy.deepcopy(MODEL)
        self.trust = copy.deepcopy(TRUST)
        self.keys = [KEY]
        self.manifest = {"schema": 1, "product": b"vector", "version": b"1.0", "key_epoch": 3, "security_counter": 7}
        self.blob = {}                                  # (kind, index): bytes -> bytes, before it is placed
        self.place = lambda chunk_offsets: None         # after chunks have offsets
        self.edit_manifest = lambda manifest: None      # after blobs have places and digests
        self.edit_blobs = lambda blobs: None            # [kind, index, bytes], before they are placed
        self.manifest_bytes = lambda data: data         # before it is signed
        self.message = signed_message
        self.envelope = lambda envelope: None           # bytearray
        self.file = lambda data: None                   # bytearray

    def units(self):
        yield from self.model["dense"]["units"]
        for table in self.model["experts"]:
            yield from table["units"]

    def blobs(self):
        m = self.model
        encode_tables = [[EXPERTS, i, encode(wire.EXPERT_TABLE, t)] for i, t in enumerate(m["experts"])]
        out = [[PROGRAM, 0, encode(wire.PROGRAM, m["program"])], [TOKENIZER, 0, encode_tokenizer(m["tokenizer"])],
               [DENSE, 0, encode(wire.DENSE_TABLE, m["dense"])], *encode_tables, [HOT, 0, encode(wire.HOT_LIST, m["hot"])],
               [PROVENANCE, 0, m["provenance"]]]
        if "golden" in m:
            out.append([GOLDEN, 0, encode(wire.GOLDEN_PROMPTS, m["golden"])])
        for blob in out:
            blob[2] = self.blob.get((blob[0], blob[1]), lambda data: data)(blob[2])
        self.edit_blobs(out)
        return out

    def layout(self, manifest_bytes):
        """Places everything behind a manifest of that size; returns the manifest, [(offset, bytes)]."""
        for _ in range(4):  # offsets are varints: their lengths settle
            end, parts, refs = ENVELOPE + manifest_bytes, [], []
            for kind, index, data in self.blobs():
                parts.append((align(end), data))
                refs.append({"kind": kind, "index": index, "offset": align(end), "bytes": len(data), "digest": sha256(data)})
                end = align(end) + len(data)
            for unit in self.units():
                for chunk in unit["chunks"]:
                    parts.append((align(end), chunk["stored"]))
                    chunk["offset"] = align(end)
                    end = align(end) + len(chunk["stored"])
            self.place([chunk for unit in self.units() for chunk in unit["chunks"]])
        manifest = dict(self.manifest)
        manifest.setdefault("file_bytes", end)
        manifest.setdefault("chunk_count", sum(len(unit["chunks"]) for unit in self.units()))
        manifest.setdefault("blobs", refs)
        self.edit_manifest(manifest)
        return manifest, parts

    def make(self):
        size = 400
        for _ in range(8):
            manifest, parts = self.layout(size)
            data = self.manifest_bytes(encode(wire.MANIFEST, manifest))
            if len(data) == size:
                break
            size = len(data)
        signatures = sorted((key.public, key.sign(self.message(data))) for key in self.keys)
        envelope = bytearray(b"MOEBNDL\n" + struct.pack("<IIQQ", 1, len(signatures), len(data), 0))
        envelope += b"".join(public + signature for public, signature in signatures)
        envelope += bytes(ENVELOPE - len(envelope))
        self.envelope(envelope)
        out = bytearray(envelope + data)
        for offset, part in parts:
            out += bytes(max(0, offset - len(out))) + part
        self.file(out)
        return bytes(out)


# ---- the model folder ----

class BuildFolder:
    """A compressed model folder of the same model: files by name; `complete` is made last."""

    def __init__(self):
        self.model = copy.deepcopy(MODEL)
        self.index = lambda block, index: None   # the BlockIndex message before it is encoded
        self.files = lambda files: None          # {name: bytes}, before `complete` is made
        self.records = lambda records: None      # [FolderFile], before `complete` is encoded
        self.complete = lambda data: data
        self.after = lambda files: None          # {name: bytes}, as they are written

    def block_files(self):
        m, blocks = self.model, {}
        for block, unit in enumerate(m["dense"]["units"]):
            blocks.setdefault(block, []).append(({}, unit))
        for table, block in ((0, 1), (1, 2)):
            for physical, unit in enumerate(m["experts"][table]["units"]):
                blocks[block].append(({"expert": 1, "table": table, "physical": physical}, unit))
        out = {}
        for block, units in blocks.items():
            plains = [b"".join(chunk["plain"] for chunk in unit["chunks"]) for _, unit in units]
            index = {"version": 1, "block": block, "units": [
                {**key, "tensors": unit["tensors"], "plain_bytes": len(plain), "plain_digest": sha256(plain)}
                for (key, unit), plain in zip(units, plains)]}
            self.index(block, index)
            encoded = encode(wire.BLOCK_INDEX, index)
            head = b"MOEUNIT\n" + struct.pack("<II", 1, len(encoded)) + encoded
            out[f"block-{block:03}.moeu"] = (head, b"".join(plains))
        return out

    def write(self, folder):
        m = self.model
        blocks = self.block_files()
        experts = {"version": 1, "tables": [{"experts": table["experts"]} for table in m["experts"]]}
        files = {"program.pb": encode(wire.PROGRAM, m["program"]), "experts.pb": encode(wire.FOLDER_EXPERTS, experts),
                 "tokenizer.bin": encode_tokenizer(m["tokenizer"]), "hot.pb": encode(wire.HOT_LIST, m["hot"]),
                 "provenance.json": RECORD,
                 **{name: head + rest for name, (head, rest) in blocks.items()}}
        self.files(files)
        records = [{"name": name.encode(), "bytes": len(data), "digest": sha256(blocks[name][0] if name in blocks else data)}
                   for name, data in sorted(files.items())]
        self.records(records)
        files["complete"] = self.complete(encode(wire.FOLDER_COMPLETE, {"version": 1, "files": records}))
        self.after(files)
        folder.mkdir(parents=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)


# ---- trust records ----

RECORD_KEYS = {"release": KEY, "root": sorted((Key(11), Key(12)), key=lambda key: key.public), "new_root": Key(13),
               "channel": Key(21)}


def key_list(*keys):
    return [{"public_key": key.public} for key in sorted(keys, key=lambda key: key.public)]


class BuildRecord:
    """A trust anchor ("anchor"), the successor of one ("next") or a channel head ("head") under one."""

    def __init__(self):
        self.kind = "anchor"
        channel = {"role": 3, "threshold": 1, "keys": key_list(RECORD_KEYS["channel"])}
        self.current = {"version": 1, "product": b"vector", "root_version": 1, "key_epoch": 3, "minimum_security_counter": 7,
                        "roles": [{"role": 1, "threshold": 1, "keys": key_list(KEY)},
                                  {"role": 2, "threshold": 2, "keys": key_list(*RECORD_KEYS["root"])}, channel]}
        self.next = copy.deepcopy(self.current)
        self.next["root_version"] = 2
        self.next["roles"][1] = {"role": 2, "threshold": 1, "keys": key_list(RECORD_KEYS["new_root"])}
        self.head = {"version": 1, "product": b"vector", "channel": b"stable", "head_version": 5, "expires": 1700000000,
                     "key_epoch": 3, "security_counter": 7, "manifest_digest": sha256(b"manifest"), "file_bytes": 82032,
                     "rollout_permille": 1000}
        self.view = {"channel": "stable", "now": 1700000000, "head_version": 5, "key_epoch": 0, "security_counter": 0}
        self.keys = self.role = None           # None: those that the kind asks for
        self.body = lambda data: data          # before it is signed
        self.file = lambda data: None          # bytearray

    def record(self):
        return {"anchor": self.current, "next": self.next, "head": self.head}[self.kind]

    @staticmethod
    def sign(magic, role, body, keys):
        message = b"moepack signed manifest\n" + struct.pack("<IIQ", 1, role, len(body)) + body
        signatures = sorted((key.public, key.sign(message)) for key in keys)
        out = bytearray(magic + struct.pack("<IIQQ", 1, len(signatures), len(body), 0))
        out += b"".join(public + signature for public, signature in signatures)
        return out + bytes(ENVELOPE - len(out)) + body

    def make_current(self):
        return bytes(self.sign(b"MOETRST\n", 2, encode(second_trust.ANCHOR, self.current), RECORD_KEYS["root"]))

    def make(self):
        magic, role, fields, keys = {
            "anchor": (b"MOETRST\n", 2, second_trust.ANCHOR, RECORD_KEYS["root"]),
            "next": (b"MOETRST\n", 2, second_trust.ANCHOR, [*RECORD_KEYS["root"], RECORD_KEYS["new_root"]]),
            "head": (b"MOEHEAD\n", 3, second_trust.HEAD, [RECORD_KEYS["channel"]])}[self.kind]
        body = self.body(encode(fields, self.record()))
        out = self.sign(magic, self.role or role, body, keys if self.keys is None else self.keys)
        self.file(out)
        return bytes(out)
