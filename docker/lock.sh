#!/usr/bin/env bash
# Regenerate docker/requirements/*.txt: for each kind of base image every package, pinned, with the
# hashes of all its files. Run `make lock` after a change of pyproject.toml or constraints.txt.
#
# Pinned packages keep their version; UPGRADE=1 takes the newest instead.
set -euo pipefail
cd "$(dirname "$0")/.."

uv="${UV:-uv}"
upgrade=()
if [[ "${UPGRADE:-0}" == 1 ]]; then upgrade=(--upgrade); fi

# lock NAME INPUT…: resolve for x86-64 Linux and Python 3.11, that of the slim base. All files of a
# version are listed, so other Python versions find theirs.
lock() {
  local name="$1"
  shift
  "$uv" pip compile --quiet --generate-hashes --no-annotate --custom-compile-command 'make lock' \
    --python-platform x86_64-unknown-linux-gnu --python-version 3.11 \
    "${upgrade[@]}" "$@" --output-file "docker/requirements/$name.txt"
}

lock plain docker/requirements/plain.in pyproject.toml --extra dali --extra tensorboard \
  --constraint constraints.txt
# numpy must be the one that the base's torch is built with.
lock framework docker/requirements/framework.in --no-emit-package numpy
