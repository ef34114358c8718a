"""Makes once what the other end-to-end tests read: a profile of wren, compressed folders and their signed bundles."""
import shutil

from harness import CODECS, TEXT, TRUST, WORK, WREN, run

DOMAINS = ("scripture", "speech", "novel", "python", "german", "french", "admin", "dictionary")
TRELLIS = """version: 1
defaults: {codec: t4g128}
rules:
  - {match: '.*gate_proj', codec: t3g64}
  - {match: '.*up_proj', codec: t2g128}
  - {match: '.*down_proj', codec: t5g128}
  - {match: '.*[qkvo]_proj', codec: t6r}
"""


def main():
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    data = [f"{name}={TEXT / name}.calib.txt" for name in DOMAINS]
    run("calibrate", WREN, "--data", *data, "--tokens", 8192, "-o", WORK / "wren.mprof", "--report", WORK / "wren.html")
    run("pack", "keygen", "-o", WORK / "key.pem", "--trust", TRUST, "--product", "wren")
    (WORK / "trellis.yaml").write_text(TRELLIS)
    for name in CODECS:
        how = ("--recipe", WORK / "trellis.yaml") if name == "trellis" else ("--codec", name)
        run("compress", WREN, "--profile", WORK / "wren.mprof", *how, "-o", WORK / f"dir-{name}")
        run("pack", WORK / f"dir-{name}", "--key", WORK / "key.pem", "--product", "wren", "--counter", 7, "-o", WORK / f"wren-{name}.moeb")


if __name__ == "__main__":
    main()
