"""Small classifiers of rows, a mixture of experts each, as ONNX files in plain operators; and what they compute, in numpy.

FORMS are the ways in which exporters spell a mixture out. The weights are the same numbers every time. ONNX is written by
hand (onnx.proto's field numbers): nothing but numpy is needed.
"""
import struct

import numpy as np

FEATURES, HIDDEN, WIDE, EXPERTS, CHOSEN, CLASSES = 12, 24, 32, 6, 2, 4
FORMS = ("unrolled", "masked", "side_by_side", "dense", "one_hot", "gathered", "gated", "sparse", "sorted", "classes")


# ---- protobuf ----

def varint(value):
    value &= 2**64 - 1
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name, values):
    values = np.asarray(values)
    kind = {"float32": 1, "int64": 7}[values.dtype.name]
    return (b"".join(field(1, size) for size in values.shape) + field(2, kind) + field(8, name) +
            field(9, np.ascontiguousarray(values).tobytes()))


def attribute(name, value):
    if isinstance(value, float):
        return field(1, name) + field(2, value) + field(20, 1)
    if isinstance(value, int):
        return field(1, name) + field(3, value) + field(20, 2)
    if isinstance(value, str):
        return field(1, name) + field(4, value) + field(20, 3)
    if isinstance(value, np.ndarray):
        return field(1, name) + field(5, tensor("", value)) + field(20, 4)
    return field(1, name) + b"".join(field(8, item) for item in value) + field(20, 7)


def value_info(name, *shape):
    dims = b"".join(field(1, field(1, size) if isinstance(size, int) else field(2, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))


class Graph:
    def __init__(self):
        self.nodes, self.constants, self.count = b"", b"", 0

    def constant(self, values, name=None):
        self.count += 1
        name = name or f"c{self.count}"
        self.constants += field(5, tensor(name, values))
        return name

    def ints(self, *values):
        return self.constant(np.array(values, np.int64))

    def op(self, kind, *inputs, outputs=1, **attributes):
        self.count += 1
        names = [f"{kind.lower()}_{self.count}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        node = b"".join(field(1, name) for name in inputs) + b"".join(field(2, name) for name in names)
        node += field(3, f"n{self.count}") + field(4, kind)
        node += b"".join(field(5, attribute(*item)) for item in attributes.items())
        self.nodes += field(1, node)
        return names[0] if outputs == 1 else names

    def write(self, path, output):
        graph = (self.nodes + field(2, "classifier") + self.constants + field(11, value_info("rows", "n", FEATURES)) +
                 field(12, value_info(output, "n", CLASSES)))
        path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 18)))


# ---- weights and what they compute ----

class Weights:
    def __init__(self, form):
        random = np.random.default_rng(20)
        def draw(*shape, scale):
            return (random.standard_normal(shape) * scale).astype(np.float32)
        out = CLASSES if form == "classes" else HIDDEN
        self.enter, self.enter_bias = draw(FEATURES, HIDDEN, scale=0.4), draw(HIDDEN, scale=0.1)
        self.norm, self.norm_bias = 1 + draw(HIDDEN, scale=0.1), draw(HIDDEN, scale=0.1)
        self.router, self.router_bias = draw(HIDDEN, EXPERTS, scale=0.5), draw(EXPERTS, scale=0.1)
        self.up, self.up_bias = draw(EXPERTS, HIDDEN, WIDE, scale=0.3), draw(EXPERTS, WIDE, scale=0.1)
        self.gate, self.gate_bias = draw(EXPERTS, HIDDEN, WIDE, scale=0.3), draw(EXPERTS, WIDE, scale=0.1)
        self.down, self.down_bias = draw(EXPERTS, WIDE, out, scale=0.4), draw(EXPERTS, out, scale=0.1)
        self.head, self.head_bias = draw(HIDDEN, CLASSES, scale=0.8), draw(CLASSES, scale=0.1)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def gates_of(logits, form):
    """[n, experts], 0 where an expert is not chosen."""
    if form == "classes":
        return softmax(logits)
    chosen = np.argsort(-logits, axis=-1, kind="stable")[:, :CHOSEN]
    scores = sigmoid(logits) if form == "one_hot" else softmax(logits)
    gates = np.zeros_like(logits)
    np.put_along_axis(gates, chosen, np.take_along_axis(scores, chosen, -1), -1)
    if form in ("unrolled", "gathered", "gated", "sparse", "sorted"):
        gates /= gates.sum(axis=-1, keepdims=True)
    return gates * 1.5 if form == "dense" else gates


