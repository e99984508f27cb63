#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Run a published configuration by name; see README.md or ``launch.py --help``."""

import sys

from image_classification.__main__ import run

if __name__ == "__main__":
    sys.exit(run(["launch", *sys.argv[1:]]))
