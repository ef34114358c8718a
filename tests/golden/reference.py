#!/usr/bin/env python3
"""Tiny random checkpoints of families that no outside golden exists for, with logits of a plain float64 reference.

Needs numpy. Written from the families' papers and published code, apart from the programs that moepack builds:
    /usr/bin/python3 tests/golden/reference.py tests/golden
writes the folders deepseek_v3, ernie4_5_moe, glm4_moe, lfm2_moe and phimoe, the same bytes every time.
"""
import json
import math
import struct
import sys
from pathlib import Path

import numpy as np

VOCAB, HIDDEN, TOKENS = 96, 32, 24


def to_bf16(x):
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


E4M3 = np.array([(-1) ** (b >> 7) * ((b & 7) * 2.0 ** -9 if (b >> 3 & 15) == 0 else (8 + (b & 7)) * 2.0 ** ((b >> 3 & 15) - 10))
                 if b & 127 != 127 else np.nan for b in range(256)])


class Weights:
    """Random weights, stored as a checkpoint holds them and handed out as the float64 values that the bytes stand for."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.stored = {}
        self.values = {}

    def add(self, name, *shape, scale=None, around=0.0, dtype="BF16"):
        scale = 1 / math.sqrt(shape[-1]) if scale is None else scale
        x = (self.random.standard_normal(shape) * scale + around).astype(np.float32)
        if dtype == "BF16":
            bits = to_bf16(x)
            self.stored[name] = (dtype, shape, bits.tobytes())
            x = from_bf16(bits)
        else:
            self.stored[name] = ("F32", shape, x.tobytes())
        self.values[name] = x.astype(np.float64)

    def add_fp8(self, name, rows, cols, block):
        codes = self.random.integers(0, 256, (rows, cols)).astype(np.uint8)
        codes[codes & 127 == 127] = 0
        blocks = (-(-rows // block), -(-cols // block))
        scales = (self.random.uniform(0.5, 1.5, blocks) / 200 / math.sqrt(cols)).astype(np.float32)
        self.stored[name] = ("F8_E4M3", (rows, cols), codes.tobytes())
        self.stored[name + "_scale_inv"] = ("F32", blocks, scales.tobytes())
        wide = np.repeat(np.repeat(scales, block, 0), block, 1)[:rows, :cols].astype(np.float64)
        self.values[name] = E4M3[codes] * wide

    def __getitem__(self, name):
        return self.values[name]

    def write(self, path):
        header, data = {"__metadata__": {"format": "pt"}}, b""
        for name in sorted(self.stored):
            dtype, shape, raw = self.stored[name]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
            data += raw
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def silu(x):
    return x / (1 + np.exp(-x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rms(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def layer_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + eps) * weight + bias


def rotate(x, frequencies, pairs, magnitude=1.0):
    """x [tokens, heads, d]: the first 2 * len(frequencies) columns turned, in halves or in neighbouring pairs."""
    n = len(frequencies)
    angle = np.arange(len(x))[:, None, None] * frequencies
    c, s = np.cos(angle) * magnitude, np.sin(angle) * magnitude
    out = x.copy()
    a, b = (np.s_[..., 0:2 * n:2], np.s_[..., 1:2 * n:2]) if pairs else (np.s_[..., :n], np.s_[..., n:2 * n])
    out[a], out[b] = x[a] * c - x[b] * s, x[b] * c + x[a] * s
    return out


def attend(q, k, v, scale):
    """q [tokens, heads, d], k and v with as many heads or a divisor of it."""
    group = q.shape[1] // k.shape[1]
    out = np.zeros(q.shape[:2] + v.shape[2:])
    for t in range(len(q)):
        for h in range(q.shape[1]):
            p = softmax(k[:t + 1, h // group] @ q[t, h] * scale)
            out[t, h] = p @ v[:t + 1, h // group]
    return out.reshape(len(q), -1)


def mlp(w, prefix, x, names=("gate_proj", "up_proj", "down_proj")):
    gate, up, down = (w[f"{prefix}{n}.weight"] for n in names)
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def frequencies(theta, dim):
    return theta ** (-np.arange(0, dim, 2) / dim)


def choose(scores, k):
    return np.argsort(-scores, kind="stable")[:k]


class Model:
    """Runs the layers; `choices` collects [token][MoE layer] -> experts."""

    def __init__(self, config, seed):
        self.c, self.w = config, Weights(seed)
        self.choices, self.margin = [], math.inf

    def experts(self, x, prefix, route, names=("gate_proj", "up_proj", "down_proj")):
        """route(token's x) -> (chosen ids, weights, smallest gap of the choice)"""
        out, chosen = np.zeros_like(x), []
        for t in range(len(x)):
            ids, weights, gap = route(x[t])
            self.margin = min(self.margin, gap)
            chosen.append([int(i) for i in ids])
            for e, g in zip(ids, weights):
                out[t] += g * mlp(self.w, f"{prefix}experts.{e}.", x[t], names)
        self.choices.append(chosen)
        return out

    def biased(self, scores, bias, k, renormalise, eps, scale):
        selection = scores + bias
        order = np.sort(selection)[::-1]
        ids = choose(selection, k)
        weights = scores[ids]
        if renormalise:
            weights = weights / (weights.sum() + eps)
        return ids, weights * scale, order[k - 1] - order[k]


def add_experts(w, prefix, count, width, names=("gate_proj", "up_proj", "down_proj"), fp8=0):
    for e in range(count):
        for name in names:
            shape = (HIDDEN, width) if name == names[2] else (width, HIDDEN)
            if fp8:
                w.add_fp8(f"{prefix}experts.{e}.{name}.weight", *shape, fp8)
            else:
                w.add(f"{prefix}experts.{e}.{name}.weight", *shape)


def add_mlp(w, prefix, width, names=("gate_proj", "up_proj", "down_proj")):
    for name in names:
        w.add(f"{prefix}{name}.weight", *((HIDDEN, width) if name == names[2] else (width, HIDDEN)))


BASE = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "hidden_act": "silu", "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False, "use_cache": True,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16"}


