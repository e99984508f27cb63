"""What turns gradients into learning: decay groups, optimizers, schedules, losses, mixing, EMA."""
