"""moepack device on the embedded model, killed at random moments: always the old or the new bundle, never neither.

MOEPACK_KILLS sets how many kills (40)."""
import fcntl
import os
import random
import shutil
import stat
import subprocess
import time

from harness import BIN, TRUST, WORK, DeviceCase, run

KILLS = int(os.environ.get("MOEPACK_KILLS", "40"))


class Install(DeviceCase):
    def pack(self, folder, counter):
        path = self.dir / f"{counter}.moeb"
        run("pack", WORK / folder, "--key", WORK / "key.pem", "--product", "wren", "--counter", counter, "-o", path)
        return path, run("verify", path, "--trust", TRUST, "--json").json()["manifest_sha256"]

    def device(self, verb, *args, expect=0):
        return run("device", verb, self.root, *args, "--json", "--quiet", expect=expect)

    def test_install_confirm_rollback(self):
        old, old_digest = self.pack("dir-i4g64", 8)
        new, new_digest = self.pack("dir-i8g64", 9)
        self.assertEqual(self.device("status").json()["manifest_sha256"], None)
        self.device("install", old)
        self.assertEqual(self.device("confirm").json()["security_counter_floor"], 8)
        self.assertTrue(self.device("install", new).json()["chunks_written"] > 0)
        self.assertTrue(self.device("status").json()["on_trial"])
        self.assertEqual(self.device("rollback").json()["manifest_sha256"], old_digest)
        self.assertEqual(self.device("install", new).json()["chunks_written"], 0)
        self.assertEqual(self.device("confirm").json()["manifest_sha256"], new_digest)
        self.assertGreater(self.device("gc").json()["files_removed"], 0)
        self.assertEqual(self.device("verify").json()["manifest_sha256"], new_digest)
        self.device("install", old, expect=5)
        self.device("rollback", expect=5)

    def test_the_bundle_in_use_runs(self):
        bundle, _ = self.pack("dir-i4g64", 8)
        prompt = ("--prompt", "In the beginning", "-n", 12, "--json", "--quiet")
        nothing = run("run", "generate", "--device", self.root, *prompt, expect=5)
        self.assertIn("no bundle is installed", nothing.err)
        self.device("install", bundle)
        tokens = run("run", "generate", bundle, "--trust", TRUST, *prompt).json()["tokens"]
        for ram in ((), ("--expert-ram", "1MiB")):
            self.assertEqual(run("run", "generate", "--device", self.root, *prompt, *ram).json()["tokens"], tokens)
        run("run", "generate", bundle, "--device", self.root, *prompt, expect=2)
        for chunk in (self.root / "chunks").iterdir():
            data = bytearray(chunk.read_bytes())
            data[len(data) // 2] ^= 1
            chunk.write_bytes(data)
        self.assertEqual(run("run", "generate", "--device", self.root, *prompt, expect=4).out, "")

    def test_channel_and_rotation(self):
        run("pack", "keygen", "-o", self.dir / "channel.pem")
        public = run("pack", "keygen", "-o", self.dir / "channel.pem", "--force", "--json").json()["public_key"]
        first, second = self.dir / "first.trust", self.dir / "second.trust"
        run("pack", "anchor", TRUST, "--root", self.dir / "root.pem", "--channel-key", public, "-o", first)
        root = self.dir / "channel-device"
        run("device", "provision", root, "--trust", first)
        bundle, digest = self.pack("dir-i4g64", 8)
        other, _ = self.pack("dir-i4g64", 9)

        def head(version, expires):
            path = self.dir / f"{version}.head"
            run("pack", "head", bundle, "--key", self.dir / "channel.pem", "--channel", "stable", "--head-version", version, "--expires",
                expires, "-o", path)
            return ("--head", path, "--channel", "stable", "--device-id", "0042", "--json", "--quiet")

        future = int(time.time()) + 3600
        self.assertIn("expired", run("device", "install", root, bundle, *head(3, 1000), expect=5).err)
        self.assertIn("--device-id", run("device", "install", root, bundle, *head(3, future)[:4], expect=2).err)
        run("device", "install", root, other, *head(3, future), expect=5)
        run("device", "install", root, bundle, *head(3, future))
        run("device", "confirm", root)
        state = run("device", "status", root, "--json").json()
        self.assertEqual((state["manifest_sha256"], state["head_version"], state["root_version"]), (digest, 3, 1))
        run("device", "install", root, bundle, *head(2, future), expect=5)
        run("pack", "keygen", "-o", self.dir / "root2.pem")
        run("pack", "anchor", TRUST, "--root", self.dir / "root2.pem", "--previous", first, "--previous-root", self.dir / "root.pem",
            "-o", second)
        run("device", "rotate", root, "--trust", self.dir / "a.trust", expect=5)
        self.assertEqual(run("device", "rotate", root, "--trust", second, "--json").json()["root_version"], 2)
        self.assertEqual(run("device", "verify", root, "--json").json()["manifest_sha256"], digest)
        shutil.copy(first, root / "anchor.trust")
        run("device", "status", root, expect=5)

    def test_key_is_private_and_half_a_provisioning_is_done_again(self):
        half = self.dir / "half"
        (half / "state").mkdir(parents=True)
        (half / "rollback.key").write_bytes(bytes(32))
        shutil.copy(self.root / "state" / "rollback.0", half / "state")
        run("device", "status", half, expect=3)
        mask = os.umask(0)
        try:
            run("device", "provision", half, "--trust", self.dir / "a.trust")
        finally:
            os.umask(mask)
        for root in (self.root, half):
            self.assertEqual(stat.S_IMODE((root / "rollback.key").stat().st_mode), 0o600)
        self.assertEqual(run("device", "status", half, "--json").json(), self.device("status").json())
        run("device", "provision", half, "--trust", self.dir / "a.trust", expect=5)

    def test_one_process_changes_a_folder(self):
        bundle, digest = self.pack("dir-i4g64", 8)
        held = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            for verb in (["install", bundle], ["confirm"], ["rollback"], ["gc"]):
                outcome = self.device(*verb, expect=7)
                self.assertIn("another 'moepack device' is changing it", outcome.err)
                self.assertEqual(outcome.out, "")
            self.assertEqual(self.device("status").json()["manifest_sha256"], None)
        finally:
            os.close(held)
        self.device("install", bundle)
        self.device("confirm")

    def test_repairs_that_messages_advise(self):
        bundle, digest = self.pack("dir-i4g64", 8)
        self.device("install", bundle)
        self.device("confirm")
        chunk = next((self.root / "chunks").iterdir())
        chunk.write_bytes(bytes(chunk.stat().st_size))
        self.device("verify", expect=4)
        self.assertEqual(self.device("install", bundle).json()["chunks_written"], 1)
        self.assertEqual(self.device("verify").json()["manifest_sha256"], digest)
        self.assertFalse(self.device("status").json()["on_trial"])
        (self.root / "active").write_bytes(b"?")
        self.assertIn("install a bundle again", self.device("status", expect=4).err)
        self.device("install", bundle)
        self.assertEqual(self.device("confirm").json()["manifest_sha256"], digest)

    def test_kill_at_any_moment(self):
        old, old_digest = self.pack("dir-i4g64", 8)
        new, new_digest = self.pack("dir-i8g64", 9)
        self.device("install", old)
        self.device("confirm")
        start = time.monotonic()
        self.device("install", new)
        seconds = time.monotonic() - start
        self.device("rollback")
        self.device("gc")
        kept = self.dir / "kept"
        shutil.copytree(self.root, kept)
        rng, seen = random.Random(4), {old_digest: 0, new_digest: 0}
        verbs = (["install", new], ["confirm"], ["rollback"], ["gc"])
        for number in range(KILLS):
            verb = verbs[number % 8 // 2] if number % 2 else verbs[0]
            if verb[0] in ("confirm", "rollback") and not self.device("status").json()["on_trial"]:
                self.device("install", new)
            process = subprocess.Popen([BIN / "moepack-device", verb[0], self.root, *verb[1:], "--quiet"],
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(rng.random() * seconds * (1 if verb[0] == "install" else 0.1))
            process.kill()
            process.wait()
            found = self.device("verify").json()["manifest_sha256"]  # every byte of what is in use
            self.assertIn(found, seen)
            seen[found] += 1
            on_trial = self.device("status").json()["on_trial"]
            if found == new_digest and not on_trial:  # confirmed: start again
                shutil.rmtree(self.root)
                shutil.copytree(kept, self.root)
            elif on_trial and verb[0] == "install":
                self.device("rollback")
        self.assertEqual(sum(seen.values()), KILLS)
        print(f"{KILLS} kills: the old bundle after {seen[old_digest]}, the new one after {seen[new_digest]}, every byte verified")