class DeepseekV3(Model):
    CONFIG = BASE | {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8, "v_head_dim": 12, "intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 16,
        "n_shared_experts": 1, "num_experts_per_tok": 3, "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 4,
        "topk_group": 2, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
        "routed_scaling_factor": 2.5, "attention_bias": False, "attention_dropout": 0.0, "ep_size": 1, "aux_loss_alpha": 0.001,
        "seq_aux": True, "num_nextn_predict_layers": 1, "max_position_embeddings": 640,
        "rope_scaling": {"type": "yarn", "factor": 10, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.7,
                         "original_max_position_embeddings": 64},
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                "weight_block_size": [16, 16]}}

    def build(self):
        w, c = self.w, self.c
        heads, nope, rope, value = 4, 8, 8, 12
        w.add("model.embed_tokens.weight", VOCAB, HIDDEN, scale=1)
        for layer in range(3):
            p = f"model.layers.{layer}."
            a = p + "self_attn."
            w.add(p + "input_layernorm.weight", HIDDEN, scale=0.1, around=1)
            w.add(p + "post_attention_layernorm.weight", HIDDEN, scale=0.1, around=1)
            w.add(a + "q_a_proj.weight", 24, HIDDEN)
            w.add(a + "q_a_layernorm.weight", 24, scale=0.1, around=1)
            w.add(a + "q_b_proj.weight", heads * (nope + rope), 24, scale=0.5)
            w.add(a + "kv_a_proj_with_mqa.weight", 16 + rope, HIDDEN, scale=0.4)
            w.add(a + "kv_a_layernorm.weight", 16, scale=0.1, around=1)
            w.add_fp8(a + "kv_b_proj.weight", heads * (nope + value), 16, 16)
            w.add_fp8(a + "o_proj.weight", HIDDEN, heads * value, 16)
            if layer == 0:
                add_mlp(w, p + "mlp.", c["intermediate_size"])
                continue
            w.add(p + "mlp.gate.weight", 16, HIDDEN, scale=0.5)
            w.add(p + "mlp.gate.e_score_correction_bias", 16, scale=0.2, dtype="F32")
            add_experts(w, p + "mlp.", 16, 16, fp8=16)
            add_mlp(w, p + "mlp.shared_experts.", 16)
        w.add("model.norm.weight", HIDDEN, scale=0.1, around=1)
        w.add("lm_head.weight", VOCAB, HIDDEN)
        w.add("model.layers.3.eh_proj.weight", HIDDEN, 2 * HIDDEN)  # predicts further tokens, not run

    @staticmethod
    def yarn(dim=8, theta=10000.0, factor=10.0, original=64):
        def turns(n):
            return dim * math.log(original / (n * 2 * math.pi)) / (2 * math.log(theta))
        low, high = max(math.floor(turns(32)), 0), min(math.ceil(turns(1)), dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)
        f = frequencies(theta, dim)
        return f / factor * ramp + f * (1 - ramp)

    def route(self, x, prefix):
        scores = sigmoid(self.w[prefix + "gate.weight"] @ x)
        selection = scores + self.w[prefix + "gate.e_score_correction_bias"]
        groups = np.sort(selection.reshape(4, 4), 1)[:, -2:].sum(1)
        kept = choose(groups, 2)
        masked = np.where(np.isin(np.arange(16) // 4, kept), selection, -np.inf)
        ids = choose(masked, 3)
        order, best = np.sort(masked)[::-1], np.sort(groups)[::-1]
        weights = scores[ids] / (scores[ids].sum() + 1e-20) * 2.5
        return ids, weights, min(order[2] - order[3], best[1] - best[2])

    def run(self, tokens):
        w, heads, nope, rope, value = self.w, 4, 8, 8, 12
        x = w["model.embed_tokens.weight"][tokens]
        f = self.yarn()
        cos_scale = (0.1 * 1.0 * math.log(10) + 1) / (0.1 * 0.7 * math.log(10) + 1)
        scale = (0.1 * 0.7 * math.log(10) + 1) ** 2 / math.sqrt(nope + rope)
        for layer in range(3):
            p = f"model.layers.{layer}."
            a = p + "self_attn."
            y = rms(x, w[p + "input_layernorm.weight"], 1e-6)
            q = rms(y @ w[a + "q_a_proj.weight"].T, w[a + "q_a_layernorm.weight"], 1e-6) @ w[a + "q_b_proj.weight"].T
            q = q.reshape(-1, heads, nope + rope)
            both = y @ w[a + "kv_a_proj_with_mqa.weight"].T
            latent = rms(both[:, :16], w[a + "kv_a_layernorm.weight"], 1e-6)
            kv = (latent @ w[a + "kv_b_proj.weight"].T).reshape(-1, heads, nope + value)
            key = rotate(both[:, None, 16:], f, True, cos_scale)
            q = np.concatenate([q[..., :nope], rotate(q[..., nope:], f, True, cos_scale)], -1)
            k = np.concatenate([kv[..., :nope], np.repeat(key, heads, 1)], -1)
            x = x + attend(q, k, kv[..., nope:], scale) @ w[a + "o_proj.weight"].T
            y = rms(x, w[p + "post_attention_layernorm.weight"], 1e-6)
            if layer == 0:
                x = x + mlp(w, p + "mlp.", y)
            else:
                m = p + "mlp."
                x = x + self.experts(y, m, lambda t: self.route(t, m)) + mlp(w, m + "shared_experts.", y)
        return rms(x, w["model.norm.weight"], 1e-6) @ w["lm_head.weight"].T


class Dense(Model):
    """What the other four share: grouped-query attention between norms."""

    def add_attention(self, a, heads, kv_heads, dim, bias=(), norms=(), out="o_proj"):
        for name, rows in (("q_proj", heads * dim), ("k_proj", kv_heads * dim), ("v_proj", kv_heads * dim)):
            self.w.add(f"{a}{name}.weight", rows, HIDDEN, scale=0.4)
            if name in bias:
                self.w.add(f"{a}{name}.bias", rows, scale=0.2)
        self.w.add(f"{a}{out}.weight", HIDDEN, heads * dim)
        if out in bias:
            self.w.add(f"{a}{out}.bias", HIDDEN, scale=0.2)
        for name in norms:
            self.w.add(f"{a}{name}.weight", dim, scale=0.2, around=1)

    def project(self, a, x, name, heads, dim):
        y = x @ self.w[f"{a}{name}.weight"].T
        if f"{a}{name}.bias" in self.w.values:
            y = y + self.w[f"{a}{name}.bias"]
        return y.reshape(len(x), heads, dim)

    def attention(self, a, x, heads, kv_heads, dim, turn, norms=None, eps=0.0, out="o_proj"):
        q, k, v = (self.project(a, x, n, h, dim) for n, h in (("q_proj", heads), ("k_proj", kv_heads), ("v_proj", kv_heads)))
        if norms:
            q, k = rms(q, self.w[f"{a}{norms[0]}.weight"], eps), rms(k, self.w[f"{a}{norms[1]}.weight"], eps)
        return self.project(a, attend(turn(q), turn(k), v, 1 / math.sqrt(dim)), out, 1, HIDDEN)[:, 0]


class Glm4Moe(Dense):
    CONFIG = BASE | {
        "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "partial_rotary_factor": 0.5, "attention_bias": True, "use_qk_norm": True,
        "intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 8, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
        "routed_scaling_factor": 1.5, "rope_scaling": None, "attention_dropout": 0.0, "num_nextn_predict_layers": 1}

    def build(self):
        w = self.w
        w.add("model.embed_tokens.weight", VOCAB, HIDDEN, scale=1)
        for layer in range(3):
            p = f"model.layers.{layer}."
            for norm in ("input_layernorm", "post_attention_layernorm"):
                w.add(f"{p}{norm}.weight", HIDDEN, scale=0.1, around=1)
            self.add_attention(p + "self_attn.", 4, 2, 16, ("q_proj", "k_proj", "v_proj"), ("q_norm", "k_norm"))
            if layer == 0:
                add_mlp(w, p + "mlp.", 48)
                continue
            w.add(p + "mlp.gate.weight", 8, HIDDEN, scale=0.5)
            w.add(p + "mlp.gate.e_score_correction_bias", 8, scale=0.2, dtype="F32")
            add_experts(w, p + "mlp.", 8, 16)
            add_mlp(w, p + "mlp.shared_experts.", 16)
        w.add("model.norm.weight", HIDDEN, scale=0.1, around=1)
        w.add("lm_head.weight", VOCAB, HIDDEN)

    def run(self, tokens):
        w = self.w
        x = w["model.embed_tokens.weight"][tokens]
        f = frequencies(10000.0, 8)
        for layer in range(3):
            p = f"model.layers.{layer}."
            y = rms(x, w[p + "input_layernorm.weight"], 1e-6)
            x = x + self.attention(p + "self_attn.", y, 4, 2, 16, lambda h: rotate(h, f, False), ("q_norm", "k_norm"), 1e-6)
            y, m = rms(x, w[p + "post_attention_layernorm.weight"], 1e-6), p + "mlp."
            if layer == 0:
                x = x + mlp(w, m, y)
                continue
            x = x + mlp(w, m + "shared_experts.", y) + self.experts(y, m, lambda t: self.biased(
                sigmoid(w[m + "gate.weight"] @ t), w[m + "gate.e_score_correction_bias"], 2, True, 1e-20, 1.5))
        return rms(x, w["model.norm.weight"], 1e-6) @ w["lm_head.weight"].T


class Ernie(Dense):
    CONFIG = {k: v for k, v in BASE.items() if k != "tie_word_embeddings"} | {
        "architectures": ["Ernie4_5_MoeForCausalLM"], "model_type": "ernie4_5_moe", "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "use_bias": False, "intermediate_size": 48,
        "moe_intermediate_size": 16, "moe_num_experts": 8, "moe_k": 2, "moe_num_shared_experts": 2, "moe_layer_start_index": 1,
        "moe_layer_end_index": 2, "moe_layer_interval": 1, "moe_capacity": [64, 64, 64], "moe_use_aux_free": True,
        "rope_theta": 500000.0, "rope_scaling": None, "tie_word_embeddings": True}

    def build(self):
        w = self.w
        w.add("model.embed_tokens.weight", VOCAB, HIDDEN, scale=1)
        for layer in range(3):
            p = f"model.layers.{layer}."
            for norm in ("input_layernorm", "post_attention_layernorm"):
                w.add(f"{p}{norm}.weight", HIDDEN, scale=0.1, around=1)
            self.add_attention(p + "self_attn.", 4, 2, 8)
            if layer == 0:
                add_mlp(w, p + "mlp.", 48)
                continue
            w.add(p + "mlp.gate.weight", 8, HIDDEN, scale=0.3, dtype="F32")
            w.add(p + "mlp.moe_statics.e_score_correction_bias", 1, 8, scale=0.1, dtype="F32")
            add_experts(w, p + "mlp.", 8, 16)
            add_mlp(w, p + "mlp.shared_experts.", 32)
        w.add("model.norm.weight", HIDDEN, scale=0.1, around=1)

    def run(self, tokens):
        w = self.w
        x = w["model.embed_tokens.weight"][tokens]
        f = frequencies(500000.0, 8)
        for layer in range(3):
            p = f"model.layers.{layer}."
            y = rms(x, w[p + "input_layernorm.weight"], 1e-6)
            x = x + self.attention(p + "self_attn.", y, 4, 2, 8, lambda h: rotate(h, f, True))
            y, m = rms(x, w[p + "post_attention_layernorm.weight"], 1e-6), p + "mlp."
            if layer == 0:
                x = x + mlp(w, m, y)
                continue
            bias = w[m + "moe_statics.e_score_correction_bias"][0]
            x = x + mlp(w, m + "shared_experts.", y) + self.experts(
                y, m, lambda t: self.biased(softmax(w[m + "gate.weight"] @ t), bias, 2, True, 0, 1))
        return rms(x, w["model.norm.weight"], 1e-6) @ w["model.embed_tokens.weight"].T


class Phimoe(Dense):
    SHORT = [1.0, 1.1, 1.3, 1.7]
    LONG = [1.5, 2.5, 6.0, 11.0]
    NAMES = ("w1", "w3", "w2")
    ORIGINAL = 64
    CONFIG = BASE | {
        "architectures": ["PhimoeForCausalLM"], "model_type": "phimoe", "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "attention_bias": True, "lm_head_bias": True, "intermediate_size": 24, "num_local_experts": 8,
        "num_experts_per_tok": 2, "router_jitter_noise": 0.1, "input_jitter_noise": 0.01, "rms_norm_eps": 1e-5,
        "sliding_window": 1024, "router_aux_loss_coef": 0.0, "output_router_logits": False, "attention_dropout": 0.0,
        "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG, "short_mscale": 1.1,
                         "long_mscale": 1.3, "original_max_position_embeddings": ORIGINAL}}

    def build(self):
        w = self.w
        w.add("model.embed_tokens.weight", VOCAB, HIDDEN, scale=1)
        for layer in range(2):
            p = f"model.layers.{layer}."
            for norm in ("input_layernorm", "post_attention_layernorm"):
                w.add(f"{p}{norm}.weight", HIDDEN, scale=0.1, around=1)
                w.add(f"{p}{norm}.bias", HIDDEN, scale=0.1)
            self.add_attention(p + "self_attn.", 4, 2, 8, ("q_proj", "k_proj", "v_proj", "o_proj"))
            w.add(p + "block_sparse_moe.gate.weight", 8, HIDDEN, scale=0.5)
            add_experts(w, p + "block_sparse_moe.", 8, 24, self.NAMES)
        w.add("model.norm.weight", HIDDEN, scale=0.1, around=1)
        w.add("model.norm.bias", HIDDEN, scale=0.1)
        w.add("lm_head.weight", VOCAB, HIDDEN)
        w.add("lm_head.bias", VOCAB, scale=0.3)

    @staticmethod
    def sparse_mixer(scores, eps):
        ids, weights, gap, left = [], [], math.inf, scores.copy()
        for _ in range(2):
            best = int(np.argmax(left))
            top = left[best]
            distance = (top - scores) / np.maximum(np.abs(scores), top)
            near = (distance <= 2 * eps) & np.isfinite(left)
            weights.append(1 / np.exp(left[near] - top).sum())
            others = np.delete(left, best)
            gap = min(gap, top - others.max(), np.abs(distance[np.isfinite(left)] - 2 * eps).min())
            ids.append(best)
            left[best] = -np.inf
        return ids, weights, gap

    def run(self, tokens):
        w = self.w
        x = w["model.embed_tokens.weight"][tokens]
        long = len(tokens) > self.ORIGINAL
        f = frequencies(10000.0, 8) / np.array(self.LONG if long else self.SHORT)
        magnitude = 1.3 if long else 1.1
        for layer in range(2):
            p = f"model.layers.{layer}."
            y = layer_norm(x, w[p + "input_layernorm.weight"], w[p + "input_layernorm.bias"], 1e-5)
            x = x + self.attention(p + "self_attn.", y, 4, 2, 8, lambda h: rotate(h, f, False, magnitude))
            y, m = layer_norm(x, w[p + "post_attention_layernorm.weight"], w[p + "post_attention_layernorm.bias"], 1e-5), p + "block_sparse_moe."
            x = x + self.experts(y, m, lambda t: self.sparse_mixer(w[m + "gate.weight"] @ t, 0.1), self.NAMES)
        return layer_norm(x, w["model.norm.weight"], w["model.norm.bias"], 1e-5) @ w["lm_head.weight"].T + w["lm_head.bias"]


class Lfm2Moe(Dense):
    NAMES = ("w1", "w3", "w2")
    TYPES = ["conv", "full_attention", "conv"]
    CONFIG = {k: v for k, v in BASE.items() if k not in ("hidden_act", "rms_norm_eps", "tie_word_embeddings")} | {
        "architectures": ["Lfm2MoeForCausalLM"], "model_type": "lfm2_moe", "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "norm_eps": 1e-5, "conv_L_cache": 3, "conv_bias": False, "layer_types": TYPES,
        "num_dense_layers": 1, "intermediate_size": 48, "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2,
        "norm_topk_prob": True, "routed_scaling_factor": 1.0, "use_expert_bias": True, "rope_theta": 1000000.0,
        "tie_embedding": True}

    def build(self):
        w = self.w
        w.add("model.embed_tokens.weight", VOCAB, HIDDEN, scale=1)
        for layer in range(3):
            p = f"model.layers.{layer}."
            for norm in ("operator_norm", "ffn_norm"):
                w.add(f"{p}{norm}.weight", HIDDEN, scale=0.1, around=1)
            if self.TYPES[layer] == "conv":
                w.add(p + "conv.in_proj.weight", 3 * HIDDEN, HIDDEN)
                w.add(p + "conv.conv.weight", HIDDEN, 1, 3, scale=0.6)
                w.add(p + "conv.out_proj.weight", HIDDEN, HIDDEN)
            else:
                self.add_attention(p + "self_attn.", 4, 2, 8, (), ("q_layernorm", "k_layernorm"), "out_proj")
            if layer == 0:
                add_mlp(w, p + "feed_forward.", 48, self.NAMES)
                continue
            w.add(p + "feed_forward.gate.weight", 8, HIDDEN, scale=0.5)
            w.add(p + "feed_forward.expert_bias", 8, scale=0.2, dtype="F32")
            add_experts(w, p + "feed_forward.", 8, 16, self.NAMES)
        w.add("model.embedding_norm.weight", HIDDEN, scale=0.1, around=1)

    def short_convolution(self, p, x):
        w = self.w
        b, c, v = np.split(x @ w[p + "in_proj.weight"].T, 3, -1)
        gated, kernel = b * v, w[p + "conv.weight"][:, 0]
        padded = np.concatenate([np.zeros((2, HIDDEN)), gated])
        mixed = sum(padded[j:j + len(x)] * kernel[:, j] for j in range(3))
        return (c * mixed) @ w[p + "out_proj.weight"].T

    def run(self, tokens):
        w = self.w
        x = w["model.embed_tokens.weight"][tokens]
        f = frequencies(1000000.0, 8)
        for layer in range(3):
            p = f"model.layers.{layer}."
            y = rms(x, w[p + "operator_norm.weight"], 1e-5)
            if self.TYPES[layer] == "conv":
                x = x + self.short_convolution(p + "conv.", y)
            else:
                x = x + self.attention(p + "self_attn.", y, 4, 2, 8, lambda h: rotate(h, f, False),
                                       ("q_layernorm", "k_layernorm"), 1e-5, "out_proj")
            y, m = rms(x, w[p + "ffn_norm.weight"], 1e-5), p + "feed_forward."
            if layer == 0:
                x = x + mlp(w, m, y, self.NAMES)
                continue
            x = x + self.experts(y, m, lambda t: self.biased(sigmoid(w[m + "gate.weight"] @ t), w[m + "expert_bias"], 2, True,
                                                             1e-6, 1.0), self.NAMES)
        return rms(x, w["model.embedding_norm.weight"], 1e-5) @ w["model.embed_tokens.weight"].T


FAMILIES = {"deepseek_v3": (DeepseekV3, TOKENS), "glm4_moe": (Glm4Moe, TOKENS), "ernie4_5_moe": (Ernie, TOKENS),
            "phimoe": (Phimoe, TOKENS), "phimoe_long": (Phimoe, 70), "lfm2_moe": (Lfm2Moe, TOKENS)}


def main(out):
    for seed, (name, (family, count)) in enumerate(FAMILIES.items()):
        for attempt in range(100):  # a choice of experts that float32 could make otherwise is drawn again
            model = family(family.CONFIG, 1000 * seed + attempt)
            model.build()
            tokens = model.w.random.integers(0, VOCAB, count)
            logits = model.run(tokens).astype(np.float32)
            if model.margin > 1e-4:
                break
        folder = out / name
        folder.mkdir(exist_ok=True)
        model.w.write(folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(family.CONFIG, indent=1) + "\n")
        record = {"tokens": tokens.tolist(), "topk": [list(t) for t in zip(*model.choices)],
                  "smallest_routing_margin": float(model.margin), "largest_logit": float(np.abs(logits).max())}
        (folder / "golden.json").write_text(json.dumps(record) + "\n")
        (folder / "golden_logits.f32").write_bytes(logits.tobytes())
        print(f"{name}: {(folder / 'model.safetensors').stat().st_size} bytes, margin {model.margin:.2e}, draw {attempt}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
