"""Mixed precision by torch or NVIDIA Apex."""
