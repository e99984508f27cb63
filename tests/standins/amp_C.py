"""Replaces Apex's CUDA extension, which only a machine with a GPU can build; see `apex`."""
