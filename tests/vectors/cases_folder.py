"""The model folder before packing: R-8xx, and rules of other parts that it is read by."""
import writer
from vectors import FOLDER, add, hook, put

CUT, TWICE, LIES, TRAVERSAL = "truncation", "duplicate names", "type or shape lies", "path traversal"
FLIP, LAYOUT = "unsigned fields", "overlap, holes, polyglot"


after, records, files = hook("after"), hook("records"), hook("files")


def index(block, change):
    def edit(build):
        build.index = lambda number, message: change(message) if number == block else None
    return edit


def bad(rule, name, edit, attack=LIES):
    add(rule, f"folder_{name}", edit, stage=FOLDER, attack=attack)


def flip(name, at):
    def change(data):
        out = bytearray(data[name])
        out[at] ^= 1
        data[name] = bytes(out)
    return after(change)


bad("R-801", "not_complete", after(lambda f: f.pop("complete")), CUT)
for name in ("program.pb", "tokenizer.bin", "block-002.moeu"):
    bad("R-802", f"without_{name}", after(lambda f, name=name: f.pop(name)), CUT)
bad(None, "without_provenance", files(lambda f: f.pop("provenance.json")))
bad("R-802", "whose_provenance_went", after(lambda f: f.pop("provenance.json")), CUT)
for name, at in (("program.pb", 40), ("experts.pb", 5), ("hot.pb", 3), ("provenance.json", 0), ("block-001.moeu", 0),
                 ("block-001.moeu", 8),
                 ("block-001.moeu", 100), ("block-001.moeu", -1)):
    bad("R-803", f"flip_at_{at}_in_{name}", flip(name, at), FLIP)
bad("R-803", "longer_file", after(lambda f: f.update({"program.pb": f["program.pb"] + b"\0"})), LAYOUT)
bad("R-803", "shorter_block", after(lambda f: f.update({"block-003.moeu": f["block-003.moeu"][:-1]})), CUT)
for name in (b"../program.pb", b"/etc/passwd", b"block-1.moeu", b"block-0001.moeu", b"block--01.moeu", b"complete",
             b"block-000.moeu\0"):
    bad("R-804", f"name_{name.hex()}", records(lambda r, name=name: r.__setitem__(0, dict(r[0], name=name))), TRAVERSAL)
bad("R-804", "name_twice", records(lambda r: r.insert(1, dict(r[0]))), TWICE)
bad("R-804", "names_falling", records(lambda r: r.reverse()), TWICE)
bad("R-805", "block_of_another_number", index(2, lambda m: m.update(block=1)))
bad("R-805", "units_out_of_order", index(2, lambda m: m["units"][1].update(physical=3)))
bad("R-805", "unit_left_out", index(2, lambda m: m["units"][3].update(physical=3)))
bad("R-805", "unit_of_another_table", index(2, lambda m: [u.update(table=0) for u in m["units"][1:]]))
bad("R-805", "unit_of_no_table", index(2, lambda m: m["units"][3].update(table=9)))
bad("R-805", "unit_size", index(1, lambda m: m["units"][0].update(plain_bytes=m["units"][0]["plain_bytes"] + 1)))
bad("R-805", "block_too_many", files(lambda f: f.update({"block-004.moeu": b"MOEUNIT\n\1\0\0\0\4\0\0\0\x08\1\x10\4"})))
bad("R-805", "bytes_behind_the_last_unit", files(lambda f: f.update({"block-003.moeu": f["block-003.moeu"] + b"\0"})),
    LAYOUT)
bad("R-805", "tables_missing", files(lambda f: f.update({"experts.pb": b"\x08\1"})))
bad("R-409", "tensor_at_another_place", index(3, lambda m: m["units"][0]["tensors"][0].update(tensor=11)))
bad("R-410", "shape", index(3, lambda m: m["units"][0]["tensors"][0].update(rows=16, cols=1)))
bad("R-413", "expert_without_variant", put("experts.0.experts.0.variants", []))
bad("R-601", "codec", index(3, lambda m: m["units"][0]["tensors"][0].update(codec={"bits": 4})))
bad("R-201", "version_of_complete", lambda build: setattr(build, "complete", lambda data: b"\x08\2" + data[2:]))
add(None, "folder_valid", lambda build: None, stage=FOLDER)
