"""Golden prompts: R-421 to R-424, and what wire form, manifest and digests ask of their blob."""
import copy

from vectors import add
from writer import GOLDEN, VOCABULARY, make_chunk

LIES, OVERFLOW, TWICE, FLIP = "type or shape lies", "integer overflow", "duplicate names", "unsigned fields"
NAN, INFINITY = float("nan"), float("inf")
VALID = {"version": 1, "tolerance": 0.25, "allowed": 1, "prompts": [
    {"tokens": [3, 1, 2], "steps": [{"tokens": [7, 4], "logits": [2.5, 0.0]}, {"tokens": [1, 0], "logits": [1.5, 1.5]}]},
    {"tokens": [5], "steps": [{"tokens": [VOCABULARY - 1], "logits": [-3.0]}]}]}


def golden(change=lambda g: None):
    """A bundle with golden prompts; `change` edits the message."""
    def edit(build):
        build.model["golden"] = copy.deepcopy(VALID)
        change(build.model["golden"])
    return edit


def step(prompt, number, **fields):
    return golden(lambda g: g["prompts"][prompt]["steps"][number].update(fields))


def raw(change):
    """`change` edits the bytes of the blob."""
    def edit(build):
        golden()(build)
        build.blob[(GOLDEN, 0)] = change
    return edit


add(None, "golden_prompts", golden())
add(None, "golden_prompts_without_a_difference_allowed", golden(lambda g: g.update(allowed=0)))
add(None, "golden_prompt_as_long_as_the_program_takes", golden(lambda g: g["prompts"][0].update(tokens=[9] * 127)))
add("R-421", "golden_blob_without_prompts", golden(lambda g: g.update(prompts=[])), attack=LIES)
add("R-421", "golden_prompt_without_tokens", golden(lambda g: g["prompts"][0].update(tokens=[])), attack=LIES)
add("R-421", "golden_prompt_without_steps", golden(lambda g: g["prompts"][1].update(steps=[])), attack=LIES)
add("R-421", "golden_step_of_nothing", step(0, 1, tokens=[], logits=[]), attack=LIES)
add("R-421", "golden_step_without_logits", step(0, 1, logits=[]), attack=LIES)
add("R-421", "golden_step_with_a_logit_too_many", step(1, 0, logits=[-3.0, -4.0]), attack=LIES)
add("R-421", "golden_steps_may_all_differ", golden(lambda g: g.update(allowed=3)), attack="verified by mistake")
add("R-421", "golden_steps_may_differ_2_to_the_32", golden(lambda g: g.update(allowed=2**32 - 1)), attack=OVERFLOW)
for name, value in (("zero", 0.0), ("negative", -0.25), ("infinite", INFINITY), ("nan", NAN)):
    add("R-422", f"golden_tolerance_{name}", golden(lambda g, value=value: g.update(tolerance=value)), attack=LIES)
add("R-422", "golden_logit_nan", step(0, 0, logits=[2.5, NAN]), attack=LIES)
add("R-422", "golden_logit_infinite", step(0, 0, logits=[INFINITY, 0.0]), attack=LIES)
add("R-423", "golden_logits_rise", step(0, 1, logits=[1.0, 1.5]), attack=LIES)
add("R-423", "golden_token_twice", step(0, 0, tokens=[7, 7]), attack=TWICE)
add("R-424", "golden_prompt_reads_a_token_too_large", golden(lambda g: g["prompts"][0].update(tokens=[3, VOCABULARY])),
    attack=OVERFLOW)
add("R-424", "golden_prompt_reads_the_largest_token", golden(lambda g: g["prompts"][0].update(tokens=[2**32 - 1])),
    attack=OVERFLOW)
add("R-424", "golden_step_lists_a_token_too_large", step(0, 0, tokens=[7, VOCABULARY]), attack=OVERFLOW)
add("R-424", "golden_prompt_a_token_too_long", golden(lambda g: g["prompts"][0].update(tokens=[9] * 128)), attack=OVERFLOW)


def narrow_embedding(build):
    """A second embedding of fewer tokens than the output has: what is expected there is never read."""
    golden()(build)
    program = build.model["program"]
    tensor, value = len(program["tensors"]), len(program["values"])
    program["tensors"].append({"name": b"narrow", "rows": 6, "cols": 16})
    program["values"].append({"kind": 1, "width": 16})
    program["nodes"].insert(1, {"semantics": 1, "inputs": [0], "output": value, "embedding": {"table": tensor}})
    unit, plain = build.model["dense"]["units"][0], bytes(6 * 16 * 4)
    unit["tensors"].append({"tensor": tensor, "codec": {}, "rows": 6, "cols": 16})
    unit["chunks"].append(make_chunk(plain, plain, False))


add("R-424", "golden_step_goes_on_with_a_token_too_large", narrow_embedding, attack=OVERFLOW)

# ---- the blob ----

add("R-201", "golden_version_2", raw(lambda data: b"\x08\x02" + data[2:]))
add("R-202", "golden_with_an_unknown_field", raw(lambda data: data + b"\x28\x01"), attack="protobuf malleability")
add("R-305", "golden_twice", lambda b: (golden()(b), setattr(b, "edit_blobs", lambda blobs: blobs.append(list(blobs[-1])))),
    attack=TWICE)
for name, change in (("prompts_65", lambda g: g.update(prompts=g["prompts"][1:] * 65)),
                     ("tokens_4097", lambda g: g["prompts"][0].update(tokens=[9] * 4097)),
                     ("steps_257", lambda g: g["prompts"][0].update(steps=g["prompts"][0]["steps"][:1] * 257)),
                     ("listed_17", lambda g: g["prompts"][0]["steps"][0].update(tokens=list(range(17)))),
                     ("logits_17", lambda g: g["prompts"][0]["steps"][0].update(logits=[1.0] * 17))):
    add("R-209", f"golden_{name}", golden(change), attack=OVERFLOW)


def flip(build):
    golden()(build)
    places = []
    build.edit_manifest = lambda m: places.append(m["blobs"][-1]["offset"] + 3)
    build.file = lambda data: data.__setitem__(places[-1], data[places[-1]] ^ 4)


add("R-108", "flip_in_golden", flip, attack=FLIP)
