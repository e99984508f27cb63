#!/usr/bin/env bash
# Build NVIDIA's Apex from source: docker build --build-arg APEX_COMMIT=HASH …; used by Dockerfile.
# Replaces the Apex of the base image. Takes half an hour or more and needs a base with a CUDA
# compiler (NVIDIA's PyTorch images and CUDA's "devel" images).
set -euo pipefail
commit="$1"

if ! [[ "$commit" =~ ^[0-9a-f]{40}$ ]]; then
  echo "error: APEX_COMMIT=$commit is not a commit hash; give all 40 digits of a commit of github.com/NVIDIA/apex" >&2
  exit 2
fi
if ! command -v nvcc >/dev/null; then
  echo "error: APEX_COMMIT needs a base image with nvcc; this one has none (see docker/README.md)" >&2
  exit 2
fi
# Apex selects its CUDA extensions by environment variables, before 2026 by build options.
PIP_BREAK_SYSTEM_PACKAGES=1 APEX_CPP_EXT=1 APEX_CUDA_EXT=1 NVCC_APPEND_FLAGS="--threads 4" \
  python -m pip install --no-cache-dir --no-deps --no-build-isolation --root-user-action=ignore \
  --config-settings "--build-option=--cpp_ext" --config-settings "--build-option=--cuda_ext" \
  "apex @ https://github.com/NVIDIA/apex/archive/$commit.tar.gz"
python -c 'from apex.optimizers import FusedSGD'
