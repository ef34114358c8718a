"""The wire form of SPEC.md (sections 3 and 12), read strictly: messages become dicts. Part of the second reader."""
import struct


class Refused(Exception):
    """A file breaks a rule of SPEC.md."""

    def __init__(self, rule, text):
        super().__init__(f"{rule}: {text}")
        self.rule = rule


U32, U64, BOOL, F32, NAME, DIGEST, MESSAGE = "u32", "u64", "bool", "f32", "name", "digest", "message"
TYPE_MAX = {U32: 2**32 - 1, U64: 2**64 - 1, BOOL: 1}


class Field:
    def __init__(self, name, kind, limit=None, repeated=None, message=None, required=False, one_of=False):
        self.name, self.kind, self.limit, self.repeated = name, kind, limit, repeated
        self.message, self.required, self.one_of = message, required, one_of


def number(name, kind, limit=None):
    return Field(name, kind, limit=limit)


def packed(name, kind, count):
    return Field(name, kind, repeated=count)


def name(field, limit):
    return Field(field, NAME, limit=limit)


def digest(field):
    return Field(field, DIGEST, required=True)


def one(field, message, required=True):
    return Field(field, MESSAGE, message=message, required=required)


def many(field, message, count):
    return Field(field, MESSAGE, message=message, repeated=count)


def one_of(field, message):
    return Field(field, MESSAGE, message=message, one_of=True)


BLOB = {1: number("kind", U32, 7), 2: number("index", U32), 3: number("offset", U64), 4: number("bytes", U64),
        5: digest("digest")}
MANIFEST = {1: number("schema", U32), 2: name("product", 64), 3: name("version", 64), 4: number("key_epoch", U64),
            5: number("security_counter", U64), 6: packed("required_features", U32, 64), 7: packed("unavailable", U32, 8),
            8: number("file_bytes", U64), 9: number("chunk_count", U64), 10: many("blobs", BLOB, 2048)}

CODEC = {1: number("element", U32, 4), 2: number("sparsity", U32, 2), 3: number("bits", U32, 8), 4: number("has_min", BOOL),
         5: number("group_size", U32, 256), 6: number("kept_per_row", U32), 7: number("n", U32, 15), 8: number("m", U32, 16)}
UNIT_TENSOR = {1: number("tensor", U32), 2: one("codec", CODEC), 3: number("rows", U64), 4: number("cols", U64)}
CHUNK = {1: number("offset", U64), 2: number("stored_bytes", U64), 3: number("plain_bytes", U64),
         4: number("encoding", U32, 2),
         5: digest("stored_digest"), 6: digest("plain_digest")}
UNIT = {1: many("tensors", UNIT_TENSOR, 2**20), 2: many("chunks", CHUNK, 2**20)}
VARIANT = {1: number("physical", U32)}
EXPERT_ENTRY = {1: many("variants", VARIANT, 16)}
EXPERT_TABLE = {1: number("version", U32), 2: number("table", U32), 3: many("experts", EXPERT_ENTRY, 4096),
                4: many("units", UNIT, 8192)}
DENSE_TABLE = {1: number("version", U32), 2: many("units", UNIT, 8192)}
HOT_EXPERT = {1: number("table", U32), 2: number("expert", U32)}
HOT_LIST = {1: number("version", U32), 2: many("experts", HOT_EXPERT, 2**20), 3: number("cache_policy", U32, 2),
            4: number("half_life", U32), 5: number("recency", U32), 6: number("frequency", U32), 7: number("nearness", U32),
            8: number("pinned_percent", U32)}

GOLDEN_STEP = {1: packed("tokens", U32, 16), 2: packed("logits", F32, 16)}
GOLDEN_PROMPT = {1: packed("tokens", U32, 4096), 2: many("steps", GOLDEN_STEP, 256)}
GOLDEN_PROMPTS = {1: number("version", U32), 2: number("tolerance", F32), 3: number("allowed", U32),
                  4: many("prompts", GOLDEN_PROMPT, 64)}

VALUE = {1: name("name", 200), 2: number("kind", U32, 1), 3: number("width", U64)}
TENSOR = {1: name("name", 200), 2: number("rows", U64), 3: number("cols", U64), 4: number("role", U32, 8),
          5: number("layer", U32)}
