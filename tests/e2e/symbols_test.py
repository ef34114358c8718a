"""What the device programs are made of: no signing code, no ONNX, no network, small and static."""
import pathlib
import subprocess

from harness import BIN, SOURCE, Case

FORBIDDEN = ("crypto_sign_ed25519_detached", "crypto_sign_detached", "crypto_sign_seed_keypair", "crypto_sign_keypair",
             "EVP_PKEY_new", "PEM_write", "onnx", "ModelProto")
# What reaches a network; static programs hold some of it as parts of the C library.
NETWORK = ("socket@", "connect@", "getaddrinfo", "curl_")
DEVICE = ("moepack-verify", "moepack-run", "moepack-device")


class Symbols(Case):
    def symbols(self, path):
        return subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True).stdout + \
            subprocess.run(["nm", "-CuD", path], capture_output=True, text=True, check=False).stdout

    def test_no_signing_no_onnx_and_no_network(self):
        for program in DEVICE:
            names = self.symbols(BIN / program)
            for word in FORBIDDEN + NETWORK:
                self.assertNotIn(word, names, program)

    def test_the_packager_does_sign(self):
        """The check above can fail: the same search finds signing in the program that has it."""
        self.assertTrue(any(word in self.symbols(BIN / "moepack-pack") for word in FORBIDDEN[:6]))

    def test_static_builds_hold_neither_and_are_small(self):
        found = 0
        for preset in ("device-x86_64", "device-aarch64"):
            for program in DEVICE:
                path = SOURCE / "build" / preset / "bin" / program
                if not path.exists():
                    continue
                found += 1
                strip = "aarch64-linux-gnu-strip" if "aarch64" in preset else "strip"
                stripped = self.dir / f"{program}-{preset}"
                subprocess.run([strip, "-o", stripped, path], check=True)
                print(f"{preset} {program}: {stripped.stat().st_size} bytes stripped")
                self.assertLess(stripped.stat().st_size, 8 << 20)
                for word in FORBIDDEN:
                    self.assertNotIn(word, self.symbols(path), f"{preset} {program}")
                headers = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True, check=True).stdout
                self.assertIn("LOAD", headers)
                self.assertNotIn("INTERP", headers, "not static")
        if found == 0:
            self.skipTest("device presets are not built; scripts/test.sh builds them")
