"""A second reader of bundles and model folders, written from format/SPEC.md alone: it shares no code with moepack.

    python3 second_reader.py BUNDLE --trust T.json [--use]     or     python3 second_reader.py FOLDER

Prints the rule that the input breaks and its error code, or "ok". Standard library, python3-cryptography, python3-zstandard.
"""
import argparse
import hashlib
import json
import pathlib
import re
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

import second_trust
from second_golden import check_golden, read_golden
from second_plain import check_codec, check_plain, check_tokenizer, decode_chunk, plain_bytes, unit_bytes
from second_program import must, read_program
from second_wire import (BLOCK_INDEX, DENSE_TABLE, EXPERT_TABLE, FOLDER_COMPLETE, FOLDER_EXPERTS, HOT_LIST, MANIFEST,
                         Refused, parse)

CODES = {"R-001": 302, "R-002": 311, "R-008": 402, "R-101": 400, "R-102": 403, "R-103": 501, "R-104": 500, "R-105": 500,
         "R-106": 501, "R-107": 402, "R-108": 401, "R-109": 401, "R-110": 401, "R-201": 311, "R-209": 310, "R-307": 310,
         "R-403": 310, "R-418": 310, "R-409": 306, "R-410": 307, "R-413": 306, "R-501": 310, "R-504": 311,
         "R-801": 300, "R-901": 404, "R-902": 404, "R-903": 404, "R-904": 403, "R-905": 403, "R-906": 501,
         "R-907": 500, "R-911": 403, "R-912": 501, "R-913": 500, "R-914": 501, "R-915": 500,
         "R-802": 313, "R-803": 401, "R-804": 300, "R-805": 300}
FAMILY_CODES = {"0": 405, "7": 309}  # of rules that are not listed above; all others are 303

MAGIC, ENVELOPE, ALIGNMENT = b"MOEBNDL\n", 1568, 4096
P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
SMALL_Y = {0, 1, P - 1, P, P + 1} | {
    int.from_bytes(bytes.fromhex(text), "little") & (1 << 255) - 1
    for text in ("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
                 "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")}


def code_of(rule):
    return CODES.get(rule, FAMILY_CODES.get(rule[2], 303))


