#!/usr/bin/env bash
# Build the image and run its tests: make test-image. Needs a Docker engine, 25 GB of disk, and .venv.
# Exits with 77 and the reason where there is no engine or no room (REQUIRE_DOCKER=1 makes that a
# failure; INSTALL=1 allows installing Debian's engine and docker-compose).
#
# The base is FROM_IMAGE_NAME, else the one the Dockerfile names, else, where no registry can be
# reached, an equivalent made from Debian's packages. Sizes and layers go to build/image.json.
set -euo pipefail
cd "$(dirname "$0")/../.."

python="${PYTHON:-.venv/bin/python}"
docker="${DOCKER:-docker}"
tools=scripts/docker
mkdir -p build

skip() {
  echo "image tests: skipped: $*" >&2
  [[ "${REQUIRE_DOCKER:-0}" == 1 ]] && exit 1
  exit 77
}
network="$(bash "$tools/ensure_docker.sh")" || skip "no Docker engine (see the line above)"
if [[ "${INSTALL:-0}" == 1 ]] && ! command -v docker-compose >/dev/null &&
  ! "$docker" compose version >/dev/null 2>&1 && command -v apt-get >/dev/null; then
  # Used by the test of compose.yml, which is skipped without it.
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends \
    docker-compose >/dev/null 2>&1 || true
fi
root="$("$docker" info --format '{{.DockerRootDir}}')"
free_kib="$(df --output=avail "$root" 2>/dev/null | tail -n 1 || echo 0)"
image="image-classification-test:latest"
if ((free_kib < 25 * 1024 * 1024)) && ! "$docker" image inspect "$image" >/dev/null 2>&1; then
  skip "$((free_kib / 1024 / 1024)) GiB free in $root, the image and its build need 25"
fi

base="${FROM_IMAGE_NAME:-}"
if [[ -z "$base" ]]; then
  # shellcheck source=scripts/docker/bases.sh
  source "$tools/bases.sh"
  if "$docker" image inspect "$slim_base" >/dev/null 2>&1 ||
    timeout 300 "$docker" pull --quiet "$slim_base" >/dev/null 2>&1; then
    base="$slim_base"
  else
    echo "image tests: no registry can be reached; building an equivalent of $slim_base" >&2
    base="$(bash "$tools/make_local_base.sh")" || skip "no base image"
  fi
fi

started=$SECONDS
FROM_IMAGE_NAME="$base" IMAGE=image-classification-test "$tools/build.sh" \
  --network "$network" >build/image.log 2>&1 || {
  tail -n 40 build/image.log >&2
  echo "error: the image was not built; the whole log is build/image.log" >&2
  exit 1
}
build_s=$((SECONDS - started))

"$docker" image inspect "$image" >build/image-inspect.json
"$docker" history --no-trunc --format '{{json .}}' "$image" >build/image-history.jsonl
"$python" scripts/docker/image_record.py "$build_s" build/image-inspect.json \
  build/image-history.jsonl build/image.json

# Two at a time: containers spend much of their time starting, on one core.
IMAGE="$image" DOCKER="$docker" BUILD_NETWORK="$network" \
  "$python" -m pytest -n 2 --dist worksteal tests/image "$@"
