#!/usr/bin/env python3
"""What compression costs, beside llama.cpp's tools where they do the same work. Fills the cost sections of docs/results/quality.md.

    python3 tests/bench/cost.py calibrate    tokens/s of calibrate and llama-imatrix on wren, in turn
    python3 tests/bench/cost.py plain        MB/s of rounding to nearest and llama-quantize, in turn, on wren and one large layer
    python3 tests/bench/cost.py full         seconds of full quality on wren: calibrate, compress, pack
    python3 tests/bench/cost.py layer        time and peak memory of one OLMoE-sized layer, extrapolated

Needs a release build and python3-numpy (of Debian: /usr/bin/python3). Wall time counts only on a quiet machine; processor
seconds, printed beside it, are what a busy one can still say. Speeds are medians of --repeats runs of both programs in turn."""
import argparse
import json
import os
import pathlib
import shutil
import statistics
import struct
import subprocess
import sys
import time

import bench_lib
import llama
from bench_lib import CTX, ROOT, run, table
from quality import PAGE

LAYER = {"hidden": 2048, "intermediate": 1024, "experts": 64, "k": 8, "heads": 16}
DEFAULTS = {"repeats": 5, "tokens": 65536, "experts": LAYER["experts"], "threads": 2}
# Mixture models to extrapolate to: name, expert weights, weights of the experts of one layer, hidden width.
LARGER = (("7 B (OLMoE: 16 layers like this one)", 6.44e9, 4.03e8, 2048),
          ("100 B (48 layers of 128 experts, hidden 4096, intermediate 1344)", 1.01e11, 2.11e9, 4096))


class Timed:
    """One run of a program: wall and processor seconds, peak memory in bytes."""

    def __init__(self, *command):
        start = time.monotonic()
        process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        error = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        self.wall, self.cpu, self.peak = time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit(f"{' '.join(str(c) for c in command)}\n{error.decode(errors='replace')[-3000:]}")


def in_turn(commands, repeats, clean=()):
    """Medians (wall, cpu) of each command, run one after the other `repeats` times."""
    runs = [[] for _ in commands]
    for _ in range(repeats):
        for command, results in zip(commands, runs):
            for path in clean:
                shutil.rmtree(path, ignore_errors=True)
            results.append(Timed(*command))
    return [(statistics.median(r.wall for r in rs), statistics.median(r.cpu for r in rs)) for rs in runs]


def load():
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def write(args, name, *text):
    """Fills a section; its command names what differs from the defaults (folders aside)."""
    given = "".join(f" --{key} {value}" for key, value in vars(args).items() if key in DEFAULTS and value != DEFAULTS[key])
    bench_lib.write_section(PAGE, f"cost {name}", "\n\n".join((f"`python3 tests/bench/cost.py {name}{given}` ({load()})", *text)))
    print("\n\n".join(text), flush=True)


def ratio_table(unit, amount, names, medians):
    rows = [(name, f"{amount / wall:,.1f}", f"{amount / cpu:,.1f}", f"{wall:.2f}", f"{cpu:.2f}") for name, (wall, cpu) in zip(names, medians)]
    rows.append(("speed, ours : its", f"{medians[1][0] / medians[0][0]:.2f}", f"{medians[1][1] / medians[0][1]:.2f}", "", ""))
    return table(("program", f"{unit}/s, wall", f"{unit} a processor second", "wall s", "processor s"), rows)


def calibrate(args):
    wren, tokens = bench_lib.subjects()["wren"], 65536
    full = args.work / "cost.gguf"
    run(args.bin / "moepack", "export", wren.model, "--gguf", "-o", full, "--quiet")
    ours = (args.bin / "moepack-calibrate", wren.model, "--data", *(f"{d}={wren.calib(d)}" for d in wren.domains), "--tokens", tokens, "-o",
            args.work / "cost.mprof", "--quiet", "--threads", args.threads)
    theirs = (args.llama / "llama-imatrix", "-m", full, "-f", wren.mixed_calib, "-c", CTX, "--chunks", tokens // CTX, "--no-ppl", "-o",
              args.work / "cost-im.gguf", "-t", args.threads)
    medians = in_turn((ours, theirs), args.repeats)
    write(args, "calibrate", f"{tokens:,} tokens of wren's calibration text, whole programs, threads: {args.threads}, medians of {args.repeats}:",
          ratio_table("tokens", tokens, ("moepack calibrate", "llama-imatrix"), medians))


