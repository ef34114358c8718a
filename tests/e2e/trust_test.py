"""Trust anchors and channel heads as users make them: moepack pack anchor, moepack pack head, --trust with an anchor."""
from harness import TRUST, WORK, Case, run

BUNDLE = WORK / "wren-i4g64.moeb"


class Trust(Case):
    def keygen(self, *names):
        return [run("pack", "keygen", "-o", self.dir / f"{name}.pem", "--json").json()["public_key"] for name in names]

    def test_an_anchor_is_a_trust_file_and_is_rotated_by_old_and_new_roots(self):
        self.keygen("root1", "root2", "root3")
        roots = ["--root", self.dir / "root1.pem", "--root", self.dir / "root2.pem"]
        first, second = self.dir / "1.trust", self.dir / "2.trust"
        run("pack", "anchor", TRUST, *roots, "-o", first)
        run("verify", BUNDLE, "--trust", first)
        run("run", "generate", BUNDLE, "--trust", first, "--prompt", "A", "-n", "1")
        rotate = ["pack", "anchor", TRUST, "--root", self.dir / "root3.pem", "--previous", first, "-o", second]
        self.assert_refused(*rotate, "--previous-root", self.dir / "root1.pem", status=4, says="1 trusted keys, 2 required", output=second)
        both = ["--previous-root", self.dir / "root1.pem", "--previous-root", self.dir / "root2.pem"]
        self.assertEqual(run(*rotate, *both, "--json").json()["root_version"], 2)
        run("verify", BUNDLE, "--trust", second)
        damaged = bytearray(second.read_bytes())
        damaged[-1] ^= 1
        second.write_bytes(damaged)
        run("verify", BUNDLE, "--trust", second, expect=4)

    def test_a_head_names_a_bundle(self):
        self.keygen("channel")
        head = ["pack", "head", BUNDLE, "--key", self.dir / "channel.pem", "--head-version", "1", "--expires", "1893456000", "-o",
                self.dir / "stable.head"]
        digest = run("verify", BUNDLE, "--trust", TRUST, "--json").json()["manifest_sha256"]
        self.assert_refused(*head, "--channel", "a/b", status=2, says="channel", output=self.dir / "stable.head")
        self.assertEqual(run(*head, "--channel", "stable", "--json").json()["manifest_sha256"], digest)
