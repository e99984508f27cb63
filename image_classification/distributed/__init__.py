"""Process groups: the launcher environment, collectives, lost ranks."""
