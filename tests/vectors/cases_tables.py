"""Tables, layout and codecs: R-4xx, R-601, R-602."""
import writer
from vectors import add, both, put
from writer import CODECS, make_chunk, node

LIES, LAYOUT, OVERFLOW, TWICE, BOMB = ("type or shape lies", "overlap, holes, polyglot", "integer overflow",
                                       "duplicate names",
                                       "decompression bomb")
ROLLBACK = "rollback, mix-and-match"


def dense(change):
    return lambda build: change(build.model["dense"]["units"])


def table(change, index=0):
    return lambda build: change(build.model["experts"][index])


add("R-401", "dense_unit_without_tensors", dense(lambda units: units[0].update(tensors=[])), attack=LIES)
add("R-401", "dense_unit_without_chunks", dense(lambda units: units[3].update(chunks=[])), attack=LIES)
add("R-401", "expert_unit_without_chunks", table(lambda t: t["units"][1].update(chunks=[])), attack=LIES)

# ---- codecs ----

FLOAT, INT, TRELLIS = {"element": 1}, {"element": 3, "bits": 4}, {"element": 4, "bits": 2}
KEEP, N_OF_M = {"sparsity": 1, "kept_per_row": 5}, {"sparsity": 2, "n": 2, "m": 4}
for name, codec in (
        ("integer_of_no_bits", {"element": 3}), ("integer_of_7_bits", {**INT, "bits": 7}),
        ("integer_of_1_bit", {**INT, "bits": 1}),
        ("group_of_17", {**INT, "group_size": 17}), ("group_of_8", {**INT, "group_size": 8}),
        ("trellis_of_8_bits", {**TRELLIS, "bits": 8}), ("trellis_of_no_bits", {**TRELLIS, "bits": 0}),
        ("trellis_with_minimum", {**TRELLIS, "has_min": 1}),
        ("trellis_with_mask", {**TRELLIS, "sparsity": 1, "kept_per_row": 5}), ("trellis_group_of_17", {**TRELLIS, "group_size": 17}),
        ("float_with_bits", {**FLOAT, "bits": 4}),
        ("float_with_minimum", {**FLOAT, "has_min": 1}), ("float_with_groups", {**FLOAT, "group_size": 16}),
        ("dense_with_kept", {**INT, "kept_per_row": 4}), ("dense_with_n", {**INT, "n": 1}),
        ("dense_with_m", {**INT, "m": 4}),
        ("mask_with_n", {**FLOAT, **KEEP, "n": 1}), ("mask_with_m", {**FLOAT, **KEEP, "m": 4}),
        ("mask_that_keeps_nothing", {**FLOAT, "sparsity": 1}),
        ("mask_that_keeps_too_many", {**FLOAT, "sparsity": 1, "kept_per_row": 2**20 + 1}),
        ("n_of_m_with_kept", {**INT, **N_OF_M, "kept_per_row": 2}),
        ("n_of_5", {**INT, **N_OF_M, "m": 5}), ("none_of_m", {**INT, "sparsity": 2, "m": 4}),
        ("all_of_m", {**INT, **N_OF_M, "n": 4}),
        ("more_than_m", {**INT, **N_OF_M, "n": 7})):
    add("R-402", f"codec_{name}", put("dense.units.1.tensors.1.codec", codec), attack=LIES)

# ---- chunks ----


def chunk(change, unit=1, index=0):
    return dense(lambda units: change(units[unit]["chunks"][index]))


add("R-403", "chunk_of_no_plain_bytes", chunk(lambda c: c.update(plain_bytes=0)), attack=LIES)
add("R-403", "chunk_of_more_than_a_mebibyte", chunk(lambda c: c.update(plain_bytes=2**20 + 1), unit=0), attack=BOMB)
add("R-403", "chunk_of_2_to_the_63", chunk(lambda c: c.update(plain_bytes=2**63), unit=0), attack=OVERFLOW)


def places(change):
    def edit(build):
        build.place = change
    return edit


def shift(chunks, by):
    for c in chunks:
        c["offset"] += by


add("R-404", "chunk_not_aligned", places(lambda chunks: shift(chunks[-1:], 1)), attack=LAYOUT)
add("R-405", "raw_chunk_stored_shorter", chunk(lambda c: c.update(stored_bytes=c["stored_bytes"] - 1)), attack=LIES)
add("R-405", "raw_chunk_with_two_digests", chunk(lambda c: c.update(plain_digest=bytes(32))), attack=LIES)
add("R-406", "zstd_chunk_of_no_bytes", chunk(lambda c: c.update(stored_bytes=0), unit=0), attack=LIES)
add("R-406", "zstd_chunk_that_grew", chunk(lambda c: c.update(stored_bytes=c["plain_bytes"]), unit=0), attack=LIES)
add("R-406", "zstd_chunk_of_2_to_the_64", chunk(lambda c: c.update(stored_bytes=2**64 - 1), unit=0), attack=OVERFLOW)
add("R-407", "rans_chunk_of_no_bytes", chunk(lambda c: c.update(encoding=2, stored_bytes=0), unit=0), attack=LIES)
add("R-407", "raw_chunk_called_rans", chunk(lambda c: c.update(encoding=2)), attack="algorithm confusion")

