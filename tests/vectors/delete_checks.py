"""Deletes checks of the readers, one at a time, and shows that their vectors fail and no others. Slow: builds for each.

    python3 delete_checks.py [COUNT (10)] [SEED (1)]

Works on a copy of the tree in build/delete-checks. A vector fails when the library says something else than before: another
code, or the same code for another reason, when a later check catches what the deleted one let through.
"""
import os
import pathlib
import random
import shutil
import subprocess
import sys

SOURCE = pathlib.Path(__file__).resolve().parents[2]
WORK = SOURCE / "build/delete-checks"
os.environ["MOEPACK_BUILD"] = str(WORK / "build")

from checks import all_checks, is_reachable, vectors_of  # noqa: E402
from harness import VECTORS, Replay, Runner, line_of  # noqa: E402


def shell(*args):
    done = subprocess.run(args, capture_output=True, text=True, env={**os.environ, "CCACHE_BASEDIR": str(WORK / "source")})
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, args))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def copy_tree():
    """What changed gets a new time, so that the build of the last run is used for the rest."""
    files = subprocess.run(["git", "ls-files"], cwd=SOURCE, capture_output=True, text=True, check=True).stdout.splitlines()
    for old in (WORK / "source").rglob("*"):
        if old.is_file() and str(old.relative_to(WORK / "source")) not in files:
            old.unlink()
    for name in files:
        target = WORK / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_bytes() != (SOURCE / name).read_bytes():
            shutil.copyfile(SOURCE / name, target)
    shell("cmake", "-S", WORK / "source", "-B", WORK / "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release")


def build():
    shell("cmake", "--build", WORK / "build", "--target", "vector_replay", "c_replay", "-j", str(os.cpu_count()))


def answers(inputs):
    replay = Replay(WORK / "build/tests/vector_replay")
    out = {}
    for name, line in inputs.items():
        try:
            out[name] = replay.ask(line)
        except AssertionError:  # it crashed: that is a failure too
            out[name] = "crash"
            replay = Replay(WORK / "build/tests/vector_replay")
    replay.close()
    return out


def try_without(check, inputs, before):
    """Returns (vectors whose answer changed, those of them with another code)."""
    path = WORK / "source" / check.file
    original = path.read_text()
    path.write_text(check.delete(original))
    try:
        build()
        after = answers(inputs)
    finally:
        path.write_text(original)
    changed = {name for name in before if after[name] != before[name]}
    codes = {name for name in changed if after[name].split("\t")[:3] != before[name].split("\t")[:3]}
    return changed, codes


def main():
    count, seed = (list(map(int, sys.argv[1:])) + [10, 1][len(sys.argv) - 1:])[:2]
    copy_tree()
    build()
    runner = Runner()
    inputs = {}
    for name, vector in VECTORS.items():
        path, trust_path, _, trust = runner.write(name, vector)
        inputs[name] = line_of(path, trust_path, trust)
    before = answers(inputs)
    checks = [check for check in all_checks(WORK / "source") if is_reachable(check)]
    failed = 0
    for check in random.Random(seed).sample(checks, count):
        changed, codes = try_without(check, inputs, before)
        own = vectors_of(check, checks, {name: answer.split("\t", 3)[3] for name, answer in before.items()})
        shared = any(other.text == check.text for other in checks if other is not check)  # then it has a part of them
        good = bool(changed) and (changed <= own if shared else changed == own)
        failed += not good
        print(f"{'ok' if good else 'NOT OK'}  {check}: {len(changed)} of {len(before)} vectors fail, {len(codes)} with another "
              f"code: {', '.join(sorted(changed))}", flush=True)
        if not good:
            print(f"        expected {sorted(own)}")
    runner.close()
    print(f"{count} checks of {len(checks)} deleted, {failed} without exactly their vectors failing")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