def reference(rows, form):
    """Logits [n, classes] in float64."""
    w = Weights(form)
    h = np.maximum(rows.astype(np.float64) @ w.enter + w.enter_bias, 0)
    centred = h - h.mean(axis=-1, keepdims=True)
    x = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * w.norm + w.norm_bias
    gates = gates_of(x @ w.router + w.router_bias, form)
    mixture = 0
    for e in range(EXPERTS):
        up = x @ w.up[e] + w.up_bias[e]
        gate = x @ w.gate[e] + w.gate_bias[e]
        middle = {"gated": gate * sigmoid(gate) * up, "dense": up * sigmoid(up)}.get(form, np.maximum(up, 0))
        mixture = mixture + gates[:, e:e + 1] * (middle @ w.down[e] + w.down_bias[e])
    return mixture if form == "classes" else (h + mixture) @ w.head + w.head_bias


def make_rows(count, seed):
    return np.random.default_rng(seed).standard_normal((count, FEATURES)).astype(np.float32)


# ---- the same as graphs ----

def chosen_experts(g, scores):
    weights, ids = g.op("TopK", scores, g.ints(CHOSEN), outputs=2, axis=-1)
    return weights, ids


def renormalised(g, weights):
    return g.op("Div", weights, g.op("ReduceSum", weights, g.ints(-1), keepdims=1))


def scattered(g, logits, ids, weights, fill=0.0):
    places = g.op("ConstantOfShape", g.op("Shape", logits), value=np.array([fill], np.float32))
    return g.op("ScatterElements", places, ids, weights, axis=1)


def expert(g, w, x, e):
    up = g.op("Relu", g.op("Add", g.op("MatMul", x, g.constant(w.up[e], f"experts.{e}.up.weight")), g.constant(w.up_bias[e])))
    return g.op("Gemm", up, g.constant(np.ascontiguousarray(w.down[e].T), f"experts.{e}.down.weight"), g.constant(w.down_bias[e]),
                transB=1)


def one_by_one(g, w, x, logits, form, first, leave_out=0):
    """Every expert by itself, added up on `first`."""
    weights, ids = chosen_experts(g, g.op("Softmax", logits, axis=-1))
    if form == "unrolled":
        gates = g.op("Split", scattered(g, logits, ids, renormalised(g, weights)), axis=1, num_outputs=EXPERTS, outputs=EXPERTS)
    total = first
    for e in range(EXPERTS - leave_out):
        if form == "masked":
            own = g.op("Where", g.op("Equal", ids, g.ints(e)), weights, g.constant(np.float32(0)))
            gate = g.op("ReduceSum", own, g.ints(1), keepdims=1)
        else:
            gate = gates[e]
        total = g.op("Add", total, g.op("Mul", expert(g, w, x, e), gate))
    return total


def side_by_side(g, w, x, logits, dense=False):
    """Every expert by itself, then a product of gates [n, 1, experts] with outputs [n, experts, hidden]."""
    gates = g.op("Softmax", logits, axis=-1)
    if not dense:
        weights, ids = chosen_experts(g, gates)
        gates = scattered(g, logits, ids, weights)
    outputs = [g.op("Unsqueeze", expert(g, w, x, e), g.ints(1)) for e in range(EXPERTS)]
    stack = g.op("Concat", *outputs, axis=1)
    return g.op("Squeeze", g.op("MatMul", g.op("Unsqueeze", gates, g.ints(1)), stack), g.ints(1))


def as_stack(g, w, x, logits, form):
    """All experts as one product with [experts, in, out]."""
    if form == "sparse":  # gates are a softmax of the chosen logits among minus infinity
        values, ids = chosen_experts(g, logits)
        gates = g.op("Softmax", scattered(g, logits, ids, values, float("-inf")), axis=1)
    else:
        scores = g.op("Sigmoid", logits) if form == "one_hot" else g.op("Softmax", logits, axis=-1)
        weights, ids = chosen_experts(g, scores)
        hot = g.op("OneHot", ids, g.ints(EXPERTS), g.constant(np.array([0, 1], np.float32)), axis=-1)
        gates = g.op("ReduceSum", g.op("Mul", hot, g.op("Unsqueeze", weights, g.ints(2))), g.ints(1), keepdims=0)
        if form == "dense":
            gates = g.op("Mul", gates, g.constant(np.float32(1.5)))
    up = g.op("Add", g.op("MatMul", x, g.constant(w.up)), g.constant(w.up_bias[:, None, :]))
    up = g.op("Mul", up, g.op("Sigmoid", up)) if form == "dense" else g.op("Relu", up)
    outputs = g.op("Add", g.op("MatMul", up, g.constant(w.down)), g.constant(w.down_bias[:, None, :]))
    by_expert = g.op("Unsqueeze", g.op("Transpose", gates, perm=[1, 0]), g.ints(2))
    return g.op("ReduceSum", g.op("Mul", outputs, by_expert), g.ints(0), keepdims=0)