# ---- hot list ----

for name, experts in (("expert_twice", [{"expert": 2}, {"expert": 2}]), ("expert_of_no_table", [{"table": 2}]),
                      ("expert_4_of_4", [{"expert": 4}])):
    add("R-408", f"hot_{name}", put("hot.experts", experts), attack=TWICE if "twice" in name else LIES)
add(None, "hot_list_empty", put("hot.experts", []))


def policy(*values):
    names = ("cache_policy", "half_life", "recency", "frequency", "nearness", "pinned_percent")
    return lambda build: build.model["hot"].update(zip(names, values))


for name, *values in (("lru_pinned", 0, 0, 0, 0, 0, 50), ("lfu", 1), ("lfu_aging", 1, 65536), ("hobbit", 2, 0, 30, 60, 10),
                      ("hobbit_of_one_weight", 2, 64, 0, 0, 100, 25)):
    add(None, f"cache_policy_{name}", policy(*values))
for name, *values in (("lru_with_weights", 0, 0, 100), ("lru_that_ages", 0, 1), ("lfu_with_weights", 1, 64, 0, 100),
                      ("lfu_of_a_long_half_life", 1, 65537), ("hobbit_without_weights", 2, 64),
                      ("hobbit_of_99_percent", 2, 64, 9, 80, 10), ("hobbit_of_101_percent", 2, 64, 11, 80, 10),
                      ("pinned_half_and_more", 0, 0, 0, 0, 0, 51)):
    add("R-419", f"cache_policy_{name}", policy(*values), attack=LIES)
add("R-419", "cache_policy_weights_of_2_to_the_32_and_100", policy(2, 0, 2**32 - 1, 101, 0), attack=OVERFLOW)

# ---- units against the program ----

add("R-409", "dense_unit_missing", dense(lambda units: units.pop()), attack=LIES)
add("R-409", "dense_tensors_swapped", dense(lambda units: units[1]["tensors"].reverse()), attack=LIES)
add("R-409", "dense_tensor_missing", dense(lambda units: units[1]["tensors"].pop()), attack=LIES)
add("R-409", "dense_tensor_of_another_block", put("dense.units.3.tensors.0.tensor", 7), attack=LIES)
add("R-409", "expert_without_gate", table(lambda t: t["units"][1]["tensors"].pop(0)), attack=LIES)
add("R-409", "expert_without_down", table(lambda t: t["units"][1]["tensors"].pop()), attack=LIES)
add("R-409", "expert_matrices_swapped", table(lambda t: t["units"][1]["tensors"].reverse()), attack=LIES)
add("R-409", "gate_where_none_belongs", table(lambda t: t["units"][0]["tensors"].insert(0,
    {"codec": {}, "rows": 8, "cols": 16}), index=1), attack=LIES)
for name, path, value in (("dense_rows", "dense.units.1.tensors.2.rows", 9),
                          ("dense_cols", "dense.units.1.tensors.2.cols", 2**40),
                          ("dense_no_rows", "dense.units.1.tensors.2.rows", 0),
                          ("expert_rows", "experts.0.units.1.tensors.0.rows", 2**63),
                          ("expert_cols", "experts.1.units.1.tensors.1.cols", 8)):
    add("R-410", f"shape_of_{name}", put(path, value), attack=LIES)
add("R-410", "expert_of_another_width", put("experts.1.experts.1.variants", [{"physical": 0}]), attack=LIES)
add("R-410", "stand_in_of_another_width", put("experts.1.experts.1.variants", [{"physical": 1}, {"physical": 2}]), attack=LIES)
add(None, "dense_stand_in_of_two_experts", put("experts.0.experts.1.variants", [{"physical": 1}, {"physical": 3}]))


def extra(tensor):
    return {"tensor": tensor, "codec": {}, "rows": 1, "cols": 16}


add("R-411", "tensor_too_many", dense(lambda units: units[3]["tensors"].append(extra(1))), attack=LIES)
add("R-411", "expert_tensor_too_many", table(lambda t: t["units"][1]["tensors"].append(extra(2))), attack=LIES)
add("R-411", "dense_unit_too_many", dense(lambda units: units.append(dict(units[3],
    chunks=[dict(c) for c in units[3]["chunks"]]))), attack=LIES)
