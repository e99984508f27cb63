"""Accelerators: devices, precisions, CPU affinity and asynchronous copies to the host."""
