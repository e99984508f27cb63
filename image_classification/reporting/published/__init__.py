"""Published figures and the verdict of a run against them."""
