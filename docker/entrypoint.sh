#!/usr/bin/env bash
# Prints a start-up banner on stderr, refuses a run that would fail in this container (exit code 2),
# then executes the command. Only the command writes to stdout:
#
#   launch.py …                    options alone do the same: IMAGE --list
#   demo …                         ResNet-50 on the demo data set on the CPU; options override
#   launch … doctor … dataset … report …    python -m image_classification …
#   python …, torchrun …, bash …   any other command is executed unchanged
set -euo pipefail

# NVIDIA's entrypoint runs first where the base has one. It prints to stdout and then executes this
# file again, which finds the original stdout as file descriptor 3.
nvidia=/opt/nvidia/nvidia_entrypoint.sh
if [[ -x "$nvidia" && -z "${IMAGE_CLASSIFICATION_CHAINED:-}" ]]; then
  export IMAGE_CLASSIFICATION_CHAINED=1
  exec 3>&1 >&2
  exec "$nvidia" "$0" "$@"
fi
if [[ -n "${IMAGE_CLASSIFICATION_CHAINED:-}" ]]; then
  unset IMAGE_CLASSIFICATION_CHAINED
  exec 1>&3 3>&-
fi

if (($# == 0)); then set -- --help; fi
case "$1" in
  -*) set -- python /workspace/launch.py "$@" ;;
  launch.py)
    shift
    set -- python /workspace/launch.py "$@"
    ;;
  demo)
    shift
    for default in '--model resnet50' '--precision AMP' '--mode convergence' '--platform CPU'; do
      if [[ " $* " != *" ${default% *}"[\ =]* ]]; then
        set -- "$@" "${default% *}" "${default#* }"
      fi
    done
    set -- python /workspace/launch.py "$@"
    ;;
  launch | doctor | dataset | report) set -- python -m image_classification "$@" ;;
esac

python -m image_classification.cli.container_start "$@" >&2

# The kernel drops SIGTERM for process 1 unless it has a handler; tini forwards it.
if [[ $$ == 1 ]] && command -v tini >/dev/null; then
  exec tini -- "$@"
fi
exec "$@"
