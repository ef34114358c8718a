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
        self.assert_refused(*self.compress(model), status=3, says="--accept-key expert_gate_twist")

    def test_accepted_key(self):
        """An unknown key passes on the user's word, which stands in the bundle; the same bundle can be made again."""
        model, folder, bundle = self.copy_model(TINY), self.dir / "out", self.dir / "b.moeb"
        self.edit_config(model, expert_gate_twist=2)
        accept = ("--accept-key", "expert_gate_twist")
        self.assert_refused("inspect", model, status=3, says="expert_gate_twist")
        run("inspect", model, *accept)
        run("logits", model, *accept, "--tokens", "1,2", "-o", self.dir / "l.f32")
        self.assertIn("'expert_gate_twist' of config.json is taken as without effect",
                      run("compress", model, "--codec", "i8g64", "-o", folder, *accept).err)
        run("pack", folder, "--key", WORK / "key.pem", "--product", "wren", "--counter", 7, "-o", bundle)
        self.assertIn("keys taken as without effect: expert_gate_twist", run("inspect", bundle, "--trust", TRUST).out)
        statement = run("inspect", bundle, "--trust", TRUST, "--json").json()["provenance"]["statement"]
        compress = statement["predicate"]["buildDefinition"]["externalParameters"]["compress"]
        self.assertEqual(compress["accepted_keys"], "expert_gate_twist")
        run("rebuild", bundle, "--trust", TRUST, "--model", model)
        self.assert_refused("compress", model, "--codec", "i8g64", "-o", self.dir / "no", *accept, "--accept-key", "hidden_size", status=2,
                            says="--accept-key hidden_size", output=self.dir / "no")
        self.assert_refused("inspect", folder, *accept, status=2, says="--accept-key")

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

    def test_profile_of_other_weights(self):
        model = self.copy_model(WREN)
        tensors = read_safetensors(model / "model.safetensors")
        name = "model.layers.2.mlp.experts.5.down_proj.weight"
        dtype, shape, data = tensors[name]
        tensors[name] = (dtype, shape, bytes([data[0] ^ 1]) + data[1:])
        write_safetensors(model / "model.safetensors", tensors)
        self.assert_refused("compress", model, "--profile", WORK / "wren.mprof", "--codec", "i8g64", "-o", self.dir / "out",
                            status=3, says=["wren.mprof", "layers.2.experts.5.down_proj", "moepack calibrate"])

    def test_rule_that_matches_no_tensor(self):
        recipe = WORK / "nothing.yaml"
        recipe.write_text("version: 1\ndefaults: {codec: i8g64}\nrules:\n  - match: 'layers.*.experts'\n    codec: i4g64\n")
        self.assert_refused("compress", WREN, "--profile", WORK / "wren.mprof", "--recipe", recipe, "-o", self.dir / "out",
                            status=3, says=["nothing.yaml", "line 4", "layers.*.experts"])

    def test_folders_that_are_not_ours(self):
        for name in ("out", "out.partial"):
            (self.dir / name).mkdir()
            (self.dir / name / "thesis.tex").write_text("work")
            for more in ((), ("--resume",)):
                self.assert_refused(*self.compress(TINY, *more), status=2, says=[name, "thesis.tex"])
            self.assertEqual((self.dir / name / "thesis.tex").read_text(), "work")
            shutil.rmtree(self.dir / name)
        (self.dir / "out").mkdir()
        run(*self.compress(TINY))  # an empty folder is fine
        self.assertIn("replaced", run(*self.compress(TINY)).err)

    def test_numbers_that_are_none(self):
        for option, value in (("--target-bpw", "nan"), ("--target-bpw", "-1"), ("--max-kld", "inf"), ("--max-kld", "nan")):
            self.assert_refused("compress", WREN, "--profile", WORK / "wren.mprof", option, value, "-o", self.dir / "out",
                                status=2, says=option)

    def test_report_over_the_profile(self):
        self.assert_refused("calibrate", WREN, "--data", TEXT / "novel.calib.txt", "--tokens", 512, "-o", self.dir / "p", "--report",
                            self.dir / "." / "p", status=2, says="--report")
        self.assert_refused("calibrate", WREN, "--data", TEXT / "novel.calib.txt", "--tokens", 512, "-o", self.dir, status=7,
                            says="not a regular file")

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
        for bits, says in ((8, "routers are floats"), (16, "expected 15 or 8")):
            self.assert_refused("run", "generate", WORK / "wren-i8g64.moeb", "--trust", TRUST, "--prompt", "a", "--router-inputs", bits,
                                status=2, says=says)

    def test_gates_that_are_no_numbers(self):
        for option, values in (("--max-kld", ("nan", "-1", "inf")), ("--min-top1", ("nan", "-0.1", "1.01", "97"))):
            for value in values:
                self.assert_refused("run", "eval", WORK / "wren-i8g64.moeb", "--trust", TRUST, "--base", "none.f32", "--data", "none.txt",
                                    "--ctx", 256, f"{option}={value}", status=2, says=option)

    def test_tokens_that_the_model_does_not_have(self):
        out = self.dir / "l.f32"
        self.assert_refused("logits", WREN, "--tokens", "1,4096", "-o", out, status=3, says="4096")
        self.assert_refused("run", "logits", WORK / "wren-i8g64.moeb", "--trust", TRUST, "--tokens", "1,4096", "-o", out, status=3, says="4096")

    def test_prompt_that_is_too_long(self):
        run_wren = ("run", "generate", WORK / "wren-i8g64.moeb", "--trust", TRUST)
        self.assert_refused(*run_wren, "--prompt", "one two three four five six seven", "--ctx", 4, status=3, says=["prompt", " tokens", "at most 4"])
        ids = ",".join(["5"] * 3000)
        for command in (("logits", WREN), ("run", "logits", WORK / "wren-i8g64.moeb", "--trust", TRUST)):
            self.assert_refused(*command, "--tokens", ids, "-o", self.dir / "l.f32", status=3, says=["3000 tokens", "at most 1024"])

    def test_empty_files(self):
        for name in ("empty.onnx", "empty.moeb", "config.json"):
            (self.dir / name).write_bytes(b"")
        for path, status in ((self.dir / "empty.onnx", 3), (self.dir / "config.json", 3), (self.dir / "empty.moeb", 4)):
            self.assert_refused("inspect", path, status=status, says=path.name)
        self.assert_refused("logits", self.dir / "empty.onnx", "--tokens", "1", "-o", self.dir / "l.f32", status=3, says="empty.onnx")
        self.assert_refused("run", "logits", self.dir / "empty.moeb", "--trust", TRUST, "--tokens", "1", "-o", self.dir / "l.f32",
                            status=4, says="empty.moeb")

    def test_keygen_that_fails_loses_nothing(self):
        key, trust = self.dir / "key.pem", self.dir / "trust.json"
        run("pack", "keygen", "-o", key, "--trust", trust)
        before = (key.read_bytes(), trust.read_bytes())
        (self.dir / "folder").mkdir()
        for k, t in ((self.dir / "none/key.pem", trust), (self.dir / "folder", trust), (key, self.dir / "none/trust.json"),
                     (key, self.dir / "folder")):
            outcome = run("pack", "keygen", "--force", "-o", k, "--trust", t, expect=3 if k.parent.name == "none" else 7)
            self.assertNotIn(".tmp-", outcome.err)
            self.assertEqual((key.read_bytes(), trust.read_bytes()), before)
        self.assertEqual({p.name for p in self.dir.iterdir()}, {"key.pem", "trust.json", "folder"})
        run("pack", "keygen", "--force", "-o", key, "--trust", trust)
        self.assertNotEqual(key.read_bytes(), before[0])
        self.assertNotEqual(trust.read_bytes(), before[1])
        self.assertEqual({p.name for p in self.dir.iterdir()}, {"key.pem", "trust.json", "folder"})

    def test_threads_that_cannot_be_had(self):
        # A thread's stack takes 8 MiB of address space; 4 GiB do not hold 1024 of them.
        outcome = run("verify", WORK / "wren-i8g64.moeb", "--trust", TRUST, "--threads", 1024, "--quiet", expect=7, limit_memory=4 << 30)
        self.assertIn("cannot start thread", outcome.err)
        self.assertIn("--threads", outcome.err)
        self.assertEqual(outcome.out, "")


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

    def test_export_onnx(self):
        self.check(1 << 20, "export", WREN, "--onnx", "-o", self.dir / "w.onnx")

    def test_device_logits(self):
        self.check(65536, "run", "logits", WORK / "wren-i8g64.moeb", "--trust", TRUST, "--tokens", "1,2,3,4,5,6,7,8,9", "-o", self.dir / "l.f32")

    def test_keygen(self):
        self.check(0, "pack", "keygen", "-o", self.dir / "key.pem", "--trust", self.dir / "trust.json")
