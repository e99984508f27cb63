#!/usr/bin/env python3
"""Run a published configuration by name; see README.md or ``launch.py --help``."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until a run listens for it, Ctrl-C ends this as SIGTERM does, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from image_classification.cli.launch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
