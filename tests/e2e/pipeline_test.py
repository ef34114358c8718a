"""The commands as CI pipelines use them: JSON, gates, plans that stay stable, resume after a kill."""
import hashlib
import json
import subprocess
import time

from harness import BIN, TEXT, TRUST, WORK, WREN, Case, run

VERBS = ("inspect", "calibrate", "logits", "compress", "pack", "rebuild", "verify", "device", "run", "export")


class Pipeline(Case):
    def test_help_has_an_example(self):
        for verb in VERBS:
            outcome = run(verb, "--help")
            self.assertIn("Example", outcome.out, verb)
            self.assertIn("moepack", outcome.out)

    def test_inspect_model_folder_and_bundle(self):
        for target in (WREN, WORK / "dir-i4g64", WORK / "wren-i4g64.moeb"):
            report = run("inspect", target, "--json").json()
            self.assertEqual(report["parameters"], 16274688, target)
            for key in ("bytes_stored", "bytes_resident", "bits_per_weight"):
                self.assertGreater(report[key], 0)
        bundle = WORK / "wren-i4g64.moeb"
        self.assertEqual(report["bytes_stored"], bundle.stat().st_size)
        checkpoint = run("inspect", WREN, "--json").json()
        self.assertEqual(checkpoint["bytes_stored"], (WREN / "model.safetensors").stat().st_size)
        self.assertAlmostEqual(checkpoint["bits_per_weight"], checkpoint["bytes_stored"] * 8 / 16274688, places=9)
        self.assertAlmostEqual(report["bits_per_weight"], bundle.stat().st_size * 8 / 16274688, places=3)

    def test_target_size_holds_and_dry_run_tells_it(self):
        target = 9_000_000
        plan = run("compress", WREN, "--profile", WORK / "wren.mprof", "--target-size", target, "--dry-run", "--json", "-o",
                   self.dir / "d").json()
        self.assertFalse((self.dir / "d").exists())
        self.assertLessEqual(plan["bundle_bytes"], target)
        run("compress", WREN, "--profile", WORK / "wren.mprof", "--target-size", target, "-o", self.dir / "d")
        run("pack", self.dir / "d", "--key", WORK / "key.pem", "--product", "wren", "-o", self.dir / "b.moeb")
        self.assertLessEqual((self.dir / "b.moeb").stat().st_size, target)
        self.assertGreater((self.dir / "b.moeb").stat().st_size, 0.85 * target)

    def test_like_keeps_the_plan(self):
        first, second = self.dir / "a", self.dir / "b"
        run("compress", WREN, "--profile", WORK / "wren.mprof", "--target-bpw", "4.5", "-o", first)
        run("compress", WREN, "--profile", WORK / "wren.mprof", "--target-bpw", "4.5", "--like", first / "plan.json", "-o", second)
        self.assertEqual((first / "plan.json").read_text(), (second / "plan.json").read_text())

    def test_like_changes_fewer_tensors(self):
        """Under a budget that moved, a plan made with --like differs from the earlier one in fewer tensors."""
        def plan(budget, name, *more):
            run("compress", WREN, "--profile", WORK / "wren.mprof", "--target-bpw", budget, "-o", self.dir / name, *more)
            return json.loads((self.dir / name / "plan.json").read_text())["tensors"]

        errors = ("--error-table", self.dir / "errors.json")
        earlier, fresh = plan("4.5", "a", *errors), plan("4.3", "b", *errors)
        like = plan("4.3", "c", *errors, "--like", self.dir / "a/plan.json")
        changed = [sum(earlier[name]["codec"] != tensor["codec"] for name, tensor in other.items()) for other in (fresh, like)]
        self.assertGreater(changed[0], 0)
        self.assertLess(changed[1], changed[0])

    def test_dry_run_from_a_config_alone(self):
        report = run("compress", WREN / "config.json", "--codec", "i4g64", "--dry-run", "--json").json()
        real = run("compress", WREN, "--codec", "i4g64", "-o", self.dir / "full", "--json").json()
        self.assertEqual(report["bytes_resident"], real["bytes_resident"])
        self.assertEqual(report["bundle_bytes"], real["bundle_bytes"])
        run("pack", self.dir / "full", "--key", WORK / "key.pem", "--product", "wren", "--zstd-level", 0, "-o", self.dir / "b.moeb")
        # Names, counters and the version are counted at their longest: a page at most.
        self.assertIn(report["bundle_bytes"] - (self.dir / "b.moeb").stat().st_size, (0, 4096))
        self.assertEqual({path.name for path in self.dir.iterdir()}, {"full", "b.moeb"})

    def test_dry_run_writes_no_error_table(self):
        self.assert_refused("compress", WREN, "--profile", WORK / "wren.mprof", "--target-bpw", 4, "--dry-run", "--error-table",
                            self.dir / "errors.json", status=2, says=["errors.json", "--dry-run"])

    def test_resume_after_a_kill(self):
        arguments = ["compress", WREN, "--profile", WORK / "wren.mprof", "--target-bpw", "4.5"]
        run(*arguments, "-o", self.dir / "whole")
        partial = self.dir / "killed.partial"
        process = subprocess.Popen([str(BIN / "moepack"), *map(str, arguments), "-o", str(self.dir / "killed"), "-q"])
        while process.poll() is None and not list(partial.glob("block-001*")):
            time.sleep(0.02)
        self.assertIsNone(process.poll(), "ended before it was killed")
        process.kill()
        process.wait()
        done = {p.name: p.stat().st_ino for p in partial.glob("block-*")}
        self.assertIn("block-000.moeu", done)
        run(*arguments, "-o", self.dir / "killed", "--resume")
        kept = {p.name: p.stat().st_ino for p in (self.dir / "killed").glob("block-*")}
        self.assertEqual(done["block-000.moeu"], kept["block-000.moeu"], "the finished block was made again")
        names = {p.name for p in (self.dir / "whole").iterdir()}
        self.assertEqual(names, {p.name for p in (self.dir / "killed").iterdir()})
        for name in sorted(names):
            self.assertEqual((self.dir / "whole" / name).read_bytes(), (self.dir / "killed" / name).read_bytes(), name)

    def test_eval_keys_and_gate(self):
        data = self.dir / "text.txt"
        data.write_text((TEXT / "novel.eval.txt").read_text()[:20000])
        run("logits", WREN, "--data", data, "--ctx", 256, "-o", self.dir / "base.f32")
        command = ("run", "eval", WORK / "wren-i8g64.moeb", "--trust", TRUST, "--base", self.dir / "base.f32", "--data", data, "--ctx", 256)
        report = run(*command, "--json").json()
        for key in ("tokens", "ppl", "ppl_base", "kld_mean", "kld_median", "kld_p99", "same_top1", "top1_accuracy", "top1_accuracy_base"):
            self.assertIn(key, report)
        self.assertLess(report["kld_mean"], 0.0006)
        self.assertGreater(report["same_top1"], 0.97)
        run(*command, "--max-kld", "0.0000001", expect=6)

    def test_eval_of_the_first_chunks(self):
        data = self.dir / "text.txt"
        data.write_text((TEXT / "novel.eval.txt").read_text()[:20000])
        base = run("logits", WREN, "--data", data, "--ctx", 256, "--chunks", 2, "-o", self.dir / "base.f32", "--json").json()
        command = ("run", "eval", WORK / "wren-i8g64.moeb", "--trust", TRUST, "--base", self.dir / "base.f32", "--data", data, "--ctx", 256)
        self.assertEqual(run(*command, "--chunks", 2, "--json").json()["tokens"], base["rows"])
        self.assertIn("--chunks", run(*command, expect=3).err)
        run(*command, "--chunks", 0, expect=2)
        device = run("run", "logits", WORK / "wren-i8g64.moeb", "--trust", TRUST, "--data", data, "--ctx", 256, "--chunks", 2,
                     "-o", self.dir / "device.f32", "--json").json()
        self.assertEqual((device["rows"], device["vocabulary"]), (base["rows"], base["vocabulary"]))

    def test_verify_names_the_expert(self):
        command = ("verify", WORK / "wren-i8g64.moeb", "--trust", TRUST, "--json")
        self.assertEqual(run(*command, "--expert", "1:3").json()["expert"], "1:3")
        self.assertIsNone(run(*command).json()["expert"])

    def test_bench_keys(self):
        report = run("run", "bench", WORK / "wren-i4g64.moeb", "--trust", TRUST, "-n", 16, "--json").json()
        for key in ("ttft_ms", "prefill_tokens_per_s", "decode_tokens_per_s", "p50_ms", "p95_ms", "p99_ms", "hit_rate", "expert_loads",
                    "expert_bytes_read", "peak_rss_bytes", "verified"):
            self.assertIn(key, report)
        self.assertIs(report["verified"], True)
        self.assertGreater(report["decode_tokens_per_s"], 0)

    def test_profile_report_is_a_page(self):
        page = (WORK / "wren.html").read_text()
        self.assertIn("<svg", page)
        self.assertIn("scripture", page)

    def test_inspect_of_a_folder_prints_the_record_of_its_inputs(self):
        record = run("inspect", WORK / "dir-i4g64", "--json").json()["provenance"]
        self.assertEqual(record, json.loads((WORK / "dir-i4g64/provenance.json").read_text()))
        weights = hashlib.sha256((WREN / "model.safetensors").read_bytes()).hexdigest()
        self.assertEqual(record["inputs"]["model.safetensors"], weights)
