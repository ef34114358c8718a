"""Programs: R-5xx.

Nodes of the base program by their numbers: 0 embedding; 1 norm; 2, 3, 4 linear (4 with bias); 5, 6 rotary; 7 attention;
8 linear; 9 add; 10 norm with bias; 11 linear; 12 moe; 13 add; 14, 15 slice; 16 concat; 17 clamp; 18 scale;
19 linear; 20 sigmoid; 21 mul; 22 linear; 23 moe, not gated; 24 add; 25 norm; 26 linear (tied head)."""
from vectors import add, both, put
from writer import node

LIES, OVERFLOW, TWICE = "type or shape lies", "integer overflow", "duplicate names"
NAN, INFINITY = float("nan"), float("inf")


def program(path, value):
    return put(f"program.{path}", value)


def bad(rule, name, path, value, attack=LIES):
    add(rule, name, program(path, value), attack=attack)


def extend(key, *items):
    return lambda build: build.model["program"][key].extend(items)


def new_value(kind=1, width=16):
    return extend("values", {"name": b"new", "kind": kind, "width": width})


NEW = 28  # its number


def insert(at, new):
    """A node before node `at`; it may make value NEW."""
    return lambda build: build.model["program"]["nodes"].insert(at, new)


# ---- limits ----

for name, path, value in (
        ("no_nodes", "nodes", []), ("too_many_slots", "state_slots", 65537), ("no_positions", "max_positions", 0),
        ("too_many_positions", "max_positions", 2**24 + 1), ("value_of_no_width", "values.1.width", 0),
        ("value_too_wide", "values.1.width", 2**24 + 1), ("value_of_2_to_the_64", "values.1.width", 2**64 - 1),
        ("tensor_of_no_rows", "tensors.0.rows", 0), ("tensor_of_too_many_rows", "tensors.0.rows", 2**24 + 1),
        ("tensor_of_no_columns", "tensors.0.cols", 0), ("tensor_of_too_many_columns", "tensors.0.cols", 2**20 + 1),
        ("tensor_of_2_to_the_63_rows", "tensors.0.rows", 2**63), ("tensor_of_layer_4096", "tensors.0.layer", 8192),
        ("tensor_of_layer_minus_2", "tensors.0.layer", 3), ("table_of_layer_4096", "expert_tables.1.layer", 4096),
        ("table_of_layer_2_to_the_32", "expert_tables.1.layer", 2**32 - 1),
        ("table_without_experts", "expert_tables.1.intermediate", []),
        ("hidden_width_zero", "expert_tables.0.hidden", 0), ("hidden_width_too_large", "expert_tables.0.hidden", 2**20 + 1),
        ("intermediate_zero", "expert_tables.1.intermediate", [8, 0, 8]),
        ("intermediate_too_large", "expert_tables.1.intermediate", [8, 2**20 + 1, 8]),
        ("no_original_parameters", "original_parameters", 0),
        ("too_many_original_parameters", "original_parameters", 2**60 + 1),
        ("window_too_long", "nodes.7.attention.window", 2**24 + 1)):
    bad("R-501", f"program_{name}", path, value, attack=OVERFLOW)
add("R-501", "program_of_too_many_parameters", extend("expert_tables", *[
    {"layer": 2 + i, "hidden": 2**20, "intermediate": [2**20] * 4096, "original": list(range(4096)),
     "gated": 1} for i in range(86)]), attack=OVERFLOW)

# ---- names, kinds, versions ----

bad("R-502", "value_name_with_a_space", "values.3.name", b"a b")
bad("R-502", "value_name_with_a_zero", "values.3.name", b"a\0b")
bad("R-502", "value_name_not_ascii", "values.3.name", b"\xc3\xa4")
bad("R-502", "tensor_name_empty", "tensors.3.name", b"")
bad("R-502", "tensor_name_with_a_backslash", "tensors.3.name", b"..\\norm", attack="path traversal")
bad("R-502", "tensor_name_twice", "tensors.3.name", b"norm", attack=TWICE)
bad("R-503", "tokens_with_a_width", "values.0.width", 1)
bad("R-504", "node_semantics_2", "nodes.3.semantics", 2)
bad("R-504", "node_semantics_missing", "nodes.3.semantics", 0)

# ---- values ----

