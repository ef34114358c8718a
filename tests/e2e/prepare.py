"""Makes once what the other end-to-end tests read: a profile of wren, three compressed folders and their signed bundles."""
import shutil

from harness import TEXT, TRUST, WORK, WREN, run

DOMAINS = ("scripture", "speech", "novel", "python", "german", "french", "admin", "dictionary")


def main():
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    data = [f"{name}={TEXT / name}.calib.txt" for name in DOMAINS]
    run("calibrate", WREN, "--data", *data, "--tokens", 8192, "-o", WORK / "wren.mprof", "--report", WORK / "wren.html")
    run("pack", "keygen", "-o", WORK / "key.pem", "--trust", TRUST, "--product", "wren")
    for name in ("f32", "i8g64", "i4g64", "t2g128"):
        run("compress", WREN, "--profile", WORK / "wren.mprof", "--codec", name, "-o", WORK / f"dir-{name}")
        run("pack", WORK / f"dir-{name}", "--key", WORK / "key.pem", "--product", "wren", "--counter", 7, "-o", WORK / f"wren-{name}.moeb")


if __name__ == "__main__":
    main()
