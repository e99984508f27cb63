"""What ``dataset check`` found, as text and as JSON.

``python -m image_classification dataset …``: check, prepare, pack and make data sets.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from image_classification.cli.parser import CommandParser
from image_classification.core.errors import EXIT_DONE, ConfigError, DataError
from image_classification.core.terminal import mute_stdout, show
from image_classification.data.tools import quarantine
from image_classification.data.tools.check import CheckReport, SplitReport, Spread
from image_classification.data.tools.demo import write_demo
from image_classification.data.tools.parallel import default_workers

_SHOWN = 5
_IMAGENET = {
    "complete": "ImageNet-1k, complete",
    "incomplete": "ImageNet-1k's classes, not all of its images",
}


def check_json(report: CheckReport, list_file: Path | None) -> str:
    """Return everything in ``report``, every name included; list_file: the quarantine list."""
    content = dataclasses.asdict(report)
    content["is_usable"] = report.is_usable
    content["quarantine"] = {
        "file": None if list_file is None else str(list_file),
        "images": report.broken,
    }
    return json.dumps(content, indent=1)


def check_text(report: CheckReport) -> str:
    """Return a summary; of long lists the first names."""
    lines = [f"data set  {report.path}"]
    if report.imagenet_1k in _IMAGENET:
        lines.append(f"          {_IMAGENET[report.imagenet_1k]}")
    lists = {split.classes: None for split in report.splits.values()}
    lines += [f"classes   {len(classes):,}: {_some(classes)}" for classes in lists]
    for name, split in report.splits.items():
        lines += _split_lines(name, split)
    lines += [f"note      {note}" for note in report.notes]
    lines += [f"problem   {problem}" for problem in report.problems]
    if report.is_usable:
        lines.append("every image can be decoded: ready to train on")
    return "\n".join(lines)


def _split_lines(name: str, split: SplitReport) -> list[str]:
    size = f"{split.total_bytes / 1e6:,.1f} MB"
    lines = [
        f"{name:<10}{split.num_images:,} images ({split.format}, {size})",
        _spread_line("a class", split.images_per_class, ""),
        _spread_line("width", split.width_px, " px"),
        _spread_line("height", split.height_px, " px"),
        _spread_line("file size", split.bytes, " bytes"),
        f"  formats    {_counts(split.formats)}",
        f"  colours    {_counts(split.modes)}",
    ]
    for kind, names in split.odd.items():
        if names:
            lines.append(f"  {kind}: {len(names):,}: {_some(names)}")
    for kind, names in split.broken.items():
        if names:
            lines.append(f"  BROKEN, {kind}: {len(names):,}: {_some(names)}")
    return [line for line in lines if line]


def _spread_line(what: str, spread: Spread | None, unit: str) -> str:
    if spread is None:
        return ""
    values = f"{spread.min:,.0f} / {spread.median:,.0f} / {spread.max:,.0f}{unit}"
    return f"  {what:<10} {values} (least / median / most)"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none readable"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


PACK_FORMATS = ("webdataset", "tfrecord", "recordio")

_QUALITY = 90
_MB = 1_000_000


def build_parser() -> CommandParser:
    """Return the parser of every ``dataset`` command; its errors are ConfigError."""
    parser = CommandParser(
        "dataset",
        description="Check, prepare, pack and make data sets.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_check(commands)
    _add_prepare(commands)
    _add_pack(commands)
    _add_fake(commands)
    demo = commands.add_parser(
        "demo",
        help="write the demo data set",
        description="Write scikit-learn's handwritten digits as JPEG folders: OUT/train/<digit>/ "
        "(1,437 images) and OUT/val/<digit>/ (360).",
    )
    demo.add_argument("out", metavar="OUT", type=Path, help="folder to write; new or empty")
    demo.set_defaults(run=_run_demo)
    return parser


def main(argv: list[str]) -> int:
    """Run one command; return the exit code.

    Raises:
        ConfigError: the command line cannot be understood. DataError: the folder cannot be used.
    """
    arguments = build_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], None] = arguments.run
    try:
        run(arguments)
    except KeyboardInterrupt:
        # Half-made folders are gone by now; end as SIGINT ends a program, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise
    return EXIT_DONE


def _add_check(commands: argparse._SubParsersAction[CommandParser]) -> None:
    check = commands.add_parser(
        "check",
        help="decode every image once and say what would break a run",
        description="Decode every image of DIR once, in parallel, and describe the data set. "
        "Exits with 2 if anything would break a run; images that cannot be decoded are then "
        "listed in DIR/quarantine.json, and training leaves them out.",
    )
    check.add_argument("folder", metavar="DIR", type=Path, help="a data set of any format")
    check.add_argument("--json", action="store_true", help="print everything as JSON")
    check.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="write the list of broken images to FILE, where DIR is read-only",
    )
    check.add_argument(
        "--no-quarantine", action="store_true", help="write no list of broken images"
    )
    _add_workers(check)
    check.set_defaults(run=_run_check)


def _add_prepare(commands: argparse._SubParsersAction[CommandParser]) -> None:
    prepare = commands.add_parser(
        "prepare",
        help="put ImageNet's official archives, or a flat val/, into class folders",
        description="Make OUT/train/<class>/ and OUT/val/<class>/ of ILSVRC2012_img_train.tar, "
        "ILSVRC2012_img_val.tar, or images directly in DIR/val/, whichever are there. Interrupted, "
        "it goes on where it was when started again.",
    )
    prepare.add_argument("folder", metavar="DIR", type=Path, help="the folder that holds them")
    prepare.add_argument(
        "-o", "--output", metavar="OUT", type=Path, help="folder to write to (default: DIR)"
    )
    prepare.add_argument(
        "--labels",
        metavar="FILE",
        type=Path,
        help="classes of the validation images: lines 'NAME.JPEG CLASS', or LOC_val_solution.csv "
        "(default: ILSVRC2012_devkit_t12, packed or unpacked, in DIR)",
    )
    prepare.add_argument(
        "--delete-source",
        action="store_true",
        help="delete the archives, or the flat images, once all is in place",
    )
    prepare.set_defaults(run=_run_prepare)


def _add_pack(commands: argparse._SubParsersAction[CommandParser]) -> None:
    pack = commands.add_parser(
        "pack",
        help="write a data set into shards, for network storage",
        description="Write the data set DIR into few large files in OUT, and read them back.",
    )
    pack.add_argument("folder", metavar="DIR", type=Path, help="a data set of any format")
    pack.add_argument(
        "-o", "--output", metavar="OUT", type=Path, required=True, help="folder to write; new"
    )
    pack.add_argument("--format", choices=PACK_FORMATS, required=True, help="how to store them")
    pack.add_argument(
        "--max-side",
        metavar="PIXELS",
        type=_count,
        help="make images whose longer side is longer this long (default: keep every byte)",
    )
    pack.add_argument(
        "--quality",
        metavar="Q",
        type=_count,
        help=f"JPEG quality of those made smaller, 1 to 100 (default: {_QUALITY})",
    )
    pack.add_argument(
        "--shard-images", metavar="N", type=_count, help="images a shard (default: 2,500)"
    )
    _add_workers(pack)
    pack.set_defaults(run=_run_pack)


def _add_fake(commands: argparse._SubParsersAction[CommandParser]) -> None:
    fake = commands.add_parser(
        "fake",
        help="make an ImageNet-like data set for trying things out",
        description="Write JPEG folders cut from two sample photographs, with ImageNet's spread "
        "of sizes and file sizes and its known oddities: CMYK, a PNG named .JPEG, grey images, "
        "EXIF orientations.",
    )
    fake.add_argument("folder", metavar="DIR", type=Path, help="folder to write; new or empty")
    fake.add_argument("--images", metavar="N", type=_count, required=True, help="train images")
    fake.add_argument("--classes", metavar="C", type=_count, required=True, help="classes")
    fake.add_argument(
        "--val-images",
        metavar="M",
        type=_count,
        help="validation images (default: a tenth of N, at least one a class)",
    )
    fake.add_argument(
        "--broken", action="store_true", help="add truncated, empty and text files to train/"
    )
    fake.add_argument(
        "--seed", metavar="S", type=_count, default=0, help="the same S makes the same files"
    )
    _add_workers(fake)
    fake.set_defaults(run=_run_fake)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        metavar="N",
        type=_count,
        default=default_workers(),
        help="how many work at once (default: as many as there are processors)",
    )


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value


def _run_check(arguments: argparse.Namespace) -> None:
    # Imports torch, for the decoder of training; the other commands start faster without.
    from image_classification.data.tools.check import check_data_set, quarantine_list

    folder: Path = arguments.folder
    if arguments.output is not None and arguments.no_quarantine:
        raise ConfigError("-o and --no-quarantine contradict each other: give one of them")
    with _bars("checking") as step:
        report = check_data_set(folder, workers=arguments.workers, progress=step)
    own = folder / quarantine.QUARANTINE_FILE
    list_file = arguments.output or own
    listed = quarantine_list(folder, report)
    # A list that is out of date would go on leaving out images, or refuse mended ones.
    writes = not arguments.no_quarantine and bool(listed or list_file.exists())
    failure: DataError | None = None
    if writes:  # before the answer, whose reader may have gone
        try:
            quarantine.save(list_file, listed)
        except DataError as error:
            failure, writes = error, False
    written = list_file if writes else None
    try:
        show(check_json(report, written) if arguments.json else check_text(report))
    except BrokenPipeError:  # `check DIR | head` still has to end with 2
        mute_stdout()
    if failure is not None:
        raise failure
    if not report.is_usable:
        raise DataError(_verdict(folder, len(report.broken), report.problems, written))


def _verdict(folder: Path, num_broken: int, problems: list[str], list_file: Path | None) -> str:
    parts = []
    if num_broken:
        images = f"{num_broken:,} broken image{'' if num_broken == 1 else 's'}"
        where = "" if list_file is None else f" (listed in {list_file})"
        own = folder / quarantine.QUARANTINE_FILE
        reads = f"training leaves out what {own} lists, validation skips none"
        parts.append(f"{images}{where}: replace or remove them; {reads}")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        parts.append(f"{problems[0]}{more}")
    return f"{folder} would break a run: {'; '.join(parts)}"


def _run_prepare(arguments: argparse.Namespace) -> None:
    from image_classification.data.tools.prepare import prepare

    out: Path = arguments.output or arguments.folder
    with _bars("MB placed") as step:
        reports = prepare(
            arguments.folder,
            out,
            labels=arguments.labels,
            delete_source=arguments.delete_source,
            progress=lambda split, done, total: step(split, done // _MB, total // _MB),
        )
    for split, report in reports.items():
        show(
            f"{split}: {report.num_classes:,} classes, {report.num_images:,} images "
            f"({report.num_new_images:,} new) in {out / split}, from {report.source}"
        )
        if report.passed_over:
            show(f"{split}: {len(report.passed_over):,} members of the archive are no images")


def _run_pack(arguments: argparse.Namespace) -> None:
    from image_classification.data.tools.pack import pack

    if arguments.quality is not None and arguments.max_side is None:
        raise ConfigError("--quality does nothing without --max-side: give both, or neither")
    with _bars("packing, then reading back") as step:
        report = pack(
            arguments.folder,
            arguments.output,
            arguments.format,
            max_side=arguments.max_side,
            quality=_QUALITY if arguments.quality is None else arguments.quality,
            shard_images=arguments.shard_images,
            workers=arguments.workers,
            progress=lambda done, total: step("images", done, total),
        )
    for split, count in report.images.items():
        show(f"{split}: {count:,} images in {report.shards[split]:,} {report.format} shards")
    show(
        f"{report.num_classes:,} classes, {report.num_bytes / 1e9:.2f} GB in {arguments.output}, "
        f"read back and equal; {report.num_reencoded:,} images made smaller, "
        f"{report.num_quarantined:,} left out by the quarantine list"
    )


def _run_fake(arguments: argparse.Namespace) -> None:
    from image_classification.data.tools.fake import FakeSpec, make_fake

    num_val = arguments.val_images
    if num_val is None:
        num_val = max(arguments.classes, arguments.images // 10)
    spec = FakeSpec(arguments.images, arguments.classes, num_val, arguments.broken, arguments.seed)
    with _bars("making") as step:
        made = make_fake(
            arguments.folder,
            spec,
            workers=arguments.workers,
            progress=lambda done, total: step("images", done, total),
        )
    num_broken = sum(map(len, made.broken.values()))
    show(
        f"fake data set: {arguments.folder}: {spec.num_images:,} train images "
        f"({made.num_bytes['train'] / _MB:.1f} MB) and {spec.num_val_images:,} to validate in "
        f"{spec.num_classes:,} classes; {num_broken:,} broken on purpose"
    )


def _run_demo(arguments: argparse.Namespace) -> None:
    show(f"demo data set: {write_demo(arguments.out)}")


@contextmanager
def _bars(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar on standard error for each name that is stepped."""
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    tasks: dict[str, TaskID] = {}

    def step(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(f"{what}: {name}", total=total)
        bars.update(tasks[name], completed=done)

    with bars:
        yield step
