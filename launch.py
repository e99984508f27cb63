#!/usr/bin/env python3
"""Run a published configuration by name; see README.md or ``launch.py --help``."""

import sys

from image_classification.cli.launch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
