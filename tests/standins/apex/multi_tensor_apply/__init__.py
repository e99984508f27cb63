"""Part of what NVIDIA's Apex is known by."""
