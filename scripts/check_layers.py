#!/usr/bin/env python3
"""Refuses an #include that crosses the dependency table of cmake/MoepackTargets.cmake, and a mapped file on the device.

CMake guards what is linked; headers are found from the top folder, so an include could still cross. Programs
(*_main.cc and the folders in PROGRAMS) and tests may use any library. A mapped file can change after it was hashed: what a
device reads is read into memory of its own, by every library and program of ON_DEVICE."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = {  # or a file without its ending; the longest that fits counts
    "base/digest": "digest", "base/cli": "cli", "base/testing": "base", "base": "base", "format/manifest": "manifest", "format/provenance": "provenance", "format/codec": "format",
    "format/proto": "manifest", "format": "format", "tokenizer": "tokenizer", "verify/trust_json": "trust_json", "verify": "verify", "runtime-min/kernels": "kernels",
    "runtime-min": "runtime", "runtime-min/moepack_runtime_c": "runtime_c", "runtime-min/moepack_runtime_c_open": "runtime_c",
    "runtime-min/moepack_runtime_c_handle": "runtime_c", "model": "model", "forward": "forward", "calibrate": "calibrate", "compressor": "compressor",
    "packager": "packager", "device": "device"}

ON_DEVICE = ("format/", "tokenizer/", "verify/", "runtime-min/", "device/")
PROGRAMS = ("runtime-min/run/", "packager/inspect/", "packager/rebuild/", "packager/commands/", "model/bundle/")


def library_of(path):
    for folder in sorted(FOLDERS, key=len, reverse=True):
        if path.startswith((folder + "/", folder + ".")):
            return FOLDERS[folder]
    return None


def allowed():
    text = (ROOT / "cmake/MoepackTargets.cmake").read_text()
    direct = {m[1]: set(m[2].replace('"', "").split()) for m in re.finditer(r"set\(MOEPACK_MAY_LINK_(\S+) (.*)\)", text)}

    def reach(name):
        return {name}.union(*(reach(d) for d in direct[name]))
    return {name: reach(name) for name in direct}


def main():
    may, bad, seen = allowed(), [], 0
    for path in sorted(ROOT.glob("*/**/*")):
        name = path.relative_to(ROOT).as_posix()
        library = library_of(name)
        if path.suffix in (".h", ".cc") and name.startswith(ON_DEVICE) and not re.search(r"_test\.cc$|/testing/", name):
            bad += [f"{name}:{number}: a device may not map files (Env::Map)" for number, line in enumerate(path.read_text().splitlines(), 1)
                    if re.search(r"(->|\.)Map\(|MappedFile", line)]
        if path.suffix not in (".h", ".cc") or library is None or name.startswith(PROGRAMS) or \
                re.search(r"_(test|main|fuzz)\.cc$|/testing/", name):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = re.match(r'\s*#include "([^"]+)"', line)
            target = library_of(match[1]) if match else None
            seen += target is not None
            if target is not None and target not in may[library]:
                bad.append(f"{name}:{number}: {library} may not include {match[1]} ({target})")
    print("\n".join(bad) if bad else f"{seen} includes, all within the dependency table")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