bad("R-505", "no_input", "inputs", [])
bad("R-505", "two_inputs", "inputs", [0, 0])
bad("R-505", "input_of_floats", "inputs", [1])
add("R-505", "input_of_floats_with_state", both(program("inputs", [1]), program("max_positions", 1)), attack=LIES)
bad("R-505", "output_is_the_tokens", "output", 0)
bad("R-506", "input_that_does_not_exist", "inputs", [28])
bad("R-506", "output_that_does_not_exist", "output", 28, attack=OVERFLOW)
bad("R-506", "node_reads_value_28_of_28", "nodes.9.inputs", [1, 28], attack=OVERFLOW)
bad("R-506", "node_makes_value_28_of_28", "nodes.9.output", 28, attack=OVERFLOW)
bad("R-506", "embedding_of_no_tensor", "nodes.0.embedding.table", 13, attack=OVERFLOW)
bad("R-506", "linear_of_no_tensor", "nodes.2.linear.weight", 2**32 - 1, attack=OVERFLOW)
bad("R-506", "bias_of_no_tensor", "nodes.4.linear.bias_plus_one", 14, attack=OVERFLOW)
bad("R-506", "norm_of_no_tensor", "nodes.1.norm.weight_plus_one", 2**32 - 1, attack=OVERFLOW)
bad("R-506", "moe_of_no_table", "nodes.23.moe.table", 2, attack=OVERFLOW)
bad("R-506", "attention_of_no_slot", "nodes.7.attention.state_slot", 1, attack=OVERFLOW)
bad("R-507", "value_read_too_early", "nodes.1.inputs", [14])
bad("R-507", "value_made_twice", "nodes.9.output", 9, attack=TWICE)
add("R-507", "value_never_made", new_value(), attack=LIES)
bad("R-508", "norm_of_tokens", "nodes.1.inputs", [0])
add("R-508", "embedding_of_floats", both(new_value(), insert(1, node(0, "embedding", [1], NEW))), attack=LIES)
add("R-508", "node_that_makes_tokens", both(new_value(0, 0), insert(1, node(0, "elementwise", [1], NEW, op=3))), attack=LIES)

# ---- blocks, tensors ----

bad("R-509", "first_block_is_1", "nodes.0.block", 1)
bad("R-509", "block_falls", "nodes.3.block", 0)
bad("R-509", "block_is_left_out", "nodes.26.block", 5)
bad("R-509", "block_of_32_bits", "nodes.0.block", 2**32 - 1, attack=OVERFLOW)
bad("R-510", "norm_takes_a_tensor_of_another_block", "nodes.25.norm.bias_plus_one", 9)
add("R-510", "embedding_again_in_a_later_block", both(new_value(), insert(9, node(1, "embedding", [0], NEW))), attack=LIES)
add("R-511", "tensor_never_used", extend("tensors", {"name": b"unused", "rows": 1, "cols": 16}), attack=LIES)
add("R-511", "table_never_used", extend("expert_tables", {"layer": 7, "hidden": 16, "intermediate": [8], "original": [0]}),
    attack=LIES)
bad("R-511", "slot_never_used", "state_slots", 2)
MOE = node(1, "moe", [11, 12], NEW, routing={"k": 1, "scale": 1.0}, activation={"gated": 1})
ATTENTION = node(1, "attention", [6, 7, 5], NEW, heads=2, kv_heads=1, head_dim=8, scale=0.3)
add("R-511", "table_used_twice", both(new_value(), insert(13, MOE)), attack=TWICE)
add("R-511", "slot_used_twice", both(new_value(), insert(8, ATTENTION)), attack=TWICE)

# ---- inputs and widths ----

for name, at, inputs in (("embedding_of_two", 0, [0, 0]), ("linear_of_two", 2, [2, 2]), ("norm_of_none", 1, []),
                         ("rotary_of_two", 5, [3, 3]),
                         ("attention_of_two", 7, [6, 7]), ("moe_of_one", 12, [11]), ("add_of_one", 9, [1]),
                         ("add_of_three", 9, [1, 9, 1]),
                         ("clamp_of_two", 17, [17, 17]), ("slice_of_none", 14, []), ("concat_of_none", 16, [])):
    bad("R-512", f"inputs_{name}", f"nodes.{at}.inputs", inputs)
