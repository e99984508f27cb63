"""Data sets and data loading: formats, order of the images, transforms, backends and tools."""
