"""Experts in two precisions: what stands in for chunks that a device lost, what never does, and misses that are lowered or
skipped on request."""
import json
import sys

import jsonschema

from harness import SOURCE, TEXT, TRUST, WORK, WREN, DeviceCase, run

sys.path.insert(0, str(SOURCE / "tests/vectors"))
from second_reader import Bundle  # noqa: E402

RECIPE = "version: 1\ndefaults: {codec: i8g64}\nsecond_precision: {codec: i2mg32}\ntwins: true\ndense_fallback: {codec: i4g64}\n"
PROMPT = ("--prompt", "The President said to the Congress that", "-n", 24, "--json", "--quiet")
STEPS = ("retry", "lower", "twin", "renormalise", "dense")


class StandIns(DeviceCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        recipe = WORK / "second.yaml"
        recipe.write_text(RECIPE)
        cls.folder = WORK / "dir-second"
        run("compress", WREN, "--profile", WORK / "wren.mprof", "--recipe", recipe, "-o", cls.folder)

    def pack(self, *unavailable):
        """A bundle and a device that has it."""
        bundle = self.dir / f"{'-'.join(unavailable) or 'fail'}.moeb"
        option = ("--unavailable", ",".join(unavailable)) if unavailable else ()
        run("pack", self.folder, "--key", WORK / "key.pem", "--product", "wren", "--counter", 8, *option, "-o", bundle)
        run("device", "install", self.root, bundle, "--quiet")
        return bundle

    def chunk_files(self, bundle, variant):
        """Files of the chunks of that variant of every expert, by (table, expert)."""
        opened = Bundle(bundle.read_bytes(), json.loads(TRUST.read_text()))
        files = {}
        for table in opened.tables:
            for expert, entry in enumerate(table["experts"]):
                unit = table["units"][entry["variants"][variant]["physical"]]
                files[table["table"], expert] = [self.file_of(chunk) for chunk in unit["chunks"]]
        return files

    def file_of(self, chunk):
        [path] = (self.root / "chunks").glob(chunk["plain_digest"].hex() + "*")
        return path

    def generate(self, *options, expect=0):
        return run("run", "generate", "--device", self.root, *PROMPT, *options, expect=expect)

    def bridged(self, report):
        return {step: report[f"experts_bridged_{step}"] for step in STEPS}

    def test_without_a_policy_a_missing_chunk_fails(self):
        bundle = self.pack()
        whole = self.generate().json()
        self.assertEqual(self.bridged(whole), dict.fromkeys(STEPS, 0))
        for *_, path in self.chunk_files(bundle, 0).values():  # one of the expert's
            path.unlink()
        refused = self.generate(expect=3)
        self.assertEqual(refused.out, "")
        self.assertIn("layer 0, expert", refused.err)

    def test_a_lower_precision_stands_in_for_a_missing_chunk(self):
        bundle = self.pack("lower")
        whole = self.generate().json()
        for *_, path in self.chunk_files(bundle, 0).values():  # one of the expert's
            path.unlink()
        outcome = self.generate()
        report = outcome.json()
        self.assertGreater(report["experts_bridged_lower"], 0)
        self.assertEqual(sum(self.bridged(report).values()), report["experts_bridged_lower"])
        self.assertIn("a lower precision stands in", outcome.err)
        self.assertNotEqual(report["tokens"], whole["tokens"])
        for options in (("--threads", 1), ("--expert-ram", "1MiB")):
            self.assertEqual(self.generate(*options).json()["tokens"], report["tokens"])

    def test_a_truncated_chunk_is_left_out(self):
        bundle = self.pack("retry", "renormalise")
        *_, path = self.chunk_files(bundle, 0)[1, 3]
        path.write_bytes(path.read_bytes()[:-1])
        outcome = self.generate()
        self.assertGreater(outcome.json()["experts_bridged_renormalise"], 0)
        self.assertIn("layer 1, expert 3", outcome.err)
        self.assertEqual(outcome.err.count("the others take over its weight"), 1, outcome.err)

    def test_a_twin_stands_in(self):
        bundle = self.pack("twin")
        *_, path = self.chunk_files(bundle, 0)[0, 0]
        path.unlink()
        outcome = self.generate()
        report = outcome.json()
        self.assertGreater(report["experts_bridged_twin"], 0)
        self.assertEqual(sum(self.bridged(report).values()), report["experts_bridged_twin"])
        self.assertIn("its twin stands in", outcome.err)

    def test_a_dense_stand_in_answers_when_every_expert_is_lost(self):
        bundle = self.pack("retry", "dense")
        files = self.chunk_files(bundle, 0)
        for paths in files.values():
            paths[-1].unlink()
        outcome = self.generate()
        report = outcome.json()
        self.assertGreater(report["experts_bridged_dense"], 0)
        self.assertEqual(sum(self.bridged(report).values()), report["experts_bridged_dense"])
        self.assertIn("the layer's dense stand-in takes its place", outcome.err)
        for options in (("--threads", 1), ("--expert-ram", "1MiB")):
            self.assertEqual(self.generate(*options).json()["tokens"], report["tokens"])
        dense = self.chunk_files(bundle, -1)
        self.assertEqual(len({path for paths in dense.values() for path in paths}), len(dense[0, 0]) * len({t for t, _ in dense}))
        for path in dense[0, 0]:
            path.unlink()
        self.assertIn("cannot be read, nor what stands in for it: layer 0, dense stand-in", self.generate(expect=3).err)

    def test_wrong_bytes_fail_under_every_policy(self):
        bundle = self.pack(*STEPS)
        files = self.chunk_files(bundle, 0)
        for *others, path in files.values():
            for other in others:  # that bytes of the expert are missing too does not help
                other.unlink()
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        refused = self.generate(expect=4)
        self.assertEqual(refused.out, "")
        self.assertIn("does not match its signed digest", refused.err)
        self.assertNotIn("stands in", refused.err)

    def test_a_device_on_trial_wants_the_whole_bundle(self):
        bundle = self.dir / "golden.moeb"
        run("pack", self.folder, "--key", WORK / "key.pem", "--product", "wren", "--counter", 9, "--unavailable", "lower", "--golden",
            SOURCE / "examples/wren/golden.txt", "-o", bundle)
        run("device", "install", self.root, bundle, "--quiet")
        *_, path = self.chunk_files(bundle, 0)[0, 0]
        path.unlink()
        run("device", "trial", self.root, "--quiet", expect=3)

    def test_policy_is_signed_shown_and_rebuilt(self):
        bundle = self.pack("retry", "lower")
        shown = run("inspect", bundle, "--trust", TRUST, "--json").json()
        self.assertEqual(shown["unavailable"], "retry,lower")
        self.assertEqual(shown["stand_ins"]["experts_lower"], 64)
        self.assertEqual(shown["stand_ins"]["experts_twin"], 64)
        self.assertEqual(shown["stand_ins"]["experts_dense"], 64)
        self.assertEqual(shown["codecs"].get("i2mg32"), None)
        plain = run("inspect", WORK / "wren-i8g64.moeb", "--trust", TRUST, "--json").json()
        self.assertEqual(shown["bytes_resident"], plain["bytes_resident"])
        self.assertGreater(shown["bytes_stored"], plain["bytes_stored"])
        statement = json.loads((SOURCE / "tests/schemas/statement.schema.json").read_text())
        every = self.dir / "every.moeb"
        run("pack", self.folder, "--key", WORK / "key.pem", "--product", "wren", "--unavailable", ",".join(STEPS), "-o", every)
        for packed in (bundle, every):
            jsonschema.validate(run("inspect", packed, "--trust", TRUST, "--json").json()["provenance"]["statement"], statement)
        run("verify", bundle, "--trust", TRUST)
        run("rebuild", bundle, "--trust", TRUST, "--model", WREN, "--profile", WORK / "wren.mprof")
        pack = ("pack", WORK / "dir-i4g64", "--key", WORK / "key.pem", "-o", self.dir / "no.moeb")
        for steps, says in (("lower", "second_precision"), ("twin", "twins"), ("lower,retry", "in this order"), ("dense", "dense_fallback"),
                           ("sparse", "renormalise")):
            self.assert_refused(*pack, "--unavailable", steps, status=2, says=says, output=self.dir / "no.moeb")

    def test_eval_tells_what_misses_cost(self):
        bundle, text = self.pack(), TEXT / "speech.eval.txt"
        chunks = ("--data", text, "--ctx", 64, "--chunks", 2)
        run("logits", WREN, *chunks, "-o", self.dir / "base.f32")
        evaluate = ("run", "eval", bundle, "--trust", TRUST, "--base", self.dir / "base.f32", *chunks, "--tile", 1, "--json", "--quiet")
        whole = run(*evaluate).json()
        self.assertEqual(whole["experts_lowered"] + whole["experts_skipped"], 0)
        small = run(*evaluate, "--expert-ram", "2MiB").json()
        self.assertEqual(small["kld_mean"], whole["kld_mean"])
        self.assertAlmostEqual(small["hit_rate"], small["expert_hits"] / (small["expert_hits"] + small["experts_prefetched"] + small["expert_misses"]))
        lossy = run(*evaluate, "--expert-ram", "2MiB", "--on-miss", "skip", "--miss-thresholds", "0.5,0.7").json()
        self.assertGreater(lossy["experts_lowered"] * lossy["experts_skipped"], 0)
        self.assertGreater(lossy["kld_mean"], whole["kld_mean"])

    def test_misses_are_lossy_only_when_asked_for(self):
        bundle = self.pack()
        base = ("run", "generate", bundle, "--trust", TRUST, *PROMPT)
        whole = run(*base).json()
        small = ("--expert-ram", "1MiB")
        self.assertEqual(run(*base, *small).json()["tokens"], whole["tokens"])
        self.assertEqual(run(*base, *small, "--on-miss", "skip", "--miss-thresholds", "1,1").json()["tokens"], whole["tokens"])
        self.assertEqual(run(*base, "--on-miss", "lower", "--miss-thresholds", "1,1").json()["tokens"], whole["tokens"])
        lower = run(*base, *small, "--on-miss", "lower").json()
        self.assertGreater(lower["experts_lowered"], 0)
        self.assertEqual(lower["experts_skipped"], 0)
        skip = run(*base, *small, "--on-miss", "skip", "--miss-thresholds", "0.5,0.7").json()
        self.assertGreater(skip["experts_skipped"], 0)
        self.assertEqual(sum(self.bridged(skip).values()), 0)
        for options, says in ((("--on-miss", "drop"), "load, lower or skip"), (("--miss-thresholds", "0.5,0.7"), "--on-miss"),
                              (("--on-miss", "skip", "--miss-thresholds", "0.9,0.6"), "first <= second"),
                              (("--on-miss", "skip", "--miss-thresholds", "0.9"), "two numbers")):
            self.assert_refused(*base[:-2], *options, status=2, says=says)
        self.assert_refused("run", "generate", WORK / "wren-i8g64.moeb", "--trust", TRUST, *PROMPT[:-2], "--on-miss", "lower", status=2,
                            says="no lower precision")
