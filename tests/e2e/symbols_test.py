"""What the device programs are made of: no signing code, no ONNX, no network, small and static."""
import ctypes
import errno
import platform
import signal
import struct
import subprocess
import sys
import unittest

from harness import BIN, SOURCE, TRUST, WORK, Case

FORBIDDEN = ("crypto_sign_ed25519_detached", "crypto_sign_detached", "crypto_sign_seed_keypair", "crypto_sign_keypair",
             "EVP_PKEY_new", "PEM_write", "onnx", "ModelProto")
# What reaches a network; static programs hold some of it as parts of the C library.
NETWORK = ("socket@", "connect@", "getaddrinfo", "curl_")
DEVICE = ("moepack-verify", "moepack-run", "moepack-device")

# Machine's number for seccomp, and its numbers of the system calls with which every use of a network begins: socket,
# socketpair, connect, bind.
SYSTEM_CALLS = {"x86_64": (0xC000003E, (41, 53, 42, 49)), "aarch64": (0xC00000B7, (198, 199, 203, 200))}
IO_URING_SETUP = 425  # everywhere


def network_filter(machine):
    """A seccomp program (classic BPF) that kills the process at any of these calls. There is no io_uring, whose requests a
    filter does not see."""
    load, equal, answer = 0x20, 0x15, 0x06
    kill, allow, no_such_call = 0x80000000, 0x7FFF0000, 0x00050000 | errno.ENOSYS
    audit, calls = SYSTEM_CALLS[machine]
    program = [(load, 0, 0, 4), (equal, 1, 0, audit), (answer, 0, 0, kill), (load, 0, 0, 0)]
    for call in calls:
        program += [(equal, 0, 1, call), (answer, 0, 0, kill)]
    program += [(equal, 0, 1, IO_URING_SETUP), (answer, 0, 0, no_such_call), (answer, 0, 0, allow)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def run_without_network(*command):
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(network_filter(platform.machine()))
    program = Program((len(code) - 1) // 8, ctypes.addressof(code))

    def enter():
        no_new_privileges, set_seccomp, mode_filter = 38, 22, 2
        if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, mode_filter, ctypes.byref(program), 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
    return subprocess.run([str(word) for word in command], preexec_fn=enter, capture_output=True, text=True, timeout=900, check=False)


@unittest.skipUnless(platform.machine() in SYSTEM_CALLS, "system call numbers of this machine are not known here")
class Network(Case):
    """At run time: a kernel filter kills what opens a socket."""

    def programs(self, name):
        """As built, and static where that is built."""
        static = SOURCE / f"build/device-{platform.machine()}/bin" / name
        return [BIN / name] + [static] * static.exists()

    def test_device_programs_work_where_no_socket_can_be_opened(self):
        bundle = (WORK / "wren-i4g64.moeb", "--trust", TRUST)
        for program in self.programs("moepack-run"):
            for options in (("--threads", 2), ("--threads", 1, "--expert-ram", 2_000_000)):
                done = run_without_network(program, "generate", *bundle, "--prompt", "In the beginning", "-n", 8, "--metrics-prometheus",
                                           self.dir / "m.prom", "--metrics-jsonl", self.dir / "m.jsonl", *options)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertGreater(len(done.stdout), 8)
        for program in self.programs("moepack-verify"):
            self.assertEqual(run_without_network(program, *bundle).returncode, 0)

    def test_the_filter_kills_what_opens_a_socket(self):
        for family in ("AF_INET", "AF_UNIX"):
            done = run_without_network(sys.executable, "-c", f"import socket; socket.socket(socket.{family})")
            self.assertEqual(done.returncode, -signal.SIGSYS)
        self.assertEqual(run_without_network(sys.executable, "-c", "pass").returncode, 0)


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
                self.assertLess(stripped.stat().st_size, 4 << 20 if program != "moepack-device" else 8 << 20)
                for word in FORBIDDEN:
                    self.assertNotIn(word, self.symbols(path), f"{preset} {program}")
                headers = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True, check=True).stdout
                self.assertIn("LOAD", headers)
                self.assertNotIn("INTERP", headers, "not static")
        if found == 0:
            self.skipTest("device presets are not built; scripts/test.sh builds them")
