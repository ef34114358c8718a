#!/usr/bin/env python3
"""Trains the second model of the quality benchmark: another family, shape, tokenizer and text than wren.

    apt-get install python3-torch python3-regex libopenblas0-pthread      (Debian 12: PyTorch 1.13)
    python3 tests/bench/train_second.py                                    writes build/second/{model,text}

Qwen3-MoE: 2 layers, hidden 512, 8 heads of 64 with 2 key-value heads and norms on every head of q and k, 8 experts of
intermediate 256, top 2 renormalised, no shared expert, tied head, 2,048 tokens; 8.7 M parameters. Prints the perplexity of
the model and of a unigram model of its training text on text/mixed.eval.txt (chunks of 256, second half scored).
The published model: 926 steps (1.9 M tokens), final training loss 3.25; perplexity 36.34, of the unigram model 724.43."""
import argparse
import json
import math
import pathlib
import struct
import time

import torch
import torch.nn.functional as F

import bpe
import second_text

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 2048, "hidden_size": 512,
    "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "hidden_act": "silu",
    "max_position_embeddings": 1024, "initializer_range": 0.02, "rms_norm_eps": 1e-6, "rope_theta": 50000.0,
    "tie_word_embeddings": True, "use_cache": True, "attention_dropout": 0.0, "attention_bias": False,
    "intermediate_size": 256, "moe_intermediate_size": 256, "num_experts": 8, "num_experts_per_tok": 2,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "output_router_logits": False,
    "router_aux_loss_coef": 0.02, "rope_scaling": None, "use_sliding_window": False, "sliding_window": None,
    "max_window_layers": 2, "bos_token_id": 2045, "eos_token_id": 2045, "torch_dtype": "bfloat16",
}
CONTEXT, BATCH, WARM_UP, PEAK = 256, 8, 100, 1.5e-3


def shapes(c):
    """Every parameter of the checkpoint by name."""
    d, e, head = c["hidden_size"], c["moe_intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    out = {"model.embed_tokens.weight": (c["vocab_size"], d), "model.norm.weight": (d,)}
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        out |= {p + "input_layernorm.weight": (d,), p + "post_attention_layernorm.weight": (d,)}
        a = p + "self_attn."
        out |= {a + "q_proj.weight": (q, d), a + "k_proj.weight": (kv, d), a + "v_proj.weight": (kv, d),
                a + "o_proj.weight": (d, q), a + "q_norm.weight": (head,), a + "k_norm.weight": (head,)}
        out[p + "mlp.gate.weight"] = (c["num_experts"], d)
        for i in range(c["num_experts"]):
            m = f"{p}mlp.experts.{i}."
            out |= {m + "gate_proj.weight": (e, d), m + "up_proj.weight": (e, d), m + "down_proj.weight": (d, e)}
    return out


def initial(c):
    torch.manual_seed(20)
    scale = {"o_proj": 0.5, "down_proj": 0.5, "embed_tokens": 1.0}
    weights = {}
    for name, shape in shapes(c).items():
        factor = next((s for key, s in scale.items() if key in name), 1.0)
        value = torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * c["initializer_range"] * factor
        weights[name] = value.requires_grad_()
    return weights


def rms(x, w, eps):
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w


def attention(w, p, x, c, rope):
    b, t, _ = x.shape
    heads, kv, d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    cos, sin = rope

    def project(name, count, norm=None):
        y = F.linear(x, w[f"{p}{name}_proj.weight"]).view(b, t, count, d)
        if norm is None:
            return y.transpose(1, 2)
        y = rms(y, w[f"{p}{norm}_norm.weight"], c["rms_norm_eps"]).transpose(1, 2)
        low, high = y[..., :d // 2], y[..., d // 2:]
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

    q = project("q", heads, "q").view(b, kv, heads // kv, t, d)
    k, v = project("k", kv, "k").unsqueeze(2), project("v", kv).unsqueeze(2)
    mask = torch.full((t, t), float("-inf")).triu(1)
    scores = torch.matmul(q, k.transpose(-1, -2)).float() / math.sqrt(d) + mask
    mixed = torch.matmul(scores.softmax(-1), v).reshape(b, heads, t, d).transpose(1, 2).reshape(b, t, heads * d)
    return F.linear(mixed, w[f"{p}o_proj.weight"])


def mixture(w, p, x, c):
    """The experts' output and the load-balancing loss (Switch: experts x sum of share x mean probability)."""
    flat, count, k = x.reshape(-1, x.shape[-1]), c["num_experts"], c["num_experts_per_tok"]
    probability = F.linear(flat, w[p + "gate.weight"]).float().softmax(-1)
    top, chosen = probability.topk(k, -1)
    top = top / top.sum(-1, keepdim=True)
    out = torch.zeros_like(flat)
    for e in range(count):
        rows, slot = (chosen == e).nonzero(as_tuple=True)
        m, h = f"{p}experts.{e}.", flat[rows]
        h = F.silu(F.linear(h, w[m + "gate_proj.weight"])) * F.linear(h, w[m + "up_proj.weight"])
        h = F.linear(h, w[m + "down_proj.weight"]).float() * top[rows, slot].unsqueeze(1)
        out = out.index_add(0, rows, h)
    share = F.one_hot(chosen, count).float().mean((0, 1))
    return out.view_as(x), count * (share * probability.mean(0)).sum()


def forward(w, c, ids):
    """Logits [batch, time, vocab] and the mean load-balancing loss."""
    half = c["head_dim"] // 2
    angle = torch.outer(torch.arange(ids.shape[1]).float(), c["rope_theta"] ** (-torch.arange(half) / half))
    x, balance = F.embedding(ids, w["model.embed_tokens.weight"]), 0.0
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        h = rms(x, w[p + "input_layernorm.weight"], c["rms_norm_eps"])
        x = x + attention(w, p + "self_attn.", h, c, (angle.cos(), angle.sin()))
        y, loss = mixture(w, p + "mlp.", rms(x, w[p + "post_attention_layernorm.weight"], c["rms_norm_eps"]), c)
        x, balance = x + y, balance + loss / c["num_hidden_layers"]
    h = rms(x, w["model.norm.weight"], c["rms_norm_eps"])
    return F.linear(h, w["model.embed_tokens.weight"]), balance


def learning_rate(step, steps):
    if step < WARM_UP:
        return PEAK * (step + 1) / WARM_UP
    return PEAK * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (steps - WARM_UP))))


