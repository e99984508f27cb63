#!/usr/bin/env bash
# Build the image on the base for a platform, with labels that record its version and base.
#
#   scripts/docker/build.sh [PLATFORM] [option of docker build …]
#
# Without a platform: the base for GPUs from V100 to B200 and for CPUs. The image is tagged
# image-classification:slim (or :ngc) and image-classification:latest.
# Environment: FROM_IMAGE_NAME: another base, tagged :custom. IMAGE: another name. DOCKER: another
# client.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=scripts/docker/bases.sh
source scripts/docker/bases.sh

docker="${DOCKER:-docker}"
platform=CPU
if [[ $# -gt 0 && "$1" != -* ]]; then
  platform="$1"
  shift
fi
if ! target="$(target_of "$platform")"; then
  echo "error: no platform '$platform'; python launch.py --list platforms shows them" >&2
  exit 2
fi
if [[ -n "${FROM_IMAGE_NAME:-}" ]]; then
  target=custom base="$FROM_IMAGE_NAME"
elif [[ -z "$target" ]]; then
  echo "error: the base for $platform comes from its vendor; set FROM_IMAGE_NAME to its name" >&2
  exit 2
else
  base="$(base_of "$target")"
fi

# A tag can move to another image; the digest cannot. An image that was never in a registry has no
# digest: use its id.
if ! "$docker" image inspect "$base" >/dev/null 2>&1 && ! "$docker" pull "$base"; then
  echo "error: the base image $base cannot be pulled; see the message above, or set FROM_IMAGE_NAME" >&2
  exit 2
fi
digest="$("$docker" image inspect --format \
  '{{if .RepoDigests}}{{index .RepoDigests 0}}{{else}}{{.Id}}{{end}}' "$base")"

revision="$(git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || true)"
# Remove a user name and password from the URL.
source="$(git remote get-url origin 2>/dev/null | sed -E 's#//[^/@]*@#//#' || true)"
version="$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)"

name="${IMAGE:-image-classification}"
"$docker" build \
  --build-arg FROM_IMAGE_NAME="$base" --build-arg BASE_DIGEST="${digest##*@}" \
  --build-arg IMAGE_VERSION="$version" --build-arg IMAGE_REVISION="$revision" \
  --build-arg IMAGE_SOURCE="$source" \
  --tag "$name:$target" --tag "$name:latest" "$@" .
echo "$name:$target"
