"""Wire form of the messages: R-2xx. Each is one change of canonical bytes, under a good digest and signature."""
import writer
from vectors import add, put
from writer import DENSE, EXPERTS, HOT, PROGRAM, delimited, tag, varint

MALLEABLE, OVERFLOW = "protobuf malleability", "integer overflow"


def manifest(change):
    def edit(build):
        build.manifest_bytes = change
    return edit


def blob(kind, change, index=0):
    return lambda build: build.blob.update({(kind, index): change})


def swap(old, new):
    def change(data):
        assert old in data, old.hex()
        return data.replace(old, new, 1)
    return change


def append(extra):
    return lambda data: data + extra


def last_node(change):
    """The last node of the program (linear, tensor 0: an empty record), re-encoded with its changed bytes."""
    def edit(build):
        def program(data):
            old = writer.encode(writer.wire.NODE, build.model["program"]["nodes"][-1])
            assert delimited(5, old) in data
            return data.replace(delimited(5, old), delimited(5, change(old)), 1)
        build.blob[(PROGRAM, 0)] = program
    return edit


EPOCH = b"\x20\x03\x28\x07"  # key_epoch 3, security_counter 7
for version, name in ((b"", "missing"), (b"\x08\x02", "2"), (b"\x08\x81\x00", "overlong")):
    for kind, what, edit in ((0, "manifest", manifest), (PROGRAM, "program", None), (DENSE, "dense_table", None),
                             (HOT, "hot_list", None),
                             (EXPERTS, "expert_table", None)):
        change = lambda data, version=version: version + data[2:]
        add("R-201", f"{what}_version_{name}", edit(change) if edit else blob(kind, change))

add("R-202", "manifest_with_an_unknown_field", manifest(append(b"\x58\x01")), attack=MALLEABLE)
add("R-202", "manifest_with_a_huge_field_number", manifest(append(tag(2**29 - 1, 0) + b"\1")), attack=MALLEABLE)
add("R-202", "manifest_with_field_number_zero", manifest(append(b"\x00\x01")), attack=MALLEABLE)
add("R-202", "manifest_with_a_group", manifest(append(b"\x5b\x5c")), attack=MALLEABLE)
add("R-202", "number_as_fixed64", manifest(swap(EPOCH, b"\x21\x03" + bytes(7) + b"\x28\x07")), attack=MALLEABLE)
add("R-202", "number_as_bytes", manifest(swap(EPOCH, b"\x22\x01\x03\x28\x07")), attack=MALLEABLE)
add("R-202", "packed_numbers_not_packed", blob(PROGRAM, swap(b"\x1a\x01\x00\x20\x1b", b"\x18\x00\x20\x1b")),
    attack=MALLEABLE)
add("R-202", "float_as_varint", last_node(lambda data: data[:-2] + b"\x5a\x04\x08\x02\x10\x01"), attack=MALLEABLE)
add("R-202", "unknown_field_in_a_node", last_node(append(b"\x70\x01")), attack=MALLEABLE)
add("R-202", "unknown_field_in_a_nested_record", last_node(lambda data: data[:-2] + b"\x32\x02\x18\x01"), attack=MALLEABLE)
add("R-202", "unknown_field_in_a_hot_expert", blob(HOT, swap(b"\x12\x02\x10\x02", b"\x12\x04\x10\x02\x18\x01")),
    attack=MALLEABLE)
add("R-203", "number_twice", manifest(swap(EPOCH, b"\x20\x03" + EPOCH)), attack="duplicate names")
add("R-203", "bytes_twice", manifest(swap(b"\x12\x06vector", b"\x12\x06vector\x12\x06camera")), attack="duplicate names")
add("R-203", "fields_out_of_order", manifest(swap(EPOCH, b"\x28\x07\x20\x03")), attack=MALLEABLE)
add("R-203", "field_again_behind_a_list", manifest(append(b"\x20\x03")), attack="duplicate names")
add("R-203", "list_in_two_parts", blob(PROGRAM, swap(b"\x1a\x01\x00", b"\x1a\x01\x00\x1a\x01\x00")),
    attack="duplicate names")
add("R-203", "record_twice", last_node(append(b"\x32\x00")), attack="duplicate names")
add("R-204", "value_overlong", manifest(swap(EPOCH, b"\x20\x83\x00\x28\x07")), attack=MALLEABLE)
add("R-204", "tag_overlong", manifest(swap(EPOCH, b"\xa0\x00\x03\x28\x07")), attack=MALLEABLE)
add("R-204", "length_overlong", manifest(swap(b"\x12\x06vector", b"\x12\x86\x00vector")), attack=MALLEABLE)
add("R-204", "element_overlong", blob(PROGRAM, swap(b"\x1a\x01\x00", b"\x1a\x02\x80\x00")), attack=MALLEABLE)
add("R-204", "number_of_65_bits", manifest(swap(EPOCH, b"\x20" + b"\xff" * 9 + b"\x02\x28\x07")), attack=OVERFLOW)
add("R-204", "number_that_does_not_end", manifest(swap(EPOCH, b"\x20" + b"\xff" * 11 + b"\x01\x28\x07")), attack=OVERFLOW)
add("R-205", "u32_of_33_bits", manifest(swap(EPOCH, EPOCH + delimited(6, varint(2**32)))), attack=OVERFLOW)
add("R-205", "u32_of_64_bits", blob(HOT, swap(b"\x12\x02\x10\x02", delimited(2, b"\x10" + varint(2**64 - 1)))),
    attack=OVERFLOW)
