"""Build, train, evaluate, benchmark and checkpoint a run."""
