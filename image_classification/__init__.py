"""Reproduce published ImageNet classification runs by name."""

__version__ = "0.1.0"
