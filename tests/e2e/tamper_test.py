"""Damaged, re-signed, stripped and outdated bundles: the design's exit status and no output, from every program."""
import json
import random

from harness import TRUST, WORK, Case, run

BUNDLE = WORK / "wren-i4g64.moeb"


class Tamper(Case):
    def setUp(self):
        super().setUp()
        self.bytes = bytearray(BUNDLE.read_bytes())
        self.report = run("inspect", BUNDLE, "--trust", TRUST, "--json").json()

    def write(self, data):
        path = self.dir / "t.moeb"
        path.write_bytes(data)
        return path

    def refused(self, path, status, trust=TRUST):
        for command in (("verify", path), ("run", "generate", path, "--prompt", "A", "-n", "2")):
            outcome = run(*command, "--trust", trust, expect=status)
            self.assertEqual(outcome.out, "", command)
            self.assertNotEqual(outcome.err, "")

    def test_intact_bundle_passes(self):
        self.assertTrue(run("verify", BUNDLE, "--trust", TRUST, "--json").json()["verified"])

    def test_flips_in_envelope_and_manifest(self):
        rng = random.Random(1)
        size = 4096
        for offset in sorted(rng.sample(range(32, size), 24)):
            data = bytearray(self.bytes)
            data[offset] ^= 1 << rng.randrange(8)
            outcome = run("verify", self.write(data), "--trust", TRUST, expect=4)
            self.assertEqual(outcome.out, "")

    def test_flips_in_chunks_are_refused_by_verify_and_when_used(self):
        rng = random.Random(2)
        begin = self.report["chunks_begin"]
        for _ in range(12):
            data = bytearray(self.bytes)
            data[rng.randrange(begin, len(data))] ^= 0x40
            run("verify", self.write(data), "--trust", TRUST, expect=4)
        data = bytearray(self.bytes)
        data[begin] ^= 1  # the first chunk holds the embedding, which every run uses
        self.refused(self.write(data), 4)

    def test_truncated_and_extended(self):
        for data in (self.bytes[:-1], self.bytes[:len(self.bytes) // 2], self.bytes[:100], self.bytes[:5], b"", self.bytes + b"\0"):
            self.refused(self.write(data), 4)

    def test_not_a_bundle(self):
        self.refused(self.write(b"PK\3\4" + bytes(self.bytes[4:])), 3)

    def test_wrong_key_and_unsigned(self):
        run("pack", "keygen", "-o", self.dir / "other.pem", "--trust", self.dir / "other.json", "--product", "wren")
        self.refused(BUNDLE, 4, trust=self.dir / "other.json")
        data = bytearray(self.bytes)
        data[32:32 + 96] = bytes(96)  # the signature slot emptied
        self.refused(self.write(data), 4)

    def test_lower_counter_and_other_product(self):
        trust = json.loads(TRUST.read_text())
        lower = self.dir / "lower.json"
        lower.write_text(json.dumps({**trust, "minimum_security_counter": 8}))
        self.refused(BUNDLE, 5, trust=lower)
        lower.write_text(json.dumps({**trust, "product": "camera"}))
        self.refused(BUNDLE, 5, trust=lower)

    def test_threshold_counts_distinct_keys(self):
        trust = json.loads(TRUST.read_text())
        run("pack", "keygen", "-o", self.dir / "second.pem", "--trust", self.dir / "second.json", "--product", "wren")
        second = json.loads((self.dir / "second.json").read_text())["release_keys"]
        both = self.dir / "both.json"
        both.write_text(json.dumps({**trust, "threshold": 2, "release_keys": trust["release_keys"] + second}))
        self.refused(BUNDLE, 4, trust=both)
        run("pack", "sign", BUNDLE, "--key", self.dir / "second.pem", "-o", self.dir / "two.moeb")
        run("verify", self.dir / "two.moeb", "--trust", both)
