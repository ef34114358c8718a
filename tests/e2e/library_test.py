"""The shared libraries as a C program gets them: what they export, and a program built with pkg-config and with CMake."""
import ctypes
import json
import os
import pathlib
import re
import shutil
import subprocess
import unittest

from harness import SOURCE, TRUST, WORK, Case, run

BUILD = SOURCE / "build/library"
HEADERS = {"runtime": SOURCE / "runtime-min/moepack_runtime_c.h", "verify": SOURCE / "verify/moepack_verify_c.h"}
PROMPT = "The President said to the Congress that"


def output(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=900, check=False, **options)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


@unittest.skipUnless((BUILD / "libmoepack-runtime.so").exists(), "preset library is not built; scripts/test.sh builds it")
class Library(Case):
    def setUp(self):
        super().setUp()
        output("cmake", "--install", BUILD, "--prefix", self.dir / "first", "--strip")
        self.prefix = self.dir / "moved"
        (self.dir / "first").rename(self.prefix)

    def library(self, name):
        return self.prefix / f"lib/libmoepack-{name}.so"

    def test_exports_what_the_header_declares_and_nothing_else(self):
        for name, header in HEADERS.items():
            text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)
            declared = set(re.findall(r"^[a-z][\w \*]*?[ \*](moepack_\w+)\(", text, flags=re.MULTILINE))
            version = re.search(r"_ABI_VERSION (\d+)", text)[1]
            symbols = output("nm", "-D", "--defined-only", "--with-symbol-versions", self.library(name)).split("\n")
            exported = {line.split()[2] for line in symbols if line and line.split()[1] != "A"}
            self.assertGreater(len(declared), 7)
            self.assertEqual(exported, {f"{function}@@MOEPACK_{name.upper()}_{version}" for function in declared})
            self.assertEqual(ctypes.CDLL(str(self.library(name)))[f"moepack_{name}_abi_version"](), int(version), "it can be loaded")
            dynamic = output("readelf", "-dW", self.library(name))
            self.assertIn(f"Library soname: [libmoepack-{name}.so.{version}]", dynamic)
            self.assertNotIn("RUNPATH", dynamic)
            needs = output("nm", "-D", "--undefined-only", self.library(name))
            for word in ("socket", "connect", "getaddrinfo", "crypto_sign_detached", "crypto_sign_keypair"):
                self.assertNotRegex(needs, rf"\b{word}\b")
            print(f"libmoepack-{name}.so: {self.library(name).stat().st_size} bytes stripped")

    def with_pkg_config(self):
        environment = {**os.environ, "PKG_CONFIG_PATH": str(self.prefix / "lib/pkgconfig")}
        flags = output("pkg-config", "--cflags", "--libs", "moepack-runtime", env=environment).split()
        self.assertIn(str(self.dir / "moved"), str(pathlib.Path(flags[0][2:]).resolve()), "not where it was installed first")
        output("cc", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o", self.dir / "generate", SOURCE / "examples/c/generate.c",
               *flags, f"-Wl,-rpath,{self.prefix}/lib")
        return self.dir / "generate"

    def with_cmake(self):
        build = self.dir / "build"
        output("cmake", "-S", SOURCE / "examples/c", "-B", build, f"-DCMAKE_PREFIX_PATH={self.prefix}")
        output("cmake", "--build", build)
        return build / "generate"

    def test_a_c_program_makes_the_same_tokens_as_moepack_run(self):
        bundle = WORK / "wren-i4g64.moeb"
        expected = run("run", "generate", bundle, "--trust", TRUST, "--prompt", PROMPT, "-n", 40, "--json").json()
        for program in (self.with_pkg_config(), self.with_cmake()):
            for ram in (0, 2_000_000):
                done = subprocess.run([program, bundle, TRUST, PROMPT, "40", str(ram)], capture_output=True, text=True, timeout=300, check=True)
                tokens, metrics = done.stderr.splitlines()
                self.assertEqual([int(token) for token in tokens.removeprefix("tokens: ").split(",")], expected["tokens"])
                self.assertEqual(done.stdout, expected["text"] + "\n")
                self.assertEqual(json.loads(metrics)["decoded_tokens"], 39)
                self.assertEqual(json.loads(metrics)["expert_budget_limit_bytes"], ram or expected["expert_budget_limit_bytes"])

    def test_errors_reach_a_c_program(self):
        program, bundle = self.with_pkg_config(), WORK / "wren-i4g64.moeb"
        damaged = self.dir / "damaged.moeb"
        shutil.copy(bundle, damaged)
        with open(damaged, "r+b") as file:
            file.seek(8192)
            byte = file.read(1)[0]
            file.seek(8192)
            file.write(bytes([byte ^ 1]))
        for arguments, status, says in (((bundle, self.dir / "none.json"), 3, "NotFound"), ((damaged, TRUST), 4, ": "),
                                        ((bundle, TRUST, PROMPT, "5", "1"), 2, "Usage")):
            arguments = [*arguments, PROMPT, "5"][:5] if len(arguments) < 3 else arguments
            done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)
            self.assertEqual(done.returncode, status, done.stderr)
            self.assertIn(says, done.stderr)


if __name__ == "__main__":
    unittest.main()
