"""Puts the parts together and drives them: build, train, evaluate, benchmark, checkpoint."""