def gathered(g, w, x, logits, gated):
    """The matrices of the chosen experts, gathered by TopK's indices."""
    values, ids = chosen_experts(g, logits)
    weights = g.op("Softmax", values, axis=-1)

    def product(value, matrices, biases):
        picked = g.op("Gather", g.constant(matrices), ids, axis=0)
        bias = g.op("Unsqueeze", g.op("Gather", g.constant(biases), ids, axis=0), g.ints(2))
        return g.op("Add", g.op("MatMul", value, picked), bias)

    row = g.op("Reshape", g.op("Unsqueeze", x, g.ints(1)), g.ints(-1, 1, 1, HIDDEN))
    middle = product(row, w.up, w.up_bias)
    if gated:
        gate = product(row, w.gate, w.gate_bias)
        middle = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), middle)
    else:
        middle = g.op("Relu", middle)
    outputs = g.op("Squeeze", product(middle, w.down, w.down_bias), g.ints(2))
    weighed = g.op("Mul", outputs, g.op("Unsqueeze", weights, g.ints(2)))
    return g.op("ReduceSum", weighed, g.ints(1), keepdims=0)


def sorted_pairs(g, w, x, logits, leave_out=0):
    """Rows once for each choice, sorted by expert; every expert reads its run, and what they give is put back."""
    weights, ids = chosen_experts(g, g.op("Softmax", logits, axis=-1))
    flat = g.op("Reshape", ids, g.ints(-1))
    _, order = g.op("TopK", flat, g.op("Shape", flat), outputs=2, axis=-1, largest=0)
    rows = g.op("Gather", x, g.op("Div", order, g.constant(np.int64(CHOSEN))), axis=0)
    hot = g.op("OneHot", flat, g.ints(EXPERTS), g.ints(0, 1), axis=-1)
    counts = g.op("ReduceSum", hot, g.ints(0), keepdims=0)
    ends = g.op("CumSum", counts, g.constant(np.int64(0)))
    begins = g.op("Sub", ends, counts)
    runs = [g.op("Slice", rows, g.op("Gather", begins, g.ints(e)), g.op("Gather", ends, g.ints(e)), g.ints(0))
            for e in range(EXPERTS - leave_out)]
    outputs = g.op("Concat", *(expert(g, w, run, e) for e, run in enumerate(runs)), axis=0)
    empty = g.op("ConstantOfShape", g.op("Shape", outputs))
    pairs = g.op("ScatterND", empty, g.op("Unsqueeze", order, g.ints(1)), outputs)
    weighed = g.op("Mul", g.op("Reshape", pairs, g.ints(-1, CHOSEN, HIDDEN)), g.op("Unsqueeze", renormalised(g, weights), g.ints(2)))
    return g.op("ReduceSum", weighed, g.ints(1), keepdims=0)


def write_model(path, form, leave_out=0):
    """leave_out: experts that the graph lacks, as after a trace that never reached them."""
    g, w = Graph(), Weights(form)
    h = g.op("Relu", g.op("Gemm", "rows", g.constant(w.enter, "enter.weight"), g.constant(w.enter_bias, "enter.bias")))
    x = g.op("LayerNormalization", h, g.constant(w.norm), g.constant(w.norm_bias), axis=-1, epsilon=1e-5)
    logits = g.op("Add", g.op("MatMul", x, g.constant(w.router, "router.weight")), g.constant(w.router_bias))
    if form in ("unrolled", "masked"):
        h = one_by_one(g, w, x, logits, form, h, leave_out)
    elif form in ("side_by_side", "classes"):
        mixture = side_by_side(g, w, x, logits, dense=form == "classes")
        h = mixture if form == "classes" else g.op("Add", h, mixture)
    elif form in ("dense", "one_hot", "sparse"):
        h = g.op("Add", h, as_stack(g, w, x, logits, form))
    elif form == "sorted":
        h = g.op("Add", h, sorted_pairs(g, w, x, logits, leave_out))
    else:
        h = g.op("Add", h, gathered(g, w, x, logits, form == "gated"))
    if form != "classes":
        h = g.op("Add", g.op("MatMul", h, g.constant(w.head, "head.weight")), g.constant(w.head_bias))
    g.write(path, g.op("Softmax", h, axis=-1) if form != "masked" else h)
