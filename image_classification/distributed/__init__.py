"""The world of processes: who started them, how they join, and what they exchange."""
