"""A module by which `find_apex` recognizes NVIDIA's Apex."""