add("R-205", "table_index_of_33_bits", blob(HOT, swap(b"\x12\x04\x08\x01\x10\x01",
                                                      delimited(2, b"\x08" + varint(2**32 + 1) + b"\x10\x01"))),
                                                      attack=OVERFLOW)
for name, path, value in (
        ("element_5", "dense.units.0.tensors.0.codec.element", 5),
        ("sparsity_3", "dense.units.0.tensors.0.codec.sparsity", 3),
        ("bits_9", "dense.units.0.tensors.0.codec.bits", 9), ("has_min_2", "dense.units.0.tensors.0.codec.has_min", 2),
        ("group_size_257", "dense.units.0.tensors.0.codec.group_size", 257), ("n_16", "dense.units.0.tensors.0.codec.n", 16),
        ("m_17", "dense.units.0.tensors.0.codec.m", 17), ("encoding_3", "dense.units.0.chunks.0.encoding", 3),
        ("cache_policy_3", "hot.cache_policy", 3),
        ("value_kind_2", "program.values.1.kind", 2), ("role_9", "program.tensors.0.role", 9),
        ("norm_kind_2", "program.nodes.1.norm.kind", 2), ("score_3", "program.nodes.12.moe.routing.score", 3),
        ("activation_5", "program.nodes.12.moe.activation.function", 5),
        ("operation_9", "program.nodes.9.elementwise.op", 9)):
    add("R-205", f"enum_{name}", put(path, value), attack="type or shape lies")


def unknown_blob_kind(build):
    build.edit_manifest = lambda m: m["blobs"].append({**m["blobs"][-1], "kind": 8})


add("R-205", "enum_blob_kind_8", unknown_blob_kind, attack="type or shape lies")
add("R-206", "zero_written_out", manifest(swap(EPOCH, b"\x20\x03\x28\x00")), attack=MALLEABLE)
add("R-206", "false_written_out", blob(PROGRAM, lambda data: b"\x28\x00".join(data.rsplit(b"\x28\x01", 1))),
    attack=MALLEABLE)
add("R-206", "empty_name_written_out", manifest(swap(b"\x12\x06vector", b"\x12\x00")), attack=MALLEABLE)
add("R-206", "empty_list_written_out", manifest(swap(EPOCH, EPOCH + b"\x32\x00")), attack=MALLEABLE)
add("R-206", "float_zero_written_out", last_node(lambda data: data[:-2] + b"\x5a\x05\x15\0\0\0\0"), attack=MALLEABLE)
add("R-207", "message_cut_inside_a_digest", manifest(lambda data: data[:-1]), attack="truncation")
add("R-207", "message_cut_inside_a_number", manifest(append(b"\x52\x02\x08\x86")), attack="truncation")
add("R-207", "message_cut_behind_a_tag", blob(HOT, append(b"\x12")), attack="truncation")
add("R-207", "length_past_the_end", manifest(append(b"\x52\x7f\x08\x06")), attack=OVERFLOW)
add("R-207", "length_of_64_bits", manifest(append(b"\x52" + varint(2**64 - 1))), attack=OVERFLOW)
add("R-207", "number_past_its_record", blob(HOT, append(b"\x12\x02\x10\x80\x12\x00")), attack=OVERFLOW)
add("R-207", "length_past_its_record", manifest(append(b"\x52\x03\x2a\x20\x00")), attack=OVERFLOW)
add("R-207", "float_cut_off", last_node(lambda data: data[:-2] + b"\x5a\x03\x15\0\0"), attack="truncation")
add("R-207", "list_of_floats_cut_off", lambda b: (put("program.nodes.5.rotary.inv_freq", [1.0])(b), blob(PROGRAM, swap(
    b"\x32\x04\x00\x00\x80\x3f", b"\x32\x03\x00\x00\x80"))(b)), attack="truncation")
add("R-207", "value_in_a_list_cut_off", blob(PROGRAM, swap(b"\x1a\x01\x00", b"\x1a\x01\x80")), attack="truncation")


def last_blob(change):
    """The last blob entry of the manifest, which ends with its digest, re-encoded with its changed bytes."""
    def edit(data):
        at = next(i for i in range(len(data) - 2, 0, -1) if data[i] == 0x52 and data[i + 1] == len(data) - i - 2)
        return data[:at] + delimited(10, change(data[at + 2:]))
    return manifest(edit)