def plain(args):
    parts = []
    for name, model in (("wren", ROOT / "examples/wren/model"), (f"one layer of {args.experts} experts, hidden {LAYER['hidden']}, intermediate {LAYER['intermediate']}", layer_model(args))):
        full = args.work / "plain.gguf"
        run(args.bin / "moepack", "export", model, "--gguf", "--type", "f16", "-o", full, "--quiet")
        megabytes = (model / "model.safetensors").stat().st_size / 1e6
        out = args.work / "plain-out"
        ours = (args.bin / "moepack-compress", model, "--codec", "i4g32", "-o", out, "--quiet", "--threads", args.threads)
        theirs = (args.llama / "llama-quantize", full, args.work / "plain-q.gguf", "Q4_K_M", args.threads)
        medians = in_turn((ours, theirs), args.repeats, clean=(out,))
        parts += [f"{name}, {megabytes:.1f} MB of 16-bit weights to 4.5 bits a weight, threads: {args.threads}, medians of {args.repeats}:",
                  ratio_table("MB", megabytes, ("moepack compress --codec i4g32", "llama-quantize Q4_K_M"), medians)]
        shutil.rmtree(out, ignore_errors=True)
    write(args, "plain", *parts)


def full(args):
    wren = bench_lib.subjects()["wren"]
    out, profile, bundle, key = (args.work / n for n in ("full-out", "full.mprof", "full.moeb", "full.pem"))
    for path in (out,):
        shutil.rmtree(path, ignore_errors=True)
    for path in (key, args.work / "full.json"):
        path.unlink(missing_ok=True)
    run(args.bin / "moepack", "pack", "keygen", "-o", key, "--trust", args.work / "full.json")
    steps = {
        "calibrate": ("calibrate", wren.model, "--data", *(f"{d}={wren.calib(d)}" for d in wren.domains), "--tokens", 65536, "-o", profile),
        "compress": ("compress", wren.model, "--profile", profile, "--target-size", 10221888, *args.option, "-o", out),
        "pack": ("pack", out, "--key", key, "-o", bundle),
    }
    runs = {name: Timed(args.bin / f"moepack-{command[0]}", *command[1:], "--quiet") for name, command in steps.items()}
    rows = [(name, f"{r.wall:.1f}", f"{r.cpu:.1f}", f"{r.peak / 2**20:.0f}") for name, r in runs.items()]
    rows.append(("all", f"{sum(r.wall for r in runs.values()):.1f}", f"{sum(r.cpu for r in runs.values()):.1f}",
                 f"{max(r.peak for r in runs.values()) / 2**20:.0f}"))
    write(args, "full", f"wren from checkpoint to bundle at the bytes of Q4_K_M, full quality ({' '.join(args.option) or 'defaults'}):",
          table(("step", "wall s", "processor s", "peak MiB"), rows))


