#!/usr/bin/env python3
"""Writes a checkpoint of OLMoE's shape, cut to a few layers, with synthetic weights, as a Hugging Face folder:

    python3 tests/bench/olmoe_shape.py FOLDER [LAYERS]

hidden 2048, 64 experts, top 8, intermediate 1024, 16 heads, 50,304 tokens, bf16; 4 layers make 1.88 billion parameters and
3.8 GB. Weights are normal with the deviation that keeps activations near 1, and embeddings as large as what layers add to them, so that
tokens differ and all experts are used. The tokenizer is wren's (4,096 tokens; the other ids have logits but no text). Needs numpy."""
import json
import pathlib
import shutil
import struct
import sys

import numpy

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
HIDDEN, EXPERTS, TOP_K, INTERMEDIATE, HEADS, VOCAB = 2048, 64, 8, 1024, 16, 50304


def config(layers):
    return {"architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "vocab_size": VOCAB, "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE, "num_hidden_layers": layers, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
            "num_experts": EXPERTS, "num_experts_per_tok": TOP_K, "norm_topk_prob": False, "hidden_act": "silu",
            "max_position_embeddings": 16384, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "rope_scaling": None, "clip_qkv": None,
            "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": False, "initializer_range": 0.02,
            "output_router_logits": False, "router_aux_loss_coef": 0.01, "use_cache": True, "torch_dtype": "bfloat16",
            "bos_token_id": None, "eos_token_id": 4093, "pad_token_id": None}


def shapes(layers):
    """(name, shape) of every tensor, in file order."""
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name in ("q", "k", "v", "o"):
            yield f"{at}self_attn.{name}_proj.weight", (HIDDEN, HIDDEN)
        for name in ("self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm"):
            yield f"{at}{name}.weight", (HIDDEN,)
        yield f"{at}mlp.gate.weight", (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            yield f"{at}mlp.experts.{expert}.gate_proj.weight", (INTERMEDIATE, HIDDEN)
            yield f"{at}mlp.experts.{expert}.up_proj.weight", (INTERMEDIATE, HIDDEN)
            yield f"{at}mlp.experts.{expert}.down_proj.weight", (HIDDEN, INTERMEDIATE)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


def bf16(values):
    bits = values.view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


def values_of(name, shape, rng):
    if len(shape) == 1:
        return numpy.ones(shape, numpy.float32)
    deviation = 1 if name == "model.embed_tokens.weight" else shape[1] ** -0.5
    return rng.standard_normal(shape, numpy.float32) * numpy.float32(deviation)


def write_model(path, layers):
    header, offset = {}, 0
    for name, shape in shapes(layers):
        size = 2 * int(numpy.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = numpy.random.default_rng(1)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes(layers):
            out.write(bf16(values_of(name, shape, rng)).tobytes())


def write_checkpoint(folder, layers=4):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "examples/wren/model" / name, folder)
    (folder / "config.json").write_text(json.dumps(config(layers), indent=2) + "\n")
    write_model(folder / "model.safetensors", layers)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    write_checkpoint(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 4)
