"""The command lines: parse, hand over, print; no training logic."""
