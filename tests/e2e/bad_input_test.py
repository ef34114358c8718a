"""Bad input: one clear message, the right exit status, no output left. A test each."""
import json
import shutil

from harness import GOLDEN, TEXT, TRUST, WORK, WREN, Case, read_safetensors, run, write_safetensors

TINY = GOLDEN / "qwen2_moe"


class BadInput(Case):
    def compress(self, model, *options):
        return ("compress", model, "--codec", "i8g64", "-o", self.dir / "out", *options)

    def edit_config(self, model, **changes):
        path = model / "config.json"
        config = json.loads(path.read_text())
        config.update(changes)
        path.write_text(json.dumps(config))

    def test_missing_shard(self):
        model = self.copy_model(TINY)
        tensors = read_safetensors(model / "model.safetensors")
        (model / "model.safetensors").unlink()
        names = sorted(tensors)
        write_safetensors(model / "model-00001-of-00002.safetensors", {n: tensors[n] for n in names[::2]})
        index = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(names)}
        (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        self.assert_refused(*self.compress(model), status=3, says="model-00002-of-00002.safetensors")

    def test_sharded_checkpoint_equals_single_file(self):
        model = self.copy_model(TINY)
        tensors = read_safetensors(model / "model.safetensors")
        (model / "model.safetensors").unlink()
        names = sorted(tensors)
        files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
        for i, name in enumerate(files):
            write_safetensors(model / name, {n: tensors[n] for n in names[i::2]})
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {n: files[i % 2] for i, n in enumerate(names)}}))
        for source, out in ((model, "a.f32"), (TINY, "b.f32")):
            run("logits", source, "--tokens", "1,2,3,4", "-o", self.dir / out)
        self.assertEqual((self.dir / "a.f32").read_bytes(), (self.dir / "b.f32").read_bytes())

    def test_nan_weight(self):
        model = self.copy_model(TINY)
        tensors = read_safetensors(model / "model.safetensors")
        name = "model.layers.1.mlp.experts.3.up_proj.weight"
        dtype, shape, data = tensors[name]
        tensors[name] = (dtype, shape, data[:20] + b"\xc0\x7f" + data[22:])
        write_safetensors(model / "model.safetensors", tensors)
        self.assert_refused(*self.compress(model), status=3, says=name.removesuffix(".weight").split(".")[-1])

    def test_wrong_shape(self):
        model = self.copy_model(TINY)
        tensors = read_safetensors(model / "model.safetensors")
        name = "model.layers.0.self_attn.q_proj.weight"
        dtype, shape, data = tensors[name]
        tensors[name] = (dtype, [shape[0] // 2, shape[1] * 2], data)
        write_safetensors(model / "model.safetensors", tensors)
        self.assert_refused(*self.compress(model), status=3, says=[name, "32"])

    def test_missing_tensor(self):
        model = self.copy_model(TINY)
        tensors = read_safetensors(model / "model.safetensors")
        name = "model.layers.2.mlp.experts.7.down_proj.weight"
        del tensors[name]
        write_safetensors(model / "model.safetensors", tensors)
        self.assert_refused(*self.compress(model), status=3, says=name)

    def test_unknown_family(self):
        model = self.copy_model(TINY)
        self.edit_config(model, model_type="gigantic_moe")
        self.assert_refused(*self.compress(model), status=3, says=["gigantic_moe", "qwen2_moe"])

    def test_unknown_key(self):
        model = self.copy_model(TINY)
        self.edit_config(model, expert_gate_twist=2)
        self.assert_refused(*self.compress(model), status=3, says="expert_gate_twist")

    def test_truncated_checkpoint(self):
        model = self.copy_model(TINY)
        data = (model / "model.safetensors").read_bytes()
        (model / "model.safetensors").write_bytes(data[:-100])
        self.assert_refused(*self.compress(model), status=3, says="model.safetensors")

    def test_tokenizer_that_does_not_match(self):
        model = self.copy_model(TINY)
        shutil.copy(WREN / "tokenizer.json", model)  # 4,096 tokens, the model has 320
        self.assert_refused("calibrate", model, "--data", TEXT / "novel.calib.txt", "--tokens", 512, "-o", self.dir / "p.mprof",
                            status=3, says=["tokenizer", "320"])

    def test_no_tokenizer(self):
        self.assert_refused("calibrate", TINY, "--data", TEXT / "novel.calib.txt", "--tokens", 512, "-o", self.dir / "p.mprof",
                            status=3, says="tokenizer")

    def test_profile_of_another_model(self):
        self.assert_refused("compress", TINY, "--profile", WORK / "wren.mprof", "--target-bpw", 4, "-o", self.dir / "out",
                            status=3, says="profile")

    def test_recipe_with_a_typo(self):
        recipe = WORK / "typo.yaml"
        recipe.write_text("version: 1\nrules:\n  - match: '.*'\n    codecc: i4g64\n")
        self.assert_refused("compress", WREN, "--profile", WORK / "wren.mprof", "--recipe", recipe, "-o", self.dir / "out",
                            status=2, says=["codecc", "codec", "4"])

    def test_target_that_cannot_be_met(self):
        self.assert_refused("compress", WREN, "--profile", WORK / "wren.mprof", "--target-size", "100KB", "-o", self.dir / "out",
                            status=6, says="smallest")

    def test_missing_input(self):
        self.assert_refused("compress", self.dir / "nowhere", "--codec", "i8g64", "-o", self.dir / "out", status=3, says="nowhere")
        self.assert_refused("verify", self.dir / "no.moeb", "--trust", TRUST, status=3, says="no.moeb")

    def test_usage(self):
        self.assert_refused("compress", WREN, "-o", self.dir / "out", status=2, says="--profile")
        self.assert_refused("verify", WORK / "wren-f32.moeb", status=2, says="--trust")
        self.assert_refused("compress", WREN, "--codex", "i8g64", status=2, says="codex")


class DiskFull(Case):
    """Every command that writes, with room for less than its output."""

    def check(self, limit, *args):
        outcome = run(*args, expect=7, limit_bytes=limit)
        self.assertIn("cannot write", outcome.err)
        self.assertEqual(list(self.dir.iterdir()), [], "output left behind")

    def test_calibrate(self):
        self.check(65536, "calibrate", WREN, "--data", TEXT / "novel.calib.txt", "--tokens", 2048, "-o", self.dir / "p.mprof")

    def test_compress(self):
        self.check(65536, "compress", WREN, "--codec", "i8g64", "-o", self.dir / "out")

    def test_pack(self):
        self.check(1 << 20, "pack", WORK / "dir-i8g64", "--key", WORK / "key.pem", "--product", "wren", "-o", self.dir / "b.moeb")

    def test_logits(self):
        self.check(65536, "logits", WREN, "--tokens", "1,2,3,4,5,6,7,8,9", "-o", self.dir / "l.f32")

    def test_export(self):
        self.check(1 << 20, "export", WREN, "--gguf", "-o", self.dir / "w.gguf")
