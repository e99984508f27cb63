"""A run's pictures, or those of several runs: what to draw, how, and where it goes."""
