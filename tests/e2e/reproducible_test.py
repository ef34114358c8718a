"""The same input gives the same bytes: twice, and with 1 and 2 threads."""
import hashlib

from harness import TEXT, WORK, WREN, Case, run


def digest(path):
    if path.is_dir():
        return {p.name: digest(p) for p in sorted(path.iterdir())}
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Reproducible(Case):
    def path(self, threads):
        """Profile, folder and bundle made with so many threads."""
        out = self.dir / f"t{threads}"
        out.mkdir()
        run("calibrate", WREN, "--data", TEXT / "novel.calib.txt", TEXT / "python.calib.txt", "--tokens", 4096, "--threads", threads,
            "-o", out / "p.mprof")
        run("compress", WREN, "--profile", out / "p.mprof", "--target-bpw", "4.5", "--threads", threads, "-o", out / "dir")
        run("pack", out / "dir", "--key", WORK / "key.pem", "--product", "wren", "--threads", threads, "-o", out / "b.moeb")
        return {name: digest(out / name) for name in ("p.mprof", "dir", "b.moeb")}

    def test_threads(self):
        self.assertEqual(self.path(1), self.path(2))

    def test_twice(self):
        for name in ("a", "b"):
            run("pack", WORK / "dir-i4g64", "--key", WORK / "key.pem", "--product", "wren", "--counter", 7, "-o", self.dir / name)
        self.assertEqual(digest(self.dir / "a"), digest(self.dir / "b"))
        self.assertEqual(digest(self.dir / "a"), digest(WORK / "wren-i4g64.moeb"))