def align(value):
    return -(-value // ALIGNMENT) * ALIGNMENT


def sha256(data):
    return hashlib.sha256(data).digest()


def signature_is_right(key, signature, message):
    y_key, y_r = (int.from_bytes(part, "little") & (1 << 255) - 1 for part in (key, signature[:32]))
    if int.from_bytes(signature[32:], "little") >= L or y_key >= P or y_key in SMALL_Y or y_r in SMALL_Y:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def read_envelope(data, role=1):
    """Returns ([key], manifest bytes); of a trust record its body."""
    if role == 1:
        must(data[:8] == MAGIC[:len(data)], "R-001", "magic")
    else:
        must(data[:8] == (b"MOETRST\n" if role == 2 else b"MOEHEAD\n"), "R-901", "magic")
    must(len(data) >= ENVELOPE, "R-008", "shorter than an envelope")
    number = lambda at, size: int.from_bytes(data[at:at + size], "little")
    must(number(8, 4) == 1, "R-002", "format version")
    count, manifest_bytes = number(12, 4), number(16, 8)
    must(count <= 16, "R-003", "signature count")
    must(1 <= manifest_bytes <= 2**20, "R-004", "manifest_bytes")
    must(number(24, 8) == 0, "R-005", "reserved bytes")
    slots = [data[32 + 96 * i:128 + 96 * i] for i in range(16)]
    must(all(a[:32] < b[:32] for a, b in zip(slots[:count], slots[1:count])), "R-006", "order of keys")
    must(not any(any(slot) for slot in slots[count:]), "R-007", "unused slot")
    must(len(data) - ENVELOPE >= manifest_bytes, "R-008", "cut inside the manifest")
    manifest = data[ENVELOPE:ENVELOPE + manifest_bytes]
    if role != 1:
        must(len(data) == ENVELOPE + manifest_bytes, "R-902", "bytes behind the body")
    message = b"moepack signed manifest\n\1\0\0\0" + bytes([role, 0, 0, 0]) + data[16:24] + manifest
    for slot in slots[:count]:
        must(signature_is_right(slot[:32], slot[32:], message), "R-101", "signature")
    return [slot[:32] for slot in slots[:count]], manifest


def check_manifest(m):
    must(re.fullmatch(rb"[a-z0-9._-]{1,64}", m["product"]), "R-301", "product")
    must(re.fullmatch(rb"[A-Za-z0-9._+-]{1,64}", m["version"]), "R-301", "version")
    steps = m["unavailable"]
    must(all(1 <= step <= 5 for step in steps) and all(a < b for a, b in zip(steps, steps[1:])), "R-303", "unavailability")
    features = m["required_features"]
    must(all(a < b for a, b in zip(features, features[1:])), "R-302", "features")
    must(m["chunk_count"] >= 1, "R-304", "no chunks")
    kinds = [blob["kind"] for blob in m["blobs"]]
    must(all(kinds) and kinds == sorted(kinds), "R-305", "kinds")
    must(all(kinds.count(kind) <= 1 for kind in (1, 2, 3, 5, 6, 7)), "R-305", "a blob twice")
    tables = [blob["index"] for blob in m["blobs"] if blob["kind"] == 4]
    must(tables == list(range(len(tables))), "R-305", "index of a table")
    must(all(blob["index"] == 0 for blob in m["blobs"] if blob["kind"] != 4), "R-305", "index")
    must({1, 3, 5} <= set(kinds), "R-306", "a blob is missing")
    end = None
    for blob in m["blobs"]:
        must(1 <= blob["bytes"] <= 2**26, "R-307", "bytes of a blob")
        must(blob["offset"] % ALIGNMENT == 0 and blob["offset"] > 0, "R-308", "place of a blob")
        must(end is None or blob["offset"] == align(end), "R-308", "place of a blob")
        end = blob["offset"] + blob["bytes"]
        must(end <= m["file_bytes"], "R-308", "blob past the end")


def check_policy(m, trust):
    must(m["product"] == trust["product"].encode(), "R-103", "product")
    must(m["key_epoch"] >= trust["key_epoch"], "R-104", "key epoch")
    floor = trust["minimum_security_counter"] if m["key_epoch"] == trust["key_epoch"] else 0
    must(m["security_counter"] >= floor, "R-105", "security counter")
    must(not m["required_features"], "R-106", "feature")


def check_unit(unit):
    must(unit["tensors"] and unit["chunks"], "R-401", "unit without tensors or chunks")
    for tensor in unit["tensors"]:
        try:
            check_codec(tensor["codec"])
        except Refused as refused:
            raise Refused("R-402", str(refused)) from refused
    for chunk in unit["chunks"]:
        must(1 <= chunk["plain_bytes"] <= 2**20, "R-403", "plain bytes of a chunk")
        must(chunk["offset"] % ALIGNMENT == 0, "R-404", "offset of a chunk")
        if chunk["encoding"] == 0:
            same = chunk["stored_bytes"] == chunk["plain_bytes"] and chunk["stored_digest"] == chunk["plain_digest"]
            must(same, "R-405", "raw chunk")
        else:
            rule = "R-406" if chunk["encoding"] == 1 else "R-407"
            must(1 <= chunk["stored_bytes"] < chunk["plain_bytes"], rule, "compressed chunk")


def check_tensors(wanted, stored):
    """wanted: [(tensor, rows, cols)]."""
    for i, (tensor, rows, cols) in enumerate(wanted):
        must(i < len(stored) and stored[i]["tensor"] == tensor, "R-409", "tensor is not at its place")
        must((stored[i]["rows"], stored[i]["cols"]) == (rows, cols), "R-410", "stored shape")
    must(len(stored) == len(wanted), "R-411", "tensors too many")


def check_dense(program, tensors, stored):
    check_tensors([(i, program["tensors"][i]["rows"], program["tensors"][i]["cols"]) for i in tensors], stored)


def check_experts(declared, entries, units):
    """units: the tensors of each unit."""
    must(len(entries) == len(declared["intermediate"]), "R-412", "experts of a table")
    used = set()
    for entry, width in zip(entries, declared["intermediate"]):
        physical = [variant["physical"] for variant in entry["variants"]]
        must(physical, "R-413", "expert without variant")
        hidden = declared["hidden"]
        shapes = [(0, width, hidden)] if declared["gated"] else []
        for at, unit in enumerate(physical):
            must(unit < len(units), "R-413", "unit does not exist")
            must(unit not in physical[:at], "R-414", "unit named twice")
            check_tensors(shapes + [(1, width, hidden), (2, hidden, width)], units[unit])
            used.add(unit)
    must(len(used) == len(units), "R-414", "unit that no expert names")


def read_hot_list(data):
    hot = parse(data, HOT_LIST)
    experts = [(e["table"], e["expert"]) for e in hot["experts"]]
    must(len(set(experts)) == len(experts), "R-408", "expert listed twice")
    weights = hot["recency"] + hot["frequency"] + hot["nearness"]
    must(weights == (100 if hot["cache_policy"] == 2 else 0), "R-419", "weights of the cache policy")
    must(hot["half_life"] <= (65536 if hot["cache_policy"] else 0), "R-419", "half-life of the cache policy")
    must(hot["pinned_percent"] <= 50, "R-419", "pinned share")
    return experts


class Bundle:
    def __init__(self, data, trust):
        self.data = data
        keys, manifest = read_envelope(data)
        trusted = {bytes.fromhex(key) for key in trust["release_keys"]}
        must(len(trusted & set(keys)) >= trust["threshold"], "R-102", "threshold")
        self.manifest = parse(manifest, MANIFEST)
        check_manifest(self.manifest)
        check_policy(self.manifest, trust)
        must(len(data) == self.manifest["file_bytes"], "R-107", "file size")
        must(self.manifest["blobs"][0]["offset"] == align(ENVELOPE + len(manifest)), "R-308", "place of the first blob")
        self.manifest_end = ENVELOPE + len(manifest)
        self.tables, self.tokenizer, self.golden = [], None, None
        for blob in self.manifest["blobs"]:
            self.read_blob(blob)
        self.check_layout()

    def read_blob(self, blob):
        data = self.data[blob["offset"]:blob["offset"] + blob["bytes"]]
        must(sha256(data) == blob["digest"], "R-108", "digest of a blob")
        if blob["kind"] == 1:
            self.program = read_program(data)
        elif blob["kind"] == 2:
            self.tokenizer = data
        elif blob["kind"] == 3:
            self.dense = parse(data, DENSE_TABLE)["units"]
            for unit in self.dense:
                check_unit(unit)
        elif blob["kind"] == 4:
            table = parse(data, EXPERT_TABLE)
            for unit in table["units"]:
                check_unit(unit)
            must(table["table"] == blob["index"], "R-412", "order of expert tables")
            self.tables.append(table)
        elif blob["kind"] == 5:
            self.hot = read_hot_list(data)
        elif blob["kind"] == 7:
            self.golden = read_golden(data)

    def units(self):
        yield from self.dense
        for table in self.tables:
            yield from table["units"]

    def check_layout(self):
        program, end = self.program, self.manifest["blobs"][-1]["offset"] + self.manifest["blobs"][-1]["bytes"]
        for at, (_, tensors) in enumerate(program["dense"]):
            must(at < len(self.dense), "R-409", "dense unit is missing")
            check_dense(program, tensors, self.dense[at]["tensors"])
            end = self.check_places(self.dense[at], end)
        must(len(self.dense) == len(program["dense"]), "R-411", "dense unit too many")
        must(len(self.tables) == len(program["expert_tables"]), "R-412", "number of expert tables")
        for declared, table in zip(program["expert_tables"], self.tables):
            check_experts(declared, table["experts"], [unit["tensors"] for unit in table["units"]])
            for unit in table["units"]:
                end = self.check_places(unit, end)
        for table, expert in self.hot:
            known = table < len(self.tables) and expert < len(self.tables[table]["experts"])
            must(known, "R-408", "hot expert is not in the program")
        chunks = sum(len(unit["chunks"]) for unit in self.units())
        must((chunks, end) == (self.manifest["chunk_count"], self.manifest["file_bytes"]), "R-417", "chunk count or end")
        if self.golden is not None:
            check_golden(self.golden, program)

    @staticmethod
    def check_places(unit, end):
        for chunk in unit["chunks"]:
            must(chunk["offset"] == align(end), "R-416", "place of a chunk")
            end = chunk["offset"] + chunk["stored_bytes"]
        wanted = unit_bytes(unit["tensors"])
        must(wanted == sum(chunk["plain_bytes"] for chunk in unit["chunks"]), "R-415", "plain bytes of a unit")
        return end

    def verify_all(self):
        pieces = [(blob["offset"], blob["bytes"], blob["digest"], "R-108") for blob in self.manifest["blobs"]]
        for unit in self.units():
            pieces += [(c["offset"], c["stored_bytes"], c["stored_digest"], "R-109") for c in unit["chunks"]]
        end = self.manifest_end
        for offset, size, digest, rule in pieces:
            must(not any(self.data[end:offset]), "R-110", "padding")
            must(sha256(self.data[offset:offset + size]) == digest, rule, "digest")
            end = offset + size

    def use(self):
        """What a runtime does with every unit, and with the tokenizer."""
        if self.tokenizer is not None:
            check_tokenizer(self.tokenizer)
        for unit in self.units():
            plain = b""
            for chunk in unit["chunks"]:
                stored = self.data[chunk["offset"]:chunk["offset"] + chunk["stored_bytes"]]
                must(sha256(stored) == chunk["stored_digest"], "R-109", "digest of a chunk")
                plain += decode_chunk(chunk, stored)
            for tensor in unit["tensors"]:
                size = plain_bytes(tensor)
                check_plain(tensor, plain[:size])
                plain = plain[size:]

    def check_identities(self):
        """What a program that keeps chunks by their identity does with each."""
        for unit in self.units():
            for chunk in unit["chunks"]:
                stored = self.data[chunk["offset"]:chunk["offset"] + chunk["stored_bytes"]]
                must(sha256(stored) == chunk["stored_digest"], "R-109", "digest of a chunk")
                must(sha256(decode_chunk(chunk, stored)) == chunk["plain_digest"], "R-607", "identity of a chunk")


class Folder:
    NAMES = {b"program.pb", b"experts.pb", b"tokenizer.bin", b"hot.pb", b"plan.json", b"errors.json", b"provenance.json"}

    def __init__(self, path):
        self.path = pathlib.Path(path)
        must((self.path / "complete").exists(), "R-801", "no file `complete`")
        files = parse((self.path / "complete").read_bytes(), FOLDER_COMPLETE)["files"]
        names = [f["name"] for f in files]
        for file_name in names:
            must(file_name in self.NAMES or re.fullmatch(rb"block-(\d{3}|[1-9]\d{3,})\.moeu", file_name), "R-804",
                 "unknown name")
        must(all(a < b for a, b in zip(names, names[1:])), "R-804", "names do not rise")
        self.files = {f["name"].decode(): f for f in files}
        parts = {name: self.read(name) for name in ("program.pb", "experts.pb", "hot.pb", "tokenizer.bin")}
        self.program = read_program(parts["program.pb"])
        entries = [table["experts"] for table in parse(parts["experts.pb"], FOLDER_EXPERTS)["tables"]]
        if "hot.pb" in self.files:
            read_hot_list(parts["hot.pb"])
        self.blocks = {int(name[6:-5]): self.read_block(name) for name in self.files if name.startswith("block-")}
        self.check(entries)
        self.read("provenance.json")

    def open(self, name):
        must((self.path / name).exists(), "R-802", "listed file is missing")
        return (self.path / name).read_bytes()

    def read(self, name):
        if name not in self.files:
            return b""
        data = self.open(name)
        record = self.files[name]
        must(len(data) == record["bytes"] and sha256(data) == record["digest"], "R-803", name)
        return data

    def read_block(self, name):
        """[(key, tensors, offset, unit)]"""
        data, record = self.open(name), self.files[name]
        must(len(data) == record["bytes"], "R-803", "size of a block")
        index_end = 16 + int.from_bytes(data[12:16], "little")
        head_is_right = len(data) >= 16 and index_end <= len(data) and data[:12] == b"MOEUNIT\n\x01\0\0\0"
        must(head_is_right and sha256(data[:index_end]) == record["digest"], "R-803", "head of a block")
        index = parse(data[16:index_end], BLOCK_INDEX)
        must(index["block"] == int(name[6:-5]), "R-805", "another block")
        units, offset = [], index_end
        for unit in index["units"]:
            for tensor in unit["tensors"]:
                check_codec(tensor["codec"])
            must(unit_bytes(unit["tensors"]) == unit["plain_bytes"], "R-805", "size of a unit")
            key = (unit["expert"], unit["table"], unit["physical"])
            must(not units or units[-1][0] < key, "R-805", "order of units")
            units.append((key, unit["tensors"], offset, unit))
            offset += unit["plain_bytes"]
        must(offset == len(data), "R-805", "end of a block")
        return units

    def check(self, entries):
        program, stored = self.program, [[] for _ in self.program["expert_tables"]]
        must(len(entries) == len(stored), "R-805", "number of tables")
        dense = dict(program["dense"])
        for block in range(program["blocks"]):
            units = list(self.blocks.get(block, []))
            if block in dense:
                first = units.pop(0)[1] if units and not units[0][0][0] else []
                check_dense(program, dense[block], first)
            for (expert, table, physical), tensors, _, _ in units:
                here = expert and program["table_block"].get(table) == block
                must(here and physical == len(stored[table]), "R-805", "unit of another block")
                stored[table].append(tensors)
        must(max(self.blocks, default=0) < program["blocks"], "R-805", "block that the program does not have")
        for declared, table, units in zip(program["expert_tables"], entries, stored):
            check_experts(declared, table, units)

    def use(self):
        for block, units in self.blocks.items():
            data = self.open(f"block-{block:03}.moeu")
            for _, _, offset, unit in units:
                must(sha256(data[offset:offset + unit["plain_bytes"]]) == unit["plain_digest"], "R-803", "digest of a unit")


def read_record(kind, data, current, view):
    """(code, rule) of an anchor, of the successor ("next") of `current`, or of a head under it."""
    def step():
        keys, body = read_envelope(data, 3 if kind == "head" else 2)
        if kind == "anchor":
            second_trust.read_anchor(keys, body)
        elif kind == "next":
            second_trust.read_successor(second_trust.parse_anchor(read_envelope(current, 2)[1]), keys, body)
        else:
            second_trust.read_head(second_trust.parse_anchor(read_envelope(current, 2)[1]), view, keys, body)
    return judge(step)


def judge(step):
    """(code, rule) of what `step` raises, (0, "") when it passes."""
    try:
        step()
    except Refused as refused:
        return code_of(refused.rule), refused.rule
    return 0, ""


def read_bundle(data, trust):
    """[(code, rule)] of opening, of checking the whole file, of using it and of keeping its chunks by identity; after a
    failed opening the others repeat it."""
    opened = []
    verdict = judge(lambda: opened.append(Bundle(data, trust)))
    if verdict[0]:
        return [verdict] * 4
    bundle = opened[0]
    return [verdict, judge(bundle.verify_all), judge(bundle.use), judge(bundle.check_identities)]


def read_folder(path):
    opened = []
    verdict = judge(lambda: opened.append(Folder(path)))
    return verdict if verdict[0] else judge(opened[0].use)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input")
    parser.add_argument("--trust")
    parser.add_argument("--use", action="store_true", help="also decode every unit")
    options = parser.parse_args()
    if pathlib.Path(options.input).is_dir():
        code, rule = read_folder(options.input)
        rule = rule or "ok"
    else:
        trust = json.loads(pathlib.Path(options.trust).read_text())
        verdicts = read_bundle(pathlib.Path(options.input).read_bytes(), trust)
        code, rule = next((v for v in verdicts[:3 if options.use else 2] if v[0]), (0, "ok"))
    print(rule, code)
    return code // 100


if __name__ == "__main__":
    sys.exit(main())
