"""Nothing holds a whole model: peak memory of calibrate and compress does not grow with the number of layers. The runtime
holds its weights and state, and no more after 10,000 tokens than after 1,000."""
import json
import os
import shutil
import subprocess

from harness import BIN, TEXT, TRUST, WORK, WREN, Case, read_safetensors, run, write_safetensors


def peak_kib(*args):
    """Peak resident memory of one run, from the operating system's account of the finished process."""
    process = subprocess.Popen([str(BIN / args[0]), *map(str, args[1:])], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    assert process.returncode == 0, error[-2000:]
    return usage.ru_maxrss


class Memory(Case):
    def deep_wren(self, layers):
        """wren with its four layers repeated."""
        model = self.dir / f"wren{layers}"
        model.mkdir()
        shutil.copy(WREN / "tokenizer.json", model)
        shutil.copy(WREN / "tokenizer_config.json", model)
        config = json.loads((WREN / "config.json").read_text())
        config["num_hidden_layers"] = layers
        config["max_window_layers"] = layers
        (model / "config.json").write_text(json.dumps(config))
        source = read_safetensors(WREN / "model.safetensors")
        tensors = {}
        for name, entry in source.items():
            if not name.startswith("model.layers."):
                tensors[name] = entry
                continue
            _, _, layer, rest = name.split(".", 3)
            for copy in range(int(layer), layers, 4):
                tensors[f"model.layers.{copy}.{rest}"] = entry
        write_safetensors(model / "model.safetensors", tensors)
        return model

    def test_peak_memory_of_4_and_16_layers(self):
        peaks = {}
        # A candidate of each kind: what is held at once is the same as with all of them, and is there sooner.
        recipe = self.dir / "recipe.yaml"
        recipe.write_text("version: 1\ndefaults: {candidates: [t3g128, t4g128, i8g64, i8r@4.25]}\n")
        for layers in (4, 16):
            model = self.deep_wren(layers)
            profile = self.dir / f"{layers}.mprof"
            peaks["calibrate", layers] = peak_kib("moepack-calibrate", model, "--data", TEXT / "novel.calib.txt", "--tokens", 4096, "-o", profile)
            peaks["compress", layers] = peak_kib("moepack-compress", model, "--profile", profile, "--recipe", recipe, "--target-bpw", "4.5",
                                                 "-o", self.dir / f"dir{layers}")
        for command in ("calibrate", "compress"):
            four, sixteen = peaks[command, 4], peaks[command, 16]
            print(f"{command}: 4 layers {four} KiB, 16 layers {sixteen} KiB, {sixteen / four - 1:+.1%}")
            self.assertLess(abs(sixteen / four - 1), 0.2, peaks)


class RuntimeMemory(Case):
    def bench(self, codec, *options):
        return run("run", "bench", WORK / f"wren-{codec}.moeb", "--trust", TRUST, "--prompt-tokens", 24, "-n", 1000, "--threads", 1, "--json",
                   *options).json()

    def test_no_growth_over_10000_tokens(self):
        """With all experts resident; and with few, so that they come and go all the time. Where pages lie differs from run to
        run: the least of three runs each."""
        for ram in ((), ("--expert-ram", "2000000")):
            peaks = {}
            for repeats in (1, 10):
                peaks[repeats] = min(self.bench("i4g64", "--repeats", repeats, *ram)["peak_rss_bytes"] for _ in range(3))
            print(f"{' '.join(ram) or 'all experts'}: {peaks[1]} bytes after 1,000 tokens, {peaks[10]} after 10,000, {peaks[10] / peaks[1] - 1:+.1%}")
            self.assertLess(peaks[10] / peaks[1], 1.05, peaks)

    def test_memory_is_weights_and_state(self):
        """Of two bundles of one program the larger takes more by its weights and at most a tenth of those."""
        small, large = self.bench("i4g64", "--repeats", 1), self.bench("f32", "--repeats", 1)
        held = [report["dense_bytes"] + report["expert_bytes"] for report in (small, large)]
        more = (large["peak_rss_bytes"] - small["peak_rss_bytes"]) / (held[1] - held[0])
        print(f"{held[1] - held[0]} bytes more of weights, {more:.2f} times that more memory")
        self.assertLess(more, 1.1)
        self.assertGreater(more, 0.9)
