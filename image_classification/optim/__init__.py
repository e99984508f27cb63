"""Optimizers, learning-rate schedules, losses, mixing, and the moving average of weights."""