add("R-412", "expert_table_missing", lambda build: build.model["experts"].pop(), attack=LIES)
add("R-412", "expert_table_too_many", lambda build: build.model["experts"].append({"version": 1, "table": 2, "experts": [],
    "units": []}), attack=LIES)
add("R-412", "expert_tables_swapped", both(put("experts.0.table", 1), put("experts.1.table", 0)), attack=ROLLBACK)
add("R-412", "expert_entry_missing", table(lambda t: t["experts"].pop()), attack=LIES)
add("R-412", "expert_entry_too_many", table(lambda t: t["experts"].append({"variants": [{"physical": 1}]})), attack=LIES)
add("R-413", "expert_without_variant", put("experts.0.experts.0.variants", []), attack=LIES)
add("R-413", "variant_of_unit_4_of_4", put("experts.0.experts.1.variants", [{"physical": 4}]), attack=OVERFLOW)
add("R-413", "variant_of_the_largest_unit", put("experts.0.experts.1.variants", [{"physical": 2**32 - 1}]), attack=OVERFLOW)
add("R-414", "variant_twice", put("experts.0.experts.1.variants", [{"physical": 1}, {"physical": 1}]), attack=TWICE)
add("R-414", "unit_without_expert", put("experts.0.experts.1.variants", [{"physical": 0}]), attack=LAYOUT)


def resized(unit, by):
    """The unit's last chunk has more or fewer bytes than its tensors take."""
    plain = unit["chunks"][-1]["plain"]
    plain = plain[:by] if by < 0 else plain + bytes(by)
    unit["chunks"][-1] = make_chunk(plain, plain, False)


add("R-415", "unit_a_byte_longer", dense(lambda units: resized(units[1], 1)), attack=LIES)
add("R-415", "unit_a_byte_shorter", dense(lambda units: resized(units[1], -1)), attack=LIES)
add("R-415", "expert_unit_a_byte_shorter", table(lambda t: resized(t["units"][2], -1)), attack=LIES)
add("R-416", "hole_before_a_chunk", places(lambda chunks: shift(chunks[-1:], 4096)), attack=LAYOUT)
add("R-416", "hole_behind_the_blobs", places(lambda chunks: shift(chunks, 4096)), attack=LAYOUT)
add("R-416", "chunks_overlap", places(lambda chunks: shift(chunks[-1:], -4096)), attack=LAYOUT)
add("R-416", "chunk_inside_a_blob", places(lambda chunks: chunks[0].update(offset=4096)), attack=LAYOUT)
add("R-416", "chunk_at_2_to_the_64", places(lambda chunks: chunks[-1].update(offset=2**64 - 4096)), attack=OVERFLOW)
add("R-416", "chunks_swapped", places(lambda chunks: (chunks[3].update(offset=chunks[4]["offset"]),
                                                      shift(chunks[4:5], -4096))), attack=LAYOUT)


def counted(change):
    def edit(build):
        build.edit_manifest = lambda m: m.update(chunk_count=m["chunk_count"] + change)
    return edit


def bytes_behind(build):
    """4096 signed bytes that belong to nothing."""
    build.edit_manifest = lambda m: m.update(file_bytes=m["file_bytes"] + 4096)
    build.file = lambda data: data.extend(b"PK\5\6" + bytes(4092))


add("R-417", "one_chunk_more", counted(1), attack="truncation")
add("R-417", "one_chunk_less", counted(-1), attack="truncation")
add("R-417", "archive_behind_the_end", bytes_behind, attack=LAYOUT)

# ---- codecs against shapes ----

add("R-602", "keeps_17_of_16_columns", put("dense.units.1.tensors.1.codec",
                                           {"element": 3, "bits": 8, "sparsity": 1, "kept_per_row": 17}), attack=LIES)
add("R-602", "runs_of_16_in_12_columns", put("experts.1.units.1.tensors.1.codec", {**CODECS["bf16+2:4"], "m": 16}),
    attack=LIES)


def three_gibibytes(build):
    """Three more embeddings of 2^30 bytes each in the first unit."""
    model = build.model
    for i in range(3):
        tensor, value = len(model["program"]["tensors"]), len(model["program"]["values"])
        model["program"]["tensors"].append({"name": b"large%d" % i, "rows": 2**24, "cols": 16})
        model["program"]["values"].append({"kind": 1, "width": 16})
        model["program"]["nodes"].insert(1, node(0, "embedding", [0], value, table=tensor))
        model["dense"]["units"][0]["tensors"].append({"tensor": tensor, "codec": {}, "rows": 2**24, "cols": 16})


add("R-418", "unit_of_three_gibibytes", three_gibibytes, attack=OVERFLOW)
