# Image for reproducing published ImageNet classification runs.
#
#   docker build . -t image-classification     GPUs from V100 to B200, and CPUs
#   scripts/docker/build.sh H100               on the base image for a platform
#
# Bases, build arguments and why: docker/README.md.
ARG FROM_IMAGE_NAME=python:3.11-slim-bookworm
# hadolint ignore=DL3006
FROM ${FROM_IMAGE_NAME}

# torch.compile needs a C++ compiler at run time; tini forwards signals and reaps processes.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends g++ tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*

# All packages on a plain base; only the missing ones on a base that brings torch.
COPY docker/requirements /opt/image-classification/requirements
COPY docker/install_requirements.py /opt/image-classification/
RUN python /opt/image-classification/install_requirements.py

# A commit of github.com/NVIDIA/apex to build; needs a base with nvcc.
ARG APEX_COMMIT=
COPY docker/install_apex.sh docker/record_build.py /opt/image-classification/
RUN if [ -n "${APEX_COMMIT}" ]; then bash /opt/image-classification/install_apex.sh "${APEX_COMMIT}"; fi \
    && python /opt/image-classification/record_build.py /opt/image-classification/build.json

# enroot's PyTorch hook reads PYTORCH_VERSION, NVIDIA's container toolkit NVIDIA_*; the base's values
# are kept. HOME and USER work for any --user, also one without an entry in /etc/passwd.
ENV PYTORCH_VERSION=${PYTORCH_VERSION:-2.10.0} \
    NVIDIA_VISIBLE_DEVICES=${NVIDIA_VISIBLE_DEVICES:-all} \
    NVIDIA_DRIVER_CAPABILITIES=${NVIDIA_DRIVER_CAPABILITIES:-compute,utility,video} \
    PYTHONPATH=/workspace \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    USER=trainer \
    LOGNAME=trainer

WORKDIR /workspace
COPY . /workspace/
# Any user can write to runs/; all other files belong to root.
RUN python docker/check_requirements.py pyproject.toml \
    && python -m compileall -q image_classification launch.py \
    && mkdir -p runs && chmod 1777 runs

ARG IMAGE_SOURCE=
ARG IMAGE_REVISION=
ARG IMAGE_VERSION=0.2.0
ARG FROM_IMAGE_NAME=python:3.11-slim-bookworm
ARG BASE_DIGEST=
LABEL org.opencontainers.image.title="image-classification" \
      org.opencontainers.image.description="Reproduce published ImageNet classification runs by name" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${IMAGE_SOURCE}" \
      org.opencontainers.image.revision="${IMAGE_REVISION}" \
      org.opencontainers.image.version="${IMAGE_VERSION}" \
      org.opencontainers.image.base.name="${FROM_IMAGE_NAME}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"
ENV IMAGE_CLASSIFICATION_IMAGE="image-classification ${IMAGE_VERSION}" \
    IMAGE_CLASSIFICATION_REVISION=${IMAGE_REVISION} \
    IMAGE_CLASSIFICATION_BASE=${FROM_IMAGE_NAME}

USER 1000:1000
ENTRYPOINT ["/workspace/docker/entrypoint.sh"]
CMD ["--help"]
