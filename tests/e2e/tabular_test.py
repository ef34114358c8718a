"""A classifier of rows, a mixture of experts in plain ONNX operators, through the whole path; numpy is the judge."""
import json
import struct

import numpy as np

import tabular_model
from harness import TRUST, WORK, WREN, Case, run

KEY = WORK / "key.pem"
# Less than all experts take, enough for those of one row.
EXPERT_RAM = {"unrolled": "24KiB", "gated": "32KiB", "classes": "64KiB"}


class Tabular(Case):
    def setUp(self):
        super().setUp()
        self.rows, self.held_out = self.dir / "rows.npy", self.dir / "held_out.npy"
        np.save(self.rows, tabular_model.make_rows(600, 1))
        self.inputs = tabular_model.make_rows(300, 2)
        np.save(self.held_out, self.inputs.astype(np.float64))

    def model(self, form):
        path = self.dir / f"{form}.onnx"
        tabular_model.write_model(path, form)
        return path

    def logits_of(self, path):
        return np.fromfile(path, "<f4").reshape(-1, tabular_model.CLASSES)

    def calibrated(self, model):
        profile = self.dir / "p.mprof"
        summary = run("calibrate", model, "--inputs", f"train={self.rows}", "-o", profile, "--report", self.dir / "p.html",
                      "--json").json()
        self.assertEqual((summary["rows"], summary["tokens"], summary["srp"], summary["sch"]), (600, None, None, None))
        self.assertEqual(summary["domains"], ["train"])
        return profile

    def packed(self, model, profile, name, *options):
        folder, bundle = self.dir / name, self.dir / f"{name}.moeb"
        summary = run("compress", model, "--profile", profile, "-o", folder, *options, "--json").json()
        run("pack", folder, "--key", KEY, "--product", "wren", "--counter", 7, "-o", bundle)
        run("verify", bundle, "--trust", TRUST)
        return bundle, summary

    def classify(self, bundle, *options):
        return run("run", "classify", bundle, "--trust", TRUST, "--inputs", self.held_out, "--json", *options).json()

    def test_every_form_is_read_as_what_it_computes(self):
        for form in tabular_model.FORMS:
            out = self.dir / "l.f32"
            run("logits", self.model(form), "--inputs", self.held_out, "-o", out)
            expected = tabular_model.reference(self.inputs, form)
            self.assertLess(np.abs(self.logits_of(out) - expected).max(), 1e-4 * np.abs(expected).max(), form)

    def test_whole_path(self):
        for form in ("unrolled", "gated", "classes"):
            model = self.model(form)
            profile = self.calibrated(model)
            expected = tabular_model.reference(self.inputs, form)
            base = self.dir / "base.f32"
            run("logits", model, "--inputs", self.held_out, "-o", base)
            bundle, _ = self.packed(model, profile, f"{form}-f32", "--codec", "f32")
            out = self.dir / "l.f32"
            report = self.classify(bundle, "--base", base, "-o", out)
            logits = self.logits_of(out)
            self.assertLess(np.abs(logits - expected).max(), 1e-4 * np.abs(expected).max(), form)
            self.assertEqual([p["class"] for p in report["predictions"]], expected.argmax(axis=1).tolist())
            np.testing.assert_allclose([p["probability"] for p in report["predictions"]],
                                       tabular_model.softmax(expected).max(axis=1), atol=1e-4)
            np.testing.assert_array_equal(np.array([p["logits"] for p in report["predictions"]], np.float32), logits)
            self.assertLess(report["kld_mean"], 1e-8)
            self.assertEqual((report["rows"], report["classes"], report["same_top1"], report["verified"],
                              report["on_calibration_inputs"]), (300, 4, 1, True, False))
            for options in (("--tile", 7), ("--expert-ram", EXPERT_RAM[form], "--prefetch", 2)):
                run("run", "classify", bundle, "--trust", TRUST, "--inputs", self.held_out, *options, "-o", out)
                np.testing.assert_array_equal(self.logits_of(out), logits)

    def test_codecs_and_the_planner(self):
        form = "gathered"
        model = self.model(form)
        profile = self.calibrated(model)
        base = self.dir / "base.f32"
        run("logits", model, "--inputs", self.held_out, "-o", base)
        expected = tabular_model.reference(self.inputs, form)
        bundle, summary = self.packed(model, profile, "i8", "--codec", "i8g64")
        report = self.classify(bundle, "--base", base)
        self.assertLess(report["kld_mean"], 1e-3)
        self.assertGreater(report["same_top1"], 0.98)
        logits = np.array([p["logits"] for p in report["predictions"]])
        self.assertLess(np.abs(logits - expected).max(), 0.03 * np.abs(expected).max())
        self.assertIsNotNone(summary["kld_held_back"])
        small, summary = self.packed(model, profile, "planned", "--max-kld", "0.02")
        self.assertGreater(summary["predicted_kld"], 0)
        self.assertLessEqual(summary["kld_held_back"], 0.02)
        self.assertEqual(list(summary["kld_by_domain"]), ["train"])
        report = self.classify(small, "--base", base)
        self.assertLess(report["kld_mean"], 0.1)
        run("rebuild", small, "--trust", TRUST, "--model", model, "--profile", profile)

    def test_rows_are_recorded_by_digest(self):
        model = self.model("dense")
        profile = self.calibrated(model)
        bundle, _ = self.packed(model, profile, "b", "--codec", "i8g64")
        report = run("run", "classify", bundle, "--trust", TRUST, "--inputs", self.rows, "--json").json()
        self.assertTrue(report["on_calibration_inputs"])
        view = run("inspect", bundle, "--trust", TRUST, "--json").json()
        self.assertIn("train", json.dumps(view["provenance"]))
        self.assertFalse(view["has_tokenizer"])
        self.assertEqual((len(view["expert_tables"]), view["max_positions"], view["golden"]), (1, 1, None))
        run("inspect", model)

    def test_text_and_rows_are_not_mixed_up(self):
        model = self.model("unrolled")
        profile = self.calibrated(model)
        bundle, _ = self.packed(model, profile, "b", "--codec", "i8g64")
        (self.dir / "text.txt").write_text("In the beginning\n" * 50)
        takes_rows = "takes rows of 12 numbers, not text or tokens"
        for verb in (("generate", "--prompt", "x"), ("logits", "--tokens", "1,2", "-o", self.dir / "l.f32"), ("bench",),
                     ("eval", "--base", profile, "--data", self.dir / "text.txt", "--ctx", 256)):
            self.assert_refused("run", verb[0], bundle, "--trust", TRUST, *verb[1:], status=2,
                                says=[takes_rows, "moepack run classify"])
        self.assert_refused("calibrate", model, "--data", self.dir / "text.txt", "--tokens", 512, "-o", self.dir / "q.mprof",
                            status=2, says=[takes_rows, "--inputs"])
        self.assert_refused("logits", model, "--tokens", "1,2", "-o", self.dir / "l.f32", status=2, says=[takes_rows, "--inputs"])
        self.assert_refused("calibrate", WREN, "--inputs", self.rows, "-o", self.dir / "q.mprof", status=2, says="takes tokens")
        self.assert_refused("logits", WREN, "--inputs", self.rows, "-o", self.dir / "l.f32", status=2, says="takes tokens")
        self.assert_refused("run", "classify", WORK / "wren-i8g64.moeb", "--trust", TRUST, "--inputs", self.rows, status=2,
                            says="takes tokens")
        self.assert_refused("calibrate", model, "--inputs", self.rows, "--tokens", 5, "-o", self.dir / "q.mprof", status=2,
                            says="every row is used")
        (self.dir / "golden.txt").write_text("1,2,3\n")
        for option in ("--golden", "--golden-ids"):
            self.assert_refused("pack", self.dir / "b", "--key", KEY, option, self.dir / "golden.txt", "-o",
                                self.dir / "g.moeb", status=2, says="golden prompts are of tokens")
        self.assert_refused("export", model, "--onnx", "-o", self.dir / "e.onnx", status=3, says="takes rows of numbers")
        self.assert_refused("export", model, "--gguf", "-o", self.dir / "e.gguf", status=3, says="not a decoder")

    def test_bad_tables(self):
        model = self.model("unrolled")
        narrow, order, whole, missing = (self.dir / f"{name}.npy" for name in ("narrow", "order", "whole", "missing"))
        np.save(narrow, self.inputs[:, :5])
        np.save(order, np.asfortranarray(self.inputs))
        np.save(whole, np.arange(24).reshape(2, 12))
        holes = self.inputs.copy()
        holes[3, 4] = np.nan
        np.save(missing, holes)
        cut = self.dir / "cut.npy"
        cut.write_bytes(self.held_out.read_bytes()[:-8])
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 12), }"
        bomb = self.dir / "bomb.npy"
        bomb.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        for path, says in ((narrow, "5 columns, the model takes 12"), (order, "Fortran order"), (whole, "'<i8'"),
                           (missing, "row 3, column 4"), (cut, "'shape' says"), (bomb, "overflows"), (model, "not a .npy file")):
            self.assert_refused("calibrate", model, "--inputs", path, "-o", self.dir / "q.mprof", status=3,
                                says=[says, path.name])

    def test_answers_that_are_no_numbers(self):
        model = self.model("unrolled")
        bundle, _ = self.packed(model, self.calibrated(model), "f32", "--codec", "f32")
        far = self.inputs[:3].copy()
        far[2] = 3e38
        np.save(self.dir / "far.npy", far)
        out = self.dir / "far.f32"
        self.assert_refused("run", "classify", bundle, "--trust", TRUST, "--inputs", self.dir / "far.npy", "-o", out, status=3,
                            says="row 2: the model answers with a logit that is no number")
        self.assertFalse(out.exists())

    def test_stripped_experts(self):
        path = self.dir / "stripped.onnx"
        for form, says in (("unrolled", "adds up 5 experts, but the router has 6"), ("sorted", "the router is 6 wide, but there are 5 experts")):
            tabular_model.write_model(path, form, leave_out=1)
            self.assert_refused("logits", path, "--inputs", self.rows, "-o", self.dir / "l.f32", status=3, says=[says, "stripped"])


if __name__ == "__main__":
    import unittest
    unittest.main()
