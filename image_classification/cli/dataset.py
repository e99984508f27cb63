"""``python -m image_classification dataset …``: check, prepare, pack and make data sets."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from image_classification.cli.command_line import CommandParser
from image_classification.core.errors import EXIT_DONE, ConfigError, DataError
from image_classification.core.program import mute_stdout, show
from image_classification.core.units import counted
from image_classification.data.tools import quarantine
from image_classification.data.tools.parallel import default_workers

# What a command needs (torch, numpy, rich) is imported when it runs, so that help and completion
# answer at once.
if TYPE_CHECKING:
    from image_classification.data.tools.check import CheckReport, SplitReport

PACK_FORMATS = ("webdataset", "tfrecord", "recordio")

_MB = 1_000_000
_SHOWN = 5
_IMAGENET = {
    "complete": ["          ImageNet-1k, complete"],
    "incomplete": ["          ImageNet-1k's classes, not all of its images"],
    "no": [],
}


def main(argv: list[str]) -> int:
    """Run one command; return the exit code.

    Raises:
        ConfigError: the command line is wrong. DataError: the data set cannot be used.
    """
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        # Half-written folders have been removed. End by SIGINT, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise
    return EXIT_DONE


def build_parser() -> CommandParser:
    """Return the parser of all ``dataset`` commands."""
    parser = CommandParser("dataset", description="Check, prepare, pack and make data sets.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    check = commands.add_parser(
        "check",
        help="decode every image once and report what would make a run fail",
        description="Decode every image of DIR once, in parallel, and describe the data set. "
        "Images that cannot be decoded are listed in DIR/quarantine.json, and training leaves "
        "them out. Exits with 2 if anything would still make a run fail.",
    )
    check.set_defaults(run=_check)
    _add_folder(check, "a data set of any format")
    check.add_argument("--json", action="store_true", help="print everything as JSON")
    _add_output(check, "FILE", "write the list of broken images to FILE, for a read-only DIR")
    check.add_argument(
        "--no-quarantine", action="store_true", help="write no list of broken images"
    )
    _add_workers(check)

    split = commands.add_parser(
        "split",
        help="choose the validation images of a folder without train/ and val/ once for all runs",
        description="Write DIR/split.json, which lists the train and validation images of "
        "DIR/CLASS/IMAGE and which every run on DIR uses. Without it a run holds a fifth of each "
        "class out. The choice depends on the names of the images alone; no image is moved.",
    )
    split.set_defaults(run=_split)
    _add_folder(split, "a folder of class folders")
    split.add_argument(
        "--val-fraction",
        metavar="F",
        type=_fraction,
        default=0.2,
        help="fraction of each class for validation, at least one image (default: 0.2)",
    )
    _add_count(split, "--seed", "S", "another S chooses other images", default=0)
    _add_output(split, "FILE", "write FILE, for --set data.split_file=FILE and a read-only DIR")

    prepare = commands.add_parser(
        "prepare",
        help="put ImageNet's official archives, or a flat val/, into class folders",
        description="Make OUT/train/<class>/ and OUT/val/<class>/ from ILSVRC2012_img_train.tar, "
        "ILSVRC2012_img_val.tar, or images directly in DIR/val/, whichever exist. An interrupted "
        "run continues when it is started again.",
    )
    prepare.set_defaults(run=_prepare)
    _add_folder(prepare, "the folder that holds them")
    _add_output(prepare, "OUT", "folder to write to (default: DIR)")
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
        help="delete the archives, or the flat images, when everything is in place",
    )

    pack = commands.add_parser(
        "pack",
        help="write a data set into shards, for network storage",
        description="Write the data set DIR into few large files in OUT, and read them back.",
    )
    pack.set_defaults(run=_pack)
    _add_folder(pack, "a data set of any format")
    _add_output(pack, "OUT", "folder to write; new", required=True)
    pack.add_argument("--format", choices=PACK_FORMATS, required=True, help="format of the shards")
    _add_count(
        pack,
        "--max-side",
        "PIXELS",
        "resize images with a longer side to this length (default: keep all bytes)",
    )
    _add_count(pack, "--quality", "Q", "JPEG quality of resized images, 1 to 100 (default: 90)")
    _add_count(pack, "--shard-images", "N", "images per shard (default: 2,500)")
    _add_workers(pack)

    fake = commands.add_parser(
        "fake",
        help="make an ImageNet-like data set for trying things out",
        description="Write JPEG folders cut from two sample photographs, with ImageNet's "
        "distribution of image and file sizes and its known oddities: CMYK, a PNG named .JPEG, "
        "gray images, EXIF orientations.",
    )
    fake.set_defaults(run=_fake)
    _add_folder(fake, "folder to write; new or empty")
    _add_count(fake, "--images", "N", "train images", required=True)
    _add_count(fake, "--classes", "C", "classes", required=True)
    _add_count(
        fake,
        "--val-images",
        "M",
        "validation images (default: a tenth of N, at least one per class)",
    )
    fake.add_argument(
        "--broken", action="store_true", help="add truncated, empty and text files to train/"
    )
    _add_count(fake, "--seed", "S", "the same S makes the same files", default=0)
    _add_workers(fake)

    demo = commands.add_parser(
        "demo",
        help="write the demo data set",
        description="Write scikit-learn's handwritten digits as JPEG folders: OUT/train/<digit>/ "
        "(1,437 images) and OUT/val/<digit>/ (360).",
    )
    demo.set_defaults(run=_demo)
    demo.add_argument("out", metavar="OUT", type=Path, help="folder to write; new or empty")
    return parser


def _add_folder(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help=help)


def _add_output(
    parser: argparse.ArgumentParser, metavar: str, help: str, required: bool = False
) -> None:
    parser.add_argument("-o", "--output", metavar=metavar, type=Path, required=required, help=help)


def _add_count(
    parser: argparse.ArgumentParser,
    option: str,
    metavar: str,
    help: str,
    required: bool = False,
    default: int | None = None,
) -> None:
    def count(text: str) -> int:
        if not text.isdecimal():
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
        return int(text)

    parser.add_argument(
        option, metavar=metavar, type=count, required=required, default=default, help=help
    )


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction between 0 and 1")
    return value


def _add_workers(parser: argparse.ArgumentParser) -> None:
    help = "workers in parallel (default: one per processor)"
    _add_count(parser, "--workers", "N", help, default=default_workers())


def _check(arguments: argparse.Namespace) -> None:
    from image_classification.data.tools.check import check_data_set, quarantine_list

    folder: Path = arguments.folder
    if arguments.output is not None and arguments.no_quarantine:
        raise ConfigError("-o and --no-quarantine contradict each other: give one of them")
    with _progress_bars("checking") as step:
        report = check_data_set(folder, workers=arguments.workers, progress=step)
    list_file: Path | None = arguments.output or folder / quarantine.QUARANTINE_FILE
    assert list_file is not None
    listed = quarantine_list(folder, report)
    failure: DataError | None = None
    # An empty list replaces an old one, or training would still leave out repaired images.
    if arguments.no_quarantine or not (listed or list_file.exists()):
        list_file = None
    else:  # before printing, which may fail
        try:
            quarantine.save(list_file, listed)
        except DataError as error:
            failure, list_file = error, None
    # The list that a run would read: -o and --no-quarantine leave it as it is.
    in_use = quarantine.load(folder) if failure is None else {}
    text = _check_json(report, list_file, in_use) if arguments.json else _check_text(report, in_use)
    try:
        show(text)
    except BrokenPipeError:  # `check DIR | head` must still exit with 2
        mute_stdout()
    if failure is not None:
        raise failure
    if report.is_usable(in_use):
        return
    reasons = []
    if num_broken := len(report.failures(in_use)):
        images = f"{num_broken:,} broken image{'' if num_broken == 1 else 's'}"
        where = "" if list_file is None else f" (listed in {list_file})"
        reasons.append(
            f"{images}{where}: replace or remove them; training leaves out the images listed in "
            f"{folder / quarantine.QUARANTINE_FILE}, validation skips none"
        )
    if problems := report.problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        reasons.append(f"{problems[0]}{more}")
    raise DataError(f"{folder} would make a run fail: {'; '.join(reasons)}")


def _check_json(report: CheckReport, list_file: Path | None, in_use: Collection[str]) -> str:
    """Return the whole report as JSON.

    list_file: the quarantine list, if it was written. in_use: the images that a run leaves out.
    """
    content = dataclasses.asdict(report)
    content["is_usable"] = report.is_usable(in_use)
    content["quarantine"] = {"file": list_file and str(list_file), "images": report.broken}
    return json.dumps(content, indent=1)


def _check_text(report: CheckReport, in_use: Collection[str]) -> str:
    """Return a summary of the report; only the first names of long lists.

    in_use: the images that a run leaves out.
    """
    lines = [f"data set  {report.path}", *_IMAGENET[report.imagenet_1k]]
    class_lists = dict.fromkeys(split.classes for split in report.splits.values())
    lines += [f"classes   {len(classes):,}: {_first(classes)}" for classes in class_lists]
    for name, split in report.splits.items():
        lines += _split_lines(name, split)
    lines += [f"note      {note}" for note in report.notes]
    lines += [f"problem   {problem}" for problem in report.problems]
    if report.is_usable(in_use):
        what = "every image can be decoded"
        if report.broken:
            kind = "broken train image" if report.has_split_folders else "broken image"
            images = counted(len(report.broken), kind)
            what = f"training leaves out the {images} in {quarantine.QUARANTINE_FILE}"
        lines.append(f"{what}: ready for training")
    return "\n".join(lines)


def _split_lines(name: str, split: SplitReport) -> list[str]:
    size = f"{split.total_bytes / 1e6:,.1f} MB"
    lines = [f"{name:<10}{split.num_images:,} images ({split.format}, {size})"]
    for what, spread, unit in (
        ("per class", split.images_per_class, ""),
        ("width", split.width_px, " px"),
        ("height", split.height_px, " px"),
        ("file size", split.bytes, " bytes"),
    ):
        if spread is not None:
            values = f"{spread.min:,.0f} / {spread.median:,.0f} / {spread.max:,.0f}{unit}"
            lines.append(f"  {what:<10} {values} (min / median / max)")
    for what, counts in (("formats", split.formats), ("colors", split.modes)):
        listed = ", ".join(f"{kind} {number:,}" for kind, number in counts.items())
        lines.append(f"  {what:<10} {listed or 'none readable'}")
    for prefix, kinds in (("", split.odd), ("BROKEN, ", split.broken)):
        lines += [
            f"  {prefix}{kind}: {len(names):,}: {_first(names)}"
            for kind, names in kinds.items()
            if names
        ]
    return lines


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _split(arguments: argparse.Namespace) -> None:
    from image_classification.data.formats.folder import recognize, split_of_class_folders
    from image_classification.data.formats.split import SPLIT_FILE, SplitRule, write_split

    root: Path = arguments.folder
    rule = SplitRule(arguments.val_fraction, seed=arguments.seed, ignore_file=True)
    split = split_of_class_folders(root, rule)
    if split is None:
        recognize(root, "train")  # raises an error that says what is missing
        raise DataError(f"{root} has its own train and val images: there is nothing to split")
    file: Path = arguments.output or root / SPLIT_FILE
    try:
        write_split(file, root, split)
    except OSError as error:
        raise DataError(
            f"cannot write {file}: {error.strerror}: name a writable file with -o"
        ) from error
    used = f"--set data.split_file={file} uses it" if arguments.output else "runs on it use that"
    show(
        f"{root}: {len(split.train):,} train and {len(split.val):,} validation images, listed in "
        f"{file}; {used}"
    )


def _prepare(arguments: argparse.Namespace) -> None:
    from image_classification.data.tools.prepare import prepare

    out: Path = arguments.output or arguments.folder
    with _progress_bars("MB placed") as step:
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
        if report.skipped:
            show(f"{split}: skipped {len(report.skipped):,} archive members that are not images")


def _pack(arguments: argparse.Namespace) -> None:
    from image_classification.data.tools.pack import pack

    if arguments.quality is not None and arguments.max_side is None:
        raise ConfigError("--quality has no effect without --max-side: give both, or neither")
    with _progress_bars("packing, then reading back") as step:
        report = pack(
            arguments.folder,
            arguments.output,
            arguments.format,
            max_side=arguments.max_side,
            quality=90 if arguments.quality is None else arguments.quality,
            shard_images=arguments.shard_images,
            workers=arguments.workers,
            progress=step,
        )
    for split, number in report.images.items():
        show(f"{split}: {number:,} images in {report.shards[split]:,} {report.format} shards")
    show(
        f"{report.num_classes:,} classes, {report.num_bytes / 1e9:.2f} GB in {arguments.output}, "
        f"verified by reading back; {report.num_reencoded:,} images resized, "
        f"{report.num_quarantined:,} left out by the quarantine list"
    )


def _fake(arguments: argparse.Namespace) -> None:
    from image_classification.data.tools.fake import FakeSpec, make_fake

    num_val = arguments.val_images
    if num_val is None:
        num_val = max(arguments.classes, arguments.images // 10)
    spec = FakeSpec(arguments.images, arguments.classes, num_val, arguments.broken, arguments.seed)
    with _progress_bars("making") as step:
        made = make_fake(arguments.folder, spec, workers=arguments.workers, progress=step)
    num_broken = sum(map(len, made.broken.values()))
    show(
        f"fake data set: {arguments.folder}: {spec.num_images:,} train images "
        f"({made.num_bytes['train'] / _MB:.1f} MB) and {spec.num_val_images:,} validation images "
        f"in {spec.num_classes:,} classes; {num_broken:,} broken on purpose"
    )


def _demo(arguments: argparse.Namespace) -> None:
    from image_classification.data.tools.demo import write_demo

    show(f"demo data set: {write_demo(arguments.out)}")


@contextmanager
def _progress_bars(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show one progress bar per label on standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    tasks: dict[str, TaskID] = {}

    def step(label: str, done: int, total: int) -> None:
        if label not in tasks:
            tasks[label] = bars.add_task(f"{what}: {label}", total=total)
        bars.update(tasks[label], completed=done)

    with bars:
        yield step
