"""Stands for Apex's CUDA extension, which only a GPU machine can build; see `apex`."""