for name, path, value in (
        ("embedding", "values.1.width", 8), ("norm", "values.2.width", 24), ("linear", "nodes.2.linear.weight", 3),
        ("linear_bias", "nodes.4.linear.bias_plus_one", 9), ("norm_weight", "nodes.1.norm.group", 8),
        ("norm_bias", "nodes.10.norm.bias_plus_one", 6), ("rotary_input", "nodes.5.rotary.heads", 3),
        ("rotary_output", "values.6.width", 24),
        ("rotary_of_2_to_the_32", "nodes.5.rotary.heads", 2**32 - 1), ("queries", "nodes.7.attention.head_dim", 16),
        ("keys", "nodes.7.attention.kv_heads", 2), ("values", "nodes.7.inputs", [6, 7, 6]),
        ("attention_output", "values.8.width", 24),
        ("moe_input", "nodes.12.inputs", [12, 12]), ("router", "nodes.12.inputs", [11, 11]),
        ("moe_output", "values.13.width", 24),
        ("sum", "values.10.width", 24), ("summand", "nodes.9.inputs", [1, 5]),
        ("slice_past_the_end", "nodes.15.slice.begin", 9),
        ("slice_behind_the_end", "nodes.15.slice.begin", 17), ("slice_of_2_to_the_64", "nodes.15.slice.begin", 2**64 - 8),
        ("concat", "values.17.width", 24)):
    bad("R-513", f"width_of_{name}", path, value, attack=OVERFLOW if "2_to" in name else LIES)

# ---- numbers ----

for name, path, value in (
        ("norm_eps_nan", "nodes.1.norm.eps", NAN), ("norm_eps_negative", "nodes.1.norm.eps", -1.0),
        ("magnitude_infinite", "nodes.5.rotary.magnitude", INFINITY),
        ("frequency_nan", "nodes.5.rotary.inv_freq", [1.0, NAN]), ("scale_infinite", "nodes.7.attention.scale", -INFINITY),
        ("softcap_negative", "nodes.7.attention.softcap", -1.0), ("softcap_nan", "nodes.7.attention.softcap", NAN),
        ("routing_eps_negative", "nodes.12.moe.routing.eps", -1e-6),
        ("routing_scale_nan", "nodes.12.moe.routing.scale", NAN),
        ("alpha_nan", "nodes.18.elementwise.alpha", NAN), ("clamp_to_zero", "nodes.17.elementwise.alpha", 0.0),
        ("clamp_negative", "nodes.17.elementwise.alpha", -4.0), ("alpha_of_a_sum", "nodes.9.elementwise.alpha", 1.0)):
    bad("R-514", f"number_{name}", path, value)
bad("R-515", "norm_group_zero", "nodes.1.norm.group", 0)
bad("R-515", "norm_group_5_of_16", "nodes.1.norm.group", 5)
add("R-515", "one_plus_no_weight", both(new_value(), insert(13, node(1, "norm", [10], NEW, group=16, one_plus_weight=1))),
    attack=LIES)
for value in (0, 3, 10, 2**32 - 2):
    bad("R-516", f"rotary_dim_{value}", "nodes.5.rotary.rotary_dim", value)
bad("R-516", "frequency_missing", "nodes.5.rotary.inv_freq", [1.0])
bad("R-516", "frequency_too_many", "nodes.5.rotary.inv_freq", [1.0, 0.1, 0.01])
bad("R-517", "no_kv_heads", "nodes.7.attention.kv_heads", 0)
bad("R-517", "no_heads", "nodes.7.attention.heads", 0)
bad("R-517", "kv_heads_3_of_2", "nodes.7.attention.kv_heads", 3)
bad("R-518", "routing_to_nobody", "nodes.12.moe.routing.k", 0)
bad("R-518", "routing_to_5_of_4", "nodes.12.moe.routing.k", 5)
bad("R-518", "gate_that_is_not_there", "nodes.23.moe.activation.gated", 1)
# ---- rotary, attention, routing, experts and joins beside the usual ----

