"""moepack device trial: a bundle on trial answers its signed golden prompts, or goes by itself."""
import hashlib
import random
import re
import struct
import subprocess
import time

from harness import BIN, SOURCE, TRUST, WORK, DeviceCase, run

PROMPTS = SOURCE / "examples/wren/golden.txt"
KILLS = 12


def with_other_logits(blob):
    """Every logit of a golden blob, four to a step, a fifth larger or smaller: well formed, and not what the bundle answers."""
    def change(match):
        logits = struct.unpack("<4f", match.group(1))
        return b"\x12\x10" + struct.pack("<4f", *(value * 1.2 for value in logits))
    return re.sub(rb"\x12\x10(.{16})(?=\x12|\"|\Z)", change, blob, flags=re.S)


class Trial(DeviceCase):
    def pack(self, folder, counter, *args):
        path = self.dir / f"{counter}.moeb"
        report = run("pack", WORK / folder, "--key", WORK / "key.pem", "--product", "wren", "--counter", counter, *args, "-o", path,
                     "--json").json()
        return path, report

    def device(self, verb, *args, expect=0):
        return run("device", verb, self.root, *args, "--json", "--quiet", expect=expect)

    def old_in_use(self):
        old, report = self.pack("dir-i8g64", 8)
        self.device("install", old)
        self.device("confirm")
        return report["manifest_sha256"]

    def resigned(self, path):
        """The bundle with golden prompts that it does not answer, digested and signed again by the key of the release."""
        data = bytearray(path.read_bytes())
        report = run("inspect", path, "--trust", TRUST, "--json").json()
        entry = report["blobs"][-1]
        self.assertEqual(entry["kind"], "golden_prompts")
        blob = with_other_logits(bytes(data[entry["offset"]:entry["offset"] + entry["bytes"]]))
        self.assertEqual(len(blob), entry["bytes"])
        data[entry["offset"]:entry["offset"] + entry["bytes"]] = blob
        end = 1568 + struct.unpack("<Q", data[16:24])[0]
        data[end - 32:end] = hashlib.sha256(blob).digest()  # the last field of the last entry
        message = self.dir / "message"
        message.write_bytes(b"moepack signed manifest\n" + struct.pack("<IIQ", 1, 1, end - 1568) + data[1568:end])
        signed = subprocess.run(["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", WORK / "key.pem", "-in", message], check=True,
                                capture_output=True).stdout
        data[64:128] = signed
        wrong = self.dir / "wrong.moeb"
        wrong.write_bytes(data)
        return wrong

    def test_a_bundle_that_works_is_confirmed(self):
        self.old_in_use()
        new, report = self.pack("dir-i4g64", 9, "--golden", PROMPTS, "--golden-steps", 4)
        self.assertEqual((report["golden_prompts"], report["golden_steps"]), (8, 32))
        shown = run("inspect", new, "--trust", TRUST, "--json").json()["golden"]
        self.assertEqual((shown["prompts"], shown["steps"], shown["steps_allowed_to_differ"]), (8, 32, 2))
        self.device("install", new)
        trial = self.device("trial", "--expert-ram", "4MiB").json()
        self.assertEqual((trial["outcome"], trial["manifest_sha256"], trial["reason"]), ("confirmed", report["manifest_sha256"], None))
        self.assertEqual((trial["steps_agreed"], trial["steps_differed"]), (32, 0))
        self.assertLess(trial["largest_difference"], shown["tolerance"])
        state = self.device("status").json()
        self.assertEqual((state["on_trial"], state["security_counter_floor"]), (False, 9))
        self.assertEqual(self.device("trial").json()["outcome"], "nothing_on_trial")

    def test_a_bundle_that_answers_otherwise_goes(self):
        old_digest = self.old_in_use()
        new, _ = self.pack("dir-i4g64", 9, "--golden", PROMPTS, "--golden-steps", 4)
        wrong = self.resigned(new)
        run("verify", wrong, "--trust", TRUST)
        self.device("install", wrong)
        trial = self.device("trial", expect=6)
        self.assertEqual((trial.json()["outcome"], trial.json()["manifest_sha256"]), ("rolled_back", old_digest))
        self.assertIn("prompt 0, step 0", trial.json()["reason"])
        self.assertIn("was rolled back", trial.err)
        state = self.device("status").json()
        self.assertEqual((state["manifest_sha256"], state["on_trial"], state["security_counter_floor"]), (old_digest, False, 8))
        self.device("install", new)
        self.assertEqual(self.device("trial").json()["outcome"], "confirmed")

    def test_a_bundle_that_cannot_run_goes(self):
        old_digest = self.old_in_use()
        new, _ = self.pack("dir-i4g64", 9, "--golden", PROMPTS, "--golden-steps", 1)
        kept = {path.name for path in (self.root / "chunks").iterdir()}
        self.device("install", new)
        trial = self.device("trial", "--expert-ram", "1KiB", expect=7)  # less than one token takes
        self.assertEqual((trial.json()["outcome"], trial.json()["manifest_sha256"]), ("rolled_back", old_digest))
        self.device("install", new)
        for path in (self.root / "chunks").iterdir():
            if path.name not in kept:
                path.write_bytes(b"?" + path.read_bytes()[1:])
        trial = self.device("trial", expect=4)
        self.assertEqual((trial.json()["outcome"], trial.json()["manifest_sha256"]), ("rolled_back", old_digest))
        self.assertEqual(self.device("verify").json()["manifest_sha256"], old_digest)

    def test_nothing_is_confirmed_without_golden_prompts(self):
        self.old_in_use()
        new, report = self.pack("dir-i4g64", 9)
        self.assertEqual((report["golden_prompts"], report["golden_steps"]), (0, 0))
        self.assertIsNone(run("inspect", new, "--trust", TRUST, "--json").json()["golden"])
        self.device("install", new)
        refused = self.device("trial", expect=5)
        self.assertIn("has no golden prompts", refused.err)
        self.assertEqual(refused.out, "")
        self.assertTrue(self.device("status").json()["on_trial"])
        self.assertEqual(self.device("trial", "--untested").json()["outcome"], "confirmed")
        self.assertEqual(self.device("status").json()["manifest_sha256"], report["manifest_sha256"])

    def test_the_same_prompts_give_the_same_bytes(self):
        ids = self.dir / "ids.txt"
        ids.write_text("5,6,7\n\n100\n")
        first, _ = self.pack("dir-i4g64", 8, "--golden-ids", ids, "--golden-steps", 3, "--threads", 1)
        first = first.rename(self.dir / "first.moeb")
        second, report = self.pack("dir-i4g64", 8, "--golden-ids", ids, "--golden-steps", 3, "--threads", 3)
        self.assertEqual(first.read_bytes(), second.read_bytes())
        self.assertEqual((report["golden_prompts"], report["golden_steps"]), (2, 6))

    def test_bad_options_leave_nothing(self):
        empty, words = self.dir / "empty.txt", self.dir / "words.txt"
        empty.write_text("\n\n")
        words.write_text("1,2\nthree\n")
        out = self.dir / "out.moeb"
        for args, status, said in ((("--golden", empty), 2, "holds no prompt"), (("--golden-ids", words), 2, "three"),
                                   (("--golden", PROMPTS, "--golden-ids", words), 2, "one of"), (("--golden-steps", 3), 2, "goes with"),
                                   (("--golden", PROMPTS, "--golden-steps", 257), 2, "1 to 256"),
                                   (("--golden", PROMPTS, "--golden-tolerance", 0), 2, "above 0"),
                                   (("--golden", self.dir / "none.txt"), 3, "none.txt"), (("--golden-ids", self.ids(5000)), 3, "token 5000")):
            outcome = run("pack", WORK / "dir-i4g64", "--key", WORK / "key.pem", *args, "-o", out, expect=status)
            self.assertIn(said, outcome.err)
            self.assertEqual((outcome.out, out.exists()), ("", False))

    def ids(self, token):
        path = self.dir / "id.txt"
        path.write_text(f"{token}\n")
        return path

    def test_killed_at_any_moment_of_the_trial(self):
        old_digest = self.old_in_use()
        new, _ = self.pack("dir-i4g64", 9, "--golden", PROMPTS, "--golden-steps", 16)
        wrong = self.resigned(new)
        self.device("install", new)
        start = time.monotonic()
        self.assertEqual(self.device("trial").json()["outcome"], "confirmed")
        seconds = time.monotonic() - start
        rng, on_trial = random.Random(11), 0
        for number in range(KILLS):
            bundle, status, outcome = ((new, 0, "confirmed"), (wrong, 6, "rolled_back"))[number % 2]
            self.root = self.dir / f"device-{number}"
            run("device", "provision", self.root, "--trust", self.dir / "a.trust")
            self.device("install", self.dir / "8.moeb")
            self.device("confirm")
            digest = self.device("install", bundle).json()["manifest_sha256"]
            process = subprocess.Popen([BIN / "moepack-device", "trial", self.root, "--quiet"], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            time.sleep(rng.random() * seconds)
            process.kill()
            process.wait()
            self.assertIn(self.device("verify").json()["manifest_sha256"], (old_digest, digest))  # every byte of it
            undecided = self.device("status").json()["on_trial"]
            on_trial += undecided
            again = self.device("trial", expect=status if undecided else 0).json()["outcome"]
            self.assertEqual(again, outcome if undecided else "nothing_on_trial")
            self.assertEqual(self.device("status").json()["manifest_sha256"], old_digest if bundle == wrong else digest)
        print(f"{KILLS} kills of a trial, {on_trial} before it was decided: the old or the new bundle, every byte verified")
