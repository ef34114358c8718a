"""Rules R-5xx of SPEC.md: a program. Part of the second reader."""
import math
import re

from second_wire import PROGRAM, Refused, parse

ROWS, COLS = 2**24, 2**20
NAME = re.compile(rb"[A-Za-z0-9._/:-]*\Z")


def in_range(value, most, what, least=1):
    if not least <= value <= most:
        raise Refused("R-501", f"{what}: {value}, expected {least} to {most}")


def must(condition, rule, what):
    if not condition:
        raise Refused(rule, what)


def zigzag(value):
    return (value >> 1) ^ -(value & 1)


def check_declarations(p):
    must(len(p["nodes"]) >= 1, "R-501", "no nodes")
    in_range(p["state_slots"], 65536, "state slots", 0)
    in_range(p["max_positions"], 2**24, "positions")
    for value in p["values"]:
        must(NAME.match(value["name"]), "R-502", "name of a value")
        if value["kind"] == 0:
            must(value["width"] == 0, "R-503", "tokens with a width")
        else:
            in_range(value["width"], ROWS, "width of a value")
    names = set()
    for tensor in p["tensors"]:
        must(tensor["name"] and NAME.match(tensor["name"]) and tensor["name"] not in names, "R-502", "name of a tensor")
        names.add(tensor["name"])
        in_range(tensor["rows"], ROWS, "rows")
        in_range(tensor["cols"], COLS, "columns")
        in_range(zigzag(tensor["layer"]), 4095, "layer", -1)
    layers = set()
    for table in p["expert_tables"]:
        in_range(table["layer"], 4095, "layer", 0)
        must(table["layer"] not in layers, "R-519", "two tables of a layer")
        layers.add(table["layer"])
        in_range(len(table["intermediate"]), 4096, "experts")
        in_range(table["hidden"], COLS, "hidden width")
        must(len(table["original"]) == len(table["intermediate"]), "R-519", "original indices")
        before = -1
        for width, original in zip(table["intermediate"], table["original"]):
            in_range(width, COLS, "intermediate width")
            must(before < original < 4096, "R-519", "original indices")
            before = original
    total = sum(t["rows"] * t["cols"] for t in p["tensors"])
    total += sum(t["hidden"] * sum(t["intermediate"]) * (3 if t["gated"] else 2) for t in p["expert_tables"])
    in_range(total, 2**60, "parameters", 0)
    in_range(p["original_parameters"], 2**60, "original parameters")


