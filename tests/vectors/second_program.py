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
        must(p["values"][p["inputs"][0]]["kind"] == 0, "R-505", "input is not of tokens")
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
        must(all(map(math.isfinite, e["inv_freq"] + [e["magnitude"]])), "R-514", "rotary numbers")

    def attention(self, node, e):
        q, k, v, out = self.widths(node, 3)
        must(e["heads"] and e["kv_heads"] and e["heads"] % e["kv_heads"] == 0, "R-517", "heads")
        must(q == out == e["heads"] * e["head_dim"] and k == v == e["kv_heads"] * e["head_dim"], "R-513",
             "widths of an attention")
        must(math.isfinite(e["scale"]) and math.isfinite(e["softcap"]) and e["softcap"] >= 0, "R-514", "scale or softcap")
        must(e["window"] <= 2**24, "R-501", "window")
        must(e["state_slot"] < self.p["state_slots"], "R-506", "slot")
        must(e["state_slot"] not in self.slots, "R-511", "slot used twice")
        self.slots.add(e["state_slot"])

    def moe(self, node, e):
        x, logits, out = self.widths(node, 2)
        must(e["table"] < len(self.p["expert_tables"]), "R-506", "expert table")
        table, routing = self.p["expert_tables"][e["table"]], e["routing"]
        experts = len(table["intermediate"])
        must(x == out == table["hidden"] and logits == experts, "R-513", "widths of a moe")
        must(1 <= routing["k"] <= experts, "R-518", "k")
        must(math.isfinite(routing["eps"]) and routing["eps"] >= 0 and math.isfinite(routing["scale"]), "R-514",
             "eps or scale")
        must(e["activation"]["gated"] == table["gated"], "R-518", "gated")
        must(e["table"] not in self.tables, "R-511", "table used twice")
        self.tables.add(e["table"])

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

    def concat(self, node, _):
        must(node["inputs"], "R-512", "concat of nothing")
        *widths, out = self.widths(node, len(node["inputs"]))
        must(sum(widths) == out, "R-513", "width of a concat")


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
