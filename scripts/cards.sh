#!/usr/bin/env bash
# Called by scripts/{fp32,amp}_*.sh: ResNet-50 as published on 1, 4, 8 or 16 BI-V100.
#
#   scripts/cards.sh PRECISION PLATFORM --data-path DIR [any option of launch.py]
#
# DIR holds train/ and val/, or is the word demo or synthetic. The interpreter is $PYTHON, else
# .venv/bin/python, else python3.
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

root="$(CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
(($# >= 2)) || fail "usage: cards.sh PRECISION PLATFORM --data-path DIR [options of launch.py]"
precision="$1"
platform="$2"
shift 2

data=""
runs_here=true # false for --explain and --emit, which start no run
rest=()
while (($#)); do
  case "$1" in
    --data-path)
      (($# >= 2)) || fail "--data-path needs a folder"
      data="$2"
      shift
      ;;
    --data-path=*) data="${1#*=}" ;;
    -h | --help)
      echo "usage: --data-path DIR [options of launch.py]: resnet50 $precision $platform"
      exit 0
      ;;
    --explain | --emit | --emit=*)
      runs_here=false
      rest+=("$1")
      ;;
    *) rest+=("$1") ;;
  esac
  shift
done
[[ -n "$data" ]] || fail "give the data set as --data-path DIR (a folder with train/ and val/)"

if $runs_here && [[ "$platform" == BI-V100x16 ]]; then
  if [[ -z "${NODE_RANK:-}" || -z "${MASTER_ADDR:-}" ]]; then
    fail "16 cards are two machines: on each, set NODE_RANK (0 or 1) and MASTER_ADDR (the address of the \
first machine); NNODES defaults to 2 and MASTER_PORT to 29500"
  fi
fi

if [[ -z "${PYTHON:-}" ]]; then
  PYTHON=python3
  if [[ -x "$root/.venv/bin/python" ]]; then PYTHON="$root/.venv/bin/python"; fi
fi
exec "$PYTHON" "$root/launch.py" --model resnet50 --precision "$precision" --mode convergence \
  --platform "$platform" "$data" ${rest[@]+"${rest[@]}"}