bad("R-501", "chunk_too_long", "nodes.7.attention.chunk", 2**24 + 1, attack=OVERFLOW)
bad("R-501", "concat_of_65537_heads", "nodes.16.concat.heads", 65537, attack=OVERFLOW)
bad("R-514", "position_scale_nan", "nodes.7.attention.position_scale", NAN)
bad("R-514", "limit_negative", "nodes.12.moe.activation.limit", -7.0)
bad("R-514", "up_offset_infinite", "nodes.12.moe.activation.up_offset", INFINITY)
bad("R-514", "mixer_eps_nan", "nodes.12.moe.routing.mixer_eps", NAN)
bad("R-506", "sinks_of_no_tensor", "nodes.7.attention.sinks_plus_one", 2**32 - 1, attack=OVERFLOW)
bad("R-513", "sinks_of_another_shape", "nodes.7.attention.sinks_plus_one", 1)
bad("R-513", "values_of_another_width", "nodes.7.attention.value_dim", 4)
bad("R-501", "long_from_too_long", "nodes.5.rotary.long_from", 2**24 + 1, attack=OVERFLOW)


def long_rotary(magnitude, frequencies):
    return both(program("nodes.5.rotary.long_from", 8), both(program("nodes.5.rotary.long_magnitude", magnitude),
                                                             program("nodes.5.rotary.long_inv_freq", frequencies)))


add("R-514", "long_magnitude_nan", long_rotary(NAN, [1.0, 0.1]), attack=LIES)
add("R-514", "long_frequency_nan", long_rotary(1.0, [1.0, NAN]), attack=LIES)
CONVOLUTION = node(1, "convolution", [10], NEW, weight=13, state_slot=1)
add("R-501", "convolution_over_65_positions",
    both(both(new_value(), extend("tensors", {"name": b"kernel", "rows": 16, "cols": 65})),
         both(program("state_slots", 2), insert(13, CONVOLUTION))), attack=OVERFLOW)
bad("R-520", "offset_past_the_head", "nodes.5.rotary.offset", 2**32 - 1, attack=OVERFLOW)
bad("R-520", "long_frequencies_without_long_from", "nodes.5.rotary.long_inv_freq", [1.0, 0.1])
bad("R-520", "long_frequency_missing", "nodes.5.rotary.long_from", 8)
bad("R-521", "value_dim_of_head_dim", "nodes.7.attention.value_dim", 8)
bad("R-521", "position_scale_without_floor", "nodes.7.attention.position_scale", 0.1)
bad("R-521", "position_floor_without_scale", "nodes.7.attention.position_floor", 8192)
bad("R-522", "top_groups_without_size", "nodes.12.moe.routing.top_groups", 1)
bad("R-522", "groups_without_top", "nodes.12.moe.routing.group_size", 2)
add("R-522", "groups_of_too_few_experts", both(program("nodes.12.moe.routing.group_size", 1), program("nodes.12.moe.routing.top_groups", 1)),
    attack=LIES)
bad("R-522", "mixer_eps_without_mixer", "nodes.12.moe.routing.mixer_eps", 0.01)
add("R-522", "groups_of_logits", both(program("nodes.12.moe.routing.group_size", 2), program("nodes.12.moe.routing.top_groups", 2),
                                      program("nodes.12.moe.routing.score_before_topk", 0)), attack=LIES)
add("R-522", "sparse_mixer_after_top_k", both(program("nodes.12.moe.routing.score", 2), program("nodes.12.moe.routing.score_before_topk", 0)),
    attack=LIES)
bad("R-514", "sigmoid_scale_negative", "nodes.12.moe.activation.sigmoid_scale", -1.7)
add("R-523", "sigmoid_scale_of_a_relu", both(program("nodes.12.moe.activation.sigmoid_scale", 1.7),
                                             program("nodes.12.moe.activation.function", 3)), attack=LIES)
bad("R-523", "up_bias_alone", "nodes.12.moe.up_bias_plus_one", 1)
bad("R-523", "limit_without_gate", "nodes.23.moe.activation.limit", 7.0)
bad("R-524", "heads_5_of_16", "nodes.16.concat.heads", 5)
bad("R-524", "shared_without_heads", "nodes.16.concat.shared", 1)
add("R-524", "nothing_but_shared", both(program("nodes.16.concat.heads", 2), program("nodes.16.concat.shared", 2)), attack=LIES)
bad("R-519", "two_tables_of_a_layer", "expert_tables.1.layer", 0, attack=TWICE)
bad("R-519", "original_twice", "expert_tables.0.original", [0, 1, 1, 5], attack=TWICE)
bad("R-519", "original_4096", "expert_tables.0.original", [0, 1, 3, 4096])
bad("R-519", "original_missing", "expert_tables.0.original", [0, 1, 3])
