"""Calibration reads calibration splits only: by the digests that a profile and a signed bundle record of their texts."""
import hashlib
import json
import pathlib
import re
import struct
import sys

from harness import SOURCE, TEXT, TRUST, WORK, WREN, Case, run

sys.path.insert(0, str(SOURCE / "tests/bench"))
import bench_lib  # noqa: E402
import ours  # noqa: E402


def digests(pattern):
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in TEXT.glob(pattern)}


CALIB, EVAL = digests("*.calib.txt"), digests("*.eval.txt")


def profile_inputs(path):
    """The texts' digests that a profile records."""
    raw = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    profile = json.loads(json.loads(raw[8:8 + length])["__metadata__"]["moepack_profile"])
    return {entry["sha256"] for entry in profile["inputs"]}


class SplitsTest(Case):
    def assert_calibration_only(self, found):
        self.assertTrue(found)
        self.assertLessEqual(found, CALIB)
        self.assertFalse(found & EVAL)

    def test_splits_share_no_text(self):
        self.assertFalse(CALIB & EVAL)
        for name in ("scripture", "speech", "novel", "python", "german", "french", "admin", "dictionary"):
            lines = {line for line in (TEXT / f"{name}.calib.txt").read_text().splitlines() if len(line) > 60}
            shared = lines.intersection((TEXT / f"{name}.eval.txt").read_text().splitlines())
            self.assertLessEqual(len(shared), len(lines) // 50, name)

    def test_profile_records_what_it_read(self):
        text = self.dir / "own.txt"
        text.write_text((TEXT / "novel.calib.txt").read_text()[:20000])
        run("calibrate", WREN, "--data", text, "--tokens", 512, "-o", self.dir / "p.mprof")
        self.assertEqual(profile_inputs(self.dir / "p.mprof"), {hashlib.sha256(text.read_bytes()).hexdigest()})

    def test_profile_and_bundle_of_these_tests(self):
        self.assert_calibration_only(profile_inputs(WORK / "wren.mprof"))
        bundle = run("inspect", WORK / "wren-i4g64.moeb", "--trust", TRUST, "--json").json()
        read = bundle["provenance"]["statement"]["predicate"]["buildDefinition"]["resolvedDependencies"]
        self.assert_calibration_only({d["digest"]["sha256"] for d in read if d["name"].startswith("calibration/")})

    def test_benchmark_calibrates_on_calibration_text(self):
        class Own(ours.Ours):
            def __init__(self, folder):  # the programs under test, without a cache
                self.bin, self.dir, self.subject = pathlib.Path(run.__globals__["BIN"]), folder, bench_lib.subjects()["wren"]
        ours.CALIBRATION_TOKENS = 2048
        self.assert_calibration_only(profile_inputs(Own(self.dir).profile))

    def test_demo_calibrates_on_calibration_text(self):
        script = (SOURCE / "scripts/demo.sh").read_text()
        domains = re.search(r"for domain in ([a-z ]+);", script)[1].split()
        suffix = re.search(r'data\+=\("\$domain=\$text/\$domain\.(\w+)\.txt"\)', script)[1]
        self.assertRegex(script, r'moepack calibrate "\$model" --data "\$\{data\[@\]\}" ')
        self.assertEqual(script.count("moepack calibrate"), 1)
        texts = {hashlib.sha256((TEXT / f"{d}.{suffix}.txt").read_bytes()).hexdigest() for d in domains}
        self.assert_calibration_only(texts)

    def test_eval_warns_on_calibration_text(self):
        for split, expected in (("calib", True), ("eval", False)):
            text = TEXT / f"novel.{split}.txt"
            base = self.dir / f"{split}.f32"
            run("logits", WREN, "--data", text, "--ctx", 256, "-o", base)
            outcome = run("run", "eval", WORK / "wren-i4g64.moeb", "--trust", TRUST, "--base", base, "--data", text, "--ctx", 256, "--json",
                          "--quiet")
            self.assertEqual(outcome.json()["on_calibration_text"], expected)
            self.assertEqual("this text calibrated the bundle" in outcome.err, expected, outcome.err)
