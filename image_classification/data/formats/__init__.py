"""Data set formats: recognize a format, index its images, read their bytes."""
