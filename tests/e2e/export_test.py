"""Exports of one model: from the compressed folder and from the signed bundle the same bytes; nothing from a damaged one."""
import json

from harness import SOURCE, TRUST, WORK, WREN, Case, run

FOLDER, BUNDLE = WORK / "dir-i4g64", WORK / "wren-i4g64.moeb"


class Export(Case):
    def test_gguf_of_a_bundle_equals_that_of_its_folder(self):
        run("export", FOLDER, "--gguf", "-o", self.dir / "folder.gguf")
        run("export", BUNDLE, "--trust", TRUST, "--gguf", "-o", self.dir / "bundle.gguf")
        self.assertEqual((self.dir / "folder.gguf").read_bytes(), (self.dir / "bundle.gguf").read_bytes())

    def test_onnx_of_a_bundle_equals_that_of_its_folder(self):
        for source, name, more in ((FOLDER, "folder", ()), (BUNDLE, "bundle", ("--trust", TRUST))):
            (self.dir / name).mkdir()
            outcome = run("export", source, *more, "--onnx", "-o", self.dir / name / "m.onnx", "--json")
            report, files = outcome.json(), sorted(path.name for path in (self.dir / name).iterdir())
            self.assertEqual(files, ["m.onnx", "m.onnx.data"])
            self.assertEqual(report["file_bytes"], sum((self.dir / name / file).stat().st_size for file in files))
            self.assertFalse(report["tokenizer"])
            self.assertIn("tokenizer.json", outcome.err)
        for file in files:
            self.assertEqual((self.dir / "folder" / file).read_bytes(), (self.dir / "bundle" / file).read_bytes())

    def test_onnx_of_a_checkpoint_has_its_tokenizer(self):
        report = run("export", WREN, "--onnx", "-o", self.dir / "m.onnx", "--json").json()
        self.assertTrue(report["tokenizer"])
        self.assertEqual((self.dir / "tokenizer.json").read_bytes(), (WREN / "tokenizer.json").read_bytes())
        self.assertTrue(run("inspect", self.dir / "m.onnx", "--json").json()["has_tokenizer"])

    def test_safetensors_are_the_compressed_model(self):
        folder, bundle = self.dir / "folder", self.dir / "bundle"
        report = run("export", FOLDER, "--safetensors", "--like", WREN, "-o", folder, "--json").json()
        run("export", BUNDLE, "--trust", TRUST, "--safetensors", "--like", WREN, "-o", bundle)
        files = sorted(path.name for path in folder.iterdir())
        self.assertEqual(files, sorted(path.name for path in bundle.iterdir()))
        for file in files:
            self.assertEqual((folder / file).read_bytes(), (bundle / file).read_bytes(), file)
        self.assertEqual(report["file_bytes"], (folder / "model.safetensors").stat().st_size)
        self.assertTrue(report["tokenizer"])
        config = json.loads((folder / "config.json").read_text())
        self.assertEqual(config["torch_dtype"], "float32")
        self.assertEqual(config | {"torch_dtype": "bfloat16"}, json.loads((WREN / "config.json").read_text()) | {"torch_dtype": "bfloat16"})
        logits = []
        for model in (FOLDER, folder):
            run("logits", model, "--tokens", "54,287,2061,11,90", "-o", self.dir / "l.f32")
            logits.append((self.dir / "l.f32").read_bytes())
        self.assertEqual(*logits)

    def test_accepted_keys_are_those_of_the_checkpoint(self):
        like, out = self.dir / "like", self.dir / "out"
        like.mkdir()
        config = json.loads((WREN / "config.json").read_text()) | {"strange_key": 1}
        (like / "config.json").write_text(json.dumps(config))
        command = ("export", FOLDER, "--safetensors", "--like", like, "-o", out)
        self.assert_refused(*command, status=3, says="--accept-key strange_key", output=out)
        run(*command, "--accept-key", "strange_key")
        self.assertEqual(json.loads((out / "config.json").read_text())["strange_key"], 1)

    def test_safetensors_need_the_checkpoint_and_a_new_folder(self):
        out = ("--safetensors", "-o", self.dir / "x")
        self.assert_refused("export", FOLDER, *out, status=2, says="--like CHECKPOINT")
        self.assert_refused("export", FOLDER, "--gguf", "--like", WREN, "-o", self.dir / "x", status=2, says="--like is for --safetensors")
        self.assert_refused("export", FOLDER, *out, "--like", WREN, "--type", "f16", status=2, says="expected f32 or bf16")
        self.assert_refused("export", FOLDER, *out, "--like", SOURCE / "tests/golden/olmoe", status=3, says="describes another program")
        self.assertFalse((self.dir / "x").exists())
        self.assert_refused("export", FOLDER, "--safetensors", "-o", self.dir, "--like", WREN, status=2, says="exists already")
        self.assertEqual(list(self.dir.iterdir()), [])

    def test_a_bundle_needs_trust_and_only_a_bundle_does(self):
        out = ("--gguf", "-o", self.dir / "x.gguf")
        self.assert_refused("export", BUNDLE, *out, status=2, says="--trust")
        self.assert_refused("export", FOLDER, "--trust", TRUST, *out, status=2, says="--trust")

    def test_a_damaged_bundle_leaves_nothing(self):
        bad = self.dir / "bad.moeb"
        data = BUNDLE.read_bytes()
        begin = run("inspect", BUNDLE, "--trust", TRUST, "--json").json()["chunks_begin"]
        for damaged in (data[:-1], data + b"\0", data[:40] + bytes([data[40] ^ 1]) + data[41:], data[:2000] + b"x" + data[2001:],
                        data[:begin + 5] + bytes([data[begin + 5] ^ 4]) + data[begin + 6:], data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]):
            bad.write_bytes(damaged)
            for form in ("--gguf", "--onnx"):
                self.assert_refused("export", bad, "--trust", TRUST, form, "-o", self.dir / "x", status=4, says="bad.moeb")

