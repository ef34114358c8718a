"""moepack as measured: one profile and one error table a model, bundles at given sizes, evaluated by the device runtime."""
import hashlib
import json
import pathlib

from bench_lib import CTX, Failed, digest, run

CALIBRATION_TOKENS = 65536
GATE_NOT_MET = 6  # exit status
PROGRAMS = ("calibrate", "compress", "pack", "logits", "run", "inspect")


class Ours:
    def __init__(self, bin_dir, work, subject, cache, options=()):
        """options: further arguments of every compress, such as --recipe FILE."""
        self.bin, self.subject, self.cache, self.options = bin_dir, subject, cache, [str(o) for o in options]
        programs = "".join(digest(bin_dir / f"moepack-{p}") for p in PROGRAMS)
        files = [digest(o) for o in options if pathlib.Path(o).is_file()]
        self.key = ["moepack", programs, subject.digest, CALIBRATION_TOKENS, self.options, files]
        # What one build made is never mixed with what another made, nor what other options made.
        made_by = hashlib.sha256(json.dumps([programs, self.options, files]).encode()).hexdigest()
        self.dir = work / subject.name / f"moepack-{made_by[:12]}"
        self.dir.mkdir(parents=True, exist_ok=True)

    def moepack(self, *args):
        return run(self.bin / "moepack", *args)

    def json(self, *args):
        """The JSON object of a command, without its messages."""
        return json.loads(run(self.bin / "moepack", *args, "--json", "--quiet", messages=False))

    def file(self, name, make):
        """The path dir/name, made by make(path) if it is not there."""
        path = self.dir / name
        if not path.exists():
            make(path)
        return path

    @property
    def key_file(self):
        return self.file("key.pem", lambda p: self.moepack("pack", "keygen", "-o", p, "--trust", self.dir / "trust.json"))

    @property
    def profile(self):
        texts = [f"{d}={self.subject.calib(d)}" for d in self.subject.domains]
        return self.file("profile.mprof", lambda p: self.moepack("calibrate", self.subject.model, "--data", *texts, "--tokens",
                                                                 CALIBRATION_TOKENS, "-o", p, "--quiet"))

    def base(self, text):
        return self.file(f"{text.stem}.f32", lambda p: self.moepack("logits", self.subject.model, "--data", text, "--ctx", CTX, "-o", p,
                                                                    "--quiet"))

    def compress(self, *args):
        return self.json("compress", self.subject.model, "--profile", self.profile, "--error-table", self.dir / "errors.json",
                         *self.options, *args)

    def stored_aim(self, size):
        return ["--target-size", str(size), "--target-resident", "unlimited"]

    def resident_aim(self, size):
        return ["--target-resident", str(size)]

    def measure(self, aim, text):
        """Compresses with the options `aim`, packs, evaluates the signed bundle on `text`; None when no plan is that small."""
        def make():
            name = "".join(aim).strip("-")
            try:
                bundle = self.file(f"{name}.moeb", lambda p: self.pack(name, aim, p))
            except Failed as failure:
                if failure.status == GATE_NOT_MET:
                    return None
                raise
            report = self.json("run", "eval", bundle, "--trust", self.dir / "trust.json", "--base", self.base(text), "--data", text,
                               "--ctx", CTX)
            shape = self.json("inspect", bundle, "--trust", self.dir / "trust.json")
            assert shape["bytes_stored"] == bundle.stat().st_size
            return {**report, "bytes": shape["bytes_stored"], "bytes_resident": shape["bytes_resident"], "parameters": shape["parameters"],
                    "codecs": shape["codecs"]}
        return self.cache.get([*self.key, "measure", aim, text.name], make)

    def pack(self, name, aim, path):
        folder = self.dir / name
        if not folder.exists():
            self.compress(*aim, "-o", folder)
        return self.json("pack", folder, "--key", self.key_file, "-o", path)

    def pack_report(self, aim):
        """What pack prints of the bundle with the options `aim`, with the model's parameters."""
        def make():
            name = "".join(aim).strip("-")
            folder, key = self.dir / name, self.key_file
            if not folder.exists():
                self.json("compress", self.subject.model, "--profile", self.profile, *aim, "-o", folder)
            report = self.json("pack", folder, "--key", key, "-o", self.dir / f"{name}.moeb")
            return {**report, "parameters": self.json("inspect", folder)["parameters"]}
        return self.cache.get([*self.key, "pack", aim], make)