EXPERT_TABLE_DECL = {1: number("layer", U32), 2: number("hidden", U64), 3: packed("intermediate", U64, 4096),
                     4: packed("original", U32, 4096), 5: number("gated", BOOL)}
ROUTING = {1: number("score", U32, 2), 2: number("score_before_topk", BOOL), 3: number("k", U32),
           4: number("renormalise", BOOL),
           5: number("eps", F32), 6: number("scale", F32), 7: number("group_size", U32), 8: number("top_groups", U32),
           9: number("group_rule", U32, 1), 10: number("mixer_eps", F32), 11: number("weight_on_input", BOOL)}
ACTIVATION = {1: number("function", U32, 4), 2: number("gated", BOOL), 3: number("limit", F32),
              4: number("sigmoid_scale", F32), 5: number("up_offset", F32)}
NODE = {
    1: number("semantics", U32), 2: number("block", U32), 3: packed("inputs", U32, 4096), 4: number("output", U32),
    5: one_of("embedding", {1: number("table", U32)}),
    6: one_of("linear", {1: number("weight", U32), 2: number("bias_plus_one", U32)}),
    7: one_of("norm", {1: number("kind", U32, 1), 2: number("weight_plus_one", U32), 3: number("bias_plus_one", U32),
                       4: number("group", U64), 5: number("eps", F32), 6: number("one_plus_weight", BOOL)}),
    8: one_of("rotary", {1: number("heads", U32), 2: number("head_dim", U32), 3: number("rotary_dim", U32),
                         4: number("interleaved", BOOL), 5: number("magnitude", F32), 6: packed("inv_freq", F32, 4096),
                         7: number("offset", U32), 8: number("long_from", U32), 9: number("long_magnitude", F32),
                         10: packed("long_inv_freq", F32, 4096)}),
    9: one_of("attention", {1: number("heads", U32), 2: number("kv_heads", U32), 3: number("head_dim", U32),
                            4: number("scale", F32),
                            5: number("window", U32), 6: number("softcap", F32), 7: number("state_slot", U32),
                            8: number("value_dim", U32), 9: number("chunk", U32), 10: number("sinks_plus_one", U32),
                            11: number("position_scale", F32), 12: number("position_floor", U32)}),
    10: one_of("moe", {1: one("routing", ROUTING), 2: one("activation", ACTIVATION), 3: number("table", U32),
                      4: number("selection_bias_plus_one", U32), 5: number("gate_bias_plus_one", U32),
                      6: number("up_bias_plus_one", U32), 7: number("down_bias_plus_one", U32)}),
    11: one_of("elementwise", {1: number("op", U32, 8), 2: number("alpha", F32)}),
    12: one_of("slice", {1: number("begin", U64)}),
    13: one_of("concat", {1: number("heads", U32), 2: number("shared", U32)}),
    14: one_of("convolution", {1: number("weight", U32), 2: number("bias_plus_one", U32), 3: number("state_slot", U32)}),
}
PROGRAM = {1: number("version", U32), 2: many("values", VALUE, 2**18), 3: packed("inputs", U32, 4096),
           4: number("output", U32),
           5: many("nodes", NODE, 65536), 6: many("tensors", TENSOR, 2**20),
           7: many("expert_tables", EXPERT_TABLE_DECL, 1024),
           8: number("state_slots", U32), 9: number("max_positions", U32), 10: number("original_parameters", U64)}

FOLDER_UNIT = {1: number("expert", BOOL), 2: number("table", U32), 3: number("physical", U32),
               4: many("tensors", UNIT_TENSOR, 2**20),
               5: number("plain_bytes", U64), 6: digest("plain_digest")}
BLOCK_INDEX = {1: number("version", U32), 2: number("block", U32, 65536), 3: many("units", FOLDER_UNIT, 8192)}
FOLDER_EXPERTS = {1: number("version", U32), 2: many("tables", {1: many("experts", EXPERT_ENTRY, 4096)}, 1024)}
FOLDER_COMPLETE = {1: number("version", U32),
                   2: many("files", {1: name("name", 64), 2: number("bytes", U64), 3: digest("digest")}, 65552)}


