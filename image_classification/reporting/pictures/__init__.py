"""Pictures of one run or several, as PNG and SVG files and inside pages."""
