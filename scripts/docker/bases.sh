# The base image for each platform; sourced by build.sh and run.sh. docker/docker-bake.hcl names the
# same bases; docs/container.md gives the reasons.
# shellcheck shell=bash

readonly slim_base=python:3.11-slim-bookworm
readonly ngc_base=nvcr.io/nvidia/pytorch:26.09-py3

# target_of PLATFORM: prints slim or ngc, or "" for a vendor whose base image has no public name.
target_of() {
  case "$1" in
    CPU | GPU | DGX1V | DGX1V-16G | DGX1V-32G | DGX2V) echo slim ;;
    T4 | A100 | DGXA100 | H100 | DGXH100 | H200 | DGXH200 | B200 | DGXB200) echo ngc ;;
    BI-V100x* | GAUDI*) echo '' ;;
    *) return 1 ;;
  esac
}

base_of() { # TARGET
  case "$1" in
    slim) echo "$slim_base" ;;
    ngc) echo "$ngc_base" ;;
  esac
}