class Nodes:
    """Goes through the nodes in order and remembers what they made and used."""

    def __init__(self, p):
        self.p, self.made = p, set()
        self.first_use, self.by_embedding = {}, set()  # of tensors
        self.tables, self.slots = set(), set()

    def check(self):
        p = self.p
        must(len(p["inputs"]) == 1, "R-505", "inputs")
        must(p["inputs"][0] < len(p["values"]), "R-506", "input value")
        must(p["values"][p["inputs"][0]]["kind"] == 0 or (p["max_positions"] == 1 and p["state_slots"] == 0), "R-505",
             "input of floats with positions or state")
        self.made.add(p["inputs"][0])
        block = 0
        for index, node in enumerate(p["nodes"]):
            must(node["block"] == block or (index > 0 and node["block"] == block + 1), "R-509", "block")
            block = node["block"]
            self.edges(node)
            getattr(self, node["kind"])(node, node[node["kind"]])
            self.made.add(node["output"])
        must(len(self.made) == len(p["values"]), "R-507", "a value is never made")
        must(len(self.first_use) == len(p["tensors"]), "R-511", "a tensor is never used")
        must(len(self.tables) == len(p["expert_tables"]), "R-511", "a table is never used")
        must(len(self.slots) == p["state_slots"], "R-511", "a slot is never used")
        must(p["output"] < len(p["values"]), "R-506", "output")
        must(p["values"][p["output"]]["kind"] == 1, "R-505", "output is not a float")

    def edges(self, node):
        values = self.p["values"]
        for value in node["inputs"]:
            must(value < len(values), "R-506", "input value")
            must(value in self.made, "R-507", "value read before it is made")
            must((values[value]["kind"] == 0) == (node["kind"] == "embedding"), "R-508", "tokens and floats")
        must(node["output"] < len(values), "R-506", "output value")
        must(node["output"] not in self.made, "R-507", "value made twice")
        must(values[node["output"]]["kind"] == 1, "R-508", "output is tokens")

    def widths(self, node, count):
        must(len(node["inputs"]) == count, "R-512", "number of inputs")
        return [self.p["values"][value]["width"] for value in node["inputs"]] + [self.p["values"][node["output"]]["width"]]

    def tensor(self, node, index, rows, cols):
        must(index < len(self.p["tensors"]), "R-506", "tensor")
        tensor = self.p["tensors"][index]
        must((tensor["rows"] if rows is None else rows, cols) == (tensor["rows"], tensor["cols"]), "R-513",
             "shape of a tensor")
        if index not in self.first_use:
            self.first_use[index] = node["block"]
            if node["kind"] == "embedding":
                self.by_embedding.add(index)
        elif self.first_use[index] != node["block"]:
            tied = index in self.by_embedding and node["kind"] == "linear" and node["linear"]["weight"] == index
            must(tied, "R-510", "tensor of another block")

    def vector(self, node, plus_one, cols):
        if plus_one:
            self.tensor(node, plus_one - 1, 1, cols)

    def embedding(self, node, e):
        _, out = self.widths(node, 1)
        self.tensor(node, e["table"], None, out)

    def linear(self, node, e):
        width, out = self.widths(node, 1)
        self.tensor(node, e["weight"], out, width)
        self.vector(node, e["bias_plus_one"], out)

    def norm(self, node, e):
        width, out = self.widths(node, 1)
        must(width == out, "R-513", "width of a norm")
        must(e["group"] and width % e["group"] == 0, "R-515", "group")
        must(math.isfinite(e["eps"]) and e["eps"] >= 0, "R-514", "eps")
        must(not e["one_plus_weight"] or e["weight_plus_one"], "R-515", "1 + weight without weight")
        self.vector(node, e["weight_plus_one"], e["group"])
        self.vector(node, e["bias_plus_one"], e["group"])

    def rotary(self, node, e):
        width, out = self.widths(node, 1)
        must(width == out == e["heads"] * e["head_dim"], "R-513", "width of a rotary")
        must(e["rotary_dim"] and e["rotary_dim"] % 2 == 0 and e["rotary_dim"] <= e["head_dim"], "R-516", "rotary_dim")
        must(len(e["inv_freq"]) == e["rotary_dim"] // 2, "R-516", "inverse frequencies")
        must(e["offset"] + e["rotary_dim"] <= e["head_dim"], "R-520", "offset")
        must(all(map(math.isfinite, e["inv_freq"] + [e["magnitude"]])), "R-514", "rotary numbers")
        if e["long_from"] == 0:
            must(not e["long_inv_freq"] and e["long_magnitude"] == 0, "R-520", "long frequencies")
            return
        in_range(e["long_from"], 2**24, "long_from")
        must(len(e["long_inv_freq"]) == len(e["inv_freq"]), "R-520", "long frequencies")
        must(all(map(math.isfinite, e["long_inv_freq"] + [e["long_magnitude"]])), "R-514", "rotary numbers")

    def slot(self, slot):
        must(slot < self.p["state_slots"], "R-506", "slot")
        must(slot not in self.slots, "R-511", "slot used twice")
        self.slots.add(slot)

    def attention(self, node, e):
        q, k, v, out = self.widths(node, 3)
        must(e["heads"] and e["kv_heads"] and e["heads"] % e["kv_heads"] == 0, "R-517", "heads")
        must(e["value_dim"] != e["head_dim"], "R-521", "value_dim")
        value = e["value_dim"] or e["head_dim"]
        must(q == e["heads"] * e["head_dim"] and k == e["kv_heads"] * e["head_dim"], "R-513", "widths of an attention")
        must(out == e["heads"] * value and v == e["kv_heads"] * value, "R-513", "widths of an attention")
        self.vector(node, e["sinks_plus_one"], e["heads"])
        must(math.isfinite(e["scale"]) and math.isfinite(e["softcap"]) and e["softcap"] >= 0, "R-514", "scale or softcap")
        must(e["window"] <= 2**24, "R-501", "window")
        must(e["chunk"] <= 2**24, "R-501", "chunk")
        must(math.isfinite(e["position_scale"]) and e["position_scale"] >= 0, "R-514", "position_scale")
        must((e["position_scale"] == 0) == (e["position_floor"] == 0), "R-521", "position_scale and position_floor")
        self.slot(e["state_slot"])

    def convolution(self, node, e):
        width, out = self.widths(node, 1)
        must(width == out, "R-513", "width of a convolution")
        known = e["weight"] < len(self.p["tensors"])
        reach = self.p["tensors"][e["weight"]]["cols"] if known else 0
        must(reach <= 64, "R-501", "reach of a convolution")
        self.tensor(node, e["weight"], width, reach)
        self.vector(node, e["bias_plus_one"], width)
        self.slot(e["state_slot"])

    def moe(self, node, e):
        x, logits, out = self.widths(node, 2)
        must(e["table"] < len(self.p["expert_tables"]), "R-506", "expert table")
        table, routing = self.p["expert_tables"][e["table"]], e["routing"]
        experts = len(table["intermediate"])
        must(x == out == table["hidden"] and logits == experts, "R-513", "widths of a moe")
        must(1 <= routing["k"] <= experts, "R-518", "k")
        must(math.isfinite(routing["eps"]) and routing["eps"] >= 0 and math.isfinite(routing["scale"]), "R-514",
             "eps or scale")
        self.routing(routing, table, e["selection_bias_plus_one"])
        self.activation(e["activation"], table)
        self.expert_biases(node, e, table)
        must(e["table"] not in self.tables, "R-511", "table used twice")
        self.tables.add(e["table"])

    def routing(self, r, table, bias):
        mixer = r["score"] == 2
        must(math.isfinite(r["mixer_eps"]) and r["mixer_eps"] >= 0, "R-514", "mixer_eps")
        must(mixer or r["mixer_eps"] == 0, "R-522", "mixer_eps without sparse mixer")
        must(not mixer or (r["score_before_topk"] and not bias), "R-522", "sparse mixer")
        if r["group_size"] == 0:
            must(r["top_groups"] == 0 and r["group_rule"] == 0, "R-522", "groups without group_size")
            return
        must(not mixer and r["score_before_topk"] and r["top_groups"], "R-522", "groups")
        sizes = {}
        for original in table["original"]:
            sizes[original // r["group_size"]] = sizes.get(original // r["group_size"], 0) + 1
        must(sum(sorted(sizes.values())[:r["top_groups"]]) >= r["k"], "R-522", "groups that hold too few experts")

    def activation(self, a, table):
        must(a["gated"] == table["gated"], "R-518", "gated")
        plain = a["limit"] == 0 and a["sigmoid_scale"] == 0 and a["up_offset"] == 0
        must(a["gated"] or plain, "R-523", "limits of experts that are not gated")
        must(all(map(math.isfinite, (a["limit"], a["sigmoid_scale"], a["up_offset"]))), "R-514", "activation")
        must(a["limit"] >= 0 and a["sigmoid_scale"] >= 0, "R-514", "activation")
        must(a["sigmoid_scale"] == 0 or a["function"] == 0, "R-523", "sigmoid_scale without silu")

    def expert_biases(self, node, e, table):
        gate, up, down = (e[f"{name}_bias_plus_one"] for name in ("gate", "up", "down"))
        experts = len(table["intermediate"])
        self.vector(node, e["selection_bias_plus_one"], experts)
        must(bool(up) == bool(down) and bool(gate) == bool(up and table["gated"]), "R-523", "biases of experts")
        for bias, width in ((gate, max(table["intermediate"])), (up, max(table["intermediate"])), (down, table["hidden"])):
            if bias:
                self.tensor(node, bias - 1, experts, width)

    def elementwise(self, node, e):
        binary = e["op"] <= 1
        widths = self.widths(node, 2 if binary else 1)
        must(widths[0] == widths[-1] and (not binary or widths[1] in (1, widths[0])), "R-513", "widths")
        must(math.isfinite(e["alpha"]), "R-514", "alpha")
        must(e["op"] != 8 or e["alpha"] > 0, "R-514", "alpha of a clamp")
        must(e["op"] in (2, 8) or e["alpha"] == 0, "R-514", "alpha is not used")

    def slice(self, node, e):
        width, out = self.widths(node, 1)
        must(e["begin"] + out <= width, "R-513", "slice")

    def concat(self, node, e):
        must(node["inputs"], "R-512", "concat of nothing")
        *widths, out = self.widths(node, len(node["inputs"]))
        own, heads = len(widths) - e["shared"], e["heads"]
        must(heads or not e["shared"], "R-524", "shared without heads")
        must(own > 0, "R-524", "nothing but shared inputs")
        must(heads <= 65536, "R-501", "heads of a concat")
        must(not heads or all(width % heads == 0 for width in widths[:own]), "R-524", "heads do not divide an input")
        must(sum(widths[:own]) + (heads or 1) * sum(widths[own:]) == out, "R-513", "width of a concat")


def read_program(data):
    """Returns the program with `dense`: the tensors of each block that has some, and `table_block`."""
    p = parse(data, PROGRAM)
    for node in p["nodes"]:
        must(node["semantics"] == 1, "R-504", "semantics")
    check_declarations(p)
    nodes = Nodes(p)
    nodes.check()
    blocks = {}
    for tensor, block in sorted(nodes.first_use.items()):
        blocks.setdefault(block, []).append(tensor)
    p["dense"] = [(block, blocks[block]) for block in sorted(blocks)]
    p["blocks"] = p["nodes"][-1]["block"] + 1
    p["table_block"] = {node["moe"]["table"]: node["block"] for node in p["nodes"] if node["kind"] == "moe"}
    return p
