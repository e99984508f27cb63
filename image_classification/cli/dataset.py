"""``python -m image_classification dataset …``: make and prepare data sets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from image_classification.core.errors import EXIT_DONE, ConfigError
from image_classification.data.demo import write_demo


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}: see {self.prog} --help")


def main(argv: list[str]) -> int:
    """Run one command; return the exit code.

    Raises:
        ConfigError: the command line cannot be understood. DataError: the folder cannot be used.
    """
    parser = _Parser(
        prog="python -m image_classification dataset", description="Make and prepare data sets."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="write the demo data set",
        description="Write scikit-learn's handwritten digits as JPEG folders: OUT/train/<digit>/ "
        "(1,437 images) and OUT/val/<digit>/ (360).",
    )
    demo.add_argument("out", metavar="OUT", type=Path, help="folder to write; new or empty")
    arguments = parser.parse_args(argv)
    print(f"demo data set: {write_demo(arguments.out)}")
    return EXIT_DONE
