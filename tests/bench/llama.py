"""llama.cpp as a peer: got from the npm package node-llama-cpp, built without AMX, measured on a GGUF file.

    python3 tests/bench/llama.py WORK PROGRAM...    builds the programs under WORK and prints their folder

Its KLD tool stores the full model's log-probabilities in 16 bits: a KLD below about 0.0003 is noise of that file."""
import pathlib
import re
import struct
import sys

import bench_lib
from bench_lib import CTX, digest, run

PACKAGE = "node-llama-cpp@3.22.1"
# AMX is advertised on some virtual machines and traps; so GGML_NATIVE, which would use it, is off.
FLAGS = ("-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DLLAMA_CURL=OFF "
         "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_UI=OFF").split()
AVX512_FLAGS = "-DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_BF16=ON".split()
PROGRAMS = ("llama-quantize", "llama-imatrix", "llama-perplexity")
TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K", "IQ2_XS", "IQ2_XXS")
# ggml_type: name, weights a block, bytes a block (ggml.h, ggml-common.h).
GGML_TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
              8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
              14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
              20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 30: ("BF16", 1, 2)}


def build(work, programs=PROGRAMS):
    """The folder of llama.cpp's programs, fetched and built under `work` when they are not there."""
    source, bin_dir = work / "llama.cpp", work / "llama.cpp/build/bin"
    if all((bin_dir / p).is_file() for p in programs):
        return bin_dir
    work.mkdir(parents=True, exist_ok=True)
    if not source.is_dir():
        archive = run("npm", "pack", "--silent", PACKAGE, cwd=work).strip().splitlines()[-1]
        run("tar", "xzf", archive, "package/llama/gitRelease.bundle", cwd=work)
        run("git", "clone", "--quiet", "package/llama/gitRelease.bundle", source, cwd=work)
    has_avx512 = {"avx512vbmi", "avx512_vnni", "avx512_bf16"} <= set(pathlib.Path("/proc/cpuinfo").read_text().split())
    run("cmake", "-B", source / "build", "-S", source, "-G", "Ninja", *FLAGS, *(AVX512_FLAGS if has_avx512 else ()))
    run("ninja", "-C", source / "build", *programs)
    return bin_dir


def read_exact(file, form):
    return struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))


def skip_value(file, kind):
    """Passes one metadata value of a GGUF file."""
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    if kind in sizes:
        file.seek(sizes[kind], 1)
    elif kind == 8:
        file.seek(read_exact(file, "Q")[0], 1)
    elif kind == 9:
        inner, count = read_exact(file, "IQ")
        for _ in range(count):
            skip_value(file, inner)
    else:
        raise ValueError(f"GGUF value type {kind}")


def tensor_bytes(path):
    """(bytes of all tensors, {type: bytes}) of a GGUF file, from its header: what it holds in RAM without any padding."""
    by_type = {}
    with open(path, "rb") as file:
        magic, _, tensors, values = read_exact(file, "4sIQQ")
        assert magic == b"GGUF", path
        for _ in range(values):
            file.seek(read_exact(file, "Q")[0], 1)
            skip_value(file, read_exact(file, "I")[0])
        for _ in range(tensors):
            file.seek(read_exact(file, "Q")[0], 1)
            dims = read_exact(file, f"{read_exact(file, 'I')[0]}Q")
            kind, _ = read_exact(file, "IQ")
            name, block, size = GGML_TYPES[kind]
            count = 1
            for d in dims:
                count *= d
            by_type[name] = by_type.get(name, 0) + count // block * size
    return sum(by_type.values()), by_type


def parse_kld(text):
    def number(pattern):
        found = re.search(pattern + r"\s*:\s*([-0-9.]+)", text)
        if not found:
            raise bench_lib.Failed(1, f"no {pattern} in what llama-perplexity printed:\n{text[-4000:]}")
        return float(found[1])
    return {"ppl": number(r"Mean PPL\(Q\)"), "ppl_base": number(r"Mean PPL\(base\)"), "kld_mean": number(r"Mean\s+KLD"),
            "kld_median": number(r"Median\s+KLD"), "kld_p99": number(r"99\.0%\s+KLD"), "same_top1": number(r"Same top p") / 100}


class Llama:
    """Quantizes one subject's GGUF and measures it. Everything is kept under work/NAME and measured once a digest."""

    def __init__(self, bin_dir, work, subject, cache, moepack, threads=2):
        self.bin, self.subject, self.cache, self.threads = pathlib.Path(bin_dir), subject, cache, threads
        self.dir = work / subject.name
        self.dir.mkdir(parents=True, exist_ok=True)
        self.full = self.dir / f"full-{subject.digest[:12]}.gguf"
        if not self.full.is_file():
            run(moepack, "export", subject.model, "--gguf", "-o", self.full, "--quiet")
        self.key = ["llama", digest(self.bin / "llama-quantize"), digest(self.bin / "llama-perplexity"), digest(self.full), subject.digest]

    def program(self, name, *args):
        return run(self.bin / name, *args, "-t", self.threads)

    def imatrix(self):
        out = self.dir / f"im-{self.key[3][:12]}.gguf"
        if not out.is_file():
            self.program("llama-imatrix", "-m", self.full, "-f", self.subject.mixed_calib, "-c", CTX, "-o", out)
        return out

    def base(self, text):
        out = self.dir / f"{text.stem}-{self.key[3][:12]}.kld"
        if not out.is_file():
            self.program("llama-perplexity", "-m", self.full, "-f", text, "-c", CTX, "--kl-divergence-base", out)
        return out

    def quantized(self, kind):
        out = self.dir / f"{kind}-{self.key[3][:12]}.gguf"
        if not out.is_file():
            run(self.bin / "llama-quantize", "--imatrix", self.imatrix(), self.full, out, kind, self.threads)
        return out

    def measure(self, kind, text):
        """KLD and sizes of one type on one text."""
        def make():
            path = self.quantized(kind)
            result = parse_kld(self.program("llama-perplexity", "-m", path, "-c", CTX, "--kl-divergence-base", self.base(text),
                                            "--kl-divergence"))
            resident, by_type = tensor_bytes(path)
            return {**result, "bytes": path.stat().st_size, "bytes_resident": resident, "types": by_type}
        return self.cache.get([*self.key, kind, text.name], make)


if __name__ == "__main__":
    print(build(pathlib.Path(sys.argv[1]).resolve(), sys.argv[2:] or PROGRAMS))
