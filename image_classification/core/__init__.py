"""Plain types, errors, registries, files and text. Imports no other part of the package."""
