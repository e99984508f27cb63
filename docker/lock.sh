#!/usr/bin/env bash
# Write docker/requirements/*.txt anew: every package of each kind of base, pinned, with the hashes
# of all its files. `make lock` calls this after a change of pyproject.toml or constraints.txt.
#
# Packages that a file already pins stay at their version; UPGRADE=1 takes the newest instead.
set -euo pipefail
cd "$(dirname "$0")/.."

uv="${UV:-uv}"
upgrade=()
if [[ "${UPGRADE:-0}" == 1 ]]; then upgrade=(--upgrade); fi

# lock NAME INPUT…: x86-64 Linux; Python 3.11 is that of the slim base, and every file of a
# version is listed, so that a newer Python finds its own.
lock() {
  local name="$1"
  shift
  "$uv" pip compile --quiet --generate-hashes --no-annotate --custom-compile-command 'make lock' \
    --python-platform x86_64-unknown-linux-gnu --python-version 3.11 \
    "${upgrade[@]}" "$@" --output-file "docker/requirements/$name.txt"
}

lock plain docker/requirements/plain.in pyproject.toml --extra dali --extra tensorboard \
  --constraint constraints.txt
# numpy is the one its torch is built with.
lock framework docker/requirements/framework.in --no-emit-package numpy