class Cursor:
    """A place in the bytes of one message; `end` is the message's end."""

    def __init__(self, data, at, end):
        self.data, self.at, self.end = data, at, end

    def varint(self):
        value = 0
        for shift in range(0, 70, 7):
            if self.at >= self.end:
                raise Refused("R-207", f"cut off at byte {self.at}")
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >= 2**64 or (byte == 0 and shift):
                    raise Refused("R-204", f"overlong varint before byte {self.at}")
                return value
        raise Refused("R-204", f"endless varint before byte {self.at}")

    def take(self, count):
        if count > self.end - self.at:
            raise Refused("R-207", f"{count} bytes at {self.at} reach past the end")
        self.at += count
        return self.data[self.at - count:self.at]


def wire_type(field):
    if field.repeated is not None or field.kind in (NAME, DIGEST, MESSAGE):
        return 2
    return 5 if field.kind == F32 else 0


def scalar(cursor, field, is_element):
    if field.kind == F32:
        raw = cursor.take(4)
        if raw == bytes(4) and not is_element:
            raise Refused("R-206", f"{field.name}: 0 is written out")
        return struct.unpack("<f", raw)[0]
    value = cursor.varint()
    most = TYPE_MAX[field.kind] if is_element or field.limit is None else field.limit
    if value > most:
        raise Refused("R-205", f"{field.name}: {value}")
    if value == 0 and not is_element:
        raise Refused("R-206", f"{field.name}: 0 is written out")
    return value


def length_delimited(cursor, field):
    length = cursor.varint()
    if length > cursor.end - cursor.at:
        raise Refused("R-207", f"{field.name} reaches past the end")
    end = cursor.at + length
    if field.kind == MESSAGE:
        value = message(cursor.data, cursor.at, end, field.message)
    elif field.repeated is not None:
        if length == 0:
            raise Refused("R-206", f"{field.name}: empty list")
        inner, value = Cursor(cursor.data, cursor.at, end), []
        while inner.at < end:
            if len(value) == field.repeated:
                raise Refused("R-209", f"{field.name}: more than {field.repeated}")
            value.append(scalar(inner, field, True))
    else:
        if length == 0:
            raise Refused("R-206", f"{field.name}: empty bytes")
        if field.kind == DIGEST and length != 32:
            raise Refused("R-208", f"{field.name}: {length} bytes")
        if field.kind == NAME and length > field.limit:
            raise Refused("R-209", f"{field.name}: {length} bytes")
        value = cursor.data[cursor.at:end]
    cursor.at = end
    return value


def default(field):
    if field.repeated is not None:
        return []
    return {NAME: b"", F32: 0.0, MESSAGE: None}.get(field.kind, 0)


def message(data, at, end, fields):
    out = {field.name: default(field) for field in fields.values()}
    cursor, last, chosen = Cursor(data, at, end), 0, None
    required = [number for number, field in fields.items() if field.required]

    def need_up_to(reached):
        for missing in required:
            if last < missing < reached:
                raise Refused("R-208", f"{fields[missing].name} is missing")

    while cursor.at < end:
        tag = cursor.varint()
        reached, field = tag >> 3, fields.get(tag >> 3)
        if field is None or (tag & 7) != wire_type(field):
            raise Refused("R-202", f"tag {tag:#x}")
        again = reached == last
        if reached < last or (again and not (field.kind == MESSAGE and field.repeated is not None)):
            raise Refused("R-203", f"{field.name} comes again or too late")
        need_up_to(reached)
        last = reached
        if field.one_of:
            if chosen is not None:
                raise Refused("R-208", f"{field.name} beside {chosen}")
            chosen = field.name
        if field.kind == MESSAGE and field.repeated is not None:
            if len(out[field.name]) == field.repeated:
                raise Refused("R-209", f"{field.name}: more than {field.repeated}")
            out[field.name].append(length_delimited(cursor, field))
        else:
            out[field.name] = length_delimited(cursor, field) if wire_type(field) == 2 else scalar(cursor, field, False)
    need_up_to(2**32)
    if any(field.one_of for field in fields.values()):
        if chosen is None:
            raise Refused("R-208", "a node without a kind")
        out["kind"] = chosen
    return out


def parse(data, fields):
    """A top-level message: its version first."""
    cursor = Cursor(data, 0, len(data))
    try:
        leading = cursor.varint() == 8 and cursor.varint() == 1
    except Refused:
        leading = False
    if not leading:
        raise Refused("R-201", "version other than 1")
    return message(data, 0, len(data), fields)
