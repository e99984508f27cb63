"""Checkpoints: files, run state, saving in the background, checks on resuming."""