def layer_model(args):
    """A one-layer OLMoE-shaped checkpoint with random weights and wren's tokenizer, made once."""
    import numpy
    folder = args.work / f"layer-{args.experts}"
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    h, i, vocabulary = LAYER["hidden"], LAYER["intermediate"], 4096
    p = "model.layers.0."
    shapes = {"model.embed_tokens.weight": (vocabulary, h), "lm_head.weight": (vocabulary, h), "model.norm.weight": (h,),
              p + "mlp.gate.weight": (args.experts, h)}
    shapes |= {f"{p}self_attn.{n}_proj.weight": (h, h) for n in "qkvo"}
    shapes |= {p + n + ".weight": (h,) for n in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")}
    for e in range(args.experts):
        shapes |= {f"{p}mlp.experts.{e}.{n}_proj.weight": ((h, i) if n == "down" else (i, h)) for n in ("gate", "up", "down")}
    header, offset = {}, 0
    for name, shape in sorted(shapes.items()):
        size = 2 * int(numpy.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    random = numpy.random.default_rng(1)
    with open(folder / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, shape in sorted(shapes.items()):
            value = numpy.ones(shape, "<f4") if len(shape) == 1 else random.standard_normal(shape, "<f4") * numpy.float32(0.02)
            out.write((value.view("<u4") >> 16).astype("<u2").tobytes())
    shutil.copy(ROOT / "examples/wren/model/tokenizer.json", folder)
    shutil.copy(ROOT / "examples/wren/model/tokenizer_config.json", folder)
    config = {"architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "vocab_size": vocabulary, "hidden_size": h,
              "num_hidden_layers": 1, "num_attention_heads": LAYER["heads"], "num_key_value_heads": LAYER["heads"], "hidden_act": "silu",
              "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "use_cache": True,
              "attention_dropout": 0.0, "bos_token_id": 4093, "eos_token_id": 4093, "attention_bias": False, "clip_qkv": None,
              "intermediate_size": i, "num_experts": args.experts, "num_experts_per_tok": LAYER["k"], "norm_topk_prob": False,
              "output_router_logits": False, "router_aux_loss_coef": 0.01, "rope_scaling": None, "pad_token_id": 1,
              "initializer_range": 0.02, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def layer(args):
    model, wren = layer_model(args), bench_lib.subjects()["wren"]
    profile, out = args.work / "layer.mprof", args.work / "layer-out"
    shutil.rmtree(out, ignore_errors=True)
    data = ("--data", *(f"{d}={wren.calib(d)}" for d in wren.domains))
    runs = {"calibrate": Timed(args.bin / "moepack-calibrate", model, *data, "--tokens", args.tokens, "-o", profile, "--quiet"),
            "compress": Timed(args.bin / "moepack-compress", model, "--profile", profile, "--target-bpw", 4.5, *args.option, "-o", out, "--quiet")}
    weights = 3 * LAYER["hidden"] * LAYER["intermediate"] * args.experts
    rows = []
    for name, r in runs.items():
        rows.append((name, f"{r.wall:.0f}", f"{r.cpu:.0f}", f"{r.peak / 2**30:.2f}"))
        for larger, total, per_layer, hidden in LARGER:
            times = total / weights * (hidden / LAYER["hidden"] if name == "compress" else 1)
            rows.append((f"{name}, extrapolated to {larger}", f"{r.wall * times:.0f}", f"{r.cpu * times:.0f}",
                         f"{r.peak / 2**30 * max(1.0, per_layer / weights):.1f}"))
    shutil.rmtree(out, ignore_errors=True)
    write(args, "layer", f"One layer of {args.experts} experts (top {LAYER['k']}), hidden {LAYER['hidden']}, intermediate {LAYER['intermediate']}: "
          f"{weights:,} expert weights, {args.tokens:,} calibration tokens, 4.5 bits a weight. Time grows with the number of weights at the same "
          "tokens an expert, that of compress also with the width (second moments, their factors and feedback cost a weight as much as there are "
          "columns; that attention and routers run again for each share of a layer's experts is not in it); peak memory with the widest layer, not with the number of layers (`e2e.memory`).",
          table(("step", "wall s", "processor s", "peak GiB"), rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"calibrate": calibrate, "plain": plain, "full": full, "layer": layer}
    parser.add_argument("parts", nargs="+", choices=parts)
    parser.add_argument("--repeats", type=int, default=DEFAULTS["repeats"])
    parser.add_argument("--tokens", type=int, default=DEFAULTS["tokens"], help="calibration tokens of the layer")
    parser.add_argument("--experts", type=int, default=DEFAULTS["experts"], help="fewer for a quick look")
    parser.add_argument("--threads", type=int, default=DEFAULTS["threads"], help="of both programs; llama.cpp's spin: 1 on a busy machine")
    parser.add_argument("--llama", type=pathlib.Path, help="folder of llama.cpp's programs; built under --work when absent")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/quality")
    parser.add_argument("--option", nargs=argparse.REMAINDER, default=[], help="last: further arguments of compress")
    args = parser.parse_args()
    args.llama = args.llama or llama.build(args.work)
    for part in args.parts:
        parts[part](args)


if __name__ == "__main__":
    main()
