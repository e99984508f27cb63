"""Devices and processes: accelerators, the world of ranks, CPU affinity."""