for size in (0, 31, 33):
    digest = b"\x2a" + varint(size) + bytes([7]) * size if size else b""
    add("R-208", f"digest_of_{size}_bytes", last_blob(lambda data, digest=digest: data[:-34] + digest),
        attack="type or shape lies")
for field in ("stored_digest", "plain_digest"):
    add("R-208", f"chunk_without_{field}", put(f"dense.units.1.chunks.0.{field}", b""), attack="type or shape lies")
add("R-208", "node_without_kind", last_node(lambda data: data[:-2]), attack="type or shape lies")
add("R-208", "node_of_two_kinds", last_node(append(b"\x6a\x00")), attack="type or shape lies")


def drop_codec(data):
    """The last tensor (f32: an empty codec) loses its codec field."""
    at = data.rindex(b"\x12\x00\x18\x01\x20\x10")
    tensor = data.rindex(b"\x0a", 0, at)
    inner = data[tensor + 2:at] + data[at + 2:at + 6]
    shorter = data[:tensor] + delimited(1, inner) + data[at + 6:]
    unit = shorter.rindex(b"\x12", 0, tensor)  # the unit that holds it: 12, length of one byte
    return shorter[:unit + 1] + bytes([shorter[unit + 1] - 2]) + shorter[unit + 2:]


add("R-208", "tensor_without_codec", blob(DENSE, drop_codec), attack="type or shape lies")


def moe_without(field):
    def edit(build):
        node = build.model["program"]["nodes"][12]
        whole = writer.encode(writer.wire.NODE, node)
        moe = node["moe"]
        number = {"routing": 1, "activation": 2}[field]
        message = writer.wire.NODE[10].message
        part = delimited(number, writer.encode(message[number].message, moe[field]))
        inner = writer.encode(message, moe)
        assert part in inner
        new = whole.replace(delimited(10, inner), delimited(10, inner.replace(part, b"", 1)), 1)
        build.blob[(PROGRAM, 0)] = swap(delimited(5, whole), delimited(5, new))
    return edit


for field in ("routing", "activation"):
    add("R-208", f"moe_without_{field}", moe_without(field), attack="type or shape lies")

# ---- counts ----

add("R-209", "features_65", lambda b: b.manifest.update(required_features=list(range(1, 66))), attack=OVERFLOW)
add("R-209", "steps_of_unavailability_9", lambda b: b.manifest.update(unavailable=list(range(1, 10))), attack=OVERFLOW)
add("R-209", "product_of_65_bytes", lambda b: b.manifest.update(product=b"v" * 65), attack=OVERFLOW)
add("R-209", "version_of_65_bytes", lambda b: b.manifest.update(version=b"1" * 65), attack=OVERFLOW)
add("R-209", "name_of_201_bytes", put("program.values.0.name", b"v" * 201), attack=OVERFLOW)
add("R-209", "variants_17", put("experts.0.experts.0.variants", [{"physical": i} for i in range(17)]), attack=OVERFLOW)
add("R-209", "inputs_4097", put("program.nodes.9.inputs", [1] * 4097), attack=OVERFLOW)
add("R-209", "program_inputs_4097", put("program.inputs", [0] * 4097), attack=OVERFLOW)
add("R-209", "inverse_frequencies_4097", put("program.nodes.5.rotary.inv_freq", [1.0] * 4097), attack=OVERFLOW)
add("R-209", "experts_4097", put("program.expert_tables.0.intermediate", [8] * 4097), attack=OVERFLOW)
add("R-209", "originals_4097", put("program.expert_tables.0.original", list(range(4097))), attack=OVERFLOW)
add("R-209", "entries_4097", put("experts.0.experts", [{"variants": [{}]}] * 4097), attack=OVERFLOW)
add("R-209", "blobs_2049", lambda b: setattr(b, "manifest_bytes",
                                             append(delimited(10, b"\x08\x06\x2a\x20" + bytes(32)) * 2049)), attack=OVERFLOW)
for kind, name, record, count in ((PROGRAM, "values", b"\x12\x00", 2**18), (PROGRAM, "tensors", b"\x32\x00", 2**20),
                                  (HOT, "hot_experts", b"\x12\x00", 2**20),
                                  (PROGRAM, "expert_tables", b"\x3a\x00", 1024),
                                  (PROGRAM, "nodes", b"\x2a\x04\x08\x01\x6a\x00", 65536),
                                  (DENSE, "units", b"\x12\x00", 8192), (EXPERTS, "units_of_a_table", b"\x22\x00", 8192)):
    add("R-209", f"{name}_{count + 1}", blob(kind, lambda data, record=record,
                                             count=count: b"\x08\x01" + record * (count + 1)), attack=OVERFLOW)
add("R-209", "tensors_of_a_unit_1048577", blob(DENSE,
                                               lambda data: b"\x08\x01" + delimited(2, b"\x0a\x02\x12\x00" * (2**20 + 1))),
                                               attack=OVERFLOW)
