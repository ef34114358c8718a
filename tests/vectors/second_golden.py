"""Golden prompts (SPEC.md, section 14). Part of the second reader."""
import math

from second_program import must
from second_wire import GOLDEN_PROMPTS, parse


def read_golden(data):
    golden = parse(data, GOLDEN_PROMPTS)
    must(math.isfinite(golden["tolerance"]) and golden["tolerance"] > 0, "R-422", "tolerance")
    must(golden["prompts"], "R-421", "no prompts")
    for prompt in golden["prompts"]:
        must(prompt["tokens"] and prompt["steps"], "R-421", "prompt without tokens or steps")
        for step in prompt["steps"]:
            tokens, logits = step["tokens"], step["logits"]
            must(tokens and len(tokens) == len(logits), "R-421", "tokens and logits of a step")
            must(all(map(math.isfinite, logits)), "R-422", "logit")
            must(all(a >= b for a, b in zip(logits, logits[1:])), "R-423", "logits rise")
            must(len(set(tokens)) == len(tokens), "R-423", "token twice")
    must(golden["allowed"] < sum(len(prompt["steps"]) for prompt in golden["prompts"]), "R-421", "all may differ")
    return golden


def check_golden(golden, program):
    """The prompts against a valid program."""
    readable = min((program["tensors"][node["embedding"]["table"]]["rows"] for node in program["nodes"]
                    if node["kind"] == "embedding"), default=0)
    vocabulary = program["values"][program["output"]]["width"]
    for prompt in golden["prompts"]:
        steps = prompt["steps"]
        must(len(prompt["tokens"]) + len(steps) - 1 <= program["max_positions"], "R-424", "longer than max_positions")
        read = prompt["tokens"] + [step["tokens"][0] for step in steps[:-1]]
        must(all(token < readable for token in read), "R-424", "token that cannot be read")
        must(all(token < vocabulary for step in steps for token in step["tokens"]), "R-424", "token without logit")
