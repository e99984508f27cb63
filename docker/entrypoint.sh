#!/usr/bin/env bash
# Greets on stderr, refuses a run that this container cannot make (exit code 2), then becomes the
# command, whose stdout stays its own:
#
#   launch.py …            also with the options alone: IMAGE --list
#   demo …                 ResNet-50 on the demo data set, on the CPU; options replace these
#   launch … doctor … dataset … report …    python -m image_classification …
#   python …, torchrun …, bash …   anything else, as it is
set -euo pipefail

# NVIDIA's own entrypoint comes first where the base has one; it prints to stdout and then calls
# this file again, which finds the real stdout at 3.
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

# As process 1 a program without a handler of its own would not hear SIGTERM.
if [[ $$ == 1 ]] && command -v tini >/dev/null; then
  exec tini -- "$@"
fi
exec "$@"