def train(tokens, steps, minutes):
    """Trains for `steps`, fewer if the minutes would run out (the schedule then ends with them)."""
    w, c = initial(CONFIG), CONFIG
    decay = [v for v in w.values() if v.dim() > 1]
    rest = [v for v in w.values() if v.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
                                  lr=PEAK, betas=(0.9, 0.95))
    data = torch.tensor(tokens)
    starts = torch.arange(0, len(data) - CONTEXT - 1, CONTEXT)
    order, begin = torch.empty(0, dtype=torch.long), time.monotonic()
    for step in range(steps):
        if step == 40 and minutes:
            steps = min(steps, int(40 * 60 * minutes / (time.monotonic() - begin)))
        if len(order) < BATCH:
            order = torch.cat([order, starts[torch.randperm(len(starts))] + int(torch.randint(CONTEXT, (1,)))])
        take, order = order[:BATCH].clamp(max=len(data) - CONTEXT - 1), order[BATCH:]
        rows = torch.stack([data[s:s + CONTEXT + 1] for s in take])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, balance = forward(w, c, rows[:, :-1])
        loss = F.cross_entropy(logits.float().reshape(-1, c["vocab_size"]), rows[:, 1:].reshape(-1))
        optimizer.zero_grad()
        (loss + c["router_aux_loss_coef"] * balance).backward()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        optimizer.step()
        if step % 20 == 19 or step + 1 >= steps:
            print(f"step {step + 1} of {steps}, loss {loss.item():.3f}, balance {float(balance):.3f}, "
                  f"{(step + 1) * BATCH * CONTEXT / (time.monotonic() - begin):.0f} tokens/s", flush=True)
        if step + 1 >= steps:
            break
    return {name: value.detach().bfloat16() for name, value in w.items()}


def perplexities(weights, train_tokens, eval_tokens):
    """(model, unigram) on the second half of every chunk; the unigram model counts the training text, add-one smoothed."""
    w = {name: value.float() for name, value in weights.items()}
    counts = torch.bincount(torch.tensor(train_tokens), minlength=CONFIG["vocab_size"]).float() + 1
    unigram = -(counts / counts.sum()).log()
    chunks = torch.tensor(eval_tokens[:len(eval_tokens) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    model_loss, unigram_loss, scored = 0.0, 0.0, 0
    with torch.no_grad():
        for chunk in chunks:
            target = chunk[CONTEXT // 2 + 1:]
            logits = forward(w, CONFIG, chunk[None])[0][0, CONTEXT // 2:-1]
            model_loss += F.cross_entropy(logits, target, reduction="sum").item()
            unigram_loss += unigram[target].sum().item()
            scored += len(target)
    return math.exp(model_loss / scored), math.exp(unigram_loss / scored)


def write_safetensors(path, weights):
    header, blobs, offset = {}, [], 0
    for name, value in sorted(weights.items()):
        raw = value.contiguous().view(torch.int16).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [offset, offset + len(raw)]}
        blobs.append(raw)
        offset += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=pathlib.Path, default=ROOT / "build/second")
    parser.add_argument("--steps", type=int, default=926)
    parser.add_argument("--minutes", type=float, default=0, help="fewer steps if they would take longer; 0: never")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = args.out / "model"
    model.mkdir(parents=True, exist_ok=True)
    texts, versions = second_text.build(args.out)
    encode = bpe.Encoder(bpe.train(texts, CONFIG["vocab_size"]))
    end = [CONFIG["eos_token_id"]]
    tokens = [t for text in texts for t in encode(text) + end]
    print(f"{len(tokens)} training tokens of {', '.join(versions)}", flush=True)
    (model / "tokenizer.json").write_text(json.dumps(encode.json(), ensure_ascii=False))
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer", "eos_token": bpe.SPECIALS[0]}))
    weights = train(tokens, args.steps, args.minutes)
    write_safetensors(model / "model.safetensors", weights)
    (model / "config.json").write_text(json.dumps(CONFIG, indent=2))
    ours, unigram = perplexities(weights, tokens, encode((args.out / "text/mixed.eval.txt").read_text()))
    print(f"perplexity on mixed.eval.txt: model {ours:.2f}, unigram {unigram:.2f}, ratio {ours / unigram:.3f}")


if __name__ == "__main__":
    main()
