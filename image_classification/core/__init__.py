"""Plain types, errors, registries and file access. Imports nothing else of the package."""
