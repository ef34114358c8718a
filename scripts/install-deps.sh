#!/usr/bin/env bash
# Installs what a build needs from Debian 12. --device adds the aarch64 cross compiler, arm64 libraries and qemu-user;
# --checks adds clang tools and the Python modules that checks and vectors use. Needs root or sudo; does nothing when all is there.
set -euo pipefail
packages=(build-essential cmake ninja-build ccache pkg-config git python3
  protobuf-compiler libprotobuf-dev libonnx-dev libeigen3-dev libzstd-dev libsodium-dev libssl-dev
  libboost-program-options-dev libyaml-cpp-dev nlohmann-json3-dev libgtest-dev libgmock-dev)
device=(g++-aarch64-linux-gnu qemu-user libprotobuf-dev:arm64 libzstd-dev:arm64 libsodium-dev:arm64 libssl-dev:arm64
  libboost-program-options-dev:arm64 libgtest-dev:arm64 libgmock-dev:arm64)
checks=(clang clang-format clang-tidy libclang-rt-14-dev python3-numpy python3-cryptography python3-zstandard
  python3-jsonschema)

wanted=("${packages[@]}")
arm=no
for option in "$@"; do
  case "$option" in
    --device) wanted+=("${device[@]}"); arm=yes ;;
    --checks) wanted+=("${checks[@]}") ;;
    *) echo "usage: install-deps.sh [--device] [--checks]" >&2; exit 2 ;;
  esac
done

as_root=()
if [ "$(id -u)" != 0 ]; then as_root=(sudo); fi
if [ "$arm" = yes ] && ! dpkg --print-foreign-architectures | grep -qx arm64; then
  "${as_root[@]}" dpkg --add-architecture arm64
fi
missing=()
for package in "${wanted[@]}"; do
  dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
[ "${#missing[@]}" -eq 0 ] && exit 0
echo "installing: ${missing[*]}"
"${as_root[@]}" apt-get update -q >/dev/null
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
