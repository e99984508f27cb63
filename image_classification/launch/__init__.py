"""Start, supervise, restart and record runs."""
