"""The aarch64 programs under qemu-user verify and run the same bundle and give the same tokens; its kernels pass their tests."""
import json
import shutil
import subprocess

from harness import CODECS, SOURCE, TRUST, WORK, Case, run

DEVICE = SOURCE / "build/device-aarch64/bin"
PROMPT = "In the beginning"


class Device(Case):
    def setUp(self):
        super().setUp()
        if not (DEVICE / "moepack-run").exists() or shutil.which("qemu-aarch64") is None:
            self.skipTest("device-aarch64 is not built; scripts/test.sh builds it")

    def device(self, program, *args, expect=0):
        outcome = subprocess.run(["qemu-aarch64", "-cpu", "max", DEVICE / program, *map(str, args)], capture_output=True, text=True)
        self.assertEqual(outcome.returncode, expect, outcome.stdout[-2000:] + outcome.stderr)
        return outcome.stdout

    def test_verify(self):
        self.assertTrue(json.loads(self.device("moepack-verify", WORK / "wren-i4g64.moeb", "--trust", TRUST, "--json"))["verified"])
        damaged = bytearray((WORK / "wren-i4g64.moeb").read_bytes())
        damaged[-1] ^= 1
        (self.dir / "d.moeb").write_bytes(damaged)
        self.assertEqual(self.device("moepack-verify", self.dir / "d.moeb", "--trust", TRUST, expect=4), "")

    def test_same_tokens_as_here(self):
        for codec in CODECS:
            args = ("generate", WORK / f"wren-{codec}.moeb", "--trust", TRUST, "--prompt", PROMPT, "-n", 16, "--json")
            there = json.loads(self.device("moepack-run", *args, "--threads", 1))
            self.assertEqual(there["tokens"], run("run", *args).json()["tokens"], codec)

    def test_kernels(self):
        self.assertIn("[       OK ] KernelList.ArmHasDots", self.device("../tests/kernels_test"))
