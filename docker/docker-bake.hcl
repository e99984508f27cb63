// docker buildx bake --file docker/docker-bake.hcl [slim|ngc]: one image per base.
// scripts/docker/bases.sh names the same bases for engines without buildx.

variable "IMAGE" {
  default = "image-classification"
}
variable "IMAGE_VERSION" {
  default = "0.2.0"
}
variable "IMAGE_REVISION" {
  default = ""
}
variable "IMAGE_SOURCE" {
  default = ""
}
// Digest of the base image, as `docker buildx imagetools inspect` prints it.
variable "BASE_DIGEST" {
  default = ""
}
// A commit of github.com/NVIDIA/apex to build; needs a base with nvcc.
variable "APEX_COMMIT" {
  default = ""
}

group "default" {
  targets = ["slim"]
}

target "common" {
  context    = "."
  dockerfile = "Dockerfile"
  args = {
    IMAGE_VERSION  = IMAGE_VERSION
    IMAGE_REVISION = IMAGE_REVISION
    IMAGE_SOURCE   = IMAGE_SOURCE
    BASE_DIGEST    = BASE_DIGEST
    APEX_COMMIT    = APEX_COMMIT
  }
}

// CPUs, and GPUs from V100 (DGX-1, DGX-2) to B200: torch's wheels for CUDA 12.8.
target "slim" {
  inherits = ["common"]
  args     = { FROM_IMAGE_NAME = "python:3.11-slim-bookworm" }
  tags     = ["${IMAGE}:slim", "${IMAGE}:latest"]
}

// GPUs from T4 to B200: NVIDIA's builds of torch, DALI and Apex.
target "ngc" {
  inherits = ["common"]
  args     = { FROM_IMAGE_NAME = "nvcr.io/nvidia/pytorch:26.09-py3" }
  tags     = ["${IMAGE}:ngc"]
}
