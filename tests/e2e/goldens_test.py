"""Every family: forward and runtime give the golden logits on float tensors."""
import json

from harness import CHECKPOINTS, GOLDEN, TRUST, WORK, WREN, Case, floats, largest_difference, run


class Goldens(Case):
    def check(self, model, tokens, golden):
        ids = ",".join(map(str, tokens))
        run("logits", model, "--tokens", ids, "-o", self.dir / "forward.f32")
        self.assertLess(largest_difference(floats(self.dir / "forward.f32"), floats(golden)), 1e-3)
        folder, bundle = self.dir / "dir", self.dir / "b.moeb"
        if not folder.exists():
            run("compress", model, "--codec", "f32", "-o", folder)
            run("pack", folder, "--key", WORK / "key.pem", "--product", "wren", "-o", bundle)
        for threads in (1, 2):
            run("run", "logits", bundle, "--trust", TRUST, "--tokens", ids, "--threads", threads, "-o", self.dir / "runtime.f32")
            self.assertLess(largest_difference(floats(self.dir / "runtime.f32"), floats(golden)), 1e-3)

    def test_wren(self):
        for domain in ("python", "german", "speech"):
            record = json.loads((GOLDEN / f"wren/{domain}.json").read_text())
            self.check(WREN, record["tokens"], GOLDEN / f"wren/{domain}.f32")


def family_case(family):
    def test(self):
        record = json.loads((GOLDEN / family / "golden.json").read_text())
        self.check(GOLDEN / family, record["tokens"], GOLDEN / family / "golden_logits.f32")
    return test


for name in CHECKPOINTS:
    setattr(Goldens, f"test_{name}", family_case(name))
