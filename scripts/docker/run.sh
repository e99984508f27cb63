#!/usr/bin/env bash
# Run a command in the image with the options that training needs: all GPUs, host shared memory,
# ulimits, the calling user, a read-only root, the data read-only, and the folder for runs.
#
#   scripts/docker/run.sh [PLATFORM] COMMAND…
#   DATA=/data/imagenet scripts/docker/run.sh DGX1V launch.py --model resnet50 --precision AMP \
#       --mode convergence --platform DGX1V
#
# If the first argument is a PLATFORM, the image built for it is used, else
# image-classification:latest. Environment: DATA: the data set's folder, mounted on /imagenet. RUNS:
# the folder for runs (./runs). IMAGE: another image. DOCKER: another client. DOCKER_OPTIONS: more
# options of docker run, in one string.
set -euo pipefail
# shellcheck source=scripts/docker/bases.sh
source "$(dirname "$0")/bases.sh"

docker="${DOCKER:-docker}"
image="${IMAGE:-image-classification:latest}"
if [[ $# -gt 0 ]] && target="$(target_of "$1")"; then
  image="${IMAGE:-image-classification:${target:-custom}}"
  platform="$1"
  shift
fi
if ! "$docker" image inspect "$image" >/dev/null 2>&1; then
  echo "error: there is no image $image; scripts/docker/build.sh${platform:+ $platform} builds it" >&2
  exit 2
fi

options=(--rm --ipc=host --read-only --tmpfs '/tmp:exec,mode=1777'
  --cap-drop ALL --security-opt no-new-privileges --ulimit stack=67108864)
if [[ -t 0 && -t 1 ]]; then options+=(--interactive --tty); fi

# accepts OPTION…: whether the engine can start a container with these options. Some engines may not
# raise the limit of locked memory, and --gpus needs NVIDIA's container toolkit.
accepts() {
  local container
  container="$("$docker" create "$@" --entrypoint true "$image" 2>/dev/null)" || return 1
  local status=0
  "$docker" start --attach "$container" >/dev/null 2>&1 || status=$?
  "$docker" rm --force "$container" >/dev/null 2>&1 || true
  return "$status"
}
if accepts --ulimit memlock=-1; then
  options+=(--ulimit memlock=-1)
else
  echo "note: this engine does not allow --ulimit memlock=-1; running without it" >&2
fi
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
  if ! accepts --gpus all; then
    echo "error: this machine has NVIDIA GPUs, but the engine cannot pass them to a container;" \
      "install NVIDIA's container toolkit" >&2
    exit 2
  fi
  options+=(--gpus all)
fi

# Created here: if Docker created it, it would belong to root.
runs="${RUNS:-$PWD/runs}"
mkdir -p "$runs"
runs="$(cd "$runs" && pwd)"
options+=(--user "$(id -u):$(id -g)" --volume "$runs:/workspace/runs")
if [[ -n "${DATA:-}" ]]; then
  if [[ ! -d "$DATA" ]]; then
    echo "error: DATA=$DATA is not a folder; set it to the folder of the data set" >&2
    exit 2
  fi
  options+=(--volume "$(cd "$DATA" && pwd):/imagenet:ro")
fi
if [[ -n "${DOCKER_OPTIONS:-}" ]]; then
  read -ra more <<<"$DOCKER_OPTIONS"
  options+=("${more[@]}")
fi

exec "$docker" run "${options[@]}" "$image" "$@"
