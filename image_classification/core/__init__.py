"""Plain data, errors and the registry: imported by everything, importing nothing of ours."""
